//! Compares the scalar dot products with their meaning: decoded weights times decoded activations, in float64.

use fewbit_quant::activation::quantize_row;
use fewbit_quant::block::FloatScale;
use fewbit_quant::dot::dot_q8;
use fewbit_quant::{ActivationKind, Q8Row, TensorType, decode};

/// Random blocks, with scales that make no value infinite.
fn blocks(ty: TensorType, n_elems: usize, state: &mut u64) -> Vec<u8> {
    let mut bytes = vec![0u8; ty.row_bytes(n_elems).unwrap()];
    for byte in &mut bytes {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (*state >> 56) as u8;
    }
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        // The upper byte of each f16, or the exponent.
        let scales = match ty.format().expect("quantized").scale {
            FloatScale::Half(at) => vec![at + 1],
            FloatScale::HalfAndMin(at, min) => vec![at + 1, min + 1],
            FloatScale::HalfInNibbles(at) => vec![at + 5, at + 7],
            FloatScale::Exponent(at) => {
                block[at] = 120 + block[at] % 8;
                continue;
            }
        };
        scales.iter().for_each(|&at| block[at] &= 0xBF);
    }
    bytes
}

#[test]
fn integer_products_match_products_of_decoded_values() {
    let mut state = 1;
    let mut n_types = 0;
    for ty in TensorType::all() {
        let Some(kind) = ActivationKind::of(ty).filter(|&kind| kind != ActivationKind::F32) else { continue };
        n_types += 1;
        let n = 4 * ty.block_elems();
        for round in 0..50 {
            let row = blocks(ty, n, &mut state);
            let x: Vec<f32> = (0..n).map(|i| ((i * i + 31 * round) % 101) as f32 * 0.03 - 1.5).collect();
            let (mut codes, mut scales) = (vec![0i8; n], vec![0.0; n / kind.block_elems()]);
            let mut sums = vec![0i16; n / kind.sum_elems()];
            quantize_row(kind, &x, &mut codes, &mut scales, &mut sums);
            let found = dot_q8(ty, &row, Q8Row { codes: &codes, scales: &scales, sums: &sums });

            let mut w = vec![0.0; n];
            decode(ty, &row, &mut w).unwrap();
            let term = |i: usize| f64::from(w[i]) * f64::from(codes[i]) * f64::from(scales[i / kind.block_elems()]);
            let expected: f64 = (0..n).map(term).sum();
            // Minimums and codes cancel each other, so the error is relative to the sum of the magnitudes of all terms.
            let size: f64 = (0..n).map(|i| term(i).abs()).sum();
            let error = (f64::from(found) - expected).abs();
            assert!(error <= 2e-6 * size, "{ty}: {found} where {expected} is right ({error:e} of {size})");
        }
    }
    assert_eq!(n_types, 22, "quantized types that run");
}
