//! fewbit's engine as a backend.
//!
//! Each answer is a task that owns the conversation, drives its stream, and sends the events through a small channel.
//! When the receiver is dropped, the task ends, and with it the generation. It also ends if the client does not read
//! for a long time, because it would occupy the memory of its context forever. The task also holds the lease of its
//! model, which is not unloaded meanwhile.

use std::error::Error as _;
use std::path::Path;
use std::task::Poll;
use std::time::Duration;

use fewbit::sample::TokenLogprob;
use fewbit::{
    Constraint, Error, ErrorClass, ErrorKind, FinishReason, GenerateOptions, Model, SamplingError, Tool, ToolError,
    ToolFallback,
};
use fewbit_api::chat::{ChatMessage, ToolChoice};
use fewbit_api::common::{self as wire, Prompt};
use futures_core::Stream;
use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::block_in_place;

use crate::backend::{
    Alternative, Backend, BackendError, BackendErrorKind, Boxed, CallDelta, Caller, Embedded, End, Event, Finish, Form,
    Generating, Input, Job, ModelInfo, Models, Piece, Reranked, Sample, SampleKind, Token, Usage, VoidCall,
};
use crate::error::ServeError;
use crate::messages;
use crate::models::{Lease, Pool, ServedModel};
use crate::rerank::rerank;

/// How many events an answer may be ahead of its reader, in addition to what the engine buffers itself.
const AHEAD: usize = 4;
/// A client that does not read for this long counts as disconnected.
const PATIENCE: Duration = Duration::from_secs(120);

/// Models that are computed in this process. A clone is another handle to the same models.
#[derive(Clone)]
pub struct EngineBackend {
    models: Pool,
}

impl std::fmt::Debug for EngineBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineBackend").finish_non_exhaustive()
    }
}

impl EngineBackend {
    /// Creates a backend with these loaded models, by their names in requests.
    ///
    /// # Errors
    /// If there is no model, or two models have the same name.
    pub fn new<N: Into<String>>(models: impl IntoIterator<Item = (N, Model)>) -> Result<Self, ServeError> {
        Self::with_models(models.into_iter().map(|(id, model)| ServedModel::loaded(id, model)), None)
    }

    /// Creates a backend with models of which some are loaded on demand. All of them together take at most
    /// `memory_limit` bytes, if that is given: idle ones are unloaded for others.
    ///
    /// # Errors
    /// If there is no model, two models have the same name, or those that are loaded exceed the limit.
    pub fn with_models(
        models: impl IntoIterator<Item = ServedModel>,
        memory_limit: Option<u64>,
    ) -> Result<Self, ServeError> {
        Ok(Self { models: Pool::new(models.into_iter().collect(), memory_limit)? })
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.models
    }

    /// The default name of a model in requests: a name of the registry or the hub as it is, the name of a file without
    /// its extension, or the name of a folder.
    pub fn name_of(given: &str) -> String {
        let path = Path::new(given);
        if !path.exists() {
            return given.to_owned();
        }
        let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
        stem.map_or_else(|| given.to_owned(), |name| name.to_string_lossy().into_owned())
    }
}

impl Models for EngineBackend {
    fn list(&self, _: &Caller) -> Vec<ModelInfo> {
        self.models.infos()
    }

