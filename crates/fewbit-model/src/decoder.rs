//! A loaded model: its options, and the checks around the forward pass.

use crate::cache::KvCache;
use crate::forward::Scratch;
use crate::lora::{Lora, LoraSet};
use crate::memory::{check_fits, default_kv_type};
use crate::pages::{KvType, PageKind};
use crate::prefix::PrefixTree;
use crate::quantize::{Collector, Recipe};
use crate::rope::Rope;
use crate::source::{Quantized, WeightSource};
use crate::weights::{Weights, engine};
use crate::{ModelConfig, ModelError};
use fewbit_kernels::{Engine, Isa, PAGE};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The most logits that are kept for their memory.
const MOST_RECYCLED: usize = 1 << 24;

/// How a model is loaded.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Threads to compute on; by default `FEWBIT_THREADS`, else all that the process may use.
    pub threads: Option<usize>,
    /// Instruction set; by default `FEWBIT_ISA`, else the best that the CPU has.
    pub isa: Option<Isa>,
    /// Element type of the KV caches; by default full precision for models whose weights are, else f16.
    pub kv_type: Option<KvType>,
    /// In place of the sliding window that the file names: `Some(None)` lets every query see everything.
    pub sliding_window: Option<Option<usize>>,
    /// In place of what the file says: which layers have the window. A list shorter than the layers repeats.
    pub local_layers: Option<Vec<bool>>,
    /// Positions that will be used at most, if that is fewer than the model was made for. Models with LongRoPE
    /// take their divisors by it.
    pub context_length: Option<usize>,
    /// Quantize the weights as they are read, so that only the quantized ones are ever whole in memory.
    pub quantize: Option<Recipe>,
    /// Called with bytes done and bytes in all, as tensors are read.
    pub progress: Option<Arc<dyn Fn(u64, u64) + Send + Sync>>,
}

impl LoadOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`threads`](Self::threads).
    pub fn threads(mut self, n: usize) -> Self {
        self.threads = Some(n);
        self
    }

    /// Sets [`isa`](Self::isa).
    pub fn isa(mut self, isa: Isa) -> Self {
        self.isa = Some(isa);
        self
    }

    /// Sets [`kv_type`](Self::kv_type).
    pub fn kv_type(mut self, ty: KvType) -> Self {
        self.kv_type = Some(ty);
        self
    }

    /// Sets [`sliding_window`](Self::sliding_window): for Mistral 7B v0.1 and others whose GGUF files do not say
    /// that they have one. Of a model whose layers differ, it changes those that have a window.
    pub fn sliding_window(mut self, window: Option<usize>) -> Self {
        self.sliding_window = Some(window);
        self
    }

    /// Sets [`local_layers`](Self::local_layers): for Ministral and others whose windows interleave with layers that
    /// see everything, where GGUF files do not say so.
    pub fn local_layers(mut self, pattern: impl Into<Vec<bool>>) -> Self {
        self.local_layers = Some(pattern.into());
        self
    }

    /// Sets [`context_length`](Self::context_length).
    pub fn context_length(mut self, n: usize) -> Self {
        self.context_length = Some(n);
        self
    }

    /// The configuration with what the options change.
    fn configure(&self, mut config: ModelConfig) -> Result<ModelConfig, ModelError> {
        if let Some(window) = self.sliding_window {
            config.set_sliding_window(window);
        }
        if let Some(pattern) = &self.local_layers {
            config.set_local_layers(pattern)?;
        }
        if let Some(n) = self.context_length {
            config.context_length = config.context_length.min(n.max(1));
        }
        config.checked()
    }

    /// Sets [`quantize`](Self::quantize).
    pub fn quantize(mut self, recipe: Recipe) -> Self {
        self.quantize = Some(recipe);
        self
    }

    /// Sets [`progress`](Self::progress).
    pub fn progress(mut self, f: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(f));
        self
    }
}

/// For which of its tokens a chunk wants logits, or that it wants what they are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFor {
    /// None: the chunk only fills the cache.
    None,
    /// The last token.
    Last,
    /// The last `n` tokens (all, if there are fewer).
    LastN(usize),
    /// Every token.
    All,
    /// No logits, but of every token the hidden state behind the last norm: see [`Logits::take_hidden`].
    Hidden,
}

impl LogitsFor {
    pub(crate) fn rows(self, n_tokens: usize) -> usize {
        match self {
            Self::None | Self::Hidden => 0,
            Self::Last => 1,
            Self::LastN(n) => n.min(n_tokens),
            Self::All => n_tokens,
        }
    }
}

