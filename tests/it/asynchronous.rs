//! Streams and waiting without a runtime: the engine wakes the waiting task.

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

/// A minimal executor.
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
fn async_and_blocking_generations_are_the_same() {
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
fn conversations_can_be_awaited() {
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
fn async_and_blocking_embeddings_are_the_same() {
    // More requests than the engine takes at once.
    let texts: Vec<String> = (0..150).map(|i| format!("Once there were {i} dogs")).collect();
    let want = stories().embed(&texts).run().unwrap();
    assert_eq!(block_on(stories().embed(&texts).run_async()).unwrap().vectors, want.vectors);
}

#[test]
fn loading_can_be_awaited() {
    let builder = fewbit::Model::builder().threads(1);
    let model = block_on(builder.clone().load_async(crate::STORIES)).unwrap();
    let out = block_on(model.generate("Once").temperature(0.0).max_tokens(5).run_async()).unwrap();
    let expected = stories().generate("Once").temperature(0.0).max_tokens(5).run().unwrap();
    assert_eq!(out.tokens, expected.tokens);
    let error = block_on(builder.load_async("no/such/model.gguf")).unwrap_err();
    assert!(matches!(error.kind(), fewbit::ErrorKind::NotFound { .. }), "{error:?}");
    // Dropping a load that nobody waits for disturbs nobody.
    drop(fewbit::Model::load_async(crate::STORIES));
}

#[test]
fn a_task_can_own_its_conversation() {
    let chat = Arc::new(tokio::sync::Mutex::new(stories().chat().temperature(0.0).max_tokens(10).start().unwrap()));
    let answer = |chat: Arc<tokio::sync::Mutex<fewbit::Chat>>| async move {
        let mut stream = fewbit::Ask::new(chat.lock_owned().await, "Who?").stream_async().unwrap();
        let mut text = String::new();
        while let Some(piece) = next(&mut stream).await {
            text += &piece.unwrap().text;
        }
        text
    };
    let task: Pin<Box<dyn Future<Output = String> + Send + 'static>> = Box::pin(answer(Arc::clone(&chat)));
    let text = thread::spawn(move || block_on(task)).join().unwrap();
    assert_eq!(chat.try_lock().unwrap().messages().last(), Some(&fewbit::Message::assistant(text)));
}
