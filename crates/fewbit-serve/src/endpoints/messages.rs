//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's form of a conversation.

use std::sync::Arc;

use fewbit_api::chat::{Role, ToolChoice};
use fewbit_api::common::{Sampling, Stop};
use fewbit_api::messages::{
    AnswerBlock, CallBy, CountResponse, MessagesRequest, MessagesResponse, MessagesUsage, OutputFormat, Refused,
    ThinkingKind,
};
use fewbit_api::sse;
use serde_json::{Map, Value, json};

use super::{MAX_STOPS, first_seed, model_of, with_prompt};
use crate::backend::{End, Finish, Form as Constraint, Input, Job, ModelInfo, Piece, Usage};
use crate::error::{ApiError, ErrorForm};
use crate::line::{Call, Endpoint, Reply};
use crate::server::{Shared, random_id};
use crate::stream::{self, Form};

pub(super) struct Messages;

impl Endpoint for Messages {
    const PATH: &'static str = "/v1/messages";
    const ERRORS: ErrorForm = ErrorForm::Anthropic;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let request: MessagesRequest = call.read()?;
        let Some(max_tokens) = request.max_tokens else {
            return Err(ApiError::invalid("max_tokens", "`max_tokens` is missing: say how long the answer may be"));
        };
        let is_streamed = request.stream.unwrap_or(false);
        let model = model_of(server, &call.caller, request.model.as_deref())?;
        let job = Job { max_tokens: Some(max_tokens as usize), ..job_of(server, request, call, &model)? };
        let prompt = job.prompt.clone();
        let id = random_id("msg_");
        if is_streamed {
            let events = Events { id, model, prompt: 0, has_begun: false, n_blocks: 0, open: None, end: None };
            return Ok(stream::reply(server, vec![job], 1, events).await?.prompt(prompt));
        }
        let mut answers = stream::begin(server, vec![job]).await?;
        let by = stream::answered_by(&answers);
        let answer = answers.pop().ok_or_else(ApiError::internal)?;
        let (piece, end) = stream::whole(vec![answer]).await?.pop().ok_or_else(ApiError::internal)?;
        let (stop_reason, stop_sequence) = stop_of(&end);
        let response = MessagesResponse {
            content: content(piece),
            stop_reason: Some(stop_reason),
            stop_sequence,
            usage: usage(end.usage),
            ..head(id, model)
        };
        Ok(Reply::json(&response)?.by(by).prompt(prompt))
    }
}

pub(super) struct CountTokens;

impl Endpoint for CountTokens {
    const PATH: &'static str = "/v1/messages/count_tokens";
    const ERRORS: ErrorForm = ErrorForm::Anthropic;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let request: MessagesRequest = call.read()?;
        let model = model_of(server, &call.caller, request.model.as_deref())?;
        let input_tokens = server.backend.count(job_of(server, request, call, &model)?).await?;
        Reply::json(&CountResponse { input_tokens })
    }
}

fn refused((param, message): Refused) -> ApiError {
    ApiError::invalid(param.clone(), format!("`{param}`: {message}"))
}

fn job_of(server: &Shared, mut request: MessagesRequest, call: Call, model: &ModelInfo) -> Result<Job, ApiError> {
    if request.messages.is_empty() && request.prompt.is_none() {
        return Err(ApiError::invalid("messages", "`messages` is empty: give at least one"));
    }
    let mut messages = request.into_chat().map_err(refused)?;
    let prompt = with_prompt(server, &call.caller, request.prompt.take(), &mut messages)?;
    let tools = request.chat_tools().map_err(refused)?;
    let (choice, parallel) = request.chat_choice().map_err(refused)?;
    let (format, param) = match (request.output_config.and_then(|config| config.format), request.output_format) {
        (Some(format), _) => (Some(format), "output_config.format.schema"),
        (None, format) => (format, "output_format.schema"),
    };
    let form = match format {
        None => None,
        Some(OutputFormat::JsonSchema { schema }) => Some((Constraint::JsonSchema(schema), param)),
        Some(_) => return Err(ApiError::invalid(param, format!("`{param}` is of a type that is not known"))),
    };
    if form.is_some() && !tools.is_empty() && choice != ToolChoice::None {
        let message = "an answer in a given form cannot call `tools` as well: leave one of them out, or set `tool_choice` \
                       to {\"type\": \"none\"}";
        return Err(ApiError::invalid("tools", message));
    }
    let stops = request.stop_sequences.unwrap_or_default();
    if stops.len() > MAX_STOPS {
        let message = format!("`stop_sequences` has more than {MAX_STOPS} texts: give fewer");
        return Err(ApiError::invalid("stop_sequences", message));
    }
    // In Anthropic's interface, models do not think unless the request asks for it.
    let has_results = messages.iter().any(|message| message.role == Role::Tool);
    let thinks = request.thinking.is_some_and(|thinking| match thinking.kind {
        ThinkingKind::Disabled => false,
        ThinkingKind::BetweenTools => has_results,
        _ => true,
    });
    let mut template_vars = Map::new();
    template_vars.insert("enable_thinking".to_owned(), thinks.into());
    let mut sampling = Sampling::default();
    sampling.temperature = request.temperature;
    sampling.top_p = request.top_p;
    sampling.top_k = request.top_k;
    sampling.seed = request.seed;
    sampling.stop = (!stops.is_empty()).then_some(Stop(stops));
    Ok(Job {
        caller: call.caller,
        model: model.id.clone(),
        input: Input::Chat { messages, tools, choice, parallel, template_vars },
        seed: first_seed(&sampling),
        sampling,
        max_tokens: None,
        logprobs: None,
        form,
        prompt,
    })
}

