//! What a cache of keys and values is made of: element types, how they lie in a page, and the two inner products of
//! attention with a tile of queries.
//!
//! Keys are stored so that positions are vector lanes, values so that elements are. For one head:
//!
//! ```text
//! f16, f32   keys    [PAGE / 16] blocks: [head_dim][16]
//!            values  [PAGE][head_dim rounded up to 16]
//! Q8_0       keys    [PAGE / 16] blocks: [head_dim / 32][16] f16 scales, [head_dim / 4][16][4] codes
//!            values  [PAGE][head_dim] codes, [head_dim / 32][PAGE] f16 scales
//! ```
//! A block of Q8_0 keys is a panel of 16 weight rows, and a score is the product that `fewbit_quant::dot` defines for
//! that type: the query is quantized as activations are. Values are floats again:
//!
//! ```text
//! score   s_j  = chain over blocks b of 32 elements: (sum of q * k, integer) * (dk_jb * dq_b) + s_j
//! value   w_jb = p_j * dv_jb,   o[d] = chain over j: w_jb * v_j[d] + o[d]
//! ```
//! Q8_0 exists for heads of a multiple of 32 elements.

use crate::activations::{OFFSET_SHIFTS_32, quantize_block, sum_codes};
use crate::elementwise::multiversion;
use crate::generic::attention::KvLoad;
use crate::generic::q32::Group32;
use crate::{Isa, KernelError};
use half::f16;
use std::alloc::{Layout, alloc_zeroed};
use std::ops::Range;
use std::ptr::NonNull;

/// Positions of a page, and of one partial result of attention.
pub const PAGE: usize = 256;

/// Positions in one block of keys.
pub(crate) const KEY_BLOCK: usize = 16;

/// Rows of the highest tile.
pub(crate) const MAX_TILE: usize = 8;

/// The scaled queries of some rows, in the forms that products with keys read.
#[derive(Debug, Default)]
pub struct Queries {
    /// `[n_rows][head_dim]`
    pub(crate) rows: Vec<f32>,
    /// For Q8_0: per tile of rows a group as [`Group32`] has it.
    codes: Vec<[i8; 4]>,
    scales: Vec<f32>,
    offsets: Vec<i32>,
}

/// An element type of the cache: f16, f32 or [`Q8`].
///
/// Sealed: kernels exist for these.
#[allow(private_interfaces)]
pub trait KvElement: Copy + Default + std::fmt::Debug + Send + Sync + 'static {
    /// Whether heads of this size can be stored.
    fn supports(head_dim: usize) -> bool;
    /// Elements that the keys of 16 positions of one head take.
    fn key_block_elems(head_dim: usize) -> usize;
    /// Elements that the values of one head in one page take.
    fn head_value_elems(head_dim: usize) -> usize;
    #[doc(hidden)]
    fn store_key(isa: Isa, k: &[f32], lane: usize, block: &mut [Self]);
    #[doc(hidden)]
    fn store_value(isa: Isa, v: &[f32], position: usize, values: &mut [Self]);
    /// Makes the forms of `queries.rows` that [`scores`](Self::scores) needs, for tiles of `tile` rows.
    #[doc(hidden)]
    fn prepare(isa: Isa, head_dim: usize, tile: usize, queries: &mut Queries);
    /// `out[m][j] = q[m] . k_j` for the queries `rows`, which are one tile; `out` has row stride [`PAGE`].
    #[doc(hidden)]
    fn scores(tile: Tile, q: &Queries, rows: Range<usize>, head_dim: usize, keys: &[Self], out: &mut [f32]);
    /// `o[m] += sum over j in range of p[m][j] * v_j`; `p` has row stride [`PAGE`], `o` is `[n][width]`.
    #[doc(hidden)]
    fn values(tile: Tile, n: usize, p: &[f32], range: Range<usize>, values: &[Self], head_dim: usize, o: &mut [f32]);
}

/// An element type whose elements stand for themselves: f16 or f32.
#[allow(private_bounds)]
pub trait KvFloat: KvElement + KvLoad {
    /// Rounds, nearest even.
    fn from_f32(x: f32) -> Self;
    /// The exact value.
    fn to_f32(self) -> f32;
}

impl KvFloat for f16 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

impl KvFloat for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

