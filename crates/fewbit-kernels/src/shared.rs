//! Writing disjoint parts of one slice from several threads.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice that threads of one parallel section write in disjoint parts.
pub(crate) struct SharedMut<'a, T> {
    ptr: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` whose parts are handed out; `range` demands that parts do not overlap.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len(), _borrow: PhantomData }
    }

    /// One part of the slice.
    ///
    /// # Safety
    /// No other part that is in use at the same time may overlap `range`.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }

    /// Writes `values` to every `stride`-th element from `start` on.
    ///
    /// # Safety
    /// Nothing else uses these elements at the same time.
    pub(crate) unsafe fn scatter(&self, start: usize, stride: usize, values: impl ExactSizeIterator<Item = T>) {
        let n = values.len();
        assert!(n == 0 || start + (n - 1) * stride < self.len, "{n} from {start} by {stride} of {}", self.len);
        for (i, value) in values.take(n).enumerate() {
            // SAFETY: in bounds by the assertion, as i < n; exclusive by the caller's promise.
            unsafe { self.ptr.add(start + i * stride).write(value) }
        }
    }
}
