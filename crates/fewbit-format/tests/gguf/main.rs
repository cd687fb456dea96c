//! Tests of the GGUF reader and writer through the public API.
//!
//! `corrupt` has one test for each way in which a file can be wrong, `mutate` damages valid files at
//! random, `roundtrip` writes and reads, `files` works on real files in a temporary folder.

mod corrupt;
mod files;
mod mutate;
mod roundtrip;
mod samples;
