//! Building a batch: rows of floats are written, and quantized while they are still in the cache.

use crate::activations::{
    ActivationKinds, Activations, Form32, Form256, GROUP, OFFSET_SHIFTS_32, OFFSET_SHIFTS_256, Place, QuantizedRow,
};
use crate::cpu::Cpu;
use crate::shared::SharedMut;
use crate::{Isa, elementwise};
use fewbit_quant::ActivationKind;
use std::cell::RefCell;
use std::ops::Range;

thread_local! {
    /// The quantized form of the current row, and the rounding error of its first plane.
    static ROW: RefCell<(QuantizedRow, Vec<f32>)> = RefCell::default();
}

/// How the rows of a batch can be computed.
#[derive(Clone, Copy)]
enum Making {
    /// Only as whole rows.
    Whole,
    /// Any range of columns independently.
    InParts,
}

/// With fewer rows than this, quantizing them takes less time than waking another thread.
const FEW_ROWS: usize = 4;

impl Cpu {
    /// Makes `x` (`[n_rows, n_cols]`) the batch, in the forms given by `kinds`.
    pub fn activate(&self, x: &[f32], n_cols: usize, kinds: ActivationKinds, out: &mut Activations) {
        let n_rows = x.len() / n_cols;
        assert_eq!(x.len(), n_rows * n_cols, "whole rows");
        let make = |row, cols: Range<usize>, y: &mut [f32]| {
            y.copy_from_slice(&x[row * n_cols..][cols]);
        };
        self.fill(n_rows, n_cols, kinds, out, Making::InParts, make);
    }

    /// Makes some columns of `x` (`[n_rows, stride]`) the batch, in the forms given by `kinds`.
    pub fn activate_columns(
        &self,
        x: &[f32],
        stride: usize,
        columns: Range<usize>,
        kinds: ActivationKinds,
        out: &mut Activations,
    ) {
        let n_rows = x.len() / stride;
        assert!(x.len() == n_rows * stride && columns.end <= stride, "whole rows");
        let make = |row: usize, cols: Range<usize>, y: &mut [f32]| {
            y.copy_from_slice(&x[row * stride + columns.start..][cols]);
        };
        self.fill(n_rows, columns.len(), kinds, out, Making::InParts, make);
    }

