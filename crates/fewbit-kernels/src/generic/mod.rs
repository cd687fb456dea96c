//! The kernels, written once over a small vector trait.
//!
//! [`Simd`] is what an instruction set has to provide; the files in `arch/` are thin implementations of it. The
//! algorithms here keep the order of float operations that `fewbit_quant::dot` defines, so every instruction set gives
//! the same bits. Vector lanes are output rows (matrix products) or positions and head elements (attention), never
//! partial sums of one output.

use crate::weights::{PANEL_ROWS, Packed, Stored, Weights};

pub(crate) mod attention;
pub(crate) mod float;
pub(crate) mod q256;
pub(crate) mod q32;
pub(crate) mod tile;

/// One instruction set. All vectors have [`LANES`](Self::LANES) 32-bit lanes.
///
/// # Safety
/// Every method may be called only on a CPU that has the instruction set; pointers must be valid for the
/// width that the method reads or writes (no alignment is needed). Methods are `inline(always)` and get
/// their instructions from the `target_feature` function that they end up in.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Simd: Copy + 'static {
    /// 32-bit lanes of a vector: 4, 8 or 16.
    const LANES: usize;
    /// Whether [`dot4`](Self::dot4) adds up in 16-bit lanes, so that sums need widening before they overflow.
    const NARROW_SUMS: bool;
    /// The number that [`dot4_i8`](Self::dot4_i8) adds to every weight.
    const I8_BIAS: i32;
    /// Whether [`dot4`](Self::dot4) takes weights of -128..=127, so that it multiplies signed ones too.
    const SIGNED_DOT: bool = false;
    /// Whether [`dot4_lane`](Self::dot4_lane) is there: one load of activations serves four products.
    const HAS_LANES: bool = false;
    /// Whether [`dot_pairs`](Self::dot_pairs) is there, the product of two weight rows with two rows of the batch.
    const HAS_PAIRS: bool = false;

    /// `4 * LANES` bytes.
    type B: Copy;
    /// Sums of [`dot4`](Self::dot4).
    type Acc: Copy;
    /// `LANES` i32.
    type I: Copy;
    /// `LANES` f32.
    type F: Copy;
    /// Signed weight bytes, prepared for [`dot4_i8`](Self::dot4_i8).
    type W8: Copy;
    /// An integer scale per lane, prepared for [`widen_scaled`](Self::widen_scaled).
    type Scale: Copy;

    /// Prefetches a cache line of memory that will be read soon. Any address is allowed.
    unsafe fn prefetch(p: *const u8);
    /// Prefetches a cache line that will be read within some tens of cycles.
    unsafe fn prefetch_near(p: *const u8);
    unsafe fn load_b(p: *const u8) -> Self::B;
    unsafe fn store_b(p: *mut u8, a: Self::B);
    unsafe fn and_b(a: Self::B, mask: u8) -> Self::B;
    unsafe fn or_b(a: Self::B, b: Self::B) -> Self::B;
    /// Shifts 16-bit lanes; callers mask off the bits that cross into the next byte.
    unsafe fn shr16<const N: u32>(a: Self::B) -> Self::B;
    unsafe fn shl16<const N: u32>(a: Self::B) -> Self::B;
    /// `table[i]` for every byte `i`, all of which are below 16.
    unsafe fn lookup(table: &[u8; 16], i: Self::B) -> Self::B;
    /// Four bytes, repeated in every 32-bit lane.
    unsafe fn splat4(p: *const i8) -> Self::B;

    /// Adds the products of 8 columns of two weight rows and two rows of the batch, each of 8 bytes after the other: `[0]`
    /// and `[1]` are those of the first weight row. Only where [`HAS_PAIRS`](Self::HAS_PAIRS) says so, as what follows.
    #[inline(always)]
    unsafe fn dot_pairs(_acc: Self::Acc, _w: Self::B, _x: Self::B) -> Self::Acc {
        unreachable!("no products of pairs")
    }
    /// Interleaves the lanes of `a` and `b`.
    #[inline(always)]
    unsafe fn zip(_a: Self::B, _b: Self::B) -> [Self::B; 2] {
        unreachable!("no pairs")
    }
    /// The even and the odd lanes of `a` and `b`: the inverse of [`zip`](Self::zip).
    #[inline(always)]
    unsafe fn unzip(_a: Self::B, _b: Self::B) -> [Self::B; 2] {
        unreachable!("no pairs")
    }
    /// [`unzip`](Self::unzip) of sums.
    #[inline(always)]
    unsafe fn unzip_i(_a: Self::I, _b: Self::I) -> [Self::I; 2] {
        unreachable!("no pairs")
    }
    /// Every scale twice: those of the lower half of the lanes, and those of the upper half.
    #[inline(always)]
    unsafe fn double(_scale: Self::Scale) -> [Self::Scale; 2] {
        unreachable!("no pairs")
    }
    /// Eight bytes, in every pair of lanes.
    #[inline(always)]
    unsafe fn load_two(_p: *const i8) -> Self::B {
        unreachable!("no pairs")
    }
    /// Two integers, in every pair of lanes.
    #[inline(always)]
    unsafe fn splat_two(_p: *const i32) -> Self::I {
        unreachable!("no pairs")
    }

    unsafe fn acc0() -> Self::Acc;
    /// Sums that start at `i`. Only for wide sums.
    unsafe fn acc_from(i: Self::I) -> Self::Acc;
    /// Adds `w[4i..4i+4] . x[4i..4i+4]` to lane `i`; `w` unsigned, `x` in -127..=127.
    unsafe fn dot4(acc: Self::Acc, w: Self::B, x: Self::B) -> Self::Acc;
    /// As [`dot4`](Self::dot4) with quad `LANE` of the four in `x`. Only where [`HAS_LANES`](Self::HAS_LANES) says so.
    #[inline(always)]
    unsafe fn dot4_lane<const LANE: u32>(_acc: Self::Acc, _w: Self::B, _x: Self::B) -> Self::Acc {
        unreachable!("no products with a lane")
    }
    unsafe fn widen(acc: Self::Acc) -> Self::I;
    unsafe fn widen_scaled(acc: Self::Acc, scale: Self::Scale) -> Self::I;
    /// Adds [`widen_scaled`](Self::widen_scaled) of sums that fit into 16 bits to `i`.
    #[inline(always)]
    unsafe fn add_small_scaled(i: Self::I, acc: Self::Acc, scale: Self::Scale) -> Self::I {
        // SAFETY: the caller's.
        unsafe { Self::add_i(i, Self::widen_scaled(acc, scale)) }
    }
    /// Prepares scales in -128..=127.
    unsafe fn scale(i: Self::I) -> Self::Scale;
    unsafe fn prepare_i8(w: Self::B) -> Self::W8;
    /// As [`dot4`](Self::dot4) for signed weights, with [`I8_BIAS`](Self::I8_BIAS) added to each.
    unsafe fn dot4_i8(acc: Self::I, w: Self::W8, x: Self::B) -> Self::I;
    /// As [`dot4_i8`](Self::dot4_i8) into the sums of [`dot4`](Self::dot4): one step, where they are narrow.
    unsafe fn dot4_signed(acc: Self::Acc, w: Self::W8, x: Self::B) -> Self::Acc;

    unsafe fn i0() -> Self::I;
    unsafe fn splat_i(v: i32) -> Self::I;
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn shl_i<const N: u32>(a: Self::I) -> Self::I;
    unsafe fn shr_i<const N: u32>(a: Self::I) -> Self::I;
    unsafe fn and_low_nibble(a: Self::I) -> Self::I;
    /// `LANES` unsigned bytes, widened.
    unsafe fn load_u8_i(p: *const u8) -> Self::I;
    /// `LANES` signed bytes, widened.
    unsafe fn load_i8_i(p: *const u8) -> Self::I;
    /// Per lane, `a` (low half) and `b` (high half) as two i16.
    unsafe fn pair16(a: Self::I, b: Self::I) -> Self::B;
    /// Adds `a.lo * b.lo + a.hi * b.hi` of i16 halves to each lane.
    unsafe fn dot2_i16(acc: Self::I, a: Self::B, b: Self::B) -> Self::I;

    unsafe fn f0() -> Self::F;
    unsafe fn splat_f(v: f32) -> Self::F;
    unsafe fn load_f(p: *const f32) -> Self::F;
    unsafe fn store_f(p: *mut f32, a: Self::F);
    unsafe fn load_f16(p: *const u16) -> Self::F;
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    unsafe fn to_f(a: Self::I) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `-(a * b) + c`, rounded once.
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
}

