//! Byte buffers on cache-line boundaries, zeroed by the operating system page by page on first touch.

use crate::KernelError;
use memmap2::MmapMut;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

const ALIGN: usize = 64;

/// Buffers of at least this size are mappings of their own. For aligned memory, the allocator writes the zeros itself,
/// on the calling thread, which takes a third of the time of loading a model.
const MAPPED: usize = 1 << 20;

/// A zero-initialised byte buffer whose address is a multiple of 64.
pub(crate) enum AlignedBytes {
    Heap(HeapBytes),
    Mapped(MmapMut),
}

impl AlignedBytes {
    /// `len` zero bytes. Large buffers are not touched here, so each page is placed on the memory node of the thread
    /// that first writes it.
    pub(crate) fn zeroed(len: usize) -> Result<Self, KernelError> {
        if len < MAPPED {
            return Ok(Self::Heap(HeapBytes::zeroed(len)?));
        }
        let map = MmapMut::map_anon(len).map_err(|_| KernelError::OutOfMemory { bytes: len })?;
        // Huge pages are faster to zero and need fewer TLB entries: loading and decoding gain a few percent. A kernel
        // without huge pages returns an error, which can be ignored.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self::Mapped(map))
    }
}

impl std::ops::Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes.as_slice(),
            Self::Mapped(map) => map,
        }
    }
}

impl std::ops::DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => bytes.as_mut_slice(),
            Self::Mapped(map) => map,
        }
    }
}

/// A small buffer from the global allocator.
pub(crate) struct HeapBytes {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the buffer owns its memory; shared access is read-only and mutable access needs `&mut`.
unsafe impl Send for HeapBytes {}
// SAFETY: as above.
unsafe impl Sync for HeapBytes {}

impl HeapBytes {
    fn zeroed(len: usize) -> Result<Self, KernelError> {
        let out_of_memory = || KernelError::OutOfMemory { bytes: len };
        let layout = Self::layout(len).ok_or_else(out_of_memory)?;
        // SAFETY: the layout's size is not 0.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(out_of_memory)?;
        Ok(Self { ptr, len })
    }

    fn layout(len: usize) -> Option<Layout> {
        Layout::from_size_align(len.max(ALIGN), ALIGN).ok()
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: ptr is valid for len bytes, all initialised by alloc_zeroed.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in as_slice; &mut self makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for HeapBytes {
    fn drop(&mut self) {
        let layout = Self::layout(self.len).expect("the layout was valid at allocation");
        // SAFETY: allocated in `zeroed` with this very layout.
        unsafe { dealloc(self.ptr.as_ptr(), layout) }
    }
}
