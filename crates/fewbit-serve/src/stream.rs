//! Merges the answers of a request into one stream of events, or collects them completely.
//!
//! A [`Form`] defines what the chunks of an endpoint look like. Their order is the same for all endpoints:
//!
//! ```text
//! first chunk of each answer, pieces as they come, its last chunk | the end of the stream
//! ```
//!
//! A failure during the stream is sent as an error event, which is the last one.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::StatusCode;
use fewbit_api::sse;
use futures_core::Stream;
use futures_util::stream::{SelectAll, select_all, unfold};
use futures_util::{FutureExt, StreamExt, TryStreamExt, future};
use tokio::time::{Instant, Sleep, sleep};

use crate::backend::{AnsweredBy, BackendError, CallDelta, End, Event, Generating, Job, Piece, Usage};
use crate::error::ApiError;
use crate::line::Reply;
use crate::server::Shared;

/// What the chunks of an endpoint look like.
pub(crate) trait Form: Send + 'static {
    /// The first chunk of an answer.
    fn first(&mut self, _index: usize) -> Option<String> {
        None
    }
    /// The chunk for an answer that has begun, whose prompt has this many tokens.
    fn begin(&mut self, _index: usize, _prompt: usize) -> Option<String> {
        None
    }
    /// The chunk for a piece; `None` if the interface has no place for it.
    fn piece(&mut self, index: usize, piece: Piece) -> Option<String>;
    /// The last chunk of an answer.
    fn end(&mut self, index: usize, end: End) -> String;
    /// The end of the stream, after all answers.
    fn last(&mut self, usage: Usage) -> String;
    /// The end of the stream in case of an error.
    fn error(&mut self, error: &ApiError) -> String {
        sse::data(&error.body()).unwrap_or_default()
    }
}

/// Begins all answers of a request, or fails if one of them cannot begin. From here on the request can be cancelled.
pub(crate) async fn begin(server: &Shared, jobs: Vec<Job>) -> Result<Vec<Generating>, BackendError> {
    let Some(Job { caller, model, .. }) = jobs.first() else { return Ok(Vec::new()) };
    let request = server.live.begin(caller.clone(), model.clone(), jobs.len());
    let answers = future::try_join_all(jobs.into_iter().map(|job| server.backend.generate(job)));
    let answers = request.unless_cancelled(answers).await?;
    Ok(answers.into_iter().map(|answer| request.watch(answer)).collect())
}

/// Begins all answers and streams them.
///
/// If they take long to begin, such as when a model must be loaded first, the stream is opened before, so that its
/// keep-alives tell the client to wait; then a failure to begin is an event of the stream as well.
pub(crate) async fn reply(
    server: &Arc<Shared>,
    jobs: Vec<Job>,
    n_per_prompt: usize,
    mut form: impl Form,
) -> Result<Reply, ApiError> {
    let own = Arc::clone(server);
    let mut begun = Box::pin(async move { begin(&own, jobs).await });
    match tokio::time::timeout(server.keep_alive, &mut begun).await {
        Ok(answers) => {
            let answers = answers?;
            let by = answered_by(&answers);
            Ok(Reply::events(events(answers, n_per_prompt, form)).by(by))
        }
        Err(_) => {
            let late = begun.map(move |answers| -> Events {
                match answers {
                    Ok(answers) => events(answers, n_per_prompt, form),
                    Err(error) => Box::pin(futures_util::stream::once(future::ready(form.error(&error.into())))),
                }
            });
            // The first comment is due.
            let first = futures_util::stream::once(future::ready(sse::KEEP_ALIVE.to_owned()));
            Ok(Reply::events(Box::pin(first.chain(late.flatten_stream()))))
        }
    }
}

/// Which targets of a route give these answers.
pub(crate) fn answered_by(answers: &[Generating]) -> Vec<AnsweredBy> {
    answers.iter().filter_map(|answer| answer.answered_by().cloned()).collect()
}

/// The total usage of several answers. A prompt with several answers counts once.
pub(crate) fn total(used: impl IntoIterator<Item = (usize, Usage)>, n_per_prompt: usize) -> Usage {
    used.into_iter().fold(Usage::default(), |sum, (index, used)| {
        let is_first = index % n_per_prompt.max(1) == 0;
        let of_prompt = |n: usize| if is_first { n } else { 0 };
        Usage {
            prompt: sum.prompt + of_prompt(used.prompt),
            cached: sum.cached + of_prompt(used.cached),
            completion: sum.completion + used.completion,
            is_estimated: sum.is_estimated || used.is_estimated,
        }
    })
}

/// Collects all answers to their end.
pub(crate) async fn whole(answers: Vec<Generating>) -> Result<Vec<(Piece, End)>, ApiError> {
    future::try_join_all(answers.into_iter().map(one)).await
}