/// The weight bytes of quad `q`, as products multiply them; the arguments are those of [`quad`].
#[inline(always)]
pub(crate) unsafe fn bytes<S: Simd, C: Stored>(codes: *const u8, q: usize, r: usize) -> S::B {
    // SAFETY: the caller's; codes of types with tables have at most 4 bits.
    unsafe {
        if S::HAS_PAIRS && C::ZIPPED {
            let [low, high] = zipped_bytes::<S, C>(codes, q / 2 * 2, r);
            return S::unzip(low, high)[q % 2];
        }
        let codes = quad::<S, C>(codes, q, r);
        match &C::Of::TABLE {
            Some(table) if C::BITS != 8 => S::lookup(table, codes),
            _ => codes,
        }
    }
}

/// The weight bytes of quads `q` and `q + 1`, where `q` is even, as [`Simd::dot_pairs`] takes them: those of the first half
/// of the rows, and of the second.
#[inline(always)]
pub(crate) unsafe fn zipped_bytes<S: Simd, C: Stored>(codes: *const u8, q: usize, r: usize) -> [S::B; 2] {
    // SAFETY: the caller's.
    unsafe {
        match C::ZIPPED {
            true => [quad::<S, C>(codes, q, r), quad::<S, C>(codes, q + 1, r)],
            false => S::zip(bytes::<S, C>(codes, q, r), bytes::<S, C>(codes, q + 1, r)),
        }
    }
}

