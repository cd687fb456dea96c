//! Attention and the row operations: the bits of the definition on every instruction set, number of threads
//! and split of the queries; and the values of a float64 computation.

#[path = "support/floats.rs"]
mod floats;

use fewbit_kernels::KvElement;
use fewbit_kernels::kv::Q8;
use fewbit_kernels::math::{exp, tanh, tree_sum};
use fewbit_kernels::{
    ActivationKinds, Activations, AttentionSequence, AttentionShape, Cpu, Isa, KvFloat, KvPage, KvPageMut, PAGE,
    RopeStyle,
};
use floats::{bits, random};
use half::f16;

/// A cache of one layer.
struct Cache<T> {
    shape: AttentionShape,
    pages: Vec<(Vec<T>, Vec<T>)>,
}

impl<T: KvFloat> Cache<T> {
    fn new(shape: AttentionShape, n: usize) -> Self {
        // Not zero: whatever lies after the last position must not matter.
        let page = || {
            (
                vec![T::from_f32(f32::NAN); shape.key_elems::<T>()],
                vec![T::from_f32(f32::INFINITY); shape.value_elems::<T>()],
            )
        };
        Self { shape, pages: (0..n.div_ceil(PAGE)).map(|_| page()).collect() }
    }

    fn store(&mut self, cpu: &Cpu, first: usize, k: &[f32], v: &[f32]) {
        let mut pages: Vec<_> =
            self.pages.iter_mut().map(|(k, v)| KvPageMut { keys: &mut k[..], values: &mut v[..] }).collect();
        cpu.store_kv(&self.shape, &mut pages, first, k, v);
    }

    fn sequence(&self, first_position: usize, n_tokens: usize) -> AttentionSequence<'_, T> {
        let pages = self.pages.iter().map(|(k, v)| KvPage { keys: k, values: v }).collect();
        AttentionSequence { first_position, n_tokens, pages }
    }
}

/// The definition, for one query row.
fn definition<T: KvFloat>(
    shape: &AttentionShape,
    position: usize,
    kv_head: usize,
    sink: Option<f32>,
    q: &[f32],
    k: &[f32],
    v: &[f32],
) -> Vec<f32> {
    let hd = shape.head_dim;
    let row = shape.n_kv_heads * hd;
    let at = |x: &[f32], j: usize, d: usize| T::from_f32(x[j * row + kv_head * hd + d]).to_f32();
    let first = match shape.window {
        Some(w) if shape.is_chunked => position - position % w,
        window => window.map_or(0, |w| (position + 1).saturating_sub(w)),
    };
    let (mut max, mut sum, mut out) = (0.0f32, 0.0f32, Vec::new());
    for page in first / PAGE..=position / PAGE {
        let keys: Vec<usize> = (first.max(page * PAGE)..=position.min(page * PAGE + PAGE - 1)).collect();
        let score = |&j: &usize| {
            let s = (0..hd).fold(0.0f32, |s, d| (q[d] * shape.scale).mul_add(at(k, j, d), s));
            shape.softcap.map_or(s, |cap| cap * tanh(s * (1.0 / cap)))
        };
        let scores: Vec<f32> = keys.iter().map(score).collect();
        let m = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut lanes = [0.0f32; 16];
        let mut o = vec![0.0f32; hd];
        for (&j, &s) in keys.iter().zip(&scores) {
            let p = exp(s - m);
            lanes[j % 16] += p;
            for (d, o) in o.iter_mut().enumerate() {
                *o = p.mul_add(at(v, j, d), *o);
            }
        }
        let l = tree_sum(lanes);
        if out.is_empty() {
            (max, sum, out) = (m, l, o);
        } else {
            let new = max.max(m);
            let (a, b) = (exp(max - new), exp(m - new));
            sum = l.mul_add(b, sum * a);
            out.iter_mut().zip(&o).for_each(|(y, o)| *y = o.mul_add(b, *y * a));
            max = new;
        }
    }
    let scale = match sink {
        None => 1.0 / sum,
        Some(sink) => {
            let new = max.max(sink);
            exp(max - new) / (sum * exp(max - new) + exp(sink - new))
        }
    };
    out.iter().map(|o| o * scale).collect()
}

#[test]
fn attention_equals_its_definition_for_every_split() {
    check_attention::<f16>();
    check_attention::<f32>();
}

