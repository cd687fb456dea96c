//! What a device can do at most, as measured on it: bytes that it reads per second, and products of bytes.
//!
//! Each is the best of some rounds of a kernel that does nothing else, timed from the first launch to the end of the last
//! one: see [`shortest_time`].

use super::gpu::Gpu;
use super::kernels::{Ceiling, CeilingParams};
use super::run::Dispatch;
use crate::backend::{Memory, Part, shortest_time};
use fewbit_model::{DeviceCeilings, ModelError};
use std::time::{Duration, Instant};

/// The largest buffer to read: more than caches hold.
const MOST_BYTES: u64 = 1 << 30;

/// Blocks of 256 threads: more than any device runs at once.
const BLOCKS: u32 = 4096;

/// Measures both.
pub(super) fn measure(gpu: &Gpu) -> Result<DeviceCeilings, ModelError> {
    let free = gpu.memory().available_bytes().unwrap_or(MOST_BYTES);
    let bytes = MOST_BYTES.min(free / 4) / 16 * 16;
    let (from, to) = (gpu.buffer(bytes)?, gpu.buffer(4 * u64::from(BLOCKS) * 256)?);
    gpu.clear(&[Part::of(&from, 0, bytes)])?;

    let params = CeilingParams { from: from.address(), to: to.address(), n: bytes / 16 };
    let seconds = per_launch(gpu, &Dispatch::new(gpu, &params, params.launch(Ceiling::Read, BLOCKS))?)?;
    let read_bytes_per_s = bytes as f64 / seconds;

    let n = 64;
    let params = CeilingParams { n, ..params };
    let seconds = per_launch(gpu, &Dispatch::new(gpu, &params, params.launch(Ceiling::Multiply, BLOCKS))?)?;
    // Eight warps of a block, with 16 products of tiles of 4096 each.
    let int8_macs_per_s = f64::from(BLOCKS) * 8.0 * n as f64 * 16.0 * 4096.0 / seconds;
    Ok(DeviceCeilings::new(read_bytes_per_s, int8_macs_per_s))
}

/// The shortest time of a launch, of some rounds of many.
fn per_launch(gpu: &Gpu, dispatch: &Dispatch) -> Result<f64, ModelError> {
    let round = |n: u32| -> Result<Duration, ModelError> {
        let start = Instant::now();
        (0..n).try_for_each(|_| gpu.call(0, |driver| driver.launch(&dispatch.launch())))?;
        gpu.wait()?;
        Ok(start.elapsed())
    };
    shortest_time(round)
}
