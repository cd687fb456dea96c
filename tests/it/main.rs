//! Tests of the public API and of the repository, in one program.

mod exact;
mod generation;
mod hub;
mod smollm2;
mod tidy;