/// Number of steps of [`Simd::dot4`] before sums must be widened, for codes up to `code_max`; at most `limit`.
///
/// A 16-bit lane of `dot4` takes two products per step.
pub(crate) const fn steps_before_widen(narrow: bool, code_max: usize, limit: usize) -> usize {
    if !narrow {
        return limit;
    }
    let mut steps = limit;
    while !fit_16_bits(2 * steps, code_max) {
        steps /= 2;
    }
    steps
}

/// Whether the sum of this many products with codes up to `code_max` fits into 16 bits.
pub(crate) const fn fit_16_bits(products: usize, code_max: usize) -> bool {
    products * 127 * code_max <= i16::MAX as usize
}

/// The layout of the codes of 32 columns of a panel, and how to read four of them for `LANES` rows.
///
/// `q` counts quads (groups of four columns), 0..8. A full vector covers `[rows][4 columns]`.
///
/// ```text
/// 4 bits   [4][16 rows][4] bytes; byte vector j holds quad j in low nibbles, quad j + 4 in high nibbles
/// 1 bit    [16 rows][4] bytes; bit q of a byte belongs to quad q
/// 2 bits   [2][16 rows][4] bytes; vector q / 4, bits 2 * (q % 4)
/// 8 bits   [8][16 rows][4] bytes
/// ```
/// Types of 5, 6 and 3 bits are the 4-, 4- and 2-bit plane followed by a 1-, 2- and 1-bit plane.
#[inline(always)]
pub(crate) unsafe fn quad<S: Simd, C: Stored>(codes: *const u8, q: usize, r: usize) -> S::B {
    let at = r * 4 * S::LANES;
    // SAFETY: the caller passes a pointer to C::BITS * 64 bytes (`[BITS / 8 * 32][16 rows]`), q < 8, and
    // r * LANES < 16, so every load below stays inside them.
    unsafe {
        match C::BITS {
            8 => S::load_b(codes.add(q * 64 + at)),
            4 => nibble::<S>(codes.add(q % 4 * 64 + at), q),
            5 => {
                let high = S::load_b(codes.add(256 + at));
                S::or_b(nibble::<S>(codes.add(q % 4 * 64 + at), q), bit::<S>(high, q, 4))
            }
            6 => {
                let high = S::load_b(codes.add(256 + q / 4 * 64 + at));
                S::or_b(nibble::<S>(codes.add(q % 4 * 64 + at), q), two_bits::<S>(high, q, 4))
            }
            2 => two_bits::<S>(S::load_b(codes.add(q / 4 * 64 + at)), q, 0),
            3 => {
                let high = S::load_b(codes.add(128 + at));
                let low = two_bits::<S>(S::load_b(codes.add(q / 4 * 64 + at)), q, 0);
                S::or_b(low, bit::<S>(high, q, 2))
            }
            _ => unreachable!(),
        }
    }
}

