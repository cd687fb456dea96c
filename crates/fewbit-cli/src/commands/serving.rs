//! `fewbit bench --concurrency N`: what the engine makes of several requests.
//!
//! Each figure is taken once per repetition, in turn with the others, so that a slow moment of the machine meets
//! what is compared alike:
//!
//! - tokens per second of the *bare* model (decode steps without the engine), of one request *alone* whose end is
//!   waited for, of one that is *streamed*, and of N *together*;
//! - *first token*: how long a short request takes to it while a prompt of `--prompt` tokens is computed, beside a
//!   *decode step* and a *chunk* of that prompt;
//! - tokens per second of a text that *repeats* and of one that is *new*, without speculation and with it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fewbit::engine::{Chunk, LogitsFor};
use fewbit::{Completion, Generate, Model, Speculation};
use serde_json::json;

use super::bench::Rate;
use crate::args::{BenchArgs, Common};
use crate::output::{Out, print_json};

/// Prompts that have nothing in common but their length.
const TOPICS: [&str; 8] = ["rivers", "bread", "maps", "bees", "glass", "winter", "harbours", "clocks"];

/// A text to be written again.
const NOTES: &str = "The harbour office opens at seven in the morning and closes at four. Ships with more than forty \
    crates have to call a day before they arrive. The crane on the north quay lifts nine tons, the one on the south \
    quay only three. Fishing boats pay nothing in winter. Lost goods are kept in the yellow shed behind the ice house \
    for two weeks.";

