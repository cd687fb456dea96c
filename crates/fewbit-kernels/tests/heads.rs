//! Attention of every head size and split, and of what is not a number, on every instruction set.

use fewbit_kernels::kv::Q8;
use fewbit_kernels::{AttentionSequence, AttentionShape, Cpu, Isa, KvElement, KvPage, KvPageMut, PAGE};
use half::f16;

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f32 / (1u64 << 30) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Bits; NaN of any payload is one value.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| if v.is_nan() { 0x7FC0_0000 } else { v.to_bits() }).collect()
}

/// The outputs of the queries from position `first` on, `split` at a time.
fn attend<T: KvElement>(
    cpu: &Cpu,
    shape: &AttentionShape,
    first: usize,
    split: usize,
    [q, k, v]: [&[f32]; 3],
) -> Vec<f32> {
    let (row, kv_row) = (shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
    let n = k.len() / kv_row;
    let mut pages: Vec<_> = (0..n.div_ceil(PAGE))
        .map(|_| (vec![T::default(); shape.key_elems::<T>()], vec![T::default(); shape.value_elems::<T>()]))
        .collect();
    let mut to: Vec<_> = pages.iter_mut().map(|(keys, values)| KvPageMut { keys, values }).collect();
    cpu.store_kv(shape, &mut to, 0, k, v);
    let mut out = vec![0.0; q.len()];
    for start in (0..n - first).step_by(split) {
        let tokens = start..(n - first).min(start + split);
        let pages = pages.iter().map(|(keys, values)| KvPage { keys, values }).collect();
        let sequence = AttentionSequence { first_position: first + start, n_tokens: tokens.len(), pages };
        let part = tokens.start * row..tokens.end * row;
        cpu.attention(shape, &[sequence], None, &q[part.clone()], &mut out[part]);
    }
    out
}

fn check<T: KvElement>(shape: &AttentionShape, first: usize, inputs: [&[f32]; 3], what: &str) {
    let scalar = Cpu::new(Isa::Scalar, 1).expect("always available");
    let want = bits(&attend::<T>(&scalar, shape, first, usize::MAX >> 1, inputs));
    for isa in Isa::available() {
        for (threads, split) in [(1, 1), (2, 1), (1, 5), (2, 17)] {
            let cpu = Cpu::new(isa, threads).expect("available");
            let got = bits(&attend::<T>(&cpu, shape, first, split, inputs));
            assert!(got == want, "{what}, {shape:?}: {isa}, {threads} threads, {split} queries at a time");
        }
    }
}

#[test]
fn every_head_size_has_the_bits_of_the_scalar_code() {
    for (head_dim, window) in [
        (32, None),
        (33, Some(20)),
        (40, None),
        (48, Some(7)),
        (64, None),
        (72, Some(257)),
        (80, None),
        (96, Some(100)),
        (104, None),
        (112, None),
        (120, Some(30)),
        (128, None),
        (136, None),
        (160, Some(280)),
        (192, None),
        (200, Some(3)),
        (256, None),
    ] {
        // Queries on both sides of the end of a page, and three query heads per key head.
        let (n, first) = (PAGE + 11, PAGE - 9);
        let shape = AttentionShape {
            n_heads: 3,
            n_kv_heads: 1,
            head_dim,
            scale: 0.2,
            softcap: None,
            window,
            is_chunked: false,
            value_offset: None,
        };
        let (q, k, v) = (random((n - first) * 3 * head_dim, 1), random(n * head_dim, 2), random(n * head_dim, 3));
        check::<f16>(&shape, first, [&q, &k, &v], "f16");
        check::<f32>(&shape, first, [&q, &k, &v], "f32");
        if Q8::supports(head_dim) {
            check::<Q8>(&shape, first, [&q, &k, &v], "q8_0");
        }
    }
}

/// Random scores are small and their softmax is flat, so that errors average out as they do in a model.
#[test]
fn q8_0_cache_is_close_to_f32() {
    for (head_dim, window) in [(32, None), (64, None), (128, Some(100)), (96, None)] {
        let n = PAGE + 40;
        let shape = AttentionShape {
            n_heads: 4,
            n_kv_heads: 2,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: None,
            window,
            is_chunked: false,
            value_offset: None,
        };
        let (q, k, v) = (random(n * 4 * head_dim, 1), random(n * 2 * head_dim, 2), random(n * 2 * head_dim, 3));
        let cpu = Cpu::new(Isa::best(), 2).expect("available");
        let want = attend::<f32>(&cpu, &shape, 0, n, [&q, &k, &v]);
        let got = attend::<Q8>(&cpu, &shape, 0, n, [&q, &k, &v]);
        let error: f64 = want.iter().zip(&got).map(|(w, g)| f64::from(w - g).powi(2)).sum();
        let size: f64 = want.iter().map(|w| f64::from(*w).powi(2)).sum();
        // An element is rounded to 1 / 254 of the largest of 32.
        assert!((error / size).sqrt() < 0.01, "{shape:?}: relative error {}", (error / size).sqrt());
        assert_ne!(bits(&want), bits(&got));
    }
}

#[test]
fn extremes_nan_and_infinity_have_the_bits_of_the_scalar_code() {
    let (head_dim, n, first) = (40, PAGE + 5, PAGE - 12);
    let shape = AttentionShape {
        n_heads: 2,
        n_kv_heads: 1,
        head_dim,
        scale: 1.0,
        softcap: None,
        window: Some(90),
        is_chunked: false,
        value_offset: None,
    };
    let inputs =
        |head_dim: usize| [random((n - first) * 2 * head_dim, 1), random(n * head_dim, 2), random(n * head_dim, 3)];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, -3e38, 1e-40, 0.0, -0.0] {
        for which in 0..3 {
            let mut all = inputs(head_dim);
            let len = all[which].len();
            // One element near the end, and a whole row.
            all[which][len - 3 * head_dim - 1] = bad;
            all[which][len - 2 * head_dim..len - head_dim].fill(bad);
            check::<f16>(&shape, first, all.each_ref().map(Vec::as_slice), &format!("{bad} in input {which}"));
            check::<f32>(&shape, first, all.each_ref().map(Vec::as_slice), &format!("{bad} in input {which}"));
        }
    }
    // Blocks of Q8_0 want other heads.
    let (head_dim, shape) = (64, AttentionShape { head_dim: 64, ..shape });
    for bad in [f32::NAN, f32::INFINITY, 3e38, 1e-40, 0.0] {
        for which in 0..3 {
            let mut all = inputs(head_dim);
            let len = all[which].len();
            all[which][len - 3 * head_dim - 1] = bad;
            all[which][len - 2 * head_dim..len - head_dim].fill(bad);
            check::<Q8>(&shape, first, all.each_ref().map(Vec::as_slice), &format!("q8_0, {bad} in input {which}"));
        }
    }
    let (head_dim, shape) = (40, AttentionShape { head_dim: 40, ..shape });
    // Scores so far apart that all weights but one are 0.
    let mut all = inputs(head_dim);
    all[0].iter_mut().for_each(|q| *q *= 1e4);
    check::<f16>(&shape, first, all.each_ref().map(Vec::as_slice), "large scores");
}

#[test]
fn nan_in_a_query_does_not_affect_other_queries() {
    let (head_dim, n) = (64, 30);
    let shape = AttentionShape {
        n_heads: 2,
        n_kv_heads: 2,
        head_dim,
        scale: 0.125,
        softcap: None,
        window: None,
        is_chunked: false,
        value_offset: None,
    };
    let row = 2 * head_dim;
    let (q, k, v) = (random(n * row, 1), random(n * row, 2), random(n * row, 3));
    let mut bad = q.clone();
    bad[7 * row..8 * row].fill(f32::NAN);
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 1).expect("available");
        let want = attend::<f16>(&cpu, &shape, 0, n, [&q, &k, &v]);
        let got = attend::<f16>(&cpu, &shape, 0, n, [&bad, &k, &v]);
        assert!(got[7 * row..8 * row].iter().all(|y| y.is_nan()), "{isa}");
        assert_eq!(bits(&got[..7 * row]), bits(&want[..7 * row]), "{isa}");
        assert_eq!(bits(&got[8 * row..]), bits(&want[8 * row..]), "{isa}");
    }
}
