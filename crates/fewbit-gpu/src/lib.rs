//! Runs layers of a model on GPUs: a [plan](plan::Plan) lists the operations of the layers, and backends execute it.
//!
//! ```text
//! LayerLoader ──> Layer ──> plan: operations on named buffers ──┬──> interpreter: reference on the CPU (for tests)
//!                     └───> weights, uploaded to the device     ├──> wgpu: Vulkan, Metal (feature `wgpu`)
//!                                                               └──> cuda: NVIDIA's driver (feature `cuda`)
//! ```
//! What a layer computes is defined once, in [`plan`]; a backend only encodes the operations. The interpreter runs the
//! same plan with the scalar reference kernels, and its results are bit for bit those of the CPU segment: so plans are
//! verified without a GPU.
#![deny(unsafe_code)]

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod backend;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod interpreter;
pub mod plan;
mod planner;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use interpreter::Interpreter;
