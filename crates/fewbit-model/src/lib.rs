//! The decoder of fewbit: configuration, weights, KV cache, and one forward pass for the Llama family.
//!
//! Models are data: [`ModelConfig`] describes a model, and [`Decoder`] is the only code that runs it, through
//! [`Segment`]s of layers, each of which is on a [`Device`].
#![forbid(unsafe_code)]

/// The weights of layers, as [`LayerLoader`] packs them for devices.
pub mod weights {
    pub use crate::cpu::weights::{
        Attention, DeltaGates, DeltaInputs, DeltaNet, Experts, FeedForward, Ffn, HeadWeights, Layer, Linear, Mlp,
        MlpBranch, PerLayer, ShortConv, StateSpace,
    };
}

mod batch;
mod cache;
mod cpu;
mod decoder;
mod device_error;
mod draft;
mod embedding;
mod error;
mod fingerprint;
mod kv_type;
mod load;
mod loader;
mod lora;
mod memory;
mod pages;
mod placed;
mod prefix;
pub mod quantize;
mod rope;
mod routing;
mod segment;
mod snapshots;
mod state;

pub use batch::{Chunk, Logits, LogitsFor};
pub use cache::KvCache;
pub use cpu::{CpuDevice, HostStates, attention_shape};
pub use decoder::Decoder;
pub use device_error::DeviceError;
pub use error::ModelError;
pub use fewbit_checkpoint::{
    AttentionTemperature, CheckpointError, DeltaNetConfig, ExpertConfig, ExpertGroups, FillRows, GateFunction, Gating,
    GgufConfig, HfModel, LayerConfig, LocalHeads, ModelConfig, NormKind, Pooling, QkNorm, Recurrent, RopeConfig,
    RopeScaling, RopeStyle, SharedKv, StateSpaceConfig, WeightSource, Workers, hf, yarn_magnitude,
};
pub use fewbit_kernels::{Cpu, Isa, KernelError, PAGE as KV_PAGE, ThreadPool, ceiling};
pub use kv_type::KvType;
pub use load::{LoadOptions, Placement};
pub use loader::{LayerLoader, LayerPart};
pub use lora::{AdaptedRows, AdapterPart, Lora, LoraError, LoraSet, LoraTarget, LowRank};
pub use memory::{DeviceMemory, LayerEstimate, MemoryEstimate, PartEstimates, available_bytes, estimate};
pub use placed::{DeviceEstimate, DeviceUse, ModelPart, PlacedPart};
pub use prefix::PrefixTree;
pub use quantize::Quantized;
pub use rope::RopeAngles;
pub use routing::Routing;
pub use segment::{Device, DeviceCeilings, FixedStates, Head, KernelTime, Segment, SequenceRows, Step};
pub use state::{StatePage, StateStore};
