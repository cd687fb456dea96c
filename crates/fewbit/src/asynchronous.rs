//! Generations for asynchronous programs: a `futures` stream, and waiting for the end. Any runtime will do: the engine
//! has its own thread, and wakes whoever waits for it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::chat::{Ask, ChatStream};
use crate::completion::{Completion, Piece};
use crate::error::Error;
use crate::generate::{Generate, Stream};

/// A [`Stream`] or [`ChatStream`] for asynchronous programs: the same pieces as a `futures` stream. Dropping it ends
/// the generation.
///
/// It is a type of its own because those two are iterators, and an iterator has a `next` and a `map` already.
#[derive(Debug)]
#[must_use = "a stream generates nothing unless it is polled"]
pub struct AsyncStream<S>(S);

impl<S> AsyncStream<S> {
    /// The generation so far: its text, times and numbers.
    pub fn get_ref(&self) -> &S {
        &self.0
    }

    /// The generation as an iterator, to be read on or to be taken as it is with `into_completion`.
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

impl futures_core::Stream for AsyncStream<ChatStream<'_>> {
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
    /// As [`stream`](Self::stream), for asynchronous programs.
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

    /// As [`run`](Self::run), without blocking.
    pub async fn run_async(self) -> Result<Completion, Error> {
        let mut stream = self.stream()?;
        stream.run.wait_for_end();
        while let Some(piece) = poll_fn(|context| stream.run.poll_next(context)).await {
            stream.read(Some(piece)).transpose()?;
        }
        Ok(stream.into_completion())
    }
}

impl<'a> Ask<'a> {
    /// As [`stream`](Self::stream), for asynchronous programs.
    pub fn stream_async(self) -> Result<AsyncStream<ChatStream<'a>>, Error> {
        self.stream().map(AsyncStream)
    }

    /// As [`run`](Self::run), without blocking.
    pub async fn run_async(self) -> Result<Completion, Error> {
        let mut stream = self.stream()?;
        stream.run.wait_for_end();
        while let Some(piece) = poll_fn(|context| stream.run.poll_next(context)).await {
            stream.read(Some(piece)).transpose()?;
        }
        Ok(stream.into_completion())
    }
}
