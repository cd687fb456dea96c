//! `POST /v1/chat/completions`.

use std::sync::Arc;

use fewbit_api::chat::{
    AssistantMessage, ChatChoice, ChatChunk, ChatLogprobs, ChatRequest, ChatResponse, ChunkChoice, Delta,
    FunctionDelta, ResponseFormat, TokenLogprob, ToolCall, ToolCallDelta, ToolChoice, TopLogprob,
};
use fewbit_api::common::Sampling;
use fewbit_api::sse;

use super::{Head, count, finite, first_seed, form_of_extensions, model_of, total, usage, wants_usage, with_prompt};
use crate::backend::{Alternative, CallDelta, End, Form as Constraint, Input, Job, Piece, Token, Usage};
use crate::error::ApiError;
use crate::line::{Call, Endpoint, Reply};
use crate::server::Shared;
use crate::stream::{self, Form};

/// The most alternatives per token that can be requested: OpenAI's limit.
pub(super) const MAX_TOP_LOGPROBS: u32 = 20;

pub(super) struct Chat;

impl Endpoint for Chat {
    const PATH: &'static str = "/v1/chat/completions";

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let mut request: ChatRequest = call.read()?;
        let sampling: Sampling = call.read()?;
        let model = model_of(server, &call.caller, request.model.as_deref())?;
        let n = count(request.n, 1)?;
        let logprobs = logprobs_of(&request)?;
        let form = form_of(&request, &sampling)?;
        let seed = first_seed(&sampling);
        let is_streamed = request.stream.unwrap_or(false);
        let wants_usage = wants_usage(request.stream_options.as_ref());
        let max_tokens = request.max_completion_tokens.or(request.max_tokens).map(|n| n as usize);
        let prompt = with_prompt(server, &call.caller, request.prompt.take(), &mut request.messages)?;
        let input = input_of(request, form.is_some())?;
        let caller = call.caller;
        let job = Job {
            caller,
            model: model.id.clone(),
            input,
            sampling,
            seed,
            max_tokens,
            logprobs,
            form,
            prompt: prompt.clone(),
        };
        let jobs = (0..n as u64).map(|i| Job { seed: seed.wrapping_add(i), ..job.clone() }).collect();
        let head = Head::new("chatcmpl-", model, wants_usage);
        if is_streamed {
            let chunks = Chunks { head, has_logprobs: logprobs.is_some() };
            return Ok(stream::reply(server, jobs, n, chunks).await?.prompt(prompt));
        }
        let answers = stream::begin(server, jobs).await?;
        let by = stream::answered_by(&answers);
        let answers = stream::whole(answers).await?;
        let used = total(answers.iter().enumerate().map(|(i, (_, end))| (i, end.usage)), n);
        let choices = answers.into_iter().enumerate().map(|(index, (piece, end))| ChatChoice {
            index,
            logprobs: logprobs.is_some().then(|| logprobs_form(&piece.tokens)),
            message: message(piece),
            finish_reason: end.finish.as_str(),
        });
        let response = ChatResponse {
            id: head.id,
            object: "chat.completion",
            created: head.created,
            model: head.model.id,
            system_fingerprint: head.model.fingerprint,
            choices: choices.collect(),
            usage: usage(used),
        };
        Ok(Reply::json(&response)?.by(by).prompt(prompt))
    }
}

fn logprobs_of(request: &ChatRequest) -> Result<Option<usize>, ApiError> {
    match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (_, Some(n)) if n > MAX_TOP_LOGPROBS => {
            Err(ApiError::invalid("top_logprobs", format!("`top_logprobs` can be {MAX_TOP_LOGPROBS} at most")))
        }
        (false, Some(n)) if n > 0 => {
            Err(ApiError::invalid("top_logprobs", "`top_logprobs` is given, and `logprobs` is not true: set it"))
        }
        (false, _) => Ok(None),
        (true, n) => Ok(Some(n.unwrap_or(0) as usize)),
    }
}

fn form_of(request: &ChatRequest, sampling: &Sampling) -> Result<Option<(Constraint, &'static str)>, ApiError> {
    let of_format = match &request.response_format {
        None | Some(ResponseFormat::Text) => None,
        Some(ResponseFormat::JsonObject) => Some((Constraint::JsonObject, "response_format")),
        Some(ResponseFormat::JsonSchema { json_schema }) => Some(match &json_schema.schema {
            Some(schema) => (Constraint::JsonSchema(schema.clone()), "response_format.json_schema.schema"),
            None => (Constraint::JsonObject, "response_format"),
        }),
        Some(_) => {
            return Err(ApiError::invalid("response_format", "`response_format` is of a type that is not known"));
        }
    };
    match (of_format, form_of_extensions(sampling)?) {
        (Some(_), Some((_, name))) => {
            Err(ApiError::invalid(name, format!("`{name}` and `response_format` are given: leave one of them out")))
        }
        (format, extension) => Ok(format.or(extension)),
    }
}

