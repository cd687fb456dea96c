//! Tests of the safetensors reader through the public API.
//!
//! `corrupt` has one test for each way in which a file or an index can be wrong; `reading` compares with the
//! crate `safetensors`, which writes the files, and damages them at random.

mod corrupt;
mod reading;
