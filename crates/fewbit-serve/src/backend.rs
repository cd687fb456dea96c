//! What answers requests: the engine of this process, a script, or something else that implements [`Backend`]; and what
//! lets them in, a [`Gate`].
//!
//! Requests come in the types of the interface, so that a backend can as well send them on as compute them. Whatever
//! only a backend can know is checked there: it refuses with a [`BackendError`] before it gives a stream.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use fewbit_api::chat::{ChatMessage, ToolChoice};
use fewbit_api::common::{Prompt, Sampling};
use futures_core::Stream;
use serde_json::{Map, Value};

/// A future on the heap.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An answer under way. Dropping it ends it.
pub type Generating = Pin<Box<dyn Stream<Item = Result<Event, BackendError>> + Send>>;

/// What answers requests.
pub trait Backend: Send + Sync + 'static {
    /// The models that this caller may name. Requests name one of them.
    fn models(&self, caller: &Caller) -> Vec<ModelInfo>;

    /// Begins an answer. Whatever is wrong with the request is an error of this future, not of the stream.
    fn generate(&self, job: Job) -> Boxed<'_, Result<Generating, BackendError>>;

    /// How many tokens the prompt of a job has.
    fn count(&self, job: Job) -> Boxed<'_, Result<usize, BackendError>>;

    /// Turns texts into vectors.
    fn embed(&self, caller: &Caller, model: &str, texts: Vec<Prompt>) -> Boxed<'_, Result<Embedded, BackendError>>;

    /// The tokens of a text.
    fn tokenize(
        &self,
        caller: &Caller,
        model: &str,
        text: &str,
        add_special: bool,
        parse: bool,
    ) -> Result<Vec<u32>, BackendError>;

    /// The text of tokens.
    fn detokenize(&self, caller: &Caller, model: &str, tokens: &[u32]) -> Result<String, BackendError>;

    /// What can be counted.
    fn samples(&self) -> Vec<Sample>;
}

/// Lets requests in, or not: before anything of them is read.
pub trait Gate: Send + Sync + 'static {
    /// Whose key this is, by a name that is no secret.
    ///
    /// # Errors
    /// If it is nobody's, or may not ask here, or not now.
    fn enter(&self, key: Option<&[u8]>, endpoint: &'static str) -> Result<Arc<str>, BackendError>;
}

/// Who asks, and with which request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// What the [`Gate`] calls the key; nothing where all may ask.
    pub key: Option<Arc<str>>,
    /// Tells requests apart.
    pub request: Arc<str>,
    /// The endpoint's path.
    pub endpoint: &'static str,
}

/// A model that requests can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// What they call it.
    pub id: String,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// Tokens that a prompt and its answer can have together.
    pub context_length: usize,
    /// What computes it: another version may give other answers for the same seed.
    pub fingerprint: String,
}

/// One answer that is asked for. A request for several is several jobs.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Who asks.
    pub caller: Caller,
    /// One of [`Backend::models`].
    pub model: String,
    /// What to answer.
    pub input: Input,
    /// How tokens are chosen. Its seed is not used.
    pub sampling: Sampling,
    /// The seed of the random numbers.
    pub seed: u64,
    /// The most tokens; `None` is as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Whether to tell how probable tokens were, and of how many alternatives.
    pub logprobs: Option<usize>,
    /// What the answer must be, with the field that says so.
    pub form: Option<(Form, &'static str)>,
}

/// What to answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A conversation.
    Chat {
        /// Its messages.
        messages: Vec<ChatMessage>,
        /// Functions that the model may call.
        tools: Vec<Value>,
        /// Whether it may, must or must not.
        choice: ToolChoice,
        /// Whether it may call several.
        parallel: bool,
        /// Variables of the chat template.
        template_vars: Map<String, Value>,
    },
    /// A text to continue.
    Text {
        /// The text.
        prompt: Prompt,
        /// Whether the answer begins with it.
        echo: bool,
    },
}

/// What an answer must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// A JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema(Value),
    /// A text of a grammar in llama.cpp's notation.
    Grammar(String),
    /// A text that a regular expression matches.
    Regex(String),
}