/// Figures by name, one for each repetition.
type Figures = Vec<(&'static str, Vec<f64>)>;

pub(crate) fn run(common: &Common, args: &BenchArgs, model: &Model, n: usize, name: &str) -> anyhow::Result<()> {
    let (&[prompt], &[n_gen]) = (&args.prompt[..], &args.n_gen[..]) else {
        bail!("with --concurrency, -p and -n are one number each");
    };
    if n_gen < 2 || n_gen.max(prompt).saturating_add(256) > model.context_length() {
        bail!("-n must be 2 at least, and -p and -n 256 below the context of {}", model.context_length());
    }
    let mut figures = Figures::new();
    // The first pages the weights in, and is not counted.
    for i in 0..=usize::from(args.repetitions) {
        let found = measure(model, n, prompt, n_gen)?;
        if i == 1 {
            figures = found.into_iter().map(|(name, value)| (name, vec![value])).collect();
        } else if i > 1 {
            figures.iter_mut().zip(found).for_each(|(figure, (_, value))| figure.1.push(value));
        }
    }
    let figures: Vec<_> = figures.into_iter().filter_map(|(name, values)| Some((name, Rate::of(values)?))).collect();
    if common.json {
        let mut all = json!({ "model": name, "concurrency": n, "prompt": prompt, "n_gen": n_gen });
        figures.iter().for_each(|(name, figure)| all[name] = figure.json());
        return print_json(&all);
    }
    let mut out = Out::new();
    out.line(format_args!("{name}: {n} requests of {n_gen} tokens, a prompt of {prompt}"))?;
    for (name, figure) in &figures {
        out.line(format_args!("{name:24} {:8.1} ({:.1} to {:.1})", figure.median, figure.min, figure.max))?;
    }
    out.flush()
}

/// All figures once.
fn measure(model: &Model, n: usize, prompt: usize, n_gen: usize) -> anyhow::Result<Vec<(&'static str, f64)>> {
    let rate = |request: Generate| -> anyhow::Result<(f64, Completion)> {
        let out = request.run()?;
        Ok((out.timings.decode_tokens_per_second(), out))
    };
    let (first_token_ms, chunk_ms) = overtake(model, prompt)?;
    let (alone, out) = rate(request(model, 0, n_gen))?;
    let bare = bare(model, &out.prompt_tokens, n_gen)?;
    let mut found = vec![
        ("bare_tok_s", bare),
        ("alone_tok_s", alone),
        ("streamed_tok_s", streamed(model, n_gen)?),
        ("together_tok_s", together(model, n, n_gen)?),
        ("first_token_ms", first_token_ms),
        ("decode_step_ms", 1e3 / alone),
        ("prefill_chunk_ms", chunk_ms),
    ];
    for (names, text) in [
        (["repeats_tok_s", "repeats_drafted_tok_s"], format!("{NOTES}\n\nThe same text again:\n\n{}", &NOTES[..40])),
        (["new_tok_s", "new_drafted_tok_s"], "A long story about two sisters who travel by sea:".to_owned()),
    ] {
        let with = |speculation| {
            let temperature = if names[0].starts_with("new") { 0.9 } else { 0.0 };
            let request = model.generate(&text).temperature(temperature).seed(1).ignore_eos(true);
            rate(request.max_tokens(n_gen).speculation(speculation))
        };
        let ((plain, out), (drafted, other)) = (with(Speculation::Off)?, with(Speculation::Auto)?);
        if out.tokens != other.tokens {
            bail!("speculation changed a token");
        }
        found.extend([(names[0], plain), (names[1], drafted)]);
    }
    Ok(found)
}

fn request(model: &Model, i: usize, n_gen: usize) -> Generate {
    let prompt = format!("A short text about {}:", TOPICS[i % TOPICS.len()]);
    let request = model.generate(prompt).temperature(0.0).max_tokens(n_gen).ignore_eos(true);
    request.speculation(Speculation::Off)
}

/// Decode steps and the choice of the largest logit, without the engine.
fn bare(model: &Model, prompt: &[u32], n_gen: usize) -> anyhow::Result<f64> {
    let decoder = model.decoder();
    let mut cache = decoder.new_cache_with(model.loras());
    let mut logits = decoder.forward(&mut [Chunk { cache: &mut cache, tokens: prompt, logits: LogitsFor::Last }])?;
    let start = Instant::now();
    for _ in 1..n_gen {
        let row = logits.row(0);
        let best = (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        let tokens = [u32::try_from(best)?];
        logits = decoder.forward(&mut [Chunk { cache: &mut cache, tokens: &tokens, logits: LogitsFor::Last }])?;
    }
    Ok((n_gen - 1) as f64 / start.elapsed().as_secs_f64())
}

fn streamed(model: &Model, n_gen: usize) -> anyhow::Result<f64> {
    let mut stream = request(model, 0, n_gen).stream()?;
    for piece in &mut stream {
        piece?;
    }
    Ok(stream.into_completion().timings.decode_tokens_per_second())
}

/// Tokens per second of all requests together, from the moment when all have a token to the last one's end.
fn together(model: &Model, n: usize, n_gen: usize) -> anyhow::Result<f64> {
    let start = Instant::now();
    let runs: Vec<Completion> = thread::scope(|scope| {
        let threads: Vec<_> = (0..n).map(|i| scope.spawn(move || request(model, i, n_gen).run())).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<_, _>>()
    })?;
    let prefill = runs.iter().map(|run| run.timings.queue + run.timings.prefill).max().unwrap_or_default();
    let time = start.elapsed().saturating_sub(prefill);
    Ok((n * (n_gen - 1)) as f64 / time.as_secs_f64())
}

/// Starts a long prompt, and a short request right after a chunk of it began. Milliseconds to the short one's
/// first token, and of a chunk.
fn overtake(model: &Model, n_prompt: usize) -> anyhow::Result<(f64, f64)> {
    let n_vocab = model.tokenizer().n_vocab();
    let long: Vec<u32> = (0..n_prompt).map(|i| ((i * i % 911 + 300) % n_vocab) as u32).collect();
    thread::scope(|scope| {
        let before = model.metrics().steps;
        let long = scope.spawn(move || model.generate(long).share_prefix(false).ignore_eos(true).max_tokens(1).run());
        while model.metrics().steps < before + 2 && !long.is_finished() {
            thread::sleep(Duration::from_micros(200));
        }
        let start = Instant::now();
        let mut stream = model.generate("Why?").share_prefix(false).ignore_eos(true).max_tokens(1).stream()?;
        stream.next().context("a first token")??;
        let first_token_ms = start.elapsed().as_secs_f64() * 1e3;
        let long = long.join().expect("no panic")?;
        let steps = (model.metrics().steps - before).max(2) - 1;
        Ok((first_token_ms, long.timings.prefill.as_secs_f64() * 1e3 / steps as f64))
    })
}
