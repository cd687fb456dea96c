//! Benchmarks of the bare model, prefill and decode, and the ceilings of the machine.

use std::time::{Duration, Instant};

use fewbit_model::quantize::Recipe;
use fewbit_model::{
    Chunk, Decoder, Isa, KernelTime, KvCache, LoadOptions, LogitsFor, LoraSet, ModelError, PlacedPart, Quantized,
    WeightSource, ceiling,
};

use super::figures::{BenchError, Spread};
use crate::device::DeviceOptions;
use crate::error::Error;
use crate::file::open;
use crate::model::Model;
use crate::random::RandomWeights;

/// Tokens per step of a prefill: the default of [`ModelBuilder::prefill_chunk`](crate::ModelBuilder::prefill_chunk).
const PREFILL_CHUNK: usize = 512;

/// The model to measure: a loaded model, or random weights.
pub struct Target<'m> {
    decoder: Loaded<'m>,
    pub(super) loras: LoraSet,
    work: Work,
    load: Duration,
}

impl std::fmt::Debug for Target<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("load", &self.load).finish_non_exhaustive()
    }
}

enum Loaded<'m> {
    Model(&'m Model),
    Random(Box<Decoder>),
}

impl<'m> Target<'m> {
    /// A loaded model, with its adapters.
    ///
    /// # Errors
    /// Those of opening the model's file again, whose header shows what work a step has.
    pub fn of(model: &'m Model) -> Result<Self, BenchError> {
        let file = open(model.path())?;
        Ok(Self {
            decoder: Loaded::Model(model),
            loras: model.loras().clone(),
            work: Work::of(file.weights(), model.recipe())?,
            load: model.load_time(),
        })
    }

    /// Random weights, which are written to a temporary file and loaded from it, onto these devices.
    ///
    /// # Errors
    /// Those of writing and of loading.
    pub fn random(weights: &RandomWeights, options: &LoadOptions, devices: &DeviceOptions) -> Result<Self, BenchError> {
        let folder = tempfile::tempdir().map_err(|error| {
            let path = std::env::temp_dir();
            Error::file(&path, error)
        })?;
        let path = folder.path().join("random.gguf");
        weights.write(&path)?;
        let start = Instant::now();
        let file = open(&path)?;
        let mut options = options.clone().placement(devices.place(file.weights(), options)?);
        let decoder = crate::device::load(file.weights(), &mut options, devices.is_automatic())?;
        let load = start.elapsed();
        let work = Work::of(file.weights(), options.quantize)?;
        Ok(Self { decoder: Loaded::Random(Box::new(decoder)), loras: LoraSet::default(), work, load })
    }

    pub(super) fn decoder(&self) -> &Decoder {
        match &self.decoder {
            Loaded::Model(model) => model.decoder(),
            Loaded::Random(decoder) => decoder,
        }
    }
}

/// The work of every step, by the weights.
struct Work {
    /// Bytes of weights that a decode step reads.
    bytes_per_step: u64,
    /// Multiply-accumulates with weights per prompt token. Logits are made for the last one only.
    macs_per_token: u64,
}

impl Work {
    fn of(source: &dyn WeightSource, quantize: Option<Recipe>) -> Result<Self, ModelError> {
        Ok(match quantize {
            Some(recipe) => Self::of_tensors(&Quantized::new(source, recipe)?),
            None => Self::of_tensors(source),
        })
    }

    fn of_tensors(source: &dyn WeightSource) -> Self {
        let matrices = || source.tensors().iter().filter(|t| t.shape.len() >= 2);
        // Without a matrix of its own, the output layer uses that of the embedding. With one, a step reads only one row
        // of the embedding, and never more than one of the per-layer embedding.
        let tied = source.tensor("output.weight").is_none();
        let is_read = |name: &str| match name {
            "token_embd.weight" => tied,
            name => name != "per_layer_token_embd.weight",
        };
        Self {
            bytes_per_step: matrices().filter(|t| is_read(&t.name)).map(|t| t.n_bytes).sum(),
            macs_per_token: matrices().filter(|t| t.name.starts_with("blk.")).map(|t| t.n_elems()).sum(),
        }
    }
}

