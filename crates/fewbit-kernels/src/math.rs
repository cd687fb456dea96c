//! Scalar definitions of the functions that have no exact hardware instruction.
//!
//! They are written so that a compiler can vectorize them without changing a bit: straight-line `mul_add`s, and no
//! branches except those that a select can replace.

use fewbit_quant::GateFunction;

/// Adding and subtracting this rounds a float of magnitude below 2^22 to the nearest integer, ties to even.
pub(crate) const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// Lanes of strided partial sums, whatever the vector width of the machine.
pub const SUM_LANES: usize = 16;

/// `e^x`, within 2 units in the last place of the exact value for results in the normal range.
///
/// Below -87 the result is 0, above 88 infinity. `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `e^r` is its
/// Taylor polynomial of degree 7 (remainder below 6e-9), and `2^n` is put in through the exponent bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    exp_with::<HAS_FMA>(x)
}

/// [`exp`], for CPUs with or without fused multiply-adds.
#[inline(always)]
pub(crate) fn exp_with<const FMA: bool>(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4; // 12 significant bits, so that n * LN2_HI is exact
    const LN2_LO: f32 = -2.121_944_4e-4;
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_HI, x);
    let r = fma::<FMA>(n, -LN2_LO, r);
    let p = fma::<FMA>(r, 1.0 / 5040.0, 1.0 / 720.0);
    let p = fma::<FMA>(p, r, 1.0 / 120.0);
    let p = fma::<FMA>(p, r, 1.0 / 24.0);
    let p = fma::<FMA>(p, r, 1.0 / 6.0);
    let p = fma::<FMA>(p, r, 0.5);
    let p = fma::<FMA>(p, r, 1.0);
    let p = fma::<FMA>(p, r, 1.0);
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let y = p * f32::from_bits(exponent);
    let y = if x < -87.0 { 0.0 } else { y };
    if x > 88.0 { f32::INFINITY } else { y }
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    silu_with::<HAS_FMA>(x)
}

/// [`silu`], for CPUs with or without fused multiply-adds.
#[inline(always)]
pub(crate) fn silu_with<const FMA: bool>(x: f32) -> f32 {
    x / (1.0 + exp_with::<FMA>(-x))
}

/// The hidden value of [`GateFunction::ClampedSilu`] for the products with the gate and with the other matrix:
/// `g / (1 + e^(-1.702 g)) * (u + 1)` with `g = min(gate, 7)` and `u = clamp(up, -7, 7)`. NaN stays NaN.
#[inline(always)]
pub fn clamped_silu(gate: f32, up: f32) -> f32 {
    clamped_silu_with::<HAS_FMA>(gate, up)
}

/// [`clamped_silu`], for CPUs with or without fused multiply-adds.
#[inline(always)]
pub(crate) fn clamped_silu_with<const FMA: bool>(gate: f32, up: f32) -> f32 {
    const LIMIT: f32 = GateFunction::CLAMP;
    // Plain comparisons, which vectorize and keep NaN.
    let g = if gate > LIMIT { LIMIT } else { gate };
    let u = if up > LIMIT { LIMIT } else { up };
    let u = if u < -LIMIT { -LIMIT } else { u };
    g / (1.0 + exp_with::<FMA>(-GateFunction::CLAMPED_ALPHA * g)) * (u + 1.0)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The tanh form of GELU: `0.5 x (1 + tanh(u))` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`, as
/// `x / (1 + e^(-2u))`.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    gelu_tanh_with::<HAS_FMA>(x)
}

/// [`gelu_tanh`], for CPUs with or without fused multiply-adds.
#[inline(always)]
pub(crate) fn gelu_tanh_with<const FMA: bool>(x: f32) -> f32 {
    const TWO_ROOT: f32 = 1.595_769; // 2 sqrt(2 / pi)
    let cubed = (x * x) * x;
    x / (1.0 + exp_with::<FMA>(-TWO_ROOT * fma::<FMA>(cubed, 0.044_715, x)))
}

/// Hyperbolic tangent: its Taylor polynomial of degree 11 near 0 (remainder below 1e-9 of the value), else
/// `1 - 2 / (e^(2 |x|) + 1)` with the sign of `x`.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    tanh_with::<HAS_FMA>(x)
}

/// [`tanh`], for CPUs with or without fused multiply-adds.
#[inline(always)]
pub(crate) fn tanh_with<const FMA: bool>(x: f32) -> f32 {
    let s = x * x;
    let p = fma::<FMA>(s, -1_382.0 / 155_925.0, 62.0 / 2_835.0);
    let p = fma::<FMA>(p, s, -17.0 / 315.0);
    let p = fma::<FMA>(p, s, 2.0 / 15.0);
    let p = fma::<FMA>(p, s, -1.0 / 3.0);
    let near = fma::<FMA>(p * s, x, x);
    let far = (1.0 - 2.0 / (exp_with::<FMA>(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.25 { near } else { far }
}

/// Adds up strided partial sums as a tree: lanes `i` and `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
#[inline(always)]
pub fn tree_sum(mut lanes: [f32; SUM_LANES]) -> f32 {
    let mut width = SUM_LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `a * b + c`, rounded once: `f32::mul_add`, but in vectorizable form on every target.
///
/// Without such an instruction, `mul_add` is a call into the C library. Float64 arithmetic gives the same result: the
/// product of two f32 is exact in f64 (48 of 53 bits, and no exponent is out of range). The sum is not exact, so it is
/// rounded to odd: truncated towards zero, with its last bit set if anything was lost. Rounding that to f32 gives the
/// same as rounding the exact sum, because 53 bits are at least two more than the result has (Boldo and Melquiond,
/// "Emulation of FMA and correctly rounded sums", 2008).
#[inline(always)]
pub fn fused(a: f32, b: f32, c: f32) -> f32 {
    fma::<HAS_FMA>(a, b, c)
}

/// Whether every CPU of the target has an instruction for `f32::mul_add`.
pub(crate) const HAS_FMA: bool =
    cfg!(any(target_feature = "fma", target_arch = "aarch64", target_arch = "riscv64", target_arch = "powerpc64"));

/// [`fused`], where the caller knows whether the CPU has an instruction for it.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { fused_emulated(a, b, c) }
}

/// [`fused`] in float64, for CPUs without an instruction for it.
#[inline(always)]
pub fn fused_emulated(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // The exact rounding error of the sum (Knuth's TwoSum); NaN if something was infinite.
    let c_part = sum - product;
    let lost = (product - (sum - c_part)) + (c - c_part);
    let bits = sum.to_bits();
    let inexact = u64::from(lost.abs() > 0.0);
    // The sum was rounded away from zero if the error has the other sign.
    let away = (bits ^ lost.to_bits()) >> 63 & inexact;
    f64::from_bits(bits.wrapping_sub(away) | inexact) as f32
}
