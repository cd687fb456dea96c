//! What the backends share: pages in buffers that grow, and the segment and the head around a plan that a backend runs.

mod ceiling;
mod order;
pub(crate) mod pages;
mod scratch;
mod segment;
pub(crate) mod timing;

pub(crate) use ceiling::shortest_time;
pub(crate) use order::in_order;
pub(crate) use scratch::row_buffers;
pub(crate) use segment::{Place, PlanHead, PlanSegment, Runner};

use fewbit_model::{DeviceError, DeviceMemory, ModelError};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Pages leave memory free for the buffers of a step of this many rows: the default length of a prefill chunk.
pub(crate) const RESERVED_ROWS: usize = 512;

/// Locks a mutex, ignoring that a thread may have panicked while it held the lock.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The memory of a device, in buffers that its kernels are bound to. What is asked for is done in order, but not
/// necessarily when a method returns.
pub(crate) trait Memory: Send + Sync + 'static {
    /// A buffer. Its memory is freed with the last clone.
    type Buffer: Clone + Send + Sync + 'static;

    /// A new buffer of at least this many bytes.
    fn buffer(&self, bytes: u64) -> Result<Self::Buffer, ModelError>;

    /// The bytes of a buffer.
    fn size(buffer: &Self::Buffer) -> u64;

    /// The most bytes that a buffer can have.
    fn largest_buffer(&self) -> u64;

    /// The memory of the device at this moment.
    fn memory(&self) -> DeviceMemory;

    /// Wraps an error with the name of the device.
    fn error(&self, source: DeviceError) -> ModelError;

    /// Returns an error if the device was lost since it was opened.
    fn check(&self) -> Result<(), ModelError>;

    /// Copies parts of buffers to others of the same size, also within a buffer. They do not overlap.
    fn copy(&self, parts: &[FromTo<'_, Self::Buffer>]) -> Result<(), ModelError>;

    /// Fills parts of buffers with zeros.
    fn clear(&self, parts: &[Part<'_, Self::Buffer>]) -> Result<(), ModelError>;

    /// Copies bytes into a part of a buffer.
    fn write(&self, part: Part<'_, Self::Buffer>, bytes: &[u8]) -> Result<(), ModelError>;

    /// Submits what was written, without waiting for it.
    fn flush(&self) -> Result<(), ModelError>;

    /// Waits, and passes the bytes of a part of a buffer to `take`.
    fn read(&self, part: Part<'_, Self::Buffer>, take: impl FnOnce(&[u8])) -> Result<(), ModelError>;

    /// Waits until everything that was asked for is done.
    fn wait(&self) -> Result<(), ModelError>;
}

/// A part to copy, and where to.
pub(crate) type FromTo<'a, B> = (Part<'a, B>, Part<'a, B>);

/// A range of bytes of a buffer.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a, B> {
    pub(crate) buffer: &'a B,
    pub(crate) at: u64,
    pub(crate) bytes: u64,
}

impl<'a, B> Part<'a, B> {
    pub(crate) fn of(buffer: &'a B, at: u64, bytes: u64) -> Self {
        Self { buffer, at, bytes }
    }
}
