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
//! Not supported yet, and reported as an error: measuring importance matrices.

mod adapters;
mod ceiling;
mod gpu;
mod memory;
mod run;
mod shaders;
mod step;
mod timestamps;
mod weights;

pub use shaders::Arithmetic;

use crate::backend::{Memory, PlanHead, PlanSegment};
use fewbit_kernels::{Cpu, Isa};
use fewbit_model::{
    Device, DeviceCeilings, DeviceError, DeviceMemory, Head, KernelTime, LayerLoader, ModelError, Segment,
};
use gpu::Gpu;
use run::Run;
use std::ops::Range;
use std::sync::Arc;

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

    fn start_timing(&self) -> bool {
        let has_clock = self.gpu.device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        if has_clock {
            self.gpu.timing.start();
        }
        has_clock
    }

    fn stop_timing(&self) -> Vec<KernelTime> {
        self.gpu.timing.stop()
    }

    fn load_segment(&self, loader: &mut LayerLoader<'_>, layers: Range<usize>) -> Result<Box<dyn Segment>, ModelError> {
        Ok(Box::new(PlanSegment::<Run>::load(&self.gpu, &self.packer, loader, layers)?))
    }

    fn load_head(&self, loader: &mut LayerLoader<'_>) -> Result<Box<dyn Head>, ModelError> {
        Ok(Box::new(PlanHead::<Run>::load(&self.gpu, &self.packer, loader)?))
    }
}
