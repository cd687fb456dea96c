//! Norms, quantization, and what is done for each element.

use crate::memory::{FormMemory, Memory, Random, assert_bits, cpu, run};
use fewbit_gpu::cuda::kernels::{Form, GateParams, NormParams, QuantizeParams, RotateParams, RowsOp, RowsParams};
use fewbit_kernels::{ActivationKinds, Activations, GateFunction, RopeStyle, math};
use fewbit_quant::ActivationKind;

const KINDS: [ActivationKind; 2] = [ActivationKind::Q8Block32, ActivationKind::Q8Block256];

/// Numbers of all magnitudes, with rows of zeros and rows that are not finite.
fn rows(random: &mut Random, n_rows: usize, n_cols: usize) -> Vec<f32> {
    let mut x = random.floats(n_rows * n_cols, 1.0);
    for (i, x) in x.chunks_exact_mut(n_cols).enumerate() {
        match i % 7 {
            1 => x.fill(0.0),
            2 => x.iter_mut().for_each(|x| *x *= 3e-30),
            3 => x[n_cols / 2] = f32::NAN,
            4 => x[n_cols - 1] = f32::NEG_INFINITY,
            5 => x.iter_mut().for_each(|x| *x *= 1e30),
            _ => {}
        }
    }
    x
}

#[test]
fn norms_and_their_forms_have_the_bits_of_the_cpu() {
    let random = &mut Random(1);
    for (n_rows, part) in [(1, 1), (2, 15), (3, 96), (7, 256), (8, 4352), (2, 5000)] {
        for (in_place, has_mean) in [(false, false), (true, false), (false, true), (true, true)] {
            let (x, weight) = (random.floats(n_rows * part, 4.0), random.floats(part, 2.0));
            let (from, weight_memory) = (Memory::of(&x), Memory::of(&weight));
            let mut to = Memory::new(n_rows * part);
            let planes = 1 + n_rows % 2;
            let with_form = |kind: &ActivationKind| part.is_multiple_of(kind.block_elems());
            let mut forms = KINDS.map(|kind| with_form(&kind).then(|| FormMemory::new(kind, planes * n_rows, part)));
            let [q32, q256] = forms.each_ref().map(|form| form.as_ref().map_or(Form::default(), FormMemory::form));
            let params = NormParams {
                from: from.address(),
                weight: weight_memory.address(),
                to: if in_place { from.address() } else { to.address() },
                q32,
                q256,
                n_rows: n_rows as u32,
                n_parts: 1,
                part: part as u32,
                planes: planes as u32,
                eps: 1e-5,
                has_mean: u32::from(has_mean),
            };
            if run(&params.launch(), &params).is_none() {
                return;
            }
            let mut want = Activations::new();
            match has_mean {
                true => cpu().layer_norm(&x, &weight, 1e-5, ActivationKinds::default(), &mut want),
                false => cpu().rms_norm(&x, &weight, 1e-5, ActivationKinds::default(), &mut want),
            }
            let what = format!("{n_rows} rows of {part}, without their mean: {has_mean}");
            assert_bits(if in_place { from.get() } else { to.get() }, want.values(), &what);
            to.check();
            for (kind, form) in KINDS.into_iter().zip(&mut forms) {
                form.iter_mut().for_each(|form| form.check(kind, want.values(), planes, &what));
            }
        }
    }
}

#[test]
fn norms_of_heads_have_the_bits_of_the_cpu() {
    let random = &mut Random(2);
    for (n_rows, n_heads, part) in [(1, 3, 5), (3, 4, 64), (33, 2, 128)] {
        let (mut x, weight) = (random.floats(n_rows * n_heads * part, 4.0), random.floats(part, 2.0));
        let (mut memory, weight_memory) = (Memory::of(&x), Memory::of(&weight));
        let params = NormParams {
            from: memory.address(),
            weight: weight_memory.address(),
            to: memory.address(),
            n_rows: n_rows as u32,
            n_parts: n_heads as u32,
            part: part as u32,
            eps: 1e-6,
            ..NormParams::default()
        };
        if run(&params.launch(), &params).is_none() {
            return;
        }
        cpu().norm_heads(&weight, 1e-6, n_heads, &mut x);
        assert_bits(memory.get(), &x, &format!("{n_rows} rows of {n_heads} heads of {part}"));
        memory.check();
    }
}

#[test]
fn quantized_forms_follow_the_rule() {
    let random = &mut Random(3);
    for kind in KINDS {
        let block = kind.block_elems();
        for (n_rows, n_cols) in [(1, block), (9, 3 * block), (2, 9 * 256), (33, 2 * block)] {
            for planes in [1, 2] {
                let x = rows(random, n_rows, n_cols);
                let (from, mut to) = (Memory::of(&x), FormMemory::new(kind, planes * n_rows, n_cols));
                let params = QuantizeParams {
                    from: from.address(),
                    to: to.form(),
                    n_rows: n_rows as u32,
                    n_cols: n_cols as u32,
                    planes: planes as u32,
                    unused: 0,
                };
                if run(&params.launch(kind), &params).is_none() {
                    return;
                }
                to.check(kind, &x, planes, &format!("{kind:?}, {n_rows} rows of {n_cols}"));
            }
        }
    }
}

