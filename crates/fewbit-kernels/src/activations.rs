//! A batch of activation rows in the forms that matrix products read.

use fewbit_quant::activation::{ActivationKind, MIN_AMAX};
use fewbit_quant::{Q8Row, TensorType};

/// The forms that a product needs; several matrices of different types may share one input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActivationKinds {
    pub(crate) q8_32: bool,
    pub(crate) q8_256: bool,
    pub(crate) two_planes: bool,
}

impl ActivationKinds {
    /// The forms that products with weights of these types read.
    pub fn of(types: impl IntoIterator<Item = TensorType>) -> Self {
        let mut kinds = Self::default();
        for ty in types {
            match ActivationKind::of(ty) {
                Some(ActivationKind::Q8Block32) => kinds.q8_32 = true,
                Some(ActivationKind::Q8Block256) => kinds.q8_256 = true,
                _ => {}
            }
        }
        kinds
    }

    /// Quantizes in two planes: the values, and the rounding error of the first plane. Products are the sum of both,
    /// with a precision of about 15 bits instead of 8. Inputs that are not quantized stay as they are.
    pub fn two_planes(self) -> Self {
        Self { two_planes: true, ..self }
    }

    /// Number of planes of the quantized forms.
    pub(crate) fn n_planes(self) -> usize {
        if self.two_planes { 2 } else { 1 }
    }
}

/// The planes of an input that a product uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planes {
    /// The first plane: the input rounded to 8 bits.
    First,
    /// All planes that the input has.
    All,
}

/// Largest number of rows of a batch whose quantized forms are interleaved.
pub(crate) const GROUP: usize = 8;

/// The position of a row of a batch in the quantized forms.
///
/// Rows are cut into groups of 8, and the remainder into at most one group each of 4, 2 and 1. A group is one stretch
/// of memory in which the items (quads of codes, scales, sums) of its rows are interleaved, so that a product kernel
/// reads a group through one pointer, front to back:
///
/// ```text
/// codes    [n_cols / 4][width][4]       the quads of a group
/// others   [n_cols / elems][width]      one value per `elems` columns
/// ```
/// A single row is a plain array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// First row of the group.
    pub(crate) first: usize,
    /// Number of rows in the group: 8, 4, 2 or 1.
    pub(crate) width: usize,
    /// The row's index within the group.
    pub(crate) lane: usize,
}

impl Place {
    /// The place of `row` in a batch of `n_rows`.
    pub(crate) fn of(row: usize, n_rows: usize) -> Self {
        let mut first = row / GROUP * GROUP;
        if first + GROUP <= n_rows {
            return Self { first, width: GROUP, lane: row - first };
        }
        let rest = n_rows - first;
        let mut width = GROUP / 2;
        loop {
            if rest & width != 0 {
                if row < first + width {
                    return Self { first, width, lane: row - first };
                }
                first += width;
            }
            width /= 2;
        }
    }

    /// Index of the row's first item, if each row has `per_row` items; the others follow at a stride of `width`.
    pub(crate) fn start(self, per_row: usize) -> usize {
        self.first * per_row + self.lane
    }
}

/// `n_rows` rows of `n_cols` activations: the plain values and the quantized forms made from them.
///
/// The quantized forms have one or two planes of `n_rows` rows each, stored as one batch of rows; see
/// [`ActivationKinds::two_planes`] and `Place` in this module. Reuse one value for all operations of the same width: it
/// allocates only when it grows.
#[derive(Debug, Default)]
pub struct Activations {
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    pub(crate) kinds: ActivationKinds,
    /// `[n_rows, n_cols]`
    pub(crate) values: Vec<f32>,
    pub(crate) q32: Form32,
    pub(crate) q256: Form256,
}

