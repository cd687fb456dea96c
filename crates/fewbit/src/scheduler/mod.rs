//! One engine thread per model, which computes all its requests together.
//!
//! ```text
//! callers                 engine thread
//!   submit ──> inbox ──>  take in, end what was cancelled or is late, admit
//!                         plan: one token of everybody who decodes, and a bounded part of the prompts
//!                         one forward pass
//!   pieces <── mailbox <─ choose tokens (on all threads), turn them into text
//! ```
//!
//! Each request gets the same tokens as if it ran alone: the arithmetic does not depend on the batch, and the picker of
//! its tokens belongs to the request. An error ends only the request that it came from; if a whole step fails, its
//! parts are run one by one to find that request.
//!
//! Keys and values live in pages, which requests with a common beginning share ([`fewbit_model::PrefixTree`]). When the
//! pages reach their limit, unused pages of the prefix cache are freed first; then the request that came last loses its
//! cache, and is recomputed when there is room. That does not change its tokens either.
//!
//! When a device is lost, its layers are loaded again on the CPU, and all running requests are recomputed there from
//! their tokens: they notice a pause. When a device has no memory for another page, the pages that there are become the
//! limit.
//!
//! Requests with different LoRA adapters run in one batch too. Each cache belongs to one set of adapters, and only
//! caches of equal sets are shared.

mod cancel;
mod draft;
mod engine;
mod mailbox;
mod metrics;
mod picker;
mod plan;
mod pooler;
mod sequence;
mod trace;

use std::cell::Cell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fewbit_model::{Decoder, KvCache, LoraSet, ModelError, PrefixTree};
use fewbit_tokenizer::Tokenizer;

pub use cancel::CancelToken;
pub use draft::Speculation;
pub(crate) use mailbox::{Event, Receiver};
pub use metrics::{Metrics, Outcomes};
pub(crate) use picker::Picker;
pub(crate) use pooler::Pooler;
pub(crate) use sequence::{Generation, Request, Task};

use crate::error::{Error, ErrorKind};
use crate::file::open;
use mailbox::Sender;
use trace::Trace;

/// The target of what is logged about devices that fail.
const DEVICES: &str = "fewbit::device";

/// The parts of a model that a step needs.
pub(crate) struct Core {
    pub(crate) decoder: Decoder,
    pub(crate) tokenizer: Arc<Tokenizer>,
    #[cfg(feature = "constraints")]
    pub(crate) constraints: crate::constraints::Compiler,
    /// The adapters that the model was loaded with.
    pub(crate) loras: LoraSet,
    pub(crate) load_time: Duration,
    pub(crate) limits: Limits,
    /// Whether spans contain texts.
    pub(crate) trace_text: bool,
    /// What the weights were loaded from, if it can be opened again.
    pub(crate) origin: Option<PathBuf>,
    /// How many pages of KV cache a device had memory for, if it was asked for more.
    pub(crate) kv_pages_found: AtomicUsize,
    /// How many times layers moved to the CPU because their device was lost.
    pub(crate) n_lost: AtomicU64,
    /// KV caches of no request that hold pages: texts that are being scored. When they end, there is room again.
    pub(crate) guests: AtomicUsize,
}

impl Core {
    /// An empty KV cache for a sequence with the model's default adapters.
    pub(crate) fn new_cache(&self) -> KvCache {
        self.decoder.new_cache_with(&self.loras)
    }

    /// The most pages of KV cache: fewer than the limit if a device has no memory for so many.
    pub(crate) fn kv_pages_limit(&self) -> usize {
        self.limits.kv_pages.min(self.kv_pages_found.load(Ordering::Relaxed))
    }

