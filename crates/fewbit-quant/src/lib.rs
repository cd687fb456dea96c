//! Block formats of quantized weights: their layout, their decoding to `f32`, the quantization of
//! activations, and the scalar definition of each dot product.
//!
//! Everything here is safe Rust in plain loops: this crate defines the right bits, and `fewbit-kernels` computes the
//! same bits faster.
//!
//! Two families cover every quantized type. A [`Block32`] holds 32 codes under one scale (and possibly one minimum); a
//! [`Block256`] ("K-quants") holds 256 codes whose sub-blocks of 16 or 32 have small integer scales under one float
//! scale. Both [`decode()`] and [`dot`](dot::dot_q8) work on these.
#![forbid(unsafe_code)]

pub mod activation;
pub mod block;
pub mod codebook;
pub mod decode;
pub mod dot;
pub mod encode;
mod error;
pub mod format;
mod grid;
mod layout;
mod ops;
pub mod types;
mod workers;

pub use activation::{ActivationKind, Q8Row};
pub use block::{Block32, Block256};
pub use decode::decode;
pub use error::QuantError;
pub use format::{Format, Quantized};
pub use ops::{GateFunction, RopeStyle};
pub use types::TensorType;
pub use workers::{FillRows, ThisThread, Workers};
