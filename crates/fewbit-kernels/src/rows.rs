//! Filling the rows of a buffer on all threads, for weights that are converted while they are loaded.

use crate::ThreadPool;
use crate::shared::SharedMut;
use fewbit_quant::{FillRows, Workers};
use std::ops::Range;

impl ThreadPool {
    /// Calls `fill` with ranges of at most `chunk` rows and the bytes of these rows; the ranges cover all rows of
    /// `out`, which is `[n_rows, row_bytes]`.
    ///
    /// # Panics
    /// If `fill` does, `chunk` is 0, or `out` is not a whole number of rows.
    pub fn fill_rows(
        &self,
        out: &mut [u8],
        row_bytes: usize,
        chunk: usize,
        fill: impl Fn(Range<usize>, &mut [u8]) + Sync,
    ) {
        let n_rows = out.len().checked_div(row_bytes).unwrap_or(0);
        assert_eq!(n_rows * row_bytes, out.len(), "whole rows of {row_bytes} bytes");
        let out = SharedMut::new(out);
        self.for_chunks(n_rows, chunk, |rows, _| {
            // A pool of one thread gets everything as one range.
            for start in rows.clone().step_by(chunk) {
                let rows = start..rows.end.min(start + chunk);
                // SAFETY: each row is handed out once.
                let bytes = unsafe { out.range(rows.start * row_bytes..rows.end * row_bytes) };
                fill(rows, bytes);
            }
        });
    }
}

impl Workers for ThreadPool {
    fn fill_rows(&self, out: &mut [u8], row_bytes: usize, chunk: usize, fill: FillRows<'_>) {
        self.fill_rows(out, row_bytes, chunk, fill);
    }
}
