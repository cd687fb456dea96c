//! A loaded model: weights, vocabulary, chat template.
//!
//! [`Model`] is a handle: cloning it copies a pointer, and every generation keeps one, so a model
//! lives as long as anything uses it. Its engine thread ([`scheduler`](crate::scheduler)) computes all
//! generations together; it starts with the model and ends with the last handle.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fewbit_model::quantize::Recipe;
use fewbit_model::{
    Chunk, Decoder, Isa, KvCache, KvType, LoadOptions, Logits, LogitsFor, Lora, LoraSet, MemoryEstimate, ModelConfig,
    ModelError, available_bytes, estimate,
};
use fewbit_tokenizer::{
    ChatTemplate, Message, SpecialTokens, TemplateError, TemplateInput, Tokenizer, TokenizerOptions, encode_rendered,
};

use crate::chat::ChatBuilder;
use crate::error::Error;
use crate::file::{ModelFile, open};
use crate::generate::{Generate, Prompt};
use crate::hub::{ChatDefaults, Event, Hub, HubError, Progress};
use crate::sample::{Penalties, Sampling};
use crate::scheduler::{Core, Limits, Metrics, Scheduler};
use crate::tools::Tool;
use xxhash_rust::xxh3::Xxh3;

const DEFAULT_PREFILL_CHUNK: usize = 512;
const DEFAULT_MAX_RUNNING: usize = 64;
const DEFAULT_MAX_WAITING: usize = 1024;
/// Known prefixes take a quarter of what caches may take, and no more than this.
const DEFAULT_PREFIX_BYTES: u64 = 1 << 30;

/// A model, ready to generate. Cheap to clone; usable from any thread.
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// use std::thread;
///
/// let model = fewbit::Model::load("smollm2-135m-instruct")?;
/// let other = model.clone();
/// // The two are computed together.
/// let thread = thread::spawn(move || other.generate("Once upon a time").max_tokens(64).run());
/// println!("{}", model.generate("In the beginning").max_tokens(64).run()?);
/// println!("{}", thread.join().expect("no panic")?);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Model {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) core: Arc<Core>,
    pub(crate) scheduler: Scheduler,
    template: Template,
    /// For conversations with tools, where that is another one.
    tool_template: Template,
    defaults: ChatDefaults,
    path: PathBuf,
    file_bytes: u64,
    context_length: usize,
    /// See [`Model::vocabulary`].
    vocabulary: OnceLock<u64>,
}

/// A template that does not compile is an error of those who use it, not of the model.
enum Template {
    Missing,
    Broken(Arc<TemplateError>),
    Ready(Box<ChatTemplate>),
}

impl Template {
    fn new(source: Option<&str>, tokenizer: &Tokenizer) -> Self {
        match source.map(|source| ChatTemplate::new(source, tokenizer)) {
            None => Self::Missing,
            Some(Ok(template)) => Self::Ready(Box::new(template)),
            Some(Err(error)) => {
                tracing::warn!(%error, "the chat template cannot be used");
                Self::Broken(Arc::new(error))
            }
        }
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

/// How to load a model: made by [`Model::builder`].
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// use fewbit::Model;
///
/// let builder = Model::builder().threads(4).context_length(4096).kv_memory(1 << 30).max_running(16);
/// println!("{} MiB", builder.memory_estimate("model.gguf")?.total_bytes() >> 20); // nothing is loaded yet
/// let model = builder.load("model.gguf")?;
/// # Ok(()) }
/// ```
#[derive(Default)]
#[must_use = "nothing is loaded before `load`"]
pub struct ModelBuilder {
    load: LoadOptions,
    prefill_chunk: Option<usize>,
    max_running: Option<usize>,
    max_waiting: Option<usize>,
    kv_memory: Option<u64>,
    sequences: Option<usize>,
    prefix_memory: Option<u64>,
    loras: Vec<(PathBuf, f32)>,
    chat_template: Option<String>,
    trace_text: bool,
    tokenizer: TokenizerOptions,
    progress: Option<Box<dyn Progress>>,
}

impl std::fmt::Debug for ModelBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelBuilder").field("threads", &self.load.threads).finish_non_exhaustive()
    }
}

impl ModelBuilder {
    /// How many threads compute; by default as many as `FEWBIT_THREADS` says, else all.
    pub fn threads(mut self, n: usize) -> Self {
        self.load.threads = Some(n);
        self
    }

