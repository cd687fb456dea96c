//! Instruction sets: thin implementations of [`crate::generic::Simd`].

mod portable;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;

pub(crate) use portable::Portable;
