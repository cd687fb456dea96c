//! `fewbit bench`: the speed of prefill and decode, beside what the machine could do.
//!
//! *Prefill* runs `--prompt` tokens through the model, *decode* runs `--n-gen` steps of one token for
//! each of `--batch` sequences; both after `--depth` tokens that are not timed. Tokens are arbitrary
//! and nothing is sampled: it is the model that is measured. One repetition more than asked for is
//! run, and the first is not counted: it pages the weights in.
//!
//! The ceilings are measured in the same run: how fast all threads can read memory, which bounds
//! decode, and how many int8 multiply-accumulates they can do, which bounds prefill. The fractions
//! say how near to them the model came, counting only what the weights make necessary.

use std::time::Instant;

use anyhow::{Context, bail};
use fewbit::engine::{Chunk, Decoder, KvCache, LoadOptions, LogitsFor};
use fewbit::format::GgufFile;
use serde_json::{Value, json};

use crate::args::{BenchArgs, Common};
use crate::loading::{check_device, load, locate};
use crate::output::{Out, bytes, note, print_json};
use crate::synthetic::Synthetic;

/// Tokens per step of a prefill: the default of the library.
const PREFILL_CHUNK: usize = 512;

pub(crate) fn run(common: &Common, args: &BenchArgs) -> anyhow::Result<()> {
    check_device(common)?;
    match (&args.model, &args.shape, &args.r#type) {
        (Some(name), _, _) => {
            let path = locate(name)?;
            let start = Instant::now();
            let model = load(common, name)?;
            let load_s = start.elapsed().as_secs_f64();
            let work = Work::of(&fewbit::open(&path)?);
            measure(common, args, model.decoder(), load_s, &work, name)
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
            let decoder = Decoder::load(&file, &options)?;
            let load_s = start.elapsed().as_secs_f64();
            let work = Work::of(&file);
            drop((file, folder));
            measure(common, args, &decoder, load_s, &work, &format!("{shape} {ty}"))
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
    fn of(file: &GgufFile) -> Self {
        let matrices = || file.tensors().iter().filter(|t| t.shape.len() >= 2);
        // Without a matrix of its own the output uses that of the embedding; with one, a step reads
        // only a row of the embedding.
        let tied = file.tensor("output.weight").is_none();
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

fn measure(
    common: &Common,
    args: &BenchArgs,
    decoder: &Decoder,
    load_s: f64,
    work: &Work,
    name: &str,
) -> anyhow::Result<()> {
    let context = decoder.config().context_length;
    let longest = args.prompt.max(args.n_gen).saturating_add(args.depth);
    if longest > context {
        bail!("{longest} tokens are needed and the context has {context}: give a smaller -p, -n or --depth");
    }
    let runs = usize::from(args.repetitions);
    let mut prefill = Vec::with_capacity(runs);
    let mut decode = Vec::with_capacity(runs);
    for i in 0..=runs {
        let times = (prefill_rate(decoder, args)?, decode_rate(decoder, args)?);
        if i > 0 {
            prefill.extend(times.0);
            decode.extend(times.1);
        }
    }
    // Before the ceilings, which take memory of their own.
    let peak_rss = peak_rss_bytes();
    let ceilings = Ceilings::measure(decoder);
    let prefill = Rate::of(prefill);
    let decode = Rate::of(decode);
    let steps_per_s = decode.as_ref().map(|rate| rate.median / f64::from(args.batch));
    let fraction = |achieved: Option<f64>, ceiling: Option<f64>| Some(achieved? / ceiling?);
    let decode_fraction = fraction(steps_per_s.map(|s| s * work.bytes_per_step as f64 * 1e-9), ceilings.read_gb_s);
    let prefill_fraction =
        fraction(prefill.as_ref().map(|r| r.median * work.macs_per_token as f64 * 1e-9), ceilings.int8_gmac_s);

    if common.json {
        return print_json(&json!({
            "model": name,
            "load_s": load_s,
            "prefill_tok_s": prefill.as_ref().map(Rate::json),
            "decode_tok_s": decode.as_ref().map(Rate::json),
            "prompt": args.prompt,
            "n_gen": args.n_gen,
            "repetitions": args.repetitions,
            "depth": args.depth,
            "batch": args.batch,
            "peak_rss_bytes": peak_rss,
            "weight_bytes": decoder.weight_bytes(),
            "read_bandwidth_gb_s": ceilings.read_gb_s,
            "int8_peak_gmac_s": ceilings.int8_gmac_s,
            "decode_bandwidth_fraction": decode_fraction,
            "prefill_peak_fraction": prefill_fraction,
            "isa": decoder.isa().to_string(),
            "threads": decoder.n_threads(),
        }));
    }
    let mut out = Out::new();
    out.line(format_args!("{name}: {}, {} threads, loaded in {load_s:.2} s", decoder.isa(), decoder.n_threads()))?;
    let percent = |fraction: Option<f64>| fraction.map_or("-".to_owned(), |f| format!("{:.0} %", f * 100.0));
    if let Some(rate) = &prefill {
        let of = percent(prefill_fraction);
        out.line(format_args!("prefill {:4} tokens: {} tokens/s, {of} of the int8 peak", args.prompt, rate.text()))?;
    }
    if let Some(rate) = &decode {
        let of = percent(decode_fraction);
        out.line(format_args!(
            "decode  {:4} tokens: {} tokens/s, {of} of the read bandwidth",
            args.n_gen,
            rate.text()
        ))?;
    }
    if let Some(rss) = peak_rss {
        out.line(format_args!("peak memory {}, weights {}", bytes(rss), bytes(decoder.weight_bytes())))?;
    }
    if let (Some(read), Some(int8)) = (ceilings.read_gb_s, ceilings.int8_gmac_s) {
        out.line(format_args!("this machine reads {read:.1} GB/s and multiplies {int8:.0} GMAC/s (int8)"))?;
    }
    out.flush()
}

/// Prompt tokens per second; `None` if none are asked for.
fn prefill_rate(decoder: &Decoder, args: &BenchArgs) -> anyhow::Result<Option<f64>> {
    if args.prompt == 0 {
        return Ok(None);
    }
    let mut cache = at_depth(decoder, args.depth)?;
    let tokens = tokens(decoder, args.prompt, 1);
    let start = Instant::now();
    extend(decoder, &mut cache, &tokens, true)?;
    Ok(Some(args.prompt as f64 / start.elapsed().as_secs_f64()))
}

/// Generated tokens per second over all sequences; `None` if none are asked for.
fn decode_rate(decoder: &Decoder, args: &BenchArgs) -> anyhow::Result<Option<f64>> {
    if args.n_gen == 0 {
        return Ok(None);
    }
    let batch = usize::from(args.batch);
    let mut caches = (0..batch).map(|_| at_depth(decoder, args.depth)).collect::<anyhow::Result<Vec<_>>>()?;
    let tokens: Vec<Vec<u32>> = (0..batch).map(|i| tokens(decoder, args.n_gen, 2 + i as u32)).collect();
    let start = Instant::now();
    for step in 0..args.n_gen {
        let mut chunks: Vec<Chunk<'_>> = caches
            .iter_mut()
            .zip(&tokens)
            .map(|(cache, tokens)| Chunk { cache, tokens: &tokens[step..=step], logits: LogitsFor::Last })
            .collect();
        decoder.forward(&mut chunks)?;
    }
    Ok(Some((args.n_gen * batch) as f64 / start.elapsed().as_secs_f64()))
}

fn at_depth(decoder: &Decoder, depth: usize) -> anyhow::Result<KvCache> {
    let mut cache = decoder.new_cache();
    extend(decoder, &mut cache, &tokens(decoder, depth, 0), false)?;
    Ok(cache)
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

/// Tokens per second over the repetitions.
struct Rate {
    median: f64,
    min: f64,
    max: f64,
}

impl Rate {
    fn of(mut rates: Vec<f64>) -> Option<Self> {
        rates.sort_by(f64::total_cmp);
        let (min, max) = (*rates.first()?, *rates.last()?);
        let middle = rates.len() / 2;
        let median = if rates.len() % 2 == 1 { rates[middle] } else { (rates[middle - 1] + rates[middle]) / 2.0 };
        Some(Self { median, min, max })
    }

    fn json(&self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }

    fn text(&self) -> String {
        format!("{:.1} ({:.1} to {:.1})", self.median, self.min, self.max)
    }
}

/// What the machine can do, with the threads of the decoder.
struct Ceilings {
    read_gb_s: Option<f64>,
    int8_gmac_s: Option<f64>,
}

impl Ceilings {
    fn measure(decoder: &Decoder) -> Self {
        let read = fewbit::engine::ceiling::read_bandwidth(decoder.engine());
        if let Err(error) = &read {
            note(format_args!("the read bandwidth was not measured: {error}"));
        }
        let int8 = fewbit::engine::ceiling::int8_peak(decoder.engine());
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
