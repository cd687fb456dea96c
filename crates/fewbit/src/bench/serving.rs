//! Benchmarks of requests to the engine, compared with the bare model.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fewbit_model::{Chunk, KvCache, LogitsFor};
#[cfg(feature = "constraints")]
use serde_json::json;

use super::figures::{BenchError, Spread};
use crate::completion::Completion;
#[cfg(feature = "constraints")]
use crate::constraints::Constraint;
use crate::error::Error;
use crate::generate::Generate;
use crate::model::Model;
use crate::sample::Sampler;
use crate::scheduler::Speculation;

type Result<T> = std::result::Result<T, BenchError>;

/// Prompts that have nothing in common but their length.
const TOPICS: [&str; 8] = ["rivers", "bread", "maps", "bees", "glass", "winter", "harbours", "clocks"];

/// A text to repeat.
const NOTES: &str = "The harbour office opens at seven in the morning and closes at four. Ships with more than forty \
    crates have to call a day before they arrive. The crane on the north quay lifts nine tons, the one on the south \
    quay only three. Fishing boats pay nothing in winter. Lost goods are kept in the yellow shed behind the ice house \
    for two weeks.";

/// Prompts with little to repeat: a story, a list with a pattern of its own, a program.
const NEW: [&str; 3] = [
    "A long story about two sisters who travel by sea:",
    "Twenty animals and what each of them eats:\n\n1. Otter: fish\n2. ",
    "# Reads a table of prices and prints what each shop charges.\nimport csv\n\ndef ",
];

/// Room for the prompts, in addition to the requested tokens.
const SPARE_TOKENS: usize = 256;

/// Measures requests to the engine, several at once and one alone, compared with the bare model: decode steps and a
/// greedy sampler, without the engine.
///
/// Each figure is taken once per repetition. The two things that are compared run one right after the other, in reverse
/// order in every second repetition, and a ratio is that of such a pair, so a slow moment of the machine affects both.
/// Measured in tokens per second are
///
/// - one request alone (`single`), waited for and streamed, and the bare model;
/// - the requests in one batch (`batch`), and steps of as many sequences of the bare model;
/// - a text that repeats its prompt and several that are new, with and without speculation;
/// - JSON of a nested schema, with the fraction of its time that masks take (feature `constraints`).
///
/// And in milliseconds: a short prompt through the engine and through the bare model, both after a rest; and the first
/// token of a short request that arrives while a long prompt is in prefill, compared with its limit: one chunk of that
/// prompt and three decode steps.
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::bench::BenchError> {
/// let model = fewbit::Model::load("smollm2-135m-instruct")?;
/// for figure in fewbit::bench::Serving::new(8).n_gen(64).run(&model)? {
///     println!("{}: {:.2}", figure.name, figure.value.median);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is measured before `run`"]
pub struct Serving {
    requests: usize,
    prompt: usize,
    n_gen: usize,
    repetitions: usize,
}

/// One figure of [`Serving`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Figure {
    /// Its name. Names with `_vs_` or `_speedup` are ratios; others end with their unit.
    pub name: &'static str,
    /// Its values over the repetitions.
    pub value: Spread,
}

impl Serving {
    /// `requests` requests at once (at least 1) of 128 tokens each, and a long prompt of 512 tokens; five repetitions.
    pub fn new(requests: usize) -> Self {
        Self { requests: requests.max(1), prompt: 512, n_gen: 128, repetitions: 5 }
    }

    /// Length of the long prompt, in tokens.
    pub fn prompt(mut self, n_tokens: usize) -> Self {
        self.prompt = n_tokens;
        self
    }

    /// Number of tokens that each request generates.
    pub fn n_gen(mut self, n_tokens: usize) -> Self {
        self.n_gen = n_tokens;
        self
    }

    /// Number of repetitions (5 by default; at least 1).
    pub fn repetitions(mut self, n: usize) -> Self {
        self.repetitions = n.max(1);
        self
    }

