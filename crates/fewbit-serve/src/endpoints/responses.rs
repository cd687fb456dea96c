//! `POST /v1/responses`, and `GET` and `DELETE /v1/responses/ID` for stored answers.

use std::sync::Arc;

use axum::http::StatusCode;
use fewbit_api::chat::{ChatMessage, Content, Role, TokenLogprob, ToolCall, ToolChoice};
use fewbit_api::common::Sampling;
use fewbit_api::responses::{
    IncompleteDetails, OutputItem, OutputText, ReasoningText, Response, ResponseUsage, ResponsesRequest, TextFormat,
    chat_tools,
};
use fewbit_api::sse;
use serde_json::{Value, json};

use super::chat::{MAX_TOP_LOGPROBS, logprobs_form};
use super::{first_seed, form_of_extensions, model_of, now_s, with_prompt};
use crate::backend::{Caller, End, Finish, Form as Constraint, Input, Job, Piece, Usage};
use crate::error::ApiError;
use crate::kept::Answered;
use crate::line::{Call, Endpoint, Reply};
use crate::server::{Shared, random_id};
use crate::stream::{self, Form};

/// The only supported value of `include`.
const LOGPROBS: &str = "message.output_text.logprobs";

pub(super) struct Responses;

impl Endpoint for Responses {
    const PATH: &'static str = "/v1/responses";

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let request: ResponsesRequest = call.read()?;
        let sampling: Sampling = call.read()?;
        let is_streamed = request.stream.unwrap_or(false);
        let (job, answer) = prepare(server, request, sampling, &call.caller)?;
        let prompt = job.prompt.clone();
        if is_streamed {
            let events = Events { server: Arc::clone(server), answer, n: 0, parts: Vec::new(), end: None };
            return Ok(stream::reply(server, vec![job], 1, events).await?.prompt(prompt));
        }
        let answers = stream::begin(server, vec![job]).await?;
        let by = stream::answered_by(&answers);
        let (piece, end) = stream::whole(answers).await?.pop().ok_or_else(ApiError::internal)?;
        let parts = parts_of(piece);
        let response = answer.finish(server, &parts, &end);
        Ok(Reply::json(&response)?.by(by).prompt(prompt))
    }
}

pub(super) struct OneResponse;

impl Endpoint for OneResponse {
    const PATH: &'static str = "/v1/responses/{id}";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let id = id_of(&call);
        let answered = server.kept.get(id, call.caller.key.as_ref()).ok_or_else(|| unknown(id))?;
        Reply::json(&answered.response)
    }
}

pub(super) struct DeleteResponse;

impl Endpoint for DeleteResponse {
    const PATH: &'static str = "/v1/responses/{id} (delete)";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let id = id_of(&call);
        if !server.kept.delete(id, call.caller.key.as_ref()) {
            return Err(unknown(id));
        }
        Reply::json(&json!({ "id": id, "object": "response", "deleted": true }))
    }
}

fn id_of(call: &Call) -> &str {
    call.path.strip_prefix("/v1/responses/").unwrap_or_default()
}

fn unknown(id: &str) -> ApiError {
    let message = format!("there is no answer {id:?} here: it was not kept, or others needed its place");
    ApiError::new(StatusCode::NOT_FOUND, message)
}

/// What is known about an answer before it is generated.
struct Answer {
    caller: Caller,
    response: Response,
    /// The conversation without instructions.
    messages: Vec<Arc<ChatMessage>>,
}