/// Tokens to append to one sequence.
#[derive(Debug)]
pub struct Chunk<'a> {
    /// The sequence.
    pub cache: &'a mut KvCache,
    /// At least one token.
    pub tokens: &'a [u32],
    /// Which logits are wanted.
    pub logits: LogitsFor,
}

/// Rows of logits, in the order of the batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logits {
    n_vocab: usize,
    /// `[n_rows, n_vocab]`
    pub(crate) values: Vec<f32>,
    /// `[n_tokens, dim]`
    pub(crate) hidden: Vec<f32>,
}

impl Logits {
    /// Makes it so many rows; what they hold is to be written over.
    pub(crate) fn resize(&mut self, n_vocab: usize, n_rows: usize) {
        self.n_vocab = n_vocab;
        self.values.resize(n_rows * n_vocab, 0.0);
        self.hidden.clear();
    }

    /// Rows.
    pub fn n_rows(&self) -> usize {
        self.values.len() / self.n_vocab.max(1)
    }

    /// One row: `[n_vocab]`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.n_vocab..(i + 1) * self.n_vocab]
    }

    /// The hidden states of the chunks that want them ([`LogitsFor::Hidden`]), in the order of the batch:
    /// `[n_tokens, dim]`.
    pub fn take_hidden(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.hidden)
    }

    /// All rows one after another, to be changed.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

/// A loaded model.
pub struct Decoder {
    pub(crate) config: ModelConfig,
    pub(crate) weights: Weights,
    pub(crate) rope: Rope,
    pub(crate) engine: Engine,
    pages: Arc<PageKind>,
    /// Buffers of a step; held for its length, so that steps of different callers take turns.
    scratch: Mutex<Scratch>,
}

impl Decoder {
    /// Packs the weights of a model: a [`GgufFile`](fewbit_format::GgufFile) or an [`HfModel`](crate::HfModel),
    /// which is not needed afterwards.
    ///
    /// # Errors
    /// Every [`ModelError`] but those of [`forward`](Self::forward).
    pub fn load(source: &dyn WeightSource, options: &LoadOptions) -> Result<Self, ModelError> {
        match options.quantize {
            Some(recipe) => Self::pack(&Quantized::new(source, recipe)?, options),
            None => Self::pack(source, options),
        }
    }

    fn pack(source: &dyn WeightSource, options: &LoadOptions) -> Result<Self, ModelError> {
        let config = options.configure(source.config()?)?;
        let kv_type = options.kv_type.unwrap_or(default_kv_type(source));
        if !kv_type.supports(config.head_dim) {
            return Err(ModelError::UnsupportedFeature {
                feature: "a q8_0 KV cache for heads of no multiple of 32 elements (choose f16)",
                key: "head_dim".to_owned(),
                value: config.head_dim.to_string(),
            });
        }
        let engine = engine(options.isa, options.threads)?;
        check_fits(source, engine.isa())?;
        let weights = Weights::load(source, &config, &engine, options.progress.as_deref().unwrap_or(&|_, _| {}))?;
        let rope = Rope::new(&config);
        tracing::info!(
            isa = %engine.isa(),
            threads = engine.pool().n_threads(),
            weight_bytes = weights.n_bytes(),
            "loaded a {} model",
            config.architecture
        );
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let pages = Arc::new(PageKind::new(id, &config, kv_type));
        Ok(Self { config, weights, rope, engine, pages, scratch: Mutex::default() })
    }