/// `n` elements of zero bits, which are zeros in every type. Large ones are cleared by the operating system, page by
/// page as they are first written: a page of a cache is some megabytes, and a short request writes little of it.
///
/// # Errors
/// [`KernelError::OutOfMemory`]
pub fn zeroed<T: KvElement>(n: usize) -> Result<Vec<T>, KernelError> {
    let out_of_memory = || KernelError::OutOfMemory { bytes: n.saturating_mul(size_of::<T>()) };
    let layout = Layout::array::<T>(n).map_err(|_| out_of_memory())?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout's size is not 0.
    let ptr = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(out_of_memory)?;
    // SAFETY: allocated by the global allocator as an array of `n` elements, and zero bits are a value of f16, f32 and
    // `Q8`, which are all the types that there are.
    Ok(unsafe { Vec::from_raw_parts(ptr.cast().as_ptr(), n, n) })
}

/// A byte of Q8_0 blocks: codes and scales, which lie as the [module](self) says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Q8(u8);

impl Q8 {
    /// The byte.
    pub fn to_byte(self) -> u8 {
        self.0
    }

    /// The element of a byte.
    pub fn from_byte(byte: u8) -> Self {
        Self(byte)
    }
}

multiversion! {
    /// Converts to the cache's type and writes every `stride`-th element.
    pub(crate) fn convert_strided<T: KvFloat>(x: &[f32], out: &mut [T], stride: usize) {
        for (y, &x) in out.iter_mut().step_by(stride).zip(x) {
            *y = T::from_f32(x);
        }
    }
}

/// The inner products on one instruction set, and how many query rows they take at a time.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    isa: Isa,
    pub(crate) rows: usize,
}

impl Tile {
    pub(crate) fn of(isa: Isa) -> Self {
        let rows = match isa {
            Isa::Avx512 => MAX_TILE,
            _ => 4,
        };
        Self { isa, rows }
    }
}

/// Calls an inner product of the instruction set's module, or evaluates the definition. The arguments are variables,
/// and the lengths that the product reads and writes were asserted before.
macro_rules! on_isa {
    ($isa:expr, $product:ident($($arg:ident),*), $definition:block) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: lengths asserted before; a `Cpu` is made only with an `Isa` that this CPU has.
            Isa::Avx2 | Isa::AvxVnni => unsafe { avx2::$product($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { avx512::$product($($arg),*) },
            // SAFETY: as above; every CPU of the target runs it.
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Isa::Sse2 | Isa::Neon => unsafe { baseline::$product($($arg),*) },
            // SAFETY: lengths asserted before; every CPU runs it.
            Isa::Portable => unsafe { portable::$product($($arg),*) },
            _ => $definition,
        }
    };
}

macro_rules! float_elements {
    ($($t:ty),*) => {$(
        #[allow(private_interfaces)]
        impl KvElement for $t {
            fn supports(_head_dim: usize) -> bool {
                true
            }

            fn key_block_elems(head_dim: usize) -> usize {
                KEY_BLOCK * head_dim
            }

            fn head_value_elems(head_dim: usize) -> usize {
                PAGE * head_dim.next_multiple_of(16)
            }

            fn store_key(isa: Isa, k: &[f32], lane: usize, block: &mut [Self]) {
                convert_strided(isa, k, &mut block[lane..], KEY_BLOCK);
            }

            fn store_value(isa: Isa, v: &[f32], position: usize, values: &mut [Self]) {
                let at = position * v.len().next_multiple_of(16);
                convert_strided(isa, v, &mut values[at..at + v.len()], 1);
            }

            fn prepare(_isa: Isa, _head_dim: usize, _tile: usize, _queries: &mut Queries) {}

            fn scores(tile: Tile, q: &Queries, rows: Range<usize>, head_dim: usize, keys: &[Self], out: &mut [f32]) {
                float_scores(tile, &q.rows[rows.start * head_dim..rows.end * head_dim], keys, head_dim, out);
            }

            fn values(
                tile: Tile,
                n: usize,
                p: &[f32],
                range: Range<usize>,
                values: &[Self],
                head_dim: usize,
                o: &mut [f32],
            ) {
                float_values(tile, n, p, range, values, head_dim.next_multiple_of(16), o);
            }
        }
    )*};
}

float_elements!(f16, f32);

