//! The contents of a model's files (families of models, configurations, names of tensors, and their rows), from GGUF
//! files and from Hugging Face folders.
//!
//! [`ModelConfig`] is a model as data; [`WeightSource`] presents the tensors of any format under the names, shapes and
//! types that they have in a GGUF file. Nothing here runs a model, so tools and devices that use this crate do not
//! depend on kernels.
#![forbid(unsafe_code)]

// The helpers in tests/support, which unit tests share with integration tests, call the crate by its name.
#[cfg(test)]
extern crate self as fewbit_checkpoint;

mod config;
mod error;
mod families;
pub mod hf;
pub mod names;
pub mod source;

pub use config::{
    AttentionTemperature, DeltaNetConfig, ExpertConfig, ExpertGroups, Gating, GgufConfig, LatentConfig, LayerConfig,
    LocalHeads, ModelConfig, NormKind, Pooling, QkNorm, Recurrent, RopeConfig, RopeScaling, SharedKv, StateSpaceConfig,
    yarn_magnitude,
};
pub use error::CheckpointError;
pub use families::{architectures, classes};
pub use fewbit_quant::{FillRows, GateFunction, RopeStyle, ThisThread, Workers};
pub use hf::{HfError, HfModel};
pub use source::WeightSource;
