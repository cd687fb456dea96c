//! The rows that go through a recurrent layer: those of the batch, and before those of a sequence whose state is not known
//! the ones that are replayed from its log.

use super::state::{FixedLayer, elems, elems_mut};
use crate::segment::SequenceRows;
use crate::snapshots::LOG_ROWS;
use fewbit_kernels::{Convolution, ConvolutionRows, Cpu, DeltaRows, DeltaStep};
use std::ops::Range;

/// Where the rows of each sequence are among those of all, which include replayed ones.
pub(super) struct Order {
    /// Number of new rows.
    n_rows: usize,
    /// For each sequence its new rows, and the number of replayed ones before them.
    replayed: Vec<(Range<usize>, usize)>,
}

/// The rows of one sequence.
pub(super) struct Rows {
    /// Its rows, with the replayed ones.
    pub(super) all: Range<usize>,
    pub(super) n_replayed: usize,
    pub(super) n_new: usize,
    /// The first of its new rows, among new rows.
    pub(super) first: usize,
}

impl Order {
    pub(super) fn of(n_rows: usize, sequences: &[SequenceRows<'_>]) -> Self {
        let replayed = sequences.iter().map(|sequence| (sequence.rows(), sequence.n_replayed()));
        Self { n_rows, replayed: replayed.collect() }
    }

    pub(super) fn total(&self) -> usize {
        self.n_rows + self.replayed.iter().map(|(_, n)| n).sum::<usize>()
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = Rows> {
        let mut before = 0;
        self.replayed.iter().map(move |(rows, n_replayed)| {
            let start = rows.start + before;
            before += n_replayed;
            let n_new = rows.len();
            Rows { all: start..start + n_replayed + n_new, n_replayed: *n_replayed, n_new, first: rows.start }
        })
    }

    /// Puts the rows of every sequence, each of `width` elements, after those that are replayed, which come from the log;
    /// `write` writes a new row. Then it writes the log.
    pub(super) fn gather(
        &self,
        places: &FixedLayer,
        width: usize,
        sequences: &mut [SequenceRows<'_>],
        rows: &mut Vec<f32>,
        mut write: impl FnMut(usize, &mut [f32]),
    ) {
        rows.resize(self.total() * width, 0.0);
        for (sequence, of) in sequences.iter_mut().zip(self.rows()) {
            let position = sequence.position();
            let place = |position: usize| {
                let first = places.log.start + position % LOG_ROWS * width;
                first..first + width
            };
            if of.n_replayed > 0 {
                let fixed = sequence.fixed_states().expect("a model with recurrent layers");
                let log = elems::<f32>(fixed.log.expect("rows are replayed only from a log"));
                for i in 0..of.n_replayed {
                    let to = (of.all.start + i) * width;
                    rows[to..to + width].copy_from_slice(&log[place(position - of.n_replayed + i)]);
                }
            }
            let first_new = of.all.start + of.n_replayed;
            for i in 0..of.n_new {
                write(of.first + i, &mut rows[(first_new + i) * width..(first_new + i + 1) * width]);
            }
            if let Some(log) = sequence.log() {
                let log = elems_mut::<f32>(log);
                for i in 0..of.n_new {
                    let from = (first_new + i) * width;
                    log[place(position + i)].copy_from_slice(&rows[from..from + width]);
                }
            }
        }
    }

    /// Sends all rows, `inputs`, through the convolution into `convolved` and then through the states into `out`, which has
    /// the new ones; and writes the states. `step` makes the step of what went through the convolution.
    pub(super) fn recur<'a>(
        &self,
        cpu: &Cpu,
        places: &FixedLayer,
        sequences: &mut [SequenceRows<'_>],
        convolution: &Convolution<'_>,
        [inputs, convolved, out]: [&'a mut Vec<f32>; 3],
        step: impl FnOnce(&'a [f32]) -> DeltaStep<'a>,
    ) {
        let mut fixed: Vec<_> =
            sequences.iter_mut().map(|s| s.fixed_states().expect("a model with recurrent layers")).collect();
        // The states of the convolution come before those of the heads.
        let middle = places.heads.start;
        let part = |range: &Range<usize>, first: usize| range.start - first..range.end - first;
        let (mut windows, mut ruled) = (Vec::with_capacity(fixed.len()), Vec::with_capacity(fixed.len()));
        for (fixed, rows) in fixed.iter_mut().zip(self.rows()).filter(|(_, rows)| rows.n_new > 0) {
            let base = fixed.base.map(elems::<f32>);
            let mut to = (Vec::with_capacity(fixed.to.len()), Vec::with_capacity(fixed.to.len()));
            for (n, page) in &mut fixed.to {
                let (before, heads) = elems_mut::<f32>(page).split_at_mut(middle);
                to.0.push((*n, &mut before[places.convolution.clone()]));
                to.1.push((*n, &mut heads[part(&places.heads, middle)]));
            }
            let from = base.map(|base| &base[places.convolution.clone()]);
            windows.push(ConvolutionRows { rows: rows.all.clone(), from, to: to.0 });
            let from = base.map(|base| &base[places.heads.clone()]);
            let (n_replayed, first_out) = (rows.n_replayed, rows.first);
            ruled.push(DeltaRows { rows: rows.all, n_replayed, first_out, from, to: to.1 });
        }
        convolved.resize(inputs.len(), 0.0);
        cpu.convolve(convolution, &mut windows, inputs, convolved);
        cpu.gated_delta(&step(convolved), &mut ruled, out);
    }
}

/// The channels, which begin each of these rows of `width`: what goes through the convolution.
pub(super) fn channels_of(rows: &[f32], width: usize, n_channels: usize, channels: &mut Vec<f32>) {
    channels.clear();
    rows.chunks_exact(width).for_each(|row| channels.extend_from_slice(&row[..n_channels]));
}
