//! The measurements of the command line as functions of the library: benchmarks, comparisons, inspecting before
//! loading.

use std::cell::RefCell;
use std::path::Path;

use fewbit::bench::{Bench, BenchError, BenchTest, Serving, Target};
use fewbit::evaluate::{Compare, PerplexityOptions};
use fewbit::expert::DeviceOptions;
use fewbit::expert::engine::LoadOptions;
use fewbit::quantize::Recipe;
use fewbit::random::{RandomWeights, Shape};
use fewbit::{ErrorKind, Model};

use crate::{STORIES, load, stories};

fn text() -> String {
    "Once upon a time there was a little girl named Lily. She had a dog, and the dog had a ball. ".repeat(12)
}

fn windows() -> PerplexityOptions {
    PerplexityOptions::default().ctx(64).chunks(4)
}

/// A reference with stored logits gives the same as the two models side by side, compared with the formulas on logits
/// that are computed one by one.
#[test]
fn stored_reference_gives_the_same_divergence() {
    let quantized = load(|b| b.quantize(Recipe::Q4_0));
    let reference = stories().reference(&text(), &windows(), |_| {}).unwrap();
    let perplexity = stories().perplexity(&text(), &windows(), |_| {}).unwrap();
    assert_eq!(reference.perplexity().nll_per_token, perplexity.nll_per_token);
    let n_scored = perplexity.nll_per_token.len();
    assert_eq!(reference.n_bytes(), (n_scored * fewbit::expert::decoder(stories()).n_vocab() * 4) as u64);

    let found = quantized.divergence(&reference, |_, _| {}).unwrap();
    assert_eq!(found.reference_nll_per_token, perplexity.nll_per_token);
    let own = quantized.perplexity(&text(), &windows(), |_| {}).unwrap();
    assert_eq!(found.nll_per_token, own.nll_per_token);
    assert!((found.perplexity_stderr() - own.stderr()).abs() < 1e-9);
    let itself = stories().divergence(&reference, |_, _| {}).unwrap();
    assert_eq!((itself.mean_kl(), itself.top1_agreement(), itself.ln_perplexity_ratio()), (0.0, 1.0, 0.0));
    // Using the reference twice gives the same, and so does computing it again.
    assert_eq!(quantized.divergence(&reference, |_, _| {}).unwrap().kl_per_token, found.kl_per_token);
    let progress = RefCell::new(Vec::new());
    let again =
        quantized.divergence_from(stories(), &text(), &windows(), |done, n| progress.borrow_mut().push((done, n)));
    assert_eq!(again.unwrap().kl_per_token, found.kl_per_token);
    assert_eq!(progress.into_inner(), (1..=8).map(|done| (done, 8)).collect::<Vec<_>>());

    // The definition, from log probabilities of all tokens.
    let n_vocab = fewbit::expert::decoder(stories()).n_vocab();
    let tokens = stories().generate(text()).max_tokens(0).stream().unwrap().prompt_tokens()[..64].to_vec();
    let logprobs = |model: &Model| -> Vec<f64> {
        let all = model.logprobs(&tokens[..], n_vocab).unwrap();
        let mut last: Vec<_> = all[33].top.iter().map(|top| (top.token, f64::from(top.logprob))).collect();
        last.sort_by_key(|&(token, _)| token);
        last.into_iter().map(|(_, logprob)| logprob).collect()
    };
    let (expected, own) = (logprobs(stories()), logprobs(&quantized));
    assert_eq!(expected.len(), n_vocab);
    let kl: f64 = expected.iter().zip(&own).map(|(p, q)| p.exp() * (p - q)).sum();
    assert!((kl - found.kl_per_token[0]).abs() < 1e-5, "{kl} and {}", found.kl_per_token[0]);

    assert!(found.mean_kl() > 0.0);
    let long = load(|b| b.context_length(32));
    assert!(matches!(
        long.divergence(&reference, |_, _| {}).map_err(fewbit::Error::into_kind),
        Err(ErrorKind::ContextTooLong { .. })
    ));
}

