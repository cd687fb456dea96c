//! A loaded model: weights, vocabulary, chat template.
//!
//! [`Model`] is a handle: cloning it copies a pointer, and every generation holds one, so a model lives as long as
//! anything uses it. Its engine thread ([`scheduler`](crate::scheduler)) runs all generations in one batch; it starts
//! with the model and ends with the last handle.

mod builder;
mod locate;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fewbit_model::quantize::Recipe;
use fewbit_model::{
    Decoder, Isa, KvCache, Lora, LoraSet, MemoryEstimate, ModelConfig, ModelError, PlacedPart, estimate,
};
use fewbit_tokenizer::{
    ChatTemplate, Message, SpecialTokens, TemplateError, TemplateInput, Tokenizer, encode_rendered,
};

pub use self::builder::ModelBuilder;
pub(crate) use self::locate::Headers;
use self::locate::{Purpose, locate_adapter};
#[cfg(feature = "hub")]
pub use self::locate::{resolve, resolve_adapter, resolve_original};
use crate::chat::ChatBuilder;
use crate::error::{Error, ErrorKind};
use crate::file::open;
use crate::generate::{Generate, Prompt};
use crate::hub::{ChatDefaults, Event};
use crate::sample::{Penalties, Sampling};
use crate::scheduler::{Core, Metrics, Scheduler};
use crate::tools::{ReasoningStyle, Tool, ToolStyle};
use serde_json::{Map, Value};
use xxhash_rust::xxh3::Xxh3;

/// A model, ready to generate. Cheap to clone; usable from any thread.
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// use std::thread;
///
/// let model = fewbit::Model::load("smollm2-135m-instruct")?;
/// let other = model.clone();
/// // The two generations run in one batch.
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
    /// The template for conversations with tools, if the model has a separate one.
    tool_template: Template,
    tool_style: ToolStyle,
    reasoning_style: Option<ReasoningStyle>,
    defaults: ChatDefaults,
    warnings: Vec<String>,
    template_vars: Map<String, Value>,
    path: PathBuf,
    /// The recipe that the weights were quantized with while loading.
    recipe: Option<Recipe>,
    file_bytes: u64,
    context_length: usize,
    /// See [`Model::vocabulary`].
    vocabulary: OnceLock<u64>,
}

/// A template that does not compile fails the requests that use it, not the loading of the model.
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

impl Model {
    /// Loads a model with the default settings: a name from the registry, the path of a GGUF file or
    /// of a Hugging Face folder, or a repo of the Hugging Face Hub (`org/repo:Q4_K_M`).
    ///
    /// With the feature `hub` a model that is not on this computer is fetched first.
    pub fn load(name_or_path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder().load(name_or_path)
    }

