//! The traits [`Backend`], which answers requests, [`Models`], which tells what there is to answer them, and [`Gate`], which
//! admits them, with the types that they exchange.
//!
//! Jobs use the wire types of the interface, so that a backend can forward them as well as compute them. Checks that
//! only a backend can make are made there: it returns a [`BackendError`] instead of a stream.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use fewbit_api::chat::{ChatMessage, ToolChoice};
use fewbit_api::common::{Prompt, Sampling};
use fewbit_api::prompt::PromptParam;
use futures_core::Stream;
use serde_json::{Map, Value};

use crate::models::ModelState;

/// A boxed future.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An answer in progress: a stream of events. Dropping it cancels the answer.
pub struct Generating {
    events: Pin<Box<dyn Stream<Item = Result<Event, BackendError>> + Send>>,
    answered_by: Option<AnsweredBy>,
    n_masked: usize,
}

impl Generating {
    /// Creates an answer from a stream of events.
    pub fn new(events: impl Stream<Item = Result<Event, BackendError>> + Send + 'static) -> Self {
        Self { events: Box::pin(events), answered_by: None, n_masked: 0 }
    }

    /// Sets which target of a route gives the answer.
    pub fn by(mut self, answered_by: impl Into<Option<AnsweredBy>>) -> Self {
        self.answered_by = answered_by.into();
        self
    }

    /// Sets how many texts of the request were masked before it left this server.
    pub fn masked(mut self, n: usize) -> Self {
        self.n_masked = n;
        self
    }

    /// How many texts of the request were masked before it left this server.
    pub fn n_masked(&self) -> usize {
        self.n_masked
    }

    /// Which target of a route gives the answer; `None` if the request named a model directly.
    pub fn answered_by(&self) -> Option<&AnsweredBy> {
        self.answered_by.as_ref()
    }
}

impl Stream for Generating {
    type Item = Result<Event, BackendError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.as_mut().poll_next(context)
    }
}

impl fmt::Debug for Generating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generating").field("answered_by", &self.answered_by).finish_non_exhaustive()
    }
}

/// The target of a route that gives an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnsweredBy {
    /// Its name in the route, such as `big/their-name`.
    pub backend: Arc<str>,
    /// Whether it is a fallback, used because the target chosen first failed.
    pub is_fallback: bool,
}

/// The models of a backend: which there are, their tokenizers, their metrics.
pub trait Models: Send + Sync + 'static {
    /// The models that this caller may use in requests.
    fn list(&self, caller: &Caller) -> Vec<ModelInfo>;

    /// What is known about a model's tokenizer, in the form of a `tokenizer_config.json`. By default, nothing is.
    fn tokenizer_info<'a>(
        &'a self,
        caller: &'a Caller,
        model: &'a str,
    ) -> Boxed<'a, Result<Map<String, Value>, BackendError>> {
        let _ = caller;
        let error = BackendError::invalid("model", format!("the tokenizer of {model:?} is not known here"));
        Box::pin(async move { Err(error) })
    }

    /// The tokens of a text.
    fn tokenize<'a>(
        &'a self,
        caller: &'a Caller,
        model: &'a str,
        text: &'a str,
        add_special: bool,
        parse: bool,
    ) -> Boxed<'a, Result<Vec<u32>, BackendError>>;

    /// The text of tokens.
    fn detokenize<'a>(
        &'a self,
        caller: &'a Caller,
        model: &'a str,
        tokens: &'a [u32],
    ) -> Boxed<'a, Result<String, BackendError>>;

    /// The metrics of this backend.
    fn samples(&self) -> Vec<Sample>;
}

/// Answers requests: the local engine, an upstream server, or a script of a test.
pub trait Backend: Send + Sync + 'static {
    /// The models that answer. A backend that wraps another and leaves them as they are returns the other's.
    fn models(&self) -> &dyn Models;

    /// Begins an answer. If the request is invalid, this future fails, not the stream.
    fn generate(&self, job: Job) -> Boxed<'_, Result<Generating, BackendError>>;

    /// Counts the tokens of a job's prompt.
    fn count(&self, job: Job) -> Boxed<'_, Result<usize, BackendError>>;

    /// Computes the embeddings of texts.
    fn embed(&self, caller: &Caller, model: &str, texts: Vec<Prompt>) -> Boxed<'_, Result<Embedded, BackendError>>;

    /// How relevant documents are to a query. By default, no model can tell.
    fn rerank(
        &self,
        caller: &Caller,
        model: &str,
        query: String,
        documents: Vec<String>,
    ) -> Boxed<'_, Result<Reranked, BackendError>> {
        let _ = (caller, query, documents);
        let error = BackendError::invalid("model", format!("the model {model:?} is not one that reranks here"));
        Box::pin(async move { Err(error) })
    }
}