    /// After an error of a step: if a device was lost, moves its layers to the CPU, with one warning. Returns `None` if
    /// the model can go on, with caches that are computed again, or else the error to report.
    pub(crate) fn replace_lost(&self, error: Error) -> Option<Error> {
        let is_stale = match error.cause::<ModelError>() {
            Some(failure) if failure.is_lost() => matches!(failure, ModelError::StaleCache),
            _ => return Some(error),
        };
        let Some(path) = &self.origin else { return Some(error) };
        let moved = open(path).and_then(|file| Ok(self.decoder.replace_lost(file.weights())?));
        match moved {
            // Another thread has moved them already.
            Ok(moved) if moved.is_empty() => (!is_stale).then_some(error),
            Ok(moved) => {
                self.n_lost.fetch_add(1, Ordering::Relaxed);
                let parts: Vec<String> = moved.iter().map(|moved| moved.part.to_string()).collect();
                let (error, parts) = (format!("{error:#}"), parts.join(", "));
                tracing::warn!(target: DEVICES, error, parts, "a device was lost: what was on it continues on the CPU");
                None
            }
            Err(why) => {
                let why = format!("{why:#}");
                tracing::error!(target: DEVICES, why, "what was on a lost device cannot continue on the CPU");
                Some(error)
            }
        }
    }
}

/// The limits of the engine.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// The most prompt tokens of a step.
    pub(crate) prefill_chunk: usize,
    /// The most requests that run at once.
    pub(crate) max_running: usize,
    /// The most requests that wait in the queue.
    pub(crate) max_waiting: usize,
    /// The most pages of KV cache.
    pub(crate) kv_pages: usize,
    /// The most of these pages that the prefix cache keeps.
    pub(crate) prefix_pages: usize,
}

/// Work for the engine thread, between two steps.
type Work = Box<dyn FnOnce(&Core, &mut PrefixTree) + Send>;

/// Work, and the pages it needs.
struct Call {
    /// Pages of KV cache that it takes and keeps. It waits until there is room for them.
    n_pages: usize,
    run: Work,
}

/// What callers have sent to the engine thread.
#[derive(Default)]
struct Inbox {
    requests: VecDeque<(Request, Trace, Sender)>,
    calls: VecDeque<Call>,
    /// Number of requests that wait in the engine's queue.
    n_waiting: usize,
    /// Something else has changed.
    poked: bool,
    closed: bool,
    /// Number of requests that were refused.
    n_refused: u64,
    metrics: Metrics,
}

/// State shared by callers and the engine thread.
#[derive(Default)]
pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the engine check its state again.
    fn poke(&self) {
        self.lock().poked = true;
        self.changed.notify_one();
    }

    /// Waits until there is something to do, or until `until`.
    fn wait(&self, until: Option<Instant>) {
        let mut inbox = self.lock();
        while !(inbox.poked || inbox.closed) && inbox.requests.is_empty() && inbox.calls.is_empty() {
            inbox = match until {
                None => self.changed.wait(inbox).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return;
                    }
                    self.changed.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

thread_local! {
    /// Whether this thread is choosing tokens for an engine. Waiting for an engine on such a thread would be waiting
    /// for itself.
    static IS_ENGINE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with this thread marked as a part of an engine.
fn as_engine<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            IS_ENGINE.set(self.0);
        }
    }
    let _restore = Restore(IS_ENGINE.replace(true));
    f()
}