#[test]
fn quantizations_are_compared_with_standard_errors() {
    let seen = RefCell::new(Vec::new());
    let types = [Recipe::Q8_0, Recipe::Q4_0];
    let compare = Compare::new(stories(), types).windows(windows());
    let compare = compare.load_with(|recipe| Model::builder().threads(1).quantize(recipe).load_file(STORIES));
    let found =
        compare.on_progress(|what, done, _| seen.borrow_mut().push((what.to_owned(), done))).run(&text()).unwrap();
    let seen = seen.into_inner();
    for what in ["original", "Q8_0", "Q4_0"] {
        let windows = seen.iter().filter(|(of, _)| of == what).count();
        assert_eq!(windows, 4, "{what}: each window of each model once");
    }
    assert_eq!((found.windows, found.tokens_scored), (4, 4 * 31));
    let names: Vec<_> = found.rows.iter().map(|row| row.name()).collect();
    assert_eq!(names, ["original", "Q8_0", "Q4_0"]);
    let [original, large, small] = &found.rows[..] else { panic!() };
    assert_eq!((original.recipe, original.kl, original.kl_stderr, original.top1), (None, 0.0, 0.0, 1.0));
    assert!(original.weight_bytes > large.weight_bytes && large.weight_bytes > small.weight_bytes);
    assert!(large.kl < small.kl && large.kl_stderr < small.kl_stderr && small.kl_stderr < small.kl);
    for row in [large, small] {
        // Both read the same text, so the ratio is known more precisely than either perplexity.
        assert!(row.ln_ppl_ratio_stderr < row.perplexity_stderr / row.perplexity, "{row:?}");
        assert!((row.ln_ppl_ratio - (row.perplexity / original.perplexity).ln()).abs() < 1e-9);
        assert!(row.prefill_tokens_per_s > 0.0 && row.decode_tokens_per_s > 0.0);
    }
}

#[test]
fn models_and_random_weights_are_benchmarked() {
    let model = load(|b| b.quantize(Recipe::Q8_0));
    let target = Target::of(&model).unwrap();
    let bench = Bench::new().prompt([8, 16]).n_gen([2]).depth([0, 3]).batch([1, 2]).repetitions(2);
    let report = bench.run(&target).unwrap();
    assert_eq!(report.results.iter().map(|result| result.test).collect::<Vec<_>>(), bench.tests());
    assert_eq!(report.results.len(), 8);
    for result in &report.results {
        let rate = result.tokens_per_s;
        assert!(0.0 < rate.min && rate.min <= rate.median && rate.median <= rate.max, "{result:?}");
        assert!(result.fraction.is_none_or(|fraction| fraction > 0.0));
    }
    assert_eq!((report.weight_bytes, report.n_threads), (fewbit::expert::decoder(&model).weight_bytes(), 1));
    let long = Bench::new()
        .prompt([8])
        .n_gen([0])
        .depth([fewbit::expert::decoder(&model).config().context_length])
        .run(&target);
    assert!(matches!(long, Err(BenchError::TooLong { .. })), "{long:?}");

    let shape = Shape { n_layers: 1, n_vocab: 256, ..Shape::named("smollm2-135m").unwrap() };
    let weights = RandomWeights::new(shape, "Q4_K_M").unwrap();
    let mut options = LoadOptions::new();
    options.threads = Some(1);
    let report = Bench::new()
        .prompt([4])
        .n_gen([0])
        .repetitions(1)
        .run(&Target::random(&weights, &options, &DeviceOptions::new()).unwrap());
    let report = report.unwrap();
    assert!(matches!(report.results[..], [result] if matches!(result.test, BenchTest::Prefill { prompt: 4, .. })));
    assert!(report.load.as_secs_f64() > 0.0 && report.weight_bytes > 1_000_000);

    assert!(matches!(Serving::new(2).n_gen(1).run(&model), Err(BenchError::TooFew { n_gen: 1 })));
    assert!(matches!(Serving::new(2).n_gen(1 << 20).run(&model), Err(BenchError::TooLong { .. })));
}

#[test]
fn inspection_matches_the_loaded_model() {
    let plain = Model::builder().inspect(STORIES).unwrap();
    assert_eq!(plain.path(), Path::new(STORIES));
    assert!(plain.remote().is_none());
    assert_eq!(plain.context_length(), Some(stories().context_length()));
    assert_eq!(plain.memory(128).unwrap(), Model::memory_estimate(STORIES, 128).unwrap());
    let types = plain.types();
    assert_eq!(types.keys().copied().collect::<Vec<_>>(), ["F32"]);
    assert_eq!((types["F32"].weights, types["F32"].bytes), (plain.n_weights(), 4 * plain.n_weights()));
    assert_eq!(plain.bits_per_weight(), 32.0);

    let quantized = Model::builder().quantize(Recipe::Q8_0).inspect(STORIES).unwrap();
    let loaded = load(|b| b.quantize(Recipe::Q8_0));
    assert_eq!(quantized.n_weights(), plain.n_weights());
    assert!(quantized.bits_per_weight() < 16.0 && quantized.types().contains_key("Q8_0"));
    assert_eq!(quantized.memory(128).unwrap().weight_bytes, fewbit::expert::decoder(&loaded).weight_bytes());
    assert!(matches!(
        Model::builder().inspect("/nonexistent.gguf").map_err(fewbit::Error::into_kind),
        Err(ErrorKind::NotFound { .. })
    ));
}
