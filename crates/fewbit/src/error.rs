//! The one error type of this crate: which kind of failure it is, and what caused it.
//!
//! A kind is what a caller can match on, with the figures it needs to react. An error of a lower-level crate becomes
//! the source of an [`Error`]. Its text is not repeated in the message of the [`Error`] itself, so printing the whole
//! chain (`{:#}`) states each fact once.

use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fewbit_model::quantize::QuantizeError;
use fewbit_model::{LoraError, MemoryEstimate, ModelError};
use fewbit_tokenizer::TemplateError;

use crate::hub::HubError;
use crate::sample::SamplingError;
use crate::session_file::SessionError;

/// Failure to load a model or to generate with it. A model stays usable after every error.
///
/// `{}` prints what failed; `{:#}` prints the reason as well: the error, followed by its chain of sources.
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// use fewbit::{ErrorKind, Model, SamplingError};
///
/// let model = Model::load("smollm2-135m-instruct")?;
/// match model.generate("word ".repeat(100_000)).run() {
///     Ok(out) => println!("{out}"),
///     Err(error) if error.is_retryable() => println!("later: {error:#}"),
///     Err(error) => match error.kind() {
///         ErrorKind::TooLong { tokens, context_tokens, .. } => {
///             println!("{tokens} tokens do not fit into {context_tokens}");
///         }
///         // What is wrong with the options, as a typed error.
///         ErrorKind::Options => println!("{:?}", error.cause::<SamplingError>()),
///         _ => println!("{error:#}"),
///     },
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    source: Option<Source>,
}

/// A cause; one that several errors may have in common is behind an `Arc`.
#[derive(Debug)]
enum Source {
    Own(Box<dyn StdError + Send + Sync>),
    Template(Arc<TemplateError>),
}