    fn tokenizer_info<'a>(
        &'a self,
        _: &'a Caller,
        model: &'a str,
    ) -> Boxed<'a, Result<Map<String, Value>, BackendError>> {
        Box::pin(async move {
            let lease = self.models.lease(model).await?;
            Ok(block_in_place(|| tokenizer_info(lease.model())))
        })
    }

    fn tokenize<'a>(
        &'a self,
        _: &'a Caller,
        model: &'a str,
        text: &'a str,
        add_special: bool,
        parse: bool,
    ) -> Boxed<'a, Result<Vec<u32>, BackendError>> {
        use fewbit::expert::tokenizer::SpecialTokens;
        Box::pin(async move {
            let lease = self.models.lease(model).await?;
            let tokenizer = lease.model().tokenizer();
            let special = if parse { SpecialTokens::Parse } else { SpecialTokens::Plain };
            let ids = block_in_place(|| tokenizer.encode(text, special));
            Ok(if add_special { tokenizer.with_bos(ids) } else { ids })
        })
    }

    fn detokenize<'a>(
        &'a self,
        _: &'a Caller,
        model: &'a str,
        tokens: &'a [u32],
    ) -> Boxed<'a, Result<String, BackendError>> {
        Box::pin(async move {
            let lease = self.models.lease(model).await?;
            let tokenizer = lease.model().tokenizer();
            let n_vocab = tokenizer.n_vocab();
            match tokens.iter().position(|&token| token as usize >= n_vocab) {
                Some(i) => {
                    let message = format!("token {} is not in the vocabulary of {n_vocab} tokens", tokens[i]);
                    Err(BackendError::invalid(format!("tokens[{i}]"), message))
                }
                None => Ok(tokenizer.decode(tokens)),
            }
        })
    }

    fn samples(&self) -> Vec<Sample> {
        use SampleKind::{Counter, Gauge};
        let of_model = |(model_id, model): (String, Model)| {
            let m = model.metrics();
            let ends = m.outcomes;
            let rows: [(&'static str, &'static str, SampleKind, f64); 22] = [
                ("requests_running", "Requests that are being computed.", Gauge, m.running as f64),
                ("requests_waiting", "Requests in the queue.", Gauge, m.waiting as f64),
                ("requests_complete_total", "Requests that ended by themselves.", Counter, ends.stop as f64),
                ("requests_cut_total", "Requests that a limit ended.", Counter, ends.length as f64),
                ("requests_cancelled_total", "Requests whose client went away.", Counter, ends.cancelled as f64),
                ("requests_failed_total", "Requests that an error ended.", Counter, ends.failed as f64),
                ("requests_refused_total", "Requests that found the queue full.", Counter, ends.refused as f64),
                (
                    "requests_preempted_total",
                    "Times that a request was begun anew for memory.",
                    Counter,
                    m.preempted as f64,
                ),
                ("prompt_tokens_total", "Prompt tokens computed.", Counter, m.prompt_tokens as f64),
                ("cached_tokens_total", "Prompt tokens that were known already.", Counter, m.cached_tokens as f64),
                ("generated_tokens_total", "Tokens generated.", Counter, m.generated_tokens as f64),
                (
                    "drafted_tokens_total",
                    "Tokens computed because they were expected.",
                    Counter,
                    m.drafted_tokens as f64,
                ),
                ("accepted_tokens_total", "Drafted tokens that were accepted.", Counter, m.accepted_tokens as f64),
                ("steps_total", "Forward passes.", Counter, m.steps as f64),
                ("step_seconds_total", "Time of forward passes.", Counter, m.step_time.as_secs_f64()),
                ("longest_step_seconds", "The longest forward pass.", Gauge, m.longest_step.as_secs_f64()),
                ("kv_bytes", "Bytes of keys and values.", Gauge, m.kv_bytes() as f64),
                (
                    "kv_limit_bytes",
                    "Bytes that keys and values may take.",
                    Gauge,
                    m.kv_pages_limit as f64 * m.kv_page_bytes as f64,
                ),
                (
                    "prefix_bytes",
                    "Bytes of keys and values of known prefixes.",
                    Gauge,
                    m.prefix_pages as f64 * m.kv_page_bytes as f64,
                ),
                ("weight_bytes", "Bytes of the weights.", Gauge, m.weight_bytes as f64),
                ("gpu_weight_bytes", "Bytes of the weights on GPUs.", Gauge, m.gpu_weight_bytes as f64),
                ("devices_lost_total", "Times that a GPU was lost.", Counter, m.devices_lost as f64),
            ];
            rows.map(|(name, help, kind, value)| Sample { name, help, kind, model: model_id.clone(), value })
        };
        self.models.loaded().into_iter().flat_map(of_model).chain(self.models.samples()).collect()
    }
}

impl Backend for EngineBackend {
    fn models(&self) -> &dyn Models {
        self
    }

