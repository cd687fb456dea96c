//! Local, quantized LLM inference in Rust.
#![forbid(unsafe_code)]
