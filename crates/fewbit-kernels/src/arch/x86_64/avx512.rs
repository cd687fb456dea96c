//! AVX-512 (F, BW, VL, DQ) with VNNI: 16 lanes, 32-bit running sums.

use crate::generic::Simd;
use core::arch::x86_64::*;

/// The instruction set. Only code after a run-time check for `avx512f,avx512bw,avx512vl,avx512dq,avx512vnni`
/// may use it.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

impl Simd for Avx512 {
    const LANES: usize = 16;
    const NARROW_SUMS: bool = false;
    const I8_BIAS: i32 = 128;

    type B = __m512i;
    type Acc = __m512i;
    type I = __m512i;
    type F = __m512;
    /// The weight bytes plus 128, as unsigned bytes.
    type W8 = __m512i;
    type Scale = __m512i;

    methods! {
        fn prefetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T2>(p.cast()) }
        fn prefetch_near(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        fn load_b(p: *const u8) -> __m512i { _mm512_loadu_si512(p.cast()) }
        fn store_b(p: *mut u8, a: __m512i) { _mm512_storeu_si512(p.cast(), a) }
        fn and_b(a: __m512i, mask: u8) -> __m512i { _mm512_and_si512(a, _mm512_set1_epi8(mask as i8)) }
        fn or_b(a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        fn shr16<const N: u32>(a: __m512i) -> __m512i { _mm512_srli_epi16::<N>(a) }
        fn shl16<const N: u32>(a: __m512i) -> __m512i { _mm512_slli_epi16::<N>(a) }
        fn lookup(table: &[u8; 16], i: __m512i) -> __m512i {
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), i)
        }
        fn splat4(p: *const i8) -> __m512i { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }

        fn acc0() -> __m512i { _mm512_setzero_si512() }
        fn acc_from(i: __m512i) -> __m512i { i }
        fn dot4(acc: __m512i, w: __m512i, x: __m512i) -> __m512i { _mm512_dpbusd_epi32(acc, w, x) }
        fn widen(acc: __m512i) -> __m512i { acc }
        fn widen_scaled(acc: __m512i, scale: __m512i) -> __m512i { _mm512_mullo_epi32(acc, scale) }
        fn add_small_scaled(i: __m512i, acc: __m512i, scale: __m512i) -> __m512i {
            // The upper half of the lane, which only extends the sum's sign, is multiplied by zero.
            _mm512_dpwssd_epi32(i, acc, _mm512_and_si512(scale, _mm512_set1_epi32(0xFFFF)))
        }
        fn scale(i: __m512i) -> __m512i { i }
        fn prepare_i8(w: __m512i) -> __m512i { _mm512_xor_si512(w, _mm512_set1_epi8(-128)) }
        fn dot4_i8(acc: __m512i, w: __m512i, x: __m512i) -> __m512i { _mm512_dpbusd_epi32(acc, w, x) }
        fn dot4_signed(acc: __m512i, w: __m512i, x: __m512i) -> __m512i { _mm512_dpbusd_epi32(acc, w, x) }

        fn i0() -> __m512i { _mm512_setzero_si512() }
        fn splat_i(v: i32) -> __m512i { _mm512_set1_epi32(v) }
        fn add_i(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn sub_i(a: __m512i, b: __m512i) -> __m512i { _mm512_sub_epi32(a, b) }
        fn shl_i<const N: u32>(a: __m512i) -> __m512i { _mm512_slli_epi32::<N>(a) }
        fn shr_i<const N: u32>(a: __m512i) -> __m512i { _mm512_srli_epi32::<N>(a) }
        fn and_low_nibble(a: __m512i) -> __m512i { _mm512_and_si512(a, _mm512_set1_epi32(15)) }
        fn load_u8_i(p: *const u8) -> __m512i { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
        fn load_i8_i(p: *const u8) -> __m512i { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
        fn pair16(a: __m512i, b: __m512i) -> __m512i {
            _mm512_mask_blend_epi16(0xAAAA_AAAA, a, _mm512_slli_epi32::<16>(b))
        }
        fn dot2_i16(acc: __m512i, a: __m512i, b: __m512i) -> __m512i { _mm512_dpwssd_epi32(acc, a, b) }

        fn f0() -> __m512 { _mm512_setzero_ps() }
        fn splat_f(v: f32) -> __m512 { _mm512_set1_ps(v) }
        fn load_f(p: *const f32) -> __m512 { _mm512_loadu_ps(p) }
        fn store_f(p: *mut f32, a: __m512) { _mm512_storeu_ps(p, a) }
        fn load_f16(p: *const u16) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        fn load_bf16(p: *const u16) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))))
        }
        fn to_f(a: __m512i) -> __m512 { _mm512_cvtepi32_ps(a) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn fnma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fnmadd_ps(a, b, c) }
    }
}