/// `out[m][j] = q[m] . k_j`; `q`: `[rows][head_dim]`, `out` of row stride [`PAGE`].
fn float_scores<T: KvFloat>(tile: Tile, q: &[f32], keys: &[T], head_dim: usize, out: &mut [f32]) {
    let (n, n_blocks) = (q.len() / head_dim, keys.len() / (head_dim * KEY_BLOCK));
    assert!(n >= 1 && n <= tile.rows && keys.len() == n_blocks * head_dim * KEY_BLOCK);
    assert!(out.len() >= (n - 1) * PAGE + n_blocks * KEY_BLOCK);
    on_isa!(tile.isa, scores(n, head_dim, n_blocks, q, keys, out), {
        for (m, q) in q.chunks_exact(head_dim).enumerate() {
            for (b, block) in keys.chunks_exact(head_dim * KEY_BLOCK).enumerate() {
                for j in 0..KEY_BLOCK {
                    let chain = |s: f32, d: usize| q[d].mul_add(block[d * KEY_BLOCK + j].to_f32(), s);
                    out[m * PAGE + b * KEY_BLOCK + j] = (0..head_dim).fold(0.0, chain);
                }
            }
        }
    });
}

/// `o[m] += sum over j in range of p[m][j] * v_j`; `p` of row stride [`PAGE`], `o`: `[n][width]`.
fn float_values<T: KvFloat>(
    tile: Tile,
    n: usize,
    p: &[f32],
    range: Range<usize>,
    values: &[T],
    width: usize,
    o: &mut [f32],
) {
    assert!(n >= 1 && n <= tile.rows && range.start < range.end && range.end <= PAGE);
    assert!(p.len() >= (n - 1) * PAGE + range.end && values.len() >= range.end * width && o.len() >= n * width);
    assert!(width.is_multiple_of(16));
    let (p, values) = (&p[range.start..], &values[range.start * width..range.end * width]);
    let len = range.len();
    on_isa!(tile.isa, values(n, width, width, len, p, values, o), {
        for m in 0..n {
            for (j, v) in values.chunks_exact(width).enumerate() {
                for (y, v) in o[m * width..(m + 1) * width].iter_mut().zip(v) {
                    *y = p[m * PAGE + j].mul_add(v.to_f32(), *y);
                }
            }
        }
    });
}

/// One block of 32 elements: codes, and the scale as it is stored.
fn quantize(x: &[f32; 32]) -> ([i8; 32], f16) {
    let mut codes = [0; 32];
    let scale = quantize_block(x, &mut codes);
    (codes, f16::from_f32(scale))
}

/// Bytes of the scales before the codes of a block of keys.
fn key_scale_bytes(head_dim: usize) -> usize {
    head_dim / 32 * KEY_BLOCK * 2
}

#[allow(private_interfaces)]
impl KvElement for Q8 {
    fn supports(head_dim: usize) -> bool {
        head_dim.is_multiple_of(32)
    }

    fn key_block_elems(head_dim: usize) -> usize {
        key_scale_bytes(head_dim) + KEY_BLOCK * head_dim
    }

    fn head_value_elems(head_dim: usize) -> usize {
        PAGE * head_dim + head_dim / 32 * PAGE * 2
    }

    fn store_key(_isa: Isa, k: &[f32], lane: usize, block: &mut [Self]) {
        let (scales, codes) = block.split_at_mut(key_scale_bytes(k.len()));
        for (b, x) in k.as_chunks::<32>().0.iter().enumerate() {
            let (quantized, scale) = quantize(x);
            put_half(scales, b * KEY_BLOCK + lane, scale);
            for (q, quad) in quantized.as_chunks::<4>().0.iter().enumerate() {
                let at = ((b * 8 + q) * KEY_BLOCK + lane) * 4;
                codes[at..at + 4].copy_from_slice(&quad.map(|code| Self(code as u8)));
            }
        }
    }

    fn store_value(_isa: Isa, v: &[f32], position: usize, values: &mut [Self]) {
        let (codes, scales) = values.split_at_mut(PAGE * v.len());
        for (b, x) in v.as_chunks::<32>().0.iter().enumerate() {
            let (quantized, scale) = quantize(x);
            put_half(scales, b * PAGE + position, scale);
            let at = position * v.len() + b * 32;
            codes[at..at + 32].copy_from_slice(&quantized.map(|code| Self(code as u8)));
        }
    }

    fn prepare(_isa: Isa, head_dim: usize, tile: usize, queries: &mut Queries) {
        let Queries { rows, codes, scales, offsets } = queries;
        let n_rows = rows.len() / head_dim;
        codes.resize(n_rows * head_dim / 4, [0; 4]);
        scales.resize(n_rows * head_dim / 32, 0.0);
        offsets.resize(n_rows * head_dim / 32, 0);
        for (row, q) in rows.chunks_exact(head_dim).enumerate() {
            // Rows of a tile are interleaved.
            let first = row / tile * tile;
            let (width, lane) = (tile.min(n_rows - first), row - first);
            for (b, x) in q.as_chunks::<32>().0.iter().enumerate() {
                let mut quantized = [0; 32];
                let at = first * (head_dim / 32) + b * width + lane;
                scales[at] = quantize_block(x, &mut quantized);
                offsets[at] = -(i32::from(sum_codes(&quantized)) << OFFSET_SHIFTS_32[2]);
                for (i, quad) in quantized.as_chunks::<4>().0.iter().enumerate() {
                    codes[first * (head_dim / 4) + (b * 8 + i) * width + lane] = *quad;
                }
            }
        }
    }

