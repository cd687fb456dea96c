//! The loop of an answer with tools: the model answers, its calls are run, it gets their results, and so on, until it
//! calls nothing more.
//!
//! Each round is a request of its own to the guarded backend, so limits, prices and the log apply to each. The client gets
//! one answer: the text of all rounds as it comes, and the sum of their tokens. Calls of the gateway's tools are not part of
//! it; calls of the client's own tools are, and end it. If an answer has both, only the client's own are left: the model
//! can call the others again.

use std::sync::Arc;
use std::time::Instant;

use fewbit_serve::api::chat::{ChatMessage, Content, Role, ToolCall, ToolChoice};
use fewbit_serve::api::common::Prompt;
use fewbit_serve::{
    Backend, BackendError, BackendErrorKind, Boxed, CallDelta, Caller, Embedded, End, Event, Finish, Generating, Input,
    Job, Models, Piece, Reranked, Usage,
};
use futures_util::StreamExt;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::approvals::Decision;
use super::{Tool, Tools};
use crate::audit::{Entry, Outcome, Permission, ToolStep, ToolUse};
use crate::gateway::Guarded;
use crate::keys::Key;
use crate::{hex, now_ms};

/// A guarded backend that runs tools. It is created with [`Gateway::backend_with`](crate::Gateway::backend_with).
#[derive(Debug)]
pub struct WithTools<B> {
    inner: Guarded<B>,
    tools: Arc<Tools>,
}

impl<B: Backend> WithTools<B> {
    pub(crate) fn new(inner: Guarded<B>, tools: Arc<Tools>) -> Self {
        Self { inner, tools }
    }

    /// Adds the tools of the gateway to a job. Returns those that were added.
    async fn offer(&self, job: &mut Job) -> Result<Vec<Tool>, BackendError> {
        let Input::Chat { tools, choice, parallel, .. } = &mut job.input else { return Ok(Vec::new()) };
        for (i, tool) in tools.iter().enumerate() {
            let name = tool.pointer("/function/name").and_then(Value::as_str).unwrap_or_default();
            if self.tools.is_reserved(name) {
                let message = format!("the tool {name:?} has the name of one of this server's own: rename it");
                return Err(BackendError::invalid(format!("tools[{i}]"), message));
            }
        }
        if job.form.is_some() || *choice == ToolChoice::None {
            return Ok(Vec::new());
        }
        // An unknown key is refused by the backend.
        let Ok(key) = self.inner.key(&job.caller) else { return Ok(Vec::new()) };
        let ours = self.tools.of(&key).await;
        let is_ours = |name: &str| ours.iter().any(|tool| tool.full_name == name);
        if matches!(choice, ToolChoice::Named(name) if !is_ours(name)) {
            return Ok(Vec::new());
        }
        // With tools of both sides, an answer with several calls could not be continued by either.
        *parallel &= tools.is_empty() || ours.is_empty();
        tools.extend(ours.iter().map(Tool::offer));
        Ok(ours)
    }
}

impl<B: Backend> Backend for WithTools<B> {
    fn models(&self) -> &dyn Models {
        self.inner.models()
    }

    fn generate(&self, mut job: Job) -> Boxed<'_, Result<Generating, BackendError>> {
        Box::pin(async move {
            let ours = self.offer(&mut job).await?;
            if ours.is_empty() {
                return self.inner.generate(job).await;
            }
            let answer = self.inner.generate(job.clone()).await?;
            let by = answer.answered_by().cloned();
            let agent = Agent {
                inner: self.inner.clone(),
                tools: Arc::clone(&self.tools),
                ours,
                job,
                answer,
                n_rounds: 0,
                round: Round::default(),
                has_begun: false,
                has_said: false,
                n_theirs: 0,
                used: Usage::default(),
                is_over: false,
            };
            let events = futures_util::stream::unfold(agent, |mut agent| async move {
                let event = agent.next().await?;
                Some((event, agent))
            });
            Ok(Generating::new(events).by(by))
        })
    }

    fn count(&self, mut job: Job) -> Boxed<'_, Result<usize, BackendError>> {
        Box::pin(async move {
            self.offer(&mut job).await?;
            self.inner.count(job).await
        })
    }

    fn embed(&self, caller: &Caller, model: &str, texts: Vec<Prompt>) -> Boxed<'_, Result<Embedded, BackendError>> {
        self.inner.embed(caller, model, texts)
    }

    fn rerank(
        &self,
        caller: &Caller,
        model: &str,
        query: String,
        documents: Vec<String>,
    ) -> Boxed<'_, Result<Reranked, BackendError>> {
        self.inner.rerank(caller, model, query, documents)
    }
}

/// An answer in progress.
struct Agent<B> {
    inner: Guarded<B>,
    tools: Arc<Tools>,
    /// The tools of the gateway that the job offers.
    ours: Vec<Tool>,
    job: Job,
    answer: Generating,
    n_rounds: u32,
    round: Round,
    has_begun: bool,
    /// Whether an earlier round had text.
    has_said: bool,
    /// How many calls of the client's own tools there were.
    n_theirs: usize,
    used: Usage,
    is_over: bool,
}

