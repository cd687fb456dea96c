//! AVX2 with FMA and F16C: 8 lanes, 16-bit running sums.

use crate::generic::Simd;
use core::arch::asm;
use core::arch::x86_64::*;

/// The methods that all instruction sets with 8 lanes share, with VNNI or without.
macro_rules! methods_of_8_lanes {
    () => {
        methods! {
            fn prefetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T2>(p.cast()) }
            fn prefetch_near(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
            fn load_b(p: *const u8) -> __m256i { _mm256_loadu_si256(p.cast()) }
            fn store_b(p: *mut u8, a: __m256i) { _mm256_storeu_si256(p.cast(), a) }
            fn and_b(a: __m256i, mask: u8) -> __m256i { _mm256_and_si256(a, _mm256_set1_epi8(mask as i8)) }
            fn or_b(a: __m256i, b: __m256i) -> __m256i { _mm256_or_si256(a, b) }
            fn shr16<const N: u32>(a: __m256i) -> __m256i { _mm256_srl_epi16(a, _mm_cvtsi32_si128(N as i32)) }
            fn shl16<const N: u32>(a: __m256i) -> __m256i { _mm256_sll_epi16(a, _mm_cvtsi32_si128(N as i32)) }
            fn lookup(table: &[u8; 16], i: __m256i) -> __m256i {
                _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), i)
            }
            fn splat4(p: *const i8) -> __m256i { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
            fn i0() -> __m256i { _mm256_setzero_si256() }
            fn splat_i(v: i32) -> __m256i { _mm256_set1_epi32(v) }
            fn add_i(a: __m256i, b: __m256i) -> __m256i { _mm256_add_epi32(a, b) }
            fn sub_i(a: __m256i, b: __m256i) -> __m256i { _mm256_sub_epi32(a, b) }
            fn shl_i<const N: u32>(a: __m256i) -> __m256i { _mm256_sll_epi32(a, _mm_cvtsi32_si128(N as i32)) }
            fn shr_i<const N: u32>(a: __m256i) -> __m256i { _mm256_srl_epi32(a, _mm_cvtsi32_si128(N as i32)) }
            fn and_low_nibble(a: __m256i) -> __m256i { _mm256_and_si256(a, _mm256_set1_epi32(15)) }
            fn load_u8_i(p: *const u8) -> __m256i { _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())) }
            fn load_i8_i(p: *const u8) -> __m256i { _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())) }
            fn pair16(a: __m256i, b: __m256i) -> __m256i { _mm256_blend_epi16::<0b10101010>(a, _mm256_slli_epi32::<16>(b)) }
            fn f0() -> __m256 { _mm256_setzero_ps() }
            fn splat_f(v: f32) -> __m256 { _mm256_set1_ps(v) }
            fn load_f(p: *const f32) -> __m256 { _mm256_loadu_ps(p) }
            fn store_f(p: *mut f32, a: __m256) { _mm256_storeu_ps(p, a) }
            fn load_f16(p: *const u16) -> __m256 { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
            fn load_bf16(p: *const u16) -> __m256 {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))))
            }
            fn to_f(a: __m256i) -> __m256 { _mm256_cvtepi32_ps(a) }
            fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
            fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
            fn fnma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fnmadd_ps(a, b, c) }
        }
    };
}
pub(crate) use methods_of_8_lanes;

/// The instruction set. Only code after a run-time check for `avx2,fma,f16c` may use it.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// `acc + maddubs(w, x)` in 16-bit lanes, as one block of assembly.
///
/// With intrinsics, the compiler re-associates the additions across steps, runs out of registers and spills, at half
/// the speed.
#[inline]
#[target_feature(enable = "avx2")]
fn dot4_16(mut acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: only registers are touched, and the function has AVX2.
    unsafe {
        asm!(
            "vpmaddubsw {p}, {w}, {x}",
            "vpaddw {acc}, {acc}, {p}",
            p = out(ymm_reg) _,
            w = in(ymm_reg) w,
            x = in(ymm_reg) x,
            acc = inout(ymm_reg) acc,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const NARROW_SUMS: bool = true;
    const I8_BIAS: i32 = 0;

    type B = __m256i;
    type Acc = __m256i;
    type I = __m256i;
    type F = __m256;
    /// The magnitudes of the weights, and the signed bytes whose signs are applied to the activations.
    type W8 = (__m256i, __m256i);
    /// The scale in both 16-bit halves of each lane.
    type Scale = __m256i;

    methods_of_8_lanes!();

    methods! {
        fn acc0() -> __m256i { _mm256_setzero_si256() }
        fn acc_from(i: __m256i) -> __m256i { i }
        fn dot4(acc: __m256i, w: __m256i, x: __m256i) -> __m256i { dot4_16(acc, w, x) }
        fn widen(acc: __m256i) -> __m256i { _mm256_madd_epi16(acc, _mm256_set1_epi16(1)) }
        fn widen_scaled(acc: __m256i, scale: __m256i) -> __m256i { _mm256_madd_epi16(acc, scale) }
        fn scale(i: __m256i) -> __m256i { Self::pair16(i, i) }
        fn prepare_i8(w: __m256i) -> (__m256i, __m256i) { (_mm256_abs_epi8(w), w) }
        // |w| <= 128 and |x| <= 127: a pair is at most 2 * 128 * 127 = 32512.
        fn dot4_i8(acc: __m256i, w: (__m256i, __m256i), x: __m256i) -> __m256i {
            _mm256_add_epi32(acc, Self::widen(_mm256_maddubs_epi16(w.0, _mm256_sign_epi8(x, w.1))))
        }
        fn dot4_signed(acc: __m256i, w: (__m256i, __m256i), x: __m256i) -> __m256i {
            dot4_16(acc, w.0, _mm256_sign_epi8(x, w.1))
        }
        fn dot2_i16(acc: __m256i, a: __m256i, b: __m256i) -> __m256i { _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)) }
    }
}
