//! Generations for asynchronous programs: a `futures` stream, and waiting for the end. Any runtime will do: the engine
//! has its own thread, and wakes whoever waits for it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::chat::{Ask, ChatStream};
use crate::completion::{Completion, Piece};
use crate::error::Error;
use crate::generate::{Generate, Stream};

impl futures_core::Stream for Stream {
    type Item = Result<Piece, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        match this.to_echo.take() {
            Some(prompt) => Poll::Ready(Some(Ok(prompt))),
            None => this.run.poll_next(context),
        }
    }
}

impl futures_core::Stream for ChatStream<'_> {
    type Item = Result<Piece, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        match this.run.poll_next(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(item) => Poll::Ready(this.filtered(item)),
        }
    }
}

impl Generate {
    /// As [`run`](Self::run), without blocking.
    pub async fn run_async(self) -> Result<Completion, Error> {
        let mut stream = self.stream()?;
        stream.run.wait_for_end();
        while let Some(piece) = poll_fn(|context| stream.run.poll_next(context)).await {
            piece?;
        }
        Ok(stream.into_completion())
    }
}

impl Ask<'_> {
    /// As [`run`](Self::run), without blocking.
    pub async fn run_async(self) -> Result<Completion, Error> {
        let mut stream = self.stream()?;
        stream.run.wait_for_end();
        while let Some(piece) = poll_fn(|context| stream.run.poll_next(context)).await {
            stream.filtered(Some(piece)).transpose()?;
        }
        Ok(stream.into_completion())
    }
}
