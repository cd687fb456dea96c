//! An open device: its buffers, its kernels, and whether it still works.

use super::driver::{Driver, Failure, Function};
use super::kernels::{Address, Module};
use crate::backend::timing::Timing;
use crate::backend::{FromTo, Memory, Part, lock};
use fewbit_model::{DeviceError, DeviceMemory, ModelError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A device that was opened.
pub(super) struct Gpu {
    pub(super) name: String,
    pub(super) driver: Arc<dyn Driver>,
    /// The most bytes that may be allocated, if a limit was set.
    pub(super) memory_limit: Option<u64>,
    /// Bytes of all buffers.
    allocated: Arc<AtomicU64>,
    functions: Mutex<HashMap<(Module, String), Function>>,
    /// The first failure that was not about memory. After one, the device counts as lost.
    failure: Mutex<Option<String>>,
    /// How long kernels take, while that is measured.
    pub(super) timing: Timing,
}

/// Memory on the device, which is freed with the last clone.
#[derive(Clone)]
pub(super) struct DeviceBuffer(Arc<Allocation>);

struct Allocation {
    driver: Arc<dyn Driver>,
    allocated: Arc<AtomicU64>,
    address: Address,
    bytes: u64,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.driver.free(self.address);
        self.allocated.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl DeviceBuffer {
    /// The address of its first byte.
    pub(super) fn address(&self) -> Address {
        self.0.address
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.bytes
    }
}

impl Gpu {
    pub(super) fn new(driver: Arc<dyn Driver>) -> Self {
        Self {
            name: driver.info().name,
            driver,
            memory_limit: None,
            allocated: Arc::default(),
            functions: Mutex::default(),
            failure: Mutex::default(),
            timing: Timing::default(),
        }
    }

    pub(super) fn unsupported(&self, what: impl Into<String>) -> ModelError {
        self.error(DeviceError::Unsupported { what: what.into() })
    }

    /// Calls the driver, unless the device was lost before. `bytes` is the size for out-of-memory errors.
    pub(super) fn call<T>(
        &self,
        bytes: u64,
        f: impl FnOnce(&dyn Driver) -> Result<T, Failure>,
    ) -> Result<T, ModelError> {
        self.check()?;
        match f(&*self.driver) {
            Ok(done) => Ok(done),
            Err(Failure::OutOfMemory) => {
                let free_bytes = self.memory().free_bytes;
                Err(self.error(DeviceError::OutOfMemory { needed_bytes: bytes, free_bytes }))
            }
            Err(Failure::Other(why)) => {
                lock(&self.failure).get_or_insert(why.clone());
                Err(self.error(DeviceError::Lost { why }))
            }
        }
    }

    /// A new buffer with these bytes.
    pub(super) fn upload(&self, bytes: &[u8]) -> Result<DeviceBuffer, ModelError> {
        let buffer = self.buffer(bytes.len() as u64)?;
        self.write(Part::of(&buffer, 0, bytes.len() as u64), bytes)?;
        Ok(buffer)
    }

    /// A kernel, which is compiled for the device if that was not done yet.
    pub(super) fn function(&self, module: Module, name: String) -> Result<Function, ModelError> {
        let key = (module, name);
        if let Some(function) = lock(&self.functions).get(&key) {
            return Ok(*function);
        }
        let function = self.call(0, |driver| driver.function(module, &key.1))?;
        lock(&self.functions).insert(key, function);
        Ok(function)
    }

    /// Bytes that may still be allocated, if a limit was set.
    fn left(&self) -> Option<u64> {
        self.memory_limit.map(|limit| limit.saturating_sub(self.allocated.load(Ordering::Relaxed)))
    }

    /// Checks that a part lies in its buffer, whatever asked for it.
    fn check_part(part: &Part<'_, DeviceBuffer>) -> Address {
        let end = part.at.checked_add(part.bytes);
        assert!(end.is_some_and(|end| end <= part.buffer.bytes()), "a part of the buffer");
        part.buffer.address() + part.at
    }
}

impl Memory for Gpu {
    type Buffer = DeviceBuffer;

    fn buffer(&self, bytes: u64) -> Result<DeviceBuffer, ModelError> {
        let bytes = bytes.max(16).next_multiple_of(16);
        if let Some(free) = self.left().filter(|&left| bytes > left) {
            return Err(self.error(DeviceError::OutOfMemory { needed_bytes: bytes, free_bytes: Some(free) }));
        }
        let address = self.call(bytes, |driver| driver.alloc(bytes))?;
        self.allocated.fetch_add(bytes, Ordering::Relaxed);
        let (driver, allocated) = (Arc::clone(&self.driver), Arc::clone(&self.allocated));
        Ok(DeviceBuffer(Arc::new(Allocation { driver, allocated, address, bytes })))
    }

    fn size(buffer: &DeviceBuffer) -> u64 {
        buffer.bytes()
    }

    fn largest_buffer(&self) -> u64 {
        u64::MAX
    }

    fn memory(&self) -> DeviceMemory {
        let left = self.left();
        match self.driver.memory() {
            Ok((free, total)) => DeviceMemory::new(Some(left.map_or(free, |left| free.min(left))), Some(total)),
            Err(_) => DeviceMemory::new(left, None),
        }
    }

    fn error(&self, source: DeviceError) -> ModelError {
        ModelError::Device { device: self.name.clone(), source }
    }

    fn check(&self) -> Result<(), ModelError> {
        match &*lock(&self.failure) {
            None => Ok(()),
            Some(why) => Err(self.error(DeviceError::Lost { why: why.clone() })),
        }
    }

    fn copy(&self, parts: &[FromTo<'_, DeviceBuffer>]) -> Result<(), ModelError> {
        parts.iter().try_for_each(|(from, to)| {
            assert_eq!(from.bytes, to.bytes, "parts of one size");
            let (source, target) = (Self::check_part(from), Self::check_part(to));
            self.call(0, |driver| driver.copy(source, target, from.bytes))
        })
    }

    fn clear(&self, parts: &[Part<'_, DeviceBuffer>]) -> Result<(), ModelError> {
        parts.iter().try_for_each(|part| {
            let at = Self::check_part(part);
            self.call(0, |driver| driver.clear(at, part.bytes))
        })
    }

    fn write(&self, part: Part<'_, DeviceBuffer>, bytes: &[u8]) -> Result<(), ModelError> {
        let to = Self::check_part(&part);
        assert!(bytes.len() as u64 <= part.bytes, "as many bytes as the part has");
        if bytes.is_empty() {
            return Ok(());
        }
        self.call(0, |driver| driver.write(to, bytes))
    }

    /// Nothing waits to be submitted.
    fn flush(&self) -> Result<(), ModelError> {
        self.check()
    }

    fn read(&self, part: Part<'_, DeviceBuffer>, take: impl FnOnce(&[u8])) -> Result<(), ModelError> {
        let from = Self::check_part(&part);
        let mut bytes = vec![0; part.bytes as usize];
        self.call(0, |driver| driver.read(from, &mut bytes))?;
        take(&bytes);
        Ok(())
    }

    fn wait(&self) -> Result<(), ModelError> {
        self.call(0, |driver| driver.wait())
    }
}
