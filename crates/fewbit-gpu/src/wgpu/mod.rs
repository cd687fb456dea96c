//! Vulkan and Metal through wgpu: runs layers of a model on any GPU that has a driver, without a vendor toolkit.
//!
//! Weights have the panel layout of the CPU, unchanged. A step is one compute pass: rows are uploaded, every operation
//! of the plan is a dispatch, and the result is read back. Kernels are WGSL sources (`wgsl/`), specialized for the
//! weight type by `shaders`.
//!
//! With [`Arithmetic::Exact`], every float operation is emulated with integers, and the results are bit for bit those
//! of the CPU. This is how kernels are tested, on any adapter. With native arithmetic, results are repeatable on the
//! same device and driver, and close to those of the CPU.
//!
//! Not supported yet, and reported as errors: q8_0 KV caches and measuring importance matrices.

mod adapters;
mod ceiling;
mod gpu;
mod memory;
mod pages;
mod run;
mod shaders;
mod weights;

pub use shaders::Arithmetic;

use crate::interpreter::refuse_collector;
use crate::plan::{Buffer, Plan};
use fewbit_kernels::{Cpu, Isa};
use fewbit_model::{
    AdaptedRows, AdapterPart, Device, DeviceCeilings, DeviceError, DeviceMemory, Head, KvType, LayerLoader, LowRank,
    ModelError, Segment, StateStore, Step,
};
use gpu::{Gpu, lock};
use pages::Pages;
use run::Run;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use weights::DeviceWeights;

/// A graphics API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// For most GPUs, on Linux, Windows and Android.
    Vulkan,
    /// For Apple's GPUs.
    Metal,
}

impl Backend {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
        }
    }

    fn backends(self) -> wgpu::Backends {
        match self {
            Self::Vulkan => wgpu::Backends::VULKAN,
            Self::Metal => wgpu::Backends::METAL,
        }
    }

    /// Whether it exists on this operating system.
    fn is_built_in(self) -> bool {
        match self {
            Self::Vulkan => cfg!(any(target_os = "linux", target_os = "windows", target_os = "android")),
            Self::Metal => cfg!(target_vendor = "apple"),
        }
    }
}

/// Information about an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its name on the command line, such as `vulkan:0`.
    pub name: String,
    /// Its name as the driver reports it.
    pub adapter: String,
    /// The name and version of its driver.
    pub driver: String,
    /// Whether it is a software renderer on the CPU, which is only used if it is named.
    pub is_software: bool,
    /// Its memory, as far as the driver reports it.
    pub memory: DeviceMemory,
    /// Whether it is an integrated GPU, which shares the memory of the CPU.
    pub is_integrated: bool,
    /// The largest buffer that can be bound to a kernel, in bytes.
    pub max_binding_bytes: u64,
}

/// The adapters of a graphics API, in the order of their numbers.
///
/// # Errors
/// [`DeviceError::Unavailable`] with the reason, if there is none.
pub fn devices(backend: Backend) -> Result<Vec<DeviceInfo>, DeviceError> {
    Ok(adapters(backend)?.iter().enumerate().map(|(i, adapter)| info(backend, i, adapter)).collect())
}

fn adapters(backend: Backend) -> Result<Vec<wgpu::Adapter>, DeviceError> {
    let name = backend.name();
    if !backend.is_built_in() {
        return Err(DeviceError::Unavailable { why: format!("{name} is not for this operating system") });
    }
    let descriptor = wgpu::InstanceDescriptor {
        backends: backend.backends(),
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    };
    let instance = wgpu::Instance::new(descriptor);
    let adapters = pollster::block_on(instance.enumerate_adapters(backend.backends()));
    if adapters.is_empty() {
        let why = match backend {
            Backend::Vulkan => "no Vulkan driver was found: install the GPU's driver (and libvulkan), or use the CPU",
            Backend::Metal => "no Metal device was found: use the CPU",
        };
        return Err(DeviceError::Unavailable { why: why.to_owned() });
    }
    Ok(adapters)
}

