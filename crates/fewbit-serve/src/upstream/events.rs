//! Reads an upstream's answer line by line into [`Event`]s. Every size is limited and every field is checked.

use std::collections::VecDeque;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::failed;
use crate::backend::{
    Alternative, BYTES_PER_TOKEN, BackendError, CallDelta, Embedded, End, Event, Finish, Piece, Token, Usage,
};

/// The size limit of a line, in bytes.
const MAX_LINE: usize = 4 << 20;
/// The most calls of one answer.
const MAX_CALLS: usize = 128;

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<WireUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    index: Option<usize>,
    #[serde(alias = "message")]
    delta: Option<Delta>,
    text: Option<String>,
    logprobs: Option<WireLogprobs>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<WireCall>>,
}

#[derive(Deserialize)]
struct WireCall {
    index: Option<usize>,
    id: Option<String>,
    function: Option<WireFunction>,
}

#[derive(Deserialize)]
struct WireFunction {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct WireUsage {
    prompt_tokens: usize,
    completion_tokens: Option<usize>,
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<usize>,
}

/// Chats have `content`; completions have the other fields.
#[derive(Deserialize)]
struct WireLogprobs {
    content: Option<Vec<WireToken>>,
    tokens: Option<Vec<String>>,
    token_logprobs: Option<Vec<Option<f32>>>,
    top_logprobs: Option<Vec<Option<Map<String, Value>>>>,
}

#[derive(Deserialize)]
struct WireToken {
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
    #[serde(default)]
    top_logprobs: Vec<WireToken>,
}

/// An answer that is being received.
pub(super) struct Events {
    body: Option<Incoming>,
    timeout: Duration,
    /// The bytes of an incomplete line.
    line: Vec<u8>,
    ready: VecDeque<Event>,
    has_begun: bool,
    n_pieces: usize,
    n_calls: usize,
    /// Bytes of text, reasoning and calls.
    n_bytes: usize,
    finish: Option<Finish>,
    usage: Option<Usage>,
    /// Estimated tokens of the prompt, used if the upstream reports no usage.
    estimated_prompt: usize,
    is_done: bool,
}

impl Events {
    pub(super) fn streamed(body: Incoming, timeout: Duration, estimated_prompt: usize) -> Self {
        Self::new(Some(body), timeout, estimated_prompt)
    }

    /// Reads the complete answer of a server that does not stream.
    pub(super) fn whole(bytes: &[u8], estimated_prompt: usize) -> Result<Self, BackendError> {
        let mut events = Self::new(None, Duration::ZERO, estimated_prompt);
        events.chunk(bytes)?;
        Ok(events)
    }

    fn new(body: Option<Incoming>, timeout: Duration, estimated_prompt: usize) -> Self {
        Self {
            body,
            timeout,
            line: Vec::new(),
            ready: VecDeque::new(),
            has_begun: false,
            n_pieces: 0,
            n_calls: 0,
            n_bytes: 0,
            finish: None,
            usage: None,
            estimated_prompt,
            is_done: false,
        }
    }

    /// Waits for the first line: a chunk, or a comment that keeps the connection alive.
    pub(super) async fn begin(&mut self) -> Result<(), BackendError> {
        while !self.has_begun && !self.is_done && self.body.is_some() {
            self.read().await?;
        }
        if self.body.is_none() && self.finish.is_none() && self.ready.is_empty() { Err(broken_off()) } else { Ok(()) }
    }