/// Rows in blocks of 32.
#[derive(Debug, Default)]
pub(crate) struct Form32 {
    pub(crate) codes: Vec<[i8; 4]>,
    /// One per block.
    pub(crate) scales: Vec<f32>,
    /// Per block: minus the sum of the codes, times 8, 16 and 128, the offsets that weight codes can have.
    pub(crate) offsets: [Vec<i32>; 3],
    /// Per block: scale times sum of the codes, for weights with a minimum.
    pub(crate) scaled_sums: Vec<f32>,
}

/// The factors in [`Form32::offsets`], as shifts.
pub(crate) const OFFSET_SHIFTS_32: [u32; 3] = [3, 4, 7];

/// Rows in blocks of 256.
#[derive(Debug, Default)]
pub(crate) struct Form256 {
    pub(crate) codes: Vec<[i8; 4]>,
    /// One per block.
    pub(crate) scales: Vec<f32>,
    /// Per 16 columns: minus the sum of the codes, times 4, 32 and 128.
    pub(crate) offsets: [Vec<i32>; 3],
    /// Per 32 columns: the sums of the codes of both halves.
    pub(crate) pairs_16: Vec<[i16; 2]>,
    /// Per 64 columns: the sums of the codes of both halves.
    pub(crate) pairs_32: Vec<[i16; 2]>,
}

/// The factors in [`Form256::offsets`], as shifts.
pub(crate) const OFFSET_SHIFTS_256: [u32; 3] = [2, 5, 7];

/// The quantized form of one row, as the scalar definition reads it.
#[derive(Debug, Default)]
pub(crate) struct QuantizedRow {
    pub(crate) codes: Vec<i8>,
    pub(crate) scales: Vec<f32>,
    pub(crate) sums: Vec<i16>,
}

impl QuantizedRow {
    pub(crate) fn as_q8(&self) -> Q8Row<'_> {
        Q8Row { codes: &self.codes, scales: &self.scales, sums: &self.sums }
    }

    /// Makes room for a row.
    pub(crate) fn resize(&mut self, kind: ActivationKind, n_cols: usize) {
        self.codes.resize(n_cols, 0);
        self.scales.resize(n_cols / kind.block_elems(), 0.0);
        self.sums.resize(n_cols / kind.sum_elems(), 0);
    }
}

impl Activations {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of rows of the batch.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// The forms that the batch holds.
    pub fn kinds(&self) -> ActivationKinds {
        self.kinds
    }

    /// The plain values: `[n_rows, n_cols]`.
    pub fn values(&self) -> &[f32] {
        &self.values[..self.n_rows * self.n_cols]
    }

    /// Makes room for `n_rows` rows in the forms of `kinds`.
    pub(crate) fn resize(&mut self, n_rows: usize, n_cols: usize, kinds: ActivationKinds) {
        (self.n_rows, self.n_cols, self.kinds) = (n_rows, n_cols, kinds);
        grow(&mut self.values, n_rows * n_cols);
        let n = kinds.n_planes() * n_rows * n_cols;
        if kinds.q8_32 {
            assert!(n_cols.is_multiple_of(32), "{n_cols} columns in blocks of 32");
            let q = &mut self.q32;
            grow(&mut q.codes, n / 4);
            grow(&mut q.scales, n / 32);
            q.offsets.iter_mut().for_each(|offsets| grow(offsets, n / 32));
            grow(&mut q.scaled_sums, n / 32);
        }
        if kinds.q8_256 {
            assert!(n_cols.is_multiple_of(256), "{n_cols} columns in blocks of 256");
            let q = &mut self.q256;
            grow(&mut q.codes, n / 4);
            grow(&mut q.scales, n / 256);
            q.offsets.iter_mut().for_each(|offsets| grow(offsets, n / 16));
            grow(&mut q.pairs_16, n / 32);
            grow(&mut q.pairs_32, n / 64);
        }
    }

    /// Number of rows of the quantized forms, over all planes.
    pub(crate) fn quantized_rows(&self) -> usize {
        self.n_rows * self.kinds.n_planes()
    }