fn info(backend: Backend, index: usize, adapter: &wgpu::Adapter) -> DeviceInfo {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    DeviceInfo {
        name: format!("{}:{index}", backend.name()),
        adapter: info.name,
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        is_software: info.device_type == wgpu::DeviceType::Cpu,
        memory: memory::of(adapter),
        is_integrated: info.device_type == wgpu::DeviceType::IntegratedGpu,
        max_binding_bytes: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
    }
}

/// Pages leave memory free for the buffers of a step of this many rows: the default length of a prefill chunk.
const RESERVED_ROWS: usize = 512;

/// A GPU that runs layers and heads.
pub struct WgpuDevice {
    gpu: Arc<Gpu>,
    info: DeviceInfo,
    /// Packs the weights into panels, which are the same for every instruction set.
    packer: Cpu,
}

impl WgpuDevice {
    /// Opens the adapter with this number, or else the best one: discrete GPUs are preferred to integrated ones, and
    /// software renderers are never chosen.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] if there is no such adapter, or it cannot be opened.
    pub fn open(backend: Backend, index: Option<usize>, arithmetic: Arithmetic) -> Result<Self, DeviceError> {
        let adapters = adapters(backend)?;
        let infos: Vec<_> = adapters.iter().enumerate().map(|(i, adapter)| info(backend, i, adapter)).collect();
        let chosen = match index {
            Some(i) if i < infos.len() => i,
            Some(i) => {
                let names: Vec<_> = infos.iter().map(|info| &info.name[..]).collect();
                let why = format!("there is no {}:{i}, but {}", backend.name(), names.join(", "));
                return Err(DeviceError::Unavailable { why });
            }
            None => {
                let real = infos.iter().enumerate().filter(|(_, info)| !info.is_software);
                match real.min_by_key(|(_, info)| info.is_integrated) {
                    Some((i, _)) => i,
                    None => {
                        let DeviceInfo { name, adapter, .. } = &infos[0];
                        let why = format!(
                            "the only adapter is {adapter}, which computes on the CPU: give its number, {name}, to use it anyway"
                        );
                        return Err(DeviceError::Unavailable { why });
                    }
                }
            }
        };
        let info = infos.into_iter().nth(chosen).expect("one of them");
        let gpu = Arc::new(Gpu::open(info.name.clone(), &adapters[chosen], arithmetic)?);
        let packer = Cpu::new(Isa::Portable, 1).map_err(|error| DeviceError::Unavailable { why: error.to_string() })?;
        Ok(Self { gpu, info, packer })
    }

    /// Destroys the device, as if its driver had been reset: everything on it fails from now on with
    /// [`DeviceError::Lost`]. For tests of what follows.
    pub fn destroy(&self) {
        self.gpu.destroy();
    }

    /// Uses at most this many bytes of the device's memory, as if it had no more. Call it before anything is loaded.
    pub fn limit_memory(mut self, bytes: u64) -> Self {
        if let Some(gpu) = Arc::get_mut(&mut self.gpu) {
            // What wgpu itself has allocated does not count.
            gpu.memory_limit = Some(bytes.saturating_add(gpu.allocated_bytes()));
        }
        self
    }

    /// Information about the adapter.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }
}

impl Device for WgpuDevice {
    fn name(&self) -> String {
        format!("{} ({})", self.info.name, self.info.adapter)
    }

    fn memory(&self) -> DeviceMemory {
        self.gpu.memory()
    }

    fn ceilings(&self) -> Result<Option<DeviceCeilings>, ModelError> {
        ceiling::measure(&self.gpu).map(Some)
    }