fn prepare(
    server: &Shared,
    request: ResponsesRequest,
    sampling: Sampling,
    caller: &Caller,
) -> Result<(Job, Answer), ApiError> {
    let model = model_of(server, caller, request.model.as_deref())?;
    if request.background.unwrap_or(false) {
        return Err(ApiError::invalid("background", "`background`: answers are given at once here; leave it out"));
    }
    if request.conversation.is_some() {
        let message = "`conversation` is not known here: name the answer before in `previous_response_id`";
        return Err(ApiError::invalid("conversation", message));
    }
    let mut messages = match &request.previous_response_id {
        None => Vec::new(),
        Some(id) => match server.kept.get(id, caller.key.as_ref()) {
            Some(answered) => answered.messages,
            None => {
                let message = format!("there is no answer {id:?} here to go on from: send the whole conversation");
                return Err(ApiError::invalid("previous_response_id", message).code("previous_response_not_found"));
            }
        },
    };
    let mut new = Vec::new();
    let items = request.input.into_iter().flat_map(|input| input.0);
    items.for_each(|item| item.append_to(&mut new));
    messages.extend(new.into_iter().map(Arc::new));
    if messages.is_empty() && request.prompt.is_none() {
        return Err(ApiError::invalid("input", "`input` is empty: give a text or at least one item"));
    }
    let mut chat: Vec<ChatMessage> = Vec::with_capacity(messages.len() + 1);
    let prompt = with_prompt(server, caller, request.prompt, &mut chat)?;
    chat.splice(0..0, request.instructions.iter().map(|text| ChatMessage::new(Role::System, text)));
    chat.extend(messages.iter().map(|message| ChatMessage::clone(message)));

    let wants_logprobs = request.include.iter().flatten().any(|what| what == LOGPROBS);
    let logprobs = match request.top_logprobs {
        Some(n) if n > MAX_TOP_LOGPROBS => {
            let message = format!("`top_logprobs` can be {MAX_TOP_LOGPROBS} at most");
            return Err(ApiError::invalid("top_logprobs", message));
        }
        Some(n) if n > 0 || wants_logprobs => Some(n as usize),
        _ => wants_logprobs.then_some(0),
    };
    let format = request.text.and_then(|text| text.format);
    let (text_form, form) = match format {
        None | Some(TextFormat::Text) => (json!({ "type": "text" }), None),
        Some(TextFormat::JsonObject) => {
            (json!({ "type": "json_object" }), Some((Constraint::JsonObject, "text.format")))
        }
        Some(TextFormat::JsonSchema { schema }) => {
            let shown = json!({ "type": "json_schema", "name": "schema", "schema": schema, "strict": true });
            (shown, Some((Constraint::JsonSchema(schema), "text.format.schema")))
        }
        Some(_) => return Err(ApiError::invalid("text.format", "`text.format` is of a type that is not known")),
    };
    let form = match (form, form_of_extensions(&sampling)?) {
        (Some(_), Some((_, name))) => {
            return Err(ApiError::invalid(
                name,
                format!("`{name}` and `text.format` are given: leave one of them out"),
            ));
        }
        (format, extension) => format.or(extension),
    };
    let own_tools = request.tools.unwrap_or_default();
    let refused =
        |(param, message): (String, String)| ApiError::invalid(param.clone(), format!("`{param}`: {message}"));
    let tools = chat_tools(&own_tools).map_err(refused)?;
    let choice = request.tool_choice.unwrap_or(ToolChoice::Auto);
    if form.is_some() && !tools.is_empty() && choice != ToolChoice::None {
        let message = "an answer in a given form cannot call `tools` as well: leave one of them out, or set `tool_choice` \
                       to \"none\"";
        return Err(ApiError::invalid("tools", message));
    }
    let mut template_vars = request.chat_template_kwargs.unwrap_or_default();
    let effort = request.reasoning.and_then(|reasoning| reasoning.effort);
    if let Some(effort) = &effort {
        template_vars.entry("enable_thinking").or_insert_with(|| (effort != "none").into());
        template_vars.entry("reasoning_effort").or_insert_with(|| effort.as_str().into());
    }
    let parallel = request.parallel_tool_calls.unwrap_or(true);
    let response = Response {
        id: random_id("resp_"),
        object: "response",
        created_at: now_s(),
        status: "in_progress",
        error: None,
        incomplete_details: None,
        instructions: request.instructions,
        max_output_tokens: request.max_output_tokens,
        model: model.id.clone(),
        output: Vec::new(),
        parallel_tool_calls: parallel,
        previous_response_id: request.previous_response_id,
        reasoning: json!({ "effort": effort, "summary": null }),
        store: request.store.unwrap_or(true),
        temperature: sampling.temperature,
        text: json!({ "format": text_form }),
        tool_choice: match &choice {
            ToolChoice::None => json!("none"),
            ToolChoice::Required => json!("required"),
            ToolChoice::Named(name) => json!({ "type": "function", "name": name }),
            _ => json!("auto"),
        },
        tools: own_tools,
        top_p: sampling.top_p,
        truncation: "disabled",
        usage: None,
        metadata: request.metadata.unwrap_or_default(),
    };
    let job = Job {
        caller: caller.clone(),
        model: model.id,
        input: Input::Chat { messages: chat, tools, choice, parallel, template_vars },
        seed: first_seed(&sampling),
        sampling,
        max_tokens: request.max_output_tokens.map(|n| n as usize),
        logprobs,
        form,
        prompt,
    };
    Ok((job, Answer { caller: caller.clone(), response, messages }))
}

