//! GPUs as devices of fewbit: layers of a model as a [plan](plan::Plan) of operations, and what runs it.
//!
//! ```text
//! LayerLoader ──> Layer ──> plan: operations over named buffers ──┬──> interpreter: the CPU, by definition (tests)
//!                     └───> weights, put on the device            └──> wgpu: Vulkan, Metal (feature `wgpu`)
//! ```
//! What a layer computes is said once, in [`plan`]; a backend only encodes operations. The interpreter runs the same
//! plan with the scalar definitions, and gives the CPU segment's bits: so a plan is right before any GPU has run it.
#![deny(unsafe_code)]

pub mod interpreter;
pub mod plan;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use interpreter::Interpreter;
