//! The requests whose answers are in progress: a list of them, and cancelling one.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use fewbit_api::admin::LiveRequest;
use futures_core::Stream;
use tokio::sync::watch;

use crate::backend::{BackendError, BackendErrorKind, Caller, Event, Generating};

/// The requests in progress, in the order in which they began.
#[derive(Default)]
pub(crate) struct LiveRequests {
    all: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    requests: BTreeMap<u64, Weak<Request>>,
}

/// A request in progress. It leaves the list when all its answers are dropped.
pub(crate) struct Request {
    list: Arc<LiveRequests>,
    place: u64,
    caller: Caller,
    model: String,
    n_answers: usize,
    start: Instant,
    has_begun: AtomicBool,
    prompt: AtomicU64,
    completion: AtomicU64,
    cancel: watch::Sender<bool>,
}

impl LiveRequests {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request.
    pub(crate) fn begin(self: &Arc<Self>, caller: Caller, model: String, n_answers: usize) -> Arc<Request> {
        let mut table = self.table();
        let place = table.next;
        table.next += 1;
        let request = Arc::new(Request {
            list: Arc::clone(self),
            place,
            caller,
            model,
            n_answers,
            start: Instant::now(),
            has_begun: AtomicBool::new(false),
            prompt: AtomicU64::new(0),
            completion: AtomicU64::new(0),
            cancel: watch::Sender::new(false),
        });
        table.requests.insert(place, Arc::downgrade(&request));
        request
    }

    /// The requests that `is_shown` selects by their caller.
    pub(crate) fn list(&self, is_shown: impl Fn(&Caller) -> bool) -> Vec<LiveRequest> {
        let requests: Vec<_> = self.table().requests.values().filter_map(Weak::upgrade).collect();
        requests.iter().filter(|request| is_shown(&request.caller)).map(|request| request.shown()).collect()
    }

    /// Cancels a request, if `is_shown` selects it. Returns whether there is one.
    pub(crate) fn cancel(&self, id: &str, is_shown: impl Fn(&Caller) -> bool) -> bool {
        let requests: Vec<_> = self.table().requests.values().filter_map(Weak::upgrade).collect();
        let found = requests.iter().find(|request| &*request.caller.request == id && is_shown(&request.caller));
        if let Some(request) = found {
            request.cancel.send_replace(true);
        }
        found.is_some()
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.list.table().requests.remove(&self.place);
    }
}

impl Request {
    fn shown(&self) -> LiveRequest {
        let has_begun = self.has_begun.load(Ordering::Relaxed);
        LiveRequest {
            id: self.caller.request.to_string(),
            key: self.caller.key.as_deref().map(str::to_owned),
            endpoint: self.caller.endpoint.to_owned(),
            model: self.model.clone(),
            state: if has_begun { "generating" } else { "waiting" },
            answers: self.n_answers,
            prompt_tokens: self.prompt.load(Ordering::Relaxed),
            completion_tokens: self.completion.load(Ordering::Relaxed),
            elapsed_ms: u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Is ready once the request is cancelled.
    fn cancelled(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut receiver = self.cancel.subscribe();
        Box::pin(async move {
            // If the sender is gone, nobody can cancel any more.
            if receiver.wait_for(|&is_cancelled| is_cancelled).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }

    /// The result of this future, unless the request is cancelled before.
    pub(crate) async fn unless_cancelled<T>(
        &self,
        future: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        tokio::select! {
            result = future => result,
            () = self.cancelled() => Err(error()),
        }
    }

    /// An answer that ends with an error when the request is cancelled.
    pub(crate) fn watch(self: &Arc<Self>, answer: Generating) -> Generating {
        let by = answer.answered_by().cloned();
        let cancelled = self.cancelled();
        Generating::new(Watched { answer: Some(answer), cancelled, request: Arc::clone(self) }).by(by)
    }
}

fn error() -> BackendError {
    BackendError::new(BackendErrorKind::Cancelled, "the request was cancelled on the server")
}

struct Watched {
    /// `None` once the request was cancelled, because dropping the answer ends it.
    answer: Option<Generating>,
    cancelled: Pin<Box<dyn Future<Output = ()> + Send>>,
    request: Arc<Request>,
}

impl Stream for Watched {
    type Item = Result<Event, BackendError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(answer) = &mut this.answer else { return Poll::Ready(None) };
        if this.cancelled.as_mut().poll(context).is_ready() {
            this.answer = None;
            return Poll::Ready(Some(Err(error())));
        }
        let event = std::task::ready!(Pin::new(answer).poll_next(context));
        match &event {
            Some(Ok(Event::Begin { prompt })) => this.request.prompt.store(*prompt as u64, Ordering::Relaxed),
            Some(Ok(Event::Piece(piece))) => {
                this.request.has_begun.store(true, Ordering::Relaxed);
                this.request.completion.fetch_add(piece.tokens.len().max(1) as u64, Ordering::Relaxed);
            }
            _ => {}
        }
        Poll::Ready(event)
    }
}
