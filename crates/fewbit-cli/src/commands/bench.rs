//! `fewbit bench`: the speed of prefill and decode, beside what the machine could do.
//!
//! *Prefill* runs `--prompt` tokens through the model, *decode* runs `--n-gen` steps of one token for
//! each of `--batch` sequences; both after `--depth` tokens that are not timed. Each of the four may be a
//! list: every combination is measured. Tokens are arbitrary and nothing is sampled: it is the model that is
//! measured. One repetition more than asked for is run, and the first is not counted: it pages the weights in.
//! Repetitions go round all combinations, so that a slow minute of the machine meets them all.
//!
//! The ceilings are measured in the same run: how fast all threads can read memory, which bounds
//! decode, and how many int8 multiply-accumulates they can do, which bounds prefill. The fractions
//! say how near to them the model came, counting only what a step cannot do without: weights, and in decode the
//! keys and values of the sequences.
//!
//! With `--concurrency` it is the engine that is measured: see the module `serving`.

use std::time::Instant;

use anyhow::{Context, bail};
use fewbit::engine::{Chunk, Decoder, KvCache, LoadOptions, LogitsFor, LoraSet, Quantized, WeightSource};
use fewbit::quantize::Recipe;
use serde_json::{Value, json};

use crate::args::{BenchArgs, Common};
use crate::loading::{gpu_layers, load, locate};
use crate::output::{Out, bytes, note, print_json};
use crate::synthetic::Synthetic;

/// Tokens per step of a prefill: the default of the library.
const PREFILL_CHUNK: usize = 512;

pub(crate) fn run(common: &Common, args: &BenchArgs) -> anyhow::Result<()> {
    match (&args.model, &args.shape, &args.r#type) {
        (Some(name), _, _) => {
            let path = locate(name)?;
            let start = Instant::now();
            let model = load(common, name)?;
            let load_s = start.elapsed().as_secs_f64();
            if let Some(n) = args.concurrency {
                return super::serving::run(common, args, &model, n.into(), name);
            }
            let file = fewbit::open(&path)?;
            let work = Work::of(file.weights(), common.quantize)?;
            drop(file);
            measure(common, args, (model.decoder(), model.loras()), load_s, &work, name)
        }
        (None, Some(shape), Some(ty)) => {
            let synthetic = Synthetic::new(shape, ty)?;
            let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
            let path = folder.path().join("random.gguf");
            note(format_args!("writing random weights to {}", path.display()));
            synthetic.write(&path)?;
            let start = Instant::now();
            let file = fewbit::open(&path)?;
            let mut options = LoadOptions::new();
            options.kv_type = common.kv_type.map(Into::into);
            options.threads = common.threads.map(usize::from);
            options.quantize = common.quantize;
            let n_layers = file.weights().config()?.n_layers();
            options.placement = fewbit::placement(common.device, gpu_layers(common), n_layers)?;
            let decoder = Decoder::load(file.weights(), &options)?;
            let load_s = start.elapsed().as_secs_f64();
            let work = Work::of(file.weights(), common.quantize)?;
            drop((file, folder));
            measure(common, args, (&decoder, &LoraSet::default()), load_s, &work, &format!("{shape} {ty}"))
        }
        _ => bail!("give a model, or --shape and --type"),
    }
}

/// What the weights make every step do.
struct Work {
    /// Bytes of weights that a decode step reads.
    bytes_per_step: u64,
    /// Multiply-accumulates with weights per prompt token. Logits are made for the last one only.
    macs_per_token: u64,
}

impl Work {
    fn of(source: &dyn WeightSource, quantize: Option<Recipe>) -> anyhow::Result<Self> {
        Ok(match quantize {
            Some(recipe) => Self::of_tensors(&Quantized::new(source, recipe)?),
            None => Self::of_tensors(source),
        })
    }

    fn of_tensors(source: &dyn WeightSource) -> Self {
        let matrices = || source.tensors().iter().filter(|t| t.shape.len() >= 2);
        // Without a matrix of its own the output uses that of the embedding; with one, a step reads
        // only a row of the embedding.
        let tied = source.tensor("output.weight").is_none();
        let is_read = |name: &str| name != "token_embd.weight" || tied;
        Self {
            bytes_per_step: matrices().filter(|t| is_read(&t.name)).map(|t| t.n_bytes).sum(),
            macs_per_token: matrices()
                .filter(|t| t.name.starts_with("blk."))
                .map(|t| t.shape.iter().product::<u64>())
                .sum(),
        }
    }
}

/// One combination of what may be a list.
#[derive(Clone, Copy)]
enum Test {
    Prefill { prompt: usize, depth: usize },
    Decode { n_gen: usize, depth: usize, batch: u16 },
}

impl Test {
    /// All that `args` ask for, at growing depth.
    fn all(args: &BenchArgs) -> Vec<Self> {
        let mut tests = Vec::new();
        for &depth in &args.depth {
            tests.extend(args.prompt.iter().filter(|&&n| n > 0).map(|&prompt| Self::Prefill { prompt, depth }));
            for &n_gen in args.n_gen.iter().filter(|&&n| n > 0) {
                tests.extend(args.batch.iter().map(|&batch| Self::Decode { n_gen, depth, batch }));
            }
        }
        tests
    }

