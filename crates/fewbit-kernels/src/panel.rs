//! Multiplies one panel of weights with a batch of activations, which gives 16 outputs per row of the batch: which
//! kernel runs, and in which order the panel is processed.
//!
//! With few rows, kernels read the packed codes directly. With many rows, unpacking pays off: a stretch of
//! [`UNPACK_COLS`] columns is unpacked to one byte per code (16 KiB, half of a small L1 cache) and multiplied with all
//! rows of the batch before the next stretch. The float chain of an output continues through `y`, so the split does not
//! change a bit.

use crate::activations::{GROUP, OFFSET_SHIFTS_32, OFFSET_SHIFTS_256, Planes};
use crate::generic::float::{self, BF16, F16, F32, FloatWeights};
use crate::generic::q32::{self, Group32};
use crate::generic::q256::{self, Group256};
use crate::generic::tile::{Ahead, TilePanel};
use crate::generic::{Simd, unpack};
use crate::pack::Matrix;
use crate::weights::{PANEL_ROWS, Packed, Unpacked, Weights};
use crate::{Activations, Isa};
use fewbit_quant::format::{ForQuantized, Quantized};
use fewbit_quant::{ActivationKind, TensorType, dot};
use std::ops::Range;

/// Number of columns that are unpacked at a time, over all panels of a job.
const UNPACK_COLS: usize = 1024;

/// Bytes of the buffer that [`PanelJob::unpacked`] points to.
pub(crate) const UNPACKED_BYTES: usize = UNPACK_COLS * PANEL_ROWS;

/// `P` panels times some rows of a batch.
pub(crate) struct PanelJob<'a, const P: usize> {
    panels: [Panel<'a>; P],
    x: &'a Activations,
    /// Rows of the batch, in all planes: from a multiple of 8 to the end; to a multiple of 8 where there are two panels.
    rows: Range<usize>,
    /// `[rows.end][16]` of each panel, zero where rows are computed.
    y: [&'a mut [f32]; P],
    unpacked: &'a mut [u8],
}

#[derive(Clone, Copy)]
struct Panel<'a> {
    /// `meta` and `codes` as one.
    bytes: &'a [u8],
    meta: &'a [u8],
    codes: &'a [u8],
}

/// A kernel for one weight type on one instruction set.
///
/// # Safety
/// The CPU has the instruction set; the panels are of matrices of the kernel's type with as many columns as the
/// activations, which hold the rows in the form that the type reads; each `y` and `unpacked` are as long as stated.
pub(crate) type PanelFn<const P: usize> = unsafe fn(PanelJob<'_, P>);

/// Computes panel `p` of `w` times `n_rows` rows of `x` (all planes, for quantized kinds) into `y`: `[n_rows][16]`.
pub(crate) fn multiply(w: &Matrix, p: usize, x: &Activations, n_rows: usize, y: &mut [f32], unpacked: &mut [u8]) {
    let kind = check(w, x, n_rows, y, unpacked);
    let Some(kernel) = kernel(w.isa, w.ty) else { return scalar(w, kind, p, x, n_rows, y) };
    y.fill(0.0);
    // SAFETY: `Matrix::pack` asks `Isa::require` for the matrix's `Isa`, and laid the panel out for this type
    // and n_cols columns; `check` asserts the rest.
    unsafe { kernel(PanelJob { panels: [panel_of(w, p)], x, rows: 0..n_rows, y: [y], unpacked }) }
}

/// As [`multiply`], for two panels of one matrix or of two: in tiles of both, if there is such a kernel and the batch
/// has enough rows for it.
pub(crate) fn multiply_two(
    w: [(&Matrix, usize); 2],
    x: &Activations,
    n_rows: usize,
    y: [&mut [f32]; 2],
    unpacked: &mut [u8],
) {
    let [(v, p), (w, q)] = w;
    let [y, z] = y;
    let kernels = match (v.isa, v.ty) == (w.isa, w.ty) && n_rows > 2 * GROUP {
        true => two_kernel(v.isa, v.ty).zip(kernel(v.isa, v.ty)),
        false => None,
    };
    let Some((both, single)) = kernels else {
        multiply(v, p, x, n_rows, y, unpacked);
        multiply(w, q, x, n_rows, z, unpacked);
        return;
    };
    check(v, x, n_rows, y, unpacked);
    check(w, x, n_rows, z, unpacked);
    y.fill(0.0);
    z.fill(0.0);
    let (panels, whole) = ([panel_of(v, p), panel_of(w, q)], n_rows / GROUP * GROUP);
    // SAFETY: as in `multiply`, for both.
    unsafe {
        both(PanelJob { panels, x, rows: 0..whole, y: [&mut *y, &mut *z], unpacked });
        for (panel, y) in panels.into_iter().zip([y, z]) {
            single(PanelJob { panels: [panel], x, rows: whole..n_rows, y: [y], unpacked });
        }
    }
}

/// Asserts what a kernel relies on. The activation buffers were sized by `Activations::resize` for at least
/// n_rows x n_cols in the kinds asserted here.
fn check(w: &Matrix, x: &Activations, n_rows: usize, y: &[f32], unpacked: &[u8]) -> ActivationKind {
    assert_eq!(w.n_cols, x.n_cols, "columns of the weights and of the activations");
    assert!(y.len() == n_rows * PANEL_ROWS && unpacked.len() == UNPACKED_BYTES);
    let kind = ActivationKind::of(w.ty).expect("checked when the matrix was packed");
    assert!([Planes::First, Planes::All].iter().any(|&planes| n_rows == x.rows_of(kind, planes)), "whole groups");
    match kind {
        ActivationKind::F32 => assert!(x.values.len() >= x.n_rows * x.n_cols),
        ActivationKind::Q8Block32 => assert!(x.kinds.q8_32, "activations in blocks of 32"),
        ActivationKind::Q8Block256 => assert!(x.kinds.q8_256, "activations in blocks of 256"),
    }
    kind
}

fn panel_of(w: &Matrix, p: usize) -> Panel<'_> {
    let bytes = w.panel(p);
    let (meta, codes) = bytes.split_at(w.layout.meta);
    Panel { bytes, meta, codes }
}