/// The engine thread of a model; dropping this ends the thread.
pub(crate) struct Scheduler {
    shared: Arc<Shared>,
    core: Arc<Core>,
    n_requests: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

impl Scheduler {
    pub(crate) fn new(core: Arc<Core>) -> Result<Self, Error> {
        let shared = Arc::new(Shared::default());
        let for_thread = (Arc::clone(&core), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("fewbit-engine".to_owned())
            .spawn(move || engine::Engine::new(for_thread.0, for_thread.1).run())
            .map_err(|error| Error::system("start the engine's thread", error))?;
        Ok(Self { shared, core, n_requests: AtomicU64::new(0), thread: Some(thread) })
    }

    /// Submits a request; `is_quiet` if the caller waits only for its end. A refused request is returned.
    pub(crate) fn submit(&self, request: Request, is_quiet: bool) -> Result<Receiver, Box<(Error, Request)>> {
        if IS_ENGINE.get() {
            return Err(Box::new((ErrorKind::InsideEngine.into(), request)));
        }
        if let Err(error) = self.check_memory(request.n_positions()) {
            return Err(Box::new((error, request)));
        }
        let (sender, receiver) = mailbox::mailbox(&self.shared, is_quiet);
        if let Some(token) = &request.cancel {
            token.watch(&self.shared);
        }
        let id = self.n_requests.fetch_add(1, Ordering::Relaxed);
        let trace = Trace::new(&self.core, id, &request.prompt, request.max_tokens());
        let limit = self.core.limits.max_waiting;
        let mut inbox = self.shared.lock();
        if inbox.requests.len() + inbox.n_waiting >= limit {
            inbox.n_refused += 1;
            drop(inbox);
            trace.refuse();
            return Err(Box::new((ErrorKind::QueueFull { limit }.into(), request)));
        }
        inbox.requests.push_back((request, trace, sender));
        drop(inbox);
        self.shared.changed.notify_one();
        Ok(receiver)
    }

    /// Returns an error for a request that would not fit into the KV cache even if it ran alone.
    fn check_memory(&self, n_tokens: usize) -> Result<(), Error> {
        let (limit, page) = (self.core.kv_pages_limit(), self.core.decoder.kv_page_bytes());
        let needed = self.core.decoder.least_kv_pages(n_tokens);
        if needed > limit {
            let bytes = |pages: usize| (pages as u64).saturating_mul(page);
            let (needed_bytes, limit_bytes) = (bytes(needed), bytes(limit));
            return Err(ErrorKind::KvMemory { n_tokens, needed_bytes, limit_bytes }.into());
        }
        Ok(())
    }

    /// Runs `f` on the engine thread between two steps, and returns its result.
    pub(crate) fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&Core, &mut PrefixTree) -> R + Send + 'static,
    ) -> Result<R, Error> {
        self.call_with_room(0, f)
    }

    /// Like [`call`](Self::call), once there is room for the keys and values of `n_tokens` more tokens, which `f`
    /// takes. The prefix cache is freed for it; running requests go first. Call [`look_again`](Self::look_again) when
    /// they are freed.
    pub(crate) fn call_with_room<R: Send + 'static>(
        &self,
        n_tokens: usize,
        f: impl FnOnce(&Core, &mut PrefixTree) -> R + Send + 'static,
    ) -> Result<R, Error> {
        if IS_ENGINE.get() {
            return Err(ErrorKind::InsideEngine.into());
        }
        self.check_memory(n_tokens)?;
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let run = Box::new(move |core: &Core, prefixes: &mut PrefixTree| {
            // If the caller is gone, nobody needs the result.
            let _ = sender.send(f(core, prefixes));
        });
        self.shared.lock().calls.push_back(Call { n_pages: self.core.decoder.least_kv_pages(n_tokens), run });
        self.shared.changed.notify_one();
        receiver.recv().map_err(|_| ErrorKind::EngineStopped.into())
    }

    /// Tells the engine that pages were freed outside of it; a request or call may be waiting for them.
    pub(crate) fn look_again(&self) {
        self.shared.poke();
    }

    /// A snapshot of the metrics.
    pub(crate) fn metrics(&self) -> Metrics {
        let decoder = &self.core.decoder;
        let inbox = self.shared.lock();
        Metrics {
            waiting: inbox.requests.len() + inbox.n_waiting,
            outcomes: Outcomes { refused: inbox.n_refused, ..inbox.metrics.outcomes },
            kv_pages: decoder.kv_pages(),
            kv_pages_limit: self.core.kv_pages_limit(),
            devices_lost: self.core.n_lost.load(Ordering::Relaxed),
            kv_page_bytes: decoder.kv_page_bytes(),
            weight_bytes: decoder.weight_bytes(),
            gpu_weight_bytes: decoder.placed().iter().filter(|p| !p.is_host).map(|p| p.weight_bytes).sum(),
            ..inbox.metrics
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
        // The last handle of a model may be dropped by code that runs on the engine thread itself.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // The thread catches its panics, so its result is of no interest.
            let _ = thread.join();
        }
    }
}
