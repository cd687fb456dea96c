//! Cancelling generations from other threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Shared;

/// Cancels the generations that it was given to, from any thread. Each of them stops after the current step, with the
/// text so far and [`FinishReason::Cancelled`](crate::FinishReason::Cancelled). All clones are the same token.
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// let model = fewbit::Model::load("smollm2-135m-instruct")?;
/// let stop = fewbit::CancelToken::new();
/// let elsewhere = stop.clone();
/// std::thread::spawn(move || {
///     std::thread::sleep(std::time::Duration::from_millis(100));
///     elsewhere.cancel();
/// });
/// println!("{}", model.generate("Once upon a time").cancel_token(&stop).run()?);
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct CancelToken {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    cancelled: AtomicBool,
    /// Engines to wake; they may all be waiting for readers.
    engines: Mutex<Vec<Weak<Shared>>>,
}

impl CancelToken {
    /// A token that has not been cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels every generation that has this token, including those started with it later.
    pub fn cancel(&self) {
        self.inner.cancelled.store(true, Ordering::Release);
        let engines = std::mem::take(&mut *self.inner.engines.lock().unwrap_or_else(PoisonError::into_inner));
        engines.iter().filter_map(Weak::upgrade).for_each(|engine| engine.poke());
    }

    /// Whether the token has been cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancelled.load(Ordering::Acquire)
    }

    /// Makes [`cancel`](Self::cancel) wake this engine.
    pub(super) fn watch(&self, engine: &Arc<Shared>) {
        let mut engines = self.inner.engines.lock().unwrap_or_else(PoisonError::into_inner);
        engines.retain(|known| known.strong_count() > 0);
        if !engines.iter().any(|known| known.as_ptr() == Arc::as_ptr(engine)) {
            engines.push(Arc::downgrade(engine));
        }
    }
}

impl std::fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelToken").field("cancelled", &self.is_cancelled()).finish()
    }
}