    fn depth(self) -> usize {
        match self {
            Self::Prefill { depth, .. } | Self::Decode { depth, .. } => depth,
        }
    }

    /// Positions that one of its sequences takes.
    fn length(self) -> usize {
        let (Self::Prefill { prompt: n, .. } | Self::Decode { n_gen: n, .. }) = self;
        n.saturating_add(self.depth())
    }

    /// Tokens per second: of the prompt, or over all sequences.
    fn run(self, decoder: &Decoder, past: &KvCache) -> anyhow::Result<f64> {
        let start;
        let n_tokens = match self {
            Self::Prefill { prompt, .. } => {
                let (tokens, mut cache) = (tokens(decoder, prompt, 1), past.fork());
                start = Instant::now();
                extend(decoder, &mut cache, &tokens, true)?;
                prompt
            }
            Self::Decode { n_gen, batch, .. } => {
                let mut sequences: Vec<(KvCache, Vec<u32>)> =
                    (0..u32::from(batch)).map(|i| (past.fork(), tokens(decoder, n_gen, 2 + i))).collect();
                start = Instant::now();
                for step in 0..n_gen {
                    let mut chunks: Vec<Chunk<'_>> = sequences
                        .iter_mut()
                        .map(|(cache, tokens)| Chunk { cache, tokens: &tokens[step..=step], logits: LogitsFor::Last })
                        .collect();
                    decoder.forward(&mut chunks)?;
                }
                n_gen * usize::from(batch)
            }
        };
        Ok(n_tokens as f64 / start.elapsed().as_secs_f64())
    }

    /// The part of the ceiling that a rate comes to. `past` has `depth` tokens.
    fn fraction(self, rate: &Rate, work: &Work, past: &KvCache, ceilings: &Ceilings) -> Option<f64> {
        Some(match self {
            Self::Prefill { .. } => rate.median * work.macs_per_token as f64 * 1e-9 / ceilings.int8_gmac_s?,
            Self::Decode { batch, .. } => {
                let bytes = work.bytes_per_step as f64 + f64::from(batch) * past.bytes() as f64;
                rate.median / f64::from(batch) * bytes * 1e-9 / ceilings.read_gb_s?
            }
        })
    }

    fn json(self, rate: &Rate, fraction: Option<f64>) -> Value {
        match self {
            Self::Prefill { prompt, depth } => json!({
                "test": "prefill", "prompt": prompt, "depth": depth, "tok_s": rate.json(), "peak_fraction": fraction,
            }),
            Self::Decode { n_gen, depth, batch } => json!({
                "test": "decode", "n_gen": n_gen, "depth": depth, "batch": batch, "tok_s": rate.json(),
                "bandwidth_fraction": fraction,
            }),
        }
    }

    /// A line of the table.
    fn line(self, rate: &Rate, fraction: Option<f64>) -> String {
        let (name, n, batch) = match self {
            Self::Prefill { prompt, .. } => ("prefill", prompt, "-".to_owned()),
            Self::Decode { n_gen, batch, .. } => ("decode", n_gen, batch.to_string()),
        };
        let Rate { median, min, max } = rate;
        let of = fraction.map_or("-".to_owned(), |f| format!("{:.0} %", f * 100.0));
        format!("{name:7} {n:6} {:6} {batch:>5} {median:10.1} {min:9.1} {max:9.1} {of:>10}", self.depth())
    }
}

