//! Encoding gives the bytes of the definition on every instruction set and number of threads.

use fewbit_kernels::{Cpu, Isa};
use fewbit_quant::encode::{encode, is_encodable};
use fewbit_quant::{QuantError, TensorType, decode};
use half::f16;

/// Rows that are not a multiple of a chunk or a group of blocks.
const ROWS: usize = 74;
const COLS: usize = 768;

fn weights() -> Vec<f32> {
    let mut state = 5u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    // Exact in f16, so that all source types hold the same.
    (0..ROWS * COLS).map(|_| f16::from_f32(0.1 * next() * next() * next()).to_f32()).collect()
}

fn cpus() -> impl Iterator<Item = (Isa, usize, Cpu)> {
    let isas = Isa::available().into_iter();
    isas.flat_map(|isa| [1, 3].map(|threads| (isa, threads, Cpu::new(isa, threads).unwrap())))
}

fn encodable() -> impl Iterator<Item = TensorType> {
    TensorType::all().filter(|&ty| is_encodable(ty))
}

#[test]
fn every_instruction_set_and_thread_count_gives_the_same_bytes() {
    let x = weights();
    let importance: Vec<f32> = (0..COLS).map(|i| 0.1 + (i % 7) as f32).collect();
    for ty in encodable() {
        for importance in [None, Some(&importance[..])] {
            let mut expected = vec![0; ROWS * ty.row_bytes(COLS).unwrap()];
            encode(ty, &x, COLS, importance, &mut expected).unwrap();
            for (isa, threads, cpu) in cpus() {
                let mut found = vec![0; expected.len()];
                cpu.encode(ty, &x, COLS, importance, &mut found).unwrap();
                assert!(found == expected, "{ty} on {isa} with {threads} threads");
            }
        }
    }
}

#[test]
fn converting_stored_types_equals_encoding_their_values() {
    let x = weights();
    for (isa, threads, cpu) in cpus() {
        for from in [TensorType::F32, TensorType::F16, TensorType::BF16, TensorType::Q8_0, TensorType::Q4_K] {
            let mut stored = vec![0; ROWS * from.row_bytes(COLS).unwrap()];
            cpu.encode(from, &x, COLS, None, &mut stored).unwrap();
            let mut values = vec![0.0; x.len()];
            decode(from, &stored, &mut values).unwrap();
            let mut expected = vec![0; ROWS * TensorType::Q4_1.row_bytes(COLS).unwrap()];
            cpu.encode(TensorType::Q4_1, &values, COLS, None, &mut expected).unwrap();
            let mut found = vec![0; expected.len()];
            cpu.convert(from, &stored, TensorType::Q4_1, COLS, None, &mut found).unwrap();
            assert!(found == expected, "{from} on {isa} with {threads} threads");
        }
    }
}

/// Widening in vector steps is exact for every finite number, subnormal ones included.
#[test]
fn every_f16_is_widened_exactly() {
    let halves: Vec<u16> = (0..=u16::MAX).filter(|&h| f16::from_bits(h).is_finite()).collect();
    let stored: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
    for (isa, _, cpu) in cpus() {
        let mut found = vec![0; 4 * halves.len()];
        cpu.convert(TensorType::F16, &stored, TensorType::F32, halves.len(), None, &mut found).unwrap();
        for (&h, b) in halves.iter().zip(found.as_chunks::<4>().0) {
            assert_eq!(u32::from_le_bytes(*b), f16::from_bits(h).to_f32().to_bits(), "{h:#06x} on {isa}");
        }
    }
    let cpu = Cpu::new(Isa::best(), 1).unwrap();
    for special in [f16::INFINITY, f16::NEG_INFINITY, f16::NAN] {
        let stored: Vec<u8> = [f16::ONE, special].iter().flat_map(|h| h.to_le_bytes()).collect();
        let result = cpu.convert(TensorType::F16, &stored, TensorType::F32, 2, None, &mut [0; 8]);
        assert_eq!(result, Err(QuantError::NotFinite { index: 1 }));
    }
}

#[test]
fn each_matrix_of_a_stack_has_its_own_importance() {
    let x = &weights()[..4 * 256];
    let importance: Vec<f32> = (0..512).map(|i| ((i * 31) % 17) as f32).collect();
    let bytes = TensorType::Q4_0.row_bytes(256).unwrap();
    let mut expected = vec![0; 4 * bytes];
    for stack in 0..2 {
        let (rows, out) =
            (&x[stack * 512..(stack + 1) * 512], &mut expected[stack * 2 * bytes..(stack + 1) * 2 * bytes]);
        encode(TensorType::Q4_0, rows, 256, Some(&importance[stack * 256..(stack + 1) * 256]), out).unwrap();
    }
    let mut found = vec![0; 4 * bytes];
    let cpu = Cpu::new(Isa::best(), 2).unwrap();
    cpu.encode(TensorType::Q4_0, x, 256, Some(&importance), &mut found).unwrap();
    assert_eq!(found, expected);
    let error = cpu.encode(TensorType::Q4_0, x, 256, Some(&importance[..300]), &mut found).unwrap_err();
    assert!(matches!(error, QuantError::Size { .. }), "{error}");
}

#[test]
fn first_non_finite_weight_is_reported() {
    let mut x = weights();
    x[60 * COLS + 5] = f32::NAN;
    x[40 * COLS + 7] = f32::INFINITY;
    for (isa, threads, cpu) in cpus() {
        let mut out = vec![0; ROWS * TensorType::Q8_0.row_bytes(COLS).unwrap()];
        let result = cpu.encode(TensorType::Q8_0, &x, COLS, None, &mut out);
        assert_eq!(result, Err(QuantError::NotFinite { index: 40 * COLS + 7 }), "{isa} with {threads} threads");
        let result = cpu.encode(TensorType::Q8_0, &x, COLS, None, &mut out[1..]);
        assert!(matches!(result, Err(QuantError::Size { .. })));
    }
}