fn check_attention<T: KvFloat>() {
    for (n_heads, n_kv_heads, head_dim, window, is_chunked, softcap, has_sinks, n) in [
        (9, 3, 64, None, false, None, false, 600),
        (4, 4, 8, None, false, Some(0.7), false, 300),
        (8, 2, 24, Some(64), false, None, true, 600),
        (4, 1, 128, Some(257), false, Some(50.0), false, 530),
        (2, 2, 16, Some(1), false, None, false, 40),
        (4, 2, 40, Some(280), true, None, false, 600),
        (6, 2, 16, Some(21), true, None, true, 100),
        (4, 1, 16, None, false, None, true, 600),
    ] {
        let scale = 1.0 / (head_dim as f32).sqrt();
        let shape =
            AttentionShape { n_heads, n_kv_heads, head_dim, scale, softcap, window, is_chunked, value_offset: None };
        // Below, among and above the scores.
        let sinks: Option<Vec<f32>> = has_sinks.then(|| (0..n_heads).map(|h| h as f32 * 3.0 - 6.0).collect());
        let (q, kv) = (n_heads * head_dim, n_kv_heads * head_dim);
        let (qs, k, v) = (random(n * q, 1), random(n * kv, 2), random(n * kv, 3));
        let group = n_heads / n_kv_heads;
        let want: Vec<f32> = (0..n * n_heads)
            .flat_map(|i| {
                let query = &qs[i * head_dim..(i + 1) * head_dim];
                let (head, sink) = (i % n_heads, sinks.as_ref().map(|sinks| sinks[i % n_heads]));
                definition::<T>(&shape, i / n_heads, head / group, sink, query, &k, &v)
            })
            .collect();
        for isa in Isa::available() {
            // The slow ones take few ways through the split, which is the same code for all.
            let is_slow = isa <= Isa::Sse2;
            for threads in [1, 2] {
                let cpu = Cpu::new(isa, threads).expect("available");
                for chunk in if is_slow { [1, 64][..threads].to_vec() } else { vec![1, 7, 64, 1000] } {
                    let mut cache = Cache::<T>::new(shape, n);
                    let mut out = vec![0.0; n * q];
                    // One token at a time only for the last few: it is the slowest.
                    let mut first = if chunk == 1 { n - 5 } else { 0 };
                    cache.store(&cpu, 0, &k[..first * kv], &v[..first * kv]);
                    let skipped = first;
                    while first < n {
                        let end = n.min(first + chunk);
                        cache.store(&cpu, first, &k[first * kv..end * kv], &v[first * kv..end * kv]);
                        let sequence = cache.sequence(first, end - first);
                        let (qs, out) = (&qs[first * q..end * q], &mut out[first * q..end * q]);
                        cpu.attention(&shape, &[sequence], sinks.as_deref(), qs, out);
                        first = end;
                    }
                    let same = bits(&out[skipped * q..]) == bits(&want[skipped * q..]);
                    assert!(same, "{shape:?}, {isa}, {threads} threads, chunks of {chunk}");
                }
            }
        }
    }
}

#[test]
fn sequences_in_a_batch_are_independent() {
    let shape = AttentionShape {
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 32,
        scale: 0.2,
        softcap: None,
        window: None,
        is_chunked: false,
        value_offset: None,
    };
    let (q, kv) = (128, 64);
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 2).expect("available");
        let lens = [(300, 1), (5, 3), (260, 40)];
        let caches: Vec<Cache<f16>> = (0..lens.len())
            .map(|s| {
                let n = lens[s].0;
                let mut cache = Cache::new(shape, n);
                cache.store(&cpu, 0, &random(n * kv, s as u64), &random(n * kv, 10 + s as u64));
                cache
            })
            .collect();
        let sequences: Vec<_> = caches.iter().zip(lens).map(|(c, (n, new))| c.sequence(n - new, new)).collect();
        let queries = random(44 * q, 99);
        let mut together = vec![0.0; 44 * q];
        cpu.attention(&shape, &sequences, None, &queries, &mut together);
        let mut at = 0;
        for (sequence, (_, new)) in sequences.iter().zip(lens) {
            let mut alone = vec![0.0; new * q];
            let range = at * q..(at + new) * q;
            cpu.attention(&shape, std::slice::from_ref(sequence), None, &queries[range.clone()], &mut alone);
            assert_eq!(bits(&alone), bits(&together[range]), "{isa}");
            at += new;
        }
    }
}