/// One combination of lengths, depth and batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BenchTest {
    /// Prefill of a prompt.
    Prefill {
        /// Number of tokens of the prompt.
        prompt: usize,
        /// Number of tokens in the context before it.
        depth: usize,
    },
    /// Decoding.
    Decode {
        /// Number of tokens to generate for each sequence.
        n_gen: usize,
        /// Number of tokens in the context before them.
        depth: usize,
        /// Number of sequences.
        batch: usize,
    },
}

impl BenchTest {
    /// Number of tokens in the context before the timed part.
    pub fn depth(self) -> usize {
        match self {
            Self::Prefill { depth, .. } | Self::Decode { depth, .. } => depth,
        }
    }

    /// Number of positions that each of its sequences takes.
    fn length(self) -> usize {
        let (Self::Prefill { prompt: n, .. } | Self::Decode { n_gen: n, .. }) = self;
        n.saturating_add(self.depth())
    }

    /// Runs it once; returns the tokens per second, of the prompt or over all sequences.
    fn run(self, decoder: &Decoder, past: &KvCache) -> Result<f64, ModelError> {
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
                    (0..batch as u32).map(|i| (past.fork(), tokens(decoder, n_gen, 2 + i))).collect();
                start = Instant::now();
                for step in 0..n_gen {
                    let mut chunks: Vec<Chunk<'_>> = sequences
                        .iter_mut()
                        .map(|(cache, tokens)| Chunk { cache, tokens: &tokens[step..=step], logits: LogitsFor::Last })
                        .collect();
                    decoder.forward(&mut chunks)?;
                }
                n_gen * batch
            }
        };
        Ok(n_tokens as f64 / start.elapsed().as_secs_f64())
    }

    /// The fraction of the ceiling that a rate reaches. `past` has `depth` tokens.
    fn fraction(self, rate: &Spread, work: &Work, past: &KvCache, ceilings: &Ceilings) -> Option<f64> {
        Some(match self {
            Self::Prefill { .. } => rate.median * work.macs_per_token as f64 * 1e-9 / ceilings.int8_gmac_s?,
            Self::Decode { batch, .. } => {
                let bytes = work.bytes_per_step as f64 + batch as f64 * past.bytes() as f64;
                rate.median / batch as f64 * bytes * 1e-9 / ceilings.read_gb_s?
            }
        })
    }
}

/// The benchmarks to run: all combinations of the lists.
#[derive(Debug, Clone)]
#[must_use = "nothing is measured before `run`"]
pub struct Bench {
    prompt: Vec<usize>,
    n_gen: Vec<usize>,
    depth: Vec<usize>,
    batch: Vec<usize>,
    repetitions: usize,
    kernels: bool,
}

impl Default for Bench {
    fn default() -> Self {
        Self { prompt: vec![512], n_gen: vec![128], depth: vec![0], batch: vec![1], repetitions: 5, kernels: false }
    }
}

impl Bench {
    /// A prompt of 512 tokens and 128 generated tokens, five repetitions each.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lengths of prompts, in tokens; 0 measures no prefill.
    pub fn prompt(mut self, n_tokens: impl Into<Vec<usize>>) -> Self {
        self.prompt = n_tokens.into();
        self
    }

    /// Numbers of tokens to generate; 0 measures no decoding.
    pub fn n_gen(mut self, n_tokens: impl Into<Vec<usize>>) -> Self {
        self.n_gen = n_tokens.into();
        self
    }

    /// Numbers of tokens in the context before the timed part.
    pub fn depth(mut self, n_tokens: impl Into<Vec<usize>>) -> Self {
        self.depth = n_tokens.into();
        self
    }

    /// Numbers of sequences to decode at once; 0 counts as 1.
    pub fn batch(mut self, n: impl Into<Vec<usize>>) -> Self {
        self.batch = n.into();
        self.batch.iter_mut().for_each(|n| *n = (*n).clamp(1, 1 << 16));
        self
    }

