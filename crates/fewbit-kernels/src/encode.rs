//! Quantizing weights: the encoders of `fewbit-quant`, compiled for each instruction set and run on all threads.
//!
//! Every row is encoded on its own, so the result does not depend on the number of threads or the instruction set.

use crate::elementwise::multiversion;
use crate::shared::SharedMut;
use crate::{Cpu, Isa};
use fewbit_quant::{QuantError, TensorType, decode, encode};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Number of weights that a thread converts at a time: few enough that their `f32` form stays in its cache.
const CHUNK_ELEMS: usize = 1 << 14;

multiversion! {
    pub(crate) fn encode_rows(
        ty: TensorType,
        x: &[f32],
        n_cols: usize,
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        encode::encode_rows(ty, x, n_cols, importance, out)
    }
}

multiversion! {
    /// Converts `f16` to `f32` in integer steps, which become vector instructions on every target.
    pub(crate) fn widen(bytes: &[u8], out: &mut [f32]) {
        for (y, &b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            let h = u32::from(u16::from_le_bytes(b));
            // The exponent bias differs by 112; the multiplication also normalizes subnormal numbers.
            let magnitude = f32::from_bits((h & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
            let special = if h & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
            *y = f32::from_bits(magnitude.to_bits() | special | (h & 0x8000) << 16);
        }
    }
}

/// Converts rows of `n_cols` weights stored as `from` into rows stored as `to`, on the calling thread. The result has
/// the same bytes as that of [`Cpu::convert`], which uses all threads.
///
/// # Errors
/// As [`fewbit_quant::decode()`] and [`fewbit_quant::encode::encode`]; indices count from the first weight.
pub fn convert_rows(
    from: TensorType,
    bytes: &[u8],
    to: TensorType,
    n_cols: usize,
    out: &mut [u8],
) -> Result<(), QuantError> {
    let isa = Isa::best();
    let row_bytes = from.row_bytes(n_cols).unwrap_or(0);
    let n_rows = bytes.len().checked_div(row_bytes).unwrap_or(0);
    let mut x = vec![0.0; n_rows * n_cols];
    load(isa, from, bytes, &mut x)?;
    encode_rows(isa, to, &x, n_cols, None, out)
}

/// Decodes stored weights.
fn load(isa: Isa, ty: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    if ty == TensorType::F16 && bytes.len() == 2 * out.len() {
        widen(isa, bytes, out);
        return Ok(());
    }
    decode(ty, bytes, out)
}

impl Cpu {
    /// Encodes rows of `n_cols` weights as `ty`. `x`: `[n_rows, n_cols]`; `out` has the size of the encoded rows.
    ///
    /// `importance` weights the error in each column: one value per column, or one set of such values for each of
    /// several equally large stacks of rows (the experts of a routed layer).
    ///
    /// # Errors
    /// As [`fewbit_quant::encode::encode`]; indices count from the first weight.
    pub fn encode(
        &self,
        ty: TensorType,
        x: &[f32],
        n_cols: usize,
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        let load = |rows: Range<usize>, y: &mut [f32]| {
            y.copy_from_slice(&x[rows.start * n_cols..rows.end * n_cols]);
            Ok(())
        };
        self.encode_with(ty, x.len(), n_cols, importance, out, load)
    }

    /// Converts rows stored as `from` into rows stored as `to`; only a few rows at a time are held as `f32`. Otherwise
    /// as [`encode`](Self::encode).
    ///
    /// # Errors
    /// As [`fewbit_quant::decode()`] and [`encode`](Self::encode).
    pub fn convert(
        &self,
        from: TensorType,
        bytes: &[u8],
        to: TensorType,
        n_cols: usize,
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        let row_bytes = from.row_bytes(n_cols).unwrap_or(0);
        let n_rows = bytes.len().checked_div(row_bytes).unwrap_or(0);
        if n_rows * row_bytes != bytes.len() {
            return Err(QuantError::Size {
                ty: from,
                n_elems: n_rows * n_cols,
                expected: n_rows * row_bytes,
                found: bytes.len(),
            });
        }
        let load = |rows: Range<usize>, y: &mut [f32]| {
            load(self.isa(), from, &bytes[rows.start * row_bytes..rows.end * row_bytes], y)
        };
        self.encode_with(to, n_rows * n_cols, n_cols, importance, out, load)
    }

    /// Encodes the rows that `load` writes for each range of rows.
    fn encode_with(
        &self,
        ty: TensorType,
        n_elems: usize,
        n_cols: usize,
        importance: Option<&[f32]>,
        out: &mut [u8],
        load: impl Fn(Range<usize>, &mut [f32]) -> Result<(), QuantError> + Sync,
    ) -> Result<(), QuantError> {
        let row_bytes = ty.row_bytes(n_cols).unwrap_or(0);
        let n_rows = n_elems.checked_div(n_cols).unwrap_or(0);
        let n_stacks = importance.map_or(1, |w| w.len().checked_div(n_cols).unwrap_or(0));
        let fits = n_rows * n_cols == n_elems && n_rows * row_bytes == out.len() && (row_bytes > 0 || n_elems == 0);
        let stacked = n_stacks > 0 && n_rows.is_multiple_of(n_stacks);
        if !fits || !stacked || importance.is_some_and(|w| w.len() != n_stacks * n_cols) {
            return Err(QuantError::Size { ty, n_elems, expected: n_rows * row_bytes, found: out.len() });
        }
        let rows_per_stack = (n_rows / n_stacks).max(1);
        let failed: Mutex<Option<(usize, QuantError)>> = Mutex::new(None);
        let out = SharedMut::new(out);
        let work = |rows: Range<usize>| {
            let mut x = vec![0.0; rows.len() * n_cols];
            load(rows.clone(), &mut x)?;
            // SAFETY: each range of rows is handed out once.
            let out = unsafe { out.range(rows.start * row_bytes..rows.end * row_bytes) };
            let mut start = rows.start;
            while start < rows.end {
                let stack = start / rows_per_stack;
                let end = rows.end.min((stack + 1) * rows_per_stack);
                let (a, b) = (start - rows.start, end - rows.start);
                let importance = importance.map(|w| &w[stack * n_cols..(stack + 1) * n_cols]);
                let out = &mut out[a * row_bytes..b * row_bytes];
                encode_rows(self.isa(), ty, &x[a * n_cols..b * n_cols], n_cols, importance, out).map_err(|error| {
                    match error {
                        QuantError::Importance { index } => QuantError::Importance { index: stack * n_cols + index },
                        other => other.after(start * n_cols),
                    }
                })?;
                start = end;
            }
            Ok(())
        };
        self.pool().for_chunks(n_rows, (CHUNK_ELEMS / n_cols.max(1)).max(1), |rows, _| {
            let first = rows.start;
            if let Err(error) = work(rows) {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.as_ref().is_none_or(|(row, _)| first < *row) {
                    *failed = Some((first, error));
                }
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}
