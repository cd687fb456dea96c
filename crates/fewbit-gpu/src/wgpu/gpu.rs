//! An opened device: its pipelines, buffers and errors.

use super::memory;
use super::shaders::{Arithmetic, Kernel};
use crate::backend::timing::Timing;
use crate::backend::{FromTo, Memory, Part, lock};
use fewbit_model::{DeviceError, DeviceMemory, ModelError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use wgpu::util::DeviceExt;

/// A device, and the pipelines that were compiled for it.
pub(super) struct Gpu {
    pub(super) name: String,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) limits: wgpu::Limits,
    adapter: wgpu::Adapter,
    /// The most bytes that may be allocated, if a limit was set.
    pub(super) memory_limit: Option<u64>,
    arithmetic: Arithmetic,
    pipelines: Mutex<HashMap<Kernel, Arc<Pipeline>>>,
    /// The first error that was reported asynchronously. After one, the device counts as lost.
    failure: Arc<Mutex<Option<String>>>,
    /// How long kernels take, while that is measured.
    pub(super) timing: Timing,
}

/// A compiled kernel.
pub(super) struct Pipeline {
    pub(super) pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    /// The numbers of its bindings, ascending.
    bindings: Vec<u32>,
}

impl Gpu {
    pub(super) fn open(name: String, adapter: &wgpu::Adapter, arithmetic: Arithmetic) -> Result<Self, DeviceError> {
        let limits = adapter.limits();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("fewbit"),
            // Its clock, for measuring kernels.
            required_features: adapter.features() & wgpu::Features::TIMESTAMP_QUERY,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| DeviceError::Unavailable { why: error.to_string() })?;
        let failure = Arc::new(Mutex::new(None));
        let lost = Arc::clone(&failure);
        device.set_device_lost_callback(move |reason, message| {
            let why = if message.is_empty() { format!("{reason:?}").to_lowercase() } else { message };
            lock(&lost).get_or_insert(why);
        });
        let uncaptured = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&uncaptured).get_or_insert(error.to_string());
        }));
        let (adapter, memory_limit) = (adapter.clone(), None);
        Ok(Self {
            name,
            device,
            queue,
            limits,
            adapter,
            memory_limit,
            arithmetic,
            pipelines: Mutex::default(),
            failure,
            timing: Timing::default(),
        })
    }

    pub(super) fn unsupported(&self, what: impl Into<String>) -> ModelError {
        self.error(DeviceError::Unsupported { what: what.into() })
    }

    /// Destroys the device: everything on it fails from now on.
    pub(super) fn destroy(&self) {
        self.device.destroy();
        // This is when its loss is reported.
        let _ = self.device.poll(wgpu::PollType::Poll);
    }

    /// Runs `f` within error scopes, and returns an error if the device reports one. `bytes` is the size for
    /// out-of-memory errors.
    fn watched<T>(&self, bytes: u64, f: impl FnOnce() -> T) -> Result<T, ModelError> {
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let other = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let done = f();
        let (other, memory) = (pollster::block_on(other.pop()), pollster::block_on(memory.pop()));
        if other.is_some() || memory.is_some() {
            // Everything fails on a lost device, in ways of its own; that it is lost is reported when it is polled.
            let _ = self.device.poll(wgpu::PollType::Poll);
        }
        self.check()?;
        if memory.is_some() {
            let free_bytes = memory::of(&self.adapter).free_bytes;
            return Err(self.error(DeviceError::OutOfMemory { needed_bytes: bytes, free_bytes }));
        }
        match other {
            Some(error) => Err(ModelError::Internal { message: format!("{}: {error}", self.name) }),
            None => Ok(done),
        }
    }

    /// Bytes of all buffers that there are on this device.
    pub(super) fn allocated_bytes(&self) -> u64 {
        self.device.generate_allocator_report().map_or(0, |report| report.total_allocated_bytes)
    }

    /// Returns an error if a buffer of this size would exceed the limit that was set, or cannot be bound to a kernel.
    fn check_room(&self, needed_bytes: u64) -> Result<(), ModelError> {
        let free_bytes = match self.memory_limit {
            Some(limit) => self.largest_buffer().min(limit.saturating_sub(self.allocated_bytes())),
            None => self.largest_buffer(),
        };
        if needed_bytes > free_bytes {
            return Err(self.error(DeviceError::OutOfMemory { needed_bytes, free_bytes: Some(free_bytes) }));
        }
        Ok(())
    }

    /// Creates a storage buffer with these bytes.
    pub(super) fn upload(&self, bytes: &[u8]) -> Result<wgpu::Buffer, ModelError> {
        let buffer = self.buffer(bytes.len() as u64)?;
        self.queue.write_buffer(&buffer, 0, bytes);
        Ok(buffer)
    }

    /// Waits until uploads are complete, so that their staging memory on the host is freed.
    pub(super) fn finish_uploads(&self) -> Result<(), ModelError> {
        self.queue.submit([]);
        self.wait()
    }

    /// Creates a buffer with the parameters of kernels: bound as uniform in native arithmetic, as storage in exact
    /// arithmetic.
    pub(super) fn uniform(&self, bytes: &[u8]) -> wgpu::Buffer {
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        self.device.create_buffer_init(&wgpu::util::BufferInitDescriptor { label: None, contents: bytes, usage })
    }

    /// Submits the encoded commands, and passes a part of a buffer to `take`.
    pub(super) fn read_after(
        &self,
        mut encoder: wgpu::CommandEncoder,
        from: &wgpu::Buffer,
        offset: u64,
        bytes: u64,
        take: impl FnOnce(&[u8]),
    ) -> Result<(), ModelError> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let descriptor = wgpu::BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false };
        let staging = self.watched(bytes, || self.device.create_buffer(&descriptor))?;
        encoder.copy_buffer_to_buffer(from, offset, &staging, 0, bytes);
        self.watched(0, || self.queue.submit([encoder.finish()]))?;
        staging.slice(..).map_async(wgpu::MapMode::Read, |_| {});
        self.wait()?;
        let lost = |why: String| self.error(DeviceError::Lost { why });
        let view = staging.slice(..).get_mapped_range().map_err(|error| lost(error.to_string()))?;
        take(&view);
        Ok(())
    }

    pub(super) fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// The pipeline of a kernel, which is compiled at its first use.
    pub(super) fn pipeline(&self, kernel: &Kernel) -> Result<Arc<Pipeline>, ModelError> {
        if let Some(pipeline) = lock(&self.pipelines).get(kernel) {
            return Ok(Arc::clone(pipeline));
        }
        let source = kernel.source(self.arithmetic);
        let pipeline = Arc::new(self.watched(0, || self.compile(kernel, &source))?);
        lock(&self.pipelines).insert(kernel.clone(), Arc::clone(&pipeline));
        Ok(pipeline)
    }

    #[allow(unsafe_code)]
    fn compile(&self, kernel: &Kernel, source: &str) -> Pipeline {
        let label = format!("{kernel:?}");
        let entries = bindings(source);
        let bindings = entries.iter().map(|entry| entry.binding).collect();
        let descriptor = wgpu::BindGroupLayoutDescriptor { label: Some(&label), entries: &entries };
        let layout = self.device.create_bind_group_layout(&descriptor);
        let layouts = wgpu::PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        };
        let layouts = self.device.create_pipeline_layout(&layouts);
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(&label), source: wgpu::ShaderSource::Wgsl(source.into()) };
        // SAFETY: the source is one of this crate's kernels. Their indices stay within the buffers that `Run` binds:
        // rows are below the number of rows, columns below the width, and blocks and pages come from the tables. All
        // their loops terminate.
        let module =
            unsafe { self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&layouts),
            module: &module,
            entry_point: Some("main"),
            // All shared memory is written before it is read.
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        Pipeline { pipeline, layout, bindings }
    }

    /// Creates a bind group of these buffers, given in ascending order of the kernel's binding numbers.
    pub(super) fn bind(&self, kernel: &Pipeline, buffers: &[wgpu::BindingResource<'_>]) -> wgpu::BindGroup {
        assert_eq!(kernel.bindings.len(), buffers.len(), "a buffer for each binding");
        let entries: Vec<_> = kernel
            .bindings
            .iter()
            .zip(buffers)
            .map(|(&binding, resource)| wgpu::BindGroupEntry { binding, resource: resource.clone() })
            .collect();
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &kernel.layout, entries: &entries };
        self.device.create_bind_group(&descriptor)
    }
}

