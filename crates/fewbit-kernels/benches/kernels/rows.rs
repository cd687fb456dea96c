//! Norm and quantization of rows, in one pass: one row as in decode, 512 as in prefill.

use fewbit_kernels::{ActivationKinds, Activations, Cpu, Isa};
use fewbit_quant::TensorType;

use crate::{Case, Ready, Work, isas};

const N_COLS: usize = 2_048;

pub(crate) fn cases(small: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for isa in isas() {
        for (name, ty) in [("32", TensorType::Q4_0), ("256", TensorType::Q4_K)] {
            for n in [1, if small { 4 } else { 512 }] {
                let set_up = Box::new(move || norm(isa, ty, n));
                cases.push(Case { name: format!("rows norm quantize {name} x{n}"), isa, set_up });
            }
        }
    }
    cases
}

fn norm(isa: Isa, ty: TensorType, n: usize) -> Ready {
    let cpu = Cpu::new(isa, 1).expect("available");
    let x: Vec<f32> = (0..n * N_COLS).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    let (weight, mut out) = (vec![1.0; N_COLS], Activations::new());
    let work = Work { items: x.len(), bytes: 4 * x.len(), ..Work::default() };
    (work, Box::new(move || cpu.rms_norm(&x, &weight, 1e-5, ActivationKinds::of([ty]), &mut out)))
}