/// What the model said in this round.
#[derive(Default)]
struct Round {
    text: String,
    reasoning: String,
    calls: Vec<Call>,
}

#[derive(Clone)]
struct Call {
    /// Its index in the model's answer.
    index: usize,
    id: String,
    name: String,
    arguments: String,
    /// Its index in the client's answer; `None` for a call of the gateway's tools.
    theirs: Option<usize>,
}

impl<B: Backend> Agent<B> {
    async fn next(&mut self) -> Option<Result<Event, BackendError>> {
        while !self.is_over {
            match self.answer.next().await {
                Some(Ok(Event::Begin { prompt })) => {
                    if !std::mem::replace(&mut self.has_begun, true) {
                        return Some(Ok(Event::Begin { prompt }));
                    }
                }
                Some(Ok(Event::Piece(piece))) => {
                    let piece = self.pass(piece);
                    if !piece.is_empty() {
                        return Some(Ok(Event::Piece(piece)));
                    }
                }
                Some(Ok(Event::End(end))) => match self.end(end).await {
                    Ok(None) => {}
                    Ok(Some(end)) => {
                        self.is_over = true;
                        return Some(Ok(Event::End(end)));
                    }
                    Err(error) => {
                        self.is_over = true;
                        return Some(Err(error));
                    }
                },
                Some(Err(error)) => {
                    self.is_over = true;
                    return Some(Err(error));
                }
                None => self.is_over = true,
            }
        }
        None
    }

    /// Takes note of a piece, and takes the calls of the gateway's tools out of it.
    fn pass(&mut self, mut piece: Piece) -> Piece {
        self.round.reasoning += &piece.reasoning;
        self.round.text += &piece.text;
        if self.has_said && !piece.text.is_empty() && self.round.text.len() == piece.text.len() {
            piece.text.insert_str(0, "\n\n");
        }
        let mut theirs = Vec::new();
        let round = &mut self.round;
        piece.void.retain_mut(|void| {
            let Some(place) = round.calls.iter().position(|call| call.index == void.index) else { return false };
            match round.calls.remove(place).theirs {
                Some(index) => {
                    void.index = index;
                    self.n_theirs = index;
                    true
                }
                None => false,
            }
        });
        for delta in std::mem::take(&mut piece.calls) {
            let known = round.calls.iter_mut().find(|call| call.index == delta.index);
            let call = match (known, &delta.name) {
                (Some(call), _) => call,
                (None, None) => continue,
                (None, Some(name)) => {
                    let is_ours = self.tools.is_reserved(name);
                    let index = (!is_ours).then_some(self.n_theirs);
                    self.n_theirs += usize::from(!is_ours);
                    let id = delta.id.clone().unwrap_or_default();
                    let (name, arguments) = (name.clone(), String::new());
                    round.calls.push(Call { index: delta.index, id, name, arguments, theirs: index });
                    let Some(call) = round.calls.last_mut() else { continue };
                    call
                }
            };
            call.arguments += &delta.arguments;
            if let Some(index) = call.theirs {
                theirs.push(CallDelta { index, ..delta });
            }
        }
        piece.calls = theirs;
        piece
    }

    /// The end of a round. Returns the end of the answer, or `None` if another round has begun.
    async fn end(&mut self, end: End) -> Result<Option<End>, BackendError> {
        let used = end.usage;
        self.used.prompt += used.prompt;
        self.used.cached += used.cached;
        self.used.completion += used.completion;
        self.used.is_estimated |= used.is_estimated;
        let round = std::mem::take(&mut self.round);
        let has_theirs = round.calls.iter().any(|call| call.theirs.is_some());
        let (mut finish, is_cut) = (end.finish, end.finish == Finish::Length);
        if round.calls.is_empty() || has_theirs || is_cut {
            return Ok(Some(End { usage: self.used, finish, ..end }));
        }
        // What is left of the client's limit.
        if let Some(left) = &mut self.job.max_tokens {
            *left = left.saturating_sub(used.completion);
            if *left == 0 {
                finish = Finish::Length;
            }
        }
        if finish == Finish::Length || self.n_rounds >= self.tools.bounds.rounds {
            return Ok(Some(End { usage: self.used, finish: Finish::Length, ..end }));
        }
        self.n_rounds += 1;
        self.has_said |= !round.text.is_empty();
        let results = self.run_all(&round.calls).await?;
        self.continue_with(round, results);
        let (inner, job) = (self.inner.clone(), self.job.clone());
        self.answer = inner.generate(job).await?;
        Ok(None)
    }

