//! Converts fewbit's vectors to a candle tensor.

use candle_core::{Device, Tensor};

use crate::Error;

/// Converts rows of equal length to a tensor `[n_rows, n_cols]` on the CPU:
/// `fewbit_candle::rows_to_tensor(&embeddings.vectors)`.
///
/// Hidden states of `fewbit::expert::engine` (`Logits::take_hidden`) are one flat vector already; for these, use
/// `Tensor::from_vec(hidden, (n_tokens, dim), &Device::Cpu)`.
///
/// # Errors
/// [`Error::RowLength`] if rows differ in length, [`Error::OutOfMemory`].
///
/// ```
/// let rows = fewbit_candle::rows_to_tensor(&[vec![1.0, 2.0], vec![3.0, 4.0]])?;
/// assert_eq!(rows.to_vec2::<f32>()?, [[1.0, 2.0], [3.0, 4.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn rows_to_tensor<R: AsRef<[f32]>>(rows: &[R]) -> Result<Tensor, Error> {
    let n_cols = rows.first().map_or(0, |row| row.as_ref().len());
    let n_elems = rows.len().saturating_mul(n_cols);
    let mut values = Vec::new();
    values.try_reserve_exact(n_elems).map_err(|_| Error::OutOfMemory { what: "a tensor", n_elems })?;
    for (i, row) in rows.iter().enumerate() {
        let row = row.as_ref();
        if row.len() != n_cols {
            return Err(Error::RowLength { row: i, expected: n_cols, found: row.len() });
        }
        values.extend_from_slice(row);
    }
    Ok(Tensor::from_vec(values, (rows.len(), n_cols), &Device::Cpu)?)
}
