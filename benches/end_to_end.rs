//! End-to-end performance through the public API: loading, tokenizing, prefill, and generating alone and together.
//!
//! ```text
//! cargo bench --workspace --bench end_to_end [-- FILTER | --smoke]
//! ```
//! Runs on SmolLM2, or on the file that `FEWBIT_TEST_SMOLLM2` names. Items are tokens, over all requests, so `items/s`
//! is tokens per second. `--smoke` runs each case once, on few tokens. The kernels have their own benchmarks
//! (`crates/fewbit-kernels/benches`); recorded figures come from `fewbit bench` (`cargo xtask record-bench`), which
//! measures other models and depths.

use std::sync::LazyLock;

use divan::Bencher;
use divan::counter::ItemsCount;
use fewbit::expert::tokenizer::SpecialTokens;
use fewbit::{Model, Speculation};

/// A text whose tokens are used as prompts.
const PROSE: &str = include_str!("../tests/data/prose.txt");

/// Whether each case only runs once, as a check.
static SMOKE: LazyLock<bool> = LazyLock::new(|| std::env::args().any(|arg| arg == "--smoke"));

static MODEL: LazyLock<Model> = LazyLock::new(|| load().expect("loads: see README, command 1"));

static TOKENS: LazyLock<Vec<u32>> = LazyLock::new(|| MODEL.tokenizer().encode(PROSE, SpecialTokens::Plain));

fn load() -> Result<Model, fewbit::Error> {
    Model::load(std::env::var("FEWBIT_TEST_SMOLLM2").unwrap_or_else(|_| "smollm2-135m-instruct".to_owned()))
}

/// `n`, or a small number in a smoke test.
fn size(n: usize) -> usize {
    if *SMOKE { n.min(4) } else { n }
}

/// Generates `n_tokens` after `n_prompt` tokens of the text, from `start`, without known prefixes and without
/// speculation. Returns the number of generated tokens.
fn generate(start: usize, n_prompt: usize, n_tokens: usize) -> usize {
    let prompt: Vec<u32> = TOKENS.iter().copied().cycle().skip(start).take(n_prompt).collect();
    let request = MODEL.generate(prompt).max_tokens(n_tokens).ignore_eos(true).temperature(0.0);
    let out = request
        .options(fewbit::GenerateOptions::new().share_prefix(false))
        .speculation(Speculation::Off)
        .run()
        .expect("runs");
    out.tokens.len()
}

fn main() {
    if !*SMOKE {
        return divan::main();
    }
    load().expect("loads: see README, command 1");
    assert!(!MODEL.tokenizer().decode(&TOKENS).is_empty());
    assert_eq!(generate(0, size(512), 1), 1);
    assert_eq!(together(2, size(64)), 2 * size(64));
    println!("end_to_end: each case was run once");
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn load_model(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| load().expect("loads"));
}

#[divan::bench]
fn encode(bencher: Bencher<'_, '_>) {
    let tokenizer = MODEL.tokenizer();
    bencher.counter(ItemsCount::new(TOKENS.len())).bench_local(|| tokenizer.encode(PROSE, SpecialTokens::Plain));
}

#[divan::bench]
fn decode_tokens(bencher: Bencher<'_, '_>) {
    let tokenizer = MODEL.tokenizer();
    bencher.counter(ItemsCount::new(TOKENS.len())).bench_local(|| tokenizer.decode(&TOKENS));
}

/// Prefill of the prompt, plus one generated token.
#[divan::bench(args = [64, 512, 1500], sample_count = 7, sample_size = 1)]
fn prefill(bencher: Bencher<'_, '_>, n: usize) {
    LazyLock::force(&TOKENS);
    bencher.counter(ItemsCount::new(n)).bench_local(|| generate(0, n, 1));
}

/// Several requests at the same time, each of 64 tokens after a prompt of 4.
#[divan::bench(args = [1, 4, 8], sample_count = 7, sample_size = 1)]
fn generate_together(bencher: Bencher<'_, '_>, n: usize) {
    LazyLock::force(&TOKENS);
    bencher.counter(ItemsCount::new(n * 64)).bench_local(|| together(n, 64));
}

/// Number of tokens of `n` requests at the same time.
fn together(n: usize, n_tokens: usize) -> usize {
    std::thread::scope(|scope| {
        let requests: Vec<_> = (0..n).map(|i| scope.spawn(move || generate(7 * i, 4, n_tokens))).collect();
        requests.into_iter().map(|request| request.join().expect("runs")).sum()
    })
}