    fn load_segment(&self, loader: &mut LayerLoader<'_>, layers: Range<usize>) -> Result<Box<dyn Segment>, ModelError> {
        let (config, kv_type) = (loader.config(), loader.kv_type());
        if ![KvType::F16, KvType::F32].contains(&kv_type) {
            return Err(self.gpu.unsupported(format!("a KV cache in {kv_type} (choose f16)")));
        }
        let mut weights = DeviceWeights::new(&self.gpu);
        let taken = layers.clone().map(|layer| (layer, loader.layer(&self.packer, layer)));
        let plan = Plan::of_layers(config, taken, &mut weights)?;
        let with_state = loader.layer_part().with_state(layers.clone());
        let reserved = plan.scratch_bytes(RESERVED_ROWS);
        let pages = Arc::new(Pages::new(&self.gpu, config, kv_type, with_state, reserved));
        let run = Run::new(&self.gpu, config, plan, weights, (kv_type, layers.start));
        let weight_bytes = run.weight_bytes;
        Ok(Box::new(WgpuSegment { gpu: Arc::clone(&self.gpu), run: Mutex::new(run), pages, layers, weight_bytes }))
    }

    fn load_head(&self, loader: &mut LayerLoader<'_>) -> Result<Box<dyn Head>, ModelError> {
        let (config, kv_type) = (loader.config(), loader.kv_type());
        let head = loader.head(&self.packer)?;
        let mut weights = DeviceWeights::new(&self.gpu);
        let plan = Plan::of_head(config, head, &mut weights)?;
        let n_vocab = plan.shape(Buffer::Logits).width;
        let run = Run::new(&self.gpu, config, plan, weights, (kv_type, 0));
        let (weight_bytes, most_rows) = (run.weight_bytes, run.most_rows());
        let gpu = Arc::clone(&self.gpu);
        Ok(Box::new(WgpuHead { gpu, run: Mutex::new(run), n_vocab, dim: config.dim, most_rows, weight_bytes }))
    }
}

struct WgpuSegment {
    gpu: Arc<Gpu>,
    run: Mutex<Run>,
    pages: Arc<Pages>,
    layers: Range<usize>,
    weight_bytes: u64,
}

impl Segment for WgpuSegment {
    fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn states(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.pages) as Arc<dyn StateStore>
    }

    fn forward(&self, step: &mut Step<'_>, x: &mut [f32]) -> Result<(), ModelError> {
        refuse_collector(step, &self.gpu.name)?;
        let rows = x.to_vec();
        let take = |bytes: &[u8]| x.copy_from_slice(bytemuck::cast_slice(bytes));
        let loras = step.loras;
        lock(&self.run).run(&rows, Some((step, &self.pages)), loras, Buffer::X, take)
    }

    fn check(&self) -> Result<(), ModelError> {
        self.gpu.check()
    }

    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
        adapters::upload(&self.gpu, adapter)
    }
}

struct WgpuHead {
    gpu: Arc<Gpu>,
    run: Mutex<Run>,
    n_vocab: usize,
    dim: usize,
    /// The most rows of one run of the plan.
    most_rows: usize,
    weight_bytes: u64,
}

impl WgpuHead {
    /// Runs the plan, and copies the buffer `result`, whose rows have this `width`, to `out`.
    fn run(
        &self,
        rows: &[f32],
        loras: &[AdaptedRows],
        (result, width): (Buffer, usize),
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let mut run = lock(&self.run);
        if !loras.is_empty() {
            // Adapters refer to rows of the whole batch, so it cannot be split.
            return run.run(rows, None, loras, result, |bytes| out.copy_from_slice(bytemuck::cast_slice(bytes)));
        }
        for (rows, out) in rows.chunks(self.most_rows * self.dim).zip(out.chunks_mut(self.most_rows * width)) {
            run.run(rows, None, &[], result, |bytes| out.copy_from_slice(bytemuck::cast_slice(bytes)))?;
        }
        Ok(())
    }
}

impl Head for WgpuHead {
    fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn norm(&self, rows: &mut [f32]) -> Result<(), ModelError> {
        let input = rows.to_vec();
        self.run(&input, &[], (Buffer::Normed, self.dim), rows)
    }

    fn logits(&self, rows: &[f32], loras: &[AdaptedRows], out: &mut [f32]) -> Result<(), ModelError> {
        self.run(rows, loras, (Buffer::Logits, self.n_vocab), out)
    }

    fn check(&self) -> Result<(), ModelError> {
        self.gpu.check()
    }

    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
        adapters::upload(&self.gpu, adapter)
    }
}
