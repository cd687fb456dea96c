//! From one panel of weights and a batch of activations to 16 outputs per row of the batch: which kernel
//! runs, and how the panel is swept.
//!
//! Few rows read the packed codes directly. Many rows amortise unpacking: a stretch of [`UNPACK_COLS`]
//! columns is unpacked to one byte per code (16 KiB, half of a small L1 cache), and all rows of the batch
//! are swept over it before the next stretch. The float chain of an output continues through `y`, so the
//! split changes no bit.

use crate::activations::{OFFSET_SHIFTS_32, OFFSET_SHIFTS_256, Planes};
use crate::codebook::{IQ1M, IQ1S, IQ2S, IQ2XXS, IQ3S, IQ3XXS, IQ4NL, IQ4XS, MXFP4, TQ2};
use crate::generic::float::FloatWeights;
use crate::generic::q32::{Group32, Weights32};
use crate::generic::q256::{Group256, Scales, Weights256};
use crate::generic::{Ahead, Codes, PANEL_ROWS, Simd, float, q32, q256, unpack};
use crate::pack::Matrix;
use crate::{Activations, Isa};
use fewbit_quant::{ActivationKind, TensorType, dot};

/// Columns that are unpacked at a time.
const UNPACK_COLS: usize = 1024;

/// Bytes of the buffer that [`PanelJob::unpacked`] points to.
pub(crate) const UNPACKED_BYTES: usize = UNPACK_COLS * PANEL_ROWS;

/// One panel times a batch.
pub(crate) struct PanelJob<'a> {
    /// `meta` and `codes` as one.
    panel: &'a [u8],
    meta: &'a [u8],
    codes: &'a [u8],
    x: &'a Activations,
    /// Rows of the batch, in all planes.
    n_rows: usize,
    /// `[n_rows][16]`, zero on entry.
    y: &'a mut [f32],
    unpacked: &'a mut [u8],
}