    /// The instruction set to use; by default the one that `FEWBIT_ISA` names, else the best that the
    /// CPU has. The result is the same.
    pub fn isa(mut self, isa: Isa) -> Self {
        self.load.isa = Some(isa);
        self
    }

    /// Quantizes the weights as they are read: of a model in 16 bits, only the quantized weights and one tensor
    /// are ever in memory. Tensors that take no more bits already stay as they are. `fewbit quantize` does the
    /// same once and for all, and can weigh errors by importance.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// let model = fewbit::Model::builder().quantize(fewbit::quantize::Recipe::Q4_K_M).load("SmolLM2-1.7B/")?;
    /// # Ok(()) }
    /// ```
    pub fn quantize(mut self, recipe: Recipe) -> Self {
        self.load.quantize = Some(recipe);
        self
    }

    /// The type of the KV cache; by default f16 for quantized models.
    pub fn kv_type(mut self, ty: KvType) -> Self {
        self.load.kv_type = Some(ty);
        self
    }

    /// Keys that a query sees at most, itself included, in place of what the file says; `None` lets it see
    /// all. For models whose GGUF files do not name their window, such as Mistral 7B v0.1 with its 4096. Where only
    /// some layers have a window, it is theirs that changes.
    pub fn sliding_window(mut self, window: Option<usize>) -> Self {
        self.load = self.load.sliding_window(window);
        self
    }

    /// Which layers have the sliding window, in place of what the file says: a list shorter than the layers repeats,
    /// so `[false, true, true, true]` lets every fourth layer see everything, from the first on. For models whose
    /// windows interleave and whose GGUF files do not say how, such as Ministral 8B.
    pub fn local_layers(mut self, pattern: impl Into<Vec<bool>>) -> Self {
        self.load = self.load.local_layers(pattern);
        self
    }

    /// How many tokens of prompts go through the model in one step at most (512 by default; at least 1). There
    /// are fewer while other generations wait for their next token. The result is the same.
    pub fn prefill_chunk(mut self, n_tokens: usize) -> Self {
        self.prefill_chunk = Some(n_tokens.max(1));
        self
    }

    /// A shorter context than the model's own, which bounds the memory of each generation. Models with LongRoPE
    /// (Phi-3 128k) embed positions by it: up to their original context as in their first training.
    pub fn context_length(mut self, n_tokens: usize) -> Self {
        self.load = self.load.context_length(n_tokens);
        self
    }

    /// How many generations are computed at once (64 by default; at least 1); others wait.
    pub fn max_running(mut self, n: usize) -> Self {
        self.max_running = Some(n.max(1));
        self
    }

    /// How many generations may wait (1024 by default); more are refused with [`Error::QueueFull`].
    pub fn max_waiting(mut self, n: usize) -> Self {
        self.max_waiting = Some(n);
        self
    }

    /// How much memory keys and values may take: half of what is free after loading by default. Generations
    /// that find no room wait, or are computed again later; a prompt that would not fit alone is refused.
    pub fn kv_memory(mut self, bytes: u64) -> Self {
        self.kv_memory = Some(bytes);
        self
    }

    /// How much of that may be kept of prompts that are done, for others that begin alike: by default a quarter,
    /// 1 GiB at most; 0 keeps nothing.
    pub fn prefix_memory(mut self, bytes: u64) -> Self {
        self.prefix_memory = Some(bytes);
        self
    }

    /// Promises memory for so many contexts of full length: loading is refused, with figures, if they would not fit
    /// beside the model. Without it memory is taken as generations grow, within [`kv_memory`](Self::kv_memory).
    pub fn sequences(mut self, n: usize) -> Self {
        self.sequences = Some(n);
        self
    }

    /// Loads a LoRA adapter with the model, and applies it with this scale (1 is what it was trained for) to every
    /// request that asks for nothing else. Can be called several times. The adapter is a GGUF file as llama.cpp has
    /// it, or a folder as PEFT writes it. See [`Model::load_lora`] for adapters that only some requests use.
    pub fn lora(mut self, path: impl Into<PathBuf>, scale: f32) -> Self {
        self.loras.push((path.into(), scale));
        self
    }