#[test]
fn gates_and_their_forms_have_the_bits_of_the_cpu() {
    let random = &mut Random(4);
    for function in [GateFunction::Silu, GateFunction::GeluTanh, GateFunction::ClampedSilu] {
        for (n_rows, n_cols) in [(1, 3), (7, 77), (2, 96), (3, 2304)] {
            let (mut gate, up) = (random.floats(n_rows * n_cols, 90.0), random.floats(n_rows * n_cols, 12.0));
            let (mut gate_memory, up_memory) = (Memory::of(&gate), Memory::of(&up));
            let with_form = |kind: &ActivationKind| n_cols.is_multiple_of(kind.block_elems());
            let mut forms = KINDS.map(|kind| with_form(&kind).then(|| FormMemory::new(kind, n_rows, n_cols)));
            let [q32, q256] = forms.each_ref().map(|form| form.as_ref().map_or(Form::default(), FormMemory::form));
            let (n_rows, n_cols) = (n_rows as u32, n_cols as u32);
            let (gate_at, up_at) = (gate_memory.address(), up_memory.address());
            let params = GateParams { gate: gate_at, up: up_at, q32, q256, n_rows, n_cols };
            if run(&params.launch(function), &params).is_none() {
                return;
            }
            cpu().gate(function, n_cols as usize, &mut gate, &up);
            let what = format!("{function:?}, {n_rows} rows of {n_cols}");
            assert_bits(gate_memory.get(), &gate, &what);
            gate_memory.check();
            for (kind, form) in KINDS.into_iter().zip(&mut forms) {
                form.iter_mut().for_each(|form| form.check(kind, &gate, 1, &what));
            }
        }
    }
}

#[test]
fn operations_on_elements_have_the_bits_of_the_cpu() {
    let random = &mut Random(5);
    for (n_rows, n_cols) in [(1, 1), (7, 256), (33, 301)] {
        let x = rows(random, n_rows, n_cols);
        let all = [RowsOp::Bias, RowsOp::Temper, RowsOp::Add, RowsOp::Scale, RowsOp::Softcap, RowsOp::SquaredRelu];
        for op in all {
            let other = random.floats(n_rows * n_cols, 2.0);
            let (mut to, other_memory) = (Memory::of(&x), Memory::of(&other));
            let (a, b) = if op == RowsOp::Softcap { (30.0, 1.0 / 30.0) } else { (0.37, 0.0) };
            let (n_rows, n_cols) = (n_rows as u32, n_cols as u32);
            let params = RowsParams { to: to.address(), other: other_memory.address(), n_rows, n_cols, a, b };
            if run(&params.launch(op), &params).is_none() {
                return;
            }
            let n_cols = n_cols as usize;
            let value = |(i, &x): (usize, &f32)| match op {
                RowsOp::Bias => x + other[i % n_cols],
                RowsOp::Temper => x * other[i / n_cols],
                RowsOp::Add => other[i].mul_add(a, x),
                RowsOp::Scale => x * a,
                RowsOp::Softcap => a * math::tanh(x * b),
                RowsOp::SquaredRelu if x < 0.0 => 0.0,
                RowsOp::SquaredRelu => x * x,
            };
            let want: Vec<f32> = x.iter().enumerate().map(value).collect();
            assert_bits(to.get(), &want, &format!("{op:?}"));
            to.check();
        }
    }
}

#[test]
fn rotations_have_the_bits_of_the_cpu() {
    let random = &mut Random(6);
    for style in [RopeStyle::Interleaved, RopeStyle::HalfSplit] {
        // Whole heads, and parts of heads.
        for (n_rows, n_heads, head_dim, half) in [(1, 1, 2, 1), (7, 3, 64, 32), (2, 9, 80, 20), (33, 2, 5, 2)] {
            let mut x = random.floats(n_rows * n_heads * head_dim, 3.0);
            let (cos, sin) = (random.floats(n_rows * half, 1.0), random.floats(n_rows * half, 1.0));
            let (mut to, cos_memory, sin_memory) = (Memory::of(&x), Memory::of(&cos), Memory::of(&sin));
            let params = RotateParams {
                to: to.address(),
                cos: cos_memory.address(),
                sin: sin_memory.address(),
                n_rows: n_rows as u32,
                n_cols: (n_heads * head_dim) as u32,
                head_dim: head_dim as u32,
                half: half as u32,
            };
            if run(&params.launch(style), &params).is_none() {
                return;
            }
            cpu().rope(style, head_dim, n_heads, &cos, &sin, &mut x);
            assert_bits(to.get(), &x, &format!("{style:?}, {n_heads} heads of {head_dim}"));
            to.check();
        }
    }
}