fn measure(
    common: &Common,
    args: &BenchArgs,
    (decoder, loras): (&Decoder, &LoraSet),
    load_s: f64,
    work: &Work,
    name: &str,
) -> anyhow::Result<()> {
    let tests = Test::all(args);
    let context = decoder.config().context_length;
    let longest = tests.iter().map(|test| test.length()).max().unwrap_or(0);
    if longest > context {
        bail!("{longest} tokens are needed and the context has {context}: give a smaller -p, -n or --depth");
    }
    // What is not timed is computed once, and every run goes on from a copy.
    let mut pasts: Vec<KvCache> = Vec::new();
    for test in &tests {
        if pasts.iter().all(|past| past.len() != test.depth()) {
            let mut past = decoder.new_cache_with(loras);
            extend(decoder, &mut past, &tokens(decoder, test.depth(), 0), false)?;
            pasts.push(past);
        }
    }
    let past_of = |test: Test| pasts.iter().find(|past| past.len() == test.depth()).expect("made above");
    let mut rates = vec![Vec::new(); tests.len()];
    for i in 0..=args.repetitions {
        for (&test, rates) in tests.iter().zip(&mut rates) {
            let rate = test.run(decoder, past_of(test))?;
            if i > 0 {
                rates.push(rate);
            }
        }
    }
    // Before the ceilings, which take memory of their own.
    let peak_rss = peak_rss_bytes();
    let ceilings = Ceilings::measure(decoder);
    let results: Vec<(Test, Rate, Option<f64>)> = tests
        .into_iter()
        .zip(rates)
        .filter_map(|(test, rates)| {
            let rate = Rate::of(rates)?;
            let fraction = test.fraction(&rate, work, past_of(test), &ceilings);
            Some((test, rate, fraction))
        })
        .collect();

    if common.json {
        let first = |of: fn(&Test) -> bool| results.iter().find(|(test, ..)| of(test));
        let prefill = first(|test| matches!(test, Test::Prefill { .. }));
        let decode = first(|test| matches!(test, Test::Decode { .. }));
        return print_json(&json!({
            "model": name,
            "load_s": load_s,
            "prefill_tok_s": prefill.map(|(_, rate, _)| rate.json()),
            "decode_tok_s": decode.map(|(_, rate, _)| rate.json()),
            "decode_bandwidth_fraction": decode.map(|(.., fraction)| fraction),
            "prefill_peak_fraction": prefill.map(|(.., fraction)| fraction),
            "tests": results.iter().map(|(test, rate, fraction)| test.json(rate, *fraction)).collect::<Vec<_>>(),
            "prompt": args.prompt.first(),
            "n_gen": args.n_gen.first(),
            "depth": args.depth.first(),
            "batch": args.batch.first(),
            "repetitions": args.repetitions,
            "peak_rss_bytes": peak_rss,
            "weight_bytes": decoder.weight_bytes(),
            "read_bandwidth_gb_s": ceilings.read_gb_s,
            "int8_peak_gmac_s": ceilings.int8_gmac_s,
            "isa": decoder.isa().to_string(),
            "threads": decoder.n_threads(),
        }));
    }
    let mut out = Out::new();
    out.line(format_args!("{name}: {}, {} threads, loaded in {load_s:.2} s", decoder.isa(), decoder.n_threads()))?;
    out.line("        tokens  depth batch   tokens/s       min       max of ceiling")?;
    for (test, rate, fraction) in &results {
        out.line(test.line(rate, *fraction))?;
    }
    if let Some(rss) = peak_rss {
        out.line(format_args!("peak memory {}, weights {}", bytes(rss), bytes(decoder.weight_bytes())))?;
    }
    let figure = |what: &str, value: Option<f64>, unit: &str| match value {
        Some(value) => format!("{what} {value:.1} {unit}"),
        None => format!("{what}: not measured"),
    };
    out.line(format_args!(
        "ceilings of this machine: {}, {}",
        figure("reading (decode)", ceilings.read_gb_s, "GB/s"),
        figure("int8 multiply-adds (prefill)", ceilings.int8_gmac_s, "GMAC/s")
    ))?;
    out.flush()
}

fn extend(decoder: &Decoder, cache: &mut KvCache, tokens: &[u32], last_logits: bool) -> anyhow::Result<()> {
    let n_chunks = tokens.len().div_ceil(PREFILL_CHUNK);
    for (i, tokens) in tokens.chunks(PREFILL_CHUNK).enumerate() {
        let logits = if last_logits && i + 1 == n_chunks { LogitsFor::Last } else { LogitsFor::None };
        decoder.forward(&mut [Chunk { cache, tokens, logits }])?;
    }
    Ok(())
}

/// Some tokens of the vocabulary, the same each time.
fn tokens(decoder: &Decoder, n: usize, seed: u32) -> Vec<u32> {
    let n_vocab = decoder.n_vocab().max(1) as u64;
    let mut state = u64::from(seed) + 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % n_vocab) as u32
        })
        .collect()
}

/// A figure over the repetitions.
pub(super) struct Rate {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Rate {
    pub(super) fn of(mut rates: Vec<f64>) -> Option<Self> {
        rates.sort_by(f64::total_cmp);
        let (min, max) = (*rates.first()?, *rates.last()?);
        let middle = rates.len() / 2;
        let median = if rates.len() % 2 == 1 { rates[middle] } else { (rates[middle - 1] + rates[middle]) / 2.0 };
        Some(Self { median, min, max })
    }

    pub(super) fn json(&self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

/// What the machine can do, with the threads of the decoder.
struct Ceilings {
    read_gb_s: Option<f64>,
    int8_gmac_s: Option<f64>,
}

impl Ceilings {
    fn measure(decoder: &Decoder) -> Self {
        let read = fewbit::engine::ceiling::read_bandwidth(decoder.cpu());
        if let Err(error) = &read {
            note(format_args!("the read bandwidth was not measured: {error}"));
        }
        let int8 = fewbit::engine::ceiling::int8_peak(decoder.cpu());
        Self { read_gb_s: read.ok().map(|b| b * 1e-9), int8_gmac_s: int8.map(|m| m * 1e-9) }
    }
}

/// The most memory that this process had at once; the system keeps count on Linux.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let rate = Rate::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((rate.median, rate.min, rate.max), (2.0, 1.0, 3.0));
        assert_eq!(Rate::of(vec![4.0, 1.0]).unwrap().median, 2.5);
        assert!(Rate::of(vec![]).is_none());
    }
}