    /// Shape and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Size of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.weights.n_vocab()
    }

    /// Threads that a step runs on.
    pub fn n_threads(&self) -> usize {
        self.engine.pool().n_threads()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.engine.isa()
    }

    /// Element type of the KV caches.
    pub fn kv_type(&self) -> KvType {
        self.pages.ty
    }

    /// The kernels and threads in use.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Bytes of the packed weights.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.n_bytes()
    }

    /// Bytes that one more position takes in a cache, on average.
    pub fn kv_bytes_per_position(&self) -> u64 {
        self.kv_page_bytes() / PAGE as u64
    }

    /// Bytes of one page of a cache: [`KV_PAGE`](crate::KV_PAGE) positions.
    pub fn kv_page_bytes(&self) -> u64 {
        self.pages.page_bytes() as u64
    }

    /// Pages that all caches and trees of prefixes of this model hold together; a shared page counts once.
    pub fn kv_pages(&self) -> usize {
        self.pages.n_live()
    }

    /// An empty sequence, computed without adapters.
    pub fn new_cache(&self) -> KvCache {
        self.new_cache_with(&LoraSet::default())
    }

    /// An empty sequence, computed with these adapters.
    pub fn new_cache_with(&self, loras: &LoraSet) -> KvCache {
        KvCache::new(Arc::clone(&self.pages), loras.clone())
    }

    /// A set of adapters, each with a scale; of one that is named twice the last scale counts.
    ///
    /// # Errors
    /// [`ModelError::ForeignLora`], [`ModelError::LoraScale`].
    pub fn lora_set(&self, loras: &[(Lora, f32)]) -> Result<LoraSet, ModelError> {
        LoraSet::new(self.id(), loras)
    }

    /// Its number among all that were loaded.
    pub(crate) fn id(&self) -> u64 {
        self.pages.model
    }

    /// A sequence of `len` positions, from the bytes that [`KvCache::put`] wrote. Whether they are what this
    /// model computes with these adapters is the caller's to know.
    ///
    /// # Errors
    /// [`ModelError::BadCacheState`] if there are not as many bytes as such a cache has, and out of memory.
    pub fn restore_cache(&self, loras: &LoraSet, len: usize, bytes: &[u8]) -> Result<KvCache, ModelError> {
        KvCache::take(&self.pages, loras.clone(), len, bytes)
    }

    /// Bytes that [`KvCache::put`] appends for a sequence of `len` positions, at most.
    pub fn cache_state_bytes(&self, len: usize) -> u64 {
        (len.div_ceil(PAGE) as u64).saturating_mul(self.kv_page_bytes()).saturating_add(8)
    }

    /// An empty tree of prefixes.
    pub fn new_prefix_tree(&self) -> PrefixTree {
        PrefixTree::new(Arc::clone(&self.pages))
    }

    /// Appends every chunk's tokens to its sequence, in one pass over the weights, and returns the logits
    /// that the chunks ask for.
    ///
    /// The logits of a token depend on the tokens before it in its own sequence, the adapters that its cache was
    /// made with, and on nothing else, bit for bit: not on how the sequence was cut into chunks, what else is in the batch, or how many threads run.
    ///
    /// # Errors
    /// [`ModelError::ContextFull`], [`ModelError::TokenId`], [`ModelError::ForeignCache`], and out of memory
    /// for the cache: nothing was appended to any sequence. [`ModelError::Internal`]: a bug.
    pub fn forward(&self, batch: &mut [Chunk<'_>]) -> Result<Logits, ModelError> {
        self.run(batch, &mut None)
    }

    /// Takes back logits that are no longer needed: the next step writes into their memory, where new memory would
    /// have to be cleared first.
    pub fn recycle(&self, logits: Logits) {
        if logits.values.len() <= MOST_RECYCLED {
            self.scratch.lock().unwrap_or_else(PoisonError::into_inner).spare_logits = logits;
        }
    }

    /// [`forward`](Self::forward), and `collector` is told of every input of a matrix.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn forward_collecting(&self, batch: &mut [Chunk<'_>], collector: &mut Collector) -> Result<Logits, ModelError> {
        let mut lent = Some(std::mem::take(collector));
        let result = self.run(batch, &mut lent);
        *collector = lent.unwrap_or_default();
        result
    }

    fn run(&self, batch: &mut [Chunk<'_>], collector: &mut Option<Collector>) -> Result<Logits, ModelError> {
        for chunk in batch.iter_mut() {
            self.check(chunk)?;
            chunk.cache.reserve(chunk.tokens.len())?;
        }
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        scratch.collector = collector.take();
        let result = catch_unwind(AssertUnwindSafe(|| self.step(batch, &mut scratch)));
        *collector = scratch.collector.take();
        let logits = result.map_err(|payload| {
            let message = payload.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
            ModelError::Internal { message: message.to_owned() }
        })?;
        for chunk in batch.iter_mut() {
            chunk.cache.advance(chunk.tokens.len());
        }
        Ok(logits)
    }

    fn check(&self, chunk: &Chunk<'_>) -> Result<(), ModelError> {
        if chunk.cache.model() != self.pages.model {
            return Err(ModelError::ForeignCache);
        }
        if !chunk.cache.loras().is_of(self.id()) {
            let foreign = chunk.cache.loras().iter().next().map(|(lora, _)| lora.path().to_owned());
            return Err(ModelError::ForeignLora { path: foreign.unwrap_or_default() });
        }
        let (position, n_tokens) = (chunk.cache.len(), chunk.tokens.len());
        if position + n_tokens > self.config.context_length {
            return Err(ModelError::ContextFull { position, n_tokens, context_length: self.config.context_length });
        }
        match chunk.tokens.iter().find(|&&id| id as usize >= self.n_vocab()) {
            Some(&id) => Err(ModelError::TokenId { id, n_vocab: self.n_vocab() }),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("config", &self.config).field("engine", &self.engine).finish_non_exhaustive()
    }
}