    /// Number of repetitions (5 by default; at least 1).
    pub fn repetitions(mut self, n: usize) -> Self {
        self.repetitions = n.max(1);
        self
    }

    /// Runs each combination once more, and measures how long each kernel takes on the GPUs, by their clocks.
    pub fn kernels(mut self, are_measured: bool) -> Self {
        self.kernels = are_measured;
        self
    }

    /// All combinations, by increasing depth.
    pub fn tests(&self) -> Vec<BenchTest> {
        let mut tests = Vec::new();
        for &depth in &self.depth {
            let prompts = self.prompt.iter().filter(|&&n| n > 0);
            tests.extend(prompts.map(|&prompt| BenchTest::Prefill { prompt, depth }));
            for &n_gen in self.n_gen.iter().filter(|&&n| n > 0) {
                tests.extend(self.batch.iter().map(|&batch| BenchTest::Decode { n_gen, depth, batch }));
            }
        }
        tests
    }

    /// Runs the benchmarks.
    ///
    /// # Errors
    /// [`BenchError::TooLong`], and those of the model.
    pub fn run(&self, target: &Target<'_>) -> Result<BenchReport, BenchError> {
        let decoder = target.decoder();
        let tests = self.tests();
        let context_tokens = decoder.config().context_length;
        let needed = tests.iter().map(|test| test.length()).max().unwrap_or(0);
        if needed > context_tokens {
            return Err(BenchError::TooLong { needed, context_tokens });
        }
        // The part that is not timed is computed once, and every run continues from a copy of it.
        let mut pasts: Vec<KvCache> = Vec::new();
        for test in &tests {
            if pasts.iter().all(|past| past.len() != test.depth()) {
                let mut past = decoder.new_cache_with(&target.loras);
                extend(decoder, &mut past, &tokens(decoder, test.depth(), 0), false)?;
                pasts.push(past);
            }
        }
        let past_of = |test: BenchTest| pasts.iter().find(|past| past.len() == test.depth()).expect("made above");
        let mut rates = vec![Vec::new(); tests.len()];
        for i in 0..=self.repetitions {
            for (&test, rates) in tests.iter().zip(&mut rates) {
                let rate = test.run(decoder, past_of(test))?;
                if i > 0 {
                    rates.push(rate);
                }
            }
        }
        let mut kernels = Vec::new();
        for &test in tests.iter().filter(|_| self.kernels) {
            let timed = decoder.time_kernels(|| test.run(decoder, past_of(test)).map(drop))?;
            kernels.extend(timed.into_iter().map(|(device, times)| TimedKernels { test, device, times }));
        }
        // Read before the ceilings are measured, because they take memory of their own.
        let peak_rss_bytes = peak_rss_bytes();
        // The ceilings of the CPU say nothing about a GPU, and none are those of both together.
        let placed = decoder.placed();
        let mut ceilings = Ceilings { read_gb_s: None, int8_gmac_s: None };
        if placed.iter().all(|part| part.is_host) {
            ceilings = Ceilings::measure(decoder);
        } else if let Some((_, of)) = decoder.device_ceilings()? {
            let (read, int8) = (of.read_bytes_per_s * 1e-9, of.int8_macs_per_s * 1e-9);
            ceilings = Ceilings { read_gb_s: Some(read), int8_gmac_s: Some(int8) };
        }
        let result = |(test, rates): (BenchTest, Vec<f64>)| {
            let tokens_per_s = Spread::of(rates)?;
            let fraction = test.fraction(&tokens_per_s, &target.work, past_of(test), &ceilings);
            Some(Measured { test, tokens_per_s, fraction })
        };
        Ok(BenchReport {
            results: tests.into_iter().zip(rates).filter_map(result).collect(),
            load: target.load,
            weight_bytes: decoder.weight_bytes(),
            kernels,
            peak_rss_bytes,
            ceilings,
            placed,
            isa: decoder.isa(),
            n_threads: decoder.n_threads(),
        })
    }
}