/// What failed, with the figures a caller needs. Why it failed is the error's [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The argument looks like a path, but nothing exists there.
    #[error("{} does not exist: check the path, or give the name of a known model", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },

    /// The model name cannot be resolved to a file, or the file cannot be fetched. The source is a `HubError`.
    #[error("cannot get the model")]
    Hub,

    /// A file cannot be used for its purpose (as a model, for instance). The source is a
    /// [`FormatError`](fewbit_format::FormatError), a [`TokenizerError`](fewbit_tokenizer::TokenizerError) or a
    /// [`ModelError`].
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
    },

    /// An adapter cannot be used. The source is a [`LoraError`], which names the file.
    #[error("cannot use the adapter")]
    Adapter,

    /// A file could not be quantized. The source is a [`QuantizeError`].
    #[error("cannot quantize the model")]
    Quantize,

    /// A conversation cannot be saved, or a saved one cannot be restored. The source is a [`SessionError`].
    #[error("cannot save or restore the conversation")]
    Session,

    /// The requested device cannot be used. No other device was tried instead. The source is a
    /// [`DeviceError`](fewbit_model::DeviceError).
    #[error("cannot compute on the device {device}")]
    Device {
        /// The name of the device.
        device: String,
    },

    /// More layers were requested on the GPU than the model has.
    #[error("the model has {n_layers} layers, so no {asked} can be on the GPU: leave the number out for all")]
    GpuLayers {
        /// Number of layers requested.
        asked: usize,
        /// Number of layers of the model.
        n_layers: usize,
    },

    /// A forward pass failed. The source is a [`ModelError`], or a [`SamplingError`] if the logits are not finite.
    #[error("a step of the model failed")]
    Model,

    /// The model file has no chat template.
    #[error("the model file has no chat template: use a raw prompt, or an instruction-tuned model")]
    NoChatTemplate,

    /// The chat template cannot be compiled, or fails to render this conversation. The source is a [`TemplateError`].
    #[error("the chat template failed")]
    Template,

    /// The request sets a variable of the chat template that is reserved for fewbit: `messages`, `tools` or
    /// `add_generation_prompt`.
    #[error("the template variable {name:?} is set by fewbit itself: leave it out")]
    TemplateVariable {
        /// Name of the variable.
        name: String,
    },

    /// The message to replace does not exist in the conversation.
    #[error("there is no message {index} (from 0): the conversation has {n_messages}")]
    NoSuchMessage {
        /// Index of the message, from 0.
        index: usize,
        /// Number of messages in the conversation.
        n_messages: usize,
    },

    /// A tool, a call, or a result is invalid. The source is a [`ToolError`](crate::ToolError).
    #[error("invalid tools")]
    Tools,

    /// An option is out of range, the options leave no token to choose from, or a constraint cannot be followed. The
    /// source is a [`SamplingError`] or a `ConstraintError`.
    #[error("invalid options")]
    Options,

    /// The answer ended before it was complete, by a limit or a stop string, for instance.
    #[error("the answer is incomplete: it ended with `{reason}` after {} bytes; allow more tokens", text.len())]
    Incomplete {
        /// Why the generation ended.
        reason: crate::FinishReason,
        /// The text up to that point.
        text: String,
    },

    /// The answer is not the JSON of the requested type. The source has the position in the text.
    #[error("the answer is not the JSON of the type")]
    Json {
        /// The text of the answer.
        text: String,
    },

    /// The prompt is empty and the model has no beginning-of-text token, or a text to embed has no tokens.
    #[error("{}", empty(*index))]
    Empty {
        /// Index of the text in a list of texts; `None` for a prompt.
        index: Option<usize>,
    },

    /// A prompt leaves no room for output in the context, or a text to embed is longer than the context.
    #[error("{} {tokens} tokens, but the context has {context_tokens}: shorten it, or use a longer context", named(*index))]
    TooLong {
        /// Index of the text in a list of texts; `None` for a prompt.
        index: Option<usize>,
        /// Number of tokens in the prompt or text.
        tokens: usize,
        /// Length of the context, in tokens.
        context_tokens: usize,
    },

    /// The text is too short to measure anything on it, or the context length leaves nothing to measure.
    #[error("{found} tokens are too few, {needed} are needed: give a longer text, or windows of another length")]
    TooShort {
        /// Number of tokens in the text.
        found: usize,
        /// Number of tokens needed.
        needed: usize,
    },

    /// The requested context is longer than the one that the model was trained with.
    #[error("a context length of {asked} is more than the model's {context_tokens}: set at most that")]
    ContextTooLong {
        /// Number of tokens requested.
        asked: usize,
        /// Number of tokens that the model was trained with.
        context_tokens: usize,
    },

    /// A token id is not in the vocabulary.
    #[error("token {token} is not in the vocabulary of {n_vocab} tokens")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },

    /// A deadline passed or a [`CancelToken`](crate::CancelToken) was cancelled before all texts were embedded.
    #[error("text {index} (from 0) and those after it were not embedded: {reason}")]
    NotEmbedded {
        /// Index of the first text without a vector, from 0.
        index: usize,
        /// What interrupted the request.
        reason: crate::FinishReason,
    },

    /// The requested context needs more memory than the KV cache may take.
    #[error(
        "{n_tokens} tokens take {} MiB of KV cache, and the limit is {} MiB: shorten the prompt, or raise \
         `ModelBuilder::kv_memory`", needed_bytes >> 20, limit_bytes >> 20
    )]
    KvMemory {
        /// Number of tokens of the request, or of all requests that were to run at once.
        n_tokens: usize,
        /// Bytes that their keys and values need.
        needed_bytes: u64,
        /// Limit of the KV cache, in bytes.
        limit_bytes: u64,
    },

    /// The model and the requested contexts do not fit into memory.
    #[error(
        "the model takes {} MiB and {sequences} contexts of {context_tokens} tokens {} MiB, but only {} MiB of memory \
         are free: take a shorter context, fewer sequences or a smaller file",
        (estimate.weight_bytes + estimate.lora_bytes + estimate.scratch_bytes) >> 20, estimate.kv_bytes >> 20, available_bytes >> 20
    )]
    DoesNotFit {
        /// The memory that they would take.
        estimate: MemoryEstimate,
        /// Number of contexts requested.
        sequences: usize,
        /// Length of each context, in tokens.
        context_tokens: usize,
        /// Bytes of memory that the operating system reports as available.
        available_bytes: u64,
    },

    /// The draft model, or the model to compare with, has a different vocabulary.
    #[error("{} and {} have different vocabularies: their tokens do not mean the same", model.display(), other.display())]
    OtherVocabulary {
        /// The draft model, or the model that is compared.
        model: PathBuf,
        /// The model that it was to be used with.
        other: PathBuf,
    },

    /// The operating system reported an error. The source is an [`std::io::Error`].
    #[error("cannot {action}")]
    System {
        /// The action that failed, and on what.
        action: String,
    },

    /// The queue of waiting requests is full.
    #[error("{limit} requests are waiting already: try again later, or raise `ModelBuilder::max_waiting`")]
    QueueFull {
        /// The most requests that may wait.
        limit: usize,
    },

    /// Code that chooses the tokens of this request, such as a custom sampler, panicked. The model stays usable.
    #[error("choosing a token panicked: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },

    /// Code that runs on the engine thread, such as a custom sampler, started a request: it would wait for itself.
    #[error(
        "a generation cannot be started from inside a sampler or stop condition of another one: start it on another thread"
    )]
    InsideEngine,

    /// The engine thread has stopped, or a call to it panicked. This is a bug in fewbit.
    #[error("the engine has stopped")]
    EngineStopped,
}

