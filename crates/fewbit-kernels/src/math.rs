//! Scalar definitions of the functions that have no exact hardware instruction.
//!
//! They are written so that a compiler can vectorize them without changing a bit: straight lines of
//! `mul_add`, no branches that a select cannot replace.

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
    const LN2_HI: f32 = 0.693_359_4; // 12 significant bits, so that n * LN2_HI is exact
    const LN2_LO: f32 = -2.121_944_4e-4;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_HI, x);
    let r = n.mul_add(-LN2_LO, r);
    let p = r.mul_add(1.0 / 5040.0, 1.0 / 720.0);
    let p = p.mul_add(r, 1.0 / 120.0);
    let p = p.mul_add(r, 1.0 / 24.0);
    let p = p.mul_add(r, 1.0 / 6.0);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let y = p * f32::from_bits(exponent);
    let y = if x < -87.0 { 0.0 } else { y };
    if x > 88.0 { f32::INFINITY } else { y }
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_float64() {
        let mut worst = 0.0f64;
        let mut x = -86.9f32;
        while x < 88.0 {
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
            worst = worst.max((got - want).abs() / ulp);
            x += 0.001_37;
        }
        assert!(worst <= 2.0, "{worst} units in the last place");
        assert_eq!((exp(0.0), exp(-100.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert_eq!((exp(100.0), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn silu_is_within_four_ulp_of_float64() {
        let mut x = -80.0f32;
        while x < 80.0 {
            let want = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(silu(x)) - want).abs() <= want.abs() * 4.0 * f64::from(f32::EPSILON), "silu({x})");
            x += 0.013;
        }
    }
}
