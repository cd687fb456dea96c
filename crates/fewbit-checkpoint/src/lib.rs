//! What a model's files say: families of models, configurations, names of tensors, and their rows, from GGUF files and from
//! Hugging Face folders.
//!
//! [`ModelConfig`] is a model as data; [`WeightSource`] shows the tensors of any format under the names, shapes and types
//! that they have in a GGUF file. Nothing here computes with a model, so that tools and devices depend on no kernels.
#![forbid(unsafe_code)]

mod config;
mod error;
mod families;
pub mod hf;
pub mod names;
pub mod source;

pub use config::{
    AttentionTemperature, ExpertConfig, GgufConfig, LayerConfig, ModelConfig, Pooling, RopeConfig, RopeScaling,
    yarn_magnitude,
};
pub use error::CheckpointError;
pub use families::{architectures, classes};
pub use fewbit_quant::{FillRows, GateFunction, RopeStyle, ThisThread, Workers};
pub use hf::{HfError, HfModel};
pub use source::WeightSource;
