//! Generations for asynchronous programs: as a `futures` stream, or as a future of the completion. They work with any
//! runtime, because the engine has its own thread and wakes the task that waits for it.

use std::future::{Future, poll_fn};
use std::ops::DerefMut;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

use crate::chat::{Ask, Chat, ChatStream};
use crate::completion::{Completion, Piece};
use crate::error::Error;
use crate::generate::{Generate, Stream};

/// The result of a thread, and the task that waits for it.
struct Promise<T> {
    result: Option<thread::Result<Result<T, Error>>>,
    waker: Option<Waker>,
}

/// Runs `work` on a thread of its own, starting at once; `action` describes it in errors.
pub(crate) fn on_a_thread<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> impl Future<Output = Result<T, Error>> + Send + 'static {
    let promise = Arc::new(Mutex::new(Promise { result: None, waker: None }));
    let kept = Arc::clone(&promise);
    let run = move || {
        let result = catch_unwind(AssertUnwindSafe(work));
        let mut promise = kept.lock().unwrap_or_else(PoisonError::into_inner);
        promise.result = Some(result);
        let waker = promise.waker.take();
        drop(promise);
        waker.into_iter().for_each(Waker::wake);
    };
    let started = thread::Builder::new().name("fewbit-async".to_owned()).spawn(run);
    let mut refused = started.err().map(|error| Error::system(action, error));
    poll_fn(move |context| {
        if let Some(error) = refused.take() {
            return Poll::Ready(Err(error));
        }
        let mut promise = promise.lock().unwrap_or_else(PoisonError::into_inner);
        match promise.result.take() {
            Some(Ok(result)) => Poll::Ready(result),
            Some(Err(panic)) => {
                drop(promise);
                resume_unwind(panic)
            }
            None => {
                promise.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    })
}

/// A [`Stream`] or [`ChatStream`] for asynchronous programs: the same pieces as a `futures` stream. Dropping it ends
/// the generation.
///
/// It is a separate type because those two are iterators, whose `next` and `map` would clash with those of `futures`.
#[derive(Debug)]
#[must_use = "a stream generates nothing unless it is polled"]
pub struct AsyncStream<S>(S);

impl<S> AsyncStream<S> {
    /// The underlying stream, with the text, timings and token counts so far.
    pub fn get_ref(&self) -> &S {
        &self.0
    }

    /// The underlying stream, to iterate over the rest, or for its `into_completion`.
    pub fn into_inner(self) -> S {
        self.0
    }
}

impl futures_core::Stream for AsyncStream<Stream> {
    type Item = Result<Piece, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = &mut self.get_mut().0;
        match stream.to_echo.take() {
            Some(prompt) => Poll::Ready(Some(Ok(prompt))),
            None => match stream.run.poll_next(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(item) => Poll::Ready(stream.read(item)),
            },
        }
    }
}

impl<C: DerefMut<Target = Chat> + Unpin> futures_core::Stream for AsyncStream<ChatStream<C>> {
    type Item = Result<Piece, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = &mut self.get_mut().0;
        match stream.run.poll_next(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(item) => Poll::Ready(stream.read(item)),
        }
    }
}

impl Generate {
    /// Like [`stream`](Self::stream), for asynchronous programs.
    ///
    /// ```no_run
    /// # async fn f() -> Result<(), fewbit::Error> {
    /// use futures_util::StreamExt;
    ///
    /// let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let mut stream = model.generate("Once upon a time").max_tokens(64).stream_async()?;
    /// while let Some(piece) = stream.next().await {
    ///     print!("{}", piece?.text);
    /// }
    /// println!("[{:?}]", stream.get_ref().finish_reason());
    /// # Ok(()) }
    /// ```
    pub fn stream_async(self) -> Result<AsyncStream<Stream>, Error> {
        self.stream().map(AsyncStream)
    }

    /// Like [`run`](Self::run), without blocking.
    pub async fn run_async(self) -> Result<Completion, Error> {
        let mut stream = self.stream()?;
        stream.run.wait_for_end();
        while let Some(piece) = poll_fn(|context| stream.run.poll_next(context)).await {
            stream.read(Some(piece)).transpose()?;
        }
        Ok(stream.into_completion())
    }
}

impl<C: DerefMut<Target = Chat>> Ask<C> {
    /// Like [`stream`](Self::stream), for asynchronous programs.
    pub fn stream_async(self) -> Result<AsyncStream<ChatStream<C>>, Error> {
        self.stream().map(AsyncStream)
    }

    /// Like [`run`](Self::run), without blocking.
    pub async fn run_async(self) -> Result<Completion, Error> {
        let mut stream = self.stream()?;
        stream.run.wait_for_end();
        while let Some(piece) = poll_fn(|context| stream.run.poll_next(context)).await {
            stream.read(Some(piece)).transpose()?;
        }
        Ok(stream.into_completion())
    }
}
