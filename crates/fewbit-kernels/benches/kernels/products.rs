//! Products of every weight type. `read`: 65,536 x 2,048 weights, more than a cache holds, with few rows in the batch,
//! as in decode. `batch`: 1,024 x 2,048 with 512 rows, as in prefill.

use fewbit_kernels::{ActivationKinds, Activations, Cpu, Isa};
use fewbit_quant::TensorType;
use fewbit_quant::activation::ActivationKind;

use crate::{Case, Ready, Work, isas};

/// Types that are as fast as another one in this list are left out: the other K-quants and IQ types, and BF16.
const TYPES: [TensorType; 18] = [
    TensorType::F32,
    TensorType::F16,
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
    TensorType::IQ3_S,
    TensorType::IQ2_XS,
    TensorType::TQ2_0,
    TensorType::MXFP4,
];

pub(crate) fn cases(small: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for isa in isas() {
        for ty in TYPES {
            for n in [1, 2, 4, 8, 512] {
                let (kind, rows) = if n < 512 { ("read", 65_536) } else { ("batch", 1_024) };
                let rows = if small { 32 } else { rows };
                let set_up = Box::new(move || product(isa, ty, n, rows, 2_048));
                cases.push(Case { name: format!("{kind} {} x{n}", ty.name()), isa, set_up });
            }
        }
    }
    cases
}

fn product(isa: Isa, ty: TensorType, n: usize, n_rows: usize, n_cols: usize) -> Ready {
    let cpu = Cpu::new(isa, 1).expect("available");
    let n_bytes = ty.row_bytes(n_rows * n_cols).expect("whole blocks");
    // Any codes will do; small bytes keep the f16 scales finite.
    let bytes: Vec<u8> = (0..n_bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8 & 0x3F).collect();
    let weights = cpu.pack(ty, n_rows, n_cols, &bytes).expect("packs");
    drop(bytes);
    let x: Vec<f32> = (0..n * n_cols).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    let mut activations = Activations::new();
    cpu.activate(&x, n_cols, ActivationKinds::of([ty]), &mut activations);
    let mut out = vec![0.0; n * n_rows];
    let work = Work {
        items: n * n_rows * n_cols,
        bytes: weights.n_bytes(),
        is_int8: ActivationKind::of(ty) != Some(ActivationKind::F32),
        is_read: n < 512,
    };
    (work, Box::new(move || cpu.matmul(&weights, &activations, &mut out)))
}