    /// Makes the RMS norm of `x` (`[n_rows, weight.len()]`) the batch: `x / sqrt(mean(x^2) + eps) * weight`.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, kinds: ActivationKinds, out: &mut Activations) {
        let norm = |row: &[f32], y: &mut [f32]| elementwise::rms_norm(self.isa(), row, weight, eps, y);
        self.norm(x, weight.len(), kinds, out, norm);
    }

    /// Makes the layer norm of `x` (`[n_rows, weight.len()]`) the batch: the RMS norm of `x - mean(x)`.
    pub fn layer_norm(&self, x: &[f32], weight: &[f32], eps: f32, kinds: ActivationKinds, out: &mut Activations) {
        let norm = |row: &[f32], y: &mut [f32]| elementwise::layer_norm(self.isa(), row, weight, eps, y);
        self.norm(x, weight.len(), kinds, out, norm);
    }

    /// Makes what `norm` writes for each row of `x` (`[n_rows, n_cols]`) the batch.
    fn norm(
        &self,
        x: &[f32],
        n_cols: usize,
        kinds: ActivationKinds,
        out: &mut Activations,
        norm: impl Fn(&[f32], &mut [f32]) + Sync,
    ) {
        let n_rows = x.len() / n_cols;
        assert_eq!(x.len(), n_rows * n_cols, "whole rows");
        let make = |row: usize, _, y: &mut [f32]| norm(&x[row * n_cols..(row + 1) * n_cols], y);
        self.fill(n_rows, n_cols, kinds, out, Making::Whole, make);
    }

    /// Lets `make` write each row of the batch, or some of its columns, and quantizes it while it is still in the
    /// cache.
    fn fill(
        &self,
        n_rows: usize,
        n_cols: usize,
        kinds: ActivationKinds,
        out: &mut Activations,
        making: Making,
        make: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    ) {
        out.resize(n_rows, n_cols, kinds);
        let values = SharedMut::new(&mut out.values);
        let forms = [
            kinds.q8_32.then(|| SharedForm::of_32(&mut out.q32)),
            kinds.q8_256.then(|| SharedForm::of_256(&mut out.q256)),
        ];
        let n_quantized = n_rows * kinds.n_planes();
        // Blocks depend only on their own columns: a part of a row is quantized just as it is within the whole row.
        let part = |row: usize, cols: Range<usize>, is_made: bool| {
            ROW.with_borrow_mut(|(quantized, lost)| {
                // SAFETY: each part is handed out once, with its places in all planes, and different parts have no
                // element in common.
                let x = unsafe { values.range(row * n_cols + cols.start..row * n_cols + cols.end) };
                if !is_made {
                    make(row, cols.clone(), x);
                }
                for form in forms.iter().flatten() {
                    let kind = form.kind();
                    quantize(self.isa(), kind, x, quantized);
                    // SAFETY: as above.
                    unsafe { form.put(quantized, Place::of(row, n_quantized), n_cols, cols.start) };
                    if kinds.two_planes {
                        lost.resize(x.len(), 0.0);
                        let QuantizedRow { codes, scales, .. } = &*quantized;
                        elementwise::quantization_loss(self.isa(), x, codes, scales, kind.block_elems(), lost);
                        quantize(self.isa(), kind, lost, quantized);
                        // SAFETY: as above.
                        unsafe { form.put(quantized, Place::of(n_rows + row, n_quantized), n_cols, cols.start) };
                    }
                }
            });
        };
        let n_groups = n_rows.div_ceil(GROUP);
        if n_rows < FEW_ROWS || n_groups >= self.pool().n_threads() {
            self.pool().for_chunks(n_rows, GROUP, |rows, _| rows.for_each(|row| part(row, 0..n_cols, false)));
            return;
        }
        // The rows of a group are interleaved, so threads that share a group each take a range of columns. If they took
        // rows, they would write to the same cache lines.
        if let Making::Whole = making {
            // SAFETY: one row after another, on this thread alone.
            (0..n_rows).for_each(|row| make(row, 0..n_cols, unsafe { values.range(row * n_cols..(row + 1) * n_cols) }));
        }
        let unit = if kinds.q8_256 { 256 } else { 32 };
        let n_units = n_cols.div_ceil(unit);
        self.pool().for_chunks(n_units, n_units.div_ceil(self.pool().n_threads()), |units, _| {
            let cols = units.start * unit..n_cols.min(units.end * unit);
            (0..n_rows).for_each(|row| part(row, cols.clone(), matches!(making, Making::Whole)));
        });
    }

    /// Makes a new batch of the given rows of `x`, in this order, in the forms given by `kinds`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn gather(&self, x: &Activations, rows: &[usize], kinds: ActivationKinds, out: &mut Activations) {
        // A row's quantized forms depend only on the row, so quantizing it again gives the same result.
        let make = |row: usize, cols: Range<usize>, y: &mut [f32]| {
            y.copy_from_slice(&x.values()[rows[row] * x.n_cols..][cols]);
        };
        self.fill(rows.len(), x.n_cols, kinds, out, Making::InParts, make);
    }

    /// As [`gather`](Self::gather), with every element of a row multiplied by the row's factor.
    ///
    /// # Panics
    /// If there is no such row, or not one factor for each.
    pub fn gather_scaled(
        &self,
        x: &Activations,
        rows: &[usize],
        factors: &[f32],
        kinds: ActivationKinds,
        out: &mut Activations,
    ) {
        assert_eq!(rows.len(), factors.len(), "a factor for each row");
        let make = |row: usize, cols: Range<usize>, y: &mut [f32]| {
            let x = &x.values()[rows[row] * x.n_cols..][cols];
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * factors[row]);
        };
        self.fill(rows.len(), x.n_cols, kinds, out, Making::InParts, make);
    }
}

