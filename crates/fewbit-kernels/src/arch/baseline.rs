//! 128-bit registers, which every x86-64 CPU (SSE2) and every aarch64 CPU (NEON) has.
//!
//! Neither has a dot product of bytes at this level, but both multiply 16-bit integers. So each 16-bit lane holds two
//! bytes: the low ones are masked out, the high ones shifted down, and both products are added up in 16 bits, as with
//! AVX2 and under the same bound. The instructions that differ are in [`registers`]. NEON has fused multiply-adds; SSE2
//! computes them in float64 ([`crate::math::fused`]).

#[cfg(target_arch = "aarch64")]
use super::aarch64::neon as registers;
#[cfg(target_arch = "x86_64")]
use super::x86_64::sse2 as registers;

use crate::generic::Simd;
use registers::*;

/// SSE2 or NEON.
#[derive(Clone, Copy)]
pub(crate) struct Baseline;

/// The low byte of each pair, as a signed number.
#[inline(always)]
fn low(pairs: H) -> H {
    sar8(shl_h::<8>(pairs))
}

/// Adds the products of the low bytes and of the high bytes. The caller guarantees that the sums fit into 16 bits.
#[inline(always)]
fn multiply_bytes(acc: H, w: (H, H), x: H) -> H {
    add_h(add_h(acc, mul_h(w.0, low(x))), mul_h(w.1, sar8(x)))
}

/// Two 16-bit numbers per 32-bit lane, the first in the low half.
#[inline(always)]
pub(crate) fn pair(low: W, high: W) -> H {
    or(and(as_h(low), as_h(splat_w(0xFFFF))), as_h(shl_w::<16>(high)))
}

/// The methods that both share with the instruction sets that have more instructions on the same registers.
macro_rules! methods_of_4_lanes {
    () => {
        methods! {
            fn prefetch(p: *const u8) { prefetch(p) }
            fn prefetch_near(p: *const u8) { prefetch(p) }
            fn load_b(p: *const u8) -> H { load(p) }
            fn store_b(p: *mut u8, a: H) { store(p, a) }
            fn and_b(a: H, mask: u8) -> H { and(a, splat_h(u16::from_ne_bytes([mask; 2]))) }
            fn or_b(a: H, b: H) -> H { or(a, b) }
            fn shr16<const N: u32>(a: H) -> H { shr_h::<N>(a) }
            fn shl16<const N: u32>(a: H) -> H { shl_h::<N>(a) }
            fn lookup(table: &[u8; 16], i: H) -> H { lookup(table, i) }
            fn splat4(p: *const i8) -> H { as_h(splat_w(p.cast::<u32>().read_unaligned())) }
            fn i0() -> W { splat_w(0) }
            fn splat_i(v: i32) -> W { splat_w(v as u32) }
            fn add_i(a: W, b: W) -> W { add_w(a, b) }
            fn sub_i(a: W, b: W) -> W { sub_w(a, b) }
            fn shl_i<const N: u32>(a: W) -> W { shl_w::<N>(a) }
            fn shr_i<const N: u32>(a: W) -> W { shr_w::<N>(a) }
            fn and_low_nibble(a: W) -> W { as_w(and(as_h(a), as_h(splat_w(15)))) }
            fn load_u8_i(p: *const u8) -> W { widen_u8(p.cast::<[u8; 4]>().read()) }
            // Through the sign bit: unsigned bytes plus 128, minus 128.
            fn load_i8_i(p: *const u8) -> W {
                sub_w(widen_u8(p.cast::<[u8; 4]>().read().map(|byte| byte ^ 0x80)), splat_w(128))
            }
            fn pair16(a: W, b: W) -> H { pair(a, b) }
            fn dot2_i16(acc: W, a: H, b: H) -> W { add_w(acc, pairs(a, b)) }
            fn f0() -> F { splat_f(0.0) }
            fn splat_f(v: f32) -> F { splat_f(v) }
            fn load_f(p: *const f32) -> F { load_f(p) }
            fn store_f(p: *mut f32, a: F) { store_f(p, a) }
            fn load_f16(p: *const u16) -> F { from_f16(p.cast::<[u16; 4]>().read_unaligned()) }
            fn load_bf16(p: *const u16) -> F { as_f(shl_w::<16>(widen_u16(p.cast::<[u16; 4]>().read_unaligned()))) }
            fn to_f(a: W) -> F { to_f(a) }
            fn mul(a: F, b: F) -> F { mul(a, b) }
            fn fma(a: F, b: F, c: F) -> F { fma(a, b, c) }
            fn fnma(a: F, b: F, c: F) -> F { fma(negate(a), b, c) }
        }
    };
}
#[cfg(target_arch = "aarch64")]
pub(crate) use methods_of_4_lanes;

impl Simd for Baseline {
    const LANES: usize = 4;
    const NARROW_SUMS: bool = true;
    const I8_BIAS: i32 = 0;

    type B = H;
    type Acc = H;
    type I = W;
    type F = F;
    /// The low bytes and the high bytes.
    type W8 = (H, H);
    /// The scale in both 16-bit halves of each lane.
    type Scale = H;

    methods_of_4_lanes!();

    methods! {
        fn acc0() -> H { splat_h(0) }
        // Never used, because sums are narrow.
        fn acc_from(i: W) -> H { pair(i, splat_w(0)) }
        fn dot4(acc: H, w: H, x: H) -> H { multiply_bytes(acc, (and(w, splat_h(0xFF)), shr_h::<8>(w)), x) }
        fn widen(acc: H) -> W { pairs(acc, splat_h(1)) }
        fn widen_scaled(acc: H, scale: H) -> W { pairs(acc, scale) }
        fn scale(i: W) -> H { pair(i, i) }
        fn prepare_i8(w: H) -> (H, H) { (low(w), sar8(w)) }
        // |w| <= 128 and |x| <= 127: a pair is at most 2 * 128 * 127 = 32512.
        fn dot4_i8(acc: W, w: (H, H), x: H) -> W { add_w(acc, Self::widen(multiply_bytes(splat_h(0), w, x))) }
        fn dot4_signed(acc: H, w: (H, H), x: H) -> H { multiply_bytes(acc, w, x) }
    }
}
