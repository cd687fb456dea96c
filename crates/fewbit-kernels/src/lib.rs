//! CPU operations of fewbit: scalar definitions, SIMD implementations, dispatch, thread pool.
//!
//! Start with [`Cpu`]. Every operation has one scalar definition (in `fewbit_quant::dot`, `fewbit_quant::activation`,
//! [`math`] and the plain loops of this crate) that includes the order of its float operations; every instruction set,
//! batch size and thread count gives the same bits.
#![deny(unsafe_op_in_unsafe_fn)]
// Loops over the rows and columns of a tile index several arrays at once; written this way they read like the sums.
#![allow(clippy::needless_range_loop)]

mod activate;
mod activations;
mod aligned;
mod arch;
mod attention;
pub mod ceiling;
mod choice;
mod cpu;
mod delta;
mod elementwise;
mod encode;
mod error;
mod generic;
mod isa;
pub mod kv;
pub mod math;
mod pack;
mod panel;
mod pool;
mod products;
mod rows;
mod shared;
mod weights;

pub use activations::{ActivationKinds, Activations, Planes};
pub use attention::{AttentionSequence, AttentionShape, KvPage, KvPageMut};
pub use choice::ISA_VARIABLE;
pub use cpu::Cpu;
pub use delta::{
    Convolution, ConvolutionRows, DeltaRows, DeltaShape, DeltaStep, MOST_TAPS, SpaceOutput, StateRule, delta_gates,
    softplus, space_gates,
};
pub use encode::convert_rows;
pub use error::KernelError;
pub use fewbit_quant::{GateFunction, RopeStyle};
pub use isa::Isa;
pub use kv::{KvElement, KvFloat, PAGE};
pub use pack::{Matrix, PanelLayout};
pub use pool::ThreadPool;
pub use products::Product;