    fn generate(&self, job: Job) -> Boxed<'_, Result<Generating, BackendError>> {
        Box::pin(async move {
            let lease = self.models.lease(&job.model).await?;
            let (events, mut receiver) = mpsc::channel(AHEAD);
            let (begun, has_begun) = oneshot::channel();
            tokio::spawn(run(lease, job, Sink { begun: Some(begun), events }));
            match has_begun.await {
                Ok(Ok(())) => Ok(Generating::new(futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx)))),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(BackendError::new(BackendErrorKind::Internal, "preparing the answer failed")),
            }
        })
    }

    fn count(&self, job: Job) -> Boxed<'_, Result<usize, BackendError>> {
        Box::pin(async move {
            let lease = self.models.lease(&job.model).await?;
            let (chat, _) = start(lease.model(), job)?;
            block_in_place(|| chat.prompt_tokens()).map_err(|error| refused(error, "messages"))
        })
    }

    fn embed(&self, _: &Caller, model: &str, texts: Vec<Prompt>) -> Boxed<'_, Result<Embedded, BackendError>> {
        let model = model.to_owned();
        Box::pin(async move {
            let lease = self.models.lease(&model).await?;
            let prompts: Vec<fewbit::Prompt> = texts.into_iter().map(prompt).collect();
            let embedded = lease.model().embed(prompts).run_async().await.map_err(|error| refused(error, "input"))?;
            Ok(Embedded::new(embedded.vectors, embedded.usage.prompt))
        })
    }

    fn rerank(
        &self,
        _: &Caller,
        model: &str,
        query: String,
        documents: Vec<String>,
    ) -> Boxed<'_, Result<Reranked, BackendError>> {
        let model = model.to_owned();
        Box::pin(async move {
            let lease = self.models.lease(&model).await?;
            rerank(lease.model(), &model, query, documents, |error| refused(error, "input")).await
        })
    }
}