    /// The next event; `None` after the end or an error.
    pub(super) async fn next(&mut self) -> Option<Result<Event, BackendError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.is_done {
                return None;
            }
            if self.body.is_none() {
                self.is_done = true;
                let Some(finish) = self.finish else { return Some(Err(broken_off())) };
                let usage = self.usage.unwrap_or_else(|| self.estimated_usage());
                return Some(Ok(Event::End(End { finish, stop: None, usage })));
            }
            if let Err(error) = self.read().await {
                self.is_done = true;
                return Some(Err(error));
            }
        }
    }

    /// Estimates the usage. Each piece of a stream has at least one token.
    fn estimated_usage(&self) -> Usage {
        let completion = self.n_bytes.div_ceil(BYTES_PER_TOKEN).max(self.n_pieces);
        Usage { prompt: self.estimated_prompt, cached: 0, completion, is_estimated: true }
    }

    /// Reads a piece of the body.
    async fn read(&mut self) -> Result<(), BackendError> {
        let Some(body) = &mut self.body else { return Ok(()) };
        let timeout = self.timeout;
        let silent = |_| failed(format_args!("said nothing for {timeout:?}"));
        let Some(frame) = tokio::time::timeout(timeout, body.frame()).await.map_err(silent)? else {
            self.body = None;
            return Ok(());
        };
        let Ok(data) = frame.map_err(|_| broken_off())?.into_data() else { return Ok(()) };
        for part in data.split_inclusive(|&byte| byte == b'\n') {
            if self.line.len() + part.len() > MAX_LINE {
                return Err(failed("sent a line of more than 4 MiB"));
            }
            self.line.extend_from_slice(part);
            if self.line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.line(line.trim_ascii_end())?;
            }
            if self.body.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), BackendError> {
        self.has_begun |= !line.is_empty();
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(()) };
        let data = data.trim_ascii_start();
        if data == b"[DONE]" {
            self.body = None;
            return Ok(());
        }
        self.chunk(data)
    }

    fn chunk(&mut self, data: &[u8]) -> Result<(), BackendError> {
        let wrong = |_| failed("sent what is no chunk of OpenAI's form");
        let chunk: Chunk = serde_json::from_slice(data).map_err(wrong)?;
        if chunk.error.is_some_and(|error| !error.is_null()) {
            return Err(failed("failed in the middle of its answer"));
        }
        if let Some(usage) = chunk.usage {
            let cached = usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
            let prompt = usage.prompt_tokens;
            let completion = usage.completion_tokens.unwrap_or(0);
            self.usage = Some(Usage { prompt, cached: cached.min(prompt), completion, is_estimated: false });
        }
        for choice in chunk.choices.unwrap_or_default() {
            if choice.index.unwrap_or(0) != 0 {
                return Err(failed("sent a part of an answer that was not asked for"));
            }
            self.choice(choice)?;
        }
        Ok(())
    }

    fn choice(&mut self, choice: Choice) -> Result<(), BackendError> {
        let mut piece = Piece { text: choice.text.unwrap_or_default(), ..Piece::default() };
        if let Some(delta) = choice.delta {
            piece.text += &delta.content.unwrap_or_default();
            piece.reasoning = delta.reasoning_content.unwrap_or_default();
            for (i, call) in delta.tool_calls.unwrap_or_default().into_iter().enumerate() {
                piece.calls.push(self.call(i, call)?);
            }
        }
        piece.tokens = choice.logprobs.map(tokens).unwrap_or_default();
        if !piece.is_empty() {
            if self.finish.is_some() {
                return Err(failed("went on after the end of its answer"));
            }
            self.n_pieces += 1;
            let of_calls =
                piece.calls.iter().map(|call| call.name.as_ref().map_or(0, String::len) + call.arguments.len());
            self.n_bytes += piece.text.len() + piece.reasoning.len() + of_calls.sum::<usize>();
            self.ready.push_back(Event::Piece(piece));
        }
        if let Some(reason) = choice.finish_reason {
            self.finish = Some(match reason.as_str() {
                "length" => Finish::Length,
                _ if self.n_calls > 0 => Finish::ToolCalls,
                "stop" | "content_filter" => Finish::Stop,
                _ => return Err(failed("ended its answer for a reason that is not OpenAI's")),
            });
        }
        Ok(())
    }

    fn call(&mut self, place: usize, call: WireCall) -> Result<CallDelta, BackendError> {
        let index = call.index.unwrap_or(place);
        let function = call.function.unwrap_or(WireFunction { name: None, arguments: None });
        let (mut id, mut name) = (None, None);
        if index == self.n_calls && index < MAX_CALLS {
            let given = function.name.filter(|name| !name.is_empty());
            name = Some(given.ok_or_else(|| failed("sent a call without a name"))?);
            id = Some(call.id.unwrap_or_else(|| crate::server::random_id("call_")));
            self.n_calls += 1;
        } else if index >= self.n_calls {
            return Err(failed("sent parts of calls that have not begun"));
        }
        Ok(CallDelta { index, id, name, arguments: function.arguments.unwrap_or_default() })
    }
}

pub(super) fn broken_off() -> BackendError {
    failed("broke its answer off")
}

fn tokens(wire: WireLogprobs) -> Vec<Token> {
    let bytes = |bytes: Option<Vec<u8>>, text: &str| bytes.unwrap_or_else(|| text.as_bytes().to_vec());
    if let Some(content) = wire.content {
        let alternative =
            |of: WireToken| Alternative { bytes: bytes(of.bytes, &of.token), text: of.token, logprob: of.logprob };
        let token = |of: WireToken| Token {
            bytes: bytes(of.bytes, &of.token),
            text: of.token,
            logprob: Some(of.logprob),
            top: of.top_logprobs.into_iter().map(alternative).collect(),
        };
        return content.into_iter().map(token).collect();
    }
    let logprobs = wire.token_logprobs.unwrap_or_default();
    let top = wire.top_logprobs.unwrap_or_default();
    let token = |(i, text): (usize, String)| {
        let alternatives = top.get(i).into_iter().flatten().flatten();
        let alternative = |(text, logprob): (&String, &Value)| Alternative {
            text: text.clone(),
            bytes: text.as_bytes().to_vec(),
            logprob: logprob.as_f64().unwrap_or(f64::NEG_INFINITY) as f32,
        };
        Token {
            bytes: text.as_bytes().to_vec(),
            text,
            logprob: logprobs.get(i).copied().flatten(),
            top: alternatives.map(alternative).collect(),
        }
    };
    wire.tokens.unwrap_or_default().into_iter().enumerate().map(token).collect()
}

#[derive(Deserialize)]
struct Vectors {
    data: Vec<WireVector>,
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct WireVector {
    index: Option<usize>,
    embedding: Vec<f32>,
}

/// Reads the vectors of `n` texts, in their order. `estimated_prompt` is used if the upstream reports no usage.
pub(super) fn embedded(bytes: &[u8], n: usize, estimated_prompt: usize) -> Result<Embedded, BackendError> {
    let wrong = |_| failed("sent what are no vectors of OpenAI's form");
    let all: Vectors = serde_json::from_slice(bytes).map_err(wrong)?;
    let mut vectors = vec![Vec::new(); n];
    let n_sent = all.data.len();
    for (place, vector) in all.data.into_iter().enumerate() {
        let place = vectors.get_mut(vector.index.unwrap_or(place)).filter(|place| place.is_empty());
        *place.ok_or_else(|| failed("sent vectors of other texts"))? = vector.embedding;
    }
    if n_sent != n || vectors.iter().any(|vector| vector.is_empty() || vector.len() != vectors[0].len()) {
        return Err(failed("sent other vectors than were asked for"));
    }
    let is_estimated = all.usage.is_none();
    let prompt_tokens = all.usage.map_or(estimated_prompt, |usage| usage.prompt_tokens);
    Ok(Embedded { is_estimated, ..Embedded::new(vectors, prompt_tokens) })
}
