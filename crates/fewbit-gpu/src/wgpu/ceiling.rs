//! What a device can do at most, as measured on it: bytes that it reads per second, and products of bytes.
//!
//! Each is the best of some rounds of a kernel that does nothing else, timed from the submission to its end: see
//! [`shortest_time`].

use super::gpu::Gpu;
use super::run::Shape;
use super::shaders::Kernel;
use super::step::StepShape;
use crate::backend::{Memory, shortest_time};
use fewbit_model::{DeviceCeilings, ModelError};
use std::time::{Duration, Instant};

/// The largest buffer to read: more than caches hold.
const MOST_BYTES: u64 = 512 << 20;

/// Workgroups of 256 threads: more than any device runs at once.
const GROUPS: u32 = 4096;

/// Measures both.
pub(super) fn measure(gpu: &Gpu) -> Result<DeviceCeilings, ModelError> {
    let free = gpu.memory().available_bytes().unwrap_or(MOST_BYTES);
    let bytes = MOST_BYTES.min(gpu.largest_buffer()).min(free / 4) / 16 * 16;
    let (from, to) = (gpu.buffer(bytes)?, gpu.buffer(4 * u64::from(GROUPS) * 256)?);
    let width = (bytes / 16) as u32;
    let step = gpu.uniform(bytemuck::bytes_of(&StepShape::default()));

    let read = gpu.pipeline(&Kernel::Read)?;
    let shape = gpu.uniform(bytemuck::bytes_of(&Shape { width, ..Shape::default() }));
    let buffers = [&shape, &step, &from, &to].map(|buffer| buffer.as_entire_binding());
    let bound = gpu.bind(&read, &buffers);
    let seconds = per_dispatch(gpu, |pass| {
        pass.set_pipeline(&read.pipeline);
        pass.set_bind_group(0, &bound, &[]);
        pass.dispatch_workgroups(GROUPS.min(width.div_ceil(256).max(1)), 1, 1);
    })?;
    let read_bytes_per_s = bytes as f64 / seconds;

    let multiply = gpu.pipeline(&Kernel::Multiply)?;
    let width = 64;
    let shape = gpu.uniform(bytemuck::bytes_of(&Shape { width, ..Shape::default() }));
    let buffers = [&shape, &step, &to].map(|buffer| buffer.as_entire_binding());
    let bound = gpu.bind(&multiply, &buffers);
    let seconds = per_dispatch(gpu, |pass| {
        pass.set_pipeline(&multiply.pipeline);
        pass.set_bind_group(0, &bound, &[]);
        pass.dispatch_workgroups(GROUPS, 1, 1);
    })?;
    let int8_macs_per_s = f64::from(GROUPS) * 256.0 * f64::from(width) * 32.0 / seconds;
    Ok(DeviceCeilings::new(read_bytes_per_s, int8_macs_per_s))
}

/// The shortest time of a dispatch, of some rounds of many.
fn per_dispatch(gpu: &Gpu, dispatch: impl Fn(&mut wgpu::ComputePass<'_>)) -> Result<f64, ModelError> {
    let round = |n: u32| -> Result<Duration, ModelError> {
        let mut encoder = gpu.encoder();
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            (0..n).for_each(|_| dispatch(&mut pass));
        }
        let commands = encoder.finish();
        let start = Instant::now();
        gpu.queue.submit([commands]);
        gpu.wait()?;
        Ok(start.elapsed())
    };
    shortest_time(round)
}
