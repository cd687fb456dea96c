//! Sampling against its definition: which tokens can come, how often, and that they come again.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn settings(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> Sampling {
    Sampling { temperature, top_k, top_p, min_p, seed: Some(1), ..Sampling::default() }
}

/// How often each token comes in `n` draws.
fn draw(sampling: &Sampling, logits: &[f32], n: usize) -> BTreeMap<u32, usize> {
    let mut sampler = Sampler::new(sampling).unwrap();
    let mut counts = BTreeMap::new();
    for _ in 0..n {
        *counts.entry(sampler.sample(&mut logits.to_vec()).unwrap()).or_default() += 1;
    }
    counts
}

/// Logits of the given probabilities.
fn logits_of(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() as f32).collect()
}

/// The stages as the documentation words them, over a full sort.
fn survivors(sampling: &Sampling, logits: &[f32]) -> Vec<u32> {
    let mut list: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&x| f64::from(x).exp())).collect();
    list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if sampling.top_k > 0 {
        list.truncate(sampling.top_k);
    }
    let total: f64 = list.iter().map(|x| x.1).sum();
    let mut sum = 0.0;
    let keep = list.iter().take_while(|x| {
        let before = sum;
        sum += x.1 / total;
        before < f64::from(sampling.top_p)
    });
    let mut list: Vec<_> = keep.copied().collect();
    let max = list[0].1;
    list.retain(|x| x.1 >= f64::from(sampling.min_p) * max);
    let mut ids: Vec<u32> = list.into_iter().map(|x| x.0).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn greedy_takes_the_largest_logit_and_the_first_among_ties() {
    let mut sampler = Sampler::new(&Sampling::greedy()).unwrap();
    assert_eq!(sampler.sample(&mut [0.0, 3.0, -1.0, 3.0]).unwrap(), 1);
    assert_eq!(sampler.sample(&mut [-0.0, 0.0]).unwrap(), 0);
    assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY, -1e30]).unwrap(), 1);
}

#[test]
fn out_of_range_settings_are_rejected_by_name() {
    let with =
        |temperature, top_p, min_p| Sampler::new(&settings(temperature, 0, top_p, min_p)).map(|sampler| sampler.seed());
    assert_eq!(with(1.0, 1.0, 0.0), Ok(1));
    for bad in [-0.1, f32::NAN, f32::INFINITY] {
        assert!(matches!(with(bad, 1.0, 0.0), Err(SamplingError::Temperature(_))));
    }
    for bad in [0.0, -1.0, 1.1, f32::NAN] {
        assert!(matches!(with(1.0, bad, 0.0), Err(SamplingError::TopP(_))));
    }
    for bad in [-0.1, 1.1, f32::NAN] {
        assert!(matches!(with(1.0, 1.0, bad), Err(SamplingError::MinP(_))));
    }
}

