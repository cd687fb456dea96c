//! NEON, which every aarch64 CPU has: 128-bit registers for [`Baseline`](crate::arch::Baseline).
//!
//! Without such a CPU, `cargo test --release -p fewbit-kernels --target aarch64-unknown-linux-gnu` with the linker
//! `aarch64-linux-gnu-gcc` and the runner `qemu-aarch64 -L /usr/aarch64-linux-gnu` checks the results bit by bit within
//! minutes.

use core::arch::aarch64::*;
use core::arch::asm;

/// Eight 16-bit integers.
pub(crate) type H = int16x8_t;
/// Four 32-bit integers.
pub(crate) type W = int32x4_t;
/// Four floats.
pub(crate) type F = float32x4_t;

/// # Safety
/// `p` is valid for 16 bytes.
#[inline(always)]
pub(crate) unsafe fn load(p: *const u8) -> H {
    // SAFETY: the caller's.
    unsafe { vreinterpretq_s16_u8(vld1q_u8(p)) }
}

/// # Safety
/// `p` is valid for 16 bytes.
#[inline(always)]
pub(crate) unsafe fn store(p: *mut u8, a: H) {
    // SAFETY: the caller's.
    unsafe { vst1q_u8(p, vreinterpretq_u8_s16(a)) }
}

/// # Safety
/// `p` is valid for 4 floats.
#[inline(always)]
pub(crate) unsafe fn load_f(p: *const f32) -> F {
    // SAFETY: the caller's.
    unsafe { vld1q_f32(p) }
}

/// # Safety
/// `p` is valid for 4 floats.
#[inline(always)]
pub(crate) unsafe fn store_f(p: *mut f32, a: F) {
    // SAFETY: the caller's.
    unsafe { vst1q_f32(p, a) }
}

#[inline(always)]
pub(crate) fn prefetch(p: *const u8) {
    // SAFETY: a prefetch reads nothing, of any address.
    unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly)) }
}

registers! {
    fn splat_h(v: u16) -> H { vdupq_n_s16(v as i16) }
    fn and(a: H, b: H) -> H { vandq_s16(a, b) }
    fn or(a: H, b: H) -> H { vorrq_s16(a, b) }
    fn shr_h<const N: u32>(a: H) -> H {
        vreinterpretq_s16_u16(vshlq_u16(vreinterpretq_u16_s16(a), vdupq_n_s16(-(N as i16))))
    }
    fn shl_h<const N: u32>(a: H) -> H { vshlq_s16(a, vdupq_n_s16(N as i16)) }
    /// Arithmetic.
    fn sar8(a: H) -> H { vshrq_n_s16::<8>(a) }
    fn add_h(a: H, b: H) -> H { vaddq_s16(a, b) }
    /// The low halves of the products.
    fn mul_h(a: H, b: H) -> H { vmulq_s16(a, b) }
    /// Products of signed integers, added up in pairs.
    fn pairs(a: H, b: H) -> W { vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b)) }

    fn splat_w(v: u32) -> W { vdupq_n_s32(v as i32) }
    fn as_h(a: W) -> H { vreinterpretq_s16_s32(a) }
    fn as_w(a: H) -> W { vreinterpretq_s32_s16(a) }
    fn add_w(a: W, b: W) -> W { vaddq_s32(a, b) }
    fn sub_w(a: W, b: W) -> W { vsubq_s32(a, b) }
    fn mul_w(a: W, b: W) -> W { vmulq_s32(a, b) }
    fn zip_w(a: W, b: W) -> [W; 2] { [vzip1q_s32(a, b), vzip2q_s32(a, b)] }
    fn unzip_w(a: W, b: W) -> [W; 2] { [vuzp1q_s32(a, b), vuzp2q_s32(a, b)] }
    fn splat_two(v: [u32; 2]) -> W {
        vreinterpretq_s32_u64(vdupq_n_u64(u64::from(v[0]) | u64::from(v[1]) << 32))
    }
    fn shl_w<const N: u32>(a: W) -> W { vshlq_s32(a, vdupq_n_s32(N as i32)) }
    fn shr_w<const N: u32>(a: W) -> W {
        vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-(N as i32))))
    }
    /// Four unsigned bytes, widened.
    fn widen_u8(a: [u8; 4]) -> W {
        let bytes = vcreate_u8(u64::from(u32::from_le_bytes(a)));
        vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
    }
    /// Four 16-bit integers, widened without a sign.
    fn widen_u16(a: [u16; 4]) -> W { vreinterpretq_s32_u32(vmovl_u16(four(a))) }
    fn to_f(a: W) -> F { vcvtq_f32_s32(a) }
    fn as_f(a: W) -> F { vreinterpretq_f32_s32(a) }

    fn splat_f(v: f32) -> F { vdupq_n_f32(v) }
    fn mul(a: F, b: F) -> F { vmulq_f32(a, b) }
    fn negate(a: F) -> F { vnegq_f32(a) }
    fn fma(a: F, b: F, c: F) -> F { vfmaq_f32(c, a, b) }

    fn lookup(table: &[u8; 16], i: H) -> H {
        vreinterpretq_s16_u8(vqtbl1q_u8(vld1q_u8(table.as_ptr()), vreinterpretq_u8_s16(i)))
    }
    fn four(a: [u16; 4]) -> uint16x4_t {
        vcreate_u16(u64::from(a[0]) | u64::from(a[1]) << 16 | u64::from(a[2]) << 32 | u64::from(a[3]) << 48)
    }
}

/// The exact values of four f16, through an instruction that has no stable intrinsic yet.
#[inline(always)]
pub(crate) fn from_f16(a: [u16; 4]) -> F {
    let out: F;
    // SAFETY: only registers are touched.
    unsafe {
        asm!("fcvtl {out:v}.4s, {a:v}.4h", out = lateout(vreg) out, a = in(vreg) four(a),
            options(pure, nomem, nostack, preserves_flags));
    }
    out
}
