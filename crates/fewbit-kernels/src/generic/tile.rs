//! The parts that the tiles of `q32` and `q256` share: their shape, their panels, and the steps that both take.
//!
//! A tile computes `N` rows of a batch times `P` panels of 16 weight rows, which are `R` vectors of an instruction set.
//! All loops over these three have constant bounds, so that sums stay in registers.

use super::{Simd, bytes, zipped_bytes};
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

/// What a tile reads and writes of one panel, or of the half of it with its last eight rows.
#[derive(Clone, Copy)]
pub(crate) struct TilePanel {
    codes: *const u8,
    /// Scales and minimums.
    meta: *const u8,
    /// `[rows][16]`
    y: *mut f32,
    /// The first weight row.
    row: usize,
}

impl TilePanel {
    pub(crate) fn new(codes: *const u8, meta: *const u8, y: *mut f32) -> Self {
        Self { codes, meta, y, row: 0 }
    }

    /// The same with other codes and scales.
    pub(crate) fn with(self, codes: *const u8, meta: *const u8) -> Self {
        Self { codes, meta, ..self }
    }

    /// The codes of 32 columns, of which `before` bytes are before them.
    #[inline(always)]
    pub(crate) fn codes(self, before: usize) -> *const u8 {
        self.codes.wrapping_add(before + 4 * self.row)
    }

    /// The f16 scales that `before` bytes are before.
    #[inline(always)]
    pub(crate) fn floats(self, before: usize) -> *const u8 {
        self.meta.wrapping_add(before + 2 * self.row)
    }

    /// The integer scales that `before` bytes are before.
    #[inline(always)]
    pub(crate) fn ints(self, before: usize) -> *const u8 {
        self.meta.wrapping_add(before + self.row)
    }

    /// The same, from row `row` of `y` on.
    #[inline(always)]
    pub(crate) fn at_row(self, row: usize) -> Self {
        Self { y: self.y.wrapping_add(row * PANEL_ROWS), ..self }
    }

    /// Address of vector `r` of output row `n`.
    #[inline(always)]
    pub(crate) fn output<S: Simd>(self, n: usize, r: usize) -> *mut f32 {
        self.y.wrapping_add(n * PANEL_ROWS + self.row + r * S::LANES)
    }
}

/// Whether a tile of `n` rows of the batch takes the weight rows of a panel in two halves: 128-bit registers would
/// need 16 sums, next to as many outputs.
pub(crate) const fn is_halved<S: Simd>(n: usize) -> bool {
    S::LANES == 4 && n > 2
}

/// Both halves of the weight rows, with what to prefetch.
#[inline(always)]
pub(crate) fn halves<const P: usize>(panels: [TilePanel; P], ahead: Ahead) -> [([TilePanel; P], Ahead); 2] {
    [(panels, ahead), (panels.map(|panel| TilePanel { row: PANEL_ROWS / 2, ..panel }), Ahead::NONE)]
}

/// The codes of 32 columns of a group of interleaved activation rows: `[8 quads][width][4]`.
#[derive(Clone, Copy)]
pub(crate) struct Quads {
    codes: *const i8,
    pub(crate) width: usize,
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

    /// Quad `q` of row `n` and the three that follow it in memory: of the next rows, or, where there is one row, the next
    /// quads.
    ///
    /// # Safety
    /// There are these quads, and the CPU has `S`, whose vectors have four lanes.
    #[inline(always)]
    pub(crate) unsafe fn four<S: Simd>(self, q: usize, n: usize) -> S::B {
        // SAFETY: the caller's.
        unsafe { S::load_b(self.codes.add((q * self.width + n) * 4).cast()) }
    }

    /// Quad `q` of rows `n` and `n + 1`, in the first two lanes.
    ///
    /// # Safety
    /// There are these quads, and the CPU has `S`.
    #[inline(always)]
    unsafe fn two<S: Simd>(self, q: usize, n: usize) -> S::B {
        // SAFETY: the caller's.
        unsafe { S::load_two(self.codes.add((q * self.width + n) * 4)) }
    }
}

/// Whether the sums of a tile of `n` rows are those of pairs: of rows `n` and `n + 1` of the batch, where `n` is even, the
/// vector at `n` has the sums of the first half of the weight rows, `[row][2]`, and that at `n + 1` those of the second.
pub(crate) const fn is_paired<S: Simd>(n: usize) -> bool {
    S::HAS_PAIRS && n.is_multiple_of(2)
}