/// The scalar definition: one dot product per output, on the rows as they are in the file.
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

/// Runs a tile over rows of the batch, group by group: `$body` sees the first row as `$first`, `$n` rows of a
/// group of `$w` from lane `$lane` on; `$n` is at most `$nmax`. Groups are those of [`Place`](crate::activations::Place).
macro_rules! sweep {
    ($rows:expr, $nmax:expr, |$first:ident, $lane:ident, $n:ident, $w:ident| $body:expr) => {{
        let (start, n_rows) = ($rows.start, $rows.end);
        for $first in (start..n_rows / 8 * 8).step_by(8) {
            sweep!(@group $nmax, 8, |$lane, $n, $w| $body);
        }
        // Jobs of two panels have whole groups only.
        if P == 1 {
            sweep!(@rest n_rows, $nmax, 4, |$first, $lane, $n, $w| $body);
            sweep!(@rest n_rows, $nmax, 2, |$first, $lane, $n, $w| $body);
            sweep!(@rest n_rows, $nmax, 1, |$first, $lane, $n, $w| $body);
        }
    }};
    (@rest $n_rows:ident, $nmax:expr, $width:literal, |$first:ident, $lane:ident, $n:ident, $w:ident| $body:expr) => {
        if $n_rows & $width != 0 {
            let $first = $n_rows & !(2 * $width - 1);
            sweep!(@group $nmax, $width, |$lane, $n, $w| $body);
        }
    };
    (@group $nmax:expr, $width:literal, |$lane:ident, $n:ident, $w:ident| $body:expr) => {
        const $w: usize = $width;
        if $nmax >= $width {
            const $n: usize = $width;
            let $lane = 0;
            $body;
        } else if $nmax == 4 {
            const $n: usize = 4;
            for $lane in (0..$width).step_by(4) {
                $body;
            }
        } else if $nmax == 2 {
            const $n: usize = 2;
            for $lane in (0..$width).step_by(2) {
                $body;
            }
        } else {
            const $n: usize = 1;
            for $lane in 0..$width {
                $body;
            }
        }
    };
}

