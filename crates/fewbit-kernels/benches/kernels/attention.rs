//! Attention with the heads of TinyLlama (32 query heads, 4 key heads of 64): 64 queries as in prefill and one as in
//! decode, at the start of a context and after 4,096 positions.

use fewbit_kernels::kv::Q8;
use fewbit_kernels::{AttentionSequence, AttentionShape, Cpu, Isa, KvElement, KvPage, KvPageMut, PAGE};
use half::f16;

use crate::{Case, Ready, Work, isas};

const SHAPE: AttentionShape = AttentionShape {
    n_heads: 32,
    n_kv_heads: 4,
    head_dim: 64,
    scale: 0.125,
    softcap: None,
    window: None,
    is_chunked: false,
    value_offset: None,
};

pub(crate) fn cases(small: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for isa in isas() {
        for (name, n, depth) in [("prefill", 64, 0), ("prefill", 64, 4096), ("decode", 1, 255), ("decode", 1, 4096)] {
            let depth = if small { depth / 8 } else { depth };
            let of = |ty: &str| format!("attention {ty} {name} at {depth}");
            let (halves, floats) = (move || attention::<f16>(isa, n, depth), move || attention::<f32>(isa, n, depth));
            let blocks = move || attention::<Q8>(isa, n, depth);
            cases.push(Case { name: of("f16"), isa, set_up: Box::new(halves) });
            cases.push(Case { name: of("f32"), isa, set_up: Box::new(floats) });
            cases.push(Case { name: of("q8_0"), isa, set_up: Box::new(blocks) });
        }
    }
    cases
}

fn attention<T: KvElement>(isa: Isa, n_tokens: usize, depth: usize) -> Ready {
    let cpu = Cpu::new(isa, 1).expect("available");
    let n = depth + n_tokens;
    let mut pages: Vec<(Vec<T>, Vec<T>)> = (0..n.div_ceil(PAGE))
        .map(|_| (vec![T::default(); SHAPE.key_elems::<T>()], vec![T::default(); SHAPE.value_elems::<T>()]))
        .collect();
    let kv_row = SHAPE.n_kv_heads * SHAPE.head_dim;
    let kv: Vec<f32> = (0..n * kv_row).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    let mut to: Vec<_> = pages.iter_mut().map(|(keys, values)| KvPageMut { keys, values }).collect();
    cpu.store_kv(&SHAPE, &mut to, 0, &kv, &kv);
    let row = SHAPE.n_heads * SHAPE.head_dim;
    let q: Vec<f32> = (0..n_tokens * row).map(|i| (i * 7907 % 1000) as f32 / 500.0 - 1.0).collect();
    let mut out = vec![0.0; q.len()];
    let seen: usize = (0..n_tokens).map(|i| depth + i + 1).sum();
    let work = Work {
        items: seen * row * 2,
        bytes: n.div_ceil(PAGE) * (SHAPE.key_elems::<T>() + SHAPE.value_elems::<T>()) * size_of::<T>(),
        ..Work::default()
    };
    let call = move || {
        let pages = pages.iter().map(|(keys, values)| KvPage { keys, values }).collect();
        let sequence = AttentionSequence { first_position: depth, n_tokens, pages };
        cpu.attention(&SHAPE, std::slice::from_ref(&sequence), None, &q, &mut out);
    };
    (work, Box::new(call))
}