/// An item of an answer, as far as it is generated.
struct Part {
    id: String,
    what: What,
}

enum What {
    Thought(String),
    Text(String, Vec<TokenLogprob>),
    Call { index: usize, call_id: String, name: String, arguments: String },
}

impl Part {
    fn new(what: What) -> Self {
        let prefix = match what {
            What::Thought(_) => "rs_",
            What::Text(..) => "msg_",
            What::Call { .. } => "fc_",
        };
        Self { id: random_id(prefix), what }
    }

    fn item(&self, status: &'static str) -> OutputItem {
        let id = self.id.clone();
        match &self.what {
            What::Thought(text) => {
                let part = ReasoningText { kind: "reasoning_text".to_owned(), text: text.clone() };
                let content = if text.is_empty() { Vec::new() } else { vec![part] };
                OutputItem::Reasoning { id, summary: Vec::new(), content, status }
            }
            What::Text(text, logprobs) => {
                let is_new = status == "in_progress";
                let content = if is_new { Vec::new() } else { vec![OutputText::new(text.clone(), logprobs.clone())] };
                OutputItem::Message { id, role: "assistant", status, content }
            }
            What::Call { call_id, name, arguments, .. } => {
                let (call_id, name, arguments) = (call_id.clone(), name.clone(), arguments.clone());
                OutputItem::FunctionCall { id, call_id, name, arguments, status }
            }
        }
    }
}

fn parts_of(piece: Piece) -> Vec<Part> {
    let mut parts = Vec::new();
    if !piece.reasoning.is_empty() {
        parts.push(Part::new(What::Thought(piece.reasoning)));
    }
    if !piece.text.is_empty() || piece.calls.is_empty() {
        parts.push(Part::new(What::Text(piece.text, logprobs_form(&piece.tokens).content)));
    }
    parts.extend(piece.calls.into_iter().map(|call| {
        let (call_id, name) = (call.id.unwrap_or_default(), call.name.unwrap_or_default());
        Part::new(What::Call { index: call.index, call_id, name, arguments: call.arguments })
    }));
    parts
}

/// The status of an answer, and of its last item: `incomplete` if the token limit cut it off.
fn status_of(end: &End) -> &'static str {
    if end.finish == Finish::Length { "incomplete" } else { "completed" }
}