/// # Safety
/// As [`PanelFn`]; `R * S::LANES == 16`.
#[inline(always)]
unsafe fn panel_32<S: Simd, T: Weights, const R: usize, const NMAX: usize, const P: usize>(mut job: PanelJob<'_, P>) {
    let x = job.x;
    let n_blocks = x.n_cols / 32;
    let offset = q32::offset::<S, T>();
    // SAFETY: block b < n_blocks of row n < rows.end lies inside the activation buffers, and each panel has
    // n_blocks blocks, by the caller's promise; stretches unpack at most UNPACK_COLS columns together.
    unsafe {
        let mut panels = job.tile_panels();
        if P == 1 && job.rows.len() <= 2 * NMAX {
            sweep!(job.rows, NMAX, |first, lane, N, W| q32::tile::<S, Packed<T>, R, P, N>(
                n_blocks,
                panels.map(|panel| panel.at_row(first + lane)),
                if first + lane == job.rows.start { Ahead::of(job.panels[0].bytes, n_blocks) } else { Ahead::NONE },
                group_32(x, first, W, lane, 0, offset),
            ));
            return;
        }
        let stretch = UNPACK_COLS / P / 32;
        for b in (0..n_blocks).step_by(stretch) {
            let n = stretch.min(n_blocks - b);
            for (p, panel) in panels.iter_mut().enumerate() {
                let mut codes = job.panels[p].codes.as_ptr().add(b * T::BITS * 64);
                if T::BITS != 8 {
                    let unpacked = job.unpacked.as_mut_ptr().add(p * stretch * 512);
                    unpack::<S, T>(n, codes, unpacked);
                    codes = unpacked;
                }
                *panel = panel.with(codes, job.panels[p].meta.as_ptr().add(b * T::META));
            }
            sweep!(job.rows, NMAX, |first, lane, N, W| q32::tile::<S, Unpacked<T>, R, P, N>(
                n,
                panels.map(|panel| panel.at_row(first + lane)),
                Ahead::NONE,
                group_32(x, first, W, lane, b, offset),
            ));
        }
    }
}

