//! The parts that the tiles of `q32` and `q256` share: their shape, their panels, and the steps that both take.
//!
//! A tile computes `N` rows of a batch times `P` panels of 16 weight rows, which are `R` vectors of an instruction set.
//! All loops over these three have constant bounds, so that sums stay in registers.

use super::{Simd, bytes};
use crate::activations::GROUP;
use crate::weights::{PANEL_ROWS, Stored};

/// A value for each row of the batch, panel, and vector of the panel's rows.
pub(crate) type Tile<V, const R: usize, const P: usize, const N: usize> = [[[V; R]; P]; N];

/// Runs the body for each element of a [`Tile`].
macro_rules! each {
    (($n:ident, $p:ident, $r:ident) in ($rows:expr, $panels:expr, $vectors:expr) => $body:expr) => {
        for $n in 0..$rows {
            for $p in 0..$panels {
                for $r in 0..$vectors {
                    $body;
                }
            }
        }
    };
}
pub(crate) use each;

/// Runs the body for `$n` quads from `$first` on: 8 at most. Not a loop: where the compiler does not unroll one, the shifts
/// that take codes apart become branches.
macro_rules! each_quad {
    ($q:ident in $first:expr, $n:expr => $body:expr) => {
        each_quad!(@ $q, $first, $n, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $q:ident, $first:expr, $n:expr, $body:expr, $($i:literal)*) => {
        $(if $i < $n {
            let $q = $first + $i;
            $body;
        })*
    };
}
pub(crate) use each_quad;

/// What a tile reads and writes of one panel.
#[derive(Clone, Copy)]
pub(crate) struct TilePanel {
    pub(crate) codes: *const u8,
    /// Scales and minimums.
    pub(crate) meta: *const u8,
    /// `[rows][16]`
    pub(crate) y: *mut f32,
}

impl TilePanel {
    /// The same, from row `row` of `y` on.
    #[inline(always)]
    pub(crate) fn at_row(self, row: usize) -> Self {
        Self { y: self.y.wrapping_add(row * PANEL_ROWS), ..self }
    }

    /// Address of vector `r` of output row `n`.
    #[inline(always)]
    pub(crate) fn output<S: Simd>(self, n: usize, r: usize) -> *mut f32 {
        self.y.wrapping_add(n * PANEL_ROWS + r * S::LANES)
    }
}

/// The codes of 32 columns of a group of interleaved activation rows: `[8 quads][width][4]`.
#[derive(Clone, Copy)]
pub(crate) struct Quads {
    codes: *const i8,
    width: usize,
}

impl Quads {
    /// The quads from column `32 * g` on, where `codes` are those of a group of `width` rows. Prefetches the quads that
    /// a full group will need four such steps later: they stream from the L2 cache, and at the start of a group the
    /// hardware prefetcher starts too late.
    ///
    /// # Safety
    /// The CPU has `S`.
    #[inline(always)]
    pub(crate) unsafe fn of<S: Simd>(codes: *const i8, width: usize, g: usize) -> Self {
        let codes = codes.wrapping_add(g * 32 * width);
        if width == GROUP {
            for line in 0..32 * GROUP / 64 {
                // SAFETY: the caller's; a prefetch reads nothing.
                unsafe { S::prefetch_near(codes.cast::<u8>().wrapping_add(4 * 32 * GROUP + line * 64)) }
            }
        }
        Self { codes, width }
    }

    /// Quad `q` of row `n`, in every lane.
    ///
    /// # Safety
    /// There is this quad, and the CPU has `S`.
    #[inline(always)]
    pub(crate) unsafe fn get<S: Simd>(self, q: usize, n: usize) -> S::B {
        // SAFETY: the caller's.
        unsafe { S::splat4(self.codes.add((q * self.width + n) * 4)) }
    }
}

/// Quad `q` of the weights of each panel, whose groups of 32 columns `groups` points at.
///
/// # Safety
/// As [`bytes`].
#[inline(always)]
pub(crate) unsafe fn quad_of_panels<S: Simd, C: Stored, const R: usize, const P: usize>(
    groups: [*const u8; P],
    q: usize,
) -> [[S::B; R]; P] {
    // SAFETY: the caller's.
    unsafe {
        let mut w = [[S::load_b(groups[0]); R]; P];
        for (group, w) in groups.iter().zip(&mut w) {
            for (r, w) in w.iter_mut().enumerate() {
                *w = bytes::<S, C>(*group, q, r);
            }
        }
        w
    }
}

/// Adds the products of `n_quads` quads of 32 columns (a constant after inlining) from quad `first` on, with unsigned weights.
///
/// # Safety
/// As [`bytes`] and [`Quads::get`], for every one of these quads.
#[inline(always)]
pub(crate) unsafe fn dot_quads<S: Simd, C: Stored, const R: usize, const P: usize, const N: usize>(
    acc: &mut Tile<S::Acc, R, P, N>,
    first: usize,
    n_quads: usize,
    groups: [*const u8; P],
    x: Quads,
) {
    // SAFETY: the caller's.
    unsafe {
        each_quad!(q in first, n_quads => {
            let w = quad_of_panels::<S, C, R, P>(groups, q);
            for n in 0..N {
                let xq = x.get::<S>(q, n);
                for p in 0..P {
                    for r in 0..R {
                        acc[n][p][r] = S::dot4(acc[n][p][r], w[p][r], xq);
                    }
                }
            }
        });
    }
}

/// How far ahead of its loads a kernel prefetches weights that it reads once, in bytes. With hardware prefetching
/// alone, such a stream reaches half of the memory bandwidth.
const PREFETCH_AHEAD: usize = 8192;

/// The stream of weights that a tile will need after those it reads now, prefetched block by block.
///
/// Panels are contiguous and follow one another, so the share of a block is a fixed number of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    from: *const u8,
    block_bytes: usize,
}

impl Ahead {
    /// No prefetching: the weights are in the cache.
    pub(crate) const NONE: Self = Self { from: std::ptr::null(), block_bytes: 0 };

    /// For a panel that is processed in `n_blocks` blocks.
    pub(crate) fn of(panel: &[u8], n_blocks: usize) -> Self {
        let block_bytes = panel.len().div_ceil(n_blocks.max(1));
        Self { from: panel.as_ptr().wrapping_add(PREFETCH_AHEAD), block_bytes }
    }

    /// Prefetches the share of block `b`.
    ///
    /// # Safety
    /// The CPU has `S`.
    #[inline(always)]
    pub(crate) unsafe fn prefetch<S: Simd>(self, b: usize) {
        let first = self.from.wrapping_add(b * self.block_bytes);
        for line in 0..self.block_bytes.div_ceil(64) {
            // SAFETY: the caller's; a prefetch reads nothing.
            unsafe { S::prefetch(first.wrapping_add(64 * line)) }
        }
    }
}