/// A model's tokenizer in the form of a `tokenizer_config.json`.
fn tokenizer_info(model: &Model) -> Map<String, Value> {
    let tokenizer = model.tokenizer();
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).map_or(Value::Null, Value::from);
    let mut added = Map::new();
    for id in (0..tokenizer.n_vocab() as u32).filter(|&id| tokenizer.is_control(id)) {
        let content = text(Some(id));
        added.insert(id.to_string(), json!({ "content": content, "special": true }));
    }
    let fields = [
        ("tokenizer_class", "FewbitTokenizer".into()),
        ("vocab_size", tokenizer.n_vocab().into()),
        ("model_max_length", model.context_length().into()),
        ("bos_token", text(tokenizer.bos())),
        ("eos_token", text(tokenizer.eos())),
        ("pad_token", text(tokenizer.padding())),
        ("unk_token", text(tokenizer.unknown())),
        ("add_bos_token", tokenizer.add_bos().into()),
        ("add_eos_token", tokenizer.add_eos().into()),
        ("chat_template", tokenizer.chat_template().map_or(Value::Null, Value::from)),
        ("added_tokens_decoder", added.into()),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Where an answer's task sends its results: first whether the answer has begun, then its events.
struct Sink {
    begun: Option<oneshot::Sender<Result<(), BackendError>>>,
    events: mpsc::Sender<Result<Event, BackendError>>,
}

impl Sink {
    fn begin(&mut self) {
        if let Some(begun) = self.begun.take() {
            let _ = begun.send(Ok(()));
        }
    }

    /// Sends an event. Returns whether somebody still reads.
    async fn send(&self, event: Event) -> bool {
        matches!(tokio::time::timeout(PATIENCE, self.events.send(Ok(event))).await, Ok(Ok(())))
    }
}

async fn run(lease: Lease, job: Job, mut sink: Sink) {
    let answered = match job.input {
        Input::Chat { .. } => chat(lease.model(), job, &mut sink).await,
        Input::Text { .. } => continued(lease.model(), job, &mut sink).await,
    };
    if let Err(error) = answered {
        match sink.begun.take() {
            Some(begun) => {
                let _ = begun.send(Err(error));
            }
            None => {
                let _ = tokio::time::timeout(PATIENCE, sink.events.send(Err(error))).await;
            }
        }
    }
}

/// The generation options of a job.
fn options(job: &Job, model: &Model) -> Result<GenerateOptions, BackendError> {
    let mut options = sampling(&job.sampling, model)?.seed(job.seed);
    options
        .sampling_over(model.recommended_sampling())
        .validate()
        .map_err(|error| refused(error.into(), "temperature"))?;
    options.stop = job.sampling.stop.iter().flat_map(|stop| &stop.0).filter(|stop| !stop.is_empty()).cloned().collect();
    options.max_tokens = job.max_tokens;
    options.logprobs = job.logprobs;
    options.constraint = job.form.as_ref().map(|(form, param)| constraint(form, param)).transpose()?;
    Ok(options)
}

async fn continued(model: &Model, job: Job, sink: &mut Sink) -> Result<(), BackendError> {
    let Input::Text { prompt: text, echo } = &job.input else { return Ok(()) };
    let param = job.form.as_ref().map_or("prompt", |(_, param)| param);
    let builder = model.generate(prompt(text.clone())).echo(*echo).options(options(&job, model)?);
    let stream = block_in_place(|| builder.stream_async()).map_err(|error| refused(error, param))?;
    let state = |stream: &fewbit::AsyncStream<fewbit::Stream>| {
        let stream = stream.get_ref();
        (stream.finish_reason(), stream.usage(), stream.stop_string().map(str::to_owned))
    };
    drive(model, stream, state, sink).await
}

/// Checks and starts the conversation of a job. Also returns the parameter to blame if answering it fails.
fn start(model: &Model, job: Job) -> Result<(fewbit::Chat, &'static str), BackendError> {
    let builder = model.chat().tool_fallback(ToolFallback::SystemPrompt).options(options(&job, model)?);
    let Input::Chat { messages, tools, choice, parallel, template_vars } = job.input else {
        return Err(BackendError::new(BackendErrorKind::Internal, "this is no conversation"));
    };
    let param = match (&job.form, &choice) {
        (Some((_, param)), _) => *param,
        (None, ToolChoice::Required | ToolChoice::Named(_)) => "tools",
        (None, _) => "messages",
    };
    let mut builder = conversation(builder, messages, template_vars)?;
    if choice != ToolChoice::None {
        builder = builder.tools(tools_of(&tools)?).tool_choice(choice_of(&choice)).parallel_tool_calls(parallel);
    }
    let chat = block_in_place(|| builder.start()).map_err(|error| refused(error, param))?;
    Ok((chat, param))
}

async fn chat(model: &Model, job: Job, sink: &mut Sink) -> Result<(), BackendError> {
    let (mut chat, param) = start(model, job)?;
    let stream = block_in_place(|| chat.reply().stream_async()).map_err(|error| refused(error, param))?;
    let state = |stream: &fewbit::AsyncStream<fewbit::ChatStream<&mut fewbit::Chat>>| {
        let stream = stream.get_ref();
        (stream.finish_reason(), stream.usage(), stream.stop_string().map(str::to_owned))
    };
    drive(model, stream, state, sink).await
}

fn conversation(
    builder: fewbit::ChatBuilder,
    messages: Vec<ChatMessage>,
    template_vars: Map<String, Value>,
) -> Result<fewbit::ChatBuilder, BackendError> {
    let conversation = messages::read(messages)?;
    let builder = match conversation.system {
        Some(system) => builder.system(system),
        None => builder,
    };
    let builder = builder.history(conversation.messages);
    Ok(template_vars.into_iter().fold(builder, |builder, (name, value)| builder.template_var(name, value)))
}

fn tools_of(wire: &[Value]) -> Result<Vec<Tool>, BackendError> {
    let read = |(i, tool): (usize, &Value)| {
        let wrong = |message: &dyn std::fmt::Display| BackendError::invalid(format!("tools[{i}]"), message);
        match tool.get("type").and_then(Value::as_str) {
            Some("function") => Tool::from_json(tool).map_err(|error| wrong(&error)),
            Some(other) => Err(wrong(&format!("a tool is of type {other:?}: only \"function\" can be used here"))),
            None => Err(wrong(&"a tool has no text `type`: it is \"function\"")),
        }
    };
    wire.iter().enumerate().map(read).collect()
}

/// Converts the tool choice of a request to the engine's.
fn choice_of(wire: &ToolChoice) -> fewbit::ToolChoice {
    match wire {
        ToolChoice::None => fewbit::ToolChoice::None,
        ToolChoice::Required => fewbit::ToolChoice::Required,
        ToolChoice::Named(name) => fewbit::ToolChoice::Named(name.clone()),
        _ => fewbit::ToolChoice::Auto,
    }
}

/// Sends the events of a stream to the sink.
async fn drive<S: Stream<Item = Result<fewbit::Piece, Error>> + Unpin>(
    model: &Model,
    mut stream: S,
    state: impl Fn(&S) -> (Option<FinishReason>, fewbit::Usage, Option<String>),
    sink: &mut Sink,
) -> Result<(), BackendError> {
    // The first poll submits the request to the engine, so a full queue is an error before the answer has begun.
    let mut ready = match std::future::poll_fn(|context| Poll::Ready(stream.poll_next_unpin(context))).await {
        Poll::Ready(Some(Err(error))) => return Err(refused(error, "messages")),
        Poll::Ready(item) => Some(item),
        Poll::Pending => None,
    };
    sink.begin();
    if !sink.send(Event::Begin { prompt: state(&stream).1.prompt }).await {
        return Ok(());
    }
    loop {
        let item = match ready.take() {
            Some(item) => item,
            None => tokio::select! {
                item = stream.next() => item,
                () = sink.events.closed() => return Ok(()),
            },
        };
        let Some(piece) = item.transpose().map_err(|error| refused(error, "messages"))? else { break };
        let is_cut = state(&stream).0 == Some(FinishReason::Length);
        let piece = read(model, piece, is_cut);
        if !piece.is_empty() && !sink.send(Event::Piece(piece)).await {
            return Ok(());
        }
    }
    let (reason, used, stop) = state(&stream);
    let finish = match reason {
        Some(FinishReason::Length) => Finish::Length,
        Some(FinishReason::ToolCalls) => Finish::ToolCalls,
        Some(FinishReason::Timeout | FinishReason::Cancelled) | None => {
            return Err(BackendError::new(BackendErrorKind::Unavailable, "the answer was ended by the server"));
        }
        Some(_) => Finish::Stop,
    };
    let (prompt, cached, completion) = (used.prompt, used.cached, used.completion);
    let usage = Usage { prompt, cached, completion, is_estimated: false };
    sink.send(Event::End(End { finish, stop, usage })).await;
    Ok(())
}

fn read(model: &Model, piece: fewbit::Piece, is_cut: bool) -> Piece {
    let delta = |delta: fewbit::ToolCallDelta| CallDelta {
        index: delta.index,
        id: delta.id,
        name: delta.name,
        arguments: delta.arguments,
    };
    Piece {
        text: piece.text,
        reasoning: piece.reasoning,
        calls: piece.tool_calls.into_iter().map(delta).collect(),
        void: piece.malformed_calls.iter().filter_map(|call| Some(VoidCall { index: call.index?, is_cut })).collect(),
        tokens: piece.logprobs.iter().map(|logprob| token(model, logprob)).collect(),
    }
}

fn token(model: &Model, of: &TokenLogprob) -> Token {
    let shown = |id: u32| {
        let tokenizer = model.tokenizer();
        let bytes = tokenizer.token_bytes(id).to_vec();
        let text = if bytes.is_empty() {
            tokenizer.token_text(id).unwrap_or_default().to_owned()
        } else {
            String::from_utf8_lossy(&bytes).into_owned()
        };
        (text, bytes)
    };
    let (text, bytes) = shown(of.token);
    let top = of.top.iter().map(|other| {
        let (text, bytes) = shown(other.token);
        Alternative { text, bytes, logprob: other.logprob }
    });
    Token { text, bytes, logprob: of.logprob, top: top.collect() }
}

fn prompt(wire: Prompt) -> fewbit::Prompt {
    match wire {
        Prompt::Text(text) => fewbit::Prompt::Text(text),
        Prompt::Tokens(tokens) => fewbit::Prompt::Tokens(tokens),
        // Requests can only contain those two.
        _ => fewbit::Prompt::Tokens(Vec::new()),
    }
}

/// The sampling settings of a request.
fn sampling(wire: &wire::Sampling, model: &Model) -> Result<GenerateOptions, BackendError> {
    let size = |param: &'static str, n: i64, all: usize| match n {
        -1 => Ok(all),
        n => usize::try_from(n).map_err(|_| BackendError::invalid(param, format!("`{param}` is {n}: give -1 or more"))),
    };
    let mut options = GenerateOptions::new();
    options.temperature = wire.temperature;
    // OpenAI's interface allows 0, which keeps only the most probable token.
    options.top_p = wire.top_p.map(|p| if p == 0.0 { f32::MIN_POSITIVE } else { p });
    options.min_p = wire.min_p;
    options.ignore_eos = wire.ignore_eos;
    options.top_k = wire.top_k.map(|k| size("top_k", k, 0)).transpose()?;
    options.repeat_penalty = wire.repeat_penalty;
    options.presence_penalty = wire.presence_penalty;
    options.frequency_penalty = wire.frequency_penalty;
    options.penalty_last_n = wire.repeat_last_n.map(|n| size("repeat_last_n", n, usize::MAX)).transpose()?;
    options.logit_bias = wire.logit_bias.iter().flat_map(|bias| &bias.0).copied().collect();
    let n_vocab = model.tokenizer().n_vocab();
    if let Some(&(token, _)) = options.logit_bias.iter().find(|(token, _)| *token as usize >= n_vocab) {
        return Err(refused(SamplingError::UnknownToken { token, n_vocab }.into(), "logit_bias"));
    }
    Ok(options)
}