/// Admits or refuses requests, before their body is read.
pub trait Gate: Send + Sync + 'static {
    /// Checks a key. Returns a name for it that is not secret.
    ///
    /// # Errors
    /// If the key is missing or unknown, is not allowed to call this endpoint, or has exceeded its rate limit.
    fn enter(&self, key: Option<&[u8]>, endpoint: &'static str) -> Result<Arc<str>, BackendError>;

    /// Checks a key by the name that [`enter`](Self::enter) returned, for a request that the server sends on its behalf:
    /// the lines of its batches. By default there are none.
    ///
    /// # Errors
    /// As `enter`. A key that is not in use any more is a [`BackendErrorKind::WrongKey`].
    fn enter_as(&self, name: &str, endpoint: &'static str) -> Result<Arc<str>, BackendError> {
        let _ = (name, endpoint);
        Err(BackendError::new(BackendErrorKind::WrongKey, "this server sends no requests on behalf of keys"))
    }
}

/// Renders the prompts of a server, which requests name.
pub trait Prompts: Send + Sync + 'static {
    /// The messages of a prompt with the variables of a request.
    ///
    /// # Errors
    /// If there is no such prompt, or the variables do not fit.
    fn render(&self, caller: &Caller, prompt: &PromptParam) -> Result<RenderedPrompt, BackendError>;
}

/// The messages of a prompt, and which version it is.
#[derive(Debug, Clone, PartialEq)]
pub struct RenderedPrompt {
    /// Its messages, which come before those of the request.
    pub messages: Vec<ChatMessage>,
    /// The version.
    pub used: Arc<PromptUsed>,
}

/// A version of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptUsed {
    /// Its name, such as `support@3`.
    pub id: String,
    /// The SHA-256 of its files, in hexadecimal.
    pub sha256: String,
}

/// The sender of a request, and the request's id and endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The [`Gate`]'s name for the key; `None` if there is no gate.
    pub key: Option<Arc<str>>,
    /// The request id.
    pub request: Arc<str>,
    /// The path of the endpoint.
    pub endpoint: &'static str,
    /// For which feature of the client's program the request is, if the client says so: a name to sum up usage by.
    pub feature: Option<Arc<str>>,
}

/// A model that requests can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// Its name in requests.
    pub id: String,
    /// When it was loaded, or the server was started, in seconds since 1970.
    pub created: u64,
    /// How many tokens a prompt and its answer can have together; 0 if unknown, such as before a model was loaded.
    pub context_length: usize,
    /// Identifies what computes the answers: another version may give other answers for the same seed.
    pub fingerprint: String,
    /// Whether it is in memory; `None` if that is not known, such as for a model on another server.
    pub state: Option<ModelState>,
}

/// A request for one answer. A client's request for several answers becomes several jobs.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The sender of the request.
    pub caller: Caller,
    /// The model: one of [`Models::list`].
    pub model: String,
    /// The prompt.
    pub input: Input,
    /// How tokens are chosen. Its seed is not used: see `seed`.
    pub sampling: Sampling,
    /// The seed of the random numbers for this answer.
    pub seed: u64,
    /// The most tokens to generate; `None` allows as many as fit into the context.
    pub max_tokens: Option<usize>,
    /// Whether to return the log probabilities of tokens, and of how many alternatives each.
    pub logprobs: Option<usize>,
    /// The form that the answer must have, and the request's field that asks for it.
    pub form: Option<(Form, &'static str)>,
    /// The prompt of the server that the request named. Its messages are in `input` already.
    pub prompt: Option<Arc<PromptUsed>>,
}

