//! How a model is loaded: every setting, the memory it will take, and the loading itself.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use fewbit_format::GgufFile;
use fewbit_model::quantize::Recipe;
use fewbit_model::{Decoder, Isa, KvType, LoadOptions, Lora, MemoryEstimate, ModelError, available_bytes, estimate};
use fewbit_tokenizer::TokenizerOptions;
use serde_json::{Map, Value};

use super::locate::{Headers, Located, Purpose, locate, locate_adapter};
use super::{Inner, Model, Template};
use crate::device::{self, DeviceName};
use crate::error::{Error, ErrorKind};
use crate::file::{ModelFile, open};
use crate::hub::{ChatDefaults, Event, Progress};
use crate::inspect::Inspection;
use crate::scheduler::{Core, Limits, Scheduler};
use crate::tools::{ReasoningStyle, ToolStyle};

const DEFAULT_PREFILL_CHUNK: usize = 512;
const DEFAULT_MAX_RUNNING: usize = 64;
const DEFAULT_MAX_WAITING: usize = 1024;
/// Known prefixes take a quarter of what caches may take, and no more than this.
const DEFAULT_PREFIX_BYTES: u64 = 1 << 30;

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
#[derive(Clone, Default)]
#[must_use = "nothing is loaded before `load`"]
pub struct ModelBuilder {
    load: LoadOptions,
    device: Option<DeviceName>,
    gpu_layers: Option<usize>,
    prefill_chunk: Option<usize>,
    max_running: Option<usize>,
    max_waiting: Option<usize>,
    kv_memory: Option<u64>,
    sequences: Option<usize>,
    prefix_memory: Option<u64>,
    loras: Vec<(PathBuf, f32)>,
    chat_template: Option<String>,
    template_vars: Map<String, Value>,
    tool_style: Option<ToolStyle>,
    reasoning_style: Option<ReasoningStyle>,
    trace_text: bool,
    tokenizer: TokenizerOptions,
    progress: Option<Arc<dyn Progress + Send + Sync>>,
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

    /// Where the model computes; by default what `FEWBIT_DEVICE` names, else the CPU. A device that cannot be used is an
    /// error: nothing else is tried in its place. GPUs need the feature `wgpu`.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// let model = fewbit::Model::builder().device(fewbit::DeviceName::Vulkan(None)).gpu_layers(20).load("model.gguf")?;
    /// # Ok(()) }
    /// ```
    pub fn device(mut self, device: DeviceName) -> Self {
        self.device = Some(device);
        self
    }