async fn one(mut answer: Generating) -> Result<(Piece, End), ApiError> {
    let mut all = Piece::default();
    while let Some(event) = answer.try_next().await? {
        match event {
            Event::Begin { .. } => {}
            Event::End(end) => return Ok((all, end)),
            Event::Piece(mut piece) => {
                all.text += &piece.text;
                all.reasoning += &piece.reasoning;
                all.tokens.append(&mut piece.tokens);
                for void in &piece.void {
                    all.calls.retain(|call| call.index != void.index);
                }
                // Further parts of a malformed call are dropped too. The next call with its index begins with a name.
                let is_void =
                    |delta: &CallDelta| delta.name.is_none() && piece.void.iter().any(|v| v.index == delta.index);
                for delta in piece.calls.into_iter().filter(|delta| !is_void(delta)) {
                    match all.calls.iter_mut().find(|call| call.index == delta.index) {
                        None => all.calls.push(delta),
                        Some(call) => {
                            call.id = call.id.take().or(delta.id);
                            call.name = call.name.take().or(delta.name);
                            call.arguments += &delta.arguments;
                        }
                    }
                }
            }
        }
    }
    Err(broken_off())
}

fn broken_off() -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer broke off")
}

type Events = Pin<Box<dyn Stream<Item = String> + Send>>;

type Indexed = Pin<Box<dyn Stream<Item = (usize, Option<Result<Event, BackendError>>)> + Send>>;

/// Merges the answers into a stream of events.
pub(crate) fn events(answers: Vec<Generating>, n_per_prompt: usize, mut form: impl Form) -> Events {
    let ready = (0..answers.len()).filter_map(|index| form.first(index)).collect();
    let indexed = answers.into_iter().enumerate().map(|(index, answer)| -> Indexed {
        // `None` marks the end of a stream, so that an answer that breaks off is told from a complete one.
        let end = futures_util::stream::once(future::ready(None));
        Box::pin(answer.map(Some).chain(end).map(move |event| (index, event)))
    });
    let state = State { answers: select_all(indexed), ready, used: Vec::new(), n_per_prompt, form };
    Box::pin(unfold(Some(state), |state| async move {
        let mut state = state?;
        match state.next().await {
            Ok(Some(text)) => Some((text, Some(state))),
            Ok(None) => {
                let usage = total(state.used, state.n_per_prompt);
                Some((state.form.last(usage), None))
            }
            Err(error) => Some((state.form.error(&error), None)),
        }
    }))
}

struct State<F> {
    answers: SelectAll<Indexed>,
    /// Events that can be sent.
    ready: VecDeque<String>,
    /// The usage of the answers that have ended.
    used: Vec<(usize, Usage)>,
    n_per_prompt: usize,
    form: F,
}

impl<F: Form> State<F> {
    /// The next event; `None` once all answers have ended.
    async fn next(&mut self) -> Result<Option<String>, ApiError> {
        loop {
            if let Some(text) = self.ready.pop_front() {
                return Ok(Some(text));
            }
            let Some((index, event)) = self.answers.next().await else { return Ok(None) };
            let has_ended = self.used.iter().any(|(known, _)| *known == index);
            match event {
                _ if has_ended => {}
                None => return Err(broken_off()),
                Some(Err(error)) => return Err(error.into()),
                Some(Ok(Event::Begin { prompt })) => self.ready.extend(self.form.begin(index, prompt)),
                Some(Ok(Event::End(end))) => {
                    self.used.push((index, end.usage));
                    self.ready.push_back(self.form.end(index, end));
                }
                Some(Ok(Event::Piece(piece))) => {
                    if piece.void.iter().any(|void| !void.is_cut) {
                        // The parts that were sent cannot be retracted.
                        let message = "the model wrote a malformed call, whose beginning was already sent";
                        return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message).code("invalid_tool_call"));
                    }
                    self.ready.extend(self.form.piece(index, piece));
                }
            }
        }
    }
}

/// A stream that sends keep-alive comments while there are no events.
pub(crate) struct KeepAlive {
    events: Pin<Box<dyn Stream<Item = String> + Send>>,
    every: Duration,
    sleep: Pin<Box<Sleep>>,
}

impl KeepAlive {
    pub(crate) fn new(events: Pin<Box<dyn Stream<Item = String> + Send>>, every: Duration) -> Self {
        Self { events, every, sleep: Box::pin(sleep(every)) }
    }
}

impl Stream for KeepAlive {
    type Item = String;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<String>> {
        let this = self.get_mut();
        let item = match this.events.as_mut().poll_next(context) {
            Poll::Ready(item) => item,
            Poll::Pending => match this.sleep.as_mut().poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => Some(sse::KEEP_ALIVE.to_owned()),
            },
        };
        this.sleep.as_mut().reset(Instant::now() + this.every);
        Poll::Ready(item)
    }
}
