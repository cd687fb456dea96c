//! The decoder of fewbit: configuration, weights, KV cache, and one forward pass for the Llama family.
//!
//! A model is data: [`ModelConfig`] says what it is made of, [`Decoder`] is the only code that runs it.
#![forbid(unsafe_code)]

mod cache;
mod config;
mod decoder;
mod error;
mod forward;
pub mod hf;
mod lora;
mod memory;
mod names;
mod pages;
mod prefix;
pub mod quantize;
mod rope;
mod routing;
mod source;
mod weights;

pub use cache::KvCache;
pub use config::{
    AttentionTemperature, ExpertConfig, GgufConfig, LayerConfig, ModelConfig, Pooling, RopeConfig, RopeScaling,
    yarn_magnitude,
};
pub use decoder::{Chunk, Decoder, LoadOptions, Logits, LogitsFor};
pub use error::ModelError;
pub use fewbit_kernels::{GateFunction, Isa, KernelError, PAGE as KV_PAGE, RopeStyle, ceiling};
pub use hf::HfModel;
pub use lora::{Lora, LoraError, LoraSet};
pub use memory::{MemoryEstimate, available_bytes, estimate};
pub use pages::KvType;
pub use prefix::PrefixTree;
pub use source::{Quantized, WeightSource};
