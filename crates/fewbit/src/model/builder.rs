//! How a model is loaded: all settings, the memory estimate, and the loading itself.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use fewbit_format::GgufFile;
use fewbit_model::quantize::Recipe;
use fewbit_model::{
    Decoder, Isa, KvType, LoadOptions, Lora, MemoryEstimate, ModelError, Placement, available_bytes, estimate,
};
use fewbit_tokenizer::TokenizerOptions;
use serde_json::{Map, Value};

use super::locate::{Headers, Located, Purpose, locate, locate_adapter};
use super::{Inner, Model, Template};
use crate::device::{DeviceName, DeviceOptions};
use crate::error::{Error, ErrorKind};
use crate::file::{ModelFile, open};
use crate::hub::{ChatDefaults, Event, Progress};
use crate::inspect::Inspection;
use crate::scheduler::{Core, Limits, Scheduler};
use crate::tools::{ReasoningStyle, ToolStyle};

const DEFAULT_PREFILL_CHUNK: usize = 512;
const DEFAULT_MAX_RUNNING: usize = 64;
const DEFAULT_MAX_WAITING: usize = 1024;
/// By default the prefix cache takes a quarter of the KV cache's memory, and at most this many bytes.
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
    devices: DeviceOptions,
    placement: Option<Placement>,
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
    /// The number of threads that compute. Default: `FEWBIT_THREADS`, or else all CPUs that the process may use.
    pub fn threads(mut self, n: usize) -> Self {
        self.load.threads = Some(n);
        self
    }

    /// The instruction set to use. Default: the one named by `FEWBIT_ISA`, or else the best that the CPU supports. The
    /// result is the same with all of them.
    pub fn isa(mut self, isa: Isa) -> Self {
        self.load.isa = Some(isa);
        self
    }

    /// The device that the model runs on. Default: the one named by `FEWBIT_DEVICE`, or else [`DeviceName::Auto`]. A device
    /// that was named and cannot be used is an error: no other is tried instead. NVIDIA's GPUs need the feature `cuda`, GPUs
    /// through Vulkan or Metal the feature `wgpu`.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// let model = fewbit::Model::builder().device(fewbit::DeviceName::Vulkan(None)).gpu_layers(20).load("model.gguf")?;
    /// # Ok(()) }
    /// ```
    pub fn device(mut self, device: DeviceName) -> Self {
        self.devices.device = Some(device);
        self
    }

    /// How many of the model's layers run on the GPU, counted from the last one. More than fit into its free memory are
    /// refused before anything is loaded. Default: as many as fit; 0 for none.
    pub fn gpu_layers(mut self, n: usize) -> Self {
        self.devices.gpu_layers = Some(n);
        self
    }

    /// Keeps the experts of the first `n` layers on the CPU, of those layers that run on the GPU too: for models of many
    /// experts that do not fit. `usize::MAX` for all layers. Default: 0. Without effect in models without experts.
    pub fn cpu_experts(mut self, n: usize) -> Self {
        self.devices.cpu_experts = Some(n);
        self
    }

    /// The most memory of the GPU to use, in bytes. Default: what `FEWBIT_GPU_MEMORY` says (such as `6 GiB`), or else
    /// what the driver reports as free, with a margin for other programs.
    pub fn gpu_memory(mut self, bytes: u64) -> Self {
        self.devices.gpu_memory = Some(bytes);
        self
    }

    /// Places the layers on devices of your own, such as several GPUs: instead of [`device`](Self::device) and
    /// [`gpu_layers`](Self::gpu_layers).
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = Some(placement);
        self
    }

    /// Quantizes the weights as they are read: of a 16-bit model, only the quantized weights and one original tensor
    /// are in memory at any time. Tensors that already take no more bits than the target type stay unchanged.
    /// `fewbit quantize` does the same once and writes a file, and can weight errors by an importance matrix.
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

    /// The element type of the KV cache. Default: f32 if all weights are f32, otherwise f16.
    pub fn kv_type(mut self, ty: KvType) -> Self {
        self.load.kv_type = Some(ty);
        self
    }

    /// Overrides the sliding window of the model: the most keys that a query attends to, including its own; `None` lets
    /// it attend to all. For models whose GGUF files do not give the window, such as Mistral 7B v0.1 with its 4096
    /// tokens. If only some layers have a window, only theirs changes.
    pub fn sliding_window(mut self, window: Option<usize>) -> Self {
        self.load = self.load.sliding_window(window);
        self
    }

    /// Overrides which layers have the sliding window. A list shorter than the number of layers repeats, so
    /// `[false, true, true, true]` gives full attention to every fourth layer, starting with the first. For models that
    /// interleave windows and whose GGUF files do not say how, such as Ministral 8B.
    pub fn local_layers(mut self, pattern: impl Into<Vec<bool>>) -> Self {
        self.load = self.load.local_layers(pattern);
        self
    }

    /// Whether the model drafts its next tokens itself: with the layer that some models bring for that (multi-token
    /// prediction: Qwen3-Next, Qwen 3.5, GLM-4.5), instead of from the text so far. The result is the same, only sooner
    /// where drafts are right: see [`Speculation`](crate::Speculation), which still says when tokens are drafted. The layer
    /// takes memory, and its keys and values do; all of the model must be on the CPU. Default: no, and the layer is not
    /// loaded. An error for models without such a layer.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// let model = fewbit::Model::builder().mtp(true).load("Qwen3.5-4B-Q4_K_M.gguf")?;
    /// let out = model.generate("Why is the sky blue?").templated().run()?;
    /// println!("{} of {} drafted tokens came", out.usage.accepted, out.usage.drafted);
    /// # Ok(()) }
    /// ```
    pub fn mtp(mut self, yes: bool) -> Self {
        self.load = self.load.mtp(yes);
        self
    }

    /// The most prompt tokens that one step processes (512 by default; at least 1). Steps process fewer while other
    /// generations wait for their next token. The result is the same.
    pub fn prefill_chunk(mut self, n_tokens: usize) -> Self {
        self.prefill_chunk = Some(n_tokens.max(1));
        self
    }

    /// Sets a context shorter than the model's own, which bounds the memory of each generation. A longer one is an
    /// error ([`ContextTooLong`](ErrorKind::ContextTooLong)). Models with LongRoPE (Phi-3 128k) choose their position
    /// embedding by it: up to the original context length, they use the one of their first training.
    pub fn context_length(mut self, n_tokens: usize) -> Self {
        self.load = self.load.context_length(n_tokens);
        self
    }

    /// The most generations that run at the same time (64 by default; at least 1). Others wait in the queue.
    pub fn max_running(mut self, n: usize) -> Self {
        self.max_running = Some(n.max(1));
        self
    }

    /// The most generations that may wait in the queue (1024 by default). More are refused with
    /// [`QueueFull`](ErrorKind::QueueFull).
    pub fn max_waiting(mut self, n: usize) -> Self {
        self.max_waiting = Some(n);
        self
    }

    /// The most memory for the KV cache, in bytes. Default: half of what is free after loading, on each device.
    /// Generations that find no room wait, or are recomputed later; a prompt that does not fit even alone is refused.
    pub fn kv_memory(mut self, bytes: u64) -> Self {
        self.kv_memory = Some(bytes);
        self
    }

    /// The most memory for the prefix cache, in bytes: keys and values of finished prompts, kept for prompts that begin
    /// with the same tokens. It is part of [`kv_memory`](Self::kv_memory). Default: a quarter of that, but at most 1
    /// GiB; 0 turns it off.
    pub fn prefix_memory(mut self, bytes: u64) -> Self {
        self.prefix_memory = Some(bytes);
        self
    }

    /// Requires memory for this many contexts of full length: loading fails with [`DoesNotFit`](ErrorKind::DoesNotFit)
    /// if they would not fit in memory next to the model. Without it, memory is taken as generations grow, within
    /// [`kv_memory`](Self::kv_memory).
    pub fn sequences(mut self, n: usize) -> Self {
        self.sequences = Some(n);
        self
    }

    /// Loads a LoRA adapter with the model, and applies it with this scale (1 is what it was trained for) to every
    /// request that does not override it. Can be called several times. The adapter is a GGUF file in llama.cpp's
    /// format, a folder written by PEFT, or either in a repo of the Hugging Face Hub (`org/repo`,
    /// `org/repo:file.gguf`). For adapters that only some requests use, see [`Model::load_lora`].
    pub fn lora(mut self, path: impl Into<PathBuf>, scale: f32) -> Self {
        self.loras.push((path.into(), scale));
        self
    }

    /// The memory that the model takes with these settings, computed from the headers of its files. Nothing is loaded;
    /// of a model on a hub that is not on this computer, only the headers are fetched. The KV cache is counted for
    /// [`sequences`](Self::sequences) contexts of full length, or for one.
    pub fn memory_estimate(&self, name_or_path: impl AsRef<Path>) -> Result<MemoryEstimate, Error> {
        let headers = Headers::of(name_or_path.as_ref(), self.purpose(), &|_: &Event<'_>| {})?;
        self.estimate(&open(headers.path())?, headers.path()).map(|(estimate, _)| estimate)
    }

    /// The estimate, and the context length in tokens.
    fn estimate(&self, file: &ModelFile, path: &Path) -> Result<(MemoryEstimate, usize), Error> {
        let load_error = |error: ModelError| Error::file(path, error);
        let isa = self.load.isa.map_or_else(Isa::from_env, Ok).map_err(|error| load_error(error.into()))?;
        let context = match self.load.context_length {
            Some(n) => n,
            None => file.weights().config().map_err(|error| load_error(error.into()))?.context_length,
        };
        let mut estimate =
            estimate(file.weights(), isa, context, self.load.kv_type, self.load.mtp).map_err(load_error)?;
        estimate.kv_bytes = estimate.kv_bytes.saturating_mul(self.sequences.unwrap_or(1) as u64);
        estimate.lora_bytes = self.lora_bytes()?;
        Ok((estimate, context))
    }

    /// Bytes that the adapters take, from their headers.
    fn lora_bytes(&self) -> Result<u64, Error> {
        let mut bytes = 0u64;
        for (path, _) in &self.loras {
            let headers = Headers::of(path, Purpose::Adapt, &|_: &Event<'_>| {})?;
            bytes = bytes.saturating_add(Lora::estimate(headers.path())?);
        }
        Ok(bytes)
    }

    /// Inspects a model with these settings without loading it, by its headers: of a model on a hub that is not on this
    /// computer, only the headers are fetched.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// use fewbit::{Model, quantize::Recipe};
    ///
    /// // For a repo: its original weights, as they would be after quantizing.
    /// let model = Model::builder().quantize(Recipe::Q4_K_M).inspect("HuggingFaceTB/SmolLM2-1.7B-Instruct")?;
    /// println!("{} weights, {:.2} bits each", model.n_weights(), model.bits_per_weight());
    /// for (name, of_type) in model.types() {
    ///     println!("{name}: {} tensors, {} bytes", of_type.tensors, of_type.bytes);
    /// }
    /// let memory = model.memory(4096)?;
    /// println!("{} MiB with 4096 tokens", memory.total_bytes() >> 20);
    /// # Ok(()) }
    /// ```
    pub fn inspect(&self, name_or_path: impl AsRef<Path>) -> Result<Inspection, Error> {
        let silent = |_: &Event<'_>| {};
        let progress = progress_or(self.progress.as_deref(), &silent);
        let headers = Headers::of(name_or_path.as_ref(), self.purpose(), progress)?;
        Inspection::new(headers, &self.load, &self.devices, self.lora_bytes()?)
    }

    /// What the file is needed for.
    fn purpose(&self) -> Purpose {
        if self.load.quantize.is_some() { Purpose::Quantize } else { Purpose::Run }
    }

    /// Returns an error if the model and the promised contexts do not fit into memory.
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

    /// Sets a variable of the chat template, for all requests that do not set it themselves: see
    /// [`ChatBuilder::template_var`](crate::ChatBuilder::template_var).
    pub fn template_var(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.template_vars.insert(name.into(), value.into());
        self
    }

    /// How the model writes tool calls. Default: detected from its template and vocabulary.
    pub fn tool_style(mut self, style: ToolStyle) -> Self {
        self.tool_style = Some(style);
        self
    }

    /// How the model writes its reasoning. Default: detected from its template and vocabulary.
    pub fn reasoning_style(mut self, style: ReasoningStyle) -> Self {
        self.reasoning_style = Some(style);
        self
    }

    /// Overrides the pre-tokenizer that the file names (`tokenizer.ggml.pre`), for files that name none or an unknown
    /// one. The wrong one gives wrong tokens.
    pub fn pre_tokenizer(mut self, name: impl Into<String>) -> Self {
        self.tokenizer = TokenizerOptions::with_pre(name);
        self
    }

    /// Whether the [`tracing`](crate#metrics-and-tracing) span of a request contains the text of its prompt and output.
    /// By default it contains only numbers.
    pub fn trace_text(mut self, yes: bool) -> Self {
        self.trace_text = yes;
        self
    }

    /// Reports the progress of the download, if the model has to be fetched.
    #[cfg(feature = "hub")]
    pub fn progress(mut self, progress: impl Progress + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }

    /// Sets a callback that gets the number of bytes done and the total while the weights are read (and quantized, if
    /// [`quantize`](Self::quantize) is set): to draw a progress bar, for example. The bytes are those that the weights
    /// take in the end.
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

    /// Loads the model. `name_or_path` is a name from the registry, the path of a GGUF file or of a Hugging Face
    /// folder, or a repo of the Hugging Face Hub (`org/repo`, `org/repo:Q4_K_M`, `hf.co/org/repo/file.gguf`). With
    /// [`quantize`](Self::quantize), `org/repo` means the repo's safetensors, if it has them.
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

    /// Loads a GGUF file from memory: one embedded in a program, or one that was decrypted, for example. `name` is used
    /// instead of a path in [`Model::path`] and in errors.
    ///
    /// The bytes are freed once the weights are packed: loading takes up to twice the memory of the file. So they cannot
    /// be loaded again if a GPU is lost: generations fail then.
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
        self.load_opened(path, ChatDefaults::default(), None, |_| Ok(ModelFile::Gguf(Box::new(file))))
    }

    /// Like [`load`](Self::load), for asynchronous programs. It runs on a thread of its own, so no runtime is needed.
    /// Dropping the future does not stop the loading; the model is dropped when it is done.
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
        let origin = Some(located.path.clone());
        self.load_opened(located.path, located.defaults, origin, open)
    }

    fn load_opened(
        mut self,
        path: PathBuf,
        defaults: ChatDefaults,
        origin: Option<PathBuf>,
        open: impl FnOnce(&Path) -> Result<ModelFile, Error>,
    ) -> Result<Model, Error> {
        for (path, _) in &mut self.loras {
            let silent = |_: &Event<'_>| {};
            *path = locate_adapter(path, progress_or(self.progress.as_deref(), &silent))?;
        }
        let start = Instant::now();
        let file = open(&path)?;
        self.check_memory(&file, &path)?;
        // The tokenizer comes first: it loads quickly, so its errors need not wait for the weights.
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
        let of_messages = (tool_style == ToolStyle::Harmony).then_some(ReasoningStyle::Harmony);
        let reasoning_style =
            self.reasoning_style.or(of_messages).or_else(|| ReasoningStyle::detect(&sources, &tokenizer));
        let is_automatic = self.placement.is_none() && self.devices.is_automatic();
        self.load.placement = match self.placement.take() {
            Some(placement) => placement,
            None => self.devices.place(file.weights(), &self.load).map_err(|error| match error.kind() {
                ErrorKind::Model => Error::file(&path, error.into_source().unwrap_or_else(|| "no reason".into())),
                _ => error,
            })?,
        };
        let loaded = crate::device::load(file.weights(), &mut self.load, is_automatic);
        let decoder = loaded.map_err(|error| match error {
            ModelError::Device { device, source } => Error::new(ErrorKind::Device { device }, source),
            error => Error::file(&path, error),
        })?;
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
            ..kv_limits(&decoder, self.kv_memory, self.prefix_memory)
        };
        let load_time = start.elapsed();
        tracing::info!(path = %path.display(), isa = %decoder.isa(), threads = decoder.n_threads(), ?load_time, "loaded");
        for part in decoder.placed().iter().filter(|part| !part.is_host) {
            tracing::info!(part = %part.part, device = part.device, weight_bytes = part.weight_bytes, "on a GPU");
        }
        let core = Arc::new(Core {
            decoder,
            tokenizer: Arc::new(tokenizer),
            #[cfg(feature = "constraints")]
            constraints: crate::constraints::Compiler::default(),
            loras,
            load_time,
            limits,
            trace_text: self.trace_text,
            origin,
            kv_pages_found: AtomicUsize::new(usize::MAX),
            n_lost: AtomicU64::new(0),
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

/// The progress callback of the caller, or one that does nothing.
fn progress_or<'a>(progress: Option<&'a (dyn Progress + Send + Sync)>, silent: &'a dyn Progress) -> &'a dyn Progress {
    progress.map_or(silent, |progress| progress)
}

/// Converts the limits from bytes to pages. There is at least one page, or else the model could not run at all.
fn kv_limits(decoder: &Decoder, kv_memory: Option<u64>, prefix_memory: Option<u64>) -> Limits {
    let page_bytes = decoder.kv_page_bytes();
    let kv_memory = kv_memory.unwrap_or_else(|| {
        // Half of what is free, on each device for its share of a page.
        let devices = decoder.devices();
        let elsewhere = devices.iter().fold(0, |sum, device| sum + device.page_bytes);
        let half = |free: Option<u64>, share: u64| match (free, share) {
            (Some(free), 1..) => (free / 2 / share).saturating_mul(page_bytes),
            _ => u64::MAX,
        };
        let shares = devices.iter().map(|device| half(device.memory.available_bytes(), device.page_bytes));
        let here = half(available_bytes(), page_bytes.saturating_sub(elsewhere));
        shares.fold(here, u64::min)
    });
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