/// A kernel for one weight type on one instruction set.
///
/// # Safety
/// The CPU has the instruction set; the panel is one of a matrix of the kernel's type with as many columns
/// as the activations, which hold `n_rows` rows in the form that the type reads; `y` is `[n_rows][16]`;
/// `unpacked` has
/// [`UNPACKED_BYTES`].
pub(crate) type PanelFn = unsafe fn(PanelJob<'_>);

/// Computes panel `p` of `w` times `n_rows` rows of `x` (all planes, for quantized kinds) into `y`:
/// `[n_rows][16]`.
pub(crate) fn multiply(w: &Matrix, p: usize, x: &Activations, n_rows: usize, y: &mut [f32], unpacked: &mut [u8]) {
    assert_eq!(w.n_cols, x.n_cols, "columns of the weights and of the activations");
    assert!(y.len() == n_rows * PANEL_ROWS && unpacked.len() == UNPACKED_BYTES);
    let kind = ActivationKind::of(w.ty).expect("checked when the matrix was packed");
    assert!([Planes::First, Planes::All].iter().any(|&planes| n_rows == x.rows_of(kind, planes)), "whole groups");
    match kind {
        ActivationKind::F32 => assert!(x.values.len() >= x.n_rows * x.n_cols),
        ActivationKind::Q8Block32 => assert!(x.kinds.q8_32, "activations in blocks of 32"),
        ActivationKind::Q8Block256 => assert!(x.kinds.q8_256, "activations in blocks of 256"),
    }
    let Some(kernel) = kernel(w.isa, w.ty) else { return scalar(w, kind, p, x, n_rows, y) };
    y.fill(0.0);
    let panel = w.panel(p);
    let (meta, codes) = panel.split_at(w.layout.meta);
    // SAFETY: `Matrix::pack` asks `Isa::require` for the matrix's `Isa`, and laid the panel out for this type
    // and n_cols columns; the activation buffers were sized by `Activations::resize` for at least
    // n_rows x n_cols in the kinds asserted above; y and unpacked are asserted above.
    unsafe { kernel(PanelJob { panel, meta, codes, x, n_rows, y, unpacked }) }
}

/// The definition: one dot product per output, on the rows as the file has them.
fn scalar(w: &Matrix, kind: ActivationKind, p: usize, x: &Activations, n_rows: usize, y: &mut [f32]) {
    let row_bytes = w.ty.row_bytes(w.n_cols).expect("checked when the matrix was packed");
    for r in 0..PANEL_ROWS.min(w.n_rows - p * PANEL_ROWS) {
        let at = (p * PANEL_ROWS + r) * row_bytes;
        let row = &w.bytes[at..at + row_bytes];
        for n in 0..n_rows {
            y[n * PANEL_ROWS + r] = match kind {
                ActivationKind::F32 => dot::dot_f32(w.ty, row, &x.values[n * x.n_cols..(n + 1) * x.n_cols]),
                _ => dot::dot_q8(w.ty, row, x.q8_row(kind, n).as_q8()),
            };
        }
    }
}

/// Runs a tile over all rows of the batch, group by group: `$body` sees the first row as `$first`, `$n` rows of a
/// group of `$w` from lane `$lane` on. Groups are those of [`Place`](crate::activations::Place).
macro_rules! sweep {
    ($n_rows:expr, $nmax:expr, |$first:ident, $lane:ident, $n:ident, $w:ident| $body:expr) => {{
        let n_rows = $n_rows;
        for $first in (0..n_rows / 8 * 8).step_by(8) {
            const $w: usize = 8;
            if $nmax >= 8 {
                const $n: usize = 8;
                let $lane = 0;
                $body;
            } else {
                const $n: usize = 4;
                for $lane in [0, 4] {
                    $body;
                }
            }
        }
        sweep!(@rest n_rows, 4, |$first, $lane, $n, $w| $body);
        sweep!(@rest n_rows, 2, |$first, $lane, $n, $w| $body);
        sweep!(@rest n_rows, 1, |$first, $lane, $n, $w| $body);
    }};
    (@rest $n_rows:ident, $width:literal, |$first:ident, $lane:ident, $n:ident, $w:ident| $body:expr) => {
        if $n_rows & $width != 0 {
            const $w: usize = $width;
            const $n: usize = $width;
            let ($first, $lane) = ($n_rows & !(2 * $width - 1), 0);
            $body;
        }
    };
}

/// # Safety
/// As [`PanelFn`]; `BITS == T::BITS` and `R * S::LANES == 16`.
#[inline(always)]
unsafe fn panel_32<S: Simd, T: Weights32, const BITS: usize, const R: usize, const NMAX: usize>(job: PanelJob<'_>) {
    let (x, y) = (job.x, job.y.as_mut_ptr());
    let n_blocks = x.n_cols / 32;
    let offset = if T::SIGNED { S::I8_BIAS } else { T::OFFSET };
    // SAFETY: block b < n_blocks of row n < n_rows lies inside the activation buffers, and the panel has
    // n_blocks blocks, by the caller's promise; a stretch unpacks at most UNPACK_COLS columns.
    unsafe {
        if job.n_rows <= 2 * NMAX {
            let (codes, meta) = (job.codes.as_ptr(), job.meta.as_ptr());
            sweep!(job.n_rows, NMAX, |first, lane, N, W| q32::tile::<S, T, BITS, R, N, W>(
                n_blocks,
                codes,
                meta,
                if first + lane == 0 { Ahead::of(job.panel, n_blocks) } else { Ahead::NONE },
                group_32(x, first, W, lane, 0, offset),
                y.add((first + lane) * PANEL_ROWS),
            ));
            return;
        }
        for b in (0..n_blocks).step_by(UNPACK_COLS / 32) {
            let n = (UNPACK_COLS / 32).min(n_blocks - b);
            let mut codes = job.codes.as_ptr().add(b * BITS * 64);
            let meta = job.meta.as_ptr().add(b * T::META);
            if BITS != 8 {
                unpack::<S, T, BITS, R>(n, codes, job.unpacked.as_mut_ptr());
                codes = job.unpacked.as_ptr();
            }
            sweep!(job.n_rows, NMAX, |first, lane, N, W| q32::tile::<S, T, 8, R, N, W>(
                n,
                codes,
                meta,
                Ahead::NONE,
                group_32(x, first, W, lane, b, offset),
                y.add((first + lane) * PANEL_ROWS),
            ));
        }
    }
}

/// The group of `width` rows from `first` on, from block `b` and lane `lane`.
///
/// # Safety
/// It exists, in the form for blocks of 32.
#[inline(always)]
unsafe fn group_32(x: &Activations, first: usize, width: usize, lane: usize, b: usize, offset: i32) -> Group32 {
    let q = &x.q32;
    let offsets = OFFSET_SHIFTS_32.iter().position(|&shift| 1 << shift == offset).unwrap_or(0);
    let at = first * (x.n_cols / 32) + b * width + lane;
    // SAFETY: the offsets lie inside the buffers by the caller's promise.
    unsafe {
        Group32 {
            codes: q.codes.as_ptr().add(first * (x.n_cols / 4) + b * 8 * width + lane).cast(),
            scales: q.scales.as_ptr().add(at),
            offsets: q.offsets[offsets].as_ptr().add(at),
            scaled_sums: q.scaled_sums.as_ptr().add(at),
        }
    }
}

/// # Safety
/// As [`panel_32`].
#[inline(always)]
unsafe fn panel_256<S: Simd, T: Weights256, const BITS: usize, const R: usize, const NMAX: usize>(job: PanelJob<'_>) {
    let (x, y) = (job.x, job.y.as_mut_ptr());
    let n_blocks = x.n_cols / 256;
    let offset = q256::offset_shift::<T>();
    // SAFETY: as in `panel_32`, with 8 groups of 32 columns per block.
    unsafe {
        if job.n_rows <= 2 * NMAX {
            let (codes, meta) = (job.codes.as_ptr(), job.meta.as_ptr());
            sweep!(job.n_rows, NMAX, |first, lane, N, W| q256::tile::<S, T, BITS, R, N, W>(
                n_blocks,
                codes,
                meta,
                if first + lane == 0 { Ahead::of(job.panel, 8 * n_blocks) } else { Ahead::NONE },
                group_256(x, first, W, lane, 0, offset),
                y.add((first + lane) * PANEL_ROWS),
            ));
            return;
        }
        for b in (0..n_blocks).step_by(UNPACK_COLS / 256) {
            let n = (UNPACK_COLS / 256).min(n_blocks - b);
            unpack::<S, T, BITS, R>(8 * n, job.codes.as_ptr().add(8 * b * BITS * 64), job.unpacked.as_mut_ptr());
            let (codes, meta) = (job.unpacked.as_ptr(), job.meta.as_ptr().add(b * T::META));
            sweep!(job.n_rows, NMAX, |first, lane, N, W| q256::tile::<S, T, 8, R, N, W>(
                n,
                codes,
                meta,
                Ahead::NONE,
                group_256(x, first, W, lane, b, offset),
                y.add((first + lane) * PANEL_ROWS),
            ));
        }
    }
}

/// The group of `width` rows from `first` on, from block `b` and lane `lane`.
///
/// # Safety
/// It exists, in the form for blocks of 256.
#[inline(always)]
unsafe fn group_256(x: &Activations, first: usize, width: usize, lane: usize, b: usize, shift: u32) -> Group256 {
    let q = &x.q256;
    let offsets = OFFSET_SHIFTS_256.iter().position(|&s| s == shift).unwrap_or(0);
    // Of an array with `per_block` values in a block.
    let at = |per_block: usize| (first * (x.n_cols / 256) + b * width) * per_block + lane;
    // SAFETY: the offsets lie inside the buffers by the caller's promise.
    unsafe {
        Group256 {
            codes: q.codes.as_ptr().add(at(64)).cast(),
            scales: q.scales.as_ptr().add(at(1)),
            offsets: q.offsets[offsets].as_ptr().add(at(16)),
            pairs_16: q.pairs_16.as_ptr().add(at(8)).cast(),
            pairs_32: q.pairs_32.as_ptr().add(at(4)).cast(),
        }
    }
}

/// # Safety
/// As [`PanelFn`], with `R * S::LANES == 16`.
#[inline(always)]
unsafe fn panel_float<S: Simd, W: FloatWeights, const R: usize, const NMAX: usize>(job: PanelJob<'_>) {
    let (x, y) = (job.x, job.y.as_mut_ptr());
    // SAFETY: k + n <= n_cols, and rows of the batch lie inside `values`, by the caller's promise.
    unsafe {
        for k in (0..x.n_cols).step_by(UNPACK_COLS / 4) {
            let n = (UNPACK_COLS / 4).min(x.n_cols - k);
            let weights = job.codes.as_ptr().add(k * PANEL_ROWS * W::BYTES);
            sweep!(job.n_rows, NMAX, |first, lane, N, _W| {
                let mut cols = [x.values.as_ptr(); N];
                for (i, col) in cols.iter_mut().enumerate() {
                    *col = col.add((first + lane + i) * x.n_cols + k);
                }
                float::tile::<S, W, R, N>(n, weights, &cols, y.add((first + lane) * PANEL_ROWS), PANEL_ROWS)
            });
        }
    }
}

macro_rules! weights_32 {
    ($($name:ident $bits:literal $offset:literal $min:literal;)*) => {$(
        pub(crate) struct $name;
        impl Codes for $name {
            const BITS: usize = $bits;
        }
        impl Weights32 for $name {
            const OFFSET: i32 = $offset;
            const MIN: bool = $min;
        }
    )*};
}

weights_32! {
    Q4_0 4 8 false;
    Q4_1 4 0 true;
    Q5_0 5 16 false;
    Q5_1 5 0 true;
    Q8_0 8 0 false;
}

macro_rules! weights_256 {
    ($($name:ident $bits:literal $offset_shift:literal $sub:literal $scales:ident;)*) => {$(
        struct $name;
        impl Codes for $name {
            const BITS: usize = $bits;
        }
        impl Weights256 for $name {
            const OFFSET_SHIFT: u32 = $offset_shift;
            const SUB: usize = $sub;
            const SCALES: Scales = Scales::$scales;
        }
    )*};
}

weights_256! {
    Q2K 2 0 16 Nibbles;
    Q3K 3 2 16 Signed;
    Q4K 4 0 32 ScaleThenMin;
    Q5K 5 0 32 ScaleThenMin;
    Q6K 6 5 16 Signed;
}

struct F32;
struct F16;
struct BF16;

impl FloatWeights for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_f(p.cast()) }
    }
}

