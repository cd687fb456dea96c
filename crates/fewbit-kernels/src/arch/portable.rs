//! Vectors as arrays of plain numbers, for CPUs that have no implementation of their own.
//!
//! No instruction is named here. Every method is the same small operation on each element, which LLVM turns into the
//! vector instructions that all CPUs of the target have. Three choices help it:
//!
//! - Bytes are held as 16-bit elements, two bytes in each, because small CPUs multiply 16-bit elements and
//!   not bytes: the low bytes are masked out, the high ones shifted down, and both products are added up in 16
//!   bits as AVX2 does, under the same bound.
//! - Eight lanes: arrays of up to 16 bytes travel as integers and never become vectors, and with 16 lanes the
//!   compiler gives up halfway (measured: a third of the speed).
//! - Where the target has no fused multiply-add, `f32::mul_add` is a call per element. [`fused`] is the same
//!   value from float64 arithmetic, without branches.

use crate::generic::Simd;
use crate::math::fused;
use std::array::from_fn;

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 8;

/// The low byte of a pair, as the signed 16-bit number that is multiplied.
#[inline(always)]
fn low(pair: u16) -> i16 {
    i16::from(pair as i8)
}

/// The high byte of a pair, likewise.
#[inline(always)]
fn high(pair: u16) -> i16 {
    (pair as i16) >> 8
}

/// Adds the products of the low bytes and of the high bytes. The caller guarantees that the sums fit into 16 bits.
#[inline(always)]
fn multiply_bytes(
    acc: [i16; 2 * LANES],
    [w_low, w_high]: [[i16; 2 * LANES]; 2],
    x: [u16; 2 * LANES],
) -> [i16; 2 * LANES] {
    from_fn(|i| {
        let sum = acc[i].wrapping_add(w_low[i].wrapping_mul(low(x[i])));
        sum.wrapping_add(w_high[i].wrapping_mul(high(x[i])))
    })
}

/// Adds two products to every lane: one instruction on most CPUs, which LLVM finds.
#[inline(always)]
fn pairs(acc: [i32; LANES], a: [i16; 2 * LANES], b: [i16; 2 * LANES]) -> [i32; LANES] {
    let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
    from_fn(|i| acc[i].wrapping_add(product(2 * i) + product(2 * i + 1)))
}

/// The exact value of an f16.
///
/// Exponent and mantissa are moved to their f32 positions, and multiplying by 2^112 corrects the exponent, also for
/// subnormal numbers. Infinity and NaN get the largest exponent.
#[inline(always)]
fn half_to_f32(half: u16) -> f32 {
    const INFINITY: u32 = 0x7C00 << 13;
    let magnitude = u32::from(half & 0x7FFF) << 13;
    let scaled = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let special = if magnitude >= INFINITY { 0xFF << 23 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | u32::from(half & 0x8000) << 16)
}

impl Simd for Portable {
    const LANES: usize = LANES;
    const NARROW_SUMS: bool = true;
    const I8_BIAS: i32 = 0;

    /// Pairs of bytes, the first one low.
    type B = [u16; 2 * LANES];
    type Acc = [i16; 2 * LANES];
    type I = [i32; LANES];
    type F = [f32; LANES];
    /// The low bytes and the high bytes.
    type W8 = [[i16; 2 * LANES]; 2];
    /// Each scale twice.
    type Scale = [i16; 2 * LANES];

    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_near(_p: *const u8) {}
    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> Self::B {
        // SAFETY: the caller's.
        let pairs = unsafe { p.cast::<[u16; 2 * LANES]>().read_unaligned() };
        pairs.map(u16::from_le)
    }
    #[inline(always)]
    unsafe fn store_b(p: *mut u8, a: Self::B) {
        // SAFETY: the caller's.
        unsafe { p.cast::<[u16; 2 * LANES]>().write_unaligned(a.map(u16::to_le)) }
    }
    #[inline(always)]
    unsafe fn and_b(a: Self::B, mask: u8) -> Self::B {
        let mask = u16::from_ne_bytes([mask; 2]);
        a.map(|a| a & mask)
    }
    #[inline(always)]
    unsafe fn or_b(a: Self::B, b: Self::B) -> Self::B {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn shr16<const N: u32>(a: Self::B) -> Self::B {
        a.map(|a| a >> N)
    }
    #[inline(always)]
    unsafe fn shl16<const N: u32>(a: Self::B) -> Self::B {
        a.map(|a| a << N)
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], i: Self::B) -> Self::B {
        i.map(|pair| u16::from_le_bytes(pair.to_le_bytes().map(|i| table[usize::from(i & 15)])))
    }
    #[inline(always)]
    unsafe fn splat4(p: *const i8) -> Self::B {
        // SAFETY: the caller's.
        let pairs = unsafe { p.cast::<[u16; 2]>().read_unaligned() }.map(u16::from_le);
        from_fn(|i| pairs[i % 2])
    }

