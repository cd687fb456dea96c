//! AVX2 with VNNI on 256-bit vectors: 8 lanes, 32-bit running sums.
//!
//! The same instructions have two encodings: that of AVX-VNNI (CPUs with AVX2 but without AVX-512, such as most Intel
//! laptop CPUs since 2021) and that of AVX-512 VL with VNNI, which lets tests run these kernels on CPUs with AVX-512.

use super::avx2::methods_of_8_lanes;
use crate::generic::Simd;
use core::arch::asm;
use core::arch::x86_64::*;

/// `vpdpbusd` as inline assembly: with intrinsics, the compiler moves the loads of all steps to the front and spills
/// them.
macro_rules! dpbusd {
    ($name:ident, $feature:literal, $encoding:literal) => {
        #[inline]
        #[target_feature(enable = $feature)]
        fn $name(mut acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
            // SAFETY: only registers are touched, and the function has the instruction.
            unsafe {
                asm!(
                    concat!($encoding, " vpdpbusd {acc}, {w}, {x}"),
                    w = in(ymm_reg) w,
                    x = in(ymm_reg) x,
                    acc = inout(ymm_reg) acc,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            acc
        }
    };
}

dpbusd!(dpbusd_vex, "avx2,avxvnni", "{{vex}}");
dpbusd!(dpbusd_evex, "avx2,avx512f,avx512vl,avx512vnni", "{{evex}}");

/// The instruction set. Only code after a run-time check for `avx2,fma,f16c` and `avxvnni` (with `EVEX`:
/// `avx512vl,avx512vnni`) may use it.
#[derive(Clone, Copy)]
pub(crate) struct AvxVnni<const EVEX: bool>;

impl<const EVEX: bool> Simd for AvxVnni<EVEX> {
    const LANES: usize = 8;
    const NARROW_SUMS: bool = false;
    const I8_BIAS: i32 = 128;

    type B = __m256i;
    type Acc = __m256i;
    type I = __m256i;
    type F = __m256;
    /// The weight bytes plus 128, as unsigned bytes.
    type W8 = __m256i;
    type Scale = __m256i;

    methods_of_8_lanes!();

    methods! {
        fn acc0() -> __m256i { _mm256_setzero_si256() }
        fn acc_from(i: __m256i) -> __m256i { i }
        fn dot4(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
            if EVEX { dpbusd_evex(acc, w, x) } else { dpbusd_vex(acc, w, x) }
        }
        fn widen(acc: __m256i) -> __m256i { acc }
        fn widen_scaled(acc: __m256i, scale: __m256i) -> __m256i { _mm256_mullo_epi32(acc, scale) }
        fn add_small_scaled(i: __m256i, acc: __m256i, scale: __m256i) -> __m256i {
            // The upper half of the lane, which only extends the sum's sign, is multiplied by zero.
            Self::dot2_i16(i, acc, _mm256_and_si256(scale, _mm256_set1_epi32(0xFFFF)))
        }
        fn scale(i: __m256i) -> __m256i { i }
        fn prepare_i8(w: __m256i) -> __m256i { _mm256_xor_si256(w, _mm256_set1_epi8(-128)) }
        fn dot4_i8(acc: __m256i, w: __m256i, x: __m256i) -> __m256i { Self::dot4(acc, w, x) }
        fn dot4_signed(acc: __m256i, w: __m256i, x: __m256i) -> __m256i { Self::dot4(acc, w, x) }
        fn dot2_i16(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
            if EVEX { _mm256_dpwssd_epi32(acc, a, b) } else { _mm256_dpwssd_avx_epi32(acc, a, b) }
        }
    }
}
