//! Tests of the public API, in one program.

mod hub;