impl Memory for Gpu {
    type Buffer = wgpu::Buffer;

    /// Creates a zeroed storage buffer.
    fn buffer(&self, bytes: u64) -> Result<wgpu::Buffer, ModelError> {
        let size = bytes.max(16).next_multiple_of(4);
        self.check_room(size)?;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        self.watched(size, || self.device.create_buffer(&descriptor))
    }

    fn size(buffer: &wgpu::Buffer) -> u64 {
        buffer.size()
    }

    /// The largest buffer that can be bound to a kernel, in bytes.
    fn largest_buffer(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size) / 4 * 4
    }

    /// The memory of the device at this moment. With a limit, no more than that counts.
    fn memory(&self) -> DeviceMemory {
        let memory = memory::of(&self.adapter);
        let Some(limit) = self.memory_limit else { return memory };
        let left = limit.saturating_sub(self.allocated_bytes());
        DeviceMemory::new(Some(memory.free_bytes.map_or(left, |free| free.min(left))), memory.total_bytes)
    }

    /// Wraps an error with the name of this device.
    fn error(&self, source: DeviceError) -> ModelError {
        ModelError::Device { device: self.name.clone(), source }
    }

    /// Returns an error if the device was lost, or reported an asynchronous error, since it was opened.
    fn check(&self) -> Result<(), ModelError> {
        match &*lock(&self.failure) {
            None => Ok(()),
            Some(why) => Err(self.error(DeviceError::Lost { why: why.clone() })),
        }
    }

    fn copy(&self, parts: &[FromTo<'_, wgpu::Buffer>]) -> Result<(), ModelError> {
        // WebGPU cannot copy within one buffer, so such copies go through another.
        let within = parts.iter().filter(|(from, to)| from.buffer == to.buffer);
        let between = within.map(|(from, _)| from.bytes).max().map(|bytes| self.buffer(bytes)).transpose()?;
        let mut encoder = self.encoder();
        for (from, to) in parts {
            match &between {
                Some(between) if from.buffer == to.buffer => {
                    encoder.copy_buffer_to_buffer(from.buffer, from.at, between, 0, from.bytes);
                    encoder.copy_buffer_to_buffer(between, 0, to.buffer, to.at, to.bytes);
                }
                _ => encoder.copy_buffer_to_buffer(from.buffer, from.at, to.buffer, to.at, to.bytes),
            }
        }
        self.queue.submit([encoder.finish()]);
        self.check()
    }

    fn clear(&self, parts: &[Part<'_, wgpu::Buffer>]) -> Result<(), ModelError> {
        let mut encoder = self.encoder();
        parts.iter().for_each(|part| encoder.clear_buffer(part.buffer, part.at, Some(part.bytes)));
        self.queue.submit([encoder.finish()]);
        self.check()
    }

    fn write(&self, part: Part<'_, wgpu::Buffer>, bytes: &[u8]) -> Result<(), ModelError> {
        self.queue.write_buffer(part.buffer, part.at, bytes);
        Ok(())
    }

    fn flush(&self) -> Result<(), ModelError> {
        self.queue.submit([]);
        self.check()
    }

    fn read(&self, part: Part<'_, wgpu::Buffer>, take: impl FnOnce(&[u8])) -> Result<(), ModelError> {
        self.read_after(self.encoder(), part.buffer, part.at, part.bytes, take)
    }

    fn wait(&self) -> Result<(), ModelError> {
        let done = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check()?;
        done.map(drop).map_err(|error| self.error(DeviceError::Lost { why: error.to_string() }))
    }
}

/// The bind group layout that a source declares, one binding per line.
fn bindings(source: &str) -> Vec<wgpu::BindGroupLayoutEntry> {
    let of = |line: &str| {
        let rest = line.strip_prefix("@group(0) @binding(")?;
        let (number, rest) = rest.split_once(')')?;
        let ty = match rest {
            rest if rest.contains("var<uniform>") => wgpu::BufferBindingType::Uniform,
            rest => wgpu::BufferBindingType::Storage { read_only: !rest.contains("read_write") },
        };
        Some(wgpu::BindGroupLayoutEntry {
            binding: number.parse().ok()?,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        })
    };
    let mut entries: Vec<_> = source.lines().filter_map(of).collect();
    entries.sort_by_key(|entry| entry.binding);
    entries
}
