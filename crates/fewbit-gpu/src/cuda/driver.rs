//! What the backend asks of a CUDA driver, as a trait: its implementation for GPUs is [`super::libcuda`], and tests have one
//! that runs the kernels on the CPU.
//!
//! Everything is done in the order in which it was asked for, as on one stream. Only [`Driver::read`], [`Driver::time`] and
//! [`Driver::wait`] wait for it.

use super::kernels::{Address, Module};
use fewbit_model::{DeviceError, DeviceMemory};
use std::time::Duration;

/// A kernel that was looked up by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function(pub usize);

/// Captured launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub usize);

/// How a call to a driver failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The device has no memory left for an allocation.
    OutOfMemory,
    /// Anything else, in the driver's words. After it, the device counts as lost.
    Other(String),
}

/// One launch of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub function: Function,
    /// Blocks in each dimension.
    pub grid: [u32; 3],
    /// Threads of a block, in one dimension.
    pub block: u32,
    /// Bytes of shared memory of a block, besides what the kernel declares.
    pub shared: u32,
    /// The one argument: a struct of [`super::kernels`].
    pub params: &'a [u64],
}

/// Information about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its name on the command line, such as `cuda:0`.
    pub name: String,
    /// Its name as the driver reports it.
    pub adapter: String,
    /// The newest version of CUDA that the driver supports, as 1000 times the major version plus 10 times the minor one.
    pub driver_version: u32,
    /// The compute capability: major and minor version.
    pub capability: (u32, u32),
    /// Its memory, of which what is free needs an open device.
    pub memory: DeviceMemory,
    /// Whether it shares the memory of the CPU.
    pub is_integrated: bool,
}

impl DeviceInfo {
    /// A device of this compute capability, without memory.
    pub fn new(name: impl Into<String>, adapter: impl Into<String>, capability: (u32, u32)) -> Self {
        Self {
            name: name.into(),
            adapter: adapter.into(),
            driver_version: super::OLDEST_DRIVER,
            capability,
            memory: DeviceMemory::default(),
            is_integrated: false,
        }
    }

    /// What keeps this device from running the kernels, if anything.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] with the version or capability that is needed.
    pub fn check(&self) -> Result<(), DeviceError> {
        let (major, minor) = self.capability;
        let (needed_major, needed_minor) = super::LOWEST_CAPABILITY;
        if (major, minor) < super::LOWEST_CAPABILITY {
            let why = format!(
                "{} has compute capability {major}.{minor}; {needed_major}.{needed_minor} is needed (a GTX 16, an RTX 20, \
                 a T4, or newer): use --device vulkan, or the CPU",
                self.adapter
            );
            return Err(DeviceError::Unavailable { why });
        }
        Ok(())
    }
}

/// A driver with one open device.
///
/// Methods return how they failed; what was asked for before may fail later, and is then reported by any method.
pub trait Driver: Send + Sync {
    /// Information about the device.
    fn info(&self) -> DeviceInfo;

    /// Bytes that are free and all bytes of its memory.
    ///
    /// # Errors
    /// [`Failure`]
    fn memory(&self) -> Result<(u64, u64), Failure>;

    /// Allocates memory, with any content. The address is a multiple of 256.
    ///
    /// # Errors
    /// [`Failure`]
    fn alloc(&self, bytes: u64) -> Result<Address, Failure>;

    /// Frees memory that [`alloc`](Self::alloc) returned, after everything that was asked for before is done.
    fn free(&self, address: Address);

    /// Copies from the host. The bytes may change as soon as this returns.
    ///
    /// # Errors
    /// [`Failure`]
    fn write(&self, to: Address, bytes: &[u8]) -> Result<(), Failure>;

    /// Waits, and copies to the host.
    ///
    /// # Errors
    /// [`Failure`]
    fn read(&self, from: Address, out: &mut [u8]) -> Result<(), Failure>;

    /// Copies within the device. The ranges do not overlap.
    ///
    /// # Errors
    /// [`Failure`]
    fn copy(&self, from: Address, to: Address, bytes: u64) -> Result<(), Failure>;

    /// Fills memory with zeros.
    ///
    /// # Errors
    /// [`Failure`]
    fn clear(&self, at: Address, bytes: u64) -> Result<(), Failure>;

    /// Looks up a kernel, and compiles it for the device if that was not done yet.
    ///
    /// # Errors
    /// [`Failure`]
    fn function(&self, module: Module, name: &str) -> Result<Function, Failure>;

    /// Launches a kernel.
    ///
    /// # Errors
    /// [`Failure`]
    fn launch(&self, launch: &Launch<'_>) -> Result<(), Failure>;

    /// Launches kernels in order, waits for them, and returns how long each took, by the device's clock.
    ///
    /// # Errors
    /// [`Failure`]
    fn time(&self, launches: &[Launch<'_>]) -> Result<Vec<Duration>, Failure>;

    /// Makes one thing of some launches, to be done by [`replay`](Self::replay). Nothing is launched yet.
    ///
    /// # Errors
    /// [`Failure`]
    fn capture(&self, launches: &[Launch<'_>]) -> Result<Graph, Failure>;

    /// Does captured launches, in order.
    ///
    /// # Errors
    /// [`Failure`]
    fn replay(&self, graph: Graph) -> Result<(), Failure>;

    /// Forgets captured launches.
    fn drop_graph(&self, graph: Graph);

    /// Waits until everything is done.
    ///
    /// # Errors
    /// [`Failure`]
    fn wait(&self) -> Result<(), Failure>;
}
