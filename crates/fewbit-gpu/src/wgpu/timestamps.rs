//! When the dispatches of a step began and ended, by the device's clock.

use super::gpu::Gpu;
use crate::backend::timing::Label;
use crate::backend::{Memory, Part};
use fewbit_model::ModelError;
use std::time::Duration;

/// Dispatches that share a set of timestamps: two for each.
const PER_SET: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;

/// The timestamps of a step.
pub(super) struct Timestamps {
    /// For each set of dispatches, the timestamps and the buffer that they are copied to.
    sets: Vec<(wgpu::QuerySet, wgpu::Buffer)>,
    n_dispatches: usize,
}

impl Timestamps {
    pub(super) fn new(gpu: &Gpu, n_dispatches: usize) -> Self {
        let set = |first: usize| {
            let count = 2 * PER_SET.min(n_dispatches - first) as u32;
            let descriptor = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count };
            let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
            let size = 8 * u64::from(count);
            let buffer = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
            (gpu.device.create_query_set(&descriptor), gpu.device.create_buffer(&buffer))
        };
        Self { sets: (0..n_dispatches).step_by(PER_SET).map(set).collect(), n_dispatches }
    }

    /// The timestamps of a pass that consists of this dispatch.
    pub(super) fn of(&self, dispatch: usize) -> wgpu::ComputePassTimestampWrites<'_> {
        let begin = 2 * (dispatch % PER_SET) as u32;
        wgpu::ComputePassTimestampWrites {
            query_set: &self.sets[dispatch / PER_SET].0,
            beginning_of_pass_write_index: Some(begin),
            end_of_pass_write_index: Some(begin + 1),
        }
    }

    /// Copies them to buffers, after all dispatches.
    pub(super) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        for (set, buffer) in &self.sets {
            encoder.resolve_query_set(set, 0..(buffer.size() / 8) as u32, buffer, 0);
        }
    }

    /// Adds the times of the dispatches, which have these labels, to those of the device. Their commands must have been submitted.
    pub(super) fn add<'l>(&self, gpu: &Gpu, labels: impl Iterator<Item = &'l Label>) -> Result<(), ModelError> {
        let mut times = Vec::with_capacity(self.n_dispatches);
        // Nanoseconds of one tick of the clock.
        let tick = f64::from(gpu.queue.get_timestamp_period());
        for (_, buffer) in &self.sets {
            gpu.read(Part::of(buffer, 0, buffer.size()), |bytes| {
                let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(bytes);
                times.extend(ticks.chunks_exact(2).map(|pair| pair[1].saturating_sub(pair[0]) as f64 * tick));
            })?;
        }
        labels.zip(times).for_each(|(label, time)| gpu.timing.add(label, Duration::from_nanos(time as u64)));
        Ok(())
    }
}