fn input_of(request: ChatRequest, has_form: bool) -> Result<Input, ApiError> {
    if request.messages.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` is empty: give at least one"));
    }
    if request.functions.is_some_and(|functions| functions.as_array().is_none_or(|list| !list.is_empty())) {
        return Err(ApiError::invalid("functions", "`functions` is the old form of `tools`: use `tools`"));
    }
    let tools = request.tools.unwrap_or_default();
    let choice = request.tool_choice.unwrap_or(ToolChoice::Auto);
    if has_form && !tools.is_empty() && choice != ToolChoice::None {
        let message = "an answer in a given form cannot call `tools` as well: leave one of them out, or set `tool_choice` \
                       to \"none\"";
        return Err(ApiError::invalid("tools", message));
    }
    Ok(Input::Chat {
        messages: request.messages,
        tools,
        choice,
        parallel: request.parallel_tool_calls.unwrap_or(true),
        template_vars: request.chat_template_kwargs.unwrap_or_default(),
    })
}

fn message(piece: Piece) -> AssistantMessage {
    let call =
        |call: CallDelta| ToolCall::new(call.id.unwrap_or_default(), call.name.unwrap_or_default(), call.arguments);
    let calls: Vec<_> = piece.calls.into_iter().map(call).collect();
    AssistantMessage {
        role: "assistant",
        content: (calls.is_empty() || !piece.text.is_empty()).then_some(piece.text),
        refusal: None,
        reasoning_content: (!piece.reasoning.is_empty()).then_some(piece.reasoning),
        tool_calls: calls,
    }
}

pub(super) fn logprobs_form(tokens: &[Token]) -> ChatLogprobs {
    let alternative = |other: &Alternative| TopLogprob {
        token: other.text.clone(),
        logprob: finite(other.logprob),
        bytes: other.bytes.clone(),
    };
    let content = tokens.iter().map(|token| TokenLogprob {
        token: token.text.clone(),
        logprob: finite(token.logprob.unwrap_or(0.0)),
        bytes: token.bytes.clone(),
        top_logprobs: token.top.iter().map(alternative).collect(),
    });
    ChatLogprobs { content: content.collect(), refusal: None }
}

struct Chunks {
    head: Head,
    has_logprobs: bool,
}

impl Chunks {
    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Option<fewbit_api::common::Usage>>) -> String {
        let chunk = ChatChunk {
            id: self.head.id.clone(),
            object: "chat.completion.chunk",
            created: self.head.created,
            model: self.head.model.id.clone(),
            system_fingerprint: self.head.model.fingerprint.clone(),
            choices,
            usage,
        };
        sse::data(&chunk).unwrap_or_default()
    }

    fn choice(&self, choice: ChunkChoice) -> String {
        self.chunk(vec![choice], self.head.wants_usage.then_some(None))
    }
}

impl Form for Chunks {
    fn first(&mut self, index: usize) -> Option<String> {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        Some(self.choice(ChunkChoice { index, delta, logprobs: None, finish_reason: None }))
    }

    fn piece(&mut self, index: usize, piece: Piece) -> Option<String> {
        let logprobs = (self.has_logprobs && !piece.tokens.is_empty()).then(|| logprobs_form(&piece.tokens));
        let calls = piece.calls.into_iter().map(|call| ToolCallDelta {
            index: call.index,
            id: call.id,
            kind: call.name.is_some().then_some("function"),
            function: FunctionDelta { name: call.name, arguments: call.arguments },
        });
        let delta = Delta {
            role: None,
            content: (!piece.text.is_empty()).then_some(piece.text),
            reasoning_content: (!piece.reasoning.is_empty()).then_some(piece.reasoning),
            tool_calls: calls.collect(),
        };
        let is_nothing = delta == Delta::default() && logprobs.is_none();
        (!is_nothing).then(|| self.choice(ChunkChoice { index, delta, logprobs, finish_reason: None }))
    }

    fn end(&mut self, index: usize, end: End) -> String {
        let finish_reason = Some(end.finish.as_str());
        self.choice(ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason })
    }

    fn last(&mut self, used: Usage) -> String {
        let usage = self.head.wants_usage.then(|| self.chunk(Vec::new(), Some(Some(usage(used)))));
        usage.unwrap_or_default() + sse::DONE
    }
}
