//! Local, quantized LLM inference in pure Rust.
#![forbid(unsafe_code)]

pub mod hub;
pub mod sample;
mod stop;
pub use sample::{Sampler, Sampling, SamplingError};
pub use stop::StopMatcher;
