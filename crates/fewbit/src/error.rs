//! The one error type of the facade: what kind of failure it is, and what caused it.
//!
//! A kind is what a caller can tell apart, with the figures that it can act on. What the crates below report is the
//! source of an error: its text is not repeated in the error's own, so whoever prints the whole chain says each thing
//! once. `{:#}` does.

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
/// `{}` says what failed, and `{:#}` why as well: the error and its sources, one after the other.
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
///         // What was wrong with the options, as the type that it is.
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

/// A cause that several errors may share is shared.
#[derive(Debug)]
enum Source {
    Own(Box<dyn StdError + Send + Sync>),
    Template(Arc<TemplateError>),
}

/// What failed, and what a caller can act on. Why it failed is the error's [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something that looks like a path leads nowhere.
    #[error("{} does not exist: check the path, or give the name of a known model", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },

    /// The model's name cannot be turned into a file. The source is a `HubError`.
    #[error("cannot get the model")]
    Hub,

    /// A file cannot be used as what it was given as. The source says what is wrong with it: a
    /// [`FormatError`](fewbit_format::FormatError), a [`TokenizerError`](fewbit_tokenizer::TokenizerError) or a [`ModelError`].
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

    /// A conversation cannot be saved, or a saved one not be used. The source is a [`SessionError`].
    #[error("cannot save or restore the conversation")]
    Session,

    /// The device that was asked for cannot be used. Nothing else was tried in its place. The source is a
    /// [`DeviceError`](fewbit_model::DeviceError).
    #[error("cannot compute on the device {device}")]
    Device {
        /// What it was called.
        device: String,
    },

    /// More layers were to be placed on a GPU than the model has.
    #[error("the model has {n_layers} layers, so no {asked} can be on the GPU: leave the number out for all")]
    GpuLayers {
        /// Layers that were asked for.
        asked: usize,
        /// Layers of the model.
        n_layers: usize,
    },

    /// A step of the model failed. The source is a [`ModelError`], or a [`SamplingError`] if its logits are no numbers.
    #[error("a step of the model failed")]
    Model,

    /// The model file has no chat template.
    #[error("the model file has no chat template: give the prompt as it is, or take an instruction-tuned model")]
    NoChatTemplate,

    /// The chat template cannot be compiled, or fails on this conversation. The source is a [`TemplateError`].
    #[error("the chat template failed")]
    Template,

    /// A variable of the chat template that is not for callers to set.
    #[error("the template variable {name:?} is set by fewbit: leave it out")]
    TemplateVariable {
        /// Its name.
        name: String,
    },

    /// A message that the conversation does not have was to be replaced.
    #[error("there is no message {index} (from 0): the conversation has {n_messages}")]
    NoSuchMessage {
        /// Its place, from 0.
        index: usize,
        /// Messages there are.
        n_messages: usize,
    },

    /// Something is wrong with tools, a call, or a result. The source is a [`ToolError`](crate::ToolError).
    #[error("the tools cannot be used so")]
    Tools,

    /// An option out of range, options that leave no token, or a constraint that cannot be kept. The source is a
    /// [`SamplingError`] or a `ConstraintError`.
    #[error("the options cannot be followed")]
    Options,

    /// A limit ended the text before what was asked for was complete.
    #[error("the answer is incomplete, it ended by `{reason}`: allow more tokens (it has {} bytes)", text.len())]
    Incomplete {
        /// Why it ended.
        reason: crate::FinishReason,
        /// The text as far as it went.
        text: String,
    },

    /// A text that is not the JSON of the type that was asked for. The source says where.
    #[error("the answer is not what the type wants")]
    Json {
        /// The text.
        text: String,
    },

    /// There is nothing to continue, or a text to embed has no token.
    #[error("{}", empty(*index))]
    Empty {
        /// The text's place in a list of texts.
        index: Option<usize>,
    },

    /// A prompt that leaves no room in the context, or a text to embed that is longer.
    #[error("{} {tokens} tokens and the context {context_tokens}: shorten it, or use a longer context", named(*index))]
    TooLong {
        /// The text's place in a list of texts.
        index: Option<usize>,
        /// Its tokens.
        tokens: usize,
        /// Tokens of the context.
        context_tokens: usize,
    },

    /// Too little text for what is to be measured on it, or a context that leaves nothing to measure.
    #[error("{found} tokens are too few, {needed} are needed: give a longer text, or windows of another length")]
    TooShort {
        /// Tokens there are.
        found: usize,
        /// Tokens needed.
        needed: usize,
    },

    /// A context longer than the model was made for was asked for.
    #[error("a context of {asked} tokens was asked for, the model has {context_tokens}: ask for at most that")]
    ContextTooLong {
        /// Tokens asked for.
        asked: usize,
        /// Tokens that the model was trained with.
        context_tokens: usize,
    },

    /// A token id that the vocabulary does not have.
    #[error("token {token} is not in the vocabulary of {n_vocab} tokens")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },

    /// A deadline or a [`CancelToken`](crate::CancelToken) came before all texts were embedded.
    #[error("text {index} (from 0) and those after it were not embedded: {reason}")]
    NotEmbedded {
        /// The first text that was not.
        index: usize,
        /// What came before it.
        reason: crate::FinishReason,
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

    /// A draft model, or a model to compare with, that has another vocabulary.
    #[error("{} has another vocabulary than {}: their tokens do not mean the same", model.display(), other.display())]
    OtherVocabulary {
        /// The one: the draft, or what is compared.
        model: PathBuf,
        /// The other.
        other: PathBuf,
    },

    /// The operating system refused something. The source is an [`std::io::Error`].
    #[error("cannot {action}")]
    System {
        /// What was to be done, and where.
        action: String,
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

    /// The engine thread is gone, or a call to it panicked: a bug.
    #[error("the engine has stopped")]
    EngineStopped,
}

/// Who can do something about an error. There are few, so that every kind has one: a server chooses its status by it.
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
    /// Whoever asks: the request fails with this model until it is changed.
    Request,
    /// Whoever asks: the request is larger than the model's context, or the memory for it.
    TooLarge,
    /// Nobody: the same may succeed a little later.
    Busy,
    /// Whoever asks: there is an answer, but not (all of) the one that was wanted. Other options may give it.
    Answer,
    /// Whoever chose the model: its name or its files cannot be used.
    Files,
    /// Whoever runs the machine: memory, a disk, or something else that the operating system refuses.
    Machine,
    /// Whoever wrote the code: the engine, or a sampler or predicate of yours, failed.
    Internal,
}

