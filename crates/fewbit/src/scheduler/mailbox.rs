//! The channel of one request: pieces go from the engine thread to the caller, a cancellation goes back.
//!
//! A mailbox holds a bounded number of pieces. The engine checks for room before it plans a step, and leaves out
//! requests whose mailbox is full: a stream that is not read computes no further. A caller that waits for the whole
//! answer has no bound and is woken only once, at the end, so that waking it for every token does not take a core from
//! the computation.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
#[cfg(feature = "async")]
use std::task::{Context, Poll};

use super::Shared;
use crate::completion::{FinishReason, Piece, Timings, Usage};
use crate::error::{Error, ErrorKind};

/// How many pieces a stream may be ahead of its reader.
const AHEAD: usize = 16;

/// The result of one token, or the end of a request.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) piece: Option<Piece>,
    /// The vector of an embedding, with the last event.
    pub(crate) vector: Option<Vec<f32>>,
    /// How the request ended, with the last event.
    pub(crate) end: Option<Result<FinishReason, Error>>,
    /// The stop string that ended it, if one did.
    pub(crate) stop: Option<String>,
    pub(crate) usage: Usage,
    pub(crate) timings: Timings,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    /// Whether only the end wakes the reader; then there is always room.
    is_quiet: bool,
    /// Whether the end is in `events`, or was received.
    has_ended: bool,
    /// The waker of an asynchronous reader.
    waker: Option<Waker>,
}

#[derive(Default)]
struct Mailbox {
    state: Mutex<State>,
    ready: Condvar,
    cancelled: AtomicBool,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's half. If it is dropped before the end of its request, the reader learns that nothing more will come.
pub(super) struct Sender {
    mailbox: Arc<Mailbox>,
}

/// The caller's half. Dropping it cancels the request.
pub(crate) struct Receiver {
    mailbox: Arc<Mailbox>,
    shared: Arc<Shared>,
}

/// Creates a mailbox; `is_quiet` for a reader that waits only for the end.
pub(super) fn mailbox(shared: &Arc<Shared>, is_quiet: bool) -> (Sender, Receiver) {
    let mailbox = Arc::new(Mailbox::default());
    mailbox.lock().is_quiet = is_quiet;
    (Sender { mailbox: Arc::clone(&mailbox) }, Receiver { mailbox, shared: Arc::clone(shared) })
}

impl Sender {
    /// Whether the reader can take more pieces.
    pub(super) fn has_room(&self) -> bool {
        let state = self.mailbox.lock();
        state.is_quiet || state.events.len() < AHEAD
    }

    /// Whether the reader is gone.
    pub(super) fn is_cancelled(&self) -> bool {
        self.mailbox.cancelled.load(Ordering::Acquire)
    }

    pub(super) fn send(&self, event: Event) {
        let mut state = self.mailbox.lock();
        state.has_ended |= event.end.is_some();
        let wake = !state.is_quiet || state.has_ended;
        state.events.push_back(event);
        if wake {
            let waker = state.waker.take();
            drop(state);
            self.mailbox.ready.notify_one();
            waker.into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.mailbox.lock().has_ended {
            let (usage, timings) = (Usage::default(), Timings::default());
            let end = Some(Err(ErrorKind::EngineStopped.into()));
            self.send(Event { piece: None, vector: None, end, stop: None, usage, timings });
        }
    }
}

impl Receiver {
    /// Receives the next event; blocks. Must not be called again after the end.
    pub(crate) fn recv(&self) -> Event {
        let mut state = self.mailbox.lock();
        loop {
            if let Some(event) = self.take(&mut state) {
                return event;
            }
            state = self.mailbox.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Receives the next event, without blocking.
    #[cfg(feature = "async")]
    pub(crate) fn poll_recv(&self, context: &mut Context<'_>) -> Poll<Event> {
        let mut state = self.mailbox.lock();
        match self.take(&mut state) {
            Some(event) => Poll::Ready(event),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn take(&self, state: &mut State) -> Option<Event> {
        let was_full = !state.is_quiet && state.events.len() >= AHEAD && !state.has_ended;
        let event = state.events.pop_front()?;
        if was_full {
            self.shared.poke();
        }
        Some(event)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.mailbox.cancelled.store(true, Ordering::Release);
        if !self.mailbox.lock().has_ended {
            self.shared.poke();
        }
    }
}