    fn scores(tile: Tile, q: &Queries, rows: Range<usize>, head_dim: usize, keys: &[Self], out: &mut [f32]) {
        let (n, block) = (rows.len(), Self::key_block_elems(head_dim));
        let (n_keys, n_scales) = (keys.len() / block, head_dim / 32);
        assert!(n >= 1 && n <= tile.rows && keys.len() == n_keys * block && Self::supports(head_dim));
        assert!(out.len() >= (n - 1) * PAGE + n_keys * KEY_BLOCK && rows.start.is_multiple_of(tile.rows));
        let codes = &q.codes[rows.start * (head_dim / 4)..rows.end * (head_dim / 4)];
        let scales = &q.scales[rows.start * n_scales..rows.end * n_scales];
        let offsets = &q.offsets[rows.start * n_scales..rows.end * n_scales];
        let group = Group32 {
            width: n,
            codes: codes.as_ptr().cast(),
            scales: scales.as_ptr(),
            offsets: offsets.as_ptr(),
            scaled_sums: scales.as_ptr(),
        };
        on_isa!(tile.isa, scores_q8(n, head_dim, n_keys, group, keys, out), {
            for (i, block) in keys.chunks_exact(block).enumerate() {
                let (key_scales, key_codes) = block.split_at(key_scale_bytes(head_dim));
                for (m, j) in (0..n).flat_map(|m| (0..KEY_BLOCK).map(move |j| (m, j))) {
                    let chain = |s: f32, b: usize| {
                        let of_quad = |quad: usize| {
                            let k = &key_codes[(quad * KEY_BLOCK + j) * 4..][..4];
                            let product = |(k, &q): (&Self, &i8)| i32::from(k.0 as i8) * i32::from(q);
                            k.iter().zip(&codes[quad * n + m]).map(product).sum::<i32>()
                        };
                        let sum: i32 = (b * 8..b * 8 + 8).map(of_quad).sum();
                        let scale = half_at(key_scales, b * KEY_BLOCK + j).to_f32() * scales[b * n + m];
                        (sum as f32).mul_add(scale, s)
                    };
                    out[m * PAGE + i * KEY_BLOCK + j] = (0..n_scales).fold(0.0, chain);
                }
            }
        });
    }

    fn values(tile: Tile, n: usize, p: &[f32], range: Range<usize>, values: &[Self], head_dim: usize, o: &mut [f32]) {
        assert!(n >= 1 && n <= tile.rows && range.start < range.end && range.end <= PAGE);
        assert!(values.len() == Self::head_value_elems(head_dim) && Self::supports(head_dim));
        assert!(p.len() >= (n - 1) * PAGE + range.end && o.len() >= n * head_dim);
        let (codes, scales) = values.split_at(PAGE * head_dim);
        let (p, first) = (&p[range.start..], range.start);
        let codes = &codes[first * head_dim..range.end * head_dim];
        // `w_jb` of one block of 32 elements.
        let w = &mut [0.0f32; MAX_TILE * PAGE];
        let len = range.len();
        for b in 0..head_dim / 32 {
            let scales = &scales[(b * PAGE + first) * 2..(b * PAGE + range.end) * 2];
            let (codes, o) = (&codes[b * 32..], &mut o[b * 32..]);
            // Row j < len of `codes` and row m < n of `o` have 32 elements from here on, at distance head_dim, and
            // `scales` an f16 for each j.
            on_isa!(tile.isa, values_q8(n, head_dim, len, p, scales, w, codes, o), {
                for (m, j) in (0..n).flat_map(|m| (0..len).map(move |j| (m, j))) {
                    let w = p[m * PAGE + j] * half_at(scales, j).to_f32();
                    let codes = &codes[j * head_dim..j * head_dim + 32];
                    for (y, code) in o[m * head_dim..m * head_dim + 32].iter_mut().zip(codes) {
                        *y = w.mul_add(f32::from(code.0 as i8), *y);
                    }
                }
            });
        }
    }
}

#[inline(always)]
fn half_of(bytes: [Q8; 2]) -> f16 {
    f16::from_le_bytes(bytes.map(|byte| byte.0))
}