#[test]
fn norm_and_rope_are_correct_and_the_same_on_every_isa() {
    let (n, cols) = (3, 90);
    let (x, weight) = (random(n * cols, 1), random(cols, 2));
    let cpus: Vec<Cpu> = Isa::available().into_iter().map(|isa| Cpu::new(isa, 2).expect("available")).collect();
    let norms: Vec<Vec<f32>> = cpus
        .iter()
        .map(|cpu| {
            let mut out = Activations::new();
            cpu.rms_norm(&x, &weight, 1e-5, ActivationKinds::default(), &mut out);
            out.values().to_vec()
        })
        .collect();
    for (row, norm) in x.chunks(cols).zip(norms[0].chunks(cols)) {
        let mean = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / cols as f64;
        for ((&v, &w), &y) in row.iter().zip(&weight).zip(norm) {
            let want = f64::from(v) / (mean + 1e-5).sqrt() * f64::from(w);
            assert!((f64::from(y) - want).abs() < 1e-5, "{y} {want}");
        }
    }
    let (heads, hd, half) = (2, 20, 8);
    let angles = random(n * half, 3);
    let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
    let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
    let heads_in = random(n * heads * hd, 4);
    for (style, pair) in [
        (RopeStyle::Interleaved, (|i| (2 * i, 2 * i + 1)) as fn(usize) -> (usize, usize)),
        (RopeStyle::HalfSplit, |i| (i, i + 8)),
    ] {
        let rotated: Vec<Vec<f32>> = cpus
            .iter()
            .map(|cpu| {
                let mut y = heads_in.clone();
                cpu.rope(style, hd, heads, &cos, &sin, &mut y);
                y
            })
            .collect();
        for (h, (before, after)) in heads_in.chunks(hd).zip(rotated[0].chunks(hd)).enumerate() {
            for i in 0..half {
                let (a, b) = pair(i);
                let (c, s) = (cos[h / heads * half + i], sin[h / heads * half + i]);
                assert!((after[a] - (before[a] * c - before[b] * s)).abs() < 1e-6);
                assert!((after[b] - (before[b] * c + before[a] * s)).abs() < 1e-6);
            }
            assert_eq!(before[2 * half..], after[2 * half..], "elements that are not rotated");
        }
        assert!(rotated.iter().all(|y| bits(y) == bits(&rotated[0])));
    }
    assert!(norms.iter().all(|y| bits(y) == bits(&norms[0])));
}

#[test]
fn other_row_operations_are_correct_and_the_same_on_every_isa() {
    let (n, cols, heads) = (37, 60, 3);
    let (x, y, weight) = (random(n * cols, 1), random(n * cols, 2), random(cols, 3));
    let mut first: Option<Vec<u32>> = None;
    for cpu in Isa::available().into_iter().flat_map(|isa| [1, 2].map(|n| Cpu::new(isa, n).expect("available"))) {
        let mut normed = Activations::new();
        cpu.rms_norm(&y, &weight, 1e-5, ActivationKinds::default(), &mut normed);

        let mut in_place = y.clone();
        cpu.norm_heads(&weight, 1e-5, 1, &mut in_place);
        assert_eq!(bits(&in_place), bits(normed.values()));
        let mut by_head = y.clone();
        cpu.norm_heads(&weight[..cols / heads], 1e-5, heads, &mut by_head);
        let head = &by_head[cols / heads..2 * cols / heads];
        let mut alone = y[cols / heads..2 * cols / heads].to_vec();
        cpu.norm_heads(&weight[..cols / heads], 1e-5, 1, &mut alone);
        assert_eq!(bits(head), bits(&alone));

        let mut sum = x.clone();
        cpu.add_normed(Some((&weight, 1e-5)), 0.5, cols, &mut y.clone(), &mut sum);
        let want: Vec<f32> = x.iter().zip(normed.values()).map(|(x, y)| y.mul_add(0.5, *x)).collect();
        assert_eq!(bits(&sum), bits(&want));
        let mut plain = x.clone();
        cpu.add_normed(None, 1.0, cols, &mut y.clone(), &mut plain);
        assert!(plain.iter().zip(x.iter().zip(&y)).all(|(s, (x, y))| *s == x + y));

        let mut biased = x.clone();
        cpu.add_bias(&weight, &mut biased);
        assert!(biased.iter().enumerate().all(|(i, b)| *b == x[i] + weight[i % cols]));

        let mut capped = x.clone();
        cpu.softcap(1.5, cols, &mut capped);
        for (c, x) in capped.iter().zip(&x) {
            assert!((f64::from(*c) - 1.5 * (f64::from(*x) / 1.5).tanh()).abs() < 1e-6);
        }
        let all = bits(&[by_head, sum, capped].concat());
        assert!(first.get_or_insert_with(|| all.clone()) == &all, "{}", cpu.isa());
    }
}