    /// Number of rows that a product with weights of this kind covers: those of all planes of a quantized form.
    pub(crate) fn product_rows(&self, kind: ActivationKind) -> usize {
        if kind == ActivationKind::F32 { self.n_rows } else { self.quantized_rows() }
    }

    /// Number of rows that a product has to cover to include all rows of the given planes: up to the end of a group.
    pub(crate) fn rows_of(&self, kind: ActivationKind, planes: Planes) -> usize {
        let n_rows = self.product_rows(kind);
        match planes {
            Planes::First if self.n_rows > 0 && n_rows > self.n_rows => {
                let last = Place::of(self.n_rows - 1, n_rows);
                last.first + last.width
            }
            _ => n_rows,
        }
    }

    /// Row `i` of the quantized form.
    pub(crate) fn q8_row(&self, kind: ActivationKind, i: usize) -> QuantizedRow {
        let place = Place::of(i, self.quantized_rows());
        let (codes, scales, offsets, shift) = match kind {
            ActivationKind::Q8Block256 => {
                (&self.q256.codes, &self.q256.scales, &self.q256.offsets[0], OFFSET_SHIFTS_256[0])
            }
            _ => (&self.q32.codes, &self.q32.scales, &self.q32.offsets[0], OFFSET_SHIFTS_32[0]),
        };
        QuantizedRow {
            codes: gather(codes, place, self.n_cols / 4).flatten().copied().collect(),
            scales: gather(scales, place, self.n_cols / kind.block_elems()).copied().collect(),
            sums: gather(offsets, place, self.n_cols / kind.sum_elems()).map(|&v| (-(v >> shift)) as i16).collect(),
        }
    }
}

/// The items of one row.
fn gather<T>(items: &[T], place: Place, per_row: usize) -> impl Iterator<Item = &T> {
    items[place.start(per_row)..].iter().step_by(place.width).take(per_row)
}

pub(crate) fn grow<T: Clone + Default>(v: &mut Vec<T>, n: usize) {
    if v.len() < n {
        v.resize(n, T::default());
    }
}

/// Quantizes one block as `fewbit_quant::activation` defines it, in a form that vectorizes: the largest
/// magnitude through the bits of 16 strided lanes, rounding through the magic addend. Returns the scale.
#[inline(always)]
pub(crate) fn quantize_block<const N: usize>(x: &[f32; N], codes: &mut [i8; N]) -> f32 {
    let mut lanes = [0u32; 16];
    for x in x.as_chunks::<16>().0 {
        for (lane, v) in lanes.iter_mut().zip(x) {
            *lane = (*lane).max(v.to_bits() & 0x7FFF_FFFF);
        }
    }
    let amax = f32::from_bits(tree(lanes, u32::max));
    if !amax.is_finite() || amax < MIN_AMAX {
        codes.fill(0);
        return if amax.is_finite() { 0.0 } else { f32::NAN };
    }
    let inv = 127.0 / amax;
    for (code, &v) in codes.iter_mut().zip(x) {
        // |v * inv| <= 127 up to one rounding, so there is nothing to clamp.
        *code = (v * inv + crate::math::ROUND).to_bits().wrapping_sub(crate::math::ROUND.to_bits()) as i8;
    }
    amax / 127.0
}

/// Sum of the codes of `N` elements.
#[inline(always)]
pub(crate) fn sum_codes<const N: usize>(codes: &[i8; N]) -> i16 {
    let mut lanes = [0i16; 16];
    for codes in codes.as_chunks::<16>().0 {
        for (lane, &c) in lanes.iter_mut().zip(codes) {
            *lane += i16::from(c);
        }
    }
    tree(lanes, |a, b| a + b)
}

/// Combines lanes in halves, which a compiler does in vector registers. For operations whose order does not
/// matter.
#[inline(always)]
fn tree<T: Copy>(mut lanes: [T; 16], f: impl Fn(T, T) -> T) -> T {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}
