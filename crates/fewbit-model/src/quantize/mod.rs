//! Quantizing models: [`Recipe`]s, importance matrices, and whole files.
//!
//! A [`Plan`] chooses the type of each tensor, [`Cpu::encode`](fewbit_kernels::Cpu::encode) encodes it, and
//! [`quantize_file`] and [`quantize_folder`] do both for a whole model, some rows at a time.

mod error;
mod file;
mod importance;
mod input;
mod recipe;
mod source;

pub use error::QuantizeError;
pub use fewbit_quant::encode::is_encodable;
pub use file::{FileOptions, QuantizeProgress, Report, TensorReport, quantize_file, quantize_folder};
pub use importance::{Collector, Importance, ImportanceError};
pub use recipe::{ModelFacts, Plan, Recipe, UnknownRecipe};
pub use source::Quantized;