/// With values as a part of the keys, every bit is that of a cache that stores that part as values.
#[test]
fn values_in_keys_are_values_that_are_stored() {
    // One page and a bit.
    check_values_in_keys::<f16>(280, 160);
    check_values_in_keys::<f32>(280, 160);
    check_values_in_keys::<Q8>(280, 160);
}

#[test]
fn values_in_keys_of_several_pages() {
    check_values_in_keys::<f16>(530, 300);
    check_values_in_keys::<f32>(530, 300);
    check_values_in_keys::<Q8>(530, 300);
}

fn check_values_in_keys<T: KvElement>(n: usize, window: usize) {
    // More heads than a unit of work takes, and fewer; elements that fill no whole vector, where the type can have them.
    let odd = if T::supports(8) { 8 } else { 0 };
    for (n_heads, head_dim, offset, window, n) in
        [(20, 96 + odd, 32 + odd, None, n), (3, 160 + odd, 64, Some(window), n + 70), (17, 64, 32, None, 20)]
    {
        let stored = AttentionShape {
            n_heads,
            n_kv_heads: 1,
            head_dim,
            scale: 0.1,
            softcap: None,
            window,
            is_chunked: false,
            value_offset: None,
        };
        let latent = AttentionShape { value_offset: Some(offset), ..stored };
        let value_dim = latent.value_dim();
        assert_eq!((value_dim, latent.value_elems::<T>()), (head_dim - offset, 0));
        let (q, k) = (random(n * n_heads * head_dim, 5), random(n * head_dim, 6));
        let v: Vec<f32> = k
            .chunks(head_dim)
            .flat_map(|k| k[offset..].iter().copied().chain(std::iter::repeat_n(0.0, offset)))
            .collect();
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2).expect("available");
            let run = |shape: &AttentionShape, v: &[f32], chunk: usize| {
                let elems = (shape.key_elems::<T>(), shape.value_elems::<T>());
                let new = || (vec![T::default(); elems.0], vec![T::default(); elems.1]);
                let mut pages: Vec<_> = (0..n.div_ceil(PAGE)).map(|_| new()).collect();
                let mut all = Vec::new();
                for first in (0..n).step_by(chunk) {
                    let end = n.min(first + chunk);
                    let mut to: Vec<_> =
                        pages.iter_mut().map(|(k, v)| KvPageMut { keys: &mut k[..], values: &mut v[..] }).collect();
                    let v = if v.is_empty() { v } else { &v[first * head_dim..end * head_dim] };
                    cpu.store_kv(shape, &mut to, first, &k[first * head_dim..end * head_dim], v);
                    let pages = pages.iter().map(|(k, v)| KvPage { keys: &k[..], values: &v[..] }).collect();
                    let sequence = AttentionSequence { first_position: first, n_tokens: end - first, pages };
                    let mut out = vec![0.0; (end - first) * n_heads * shape.value_dim()];
                    let rows = first * n_heads * head_dim..end * n_heads * head_dim;
                    cpu.attention(shape, &[sequence], None, &q[rows], &mut out);
                    all.extend(out);
                }
                all
            };
            let want: Vec<f32> = run(&stored, &v, 100).chunks(head_dim).flat_map(|o| o[..value_dim].to_vec()).collect();
            for chunk in [23, 1000] {
                assert!(bits(&run(&latent, &[], chunk)) == bits(&want), "{latent:?}, {isa}, chunks of {chunk}");
            }
        }
    }
}

#[test]
fn layer_norm_is_correct_and_the_same_on_every_isa() {
    let (n, cols) = (3, 90);
    let (x, weight) = (random(n * cols, 1), random(cols, 2));
    let x: Vec<f32> = x.iter().map(|x| x + 0.7).collect();
    let norm = |isa| {
        let mut out = Activations::new();
        let cpu = Cpu::new(isa, 2).expect("available");
        cpu.layer_norm(&x, &weight, 1e-5, ActivationKinds::default(), &mut out);
        out.values().to_vec()
    };
    let first = norm(Isa::Scalar);
    for (row, norm) in x.chunks(cols).zip(first.chunks(cols)) {
        let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / cols as f64;
        let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / cols as f64;
        for ((&v, &w), &y) in row.iter().zip(&weight).zip(norm) {
            let want = (f64::from(v) - mean) / (variance + 1e-5).sqrt() * f64::from(w);
            assert!((f64::from(y) - want).abs() < 1e-5, "{y} {want}");
        }
    }
    for isa in Isa::available() {
        assert_eq!(bits(&norm(isa)), bits(&first), "{isa}");
    }
}
