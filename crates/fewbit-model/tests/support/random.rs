//! Random weights of any type.

use fewbit_quant::TensorType;

/// A small generator, so that a failure repeats.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// Blocks of random codes, with scales that keep values around 0.1.
    pub(crate) fn blocks(&mut self, ty: TensorType, n_elems: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; ty.row_bytes(n_elems).expect("whole blocks")];
        let scale = |x: f32| half::f16::from_f32(x).to_le_bytes();
        for block in bytes.chunks_exact_mut(ty.block_bytes()) {
            block.fill_with(|| self.next() as u8);
            let mut value = || (self.next() % 2001) as f32 / 5000.0 - 0.2;
            match ty {
                TensorType::F16 => block.copy_from_slice(&scale(value())),
                TensorType::BF16 => block.copy_from_slice(&half::bf16::from_f32(value()).to_le_bytes()),
                TensorType::Q8_0 => block[..2].copy_from_slice(&scale(0.002)),
                TensorType::Q4_1 => {
                    block[..2].copy_from_slice(&scale(0.02));
                    block[2..4].copy_from_slice(&scale(-0.15));
                }
                TensorType::Q4_K => {
                    block[..2].copy_from_slice(&scale(0.0006));
                    block[2..4].copy_from_slice(&scale(0.004));
                }
                TensorType::Q6_K => block[208..].copy_from_slice(&scale(0.00005)),
                _ => block[..2].copy_from_slice(&scale(0.015)),
            }
        }
        bytes
    }
}
