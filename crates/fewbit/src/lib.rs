//! Local, quantized LLM inference in pure Rust.
#![forbid(unsafe_code)]

pub mod hub;

/// stand-in
pub struct Sampling {
    /// x
    pub temperature: f32,
    /// x
    pub top_k: usize,
    /// x
    pub top_p: f32,
    /// x
    pub min_p: f32,
}