impl Answer {
    /// The complete answer. It is stored if the request asks for that.
    fn finish(mut self, server: &Shared, parts: &[Part], end: &End) -> Response {
        let status = status_of(end);
        let n = parts.len();
        self.response.status = status;
        if status == "incomplete" {
            self.response.incomplete_details = Some(IncompleteDetails { reason: "max_output_tokens" });
        }
        let items = parts.iter().enumerate();
        // Only the last item can be cut off.
        let item = |(i, part): (usize, &Part)| part.item(if i + 1 == n { status } else { "completed" });
        self.response.output = items.map(item).collect();
        let used = end.usage;
        self.response.usage = Some(ResponseUsage::new(used.prompt, used.cached, used.completion));
        if self.response.store {
            let mut message = ChatMessage::with_content(Role::Assistant, Content(None));
            for part in parts {
                match &part.what {
                    What::Thought(text) => message.reasoning_content = Some(text.clone()),
                    What::Text(text, _) => message.content = Content(Some(vec![text.clone()])),
                    What::Call { call_id, name, arguments, .. } => {
                        let call = ToolCall::new(call_id, name, arguments);
                        message.tool_calls.get_or_insert_default().push(call);
                    }
                }
            }
            self.messages.push(Arc::new(message));
            let response = serde_json::to_value(&self.response).unwrap_or_default();
            let answered = Answered { key: self.caller.key.clone(), messages: self.messages, response };
            server.kept.put(self.response.id.clone(), answered);
        }
        self.response
    }
}

struct Events {
    server: Arc<Shared>,
    answer: Answer,
    /// The sequence number of the next event.
    n: usize,
    /// The items so far; the last one may still grow.
    parts: Vec<Part>,
    end: Option<End>,
}

impl Events {
    fn event(&mut self, out: &mut String, name: &str, mut value: Value) {
        value["type"] = name.into();
        value["sequence_number"] = self.n.into();
        self.n += 1;
        *out += &sse::event(name, &value).unwrap_or_default();
    }

    fn open(&mut self, what: What, out: &mut String) {
        self.close("completed", out);
        let part = Part::new(what);
        let (index, id) = (self.parts.len(), part.id.clone());
        // The item begins empty; its content follows in deltas.
        let item = match &part.what {
            What::Call { index, call_id, name, .. } => {
                let what = What::Call {
                    index: *index,
                    call_id: call_id.clone(),
                    name: name.clone(),
                    arguments: String::new(),
                };
                Part { id: id.clone(), what }.item("in_progress")
            }
            _ => part.item("in_progress"),
        };
        let at = match part.what {
            What::Text(..) => Some(json!(OutputText::new(String::new(), Vec::new()))),
            What::Thought(_) => Some(json!({ "type": "reasoning_text", "text": "" })),
            What::Call { .. } => None,
        };
        self.parts.push(part);
        self.event(out, "response.output_item.added", json!({ "output_index": index, "item": item }));
        if let Some(part) = at {
            let value = json!({ "item_id": id, "output_index": index, "content_index": 0, "part": part });
            self.event(out, "response.content_part.added", value);
        }
    }

    fn close(&mut self, status: &'static str, out: &mut String) {
        // Closes the last item, which is the only open one. The caller opens another one after this, or ends the
        // answer.
        let Some(part) = self.parts.last() else { return };
        let (index, id, item) = (self.parts.len() - 1, part.id.clone(), part.item(status));
        let at = json!({ "item_id": id, "output_index": index });
        let with = |more: Value| {
            let mut value = at.clone();
            for (name, more) in more.as_object().into_iter().flatten() {
                value[name] = more.clone();
            }
            value
        };
        match &part.what {
            What::Thought(text) => {
                let part = json!({ "type": "reasoning_text", "text": text });
                let done = with(json!({ "content_index": 0, "text": text }));
                let closed = with(json!({ "content_index": 0, "part": part }));
                self.event(out, "response.reasoning_text.done", done);
                self.event(out, "response.content_part.done", closed);
            }
            What::Text(text, logprobs) => {
                let part = OutputText::new(text.clone(), logprobs.clone());
                let done = with(json!({ "content_index": 0, "text": text, "logprobs": logprobs }));
                let closed = with(json!({ "content_index": 0, "part": part }));
                self.event(out, "response.output_text.done", done);
                self.event(out, "response.content_part.done", closed);
            }
            What::Call { name, arguments, .. } => {
                let done = with(json!({ "name": name, "arguments": arguments }));
                self.event(out, "response.function_call_arguments.done", done);
            }
        }
        self.event(out, "response.output_item.done", json!({ "output_index": index, "item": item }));
    }