impl<const P: usize> PanelJob<'_, P> {
    /// The panels as they are packed.
    fn tile_panels(&mut self) -> [TilePanel; P] {
        let (mut i, panels) = (0, &self.panels);
        self.y.each_mut().map(|y| {
            let panel = panels[i];
            i += 1;
            TilePanel::new(panel.codes.as_ptr(), panel.meta.as_ptr(), y.as_mut_ptr())
        })
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
            width,
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
unsafe fn panel_256<S: Simd, T: Weights, const R: usize, const NMAX: usize, const P: usize>(mut job: PanelJob<'_, P>) {
    let x = job.x;
    let n_blocks = x.n_cols / 256;
    let offset = q256::offset_shift::<T>();
    // SAFETY: as in `panel_32`, with 8 groups of 32 columns per block.
    unsafe {
        let mut panels = job.tile_panels();
        if P == 1 && job.rows.len() <= 2 * NMAX {
            sweep!(job.rows, NMAX, |first, lane, N, W| q256::tile::<S, Packed<T>, R, P, N>(
                n_blocks,
                panels.map(|panel| panel.at_row(first + lane)),
                if first + lane == job.rows.start { Ahead::of(job.panels[0].bytes, 8 * n_blocks) } else { Ahead::NONE },
                group_256(x, first, W, lane, 0, offset),
            ));
            return;
        }
        let stretch = UNPACK_COLS / P / 256;
        for b in (0..n_blocks).step_by(stretch) {
            let n = stretch.min(n_blocks - b);
            for (p, panel) in panels.iter_mut().enumerate() {
                let unpacked = job.unpacked.as_mut_ptr().add(p * stretch * 4096);
                unpack::<S, T>(8 * n, job.panels[p].codes.as_ptr().add(8 * b * T::BITS * 64), unpacked);
                *panel = panel.with(unpacked, job.panels[p].meta.as_ptr().add(b * T::META));
            }
            sweep!(job.rows, NMAX, |first, lane, N, W| q256::tile::<S, Unpacked<T>, R, P, N>(
                n,
                panels.map(|panel| panel.at_row(first + lane)),
                Ahead::NONE,
                group_256(x, first, W, lane, b, offset),
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
            width,
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
unsafe fn panel_float<S: Simd, W: FloatWeights, const R: usize, const NMAX: usize, const P: usize>(
    mut job: PanelJob<'_, P>,
) {
    let x = job.x;
    // SAFETY: k + n <= n_cols, and rows of the batch lie inside `values`, by the caller's promise.
    unsafe {
        let panels = job.tile_panels();
        for k in (0..x.n_cols).step_by(UNPACK_COLS / 4) {
            let n = (UNPACK_COLS / 4).min(x.n_cols - k);
            sweep!(job.rows, NMAX, |first, lane, N, _W| {
                let mut cols = [x.values.as_ptr(); N];
                for (i, col) in cols.iter_mut().enumerate() {
                    *col = col.add((first + lane + i) * x.n_cols + k);
                }
                for panel in panels.map(|panel| panel.at_row(first + lane)) {
                    let weights = panel.codes(k * PANEL_ROWS * W::BYTES);
                    float::tile::<S, W, R, N>(n, weights, &cols, panel.output::<S>(0, 0), PANEL_ROWS);
                }
            });
        }
    }
}

/// # Safety
/// As [`PanelFn`], with `R * S::LANES == 16`.
#[inline(always)]
unsafe fn panel_quantized<S: Simd, T: Weights, const R: usize, const NMAX: usize, const P: usize>(
    job: PanelJob<'_, P>,
) {
    // SAFETY: the caller's.
    unsafe {
        match T::KIND {
            ActivationKind::Q8Block256 => panel_256::<S, T, R, NMAX, P>(job),
            _ => panel_32::<S, T, R, NMAX, P>(job),
        }
    }
}

/// The kernels of one instruction set: a function per weight type, compiled with the features of the set, which an
/// attribute enables.
macro_rules! kernels {
    ($module:ident, $simd:ty, $attr:meta, $r:literal, $nmax:literal) => {
        mod $module {
            use super::*;

            #[$attr]
            unsafe fn quantized<T: Weights, const P: usize>(job: PanelJob<'_, P>) {
                // SAFETY: the caller keeps `PanelFn`'s contract.
                unsafe { panel_quantized::<$simd, T, $r, $nmax, P>(job) }
            }

            #[$attr]
            unsafe fn float<W: FloatWeights, const P: usize>(job: PanelJob<'_, P>) {
                // SAFETY: the caller keeps `PanelFn`'s contract.
                unsafe { panel_float::<$simd, W, $r, $nmax, P>(job) }
            }

            struct Kernel<const P: usize>;

            impl<const P: usize> ForQuantized for Kernel<P> {
                type Out = PanelFn<P>;
                fn call<T: Quantized>(self) -> PanelFn<P> {
                    quantized::<T::Kernel, P>
                }
            }

            pub(super) fn kernel<const P: usize>(ty: TensorType) -> Option<PanelFn<P>> {
                match ty {
                    TensorType::F32 => Some(float::<F32, P>),
                    TensorType::F16 => Some(float::<F16, P>),
                    TensorType::BF16 => Some(float::<BF16, P>),
                    _ => ty.dispatch(Kernel),
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels!(avx2, crate::arch::x86_64::Avx2, target_feature(enable = "avx2,fma,f16c"), 2, 4);
#[cfg(target_arch = "x86_64")]
kernels!(avx_vnni, crate::arch::x86_64::AvxVnni<false>, target_feature(enable = "avx2,fma,f16c,avxvnni"), 2, 4);
// The same in the other encoding, for CPUs with AVX-512, which run it only when asked to, as in tests.
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
#[cfg(target_arch = "aarch64")]
kernels!(baseline, crate::arch::Baseline, inline(never), 4, 4);
#[cfg(target_arch = "aarch64")]
kernels!(dotprod, crate::arch::aarch64::DotProd, target_feature(enable = "dotprod"), 4, 4);
#[cfg(target_arch = "aarch64")]
kernels!(i8mm, crate::arch::aarch64::I8mm, target_feature(enable = "dotprod,i8mm"), 4, 4);
// SSE2 has 16 registers: 8 sums and 4 weights.
#[cfg(target_arch = "x86_64")]
kernels!(baseline, crate::arch::Baseline, inline(never), 4, 2);
// Where there is a better one, this one is for comparison, and its size and compile time count.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
kernels!(portable, crate::arch::Portable, inline(never), 2, 1);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
kernels!(portable, crate::arch::Portable, inline(never), 2, 4);

fn kernel(isa: Isa, ty: TensorType) -> Option<PanelFn<1>> {
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
        #[cfg(target_arch = "aarch64")]
        Isa::DotProd => dotprod::kernel(ty),
        #[cfg(target_arch = "aarch64")]
        Isa::I8mm => i8mm::kernel(ty),
        Isa::Portable => portable::kernel(ty),
        _ => None,
    }
}

/// The kernel for two panels, where it is faster. On AMD cores up to Zen 4, which start one 512-bit product per cycle,
/// it gains nothing.
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "no other has such kernels"))]
fn two_kernel(isa: Isa, ty: TensorType) -> Option<PanelFn<2>> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if crate::isa::is_intel() => avx512::kernel(ty),
        _ => None,
    }
}