/// A quantized form whose rows are written by several threads.
enum SharedForm<'a> {
    Of32 {
        codes: SharedMut<'a, [i8; 4]>,
        scales: SharedMut<'a, f32>,
        offsets: [SharedMut<'a, i32>; 3],
        scaled_sums: SharedMut<'a, f32>,
    },
    Of256 {
        codes: SharedMut<'a, [i8; 4]>,
        scales: SharedMut<'a, f32>,
        offsets: [SharedMut<'a, i32>; 3],
        pairs_16: SharedMut<'a, [i16; 2]>,
        pairs_32: SharedMut<'a, [i16; 2]>,
    },
}

impl<'a> SharedForm<'a> {
    fn of_32(form: &'a mut Form32) -> Self {
        Self::Of32 {
            codes: SharedMut::new(&mut form.codes),
            scales: SharedMut::new(&mut form.scales),
            offsets: form.offsets.each_mut().map(|offsets| SharedMut::new(offsets)),
            scaled_sums: SharedMut::new(&mut form.scaled_sums),
        }
    }

    fn of_256(form: &'a mut Form256) -> Self {
        Self::Of256 {
            codes: SharedMut::new(&mut form.codes),
            scales: SharedMut::new(&mut form.scales),
            offsets: form.offsets.each_mut().map(|offsets| SharedMut::new(offsets)),
            pairs_16: SharedMut::new(&mut form.pairs_16),
            pairs_32: SharedMut::new(&mut form.pairs_32),
        }
    }

    fn kind(&self) -> ActivationKind {
        match self {
            Self::Of32 { .. } => ActivationKind::Q8Block32,
            Self::Of256 { .. } => ActivationKind::Q8Block256,
        }
    }

    /// Writes a part of a row of `n_cols` columns, starting at column `first_col`, to its place.
    ///
    /// # Safety
    /// No other thread uses this place.
    unsafe fn put(&self, row: &QuantizedRow, place: Place, n_cols: usize, first_col: usize) {
        let QuantizedRow { codes, scales, sums } = row;
        let quads = codes.as_chunks::<4>().0;
        let by = place.width;
        // Where the items start, if each of them stands for `elems` columns.
        let at = |elems: usize| place.start(n_cols / elems) + by * (first_col / elems);
        // SAFETY: the caller's.
        unsafe {
            match self {
                Self::Of32 { codes, scales: to_scales, offsets, scaled_sums } => {
                    codes.scatter(at(4), by, quads.iter().copied());
                    to_scales.scatter(at(32), by, scales.iter().copied());
                    for (to, shift) in offsets.iter().zip(OFFSET_SHIFTS_32) {
                        to.scatter(at(32), by, sums.iter().map(|&sum| -(i32::from(sum) << shift)));
                    }
                    scaled_sums.scatter(at(32), by, scales.iter().zip(sums).map(|(&d, &sum)| d * f32::from(sum)));
                }
                Self::Of256 { codes, scales: to_scales, offsets, pairs_16, pairs_32 } => {
                    codes.scatter(at(4), by, quads.iter().copied());
                    to_scales.scatter(at(256), by, scales.iter().copied());
                    for (to, shift) in offsets.iter().zip(OFFSET_SHIFTS_256) {
                        to.scatter(at(16), by, sums.iter().map(|&sum| -(i32::from(sum) << shift)));
                    }
                    let pairs = sums.as_chunks::<2>().0;
                    pairs_16.scatter(at(32), by, pairs.iter().copied());
                    let fours = sums.as_chunks::<4>().0;
                    pairs_32.scatter(at(64), by, fours.iter().map(|[a, b, c, d]| [a + b, c + d]));
                }
            }
        }
    }
}

/// Quantizes a row in blocks of `kind`.
fn quantize(isa: Isa, kind: ActivationKind, x: &[f32], out: &mut QuantizedRow) {
    // The code that the compiler generates for AVX-512 runs at a third of the speed.
    let isa = isa.min(Isa::Avx2);
    out.resize(kind, x.len());
    let QuantizedRow { codes, scales, sums } = out;
    match kind {
        ActivationKind::Q8Block256 => elementwise::quantize_row_256(isa, x, codes, scales, sums),
        _ => elementwise::quantize_row_32(isa, x, codes, scales, sums),
    }
}