    #[inline(always)]
    unsafe fn acc0() -> Self::Acc {
        [0; 2 * LANES]
    }
    #[inline(always)]
    unsafe fn acc_from(i: Self::I) -> Self::Acc {
        from_fn(|at| if at % 2 == 0 { i[at / 2] as i16 } else { 0 })
    }
    #[inline(always)]
    unsafe fn dot4(acc: Self::Acc, w: Self::B, x: Self::B) -> Self::Acc {
        multiply_bytes(acc, [w.map(|w| (w & 0xFF) as i16), w.map(|w| (w >> 8) as i16)], x)
    }
    #[inline(always)]
    unsafe fn widen(acc: Self::Acc) -> Self::I {
        from_fn(|i| i32::from(acc[2 * i]) + i32::from(acc[2 * i + 1]))
    }
    #[inline(always)]
    unsafe fn widen_scaled(acc: Self::Acc, scale: Self::Scale) -> Self::I {
        pairs([0; LANES], acc, scale)
    }
    #[inline(always)]
    unsafe fn scale(i: Self::I) -> Self::Scale {
        from_fn(|at| i[at / 2] as i16)
    }
    #[inline(always)]
    unsafe fn prepare_i8(w: Self::B) -> Self::W8 {
        [w.map(low), w.map(high)]
    }
    #[inline(always)]
    unsafe fn dot4_i8(acc: Self::I, [w_low, w_high]: Self::W8, x: Self::B) -> Self::I {
        pairs(pairs(acc, w_low, x.map(low)), w_high, x.map(high))
    }
    #[inline(always)]
    unsafe fn dot4_signed(acc: Self::Acc, w: Self::W8, x: Self::B) -> Self::Acc {
        multiply_bytes(acc, w, x)
    }

    #[inline(always)]
    unsafe fn i0() -> Self::I {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> Self::I {
        [v; LANES]
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    unsafe fn shl_i<const N: u32>(a: Self::I) -> Self::I {
        a.map(|a| a << N)
    }
    #[inline(always)]
    unsafe fn shr_i<const N: u32>(a: Self::I) -> Self::I {
        a.map(|a| (a as u32 >> N) as i32)
    }
    #[inline(always)]
    unsafe fn and_low_nibble(a: Self::I) -> Self::I {
        a.map(|a| a & 15)
    }
    #[inline(always)]
    unsafe fn load_u8_i(p: *const u8) -> Self::I {
        // SAFETY: the caller's.
        unsafe { p.cast::<[u8; LANES]>().read() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn load_i8_i(p: *const u8) -> Self::I {
        // SAFETY: the caller's.
        unsafe { p.cast::<[i8; LANES]>().read() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn pair16(a: Self::I, b: Self::I) -> Self::B {
        from_fn(|i| if i % 2 == 0 { a[i / 2] as u16 } else { b[i / 2] as u16 })
    }
    #[inline(always)]
    unsafe fn dot2_i16(acc: Self::I, a: Self::B, b: Self::B) -> Self::I {
        pairs(acc, a.map(|a| a as i16), b.map(|b| b as i16))
    }

    #[inline(always)]
    unsafe fn f0() -> Self::F {
        [0.0; LANES]
    }
    #[inline(always)]
    unsafe fn splat_f(v: f32) -> Self::F {
        [v; LANES]
    }
    #[inline(always)]
    unsafe fn load_f(p: *const f32) -> Self::F {
        // SAFETY: the caller's.
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_f(p: *mut f32, a: Self::F) {
        // SAFETY: the caller's.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(a) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: the caller's.
        unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(|half| half_to_f32(u16::from_le(half)))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: the caller's.
        let halves = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        halves.map(|half| f32::from_bits(u32::from(u16::from_le(half)) << 16))
    }
    #[inline(always)]
    unsafe fn to_f(a: Self::I) -> Self::F {
        a.map(|a| a as f32)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        from_fn(|i| fused(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        from_fn(|i| fused(-a[i], b[i], c[i]))
    }
}
