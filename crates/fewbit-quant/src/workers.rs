//! Which threads produce rows of weights: one or several. Readers of files take any [`Workers`].

use std::ops::Range;

/// Fills the rows of a buffer `[n_rows, row_bytes]`: called with ranges of rows, which together cover all of them, and
/// the bytes of these rows.
pub type FillRows<'a> = &'a (dyn Fn(Range<usize>, &mut [u8]) + Sync);

/// Threads that produce rows.
pub trait Workers: Sync {
    /// Calls `fill` for at most `chunk` rows at a time.
    fn fill_rows(&self, out: &mut [u8], row_bytes: usize, chunk: usize, fill: FillRows<'_>);
}

/// The calling thread alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisThread;

impl Workers for ThisThread {
    fn fill_rows(&self, out: &mut [u8], row_bytes: usize, chunk: usize, fill: FillRows<'_>) {
        let chunk = chunk.max(1);
        for (i, out) in out.chunks_mut((chunk * row_bytes).max(1)).enumerate() {
            let first = i * chunk;
            fill(first..first + out.len() / row_bytes.max(1), out);
        }
    }
}