#[inline(always)]
unsafe fn nibble<S: Simd>(p: *const u8, q: usize) -> S::B {
    // SAFETY: the caller's.
    unsafe {
        let v = S::load_b(p);
        S::and_b(if q < 4 { v } else { S::shr16::<4>(v) }, 15)
    }
}

/// Moves bit `q` of each byte to bit `to`, and clears the rest.
#[inline(always)]
unsafe fn bit<S: Simd>(v: S::B, q: usize, to: usize) -> S::B {
    // SAFETY: the caller's.
    unsafe { S::and_b(shift::<S>(v, q as isize - to as isize), 1 << to) }
}

/// Moves the bit pair `q % 4` of each byte to bits `to` and `to + 1`, and clears the rest.
#[inline(always)]
unsafe fn two_bits<S: Simd>(v: S::B, q: usize, to: usize) -> S::B {
    // SAFETY: the caller's.
    unsafe { S::and_b(shift::<S>(v, 2 * (q % 4) as isize - to as isize), 3 << to) }
}

/// Shifts right by `by` (left if negative); `by` is a constant after inlining.
#[inline(always)]
unsafe fn shift<S: Simd>(v: S::B, by: isize) -> S::B {
    // SAFETY: the caller's.
    unsafe {
        match by {
            0 => v,
            1 => S::shr16::<1>(v),
            2 => S::shr16::<2>(v),
            3 => S::shr16::<3>(v),
            4 => S::shr16::<4>(v),
            5 => S::shr16::<5>(v),
            6 => S::shr16::<6>(v),
            7 => S::shr16::<7>(v),
            -1 => S::shl16::<1>(v),
            -2 => S::shl16::<2>(v),
            -3 => S::shl16::<3>(v),
            -4 => S::shl16::<4>(v),
            _ => unreachable!(),
        }
    }
}

/// Unpacks the codes of `n` groups of 32 columns of a panel to the bytes of [`bytes`] (the 8-bit layout above), or of
/// [`zipped_bytes`] on instruction sets with pairs.
#[inline(always)]
pub(crate) unsafe fn unpack<S: Simd, T: Weights>(n: usize, from: *const u8, to: *mut u8) {
    for g in 0..n {
        for q in 0..8 {
            for r in 0..PANEL_ROWS / S::LANES {
                // SAFETY: the caller passes n * BITS * 64 bytes to read and n * 512 to write.
                unsafe {
                    let codes = from.add(g * T::BITS * 64);
                    let v = match S::HAS_PAIRS {
                        true => zipped_bytes::<S, Packed<T>>(codes, q / 2 * 2, r)[q % 2],
                        false => bytes::<S, Packed<T>>(codes, q, r),
                    };
                    S::store_b(to.add(g * 512 + q * 64 + r * 4 * S::LANES), v);
                }
            }
        }
    }
}