/// What an answer brings.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It has begun, with a prompt of so many tokens. Once and first, where a backend knows it.
    Begin {
        /// Tokens of the prompt.
        prompt: usize,
    },
    /// Something new.
    Piece(Piece),
    /// Its end, once and last. A stream that ends without it was broken off.
    End(End),
}

/// Something new of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Piece {
    /// Text to append.
    pub text: String,
    /// Reasoning to append.
    pub reasoning: String,
    /// Parts of calls.
    pub calls: Vec<CallDelta>,
    /// Calls of which parts went out, and that turned out to be none.
    pub void: Vec<VoidCall>,
    /// The tokens of this piece, if [`Job::logprobs`] asked for them.
    pub tokens: Vec<Token>,
}

impl Piece {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A part of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallDelta {
    /// Which call of the answer.
    pub index: usize,
    /// Its id, once.
    pub id: Option<String>,
    /// Which function, once.
    pub name: Option<String>,
    /// Text to append to its arguments.
    pub arguments: String,
}

/// A call that turned out to be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoidCall {
    /// Its index; the next call will have it.
    pub index: usize,
    /// It was cut by a limit of tokens, and nothing follows.
    pub is_cut: bool,
}

/// A token, and how probable it was.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// How it is shown: a part of a character as U+FFFD, a special token by its name.
    pub text: String,
    /// What it adds to the text: nothing if it is special.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability; `None` for one that follows nothing.
    pub logprob: Option<f32>,
    /// The most probable tokens of its place.
    pub top: Vec<Alternative>,
}

/// A token that could have come.
#[derive(Debug, Clone, PartialEq)]
pub struct Alternative {
    /// How it is shown.
    pub text: String,
    /// What it would have added.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// The end of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why it ended.
    pub finish: Finish,
    /// The stop text that ended it, where a backend knows it.
    pub stop: Option<String>,
    /// What it took.
    pub usage: Usage,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By itself, or by a stop text.
    Stop,
    /// By a limit of tokens.
    Length,
    /// To call something.
    ToolCalls,
}

impl Finish {
    /// The interface's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// What an answer took, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt: usize,
    /// Of these, known already.
    pub cached: usize,
    /// Of the answer.
    pub completion: usize,
}

/// Texts as vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// One for each text.
    pub vectors: Vec<Vec<f32>>,
    /// Of all texts.
    pub prompt_tokens: usize,
}

/// Something counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its name, of letters and underscores.
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// Whether it can fall.
    pub kind: SampleKind,
    /// Of which model.
    pub model: String,
    /// How many.
    pub value: f64,
}

/// Whether a sample can fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleKind {
    /// It only grows.
    Counter,
    /// It is as it is now.
    Gauge,
}

/// Why a backend does not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BackendError {
    /// What can be told apart.
    pub kind: BackendErrorKind,
    /// For people.
    pub message: String,
    /// Which field of the request is wrong.
    pub param: Option<String>,
}

/// What a client can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendErrorKind {
    /// Send something else.
    Invalid,
    /// Send less.
    TooLong,
    /// Name another model.
    UnknownModel,
    /// Try again later: too much is asked for at once.
    Busy,
    /// Try again later: it cannot be computed now.
    Unavailable,
    /// Nothing.
    Internal,
    /// Send a key.
    NoKey,
    /// Send another key.
    WrongKey,
    /// Ask for a key that may.
    Forbidden,
    /// Try again later: this key asks too much.
    TooMany {
        /// When.
        retry_after_s: u32,
    },
    /// Ask for more: what this key may cost is spent.
    Spent,
    /// Try again: what was asked in turn did not answer, or not as it should.
    Upstream,
}

impl BackendError {
    /// An error of no field.
    pub fn new(kind: BackendErrorKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string(), param: None }
    }

    /// A field that is wrong.
    pub fn invalid(param: impl Into<String>, message: impl fmt::Display) -> Self {
        Self { kind: BackendErrorKind::Invalid, message: message.to_string(), param: Some(param.into()) }
    }
}