/// Who can fix an error. There are few classes and each kind has one, so a server can choose its status code by class.
///
/// ```
/// # fn status(error: &fewbit::Error) -> u16 {
/// use fewbit::ErrorClass;
///
/// match error.class() {
///     ErrorClass::Request => 400,
///     ErrorClass::TooLarge => 413,
///     ErrorClass::Busy => 429,
///     ErrorClass::Answer => 422,
///     _ => 500,
/// }
/// # }
/// # assert_eq!(status(&fewbit::SamplingError::TopP(2.0).into()), 400);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorClass {
    /// The caller: with this model, the request fails until it is changed.
    Request,
    /// The caller: the request is larger than the context of the model, or than the memory for its KV cache.
    TooLarge,
    /// Nobody: the same request may succeed a little later.
    Busy,
    /// The caller: there is an answer, but not the complete one that was asked for. Other options may help.
    Answer,
    /// The person who chose the model: its name or its files cannot be used.
    Files,
    /// The person who runs the machine: memory, disk, a device, or something else that the operating system refuses.
    Machine,
    /// The programmer: the engine, or a sampler or predicate of your own, failed.
    Internal,
}

impl Error {
    /// What failed, to match on.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// What failed, by value.
    pub fn into_kind(self) -> ErrorKind {
        self.kind
    }

    /// The source of the error, by value.
    pub fn into_source(self) -> Option<Box<dyn StdError + Send + Sync>> {
        match self.source? {
            Source::Own(error) => Some(error),
            Source::Template(error) => Some(Box::new(error)),
        }
    }

