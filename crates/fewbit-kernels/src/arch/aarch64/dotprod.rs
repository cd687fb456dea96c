//! NEON with dot products of bytes (FEAT_DotProd), and with products of small matrices of bytes (FEAT_I8MM): 4 lanes,
//! 32-bit running sums.
//!
//! `sdot` multiplies signed bytes, and those of the weights are at most 127 where they are unsigned. Its form with a lane
//! takes the activations of four products from one load. `smmla` does twice as much, for two rows of the batch.

use super::neon::*;
use crate::arch::baseline::{methods_of_4_lanes, pair};
use crate::generic::Simd;
use core::arch::asm;

/// The instruction set. Only code after a run-time check for `dotprod` may use it.
#[derive(Clone, Copy)]
pub(crate) struct DotProd;

/// The instruction set. Only code after a run-time check for `dotprod` and `i8mm` may use it.
#[derive(Clone, Copy)]
pub(crate) struct I8mm;

/// `sdot`, which has no stable intrinsic yet.
#[inline]
#[target_feature(enable = "dotprod")]
fn sdot(mut acc: W, w: H, x: H) -> W {
    // SAFETY: only registers are touched, and the function has the instruction.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b",
            w = in(vreg) w,
            x = in(vreg) x,
            acc = inout(vreg) acc,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// `sdot` with four bytes of `x`, for every lane.
#[inline]
#[target_feature(enable = "dotprod")]
fn sdot_lane<const LANE: u32>(mut acc: W, w: H, x: H) -> W {
    // SAFETY: only registers are touched, and the function has the instruction.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
            w = in(vreg) w,
            x = in(vreg) x,
            lane = const LANE,
            acc = inout(vreg) acc,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// `smmla`: `acc[2 i + j] += w[8 i..8 i + 8] . x[8 j..8 j + 8]`.
#[inline]
#[target_feature(enable = "i8mm")]
fn smmla(mut acc: W, w: H, x: H) -> W {
    // SAFETY: only registers are touched, and the function has the instruction.
    unsafe {
        asm!(
            "smmla {acc:v}.4s, {w:v}.16b, {x:v}.16b",
            w = in(vreg) w,
            x = in(vreg) x,
            acc = inout(vreg) acc,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// What both have in common.
macro_rules! dot_products {
    () => {
        const LANES: usize = 4;
        const NARROW_SUMS: bool = false;
        const I8_BIAS: i32 = 0;
        const SIGNED_DOT: bool = true;
        const HAS_LANES: bool = true;

        type B = H;
        type Acc = W;
        type I = W;
        type F = F;
        type W8 = H;
        type Scale = W;

        methods_of_4_lanes!();

        methods! {
            fn acc0() -> W { splat_w(0) }
            fn acc_from(i: W) -> W { i }
            fn dot4(acc: W, w: H, x: H) -> W { sdot(acc, w, x) }
            fn dot4_lane<const LANE: u32>(acc: W, w: H, x: H) -> W { sdot_lane::<LANE>(acc, w, x) }
            fn widen(acc: W) -> W { acc }
            fn widen_scaled(acc: W, scale: W) -> W { mul_w(acc, scale) }
            fn scale(i: W) -> W { i }
            fn prepare_i8(w: H) -> H { w }
            fn dot4_i8(acc: W, w: H, x: H) -> W { sdot(acc, w, x) }
            fn dot4_signed(acc: W, w: H, x: H) -> W { sdot(acc, w, x) }
        }
    };
}

impl Simd for DotProd {
    dot_products!();
}

impl Simd for I8mm {
    const HAS_PAIRS: bool = true;

    dot_products!();

    methods! {
        fn dot_pairs(acc: W, w: H, x: H) -> W { smmla(acc, w, x) }
        fn zip(a: H, b: H) -> [H; 2] { zip_w(as_w(a), as_w(b)).map(as_h) }
        fn unzip(a: H, b: H) -> [H; 2] { unzip_w(as_w(a), as_w(b)).map(as_h) }
        fn unzip_i(a: W, b: W) -> [W; 2] { unzip_w(a, b) }
        fn double(scale: W) -> [W; 2] { zip_w(scale, scale) }
        fn load_two(p: *const i8) -> H { as_h(splat_two(p.cast::<[u32; 2]>().read_unaligned())) }
        fn splat_two(p: *const i32) -> W { splat_two(p.cast::<[u32; 2]>().read()) }
    }
}
