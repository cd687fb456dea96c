//! Products of every shape: all batch sizes to 300, columns on both sides of every stretch that is unpacked at a time,
//! rows that fill no panel; and what is not a number.
//!
//! Bits are compared, but NaN of any sign and payload counts as one value: which of two NaN operands an instruction
//! passes on differs between instruction sets, and IEEE 754 leaves it open.

mod support;

use fewbit_kernels::{ActivationKinds, Activations, Cpu, Isa};
use fewbit_quant::activation::ActivationKind;
use fewbit_quant::{TensorType, decode};
use support::{Codes, Random, cpus, product, types, weights};

/// Engines of every instruction set but the scalar definitions, which come first.
fn one_per_isa() -> Vec<Cpu> {
    Isa::available().into_iter().map(|isa| Cpu::new(isa, 1).expect("available")).collect()
}

#[test]
fn every_batch_size_from_1_to_300() {
    let cpus = one_per_isa();
    let mut random = Random(11);
    for ty in types() {
        let (rows, cols) = (17, ty.block_elems().max(32));
        let bytes = weights(ty, rows * cols, Codes::Random, None, &mut random);
        let x: Vec<f32> = (0..300 * cols).map(|_| random.float()).collect();
        // A row of the batch depends on no other row: the definition of all 300 is that of any first n.
        let want = product(&cpus[0], ty, rows, cols, &bytes, &x);
        for cpu in &cpus[1..] {
            let w = cpu.pack(ty, rows, cols, &bytes).expect("packs");
            let (mut acts, mut out) = (Activations::new(), Vec::new());
            for n in 1..=300 {
                cpu.activate(&x[..n * cols], cols, ActivationKinds::of([ty]), &mut acts);
                out.resize(n * rows, f32::NAN);
                cpu.matmul(&w, &acts, &mut out);
                let same = out.iter().zip(&want).all(|(y, &want)| y.to_bits() == want);
                assert!(same, "{ty}, batch {n}: {cpu:?} differs from scalar");
            }
        }
    }
}

#[test]
fn column_counts_around_stretch_boundaries() {
    let cpus = cpus();
    let mut random = Random(12);
    for ty in types() {
        let kind = ActivationKind::of(ty).expect("a type with products");
        let columns: &[usize] = match kind {
            ActivationKind::F32 => &[1, 2, 15, 255, 256, 257, 511, 513],
            ActivationKind::Q8Block32 => &[32, 64, 96, 992, 1024, 1056, 2048, 2080],
            ActivationKind::Q8Block256 => &[256, 768, 1024, 1280, 2048, 2304],
        };
        for &cols in columns {
            for (rows, n) in [(1, 1), (31, 3), (18, 21)] {
                let bytes = weights(ty, rows * cols, Codes::Random, None, &mut random);
                let x: Vec<f32> = (0..n * cols).map(|_| random.float()).collect();
                support::check(&cpus, ty, rows, cols, &bytes, &x, "columns");
            }
        }
    }
}

/// Largest codes against largest activations of one sign, in every combination of signs per quad: the sums that come
/// nearest to overflow. They are compared with plain integers, so that all instruction sets cannot be wrong together.
#[test]
fn largest_sums_are_exact() {
    let mut random = Random(13);
    for ty in [TensorType::Q4_0, TensorType::Q5_0, TensorType::Q8_0, TensorType::Q4_1, TensorType::Q6_K] {
        let cols = ty.block_elems();
        for codes in [Codes::Maximal, Codes::Zero] {
            // 0x3C00 is 1, 0x0000 the minimum of types that have one.
            let mut bytes = weights(ty, cols, codes, Some(0x3C00), &mut random);
            if ty == TensorType::Q8_0 {
                bytes[2..].fill(if matches!(codes, Codes::Zero) { 0x80 } else { 0x7F });
            }
            let mut values = vec![0.0; cols];
            decode(ty, &bytes, &mut values).expect("decodes");
            for signs in 0..16u32 {
                let x: Vec<f32> = (0..cols).map(|k| if signs >> (k % 4) & 1 == 0 { 127.0 } else { -127.0 }).collect();
                let want: f64 = x.iter().zip(&values).map(|(&x, &v)| f64::from(x) * f64::from(v)).sum();
                for cpu in one_per_isa() {
                    let got = f32::from_bits(product(&cpu, ty, 1, cols, &bytes, &x)[0]);
                    assert_eq!(f64::from(got), want, "{ty}, {codes:?} codes, signs {signs:04b}: {cpu:?}");
                }
            }
        }
    }
}

#[test]
fn nan_and_infinity_stay_in_their_row() {
    let mut random = Random(14);
    for ty in types() {
        let (rows, cols, n) = (20, ty.block_elems().max(32) * 2, 9);
        let bytes = weights(ty, rows * cols, Codes::Random, Some(0x2C00), &mut random);
        let clean: Vec<f32> = (0..n * cols).map(|_| random.float()).collect();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = clean.clone();
            x[4 * cols + 3] = bad;
            for cpu in one_per_isa() {
                let (got, want) =
                    (product(&cpu, ty, rows, cols, &bytes, &x), product(&cpu, ty, rows, cols, &bytes, &clean));
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    if i / rows != 4 {
                        assert_eq!(got, want, "{ty}, {bad}: output {i} of {cpu:?}");
                    } else {
                        // Quantized: the whole block counts as NaN. Plain: IEEE 754 decides.
                        let is_plain = ActivationKind::of(ty) == Some(ActivationKind::F32);
                        let got = f32::from_bits(*got);
                        assert!(got.is_nan() || is_plain && got.is_infinite(), "{ty}, {bad}: {got} of {cpu:?}");
                    }
                }
            }
        }
    }
}