    /// The first error of this type in the chain of sources.
    ///
    /// ```
    /// use fewbit::{Error, SamplingError};
    ///
    /// let error: Error = SamplingError::TopP(2.0).into();
    /// assert!(matches!(error.cause(), Some(SamplingError::TopP(_))));
    /// ```
    pub fn cause<T: StdError + 'static>(&self) -> Option<&T> {
        causes(self).find_map(|error| error.downcast_ref())
    }

    /// Who can fix this error.
    pub fn class(&self) -> ErrorClass {
        match &self.kind {
            ErrorKind::QueueFull { .. } => ErrorClass::Busy,
            ErrorKind::Hub if self.cause().is_some_and(HubError::is_retryable) => ErrorClass::Busy,
            ErrorKind::NotFound { .. }
            | ErrorKind::Hub
            | ErrorKind::File { .. }
            | ErrorKind::Adapter
            | ErrorKind::Quantize
            | ErrorKind::Session
            | ErrorKind::OtherVocabulary { .. } => ErrorClass::Files,
            ErrorKind::NoChatTemplate
            | ErrorKind::Template
            | ErrorKind::TemplateVariable { .. }
            | ErrorKind::NoSuchMessage { .. }
            | ErrorKind::Tools
            | ErrorKind::Options
            | ErrorKind::Empty { .. }
            | ErrorKind::TooShort { .. }
            | ErrorKind::ContextTooLong { .. }
            | ErrorKind::GpuLayers { .. }
            | ErrorKind::TokenOutOfRange { .. } => ErrorClass::Request,
            ErrorKind::TooLong { .. } | ErrorKind::KvMemory { .. } => ErrorClass::TooLarge,
            ErrorKind::Incomplete { .. } | ErrorKind::Json { .. } | ErrorKind::NotEmbedded { .. } => ErrorClass::Answer,
            ErrorKind::DoesNotFit { .. } | ErrorKind::Device { .. } | ErrorKind::System { .. } => ErrorClass::Machine,
            ErrorKind::Model | ErrorKind::Panicked { .. } | ErrorKind::InsideEngine | ErrorKind::EngineStopped => {
                ErrorClass::Internal
            }
        }
    }

    /// Whether the same call, unchanged, may succeed a little later: the queue was full, or a server that provides
    /// models was busy or unreachable.
    pub fn is_retryable(&self) -> bool {
        self.class() == ErrorClass::Busy
    }

    /// An error with its cause.
    pub(crate) fn new(kind: ErrorKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { kind, source: Some(Source::Own(source.into())) }
    }

    /// This file cannot be used; `source` is the reason.
    pub(crate) fn file(path: &Path, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(ErrorKind::File { path: path.to_owned() }, source)
    }

    /// The operating system refused `action`.
    pub(crate) fn system(action: impl Into<String>, source: std::io::Error) -> Self {
        Self::new(ErrorKind::System { action: action.into() }, source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        if f.alternate() {
            for error in causes(self) {
                write!(f, ": {error}")?;
            }
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self.source.as_ref()? {
            Source::Own(error) => Some(&**error),
            Source::Template(error) => Some(&**error),
        }
    }
}

/// The source of an error, the source of that, and so on.
pub(crate) fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, source: None }
    }
}

/// Converts errors that are the source of exactly one kind.
macro_rules! sources {
    ($($error:ty => $kind:ident),+ $(,)?) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::new(ErrorKind::$kind, error)
            }
        })+
    };
}

sources! {
    HubError => Hub,
    LoraError => Adapter,
    QuantizeError => Quantize,
    SessionError => Session,
    ModelError => Model,
    TemplateError => Template,
    crate::tools::ToolError => Tools,
}

impl From<SamplingError> for Error {
    fn from(error: SamplingError) -> Self {
        match error {
            // Logits that are not finite are not the fault of the options.
            SamplingError::NotFinite { .. } => Self::new(ErrorKind::Model, error),
            error => Self::new(ErrorKind::Options, error),
        }
    }
}

#[cfg(feature = "constraints")]
sources! { crate::constraints::ConstraintError => Options }

impl From<Arc<TemplateError>> for Error {
    fn from(error: Arc<TemplateError>) -> Self {
        Self { kind: ErrorKind::Template, source: Some(Source::Template(error)) }
    }
}

fn empty(index: Option<usize>) -> String {
    match index {
        Some(index) => format!("text {index} (from 0) is empty: leave it out"),
        None => {
            "the prompt is empty, and the model has no token that begins a text: give at least one character".to_owned()
        }
    }
}

