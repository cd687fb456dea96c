//! A batch of activation rows in the forms that matrix products read.

use fewbit_quant::activation::{ActivationKind, MIN_AMAX};
use fewbit_quant::{Q8Row, TensorType};

/// Which forms a product needs; several matrices of different types may share one input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActivationKinds {
    pub(crate) q8_32: bool,
    pub(crate) q8_256: bool,
    pub(crate) two_planes: bool,
}

impl ActivationKinds {
    /// What weights of these types read.
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

    /// Quantizes twice: the values, and what the first quantization lost. Products are the sum of both, with
    /// the precision of some 15 bits instead of 8. Plain activations stay as they are.
    pub fn two_planes(self) -> Self {
        Self { two_planes: true, ..self }
    }

    /// Planes of the quantized forms.
    pub(crate) fn n_planes(self) -> usize {
        if self.two_planes { 2 } else { 1 }
    }
}

/// `n_rows` rows of `n_cols` activations: the plain values and the quantized forms made from them.
///
/// The quantized forms have one or two planes of `n_rows` rows each; see [`ActivationKinds::two_planes`].
/// One value is meant to be reused for every operation of its width: it allocates only when it grows.
#[derive(Debug, Default)]
pub struct Activations {
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    pub(crate) kinds: ActivationKinds,
    /// `[n_planes * n_rows, n_cols]`; behind the first plane is room for what quantization lost.
    pub(crate) values: Vec<f32>,
    pub(crate) q32: Quantized,
    pub(crate) q256: Quantized,
}

/// One quantized form; `n_rows` here counts the rows of all planes.
#[derive(Debug, Default)]
pub(crate) struct Quantized {
    /// `[n_rows, n_cols]`
    pub(crate) codes: Vec<i8>,
    /// `[n_rows, n_cols / block_elems]`
    pub(crate) scales: Vec<f32>,
    /// `[n_rows, n_cols / sum_elems]`
    pub(crate) sums: Vec<i16>,
    /// The sums of blocks of 32 once more as the kernels broadcast them. Empty for blocks of 256.
    pub(crate) wide_sums: Vec<i32>,
    /// Scale times sum, blocks of 32 only.
    pub(crate) scaled_sums: Vec<f32>,
}

impl Activations {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rows of the batch.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// The plain values: `[n_rows, n_cols]`.
    pub fn values(&self) -> &[f32] {
        &self.values[..self.n_rows * self.n_cols]
    }

    /// Makes room for `n_rows` rows in the forms of `kinds`.
    pub(crate) fn resize(&mut self, n_rows: usize, n_cols: usize, kinds: ActivationKinds) {
        (self.n_rows, self.n_cols, self.kinds) = (n_rows, n_cols, kinds);
        let n = kinds.n_planes() * n_rows * n_cols;
        grow(&mut self.values, n);
        if kinds.q8_32 {
            assert!(n_cols.is_multiple_of(32), "{n_cols} columns in blocks of 32");
            self.q32.resize(n, ActivationKind::Q8Block32);
        }
        if kinds.q8_256 {
            assert!(n_cols.is_multiple_of(256), "{n_cols} columns in blocks of 256");
            self.q256.resize(n, ActivationKind::Q8Block256);
        }
    }

    /// Rows that a product with weights of this kind runs over: all planes of quantized forms.
    pub(crate) fn product_rows(&self, kind: ActivationKind) -> usize {
        if kind == ActivationKind::F32 { self.n_rows } else { self.n_rows * self.kinds.n_planes() }
    }

    /// Row `i` as the scalar definition reads it.
    pub(crate) fn q8_row(&self, kind: ActivationKind, i: usize) -> Q8Row<'_> {
        let q = if kind == ActivationKind::Q8Block32 { &self.q32 } else { &self.q256 };
        let part = |elems: usize| i * self.n_cols / elems..(i + 1) * self.n_cols / elems;
        Q8Row {
            codes: &q.codes[part(1)],
            scales: &q.scales[part(kind.block_elems())],
            sums: &q.sums[part(kind.sum_elems())],
        }
    }
}

impl Quantized {
    fn resize(&mut self, n: usize, kind: ActivationKind) {
        grow(&mut self.codes, n);
        grow(&mut self.scales, n / kind.block_elems());
        grow(&mut self.sums, n / kind.sum_elems());
        if kind == ActivationKind::Q8Block32 {
            grow(&mut self.wide_sums, n / 32);
            grow(&mut self.scaled_sums, n / 32);
        }
    }
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