impl FloatWeights for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_f16(p.cast()) }
    }
}

impl FloatWeights for BF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_bf16(p.cast()) }
    }
}

/// The kernels of one instruction set: a function per weight type, compiled with its features
/// (which an attribute enables).
macro_rules! kernels {
    ($module:ident, $simd:ty, $attr:meta, $r:literal, $nmax:literal) => {
        mod $module {
            use super::*;

            kernels!(@functions $simd, $attr, $r, $nmax;
                q4_0 panel_32 Q4_0 4, q4_1 panel_32 Q4_1 4, q5_0 panel_32 Q5_0 5, q5_1 panel_32 Q5_1 5,
                q8_0 panel_32 Q8_0 8, q2_k panel_256 Q2K 2, q3_k panel_256 Q3K 3, q4_k panel_256 Q4K 4,
                q5_k panel_256 Q5K 5, q6_k panel_256 Q6K 6, iq4_nl panel_32 IQ4NL 4, mxfp4 panel_32 MXFP4 4,
                iq4_xs panel_256 IQ4XS 4, iq3_xxs panel_256 IQ3XXS 4, iq3_s panel_256 IQ3S 4,
                iq2_xxs panel_256 IQ2XXS 3, iq2_s panel_256 IQ2S 3, iq1_s panel_256 IQ1S 3, iq1_m panel_256 IQ1M 3,
                tq2 panel_256 TQ2 2);

            kernels!(@floats $simd, $attr, $r, $nmax; f32 F32, f16 F16, bf16 BF16);

            pub(super) fn kernel(ty: TensorType) -> Option<PanelFn> {
                Some(match ty {
                    TensorType::F32 => f32,
                    TensorType::F16 => f16,
                    TensorType::BF16 => bf16,
                    TensorType::Q4_0 => q4_0,
                    TensorType::Q4_1 => q4_1,
                    TensorType::Q5_0 => q5_0,
                    TensorType::Q5_1 => q5_1,
                    TensorType::Q8_0 => q8_0,
                    TensorType::Q2_K => q2_k,
                    TensorType::Q3_K => q3_k,
                    TensorType::Q4_K => q4_k,
                    TensorType::Q5_K => q5_k,
                    TensorType::Q6_K => q6_k,
                    TensorType::IQ4_NL => iq4_nl,
                    TensorType::MXFP4 => mxfp4,
                    TensorType::IQ4_XS => iq4_xs,
                    TensorType::IQ3_XXS => iq3_xxs,
                    TensorType::IQ3_S => iq3_s,
                    TensorType::IQ2_XXS => iq2_xxs,
                    TensorType::IQ2_XS | TensorType::IQ2_S => iq2_s,
                    TensorType::IQ1_S => iq1_s,
                    TensorType::IQ1_M => iq1_m,
                    TensorType::TQ1_0 | TensorType::TQ2_0 => tq2,
                    _ => return None,
                })
            }
        }
    };
    (@functions $simd:ty, $attr:meta, $r:literal, $nmax:literal;
     $($name:ident $panel:ident $weights:ident $bits:literal),*) => {$(
        #[$attr]
        unsafe fn $name(job: PanelJob<'_>) {
            // SAFETY: the caller keeps `PanelFn`'s contract.
            unsafe { $panel::<$simd, $weights, $bits, $r, $nmax>(job) }
        }
    )*};
    (@floats $simd:ty, $attr:meta, $r:literal, $nmax:literal; $($name:ident $weights:ident),*) => {$(
        #[$attr]
        unsafe fn $name(job: PanelJob<'_>) {
            // SAFETY: the caller keeps `PanelFn`'s contract.
            unsafe { panel_float::<$simd, $weights, $r, $nmax>(job) }
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
kernels!(avx2, crate::arch::x86_64::Avx2, target_feature(enable = "avx2,fma,f16c"), 2, 4);
#[cfg(target_arch = "x86_64")]
kernels!(avx_vnni, crate::arch::x86_64::AvxVnni<false>, target_feature(enable = "avx2,fma,f16c,avxvnni"), 2, 4);
// The same in the other encoding, for CPUs with AVX-512: they run it when told to, as tests do.
#[cfg(target_arch = "x86_64")]
kernels!(
    avx_vnni_evex,
    crate::arch::x86_64::AvxVnni<true>,
    target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512vnni"),
    2,
    4
);
#[cfg(target_arch = "x86_64")]
kernels!(
    avx512,
    crate::arch::x86_64::Avx512,
    target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"),
    1,
    8
);
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
kernels!(baseline, crate::arch::Baseline, inline(never), 4, 4);
kernels!(portable, crate::arch::Portable, inline(never), 2, 4);

fn kernel(isa: Isa, ty: TensorType) -> Option<PanelFn> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::kernel(ty),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni if crate::isa::has_avx_vnni() => avx_vnni::kernel(ty),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => avx_vnni_evex::kernel(ty),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::kernel(ty),
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        Isa::Sse2 | Isa::Neon => baseline::kernel(ty),
        Isa::Portable => portable::kernel(ty),
        _ => None,
    }
}