    /// Like [`load`](Self::load), for asynchronous programs: see [`ModelBuilder::load_async`].
    #[cfg(feature = "async")]
    pub fn load_async(name_or_path: impl AsRef<Path>) -> impl Future<Output = Result<Self, Error>> + Send + 'static {
        Self::builder().load_async(name_or_path)
    }

    /// The memory that a model takes with a context of `n_ctx` tokens, computed from the headers of its files. Nothing
    /// is loaded; of a model on a hub that is not on this computer, only the headers are fetched.
    pub fn memory_estimate(name_or_path: impl AsRef<Path>, n_ctx: usize) -> Result<MemoryEstimate, Error> {
        let headers = Headers::of(name_or_path.as_ref(), Purpose::Run, &|_: &Event<'_>| {})?;
        let isa = Isa::from_env().map_err(ModelError::from)?;
        let estimate = estimate(open(headers.path())?.weights(), isa, n_ctx, None, false);
        estimate.map_err(|error| Error::file(headers.path(), error))
    }

    /// A builder, for loading a model with other than the default settings.
    pub fn builder() -> ModelBuilder {
        ModelBuilder::default()
    }

    /// Continues a text. The prompt is used without a chat template, after the beginning-of-text token if the model
    /// wants one; [`Generate::templated`] makes it a question to a chat model instead.
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

    /// Loads a LoRA adapter for this model, to be used by the requests that name it: a GGUF file in llama.cpp's format,
    /// or a folder written by PEFT. The weights of the model do not change, and requests with different adapters run in
    /// one batch. The adapter's memory is freed when its last handle is dropped.
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
        let path = locate_adapter(path.as_ref(), &|_: &Event<'_>| {})?;
        Ok(self.decoder().load_lora(&path)?)
    }

    /// The adapters that apply to requests by default: those of [`ModelBuilder::lora`].
    pub fn loras(&self) -> &LoraSet {
        &self.inner.core.loras
    }

    /// The recipe that the weights were quantized with while loading.
    pub(crate) fn recipe(&self) -> Option<Recipe> {
        self.inner.recipe
    }

    /// The tokenizer, with its vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.core.tokenizer
    }

    /// The sizes and constants of the architecture.
    pub fn config(&self) -> &ModelConfig {
        self.inner.core.decoder.config()
    }

    /// The decoder. It is public as [`expert::decoder`](crate::expert::decoder).
    pub(crate) fn decoder(&self) -> &Decoder {
        &self.inner.core.decoder
    }

    /// The context length: the most tokens that a prompt and its continuation can have together.
    pub fn context_length(&self) -> usize {
        self.inner.context_length
    }

    /// The path of the file or folder that was loaded.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The size of the loaded file (or of all weight files of a folder), in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.inner.file_bytes
    }

    /// How long loading took.
    pub fn load_time(&self) -> Duration {
        self.inner.core.load_time
    }

    /// The instruction set that the kernels use.
    pub fn isa(&self) -> Isa {
        self.inner.core.decoder.isa()
    }

    /// The number of threads that compute.
    pub fn n_threads(&self) -> usize {
        self.inner.core.decoder.n_threads()
    }

    /// Where the parts of the model are: the embedding, the layers and the output matrix, each with its device and its
    /// size. It changes when a device is lost.
    pub fn placement(&self) -> Vec<PlacedPart> {
        self.decoder().placed()
    }

    /// What the engine is doing, and has done so far.
    pub fn metrics(&self) -> Metrics {
        self.inner.scheduler.metrics()
    }

    /// Drops the cached keys and values of finished prompts (the prefix cache). Those of conversations and of running
    /// generations stay. Returns the number of pages of KV cache that remain.
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

    /// What was ignored in the model's files because it makes no sense, one sentence each: recommended sampling
    /// settings that are out of range.
    pub fn warnings(&self) -> &[String] {
        &self.inner.warnings
    }

    /// The sampling settings recommended for this model, by its files or the registry; the defaults where there are
    /// none.
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

    /// Identifies this model with these adapters: see [`Decoder::fingerprint`]. Every set of adapters and scales gives
    /// another identity.
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

    /// An empty KV cache for a sequence with the model's default adapters.
    pub(crate) fn new_cache(&self) -> KvCache {
        self.inner.core.new_cache()
    }

    /// This model as the draft model of `model`, which must have the same vocabulary.
    pub(crate) fn drafts_for(&self, model: &Self) -> Result<Arc<Core>, Error> {
        if self.vocabulary() != model.vocabulary() {
            let (draft, target) = (self.path().to_owned(), model.path().to_owned());
            return Err(ErrorKind::OtherVocabulary { model: draft, other: target }.into());
        }
        Ok(Arc::clone(&self.inner.core))
    }

    /// A hash of all tokens of the vocabulary, in order. Comparable only within one run of the program.
    pub(crate) fn vocabulary(&self) -> u64 {
        *self.inner.vocabulary.get_or_init(|| {
            let mut hasher = DefaultHasher::new();
            (0..self.tokenizer().n_vocab() as u32).for_each(|id| self.tokenizer().token_bytes(id).hash(&mut hasher));
            (self.tokenizer().n_vocab(), self.decoder().n_vocab()).hash(&mut hasher);
            hasher.finish()
        })
    }

    /// The system message that the registry recommends for conversations without one.
    pub(crate) fn default_system(&self) -> Option<&str> {
        self.inner.defaults.system.as_deref()
    }

    /// The tokens of a raw text: a beginning-of-text token if the model wants one, and no special tokens for anything
    /// in the text.
    pub(crate) fn encode_raw(&self, text: &str) -> Vec<u32> {
        let tokenizer = self.tokenizer();
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        bos.into_iter().chain(tokenizer.encode(text, SpecialTokens::Plain)).collect()
    }

    /// Returns an error for tokens that are not in the vocabulary.
    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<(), Error> {
        let n_vocab = self.tokenizer().n_vocab();
        match tokens.iter().find(|&&token| token as usize >= n_vocab) {
            Some(&token) => Err(ErrorKind::TokenOutOfRange { token, n_vocab }.into()),
            None => Ok(()),
        }
    }

    /// The default variables of the chat template.
    pub(crate) fn template_vars(&self) -> &Map<String, Value> {
        &self.inner.template_vars
    }

    /// How the model writes tool calls: detected from its template and vocabulary, unless it was loaded with another
    /// style.
    pub fn tool_style(&self) -> ToolStyle {
        self.inner.tool_style
    }

    /// How the model writes its reasoning; `None` if neither its template nor its vocabulary shows it. With `None`, an
    /// answer that begins with one of the known marks has reasoning.
    pub fn reasoning_style(&self) -> Option<ReasoningStyle> {
        self.inner.reasoning_style
    }

    fn template(&self, has_tools: bool) -> Result<&ChatTemplate, Error> {
        let template = match (&self.inner.template, &self.inner.tool_template) {
            (template, Template::Missing) => template,
            (template, _) if !has_tools => template,
            (_, template) => template,
        };
        match template {
            Template::Ready(template) => Ok(template),
            Template::Missing => Err(ErrorKind::NoChatTemplate.into()),
            Template::Broken(error) => Err(Arc::clone(error).into()),
        }
    }

    /// Whether the chat template writes the tools into the prompt.
    pub(crate) fn shows_tools(&self) -> Result<bool, Error> {
        Ok(self.template(true)?.capabilities().tools)
    }

    /// The tokens of a conversation, up to where the assistant's next message begins. If the prompt ends inside of
    /// reasoning, also the style of that reasoning.
    pub(crate) fn encode_chat(
        &self,
        messages: &[Message],
        tools: &[Tool],
        variables: &Map<String, Value>,
    ) -> Result<(Vec<u32>, Option<ReasoningStyle>), Error> {
        let has_calls = messages.iter().any(|message| !crate::tools::calls_of(message).is_empty());
        let template = self.template(!tools.is_empty() || has_calls)?;
        if let Some(name) =
            variables.keys().find(|name| ["messages", "tools", "add_generation_prompt"].contains(&name.as_str()))
        {
            return Err(ErrorKind::TemplateVariable { name: name.clone() }.into());
        }
        let tools = crate::tools::for_template(tools);
        let messages = crate::tools::fitted(messages, template, self.tool_style())?;
        let rendered =
            template.render(&TemplateInput { tools, extra: variables.clone(), ..TemplateInput::new(&messages) })?;
        let text = rendered.text();
        let ends_with =
            |style: &ReasoningStyle| style.marks().is_some_and(|(start, _)| text.trim_end().ends_with(start));
        let opened = match self.inner.reasoning_style {
            Some(ReasoningStyle::None) => None,
            Some(style) => Some(style).filter(ends_with),
            None => ReasoningStyle::ALL.into_iter().find(ends_with),
        };
        Ok((encode_rendered(self.tokenizer(), &rendered), opened))
    }

    /// The control tokens that mark reasoning and calls.
    pub(crate) fn shown_marks(&self) -> Vec<u32> {
        let reasoning = ReasoningStyle::ALL.into_iter().filter_map(ReasoningStyle::marks).flat_map(|(a, b)| [a, b]);
        let calls = ToolStyle::Generic.marks().iter().flat_map(|mark| mark.all());
        let headers: &[&str] = match self.tool_style() {
            ToolStyle::Harmony => &crate::tools::HARMONY_MARKS,
            _ => &[],
        };
        let all = reasoning.chain(calls).chain(["[CALL_ID]", "[ARGS]", "<|channel>"]).chain(headers.iter().copied());
        let tokenizer = self.tokenizer();
        all.filter_map(|text| tokenizer.id_of(text)).filter(|&id| tokenizer.token_bytes(id).is_empty()).collect()
    }
}

