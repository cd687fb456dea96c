//! The functions of activations, compared with float64, and the multiply-add of CPUs that have none.

use fewbit_kernels::math::{clamped_silu, exp, fused_emulated, gelu_tanh, sigmoid, silu, tanh};

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

/// The largest error of `f` compared with `want` over thousands of points, relative to `floor + |want|`.
fn worst(f: impl Fn(f32) -> f32, want: impl Fn(f64) -> f64, range: f32, floor: f64) -> f64 {
    let places = (-20_000..=20_000).map(|i| i as f32 * range / 20_000.0);
    places.fold(0.0, |worst, x| {
        let exact = want(f64::from(x));
        worst.max((f64::from(f(x)) - exact).abs() / (floor + exact.abs()))
    })
}

#[test]
fn tanh_is_within_four_ulp_of_float64() {
    for range in [1e-4, 0.26, 3.0, 100.0] {
        let worst = worst(tanh, f64::tanh, range, f64::MIN_POSITIVE);
        assert!(worst <= 4.0 * f64::from(f32::EPSILON), "{worst:e} up to {range}");
    }
    assert_eq!((tanh(0.0), tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (0.0, 1.0, -1.0));
    assert!(tanh(f32::NAN).is_nan());
}

#[test]
fn gelu_and_sigmoid_are_close_to_float64() {
    let gelu = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh());
    // Far below zero the values themselves are below 1e-6: there the bound is absolute.
    let of_gelu = worst(gelu_tanh, gelu, 12.0, 0.1);
    let of_sigmoid = worst(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 80.0, f64::MIN_POSITIVE);
    assert!(of_gelu <= 4.0 * f64::from(f32::EPSILON), "{of_gelu:e}");
    assert!(of_sigmoid <= 4.0 * f64::from(f32::EPSILON), "{of_sigmoid:e}");
    assert_eq!((gelu_tanh(0.0), gelu_tanh(20.0), gelu_tanh(-20.0)), (0.0, 20.0, 0.0));
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

#[test]
fn clamped_silu_is_that_of_gpt_oss() {
    let want = |gate: f32, up: f32| {
        let (g, u) = (f64::from(gate).min(7.0), f64::from(up).clamp(-7.0, 7.0));
        g / (1.0 + (-1.702 * g).exp()) * (u + 1.0)
    };
    for gate in [-40.0, -7.5, -1.0, 0.0, 0.3, 6.9, 7.0, 7.1, 50.0f32] {
        for up in [-9.0, -7.0, -1.0, -0.5, 0.0, 3.0, 7.0, 8.0f32] {
            let (got, want) = (f64::from(clamped_silu(gate, up)), want(gate, up));
            assert!((got - want).abs() <= want.abs() * 2e-6 + 1e-12, "{gate}, {up}: {got}, not {want}");
        }
    }
    assert!(clamped_silu(f32::NAN, 1.0).is_nan() && clamped_silu(1.0, f32::NAN).is_nan());
}

/// Values that exercise double rounding, signed zeros, subnormal numbers and overflow.
const EDGES: [u32; 24] = [
    0x0000_0000,
    0x0000_0001,
    0x0000_0002,
    0x0000_0003,
    0x0040_0000,
    0x007F_FFFF,
    0x0080_0000,
    0x0080_0001,
    0x00FF_FFFF,
    0x1F80_0000,
    0x1F80_0001,
    0x2000_0000,
    0x3300_0000,
    0x3380_0000,
    0x3F7F_FFFF,
    0x3F80_0000,
    0x3F80_0001,
    0x3F80_0800,
    0x4B80_0000,
    0x4B80_0001,
    0x7F00_0000,
    0x7F7F_FFFF,
    0x7F80_0000,
    0x7FC0_0000,
];

fn check_fused(a: f32, b: f32, c: f32) {
    let (got, want) = (fused_emulated(a, b, c), a.mul_add(b, c));
    let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
    assert!(same, "{a:e} * {b:e} + {c:e}: {got:e}, not {want:e}");
}

#[test]
fn fused_multiply_add_is_rounded_once() {
    let signed = || EDGES.into_iter().flat_map(|bits| [bits, bits | 0x8000_0000]).map(f32::from_bits);
    for a in signed() {
        for b in signed() {
            signed().for_each(|c| check_fused(a, b, c));
        }
    }
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    for _ in 0..2_000_000 {
        let (a, b, c) = (next(), next(), next());
        check_fused(f32::from_bits(a), f32::from_bits(b), f32::from_bits(c));
        // Products near a power of two with addends of few bits give sums near the midpoint of two floats.
        let few = |x: u32| f32::from_bits((x & 0x803F_0001) | 0x3F80_0000);
        let (p, q) = (few(a), few(b));
        for exponent in [a % 60, 24 + b % 3, 48 + b % 6, 126, 140, 149] {
            let scale = f64::from(few(c)) * (-f64::from(exponent)).exp2();
            check_fused(p, q, scale as f32);
            check_fused(p * 0.5f32.powi(60), q * 0.5f32.powi(65), scale as f32);
        }
    }
}