/// The results of a benchmark.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BenchReport {
    /// One result for each of [`Bench::tests`].
    pub results: Vec<Measured>,
    /// How long each kernel took, if [`Bench::kernels`] asked for it: for each combination, by GPU that can measure it.
    pub kernels: Vec<TimedKernels>,
    /// Time that loading took.
    pub load: Duration,
    /// Size of the weights in memory, in bytes.
    pub weight_bytes: u64,
    /// Peak resident memory of this process in bytes, loading included; known only on Linux.
    pub peak_rss_bytes: Option<u64>,
    /// The ceilings of the CPU, or of the GPU that has all layers; not measured if the model is on several devices.
    pub ceilings: Ceilings,
    /// Which part of the model is on which device.
    pub placed: Vec<PlacedPart>,
    /// The instruction set.
    pub isa: Isa,
    /// Number of threads that computed.
    pub n_threads: usize,
}

/// The result of one combination.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Measured {
    /// The combination.
    pub test: BenchTest,
    /// Tokens per second: of the prompt, or over all sequences.
    pub tokens_per_s: Spread,
    /// The fraction of the ceiling: of the int8 multiply-accumulates in prefill, of the memory bandwidth in decode.
    pub fraction: Option<f64>,
}

/// How long each kernel took on a GPU in one run of a combination.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TimedKernels {
    /// The combination.
    pub test: BenchTest,
    /// The GPU.
    pub device: String,
    /// The times of all launches of each kernel, the longest first.
    pub times: Vec<KernelTime>,
}

/// The ceilings of the machine, with as many threads as the model uses, or of the GPU that has all layers.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Ceilings {
    /// GB (1e9 bytes) read from memory per second; `None` if there was too little memory to measure it.
    pub read_gb_s: Option<f64>,
    /// Int8 multiply-accumulates per second, in 1e9; `None` if the instruction set has none.
    pub int8_gmac_s: Option<f64>,
}

impl Ceilings {
    fn measure(decoder: &Decoder) -> Self {
        let read = ceiling::read_bandwidth(decoder.cpu());
        if let Err(error) = &read {
            tracing::warn!(%error, "the read bandwidth was not measured");
        }
        let int8 = ceiling::int8_peak(decoder.cpu());
        Self { read_gb_s: read.ok().map(|b| b * 1e-9), int8_gmac_s: int8.map(|m| m * 1e-9) }
    }
}

pub(super) fn extend(
    decoder: &Decoder,
    cache: &mut KvCache,
    tokens: &[u32],
    last_logits: bool,
) -> Result<(), ModelError> {
    let n_chunks = tokens.len().div_ceil(PREFILL_CHUNK);
    for (i, tokens) in tokens.chunks(PREFILL_CHUNK).enumerate() {
        let logits = if last_logits && i + 1 == n_chunks { LogitsFor::Last } else { LogitsFor::None };
        decoder.forward(&mut [Chunk { cache, tokens, logits }])?;
    }
    Ok(())
}

/// Some tokens of the vocabulary, the same ones each time.
pub(super) fn tokens(decoder: &Decoder, n: usize, seed: u32) -> Vec<u32> {
    let n_vocab = decoder.n_vocab().max(1) as u64;
    let mut state = u64::from(seed) + 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % n_vocab) as u32
        })
        .collect()
}

/// Peak resident memory of this process, in bytes; known only on Linux.
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
    fn every_combination_is_measured() {
        let bench = Bench::new().prompt([8, 0]).n_gen([2]).depth([0, 4]).batch([1, 0, 3]);
        let (prefill, decode) = (
            |depth| BenchTest::Prefill { prompt: 8, depth },
            |depth, batch| BenchTest::Decode { n_gen: 2, depth, batch },
        );
        let at = |depth| [prefill(depth), decode(depth, 1), decode(depth, 1), decode(depth, 3)];
        assert_eq!(bench.tests(), [at(0), at(4)].concat());
    }
}