#[test]
fn non_finite_logits_are_errors() {
    for sampling in [Sampling::greedy(), Sampling::default()] {
        let mut sampler = Sampler::new(&sampling).unwrap();
        for (i, bad) in [f32::NAN, -f32::NAN, f32::INFINITY].into_iter().enumerate() {
            for place in 0..3 {
                let mut logits = [5.0, 1.0, 7.0];
                logits[place] = bad;
                let error = sampler.sample(&mut logits).unwrap_err();
                assert!(
                    matches!(error, SamplingError::NotFinite { token, .. } if token as usize == place),
                    "{i} {place} {error:?}"
                );
            }
        }
        for none in [&[][..], &[f32::NEG_INFINITY; 4][..]] {
            assert_eq!(sampler.sample(&mut none.to_vec()), Err(SamplingError::NoCandidate { n_tokens: none.len() }));
        }
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let probabilities = [0.5, 0.05, 0.25, 0.2];
    let logits = logits_of(&probabilities);
    let counts = draw(&settings(1.0, 0, 1.0, 0.0), &logits, 40_000);
    for (id, p) in (0..).zip(probabilities) {
        let found = counts[&id] as f64 / 40_000.0;
        assert!((found - p).abs() < 0.01, "token {id}: {found} for {p}");
    }
    // Half the temperature squares the ratios.
    let counts = draw(&settings(0.5, 0, 1.0, 0.0), &logits, 40_000);
    let ratio = counts[&0] as f64 / counts[&2] as f64;
    assert!((ratio - 4.0).abs() < 0.2, "{ratio}");
}

#[test]
fn each_stage_keeps_the_expected_candidates() {
    let logits = logits_of(&[0.1, 0.4, 0.05, 0.3, 0.15]);
    let cases = [
        (settings(1.0, 2, 1.0, 0.0), vec![1, 3]),
        (settings(1.0, 0, 0.69, 0.0), vec![1, 3]),
        (settings(1.0, 0, 0.71, 0.0), vec![1, 3, 4]),
        (settings(1.0, 0, 1e-6, 0.0), vec![1]),
        (settings(1.0, 0, 1.0, 0.3), vec![1, 3, 4]),
        (settings(1.0, 0, 1.0, 1.0), vec![1]),
        // Of the two that top-k leaves, the first has 4/7: more than a half.
        (settings(1.0, 2, 0.5, 0.0), vec![1]),
        // A high temperature brings nothing back.
        (settings(100.0, 3, 1.0, 0.5), vec![1, 3]),
    ];
    for (sampling, expected) in cases {
        let counts = draw(&sampling, &logits, 2000);
        assert_eq!(counts.into_keys().collect::<Vec<_>>(), expected, "{sampling:?}");
    }
}

#[test]
fn a_seed_gives_the_same_tokens_on_every_platform() {
    let logits: Vec<f32> = (0..1000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as f32 / 16384.0).collect();
    let tokens = |sampling: &Sampling| -> Vec<u32> {
        let mut sampler = Sampler::new(sampling).unwrap();
        (0..8).map(|_| sampler.sample(&mut logits.clone()).unwrap()).collect()
    };
    let seeded = Sampling { seed: Some(7), ..Sampling::default() };
    assert_eq!(tokens(&seeded), tokens(&seeded));
    assert_eq!(tokens(&seeded), SEED_7);
    let free = Sampling { top_k: 0, top_p: 1.0, min_p: 0.0, ..seeded };
    assert_eq!(tokens(&free), SEED_7_FREE);
}

/// From the stages, SplitMix64 and xoshiro256++ written once more in Python.
const SEED_7: [u32; 8] = [377, 288, 919, 720, 741, 110, 919, 199];
const SEED_7_FREE: [u32; 8] = [55, 173, 720, 427, 965, 467, 726, 331];

#[test]
fn drawn_seed_reproduces_the_tokens() {
    let logits = vec![0.0; 5000];
    let free = Sampling { top_k: 0, ..Sampling::default() };
    let mut first = Sampler::new(&free).unwrap();
    let mut again = Sampler::new(&Sampling { seed: Some(first.seed()), ..free.clone() }).unwrap();
    assert_ne!(first.seed(), Sampler::new(&free).unwrap().seed());
    for _ in 0..20 {
        assert_eq!(first.sample(&mut logits.clone()), again.sample(&mut logits.clone()));
    }
}

proptest! {
    #[test]
    fn only_surviving_candidates_are_drawn(
        logits in proptest::collection::vec(-8.0..8.0_f32, 1..800),
        top_k in 0..50_usize,
        top_p in 0.05..1.0_f32,
        min_p in 0.0..0.9_f32,
    ) {
        let sampling = settings(1.5, top_k, top_p, min_p);
        let expected = survivors(&sampling, &logits);
        for id in draw(&sampling, &logits, 50).into_keys() {
            prop_assert!(expected.contains(&id), "{id} not in {expected:?}");
        }
        let mut sampler = Sampler::new(&sampling).unwrap();
        sampler.sample(&mut logits.clone()).unwrap();
        let mut left: Vec<u32> = sampler.list.iter().map(|candidate| candidate.id).collect();
        left.sort_unstable();
        prop_assert_eq!(left, expected);
    }

    #[test]
    fn arbitrary_logits_do_not_panic(
        bits in proptest::collection::vec(any::<u32>(), 0..300),
        top_k in 0..400_usize,
        top_p in 1e-6..=1.0_f32,
        min_p in 0.0..=1.0_f32,
        temperature in 0.0..10.0_f32,
    ) {
        let logits: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let mut sampler = Sampler::new(&settings(temperature, top_k, top_p, min_p)).unwrap();
        if let Ok(id) = sampler.sample(&mut logits.clone()) {
            prop_assert!(logits[id as usize].is_finite());
        }
    }
}