impl Error {
    /// What failed, to match on.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// What failed, with what it holds.
    pub fn into_kind(self) -> ErrorKind {
        self.kind
    }

    /// What caused it, to keep.
    pub fn into_source(self) -> Option<Box<dyn StdError + Send + Sync>> {
        match self.source? {
            Source::Own(error) => Some(error),
            Source::Template(error) => Some(Box::new(error)),
        }
    }

    /// The first cause of this type, however deep in the chain.
    ///
    /// ```
    /// use fewbit::{Error, SamplingError};
    ///
    /// let error: Error = SamplingError::TopP(2.0).into();
    /// assert!(matches!(error.cause(), Some(SamplingError::TopP(_))));
    /// ```
    pub fn cause<T: StdError + 'static>(&self) -> Option<&T> {
        self.causes().find_map(|error| error.downcast_ref())
    }

    /// Who can do something about it.
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

    /// Whether the same, unchanged, may succeed a little later: there was no place in the queue, or a server that
    /// models come from was busy or out of reach.
    pub fn is_retryable(&self) -> bool {
        self.class() == ErrorClass::Busy
    }

    /// What caused it, what caused that, and so on.
    fn causes(&self) -> impl Iterator<Item = &(dyn StdError + 'static)> {
        let mut next = self.source();
        std::iter::from_fn(move || {
            let error = next?;
            next = error.source();
            Some(error)
        })
    }

    /// An error with its cause.
    pub(crate) fn new(kind: ErrorKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { kind, source: Some(Source::Own(source.into())) }
    }

    /// This file cannot be used, because.
    pub(crate) fn file(path: &Path, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(ErrorKind::File { path: path.to_owned() }, source)
    }

    /// What the operating system did not let us do.
    pub(crate) fn system(action: impl Into<String>, source: std::io::Error) -> Self {
        Self::new(ErrorKind::System { action: action.into() }, source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        if f.alternate() {
            for error in self.causes() {
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

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, source: None }
    }
}

/// Errors that are the source of one kind only.
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
            // No option makes the model compute this.
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

    /// One error of each kind, all without a source but one.
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

    /// The name of a kind or a class, as it is written in the code.
    fn name(of: &impl fmt::Debug) -> String {
        format!("{of:?}").chars().take_while(char::is_ascii_alphabetic).collect()
    }

    #[test]
    fn the_guide_has_every_kind_in_its_class() {
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
    fn what_is_busy_may_be_tried_again_and_nothing_else() {
        for error in all() {
            assert_eq!(error.is_retryable(), error.class() == ErrorClass::Busy, "{error:?}");
        }
        assert!(Error::from(ErrorKind::QueueFull { limit: 1 }).is_retryable());
        assert!(!Error::from(HubError::UnknownModel { name: "x".to_owned(), known: Vec::new() }).is_retryable());
    }

    #[test]
    fn logits_that_are_no_numbers_are_not_the_options_fault() {
        let of = |error: SamplingError| Error::from(error).class();
        assert_eq!(of(SamplingError::NotFinite { token: 1, value: f32::NAN }), ErrorClass::Internal);
        assert_eq!(of(SamplingError::TopP(2.0)), ErrorClass::Request);
    }
}