impl Job {
    /// Estimates the tokens of the prompt, at four bytes per token. For servers that do not report usage.
    pub fn estimated_prompt_tokens(&self) -> usize {
        match &self.input {
            Input::Text { prompt, .. } => estimated_tokens(prompt),
            Input::Chat { messages, tools, .. } => {
                let of_call = |call| serde_json::to_string(call).map_or(0, |text| text.len());
                let of_messages = messages.iter().map(|message| {
                    let of_calls: usize = message.tool_calls.iter().flatten().map(of_call).sum();
                    message.content.as_text().map_or(0, |text| text.len()) + of_calls
                });
                let of_tools = tools.iter().map(|tool| tool.to_string().len());
                of_messages.chain(of_tools).sum::<usize>().div_ceil(BYTES_PER_TOKEN)
            }
        }
    }
}

/// The average for English text and common tokenizers.
pub(crate) const BYTES_PER_TOKEN: usize = 4;

/// Estimates the tokens of a prompt.
pub(crate) fn estimated_tokens(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Tokens(tokens) => tokens.len(),
        Prompt::Text(text) => text.len().div_ceil(BYTES_PER_TOKEN),
        // Requests can only contain those two.
        _ => 0,
    }
}

/// The prompt of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A conversation.
    Chat {
        /// Its messages.
        messages: Vec<ChatMessage>,
        /// Functions that the model may call.
        tools: Vec<Value>,
        /// Whether the model may, must or must not call one.
        choice: ToolChoice,
        /// Whether the model may make several calls in one answer.
        parallel: bool,
        /// Variables of the chat template.
        template_vars: Map<String, Value>,
    },
    /// A text to continue.
    Text {
        /// The text.
        prompt: Prompt,
        /// Whether the answer begins with the prompt.
        echo: bool,
    },
}

/// The form that an answer must have.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// A JSON object.
    JsonObject,
    /// JSON that is valid for this schema.
    JsonSchema(Value),
    /// A text that matches a grammar in llama.cpp's notation (GBNF).
    Grammar(String),
    /// A text that matches this regular expression.
    Regex(String),
}

/// An event of an answer's stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The answer has begun. Comes first and once, from backends that know the length of the prompt by then.
    Begin {
        /// Tokens of the prompt.
        prompt: usize,
    },
    /// New text, reasoning or calls.
    Piece(Piece),
    /// The end of the answer. Comes last and once. A stream that ends without it was cut off.
    End(End),
}

/// A new part of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Piece {
    /// Text to append.
    pub text: String,
    /// Reasoning to append.
    pub reasoning: String,
    /// Parts of calls.
    pub calls: Vec<CallDelta>,
    /// Calls of which parts were sent already, but which turned out to be malformed.
    pub void: Vec<VoidCall>,
    /// The tokens of this piece, if [`Job::logprobs`] asks for them.
    pub tokens: Vec<Token>,
}

impl Piece {
    /// Whether the piece is empty.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A part of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallDelta {
    /// The index of the call in the answer.
    pub index: usize,
    /// The id of the call, in its first part only.
    pub id: Option<String>,
    /// The name of the function, in the first part only.
    pub name: Option<String>,
    /// Text to append to its arguments.
    pub arguments: String,
}

/// A call that turned out to be malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoidCall {
    /// Its index, which the next call will reuse.
    pub index: usize,
    /// Whether it is malformed only because the token limit cut it off; nothing follows it then.
    pub is_cut: bool,
}

/// A token and its log probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// The token for display: a part of a character is U+FFFD, a special token is its name.
    pub text: String,
    /// The bytes that it adds to the text; empty for a special token.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability; `None` for the first token of a text.
    pub logprob: Option<f32>,
    /// The most probable tokens at this position.
    pub top: Vec<Alternative>,
}

/// An alternative token at a position.
#[derive(Debug, Clone, PartialEq)]
pub struct Alternative {
    /// The token for display, as in [`Token::text`].
    pub text: String,
    /// The bytes that it would have added to the text.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// The end of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why it ended.
    pub finish: Finish,
    /// The stop text that ended it, from backends that know it.
    pub stop: Option<String>,
    /// The tokens it took.
    pub usage: Usage,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By itself, or at a stop text.
    Stop,
    /// At the token limit, or because the context or its memory is full.
    Length,
    /// To call a tool.
    ToolCalls,
}