fn constraint(form: &Form, param: &str) -> Result<Constraint, BackendError> {
    match form {
        Form::JsonObject => Ok(Constraint::json_object()),
        Form::JsonSchema(schema) => Ok(Constraint::json_schema(schema.clone())),
        Form::Regex(pattern) => Ok(Constraint::regex(pattern)),
        Form::Grammar(grammar) => Constraint::gbnf(grammar).map_err(|error| refused(error.into(), param)),
    }
}

/// Converts an error of the engine. `param` is the field to blame if the error does not tell.
fn refused(error: Error, param: &str) -> BackendError {
    // Show the cause, if there is one: the outer message only says that the request failed, which the status tells
    // already.
    let message = match error.kind() {
        ErrorKind::NoChatTemplate => "the model has no chat template: use /v1/completions, or another model".to_owned(),
        ErrorKind::QueueFull { limit } => format!("{limit} requests are waiting already: try again later"),
        ErrorKind::EngineStopped => "the model is being unloaded".to_owned(),
        _ => error.source().map_or_else(|| error.to_string(), ToString::to_string),
    };
    let kind = match error.class() {
        ErrorClass::Request | ErrorClass::Answer => BackendErrorKind::Invalid,
        ErrorClass::TooLarge => BackendErrorKind::TooLong,
        ErrorClass::Busy => BackendErrorKind::Busy,
        _ if matches!(error.kind(), ErrorKind::EngineStopped) => BackendErrorKind::Unavailable,
        _ => return internal(&error),
    };
    let param = match kind {
        BackendErrorKind::Invalid | BackendErrorKind::TooLong => field(&error, param),
        _ => None,
    };
    BackendError { kind, message, param }
}

