//! Streams and waiting without a runtime: the engine wakes whoever waits.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use futures_core::Stream;

use crate::stories;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The smallest executor there is.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}

async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await
}

#[test]
fn asynchronous_and_blocking_generations_are_the_same() {
    let begin = || stories().generate("Once upon a time").seed(3).max_tokens(40);
    let expected = begin().run().unwrap();
    let out = block_on(begin().run_async()).unwrap();
    assert_eq!((&out.text, &out.tokens), (&expected.text, &expected.tokens));
    let streamed = block_on(async {
        let mut stream = begin().stream_async().unwrap();
        let mut text = String::new();
        while let Some(piece) = next(&mut stream).await {
            text += &piece.unwrap().text;
        }
        assert_eq!(stream.get_ref().finish_reason(), Some(expected.finish_reason));
        assert_eq!(stream.into_inner().into_completion().tokens, expected.tokens);
        text
    });
    assert_eq!(streamed, expected.text);
}

#[test]
fn a_conversation_can_be_awaited() {
    let start = || stories().chat().seed(3).max_tokens(20).start().unwrap();
    let (mut blocking, mut waiting) = (start(), start());
    for question in ["Who?", "And then?"] {
        let expected = blocking.send(question).unwrap().text;
        assert_eq!(block_on(waiting.ask(question).run_async()).unwrap().text, expected);
    }
    assert_eq!(waiting.messages(), blocking.messages());
    let text = block_on(async {
        let mut text = String::new();
        let mut stream = waiting.ask("Why?").stream_async().unwrap();
        while let Some(piece) = next(&mut stream).await {
            text += &piece.unwrap().text;
        }
        text
    });
    assert_eq!(text, blocking.send("Why?").unwrap().text);
}

#[test]
fn asynchronous_embeddings_are_the_same() {
    // More than the engine takes at once.
    let texts: Vec<String> = (0..150).map(|i| format!("Once there were {i} dogs")).collect();
    let want = stories().embed(&texts).run().unwrap();
    assert_eq!(block_on(stories().embed(&texts).run_async()).unwrap().vectors, want.vectors);
}