    fn delta(&mut self, name: &str, delta: &str, logprobs: Option<Vec<TokenLogprob>>, out: &mut String) {
        let Some(part) = self.parts.last() else { return };
        let mut value = json!({ "item_id": part.id, "output_index": self.parts.len() - 1, "delta": delta });
        if !matches!(part.what, What::Call { .. }) {
            value["content_index"] = 0.into();
        }
        if let Some(logprobs) = logprobs {
            value["logprobs"] = json!(logprobs);
        }
        self.event(out, name, value);
    }
}

impl Form for Events {
    fn first(&mut self, _: usize) -> Option<String> {
        let mut out = String::new();
        let response = json!(self.answer.response);
        self.event(&mut out, "response.created", json!({ "response": response }));
        self.event(&mut out, "response.in_progress", json!({ "response": response }));
        Some(out)
    }

    fn piece(&mut self, _: usize, piece: Piece) -> Option<String> {
        let mut out = String::new();
        if !piece.reasoning.is_empty() {
            if !matches!(self.parts.last(), Some(Part { what: What::Thought(_), .. })) {
                self.open(What::Thought(String::new()), &mut out);
            }
            if let Some(Part { what: What::Thought(text), .. }) = self.parts.last_mut() {
                *text += &piece.reasoning;
            }
            self.delta("response.reasoning_text.delta", &piece.reasoning, None, &mut out);
        }
        if !piece.text.is_empty() {
            if !matches!(self.parts.last(), Some(Part { what: What::Text(..), .. })) {
                self.open(What::Text(String::new(), Vec::new()), &mut out);
            }
            let new = logprobs_form(&piece.tokens).content;
            if let Some(Part { what: What::Text(text, logprobs), .. }) = self.parts.last_mut() {
                *text += &piece.text;
                logprobs.extend_from_slice(&new);
            }
            self.delta("response.output_text.delta", &piece.text, Some(new), &mut out);
        }
        for call in piece.calls {
            let is_open =
                matches!(&self.parts.last(), Some(Part { what: What::Call { index, .. }, .. }) if *index == call.index);
            if !is_open {
                let (call_id, name) = (call.id.unwrap_or_default(), call.name.unwrap_or_default());
                self.open(What::Call { index: call.index, call_id, name, arguments: String::new() }, &mut out);
            }
            if let Some(Part { what: What::Call { arguments, .. }, .. }) = self.parts.last_mut() {
                *arguments += &call.arguments;
            }
            if !call.arguments.is_empty() {
                self.delta("response.function_call_arguments.delta", &call.arguments, None, &mut out);
            }
        }
        (!out.is_empty()).then_some(out)
    }

    fn end(&mut self, _: usize, end: End) -> String {
        let mut out = String::new();
        if self.parts.is_empty() {
            self.open(What::Text(String::new(), Vec::new()), &mut out);
        }
        self.close(status_of(&end), &mut out);
        self.end = Some(end);
        out
    }

    fn last(&mut self, _: Usage) -> String {
        let mut out = String::new();
        let Some(end) = self.end.take() else { return out };
        let Answer { caller, response, messages } = &self.answer;
        let answer = Answer { caller: caller.clone(), response: response.clone(), messages: messages.clone() };
        let response = answer.finish(&self.server, &self.parts, &end);
        let name = if response.status == "completed" { "response.completed" } else { "response.incomplete" };
        self.event(&mut out, name, json!({ "response": response }));
        out
    }

    fn error(&mut self, error: &ApiError) -> String {
        let mut out = String::new();
        let object = error.body().error;
        let value =
            json!({ "code": object.code.unwrap_or(object.kind), "message": object.message, "param": object.param });
        self.event(&mut out, "error", value);
        out
    }
}
