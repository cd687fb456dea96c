//! NVIDIA GPUs through the CUDA driver.

pub mod kernels;