fn named(index: Option<usize>) -> String {
    match index {
        Some(index) => format!("text {index} (from 0) has"),
        None => "the prompt has".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One error of each kind, and a second one of the kind `Hub`; only that one has a source.
    fn all() -> Vec<Error> {
        let (path, text) = (PathBuf::from("model.gguf"), String::from("text"));
        let reason = crate::FinishReason::Length;
        let busy = HubError::Busy { url: "https://example.org".to_owned(), status: 503, retry_after_s: None };
        let mut all: Vec<Error> = [
            ErrorKind::NotFound { path: path.clone() },
            ErrorKind::Hub,
            ErrorKind::File { path: path.clone() },
            ErrorKind::Adapter,
            ErrorKind::Quantize,
            ErrorKind::Session,
            ErrorKind::Model,
            ErrorKind::Device { device: text.clone() },
            ErrorKind::GpuLayers { asked: 9, n_layers: 8 },
            ErrorKind::NoChatTemplate,
            ErrorKind::Template,
            ErrorKind::TemplateVariable { name: text.clone() },
            ErrorKind::NoSuchMessage { index: 1, n_messages: 1 },
            ErrorKind::Tools,
            ErrorKind::Options,
            ErrorKind::Incomplete { reason, text: text.clone() },
            ErrorKind::Json { text: text.clone() },
            ErrorKind::Empty { index: None },
            ErrorKind::TooLong { index: None, tokens: 9, context_tokens: 8 },
            ErrorKind::TooShort { found: 1, needed: 2 },
            ErrorKind::ContextTooLong { asked: 9, context_tokens: 8 },
            ErrorKind::TokenOutOfRange { token: 9, n_vocab: 8 },
            ErrorKind::NotEmbedded { index: 0, reason },
            ErrorKind::KvMemory { n_tokens: 1, needed_bytes: 2, limit_bytes: 1 },
            ErrorKind::DoesNotFit {
                estimate: MemoryEstimate::default(),
                sequences: 1,
                context_tokens: 1,
                available_bytes: 1,
            },
            ErrorKind::OtherVocabulary { model: path.clone(), other: path },
            ErrorKind::System { action: text.clone() },
            ErrorKind::QueueFull { limit: 1 },
            ErrorKind::Panicked { message: text },
            ErrorKind::InsideEngine,
            ErrorKind::EngineStopped,
        ]
        .map(Error::from)
        .into();
        all.push(busy.into());
        all
    }

    /// The name of a kind or a class, as written in the code.
    fn name(of: &impl fmt::Debug) -> String {
        format!("{of:?}").chars().take_while(char::is_ascii_alphabetic).collect()
    }

    #[test]
    fn docs_list_every_error_kind_in_its_class() {
        let mut class = String::new();
        let mut told = Vec::new();
        for line in include_str!("../../../docs/errors.md").lines().filter(|line| line.starts_with("| ")) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let code = |cell: &str| cell.split('`').nth(1).map(str::to_owned);
            class = code(cells[1]).unwrap_or(class);
            told.extend(code(cells[3]).map(|kind| (class.clone(), kind)));
        }
        let mut all: Vec<_> = all().iter().map(|error| (name(&error.class()), name(error.kind()))).collect();
        all.sort();
        told.sort();
        assert_eq!(told, all);
        let kinds = include_str!("error.rs").split("pub enum ErrorKind {").nth(1).unwrap().split("\n}").next().unwrap();
        assert_eq!(kinds.matches("#[error(").count() + 1, all.len(), "`all` has every kind, and one twice");
    }

    #[test]
    fn only_busy_errors_are_retryable() {
        for error in all() {
            assert_eq!(error.is_retryable(), error.class() == ErrorClass::Busy, "{error:?}");
        }
        assert!(Error::from(ErrorKind::QueueFull { limit: 1 }).is_retryable());
        assert!(!Error::from(HubError::UnknownModel { name: "x".to_owned(), known: Vec::new() }).is_retryable());
    }

    #[test]
    fn non_finite_logits_are_internal_errors() {
        let of = |error: SamplingError| Error::from(error).class();
        assert_eq!(of(SamplingError::NotFinite { token: 1, value: f32::NAN }), ErrorClass::Internal);
        assert_eq!(of(SamplingError::TopP(2.0)), ErrorClass::Request);
    }
}
