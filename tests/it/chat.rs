//! Conversations: what is kept between turns, and what remains of a turn that did not finish.

use fewbit::{Ask, Chat, ErrorKind, FinishReason, Message};

use crate::{load, stories};

fn start() -> Chat {
    // All cached tokens must come from the conversation itself.
    let chat = stories().chat().options(fewbit::GenerateOptions::new().share_prefix(false));
    chat.system("Tell a story.").temperature(0.0).max_tokens(20).start().unwrap()
}

#[test]
fn later_turns_compute_only_new_tokens() {
    let mut chat = start();
    let first = chat.send("Who?").unwrap();
    assert_eq!(first.usage.cached, 0);
    let second = chat.send("And then?").unwrap();
    // All of the first prompt is still there.
    assert!(second.usage.cached >= first.usage.prompt, "{:?} after {:?}", second.usage, first.usage);
    assert!(second.timings.prefill_tokens < second.usage.prompt);
    assert_eq!(second.timings.prefill_tokens + second.usage.cached, second.usage.prompt);

    // The cache does not change the result: a new conversation with the same history gives the same answer.
    let again = stories()
        .chat()
        .history(chat.messages()[..3].to_vec())
        .options(fewbit::GenerateOptions::new().share_prefix(false));
    let mut again = again.temperature(0.0).max_tokens(20).start().unwrap();
    let fresh = again.send("And then?").unwrap();
    assert_eq!(fresh.usage.cached, 0);
    assert_eq!((&fresh.text, &fresh.tokens), (&second.text, &second.tokens));
    assert_eq!(chat.messages(), again.messages());
}

#[test]
fn conversation_keeps_its_messages_in_order() {
    let mut chat = start();
    let answer = chat.send("Who?").unwrap();
    let expected = [Message::system("Tell a story."), Message::user("Who?"), Message::assistant(answer.text)];
    assert_eq!(chat.messages(), expected);
    chat.clear();
    assert_eq!(chat.messages(), [Message::system("Tell a story.")]);
    let again = chat.send("Who?").unwrap();
    assert_eq!(chat.messages(), expected);
    assert_eq!(again.usage.cached, again.usage.prompt - 1, "the prompt is known, all but its last token");
}

#[test]
fn cancelled_answer_keeps_its_partial_text() {
    let whole = start().send("Who?").unwrap();
    let mut chat = start();
    let mut stream = chat.send_stream("Who?").unwrap();
    let mut text = String::new();
    for piece in stream.by_ref().take(5) {
        text += &piece.unwrap().text;
    }
    assert_eq!(stream.finish_reason(), None);
    let completion = stream.into_completion();
    assert_eq!(completion.finish_reason, FinishReason::Cancelled);
    assert_eq!(completion.text, text);
    assert!(whole.text.starts_with(&text) && !text.is_empty());
    assert_eq!(chat.messages().last(), Some(&Message::assistant(text)));
    let next = chat.send("Go on.").unwrap();
    assert!(next.usage.cached > 0 && next.usage.completion == 20);
}

#[test]
fn turn_dropped_before_its_first_token_is_removed() {
    let mut chat = start();
    drop(chat.send_stream("Who?").unwrap());
    assert_eq!(chat.messages().len(), 1);
    assert_eq!(chat.send("Who?").unwrap().text, start().send("Who?").unwrap().text);
}

#[test]
fn too_long_turn_is_rejected_and_the_conversation_continues() {
    let model = load(|b| b.context_length(128));
    let mut chat = model.chat().temperature(0.0).max_tokens(8).start().unwrap();
    let first = chat.send("Who?").unwrap();
    let before = chat.messages().to_vec();
    let error = chat.send("Once upon a time. ".repeat(40)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooLong { context_tokens: 128, .. }), "{error:?}");
    assert_eq!(chat.messages(), before);
    let second = chat.send("And then?").unwrap();
    assert!(second.usage.cached >= first.usage.prompt);
}

#[test]
fn interleaved_conversations_are_independent() {
    let (mut a, mut b) = (start(), start());
    let alone = {
        let mut chat = start();
        [chat.send("A cat.").unwrap().text, chat.send("A dog.").unwrap().text]
    };
    {
        let mut turn = a.send_stream("A cat.").unwrap();
        let mut other = b.send_stream("A red ball.").unwrap();
        for _ in 0..20 {
            turn.next().unwrap().unwrap();
            other.next().unwrap().unwrap();
        }
        assert_eq!(turn.into_completion().text, alone[0]);
        assert_ne!(other.into_completion().text, alone[0]);
    }
    assert_eq!(a.send("A dog.").unwrap().text, alone[1]);
}