impl Finish {
    /// The value of `finish_reason` in OpenAI's interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// The tokens that an answer took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// How many of them were found in the cache.
    pub cached: usize,
    /// Generated tokens.
    pub completion: usize,
    /// Whether these are estimates, because the upstream reported no usage.
    pub is_estimated: bool,
}

/// The embeddings of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// One vector for each text.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all texts together.
    pub prompt_tokens: usize,
    /// Whether `prompt_tokens` is an estimate, because the upstream reported no usage.
    pub is_estimated: bool,
    /// Which target of a route answered; `None` if the request named a model directly.
    pub answered_by: Option<AnsweredBy>,
    /// How many texts were masked before they left this server.
    pub masked: usize,
}

impl Embedded {
    /// Creates embeddings of texts that had `prompt_tokens` tokens together.
    pub fn new(vectors: Vec<Vec<f32>>, prompt_tokens: usize) -> Self {
        Self { vectors, prompt_tokens, is_estimated: false, answered_by: None, masked: 0 }
    }
}

/// How relevant documents are to a query.
#[derive(Debug, Clone, PartialEq)]
pub struct Reranked {
    /// One score for each document; a higher one is more relevant.
    pub scores: Vec<f32>,
    /// Tokens that were computed.
    pub prompt_tokens: usize,
    /// How many texts were masked before they left this server.
    pub masked: usize,
    /// Which target of a route answered; `None` if the request named a model directly.
    pub answered_by: Option<AnsweredBy>,
}

impl Reranked {
    /// Creates the scores of documents, for which `prompt_tokens` tokens were computed.
    pub fn new(scores: Vec<f32>, prompt_tokens: usize) -> Self {
        Self { scores, prompt_tokens, masked: 0, answered_by: None }
    }
}

/// The value of a metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The name of the metric, of letters and underscores.
    pub name: &'static str,
    /// A description of the metric.
    pub help: &'static str,
    /// Whether it is a counter or a gauge.
    pub kind: SampleKind,
    /// The model to which it belongs.
    pub model: String,
    /// The current value.
    pub value: f64,
}

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleKind {
    /// A count that only increases.
    Counter,
    /// A current value, which can increase and decrease.
    Gauge,
}

/// Why a backend or a gate refused a request, or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BackendError {
    /// The kind of error, which determines the HTTP status.
    pub kind: BackendErrorKind,
    /// A message for people.
    pub message: String,
    /// The field of the request that is wrong.
    pub param: Option<String>,
}

/// The kind of an error, and what a client can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendErrorKind {
    /// The request is invalid: change it.
    Invalid,
    /// The prompt is longer than the context: send less.
    TooLong,
    /// There is no such model: name another one.
    UnknownModel,
    /// Too many requests are waiting already: try again later.
    Busy,
    /// The server cannot answer now: try again later.
    Unavailable,
    /// An internal error: a client can do nothing about it.
    Internal,
    /// The model is not loaded, and there is no memory for it now: try again later.
    NotLoaded {
        /// After how many seconds to try again.
        retry_after_s: u32,
    },
    /// The model is larger than the memory limit ever allows: name another one.
    TooLarge,
    /// The model cannot be loaded. The next request tries again.
    LoadFailed,
    /// The request has no key: send one.
    NoKey,
    /// The key is unknown or revoked: send another one.
    WrongKey,
    /// The key is not allowed to do this: use a key that is.
    Forbidden,
    /// The key has reached its limit of requests or tokens: try again later.
    TooMany {
        /// After how many seconds to try again.
        retry_after_s: u32,
    },
    /// The key has reached its cost limit: ask for a higher one.
    Spent,
    /// The upstream takes no more requests now: try again later.
    UpstreamBusy {
        /// After how many seconds to try again.
        retry_after_s: u32,
    },
    /// The upstream failed, or its answer was wrong: try again.
    Upstream,
    /// Someone cancelled the request on the server: do not try again.
    Cancelled,
}

impl BackendError {
    /// Creates an error that is not about one field.
    pub fn new(kind: BackendErrorKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string(), param: None }
    }

    /// Creates an error about an invalid field.
    pub fn invalid(param: impl Into<String>, message: impl fmt::Display) -> Self {
        Self { kind: BackendErrorKind::Invalid, message: message.to_string(), param: Some(param.into()) }
    }
}