    /// Adds the model's calls and their results to the conversation.
    fn continue_with(&mut self, round: Round, results: Vec<String>) {
        let is_last = self.n_rounds >= self.tools.bounds.rounds;
        let Input::Chat { messages, choice, .. } = &mut self.job.input else { return };
        // What was demanded has been done. In the end, the model must answer without a call.
        *choice = if is_last { ToolChoice::None } else { ToolChoice::Auto };
        let text = (!round.text.is_empty()).then(|| vec![round.text]);
        let mut said = ChatMessage::with_content(Role::Assistant, Content(text));
        said.reasoning_content = (!round.reasoning.is_empty()).then_some(round.reasoning);
        let ids: Vec<String> = round.calls.iter().enumerate().map(|(i, call)| id_of(call, i)).collect();
        let calls = round.calls.into_iter().zip(&ids);
        said.tool_calls = Some(calls.map(|(call, id)| ToolCall::new(id, call.name, call.arguments)).collect());
        messages.push(said);
        messages.extend(ids.into_iter().zip(results).map(|(id, result)| {
            let mut message = ChatMessage::new(Role::Tool, result);
            message.tool_call_id = Some(id);
            message
        }));
    }

    /// Runs calls at the same time. Returns what the model is told about each.
    fn run_all(&self, calls: &[Call]) -> impl Future<Output = Result<Vec<String>, BackendError>> + Send + use<B> {
        // The future owns all that it needs, because an answer in progress can be sent between threads, but not shared.
        let runs = calls.iter().map(|call| {
            let run = Run {
                inner: self.inner.clone(),
                tools: Arc::clone(&self.tools),
                tool: self.ours.iter().find(|tool| tool.full_name == call.name).cloned(),
                caller: self.job.caller.clone(),
                model: self.job.model.clone(),
                call: call.clone(),
            };
            run.run()
        });
        futures_util::future::try_join_all(runs.collect::<Vec<_>>())
    }
}

fn id_of(call: &Call, i: usize) -> String {
    if call.id.is_empty() { format!("call_{i}") } else { call.id.clone() }
}

/// One call.
struct Run<B> {
    inner: Guarded<B>,
    tools: Arc<Tools>,
    /// `None` if the model called a tool that it was not offered.
    tool: Option<Tool>,
    caller: Caller,
    model: String,
    call: Call,
}

impl<B: Backend> Run<B> {
    async fn run(self) -> Result<String, BackendError> {
        // The key may have been revoked or changed in the meantime.
        let key: Key = self.inner.key(&self.caller)?;
        let (Some(tool), true) = (&self.tool, key.may_run(&self.call.name)) else {
            self.log(ToolStep::Call, Permission::Denied, None, &self.call.arguments, Outcome::Refused, Instant::now())?;
            return Ok("Error: there is no such tool.".to_owned());
        };
        let arguments = if self.call.arguments.trim().is_empty() { "{}" } else { &self.call.arguments };
        let Ok(arguments) = serde_json::from_str::<Map<String, Value>>(arguments) else {
            self.log(ToolStep::Call, Permission::Denied, None, &self.call.arguments, Outcome::Refused, Instant::now())?;
            return Ok("Error: the arguments are not a JSON object.".to_owned());
        };
        let start = Instant::now();
        let Decision { permission, by } = if tool.needs_approval {
            let timeout = self.tools.bounds.approval_timeout;
            self.tools.approvals.ask(&self.caller, &self.model, &tool.full_name, &arguments, timeout).await
        } else {
            Decision { permission: Permission::NotNeeded, by: None }
        };
        let may_run = matches!(permission, Permission::NotNeeded | Permission::Approved);
        let outcome = if may_run { Outcome::Complete } else { Outcome::Refused };
        // Nothing is run that is not in the log.
        self.log(ToolStep::Call, permission, by, &self.call.arguments, outcome, start)?;
        if !may_run {
            return Ok("Error: the call was not approved by a person, and was not run.".to_owned());
        }
        let start = Instant::now();
        let (mut text, outcome) = match self.tools.run(&tool.full_name, arguments).await {
            Ok(result) if result.is_error => (format!("Error: {}", result.text), Outcome::Failed),
            Ok(result) => (result.text, Outcome::Complete),
            Err(error) => {
                tracing::warn!(tool = tool.full_name, error = &error as &dyn std::error::Error, "a call failed");
                (format!("Error: {error}."), Outcome::Failed)
            }
        };
        self.log(ToolStep::Result, permission, None, &text, outcome, start)?;
        let limit = self.tools.bounds.result_bytes;
        if text.len() > limit {
            text.truncate(text.floor_char_boundary(limit));
            text += "\n[The rest of the result is left out, because it is too long.]";
        }
        Ok(text)
    }

    /// Writes a line of the log.
    fn log(
        &self,
        step: ToolStep,
        permission: Permission,
        by: Option<String>,
        text: &str,
        outcome: Outcome,
        start: Instant,
    ) -> Result<(), BackendError> {
        let sha256 = hex(&Sha256::digest(text));
        let tool = ToolUse { name: self.call.name.clone(), step, permission, by, sha256, bytes: text.len() as u64 };
        let entry = Entry {
            request: self.caller.request.to_string(),
            key: self.caller.key.as_deref().map(str::to_owned),
            endpoint: self.caller.endpoint.to_owned(),
            feature: self.caller.feature.as_deref().map(str::to_owned),
            model: self.model.clone(),
            elapsed_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            tool: Some(tool),
            ..Entry::empty(now_ms(), outcome)
        };
        if self.inner.write(entry) {
            return Ok(());
        }
        Err(BackendError::new(BackendErrorKind::Unavailable, "the server cannot write its log"))
    }
}
