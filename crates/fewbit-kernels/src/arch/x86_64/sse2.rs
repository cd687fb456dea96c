//! SSE2, which every x86-64 CPU has: 128-bit registers for [`Baseline`](crate::arch::Baseline).

use core::arch::x86_64::*;

/// Eight 16-bit integers.
pub(crate) type H = __m128i;
/// Four 32-bit integers.
pub(crate) type W = __m128i;
/// Four floats.
pub(crate) type F = __m128;

/// # Safety
/// `p` is valid for 16 bytes.
#[inline(always)]
pub(crate) unsafe fn load(p: *const u8) -> H {
    // SAFETY: the caller's.
    unsafe { _mm_loadu_si128(p.cast()) }
}

/// # Safety
/// `p` is valid for 16 bytes.
#[inline(always)]
pub(crate) unsafe fn store(p: *mut u8, a: H) {
    // SAFETY: the caller's.
    unsafe { _mm_storeu_si128(p.cast(), a) }
}

/// # Safety
/// `p` is valid for 4 floats.
#[inline(always)]
pub(crate) unsafe fn load_f(p: *const f32) -> F {
    // SAFETY: the caller's.
    unsafe { _mm_loadu_ps(p) }
}

/// # Safety
/// `p` is valid for 4 floats.
#[inline(always)]
pub(crate) unsafe fn store_f(p: *mut f32, a: F) {
    // SAFETY: the caller's.
    unsafe { _mm_storeu_ps(p, a) }
}

#[inline(always)]
pub(crate) fn prefetch(p: *const u8) {
    // SAFETY: a prefetch reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
}

registers! {
    fn splat_h(v: u16) -> H { _mm_set1_epi16(v as i16) }
    fn and(a: H, b: H) -> H { _mm_and_si128(a, b) }
    fn or(a: H, b: H) -> H { _mm_or_si128(a, b) }
    fn shr_h<const N: u32>(a: H) -> H { _mm_srl_epi16(a, _mm_cvtsi32_si128(N as i32)) }
    fn shl_h<const N: u32>(a: H) -> H { _mm_sll_epi16(a, _mm_cvtsi32_si128(N as i32)) }
    /// Arithmetic.
    fn sar8(a: H) -> H { _mm_srai_epi16::<8>(a) }
    fn add_h(a: H, b: H) -> H { _mm_add_epi16(a, b) }
    /// The low halves of the products.
    fn mul_h(a: H, b: H) -> H { _mm_mullo_epi16(a, b) }
    /// Products of signed integers, added up in pairs.
    fn pairs(a: H, b: H) -> W { _mm_madd_epi16(a, b) }

    fn splat_w(v: u32) -> W { _mm_set1_epi32(v as i32) }
    fn as_h(a: W) -> H { a }
    fn as_w(a: H) -> W { a }
    fn add_w(a: W, b: W) -> W { _mm_add_epi32(a, b) }
    fn sub_w(a: W, b: W) -> W { _mm_sub_epi32(a, b) }
    fn shl_w<const N: u32>(a: W) -> W { _mm_sll_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    fn shr_w<const N: u32>(a: W) -> W { _mm_srl_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    /// Four unsigned bytes, widened.
    fn widen_u8(a: [u8; 4]) -> W {
        let zero = _mm_setzero_si128();
        _mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(i32::from_le_bytes(a)), zero), zero)
    }
    /// Four 16-bit integers, widened without a sign.
    fn widen_u16(a: [u16; 4]) -> W {
        let bits = u64::from(a[0]) | u64::from(a[1]) << 16 | u64::from(a[2]) << 32 | u64::from(a[3]) << 48;
        _mm_unpacklo_epi16(_mm_cvtsi64_si128(bits as i64), _mm_setzero_si128())
    }
    fn to_f(a: W) -> F { _mm_cvtepi32_ps(a) }
    fn as_f(a: W) -> F { _mm_castsi128_ps(a) }

    fn splat_f(v: f32) -> F { _mm_set1_ps(v) }
    fn mul(a: F, b: F) -> F { _mm_mul_ps(a, b) }
    fn negate(a: F) -> F { _mm_xor_ps(a, _mm_set1_ps(-0.0)) }
    fn fma(a: F, b: F, c: F) -> F {
        #[cfg(target_feature = "fma")]
        let sum = _mm_fmadd_ps(a, b, c);
        #[cfg(not(target_feature = "fma"))]
        let sum = _mm_movelh_ps(fused_two(a, b, c), fused_two(upper(a), upper(b), upper(c)));
        sum
    }
    fn from_f16(a: [u16; 4]) -> F {
        // As in `arch/portable.rs`.
        let a = widen_u16(a);
        let magnitude = shl_w::<13>(and(a, splat_w(0x7FFF)));
        let special = _mm_cmpgt_epi32(magnitude, splat_w((0x7C00 << 13) - 1));
        let scaled = mul(as_f(magnitude), splat_f(f32::from_bits((127 + 112) << 23)));
        let sign = shl_w::<16>(and(a, splat_w(0x8000)));
        let bits = or(sign, and(special, splat_w(0xFF << 23)));
        as_f(or(_mm_castps_si128(scaled), bits))
    }
}

/// A table lookup one byte at a time: SSE2 has no byte shuffle.
#[inline(always)]
pub(crate) fn lookup(table: &[u8; 16], i: H) -> H {
    let mut bytes = [0u8; 16];
    // SAFETY: both arrays have 16 bytes.
    unsafe {
        store(bytes.as_mut_ptr(), i);
        load(bytes.map(|i| table[usize::from(i & 15)]).as_ptr())
    }
}

#[cfg(not(target_feature = "fma"))]
registers! {
    fn upper(a: F) -> F { _mm_movehl_ps(a, a) }
    /// `a * b + c` of the two lower floats, as [`crate::math::fused`] explains.
    fn fused_two(a: F, b: F, c: F) -> F {
        let (product, c) = (_mm_mul_pd(_mm_cvtps_pd(a), _mm_cvtps_pd(b)), _mm_cvtps_pd(c));
        let sum = _mm_add_pd(product, c);
        let c_part = _mm_sub_pd(sum, product);
        let lost = _mm_add_pd(_mm_sub_pd(product, _mm_sub_pd(sum, c_part)), _mm_sub_pd(c, c_part));
        let magnitude = _mm_andnot_pd(_mm_set1_pd(-0.0), lost);
        let inexact = _mm_srli_epi64::<63>(_mm_castpd_si128(_mm_cmplt_pd(_mm_setzero_pd(), magnitude)));
        let bits = _mm_castpd_si128(sum);
        let signs = _mm_xor_si128(bits, _mm_castpd_si128(lost));
        let away = _mm_and_si128(_mm_srli_epi64::<63>(signs), inexact);
        _mm_cvtpd_ps(_mm_castsi128_pd(_mm_or_si128(_mm_sub_epi64(bits, away), inexact)))
    }
}