    /// Runs the benchmarks on `model`.
    ///
    /// # Errors
    /// [`BenchError::TooLong`], [`BenchError::TooFew`], and those of requests.
    pub fn run(&self, model: &Model) -> Result<Vec<Figure>> {
        let &Self { requests, prompt, n_gen, repetitions } = self;
        if n_gen < 2 {
            return Err(BenchError::TooFew { n_gen });
        }
        let (needed, context_tokens) = (n_gen.max(prompt).saturating_add(SPARE_TOKENS), model.context_length());
        if needed > context_tokens {
            return Err(BenchError::TooLong { needed, context_tokens });
        }
        let mut figures: Vec<(&'static str, Vec<f64>)> = Vec::new();
        // The first round pages the weights in, and is not counted.
        for i in 0..=repetitions {
            let found = Pair { swap: i % 2 == 1 }.measure(model, requests, prompt, n_gen)?;
            if i == 1 {
                figures = found.into_iter().map(|(name, value)| (name, vec![value])).collect();
            } else if i > 1 {
                figures.iter_mut().zip(found).for_each(|(figure, (_, value))| figure.1.push(value));
            }
        }
        let figure = |(name, values)| Some(Figure { name, value: Spread::of(values)? });
        Ok(figures.into_iter().filter_map(figure).collect())
    }
}

/// Decides which of two things that are compared runs first.
struct Pair {
    swap: bool,
}

impl Pair {
    fn run(&self, first: impl FnOnce() -> Result<f64>, second: impl FnOnce() -> Result<f64>) -> Result<(f64, f64)> {
        if self.swap {
            let second = second()?;
            return Ok((first()?, second));
        }
        Ok((first()?, second()?))
    }

    /// Takes all figures once.
    fn measure(&self, model: &Model, n: usize, prompt: usize, n_gen: usize) -> Result<Vec<(&'static str, f64)>> {
        let (first_token_ms, chunk_ms) = overtake(model, prompt)?;
        let one = || rate(request(model, 0, n_gen));
        let (bare_one, alone) = self.run(|| bare(model, 1, n_gen), one)?;
        let (bare_again, streamed) = self.run(|| bare(model, 1, n_gen), || streamed(model, n_gen))?;
        let (single, many) = self.run(one, || together(model, n, n_gen))?;
        let (bare_single, bare_many) = self.run(|| bare(model, 1, n_gen), || bare(model, n, n_gen))?;
        let (bare_prompt_s, prompt_s) = self.run(|| bare_prompt(model), || short_prompt(model))?;
        let step_ms = 1e3 / alone;
        let mut found = vec![
            ("bare_tok_s", bare_one),
            ("single_tok_s", alone),
            ("engine_vs_bare", alone / bare_one),
            ("streamed_vs_bare", streamed / bare_again),
            ("batch_tok_s", many),
            ("batch_speedup", many / single),
            ("bare_batch_speedup", bare_many / bare_single),
            ("bare_prompt_ms", 1e3 * bare_prompt_s),
            ("prompt_ms", 1e3 * prompt_s),
            ("prefill_time_vs_bare", prompt_s / bare_prompt_s),
            ("first_token_ms", first_token_ms),
            ("first_token_vs_limit", first_token_ms / (chunk_ms + 3.0 * step_ms)),
            ("decode_step_ms", step_ms),
            ("prefill_chunk_ms", chunk_ms),
        ];
        let repeats = format!("{NOTES}\n\nThe same text again:\n\n{}", &NOTES[..40]);
        let repeats = model.generate(repeats).temperature(0.0).max_tokens(n_gen.min(64));
        let (drafted, ratio) = self.drafted(&repeats)?;
        found.extend([("repeated_text_tok_s", drafted), ("repeated_text_speculation_speedup", ratio)]);
        let names = ["story_speculation_speedup", "list_speculation_speedup", "code_speculation_speedup"];
        for (name, text) in names.into_iter().zip(NEW) {
            let request = model.generate(text).temperature(0.9).seed(1).max_tokens(n_gen);
            found.push((name, self.drafted(&request)?.1));
        }
        #[cfg(feature = "constraints")]
        found.extend(self.masks(model)?);
        Ok(found)
    }

    /// Tokens per second with speculation, and without.
    fn drafted(&self, request: &Generate) -> Result<(f64, f64)> {
        let mut tokens = Vec::new();
        let mut with = |speculation| {
            let out = request.clone().ignore_eos(true).speculation(speculation).run()?;
            let rate = out.timings.decode_tokens_per_second();
            tokens.push(out.tokens);
            Ok::<_, BenchError>(rate)
        };
        let order = [Speculation::Off, Speculation::Auto];
        let (first, second) = if self.swap { (1, 0) } else { (0, 1) };
        let mut rates = [0.0; 2];
        rates[first] = with(order[first])?;
        rates[second] = with(order[second])?;
        if tokens[0] != tokens[1] {
            return Err(BenchError::SpeculationChangedTokens);
        }
        Ok((rates[1], rates[1] / rates[0]))
    }