/// The sums that a tile of `N` rows begins with: integer `n` of those at `p`, for every weight row.
///
/// # Safety
/// `p` has `N` integers, and the CPU has `S`.
#[inline(always)]
pub(crate) unsafe fn begin<S: Simd, const N: usize>(p: *const i32, n: usize) -> S::I {
    // SAFETY: the caller's.
    unsafe {
        match is_paired::<S>(N) {
            true => S::splat_two(p.add(n / 2 * 2)),
            false => S::splat_i(*p.add(n)),
        }
    }
}

/// The sums of each row of the batch, where they are those of pairs.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
pub(crate) unsafe fn apart<S: Simd, const R: usize, const P: usize, const N: usize>(sums: &mut Tile<S::I, R, P, N>) {
    if is_paired::<S>(N) {
        for n in (0..N).step_by(2) {
            for p in 0..P {
                for r in 0..R {
                    // SAFETY: the caller's.
                    [sums[n][p][r], sums[n + 1][p][r]] = unsafe { S::unzip_i(sums[n][p][r], sums[n + 1][p][r]) };
                }
            }
        }
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
        if is_paired::<S>(N) {
            each_quad!(i in 0, n_quads / 2 => {
                dot_two_quads::<S, C, R, P, N>(acc, first + 2 * i, groups, x);
            });
            return;
        }
        each_quad!(q in first, n_quads => {
            let w = quad_of_panels::<S, C, R, P>(groups, q);
            if S::HAS_LANES && N.is_multiple_of(4) {
                for n in (0..N).step_by(4) {
                    let xs = x.four::<S>(q, n);
                    for p in 0..P {
                        for r in 0..R {
                            acc[n][p][r] = S::dot4_lane::<0>(acc[n][p][r], w[p][r], xs);
                            acc[n + 1][p][r] = S::dot4_lane::<1>(acc[n + 1][p][r], w[p][r], xs);
                            acc[n + 2][p][r] = S::dot4_lane::<2>(acc[n + 2][p][r], w[p][r], xs);
                            acc[n + 3][p][r] = S::dot4_lane::<3>(acc[n + 3][p][r], w[p][r], xs);
                        }
                    }
                }
            } else if S::HAS_LANES && x.width == 1 {
                let xs = x.four::<S>(q / 4 * 4, 0);
                for p in 0..P {
                    for r in 0..R {
                        acc[0][p][r] = dot_lane::<S>(acc[0][p][r], w[p][r], xs, q % 4);
                    }
                }
            } else {
                for n in 0..N {
                    let xq = x.get::<S>(q, n);
                    for p in 0..P {
                        for r in 0..R {
                            acc[n][p][r] = S::dot4(acc[n][p][r], w[p][r], xq);
                        }
                    }
                }
            }
        });
    }
}

/// Adds the products of quads `q` and `q + 1`, in pairs.
///
/// # Safety
/// As [`dot_quads`]; `N` is even and the CPU has pairs.
#[inline(always)]
unsafe fn dot_two_quads<S: Simd, C: Stored, const R: usize, const P: usize, const N: usize>(
    acc: &mut Tile<S::Acc, R, P, N>,
    q: usize,
    groups: [*const u8; P],
    x: Quads,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut xs = [x.two::<S>(q, 0); N];
        if N.is_multiple_of(4) {
            for n in (0..N).step_by(4) {
                [xs[n], xs[n + 2]] = S::zip(x.four::<S>(q, n), x.four::<S>(q + 1, n));
            }
        } else {
            for n in (0..N).step_by(2) {
                [xs[n], _] = S::zip(x.two::<S>(q, n), x.two::<S>(q + 1, n));
            }
        }
        for p in 0..P {
            for r in 0..R {
                let [low, high] = zipped_bytes::<S, C>(groups[p], q, r);
                for n in (0..N).step_by(2) {
                    acc[n][p][r] = S::dot_pairs(acc[n][p][r], low, xs[n]);
                    acc[n + 1][p][r] = S::dot_pairs(acc[n + 1][p][r], high, xs[n]);
                }
            }
        }
    }
}

/// [`Simd::dot4_lane`]; `lane` is a constant after inlining.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
pub(crate) unsafe fn dot_lane<S: Simd>(acc: S::Acc, w: S::B, x: S::B, lane: usize) -> S::Acc {
    // SAFETY: the caller's.
    unsafe {
        match lane {
            0 => S::dot4_lane::<0>(acc, w, x),
            1 => S::dot4_lane::<1>(acc, w, x),
            2 => S::dot4_lane::<2>(acc, w, x),
            _ => S::dot4_lane::<3>(acc, w, x),
        }
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
