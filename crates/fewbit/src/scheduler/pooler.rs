//! Pools the hidden states of a text's tokens into one vector.
//!
//! ```text
//! mean        sum over the tokens, in their order, in f64, divided by their number
//! last, cls   the hidden state of the last token, of the first
//! normalized  divided by the root of the sum of squares, in the order of the elements, in f64;
//!             all zeros stay zeros
//! ```
//! The result is rounded to f32 once. Hidden states arrive in parts, because the prompt is cut into steps. After a
//! request has lost its cache and is recomputed, they arrive again from the first one on; each position counts only the
//! first time. So the bits of the vector depend only on the tokens.

use fewbit_model::Pooling;

/// Collects hidden states and returns the vector.
pub(crate) struct Pooler {
    pooling: Pooling,
    is_normalized: bool,
    /// `[dim]`, once the first hidden state has arrived: the sum, or the state that is selected.
    values: Vec<f64>,
    dim: usize,
    /// Number of positions that have arrived.
    n_done: usize,
}

impl Pooler {
    pub(crate) fn new(pooling: Pooling, is_normalized: bool, dim: usize) -> Self {
        Self { pooling, is_normalized, values: vec![0.0; dim], dim, n_done: 0 }
    }

    /// Takes the hidden states of the positions before `end`: `[n][dim]`.
    pub(super) fn push(&mut self, end: usize, rows: &[f32]) {
        let rows = rows.chunks_exact(self.dim);
        for (position, row) in (end - rows.len()..end).zip(rows).filter(|&(position, _)| position >= self.n_done) {
            let values = self.values.iter_mut().zip(row);
            match self.pooling {
                Pooling::Last => values.for_each(|(v, &x)| *v = x.into()),
                Pooling::Cls if position > 0 => {}
                // Also the first of all: nothing is before it.
                _ => values.for_each(|(v, &x)| *v += f64::from(x)),
            }
        }
        self.n_done = self.n_done.max(end);
    }

    /// The vector of all positions so far.
    pub(super) fn finish(&mut self) -> Vec<f32> {
        let mut values = std::mem::take(&mut self.values);
        if self.pooling == Pooling::Mean {
            let n = self.n_done.max(1) as f64;
            values.iter_mut().for_each(|v| *v /= n);
        }
        if self.is_normalized {
            let norm = values.iter().fold(0.0, |sum, v| sum + v * v).sqrt();
            if norm > 0.0 {
                values.iter_mut().for_each(|v| *v /= norm);
            }
        }
        values.into_iter().map(|v| v as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [f32; 6] = [1.0, 2.0, 3.0, -4.0, 5.0, 8.0];

    fn pooled(pooling: Pooling, is_normalized: bool) -> Vec<f32> {
        let mut pooler = Pooler::new(pooling, is_normalized, 2);
        pooler.push(3, &ROWS);
        pooler.finish()
    }

    #[test]
    fn mean_last_and_cls_pooling_give_the_expected_vectors() {
        assert_eq!(pooled(Pooling::Mean, false), [3.0, 2.0]);
        assert_eq!(pooled(Pooling::Last, false), [5.0, 8.0]);
        assert_eq!(pooled(Pooling::Cls, false), [1.0, 2.0]);
        assert_eq!(pooled(Pooling::Mean, true), [(3.0 / 13f64.sqrt()) as f32, (2.0 / 13f64.sqrt()) as f32]);
    }

    #[test]
    fn recomputed_positions_count_once() {
        for pooling in [Pooling::Mean, Pooling::Last, Pooling::Cls] {
            let mut pooler = Pooler::new(pooling, false, 2);
            pooler.push(1, &ROWS[..2]);
            pooler.push(2, &ROWS[2..4]);
            // The cache was lost: everything comes again from the beginning.
            pooler.push(1, &ROWS[..2]);
            pooler.push(3, &ROWS[2..]);
            assert_eq!(pooler.finish(), pooled(pooling, false), "{pooling:?}");
        }
    }

    #[test]
    fn zero_vectors_are_normalized_to_zeros() {
        let mut pooler = Pooler::new(Pooling::Mean, true, 2);
        pooler.push(1, &[0.0, 0.0]);
        assert_eq!(pooler.finish(), [0.0, 0.0]);
    }
}