impl Inner {
    /// An empty KV cache with room for `n_tokens`, within the same limits as requests: waits until there is room. Its
    /// [`Reserved`] guard wakes those that wait for room when it is dropped.
    pub(crate) fn reserve(self: &Arc<Self>, loras: &LoraSet, n_tokens: usize) -> Result<Reserved, Error> {
        let loras = loras.clone();
        let cache = self.scheduler.call_with_room(n_tokens, move |core, _| {
            let mut cache = core.decoder.new_cache_with(&loras);
            cache.reserve(n_tokens)?;
            core.guests.fetch_add(1, Ordering::SeqCst);
            Ok::<_, ModelError>(cache)
        })??;
        Ok(Reserved { inner: Arc::clone(self), cache: Some(cache) })
    }
}

/// A KV cache that belongs to no request; its pages are counted from the start.
pub(crate) struct Reserved {
    inner: Arc<Inner>,
    /// `None` after a failed step.
    cache: Option<KvCache>,
}

impl Reserved {
    /// Runs `step` on the engine thread, with this KV cache. If a device was lost, the error is
    /// [`ModelError::StaleCache`]: the tokens so far can be computed again, with a new cache.
    pub(crate) fn step<R: Send + 'static>(
        &mut self,
        step: impl FnOnce(&Decoder, &mut KvCache) -> Result<R, ModelError> + Send + 'static,
    ) -> Result<R, Error> {
        let mut cache = self.cache.take().ok_or(ErrorKind::EngineStopped)?;
        let (cache, result) = self.inner.scheduler.call(move |core, _| match step(&core.decoder, &mut cache) {
            Ok(result) => Ok((cache, result)),
            Err(error) => Err(core.replace_lost(error.into()).unwrap_or(ModelError::StaleCache.into())),
        })??;
        self.cache = Some(cache);
        Ok(result)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        drop(self.cache.take());
        self.inner.core.guests.fetch_sub(1, Ordering::SeqCst);
        self.inner.scheduler.look_again();
    }
}