#[test]
fn edit_computes_only_the_tokens_after_it() {
    let mut chat = start();
    let first = chat.send("Who?").unwrap();
    chat.send("And then?").unwrap();
    let edited = chat.edit(3, "A dog.").unwrap().run().unwrap();
    assert!(edited.usage.cached >= first.usage.prompt, "{:?} after {:?}", edited.usage, first.usage);
    assert_eq!(edited.timings.prefill_tokens + edited.usage.cached, edited.usage.prompt);
    assert_eq!(chat.messages().len(), 5);
    assert_eq!(chat.messages()[3], Message::user("A dog."));

    // As if it had been asked so from the beginning.
    let mut fresh = start();
    fresh.send("Who?").unwrap();
    assert_eq!(fresh.send("A dog.").unwrap().tokens, edited.tokens);

    // After editing messages by hand, the model's answer no longer matches its cache.
    chat.messages_mut()[2].content = "A cat.".to_owned();
    let changed = chat.send("Go on.").unwrap();
    assert!(changed.usage.cached > 0 && changed.usage.cached < edited.usage.prompt, "{:?}", changed.usage);
    let past = chat.messages()[..5].to_vec();
    chat.truncate(5);
    assert_eq!(chat.messages(), past);
    let repeated = chat.send("Go on.").unwrap();
    assert_eq!(repeated.usage.cached, repeated.usage.prompt - 1);
    assert_eq!(repeated.tokens, changed.tokens);
    let error = chat.edit(7, "Where?").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoSuchMessage { index: 7, n_messages: 7 }), "{error:?}");
}

#[test]
fn regenerate_replaces_the_answer() {
    let start = || stories().chat().temperature(1.0).seed(5).max_tokens(12).start().unwrap();
    let three = |chat: &mut Chat| {
        let first = chat.send("Who?").unwrap();
        [first, chat.regenerate().run().unwrap(), chat.regenerate().run().unwrap()]
    };
    let mut chat = start();
    let answers = three(&mut chat);
    assert_eq!(chat.messages(), [Message::user("Who?"), Message::assistant(&answers[2].text)]);
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer.prompt_tokens, answers[0].prompt_tokens);
        assert!(i == 0 || answer.usage.cached == answer.usage.prompt - 1, "{:?}", answer.usage);
        assert!(answers[..i].iter().all(|other| other.tokens != answer.tokens && other.seed != answer.seed));
    }
    assert_eq!(three(&mut start()).map(|answer| answer.tokens), answers.map(|answer| answer.tokens), "it repeats");

    // A dropped regeneration or edit leaves the messages unchanged.
    let before = chat.messages().to_vec();
    drop(chat.regenerate().stream().unwrap());
    assert_eq!(chat.messages(), before);
    drop(chat.edit(0, "Where?").unwrap().stream().unwrap());
    assert_eq!(chat.messages(), before);
    chat.regenerate().stop_when(|_| panic!("on purpose")).run().unwrap_err();
    assert_eq!(chat.messages(), before);
    chat.edit(0, "Once upon a time. ".repeat(400)).unwrap().run().unwrap_err();
    assert_eq!(chat.messages(), before);

    // Without an answer there is one.
    chat.truncate(1);
    assert_eq!(chat.regenerate().run().unwrap().tokens, start().send("Who?").unwrap().tokens);
}

#[test]
fn forks_share_the_cache_and_diverge_independently() {
    let mut chat = start();
    let first = chat.send("Who?").unwrap();
    let mut fork = chat.fork();
    assert_eq!((fork.messages(), fork.cached_tokens()), (chat.messages(), chat.cached_tokens()));
    let (dog, cat) = (fork.send("A dog.").unwrap(), chat.send("A cat.").unwrap());
    for answer in [&dog, &cat] {
        assert!(answer.usage.cached >= first.usage.prompt, "{:?} after {:?}", answer.usage, first.usage);
    }
    assert_ne!(fork.messages(), chat.messages());
    // Neither conversation has changed the other.
    let alone = |question| {
        let mut chat = start();
        chat.send("Who?").unwrap();
        chat.send(question).unwrap().tokens
    };
    assert_eq!((dog.tokens, cat.tokens), (alone("A dog."), alone("A cat.")));
    drop(chat);
    assert!(fork.send("And then?").unwrap().usage.cached >= dog.usage.prompt);
}

#[test]
fn a_turn_can_own_its_conversation() {
    fn is_static<T: Send + 'static>(value: T) -> T {
        value
    }
    let mut stream = is_static(Ask::new(Box::new(start()), "Who?").stream().unwrap());
    let thread = std::thread::spawn(move || {
        let first = stream.next().unwrap().unwrap();
        (first.token_ids, stream)
    });
    let (tokens, mut stream) = thread.join().unwrap();
    stream.by_ref().for_each(|piece| drop(piece.unwrap()));
    let (answer, mut chat) = stream.into_parts();
    assert_eq!(answer.tokens[..tokens.len()], tokens);
    assert_eq!(chat.messages().last(), Some(&Message::assistant(answer.text)));
    assert!(chat.send("And then?").unwrap().usage.cached >= answer.usage.prompt);

    // Through a lock: the conversation has the answer once the stream is gone.
    let shared = std::sync::Mutex::new(start());
    let stream = Ask::new(shared.lock().unwrap(), "Who?").max_tokens(3).stream().unwrap();
    assert!(shared.try_lock().is_err());
    assert_eq!(stream.take(2).count(), 2);
    assert_eq!(shared.try_lock().unwrap().messages().len(), 3);
    let reply = Ask::regenerate(shared.lock().unwrap()).run().unwrap();
    assert_eq!(reply.tokens, answer.tokens);
}
