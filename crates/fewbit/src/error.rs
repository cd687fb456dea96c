//! The one error type of the facade: what the crates below report, and what only this level knows.

use std::path::PathBuf;
use std::sync::Arc;

use fewbit_format::FormatError;
use fewbit_model::quantize::QuantizeError;
use fewbit_model::{DeviceError, LoraError, MemoryEstimate, ModelError};
use fewbit_tokenizer::{TemplateError, TokenizerError};

use crate::hub::HubError;
use crate::sample::SamplingError;
use crate::session_file::SessionError;

/// Failure to load a model or to generate with it. A model stays usable after every error.
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// use fewbit::{Error, Model};
///
/// let model = Model::load("smollm2-135m-instruct")?;
/// match model.generate("word ".repeat(100_000)).run() {
///     Err(Error::PromptTooLong { prompt_tokens, context_tokens }) => {
///         println!("{prompt_tokens} tokens do not fit into {context_tokens}");
///     }
///     Err(Error::QueueFull { .. }) => println!("later"),
///     other => println!("{}", other?),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model's name cannot be turned into a file.
    #[error(transparent)]
    Hub(#[from] HubError),

    /// Something that looks like a path leads nowhere.
    #[error("{} does not exist: check the path, or give a name that `fewbit list` shows", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },

    /// The file cannot be opened or is not a valid GGUF file. The message names the file.
    #[error("{}: {error}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: FormatError,
    },

    /// The file cannot be opened: the message of the source names it.
    #[error(transparent)]
    Open(FormatError),

    /// The vocabulary in the file cannot be used.
    #[error("{}: {error}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: TokenizerError,
    },

    /// A file could not be quantized.
    #[error(transparent)]
    Quantize(#[from] QuantizeError),

    /// The weights in the file cannot be used.
    #[error("{}: {error}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: ModelError,
    },

    /// The device that was asked for cannot be used. Nothing else was tried in its place.
    #[error("device {device}: {error}")]
    Device {
        /// What it was called.
        device: String,
        /// Why.
        #[source]
        error: DeviceError,
    },

    /// More layers were to be placed on a GPU than the model has.
    #[error("the model has {n_layers} layers, so no {asked} can be on the GPU: leave the number out for all")]
    GpuLayers {
        /// Layers that were asked for.
        asked: usize,
        /// Layers of the model.
        n_layers: usize,
    },

    /// A step of the model failed.
    #[error(transparent)]
    Model(#[from] ModelError),

    /// An adapter cannot be used. The message names its file.
    #[error(transparent)]
    Lora(#[from] LoraError),

    /// The model file has no chat template.
    #[error("the model file has no chat template: use the raw prompt (`--raw`), or an instruction-tuned model")]
    NoChatTemplate,

    /// The chat template in the model file cannot be compiled, or fails on this conversation.
    #[error(transparent)]
    Template(Arc<TemplateError>),

    /// A variable of the chat template that is not for callers to set.
    #[error("the template variable {name:?} is set by fewbit: leave it out")]
    TemplateVariable {
        /// Its name.
        name: String,
    },

    /// Something is wrong with tools, a call, or a result.
    #[error(transparent)]
    Tool(#[from] crate::tools::ToolError),

    /// Sampling settings out of range, or logits that are no numbers.
    #[error(transparent)]
    Sampling(#[from] SamplingError),

    /// A constraint that cannot be kept.
    #[cfg(feature = "constraints")]
    #[error(transparent)]
    Constraint(#[from] crate::constraints::ConstraintError),

    /// A limit ended the text before what was asked for was complete.
    #[error("the answer is incomplete, it ended by `{reason}`: allow more tokens (it has {} bytes)", text.len())]
    Incomplete {
        /// Why it ended.
        reason: crate::FinishReason,
        /// The text as far as it went.
        text: String,
    },

    /// A text that is not the JSON of the type that was asked for.
    #[error("the answer is not what the type wants: {error}")]
    Json {
        /// What is wrong with it.
        #[source]
        error: serde_json::Error,
        /// The text.
        text: String,
    },

    /// There is nothing to continue.
    #[error("the prompt is empty, and the model has no token that begins a text: give at least one character")]
    EmptyPrompt,

    /// The prompt leaves no room in the context.
    #[error(
        "the prompt has {prompt_tokens} tokens and the context {context_tokens}: shorten it, or start a new conversation"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens of the context.
        context_tokens: usize,
    },

    /// A text to embed that has no token.
    #[error("text {index} (from 0) is empty: leave it out")]
    EmptyText {
        /// Its place in the list.
        index: usize,
    },

    /// A text to embed that is longer than the context.
    #[error("text {index} (from 0) has {tokens} tokens and the context {context_tokens}: cut it into parts")]
    TextTooLong {
        /// Its place in the list.
        index: usize,
        /// Its tokens.
        tokens: usize,
        /// Tokens of the context.
        context_tokens: usize,
    },

    /// A deadline or a [`CancelToken`](crate::CancelToken) came before all texts were embedded.
    #[error("text {index} (from 0) and those behind it were not embedded: {reason}")]
    NotEmbedded {
        /// The first text that was not.
        index: usize,
        /// What came before it.
        reason: crate::FinishReason,
    },

    /// A context longer than the model was made for was asked for.
    #[error("a context of {asked} tokens was asked for, the model has {context_tokens}: ask for at most that")]
    ContextTooLong {
        /// Tokens asked for.
        asked: usize,
        /// Tokens that the model was trained with.
        context_tokens: usize,
    },

    /// The context that was asked for takes more memory than keys and values may have.
    #[error(
        "{n_tokens} tokens take {} MiB of KV cache, and the limit is {} MiB: shorten the prompt, or raise \
         `ModelBuilder::kv_memory`", needed_bytes >> 20, limit_bytes >> 20
    )]
    KvMemory {
        /// Tokens of the request, or of all that were to run at once.
        n_tokens: usize,
        /// Bytes that their keys and values take.
        needed_bytes: u64,
        /// Bytes that there may be.
        limit_bytes: u64,
    },

    /// A conversation cannot be saved, or a saved one not be used.
    #[error(transparent)]
    Session(#[from] SessionError),

    /// The model and the contexts that were asked for do not fit into memory.
    #[error(
        "the model takes {} MiB and {sequences} contexts of {context_tokens} tokens {} MiB, but only {} MiB of memory \
         are free: take a shorter context, fewer sequences or a smaller file",
        (estimate.weight_bytes + estimate.lora_bytes + estimate.scratch_bytes) >> 20, estimate.kv_bytes >> 20, available_bytes >> 20
    )]
    DoesNotFit {
        /// What would be taken.
        estimate: MemoryEstimate,
        /// Contexts asked for.
        sequences: usize,
        /// Tokens of each.
        context_tokens: usize,
        /// Bytes that the operating system calls available.
        available_bytes: u64,
    },

    /// A draft model with another vocabulary.
    #[error("the draft model {} has another vocabulary than {}: tokens would mean something else", draft.display(), model.display())]
    DraftVocabulary {
        /// The draft model's file.
        draft: PathBuf,
        /// The model's file.
        model: PathBuf,
    },

    /// Models to be compared with different vocabularies.
    #[error("{} has another vocabulary than {}: their probabilities do not compare", model.display(), other.display())]
    OtherVocabulary {
        /// The one.
        model: PathBuf,
        /// The other.
        other: PathBuf,
    },

    /// The file for what is computed once and read often cannot be written or read.
    #[error("{}: {error}: {needed_bytes} bytes are kept there while models are compared: give fewer windows, or another folder (TMPDIR)", path.display())]
    Scratch {
        /// The folder for temporary files.
        path: PathBuf,
        /// Bytes that are kept.
        needed_bytes: u64,
        /// Why it failed.
        #[source]
        error: std::io::Error,
    },

    /// Too many requests wait already.
    #[error("{limit} requests are waiting already: try again later, or raise `ModelBuilder::max_waiting`")]
    QueueFull {
        /// The limit.
        limit: usize,
    },

    /// What chooses the tokens of this request panicked. The model stays usable.
    #[error("choosing a token panicked: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },

    /// A request was started by something that chooses the tokens of another one, and would wait for itself.
    #[error("a generation cannot be started by what chooses the tokens of another: use a thread of its own")]
    InsideEngine,

    /// The operating system gives no thread.
    #[error("the engine thread cannot be started: {0}")]
    EngineThread(#[source] std::io::Error),

    /// The engine thread is gone, or a call to it panicked: a bug.
    #[error("the engine has stopped")]
    EngineStopped,

    /// A token id that the vocabulary does not have.
    #[error("token {token} is not in the vocabulary of {n_vocab} tokens")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },

    /// Too little text for what is to be measured on it.
    #[error("the text has {found} tokens, and {needed} are needed: give a longer text or a shorter context")]
    TooFewTokens {
        /// Tokens needed.
        needed: usize,
        /// Tokens there are.
        found: usize,
    },

    /// A window that is too short to be split into context and scored part.
    #[error("a context of {ctx} tokens leaves nothing to score: give at least 4")]
    WindowTooShort {
        /// Tokens of the window.
        ctx: usize,
    },
}

impl From<Arc<TemplateError>> for Error {
    fn from(error: Arc<TemplateError>) -> Self {
        Self::Template(error)
    }
}

impl From<TemplateError> for Error {
    fn from(error: TemplateError) -> Self {
        Self::Template(Arc::new(error))
    }
}