    /// What the model takes with these settings, from the header of its file: nothing is loaded. Keys and values
    /// are those of [`sequences`](Self::sequences) contexts of full length, or of one.
    pub fn memory_estimate(&self, name_or_path: impl AsRef<str>) -> Result<MemoryEstimate, Error> {
        let path = resolve(name_or_path.as_ref(), &|_: &Event<'_>| {})?;
        self.estimate(&open(&path)?, &path).map(|(estimate, _)| estimate)
    }

    /// The estimate, and the tokens of a context.
    fn estimate(&self, file: &ModelFile, path: &Path) -> Result<(MemoryEstimate, usize), Error> {
        let load_error = |error: ModelError| Error::Load { path: path.to_owned(), error };
        let isa = self.load.isa.map_or_else(Isa::from_env, Ok).map_err(|error| load_error(error.into()))?;
        let context = match self.load.context_length {
            Some(n) => n,
            None => file.weights().config().map_err(load_error)?.context_length,
        };
        let mut estimate = estimate(file.weights(), isa, context, self.load.kv_type).map_err(load_error)?;
        estimate.kv_bytes = estimate.kv_bytes.saturating_mul(self.sequences.unwrap_or(1) as u64);
        for (path, _) in &self.loras {
            estimate.lora_bytes = estimate.lora_bytes.saturating_add(Lora::estimate(path)?);
        }
        Ok((estimate, context))
    }

    /// Refuses what would not fit.
    fn check_memory(&self, file: &ModelFile, path: &Path) -> Result<(), Error> {
        let (Some(sequences), Some(available_bytes)) = (self.sequences, available_bytes()) else { return Ok(()) };
        let (estimate, context_tokens) = self.estimate(file, path)?;
        if estimate.total_bytes() > available_bytes {
            return Err(Error::DoesNotFit { estimate, sequences, context_tokens, available_bytes });
        }
        Ok(())
    }

    /// A chat template (Jinja source) instead of the one in the file.
    pub fn chat_template(mut self, source: impl Into<String>) -> Self {
        self.chat_template = Some(source.into());
        self
    }

    /// The pre-tokenizer to use instead of the one that the file names (`tokenizer.ggml.pre`), for files
    /// that name none or an unknown one. The wrong one gives wrong tokens.
    pub fn pre_tokenizer(mut self, name: impl Into<String>) -> Self {
        self.tokenizer = TokenizerOptions::with_pre(name);
        self
    }

    /// Whether the [`tracing`](crate#what-it-is-doing) span of a request has the texts of its prompt and output.
    /// By default it has numbers only.
    pub fn trace_text(mut self, yes: bool) -> Self {
        self.trace_text = yes;
        self
    }

    /// Is told about the download, if the model is given by name and has to be fetched.
    pub fn progress(mut self, progress: impl Progress + 'static) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// Loads the model: a name from the registry, or the path of a GGUF file or of a Hugging Face folder.
    pub fn load(self, name_or_path: impl AsRef<str>) -> Result<Model, Error> {
        let silent = |_: &Event<'_>| {};
        let progress: &dyn Progress = self.progress.as_deref().unwrap_or(&silent);
        let located = locate(name_or_path.as_ref(), progress)?;
        self.load_located(located)
    }

    /// Loads the GGUF file or Hugging Face folder at `path`.
    pub fn load_file(self, path: impl AsRef<Path>) -> Result<Model, Error> {
        self.load_located(Located { path: path.as_ref().to_owned(), defaults: ChatDefaults::default() })
    }

    fn load_located(self, located: Located) -> Result<Model, Error> {
        let Located { path, defaults } = located;
        let start = Instant::now();
        let file = open(&path)?;
        self.check_memory(&file, &path)?;
        // The vocabulary first: it is quick, and its errors should not wait for the weights.
        let tokenizer = file.tokenizer(&path, &self.tokenizer)?;
        let defaults = file.chat_defaults(&path, defaults)?;
        let (template, tool_template) = match &self.chat_template {
            Some(source) => (Template::new(Some(source), &tokenizer), Template::Missing),
            None => {
                let of = |source| Template::new(source, &tokenizer);
                (of(tokenizer.chat_template()), of(tokenizer.tool_template()))
            }
        };
        let decoder =
            Decoder::load(file.weights(), &self.load).map_err(|error| Error::Load { path: path.clone(), error })?;
        let trained = decoder.config().context_length;
        let context_length = self.load.context_length.unwrap_or(trained);
        if context_length > trained {
            return Err(Error::ContextTooLong { asked: context_length, context_tokens: trained });
        }
        let loras = self.loras.iter().map(|(path, scale)| Ok((decoder.load_lora(path)?, *scale)));
        let loras = decoder.lora_set(&loras.collect::<Result<Vec<_>, Error>>()?)?;
        let limits = Limits {
            prefill_chunk: self.prefill_chunk.unwrap_or(DEFAULT_PREFILL_CHUNK),
            max_running: self.max_running.unwrap_or(DEFAULT_MAX_RUNNING),
            max_waiting: self.max_waiting.unwrap_or(DEFAULT_MAX_WAITING),
            ..kv_limits(decoder.kv_page_bytes(), self.kv_memory, self.prefix_memory)
        };
        let load_time = start.elapsed();
        tracing::info!(path = %path.display(), isa = %decoder.isa(), threads = decoder.n_threads(), ?load_time, "loaded");
        let core = Arc::new(Core {
            decoder,
            tokenizer: Arc::new(tokenizer),
            #[cfg(feature = "constraints")]
            constraints: crate::constraints::Compiler::default(),
            loras,
            load_time,
            limits,
            trace_text: self.trace_text,
        });
        Ok(Model {
            inner: Arc::new(Inner {
                scheduler: Scheduler::new(Arc::clone(&core))?,
                core,
                template,
                tool_template,
                defaults,
                file_bytes: file.file_bytes(),
                path,
                context_length,
                vocabulary: OnceLock::new(),
            }),
        })
    }
}

/// The limits of pages, from those of bytes; a model that can hold no page at all would be of no use.
fn kv_limits(page_bytes: u64, kv_memory: Option<u64>, prefix_memory: Option<u64>) -> Limits {
    let kv_memory = kv_memory.unwrap_or_else(|| available_bytes().map_or(u64::MAX, |free| free / 2));
    let prefix_memory = prefix_memory.unwrap_or(DEFAULT_PREFIX_BYTES.min(kv_memory / 4));
    let pages = |bytes: u64| usize::try_from(bytes / page_bytes.max(1)).unwrap_or(usize::MAX);
    let kv_pages = pages(kv_memory).max(1);
    Limits {
        prefill_chunk: 1,
        max_running: 1,
        max_waiting: 0,
        kv_pages,
        prefix_pages: pages(prefix_memory).min(kv_pages),
    }
}

/// A model's file, and what the registry says about chatting with it.
struct Located {
    path: PathBuf,
    defaults: ChatDefaults,
}

/// Finds the file that `name_or_path` means, and fetches it if need be (feature `hub`).
///
/// A file of that path wins; a name of the registry wins over a folder, because folders of models
/// tend to be called like them; what looks like a path is never looked up.
fn locate(name_or_path: &str, progress: &dyn Progress) -> Result<Located, Error> {
    let path = PathBuf::from(name_or_path);
    let defaults = ChatDefaults::default();
    if path.is_file() {
        return Ok(Located { path, defaults });
    }
    let is_path = name_or_path.contains(['/', '\\']) || path.extension().is_some_and(|ext| ext == "gguf");
    if is_path || name_or_path.is_empty() {
        return if path.exists() { Ok(Located { path, defaults }) } else { Err(Error::NotFound { path }) };
    }
    let hub = Hub::from_env()?;
    match hub.find(name_or_path) {
        Ok(entry) => {
            let defaults = entry.chat.clone();
            Ok(Located { path: hub.resolve(name_or_path, progress)?, defaults })
        }
        Err(HubError::UnknownModel { .. }) if path.exists() => Ok(Located { path, defaults }),
        Err(error) => Err(error.into()),
    }
}

/// The file that `name_or_path` means, as [`Model::load`] understands it; fetched if need be.
pub fn resolve(name_or_path: &str, progress: &dyn Progress) -> Result<PathBuf, Error> {
    Ok(locate(name_or_path, progress)?.path)
}

impl Model {
    /// Loads a model with the default settings: a name from the registry, or the path of a GGUF file or
    /// of a Hugging Face folder.
    ///
    /// With the feature `hub` a registered model that is not in the cache is fetched first.
    pub fn load(name_or_path: impl AsRef<str>) -> Result<Self, Error> {
        Self::builder().load(name_or_path)
    }

    /// What a model takes with a context of `n_ctx` tokens, from the headers of its files: nothing is
    /// loaded.
    pub fn memory_estimate(name_or_path: impl AsRef<str>, n_ctx: usize) -> Result<MemoryEstimate, Error> {
        let path = resolve(name_or_path.as_ref(), &|_: &Event<'_>| {})?;
        let isa = Isa::from_env().map_err(ModelError::from)?;
        estimate(open(&path)?.weights(), isa, n_ctx, None).map_err(|error| Error::Load { path, error })
    }

    /// Loads a model with other settings.
    pub fn builder() -> ModelBuilder {
        ModelBuilder::default()
    }

    /// Continues a text. The prompt is taken as it is, after the token that begins a text if the
    /// model wants one; [`Generate::templated`] makes it a question to a chat model instead.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let out = model.generate("Once upon a time").max_tokens(64).seed(7).run()?;
    /// println!("{}", out.text);
    /// for piece in model.generate("Once").stream()? {
    ///     print!("{}", piece?.text);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn generate(&self, prompt: impl Into<Prompt>) -> Generate {
        Generate::new(self.clone(), prompt.into())
    }

    /// Begins a conversation.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let mut chat = model.chat().system("Be brief.").start()?;
    /// println!("{}", chat.send("Why is the sky blue?")?);
    /// # Ok(()) }
    /// ```
    pub fn chat(&self) -> ChatBuilder {
        ChatBuilder::new(self.clone())
    }

    /// Loads a LoRA adapter for this model, for requests that name it: a GGUF file as llama.cpp has it, or a folder
    /// as PEFT writes it. The model's weights stay as they are, and requests with different adapters are computed
    /// together. The adapter's memory is free again when the last handle of it is gone.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let pirate = model.load_lora("pirate-lora.gguf")?;
    /// let plain = model.generate("The sea is").seed(1).run()?;
    /// let rough = model.generate("The sea is").seed(1).lora(&pirate, 0.8).run()?;
    /// # Ok(()) }
    /// ```
    pub fn load_lora(&self, path: impl AsRef<Path>) -> Result<Lora, Error> {
        Ok(self.decoder().load_lora(path.as_ref())?)
    }

    /// The adapters that requests have unless they ask for others: those of [`ModelBuilder::lora`].
    pub fn loras(&self) -> &LoraSet {
        &self.inner.core.loras
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.core.tokenizer
    }

    /// Sizes and constants of the architecture.
    pub fn config(&self) -> &ModelConfig {
        self.inner.core.decoder.config()
    }

    /// The engine below, for measurements.
    pub fn decoder(&self) -> &Decoder {
        &self.inner.core.decoder
    }

    /// Tokens that a prompt and its continuation can have together.
    pub fn context_length(&self) -> usize {
        self.inner.context_length
    }

    /// The file that was loaded.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Size of that file.
    pub fn file_bytes(&self) -> u64 {
        self.inner.file_bytes
    }

    /// How long loading took.
    pub fn load_time(&self) -> Duration {
        self.inner.core.load_time
    }

    /// The name of the instruction set that the kernels use.
    pub fn isa(&self) -> String {
        self.inner.core.decoder.isa().to_string()
    }

    /// How many threads compute.
    pub fn n_threads(&self) -> usize {
        self.inner.core.decoder.n_threads()
    }

    /// What the engine is doing, and has done so far.
    pub fn metrics(&self) -> Metrics {
        self.inner.scheduler.metrics()
    }

    /// Forgets the keys and values that are kept of prompts that are done. Those of conversations and of running
    /// generations stay. Returns how many pages there are after it.
    pub fn clear_prefixes(&self) -> Result<usize, Error> {
        self.inner.scheduler.call(|core, prefixes| {
            prefixes.clear();
            core.decoder.kv_pages()
        })
    }

    /// Whether the model has a usable chat template.
    pub fn has_chat_template(&self) -> bool {
        matches!(self.inner.template, Template::Ready(_))
    }

    /// Sampling settings for this model: those that the registry recommends, over the defaults.
    pub fn recommended_sampling(&self) -> Sampling {
        let defaults = &self.inner.defaults;
        let base = Sampling::default();
        Sampling {
            temperature: defaults.temperature.unwrap_or(base.temperature),
            top_k: defaults.top_k.unwrap_or(base.top_k),
            top_p: defaults.top_p.unwrap_or(base.top_p),
            min_p: defaults.min_p.unwrap_or(base.min_p),
            penalties: Penalties { repeat: defaults.repeat_penalty.unwrap_or(base.penalties.repeat), ..base.penalties },
            ..base
        }
    }

    /// What tells this model from others: see [`Decoder::fingerprint`]. With adapters it is another model: for each set
    /// of numbers and scales.
    pub(crate) fn identity(&self, loras: &LoraSet) -> u128 {
        let base = self.decoder().fingerprint();
        if loras.is_empty() {
            return base;
        }
        let mut hasher = Xxh3::new();
        hasher.update(&base.to_le_bytes());
        for (lora, scale) in loras.iter() {
            hasher.update(&lora.fingerprint().to_le_bytes());
            hasher.update(&scale.to_bits().to_le_bytes());
        }
        hasher.digest128()
    }

    /// An empty sequence with the model's own adapters.
    pub(crate) fn new_cache(&self) -> KvCache {
        self.inner.core.new_cache()
    }

    /// This model as the draft of another one, which must have the same vocabulary.
    pub(crate) fn drafts_for(&self, model: &Self) -> Result<Arc<Core>, Error> {
        if self.vocabulary() != model.vocabulary() {
            return Err(Error::DraftVocabulary { draft: self.path().to_owned(), model: model.path().to_owned() });
        }
        Ok(Arc::clone(&self.inner.core))
    }

    /// A hash of all texts of the vocabulary, in order. Only for this run of the program.
    pub(crate) fn vocabulary(&self) -> u64 {
        *self.inner.vocabulary.get_or_init(|| {
            let mut hasher = DefaultHasher::new();
            (0..self.tokenizer().n_vocab() as u32).for_each(|id| self.tokenizer().token_bytes(id).hash(&mut hasher));
            (self.tokenizer().n_vocab(), self.decoder().n_vocab()).hash(&mut hasher);
            hasher.finish()
        })
    }

    /// The system message that the registry recommends for conversations that bring none.
    pub(crate) fn default_system(&self) -> Option<&str> {
        self.inner.defaults.system.as_deref()
    }

    /// The tokens of a raw text: a beginning-of-text token if the model wants one, and no special
    /// token for anything in the text.
    pub(crate) fn encode_raw(&self, text: &str) -> Vec<u32> {
        let tokenizer = self.tokenizer();
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        bos.into_iter().chain(tokenizer.encode(text, SpecialTokens::Plain)).collect()
    }

    /// Refuses tokens that are not in the vocabulary.
    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<(), Error> {
        let n_vocab = self.tokenizer().n_vocab();
        match tokens.iter().find(|&&token| token as usize >= n_vocab) {
            Some(&token) => Err(Error::TokenOutOfRange { token, n_vocab }),
            None => Ok(()),
        }
    }

    /// The tokens of a conversation, up to where the assistant's next message begins.
    pub(crate) fn encode_chat(&self, messages: &[Message], tools: &[Tool]) -> Result<Vec<u32>, Error> {
        let template = match (&self.inner.template, &self.inner.tool_template) {
            (template, Template::Missing) => template,
            (template, _) if tools.is_empty() => template,
            (_, template) => template,
        };
        let template = match template {
            Template::Ready(template) => template,
            Template::Missing => return Err(Error::NoChatTemplate),
            Template::Broken(error) => return Err(Arc::clone(error).into()),
        };
        let tokenizer = self.tokenizer();
        let tools = crate::tools::for_template(tools);
        let rendered = template.render(&TemplateInput { tools, ..TemplateInput::new(messages) })?;
        Ok(encode_rendered(tokenizer, &rendered))
    }
}

impl Inner {
    /// Appends tokens to a sequence, between two steps of the engine.
    pub(crate) fn extend(
        &self,
        mut cache: KvCache,
        tokens: &[u32],
        logits: LogitsFor,
    ) -> Result<(KvCache, Logits), Error> {
        let tokens = tokens.to_vec();
        self.scheduler.call(move |core, _| {
            let logits = core.decoder.forward(&mut [Chunk { cache: &mut cache, tokens: &tokens, logits }])?;
            Ok((cache, logits))
        })?
    }
}