/// The field of a request that an error is about; `param` if the error does not tell.
fn field(error: &Error, param: &str) -> Option<String> {
    let name = match error.kind() {
        ErrorKind::Options => match error.cause() {
            Some(SamplingError::Temperature(_)) => "temperature",
            Some(SamplingError::TopP(_)) => "top_p",
            Some(SamplingError::MinP(_)) => "min_p",
            Some(SamplingError::Bias { .. } | SamplingError::UnknownToken { .. }) => "logit_bias",
            Some(SamplingError::Setting { setting, .. }) => match *setting {
                "the repeat penalty" => "repeat_penalty",
                "the presence penalty" => "presence_penalty",
                "the frequency penalty" => "frequency_penalty",
                _ => return None,
            },
            Some(_) => return None,
            // A constraint is invalid.
            None => param,
        },
        ErrorKind::NoChatTemplate | ErrorKind::Template => "messages",
        ErrorKind::TemplateVariable { .. } => "chat_template_kwargs",
        ErrorKind::Tools => match error.cause() {
            Some(ToolError::ChoiceWithoutTools | ToolError::UnknownTool { .. }) => "tool_choice",
            _ => "tools",
        },
        ErrorKind::Empty { index: Some(index) } | ErrorKind::TooLong { index: Some(index), .. } => {
            return Some(format!("input[{index}]"));
        }
        ErrorKind::TooLong { index: None, .. } | ErrorKind::KvMemory { .. } => return None,
        _ => param,
    };
    Some(name.to_owned())
}

/// Converts an error that clients cannot do anything about. Its text may contain file names, so it is only logged.
fn internal(error: &Error) -> BackendError {
    tracing::error!(error = format!("{error:#}"), "the engine failed on a request");
    BackendError::new(BackendErrorKind::Internal, "the engine failed on this request; it goes on with others")
}