    /// How many of the model's layers are on the GPU, the last ones: all by default, 0 for none.
    pub fn gpu_layers(mut self, n: usize) -> Self {
        self.gpu_layers = Some(n);
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

    /// How many generations may wait (1024 by default); more are refused with [`QueueFull`](ErrorKind::QueueFull).
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
    /// it, a folder as PEFT writes it, or either in a repo of the Hugging Face Hub (`org/repo`, `org/repo:file.gguf`). See [`Model::load_lora`] for adapters that only some requests use.
    pub fn lora(mut self, path: impl Into<PathBuf>, scale: f32) -> Self {
        self.loras.push((path.into(), scale));
        self
    }

    /// What the model takes with these settings, from the header of its file: nothing is loaded, and of a model of a
    /// hub that is not here nothing else is fetched. Keys and values
    /// are those of [`sequences`](Self::sequences) contexts of full length, or of one.
    pub fn memory_estimate(&self, name_or_path: impl AsRef<Path>) -> Result<MemoryEstimate, Error> {
        let headers = Headers::of(name_or_path.as_ref(), self.purpose(), &|_: &Event<'_>| {})?;
        self.estimate(&open(headers.path())?, headers.path()).map(|(estimate, _)| estimate)
    }

    /// The estimate, and the tokens of a context.
    fn estimate(&self, file: &ModelFile, path: &Path) -> Result<(MemoryEstimate, usize), Error> {
        let load_error = |error: ModelError| Error::file(path, error);
        let isa = self.load.isa.map_or_else(Isa::from_env, Ok).map_err(|error| load_error(error.into()))?;
        let context = match self.load.context_length {
            Some(n) => n,
            None => file.weights().config().map_err(|error| load_error(error.into()))?.context_length,
        };
        let mut estimate = estimate(file.weights(), isa, context, self.load.kv_type).map_err(load_error)?;
        estimate.kv_bytes = estimate.kv_bytes.saturating_mul(self.sequences.unwrap_or(1) as u64);
        estimate.lora_bytes = self.lora_bytes()?;
        Ok((estimate, context))
    }

    /// Bytes of the adapters, from their headers.
    fn lora_bytes(&self) -> Result<u64, Error> {
        let mut bytes = 0u64;
        for (path, _) in &self.loras {
            let headers = Headers::of(path, Purpose::Adapt, &|_: &Event<'_>| {})?;
            bytes = bytes.saturating_add(Lora::estimate(headers.path())?);
        }
        Ok(bytes)
    }

    /// Looks at a model with these settings before it is loaded, by its headers: of a model of a hub that is not here
    /// nothing else is fetched.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// use fewbit::{Model, quantize::Recipe};
    ///
    /// // Of a repo the original, as it would be after quantizing.
    /// let model = Model::builder().quantize(Recipe::Q4_K_M).inspect("HuggingFaceTB/SmolLM2-1.7B-Instruct")?;
    /// println!("{} weights, {:.2} bits each", model.n_weights(), model.bits_per_weight());
    /// for (name, of_type) in model.types() {
    ///     println!("{name}: {} tensors, {} bytes", of_type.tensors, of_type.bytes);
    /// }
    /// let memory = model.memory(4096).map_err(fewbit::Error::from)?;
    /// println!("{} MiB with 4096 tokens", memory.total_bytes() >> 20);
    /// # Ok(()) }
    /// ```
    pub fn inspect(&self, name_or_path: impl AsRef<Path>) -> Result<Inspection, Error> {
        let silent = |_: &Event<'_>| {};
        let progress = progress_or(self.progress.as_deref(), &silent);
        let headers = Headers::of(name_or_path.as_ref(), self.purpose(), progress)?;
        Inspection::new(headers, self.load.quantize, self.load.kv_type, self.load.isa, self.lora_bytes()?)
    }

    /// What the file is wanted for.
    fn purpose(&self) -> Purpose {
        if self.load.quantize.is_some() { Purpose::Quantize } else { Purpose::Run }
    }

    /// Refuses what would not fit.
    fn check_memory(&self, file: &ModelFile, path: &Path) -> Result<(), Error> {
        let (Some(sequences), Some(available_bytes)) = (self.sequences, available_bytes()) else { return Ok(()) };
        let (estimate, context_tokens) = self.estimate(file, path)?;
        if estimate.total_bytes() > available_bytes {
            return Err(ErrorKind::DoesNotFit { estimate, sequences, context_tokens, available_bytes }.into());
        }
        Ok(())
    }

    /// A chat template (Jinja source) instead of the one in the file.
    pub fn chat_template(mut self, source: impl Into<String>) -> Self {
        self.chat_template = Some(source.into());
        self
    }

    /// A variable of the chat template for all requests that set no other value: see
    /// [`ChatBuilder::template_var`](crate::ChatBuilder::template_var).
    pub fn template_var(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.template_vars.insert(name.into(), value.into());
        self
    }

    /// How the model writes calls of tools, instead of what its template and its vocabulary show.
    pub fn tool_style(mut self, style: ToolStyle) -> Self {
        self.tool_style = Some(style);
        self
    }

    /// How the model writes its reasoning, instead of what its template and its vocabulary show.
    pub fn reasoning_style(mut self, style: ReasoningStyle) -> Self {
        self.reasoning_style = Some(style);
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
    #[cfg(feature = "hub")]
    pub fn progress(mut self, progress: impl Progress + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }

    /// Is told, as the weights are read (and quantized, if that is asked for), the bytes that are done and how many
    /// there are, those that they take in the end: to draw a bar, say.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// let builder = fewbit::Model::builder().on_progress(|done, total| eprint!("\r{} %", 100 * done / total.max(1)));
    /// let model = builder.load("model.gguf")?;
    /// # Ok(()) }
    /// ```
    pub fn on_progress(mut self, progress: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        self.load.progress = Some(Arc::new(progress));
        self
    }

    /// Loads the model: a name from the registry, the path of a GGUF file or of a Hugging Face folder, or a repo of
    /// the Hugging Face Hub (`org/repo`, `org/repo:Q4_K_M`, `hf.co/org/repo/file.gguf`). With
    /// [`quantize`](Self::quantize), `org/repo` is the repo's folder of safetensors, if it has one.
    pub fn load(self, name_or_path: impl AsRef<Path>) -> Result<Model, Error> {
        let silent = |_: &Event<'_>| {};
        let progress = progress_or(self.progress.as_deref(), &silent);
        let located = locate(name_or_path.as_ref(), self.purpose(), progress)?;
        self.load_located(located)
    }

    /// Loads the GGUF file or Hugging Face folder at `path`.
    pub fn load_file(self, path: impl AsRef<Path>) -> Result<Model, Error> {
        self.load_located(Located { path: path.as_ref().to_owned(), defaults: ChatDefaults::default() })
    }

    /// Loads a GGUF file that is in memory: one that is part of a program, say, or that was decrypted. `name` stands for
    /// it where a model has a path, in [`Model::path`] and in errors.
    ///
    /// The bytes stay until the weights are packed, and are freed then: loading takes up to twice the memory of the
    /// file.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let bytes = std::fs::read("model.gguf")?;
    /// let model = fewbit::Model::builder().load_bytes("my model", bytes)?;
    /// # Ok(()) }
    /// ```
    pub fn load_bytes(self, name: impl Into<PathBuf>, bytes: impl Into<Vec<u8>>) -> Result<Model, Error> {
        let path = name.into();
        let file = GgufFile::from_bytes(bytes.into()).map_err(|error| Error::file(&path, error))?;
        self.load_opened(path, ChatDefaults::default(), |_| Ok(ModelFile::Gguf(Box::new(file))))
    }

    /// As [`load`](Self::load), for asynchronous programs, on a thread of its own; no runtime is needed. Dropping the
    /// future does not end the loading: its model is dropped then.
    ///
    /// ```no_run
    /// # async fn f() -> Result<(), fewbit::Error> {
    /// let model = fewbit::Model::builder().threads(4).load_async("model.gguf").await?;
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "async")]
    pub fn load_async(
        self,
        name_or_path: impl AsRef<Path>,
    ) -> impl Future<Output = Result<Model, Error>> + Send + 'static {
        let name_or_path = name_or_path.as_ref().to_owned();
        crate::asynchronous::on_a_thread("load a model", move || self.load(name_or_path))
    }

    fn load_located(self, located: Located) -> Result<Model, Error> {
        self.load_opened(located.path, located.defaults, open)
    }

    fn load_opened(
        mut self,
        path: PathBuf,
        defaults: ChatDefaults,
        open: impl FnOnce(&Path) -> Result<ModelFile, Error>,
    ) -> Result<Model, Error> {
        for (path, _) in &mut self.loras {
            let silent = |_: &Event<'_>| {};
            *path = locate_adapter(path, progress_or(self.progress.as_deref(), &silent))?;
        }
        let start = Instant::now();
        let file = open(&path)?;
        self.check_memory(&file, &path)?;
        // The vocabulary first: it is quick, and its errors should not wait for the weights.
        let tokenizer = file.tokenizer(&path, &self.tokenizer)?;
        let (defaults, warnings) = file.chat_defaults(&path, defaults)?;
        for warning in &warnings {
            tracing::warn!(path = %path.display(), "{warning}");
        }
        let (template, tool_template) = match &self.chat_template {
            Some(source) => (Template::new(Some(source), &tokenizer), Template::Missing),
            None => {
                let of = |source| Template::new(source, &tokenizer);
                (of(tokenizer.chat_template()), of(tokenizer.tool_template()))
            }
        };
        let sources = match &self.chat_template {
            Some(source) => source.clone(),
            None => [tokenizer.chat_template(), tokenizer.tool_template()]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .concat(),
        };
        let tool_style = self.tool_style.unwrap_or_else(|| ToolStyle::detect(&sources, &tokenizer));
        let reasoning_style = self.reasoning_style.or_else(|| ReasoningStyle::detect(&sources, &tokenizer));
        let n_layers = file.weights().config().map_err(|error| Error::file(&path, error))?.n_layers();
        self.load.placement = device::placement(self.device, self.gpu_layers, n_layers)?;
        let decoder = Decoder::load(file.weights(), &self.load).map_err(|error| Error::file(&path, error))?;
        let trained = decoder.config().context_length;
        let context_length = self.load.context_length.unwrap_or(trained);
        if context_length > trained {
            return Err(ErrorKind::ContextTooLong { asked: context_length, context_tokens: trained }.into());
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
            guests: AtomicUsize::new(0),
        });
        Ok(Model {
            inner: Arc::new(Inner {
                scheduler: Scheduler::new(Arc::clone(&core))?,
                core,
                template,
                tool_template,
                tool_style,
                reasoning_style,
                defaults,
                warnings,
                template_vars: self.template_vars,
                file_bytes: file.file_bytes(),
                recipe: self.load.quantize,
                path,
                context_length,
                vocabulary: OnceLock::new(),
            }),
        })
    }
}

/// Who is told of downloads.
fn progress_or<'a>(progress: Option<&'a (dyn Progress + Send + Sync)>, silent: &'a dyn Progress) -> &'a dyn Progress {
    progress.map_or(silent, |progress| progress)
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
