//! Block formats of quantized weights: their layout, their decoding to `f32`, the quantization of
//! activations, and the scalar definition of each dot product.
//!
//! Everything here is safe Rust in plain loops: this crate says what the right bits are, and
//! `fewbit-kernels` computes the same bits faster.
#![forbid(unsafe_code)]

pub mod types;

pub use types::TensorType;
