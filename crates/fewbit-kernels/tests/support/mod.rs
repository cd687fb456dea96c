//! What tests of products share: weights of every type, and the comparison of instruction sets.
#![allow(dead_code)] // no test uses all of it

use fewbit_kernels::{ActivationKinds, Activations, Cpu, Isa};
use fewbit_quant::TensorType;

pub(crate) const TYPES: [TensorType; 25] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2_K,
    TensorType::Q3_K,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
    TensorType::IQ4_NL,
    TensorType::IQ4_XS,
    TensorType::IQ3_XXS,
    TensorType::IQ3_S,
    TensorType::IQ2_XXS,
    TensorType::IQ2_XS,
    TensorType::IQ2_S,
    TensorType::IQ1_S,
    TensorType::IQ1_M,
    TensorType::TQ1_0,
    TensorType::TQ2_0,
    TensorType::MXFP4,
];

/// A small generator, so that a failure repeats.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    pub(crate) fn float(&mut self) -> f32 {
        (self.next() as f32 / (1u32 << 30) as f32 - 1.0) * 3.0
    }
}

/// What the codes of a weight row look like.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Codes {
    Random,
    /// All bits set: the largest codes, scales and minimums.
    Maximal,
    Zero,
}

/// `n` bytes of blocks whose float scales are `scale` (or random, where it is `None`).
pub(crate) fn weights(
    ty: TensorType,
    n_elems: usize,
    codes: Codes,
    scale: Option<u16>,
    random: &mut Random,
) -> Vec<u8> {
    let mut bytes = vec![0u8; ty.row_bytes(n_elems).expect("whole blocks")];
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        for byte in block.iter_mut() {
            *byte = match codes {
                Codes::Random => random.next() as u8,
                Codes::Maximal => 0xFF,
                Codes::Zero => 0,
            };
        }
        match ty {
            TensorType::F32 => block.copy_from_slice(&random.float().to_le_bytes()),
            _ => put_scales(ty, block, || scale.unwrap_or_else(|| 0x2000 | random.next() as u16 & 0x9FFF)),
        }
    }
    bytes
}

/// Writes the float scales of a block.
pub(crate) fn put_scales(ty: TensorType, block: &mut [u8], mut half: impl FnMut() -> u16) {
    let halves: &[usize] = match ty {
        // An exponent: ordinary ones for ordinary scales, and the extremes.
        TensorType::MXFP4 => return block[0] = (half() >> 7) as u8,
        TensorType::IQ1_M => {
            let half = half();
            for i in 0..4 {
                block[49 + 2 * i] = block[49 + 2 * i] & 15 | ((half >> (4 * i) & 15) as u8) << 4;
            }
            return;
        }
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => &[0, 2],
        TensorType::Q2_K => &[80, 82],
        TensorType::Q3_K => &[108],
        TensorType::Q6_K => &[208],
        TensorType::TQ1_0 => &[52],
        TensorType::TQ2_0 => &[64],
        _ => &[0],
    };
    for &at in halves {
        block[at..at + 2].copy_from_slice(&half().to_le_bytes());
    }
}

/// The product under `isa`, as bits; NaN of any payload is one value.
pub(crate) fn product(cpu: &Cpu, ty: TensorType, rows: usize, cols: usize, bytes: &[u8], x: &[f32]) -> Vec<u32> {
    let w = cpu.pack(ty, rows, cols, bytes).expect("packs");
    let mut acts = Activations::new();
    cpu.activate(x, cols, ActivationKinds::of([ty]), &mut acts);
    let mut out = vec![0.0; x.len() / cols * rows];
    cpu.matmul(&w, &acts, &mut out);
    out.iter().map(|v| if v.is_nan() { 0x7FC0_0000 } else { v.to_bits() }).collect()
}

pub(crate) fn cpus() -> Vec<Cpu> {
    let isas = Isa::available();
    println!("instruction sets under test: {isas:?}");
    isas.into_iter().flat_map(|isa| [1, 2].map(|n| Cpu::new(isa, n).expect("available"))).collect()
}

pub(crate) fn check(cpus: &[Cpu], ty: TensorType, rows: usize, cols: usize, bytes: &[u8], x: &[f32], what: &str) {
    let want = product(&cpus[0], ty, rows, cols, bytes, x);
    for cpu in &cpus[1..] {
        let got = product(cpu, ty, rows, cols, bytes, x);
        let n = x.len() / cols;
        let at = want.iter().zip(&got).position(|(w, g)| w != g);
        assert_eq!(at, None, "{ty} {rows}x{cols}, batch {n}, {what}: {cpu:?} differs from scalar");
    }
}
