//! What tests of products share: weights of every type, and the comparison of instruction sets.
#![allow(dead_code)] // no test uses all of it

use fewbit_kernels::{ActivationKinds, Activations, Cpu, Isa};
use fewbit_quant::TensorType;
use fewbit_quant::block::FloatScale;
use half::f16;

/// Every type that weights can have.
pub(crate) fn types() -> impl Iterator<Item = TensorType> {
    TensorType::all().filter(|ty| ty.is_supported())
}

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

/// Writes the float scales of a block, which are the bits of `f16`.
pub(crate) fn put_scales(ty: TensorType, block: &mut [u8], mut half: impl FnMut() -> u16) {
    match ty.format().map(|format| format.scale) {
        // An exponent: ordinary ones for ordinary scales, and the extremes.
        Some(FloatScale::Exponent(at)) => block[at] = (half() >> 7) as u8,
        Some(scale) => {
            let mut value = || f16::from_bits(half()).to_f32();
            let d = value();
            scale.write(block, d, if scale.has_min() { value() } else { 0.0 });
        }
        None => block[..2].copy_from_slice(&half().to_le_bytes()),
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