/// The `i`-th f16 of some scales.
fn half_at(scales: &[Q8], i: usize) -> f16 {
    half_of([scales[2 * i], scales[2 * i + 1]])
}

fn put_half(scales: &mut [Q8], i: usize, value: f16) {
    scales[2 * i..2 * i + 2].copy_from_slice(&value.to_le_bytes().map(Q8));
}

/// The inner products for one instruction set, with the tile's height chosen at run time.
macro_rules! tiles {
    ($module:ident, $simd:ty, $attr:meta, $r:literal, $chunks:literal, [$($m:literal)*]) => {
        mod $module {
            use super::{KEY_BLOCK, PAGE, Q8};
            use crate::generic::attention::{self, KvLoad};
            use crate::generic::q32::Group32;

            /// # Safety
            /// The slices hold what `super::float_scores` asserts, and the CPU has the features.
            #[$attr]
            pub(super) unsafe fn scores<T: KvLoad>(n: usize, hd: usize, n_blocks: usize, q: &[f32], keys: &[T], out: &mut [f32]) {
                let (q, keys, out) = (q.as_ptr(), keys.as_ptr(), out.as_mut_ptr());
                // SAFETY: the caller's promise.
                unsafe {
                    match n {
                        $($m => attention::scores::<$simd, T, $r, $m>(hd, n_blocks, q, keys, out, PAGE),)*
                        _ => unreachable!("a tile of {n} rows"),
                    }
                }
            }

            /// # Safety
            /// `p` has `n` rows of stride `PAGE` with `len` weights, `v` `len` and `o` `n` rows of stride `width` with
            /// `n_elems` elements, a multiple of 16, and the CPU has the features.
            #[$attr]
            pub(super) unsafe fn values<T: KvLoad>(
                n: usize,
                n_elems: usize,
                width: usize,
                len: usize,
                p: &[f32],
                v: &[T],
                o: &mut [f32],
            ) {
                let (p, v, o) = (p.as_ptr(), v.as_ptr(), o.as_mut_ptr());
                // SAFETY: the caller's promise.
                unsafe {
                    match n {
                        $($m => attention::values::<$simd, T, $r, $chunks, $m>(n_elems, width, len, p, PAGE, v, o),)*
                        _ => unreachable!("a tile of {n} rows"),
                    }
                }
            }

            /// # Safety
            /// The group has `n` rows of `hd` elements, `keys` `n_keys` blocks, `out` `n` rows of stride `PAGE`, and the
            /// CPU has the features.
            #[$attr]
            pub(super) unsafe fn scores_q8(n: usize, hd: usize, n_keys: usize, q: Group32, keys: &[Q8], out: &mut [f32]) {
                let (keys, out) = (keys.as_ptr().cast(), out.as_mut_ptr());
                debug_assert_eq!(KEY_BLOCK, 16);
                // SAFETY: the caller's promise.
                unsafe {
                    match n {
                        $($m => attention::scores_q8::<$simd, $r, $m>(hd, n_keys, q, keys, out, PAGE),)*
                        _ => unreachable!("a tile of {n} rows"),
                    }
                }
            }

            /// # Safety
            /// As `values` with 32 elements, of which `codes` are the codes; `scales` has `len` f16, and `w` room for as
            /// many weights as `p` has.
            #[allow(clippy::too_many_arguments)]
            #[$attr]
            pub(super) unsafe fn values_q8(
                n: usize,
                width: usize,
                len: usize,
                p: &[f32],
                scales: &[Q8],
                w: &mut [f32],
                codes: &[Q8],
                o: &mut [f32],
            ) {
                let scales = scales.as_ptr().cast();
                // SAFETY: the caller's promise.
                unsafe {
                    for m in 0..n {
                        let at = m * PAGE;
                        attention::weigh::<$simd, $r>(len, p.as_ptr().add(at), scales, w.as_mut_ptr().add(at));
                    }
                    values(n, 32, width, len, w, codes, o);
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
tiles!(avx2, crate::arch::x86_64::Avx2, target_feature(enable = "avx2,fma,f16c"), 2, 1, [1 2 3 4]);
#[cfg(target_arch = "x86_64")]
tiles!(
    avx512,
    crate::arch::x86_64::Avx512,
    target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"),
    1,
    2,
    [1 2 3 4 5 6 7 8]
);
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
tiles!(baseline, crate::arch::Baseline, inline(never), 4, 1, [1 2 3 4]);
tiles!(portable, crate::arch::Portable, inline(never), 2, 1, [1 2 3 4]);
