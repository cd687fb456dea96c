//! fewbit's quantized matrix products as a candle module.
//!
//! [`QLinear`] replaces candle's `QMatMul` on the CPU: it has the same constructors and the same `forward`. So a candle
//! model uses fewbit's kernels after changing one type:
//!
//! ```
//! use candle_core::quantized::{GgmlDType, QTensor};
//! use candle_core::{Device, Module, Tensor};
//! use fewbit_candle::QLinear;
//!
//! let weights = Tensor::randn(0f32, 1f32, (96, 64), &Device::Cpu)?;
//! let weights = QTensor::quantize(&weights, GgmlDType::Q8_0)?;
//! let linear = QLinear::from_qtensor(weights)?; // was: QMatMul::from_qtensor(weights)?
//! let x = Tensor::randn(0f32, 1f32, (2, 5, 64), &Device::Cpu)?;
//! assert_eq!(linear.forward(&x)?.dims(), [2, 5, 96]);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! Weights can also be loaded directly from a GGUF file ([`QLinear::from_gguf`]), in any type that fewbit runs,
//! including the IQ, ternary and MXFP4 types, which candle does not have.
//!
//! Results do not depend on the batch: a row of the output depends only on its row of the input, to the last bit, on
//! every instruction set and number of threads. They are not bit for bit those of `QMatMul`: both round activations to
//! 8 bits in blocks, but in different ways.
//!
//! [`Kernels`] are the threads that products run on. Layers share those of the process unless they are given others.
#![forbid(unsafe_code)]

mod error;
mod kernels;
mod linear;
mod rows;

pub use error::Error;
pub use fewbit_format as format;
pub use fewbit_quant::TensorType;
pub use kernels::Kernels;
pub use linear::QLinear;
pub use rows::rows_to_tensor;