    /// JSON of a nested schema: the fraction of time that masks take, and the gain of drafting the tokens that it
    /// forces.
    #[cfg(feature = "constraints")]
    fn masks(&self, model: &Model) -> Result<Vec<(&'static str, f64)>> {
        let request = model.generate("An order of two books, as JSON:\n").temperature(0.8).seed(1);
        let request = request.max_tokens(256).constraint(Constraint::json_schema(nested_schema()));
        let out = request.clone().speculation(Speculation::Off).run()?;
        let part = out.timings.constrain.as_secs_f64() / out.timings.decode.as_secs_f64();
        let (rate, ratio) = self.drafted(&request)?;
        Ok(vec![("mask_time_fraction", part), ("json_tok_s", rate), ("json_speculation_speedup", ratio)])
    }
}

#[cfg(feature = "constraints")]
fn nested_schema() -> serde_json::Value {
    let object = |properties: serde_json::Value| {
        let required: Vec<_> = properties.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
        json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
    };
    let text = |most| json!({ "type": "string", "maxLength": most });
    let address = object(json!({
        "street": text(40), "city": text(30), "postcode": { "type": "string", "pattern": "^[0-9]{5}$" },
    }));
    let line = object(json!({
        "title": text(60),
        "quantity": { "type": "integer", "minimum": 1, "maximum": 99 },
        "price": { "type": "number", "minimum": 0, "maximum": 10_000 },
        "tags": { "type": "array", "items": { "enum": ["new", "used", "gift", "fragile"] }, "maxItems": 3 },
    }));
    object(json!({ "order": object(json!({
        "id": { "type": "integer", "minimum": 1, "maximum": 99_999 },
        "customer": object(json!({ "name": text(40), "email": text(40), "address": address })),
        "lines": { "type": "array", "minItems": 2, "maxItems": 4, "items": line },
        "status": { "enum": ["open", "paid", "shipped"] },
    })) }))
}

fn rate(request: Generate) -> Result<f64> {
    Ok(request.run()?.timings.decode_tokens_per_second())
}

fn request(model: &Model, i: usize, n_gen: usize) -> Generate {
    let request = model.generate(prompt(i)).temperature(0.0).max_tokens(n_gen).ignore_eos(true);
    request.speculation(Speculation::Off)
}

fn prompt(i: usize) -> String {
    format!("A short text about {}:", TOPICS[i % TOPICS.len()])
}

/// The sampler that the engine uses for [`request`].
fn greedy(model: &Model) -> Result<Sampler> {
    let mut sampling = model.recommended_sampling();
    sampling.temperature = 0.0;
    Ok(Sampler::new(&sampling).map_err(Error::from)?)
}

/// Tokens per second of decode steps with `n` sequences, sampling included, without the engine.
fn bare(model: &Model, n: usize, n_gen: usize) -> Result<f64> {
    let decoder = model.decoder();
    let begin = |i| {
        let (cache, mut sampler) = (decoder.new_cache_with(model.loras()), greedy(model)?);
        let tokens = request(model, i, 1).stream()?.prompt_tokens().to_vec();
        sampler.begin(&tokens);
        Ok((cache, tokens, sampler))
    };
    let mut sequences: Vec<(KvCache, Vec<u32>, Sampler)> = (0..n).map(begin).collect::<Result<_>>()?;
    let mut step = || -> Result<()> {
        let batch = sequences.iter_mut().map(|(cache, tokens, _)| Chunk { cache, tokens, logits: LogitsFor::Last });
        let mut logits = decoder.forward(&mut batch.collect::<Vec<_>>())?;
        let rows = logits.values_mut().chunks_exact_mut(decoder.n_vocab());
        for ((_, tokens, sampler), row) in sequences.iter_mut().zip(rows) {
            *tokens = vec![sampler.sample(row).map_err(Error::from)?];
        }
        decoder.recycle(logits);
        Ok(())
    };
    step()?;
    let start = Instant::now();
    (1..n_gen).try_for_each(|_| step())?;
    Ok((n * (n_gen - 1)) as f64 / start.elapsed().as_secs_f64())
}

fn streamed(model: &Model, n_gen: usize) -> Result<f64> {
    let mut stream = request(model, 0, n_gen).stream()?;
    for piece in &mut stream {
        piece?;
    }
    Ok(stream.into_completion().timings.decode_tokens_per_second())
}

/// Tokens per second of all requests together, from the moment when all have a token to the end of the last one.
fn together(model: &Model, n: usize, n_gen: usize) -> Result<f64> {
    let start = Instant::now();
    let runs: Vec<Completion> = thread::scope(|scope| {
        let threads: Vec<_> = (0..n).map(|i| scope.spawn(move || request(model, i, n_gen).run())).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<std::result::Result<_, _>>()
    })?;
    let prefill = runs.iter().map(|run| run.timings.queue + run.timings.prefill).max().unwrap_or_default();
    let time = start.elapsed().saturating_sub(prefill);
    Ok((n * (n_gen - 1)) as f64 / time.as_secs_f64())
}

/// How long threads rest before a short prompt: long enough that those of the pool go to sleep.
const REST: Duration = Duration::from_millis(20);

fn short_tokens(model: &Model) -> Result<Vec<u32>> {
    Ok(model.generate(&NOTES[..70]).stream()?.prompt_tokens().to_vec())
}

/// Seconds that a short prompt takes to its first token, without the engine.
fn bare_prompt(model: &Model) -> Result<f64> {
    let (tokens, decoder, mut sampler) = (short_tokens(model)?, model.decoder(), greedy(model)?);
    median(|| {
        let mut cache = decoder.new_cache_with(model.loras());
        sampler.begin(&tokens);
        let chunk = Chunk { cache: &mut cache, tokens: &tokens, logits: LogitsFor::Last };
        let mut logits = decoder.forward(&mut [chunk])?;
        let token = sampler.sample(logits.values_mut()).map_err(Error::from)?;
        decoder.recycle(logits);
        Ok(token)
    })
}

/// Seconds that a short prompt takes to its first token with the engine, as seen by the caller.
fn short_prompt(model: &Model) -> Result<f64> {
    let tokens = short_tokens(model)?;
    median(|| {
        let request = model
            .generate(&tokens[..])
            .options(crate::GenerateOptions::new().share_prefix(false))
            .temperature(0.0)
            .ignore_eos(true);
        Ok(request.max_tokens(1).run()?.tokens[0])
    })
}

/// The median of nine times, in seconds, each measured after a rest.
fn median<R>(mut f: impl FnMut() -> Result<R>) -> Result<f64> {
    let times: Vec<f64> = (0..9)
        .map(|_| {
            thread::sleep(REST);
            let start = Instant::now();
            f()?;
            Ok(start.elapsed().as_secs_f64())
        })
        .collect::<Result<_>>()?;
    Ok(Spread::of(times).map_or(0.0, |times| times.median))
}

/// Starts a long prompt, and when half of it is computed, a short request, right after a chunk began. Returns the
/// milliseconds to the first token of the short request, and those of that chunk.
fn overtake(model: &Model, n_prompt: usize) -> Result<(f64, f64)> {
    let n_vocab = model.tokenizer().n_vocab();
    let tokens: Vec<u32> = (0..n_prompt).map(|i| ((i * i % 911 + 300) % n_vocab) as u32).collect();
    let half = model.metrics().prompt_tokens + n_prompt as u64 / 2;
    let has_ended = AtomicBool::new(false);
    // Waits until at least `n` prompt tokens are done: how many are, and when that was.
    let passed = |n: u64| {
        loop {
            let (done, now) = (model.metrics().prompt_tokens, Instant::now());
            if done >= n || has_ended.load(Ordering::Relaxed) {
                return (done, now);
            }
            thread::sleep(Duration::from_micros(200));
        }
    };
    thread::scope(|scope| {
        let long = scope.spawn(|| {
            let out = model
                .generate(tokens)
                .options(crate::GenerateOptions::new().share_prefix(false))
                .ignore_eos(true)
                .max_tokens(1)
                .run();
            has_ended.store(true, Ordering::Relaxed);
            out
        });
        let (done, began) = passed(half);
        let chunk = scope.spawn(move || passed(done + 1).1.duration_since(began));
        let start = Instant::now();
        let mut stream = model
            .generate("Why?")
            .options(crate::GenerateOptions::new().share_prefix(false))
            .ignore_eos(true)
            .max_tokens(1)
            .stream()?;
        stream.next().transpose()?;
        let first_token_ms = start.elapsed().as_secs_f64() * 1e3;
        long.join().expect("no panic")?;
        Ok((first_token_ms, chunk.join().expect("no panic").as_secs_f64() * 1e3))
    })
}