fn head(id: String, model: ModelInfo) -> MessagesResponse {
    MessagesResponse {
        id,
        kind: "message",
        role: "assistant",
        model: model.id,
        content: Vec::new(),
        stop_reason: None,
        stop_sequence: None,
        stop_details: (),
        usage: MessagesUsage::default(),
        container: (),
    }
}

fn usage(used: Usage) -> MessagesUsage {
    MessagesUsage::new(used.prompt, used.cached, used.completion)
}

fn stop_of(end: &End) -> (&'static str, Option<String>) {
    match (end.finish, &end.stop) {
        (Finish::Stop, Some(stop)) => ("stop_sequence", Some(stop.clone())),
        (Finish::Stop, None) => ("end_turn", None),
        (Finish::Length, _) => ("max_tokens", None),
        (Finish::ToolCalls, _) => ("tool_use", None),
    }
}

fn content(piece: Piece) -> Vec<AnswerBlock> {
    let mut blocks = Vec::new();
    if !piece.reasoning.is_empty() {
        blocks.push(AnswerBlock::Thinking { thinking: piece.reasoning, signature: "" });
    }
    if !piece.text.is_empty() {
        blocks.push(AnswerBlock::Text { text: piece.text, citations: () });
    }
    blocks.extend(piece.calls.into_iter().map(|call| AnswerBlock::ToolUse {
        id: call.id.unwrap_or_default(),
        name: call.name.unwrap_or_default(),
        input: serde_json::from_str(&call.arguments).unwrap_or_else(|_| Value::Object(Map::new())),
        caller: CallBy::Direct,
    }));
    blocks
}

/// The content block that is being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Thinking,
    Text,
    Call(usize),
}

struct Events {
    id: String,
    model: ModelInfo,
    /// Tokens of the prompt; 0 if they are not known yet.
    prompt: usize,
    has_begun: bool,
    n_blocks: usize,
    open: Option<Open>,
    end: Option<End>,
}

fn event(value: &Value) -> String {
    let name = value["type"].as_str().unwrap_or_default();
    sse::event(name, value).unwrap_or_default()
}

impl Events {
    /// Sends `message_start`, if it was not sent yet.
    fn start(&mut self, out: &mut String) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        let usage = MessagesUsage::new(self.prompt, 0, 0);
        let message = MessagesResponse { usage, ..head(self.id.clone(), self.model.clone()) };
        *out += &event(&json!({ "type": "message_start", "message": message }));
    }

    fn close(&mut self, out: &mut String) {
        let Some(open) = self.open.take() else { return };
        let index = self.n_blocks - 1;
        if open == Open::Thinking {
            let delta = json!({ "type": "signature_delta", "signature": "" });
            *out += &event(&json!({ "type": "content_block_delta", "index": index, "delta": delta }));
        }
        *out += &event(&json!({ "type": "content_block_stop", "index": index }));
    }

    fn open(&mut self, which: Open, block: &AnswerBlock, out: &mut String) {
        if self.open == Some(which) {
            return;
        }
        self.close(out);
        *out += &event(&json!({ "type": "content_block_start", "index": self.n_blocks, "content_block": block }));
        self.n_blocks += 1;
        self.open = Some(which);
    }

    fn delta(&self, delta: &Value, out: &mut String) {
        *out += &event(&json!({ "type": "content_block_delta", "index": self.n_blocks - 1, "delta": delta }));
    }
}

impl Form for Events {
    fn begin(&mut self, _: usize, prompt: usize) -> Option<String> {
        self.prompt = prompt;
        let mut out = String::new();
        self.start(&mut out);
        Some(out)
    }

    fn piece(&mut self, _: usize, piece: Piece) -> Option<String> {
        let mut out = String::new();
        self.start(&mut out);
        if !piece.reasoning.is_empty() {
            self.open(Open::Thinking, &AnswerBlock::Thinking { thinking: String::new(), signature: "" }, &mut out);
            self.delta(&json!({ "type": "thinking_delta", "thinking": piece.reasoning }), &mut out);
        }
        if !piece.text.is_empty() {
            self.open(Open::Text, &AnswerBlock::Text { text: String::new(), citations: () }, &mut out);
            self.delta(&json!({ "type": "text_delta", "text": piece.text }), &mut out);
        }
        for call in piece.calls {
            let (id, name) = (call.id.unwrap_or_default(), call.name.unwrap_or_default());
            let input = Value::Object(Map::new());
            let block = AnswerBlock::ToolUse { id, name, input, caller: CallBy::Direct };
            self.open(Open::Call(call.index), &block, &mut out);
            if !call.arguments.is_empty() {
                self.delta(&json!({ "type": "input_json_delta", "partial_json": call.arguments }), &mut out);
            }
        }
        (!out.is_empty()).then_some(out)
    }

    fn end(&mut self, _: usize, end: End) -> String {
        let mut out = String::new();
        self.start(&mut out);
        self.close(&mut out);
        self.end = Some(end);
        out
    }

    fn last(&mut self, used: Usage) -> String {
        let (stop_reason, stop_sequence) = self.end.as_ref().map(stop_of).unzip();
        let delta = json!({
            "stop_reason": stop_reason, "stop_sequence": stop_sequence.flatten(), "stop_details": null, "container": null,
        });
        event(&json!({ "type": "message_delta", "delta": delta, "usage": usage(used) }))
            + &event(&json!({ "type": "message_stop" }))
    }

    fn error(&mut self, error: &ApiError) -> String {
        sse::event("error", &error.messages_body(None)).unwrap_or_default()
    }
}
