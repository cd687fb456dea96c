//! NVIDIA's GPUs through their driver, without a toolkit: runs layers of a model with the bits of the CPU.
//!
//! Weights have the panel layout of the CPU, unchanged. A step is one copy of rows and tables to the device, the kernels
//! of the plan one after another on one stream, and one copy back. The launches of steps of few rows are captured as a graph
//! and repeated: where rows are, and which pages they have, lies in device memory. Kernels are CUDA C (`kernels/`),
//! which is part of the program as PTX; the driver compiles those that a model needs.
//!
//! Every kernel rounds as the CPU's does, so the results are bit for bit those of the CPU on every GPU. Tests run the same
//! sources, compiled as C++, over a [`driver::Driver`] on the CPU.
//!
//! Not supported, and reported as errors: measuring importance matrices.

mod adapters;
mod ceiling;
pub mod driver;
mod gpu;
pub mod kernels;
#[cfg(any(target_os = "linux", target_os = "windows"))]
mod libcuda;
#[cfg(any(target_os = "linux", target_os = "windows"))]
mod ptx;
mod run;
mod step;
mod weights;

pub use driver::DeviceInfo;

use crate::backend::{Memory, PlanHead, PlanSegment};
use driver::Driver;
use fewbit_kernels::{Cpu, Isa};
use fewbit_model::{
    Device, DeviceCeilings, DeviceError, DeviceMemory, Head, KernelTime, LayerLoader, ModelError, Segment,
};
use gpu::Gpu;
use run::Run;
use std::ops::Range;
use std::sync::Arc;

/// The lowest compute capability that the kernels run on: Turing, of 2018. They need integer products on tensor cores.
pub const LOWEST_CAPABILITY: (u32, u32) = (7, 5);

/// The oldest version of the driver that reads the PTX of the kernels, as 1000 times the major version of CUDA plus 10 times
/// the minor one.
pub const OLDEST_DRIVER: u32 = 12_000;

/// The devices that the driver lists, in the order of their numbers; also those that the kernels do not run on, for which
/// [`DeviceInfo::check`] says why.
///
/// # Errors
/// [`DeviceError::Unavailable`] with the reason, if there is none.
#[cfg(any(target_os = "linux", target_os = "windows"))]
pub fn devices() -> Result<Vec<DeviceInfo>, DeviceError> {
    libcuda::devices()
}

/// The devices that the driver lists: NVIDIA has none for this operating system.
///
/// # Errors
/// [`DeviceError::Unavailable`]
#[cfg(not(any(target_os = "linux", target_os = "windows")))]
pub fn devices() -> Result<Vec<DeviceInfo>, DeviceError> {
    Err(DeviceError::Unavailable { why: "cuda is not for this operating system".to_owned() })
}

#[cfg(any(target_os = "linux", target_os = "windows"))]
fn open(index: usize) -> Result<Arc<dyn Driver>, DeviceError> {
    Ok(Arc::new(libcuda::Libcuda::open(index)?))
}

#[cfg(not(any(target_os = "linux", target_os = "windows")))]
fn open(_: usize) -> Result<Arc<dyn Driver>, DeviceError> {
    devices().map(|_| unreachable!("there are none"))
}

/// A GPU that runs layers and heads.
pub struct CudaDevice {
    gpu: Arc<Gpu>,
    info: DeviceInfo,
    /// Packs the weights into panels, which are the same for every instruction set.
    packer: Cpu,
}

impl CudaDevice {
    /// Opens the device with this number, or else the first one that the kernels run on. The driver lists the fastest first.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] if there is no such device, the driver is too old, or it cannot be opened.
    pub fn open(index: Option<usize>) -> Result<Self, DeviceError> {
        let infos = devices()?;
        let chosen = match index {
            Some(i) if i < infos.len() => i,
            Some(i) => {
                let names: Vec<_> = infos.iter().map(|info| &info.name[..]).collect();
                return Err(DeviceError::Unavailable {
                    why: format!("there is no cuda:{i}, but {}", names.join(", ")),
                });
            }
            // If none can be used, the reason why the first one cannot be is the answer.
            None => infos.iter().position(|info| info.check().is_ok()).unwrap_or(0),
        };
        Self::with_driver(open(chosen)?)
    }

    /// A device that a driver has opened: for tests, whose driver runs the kernels on the CPU.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] if the kernels do not run on it.
    pub fn with_driver(driver: Arc<dyn Driver>) -> Result<Self, DeviceError> {
        let info = driver.info();
        info.check()?;
        let packer = Cpu::new(Isa::Portable, 1).map_err(|error| DeviceError::Unavailable { why: error.to_string() })?;
        Ok(Self { gpu: Arc::new(Gpu::new(driver)), info, packer })
    }

    /// Uses at most this many bytes of the device's memory, as if it had no more. Call it before anything is loaded.
    pub fn limit_memory(mut self, bytes: u64) -> Self {
        if let Some(gpu) = Arc::get_mut(&mut self.gpu) {
            gpu.memory_limit = Some(bytes);
        }
        self
    }

    /// Information about the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }
}

impl Device for CudaDevice {
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
        self.gpu.timing.start();
        true
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
