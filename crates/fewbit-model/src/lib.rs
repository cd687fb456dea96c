//! The decoder of fewbit: configuration, weights, KV cache, and one forward pass for the Llama family.
//!
//! A model is data: [`ModelConfig`] says what it is made of, [`Decoder`] is the only code that runs it.
#![forbid(unsafe_code)]

mod cache;
mod config;
mod decoder;
mod error;
mod memory;
mod rope;
mod weights;

pub use cache::{KvCache, KvType};
pub use config::ModelConfig;
pub use decoder::{Chunk, Decoder, LoadOptions, Logits, LogitsFor};
pub use error::ModelError;
pub use fewbit_kernels::{Isa, KernelError, RopeStyle, ceiling};
pub use memory::{MemoryEstimate, estimate};
