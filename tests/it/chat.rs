//! Conversations: what is kept between turns, and what a turn that did not end leaves.

use fewbit::{Chat, Error, FinishReason, Message};

use crate::{load, stories};

fn start() -> Chat {
    // What is known must come from the conversation itself.
    let chat = stories().chat().options(fewbit::GenerateOptions::new().share_prefix(false));
    chat.system("Tell a story.").temperature(0.0).max_tokens(20).start().unwrap()
}

#[test]
fn later_turns_compute_only_what_is_new() {
    let mut chat = start();
    let first = chat.send("Who?").unwrap();
    assert_eq!(first.usage.cached, 0);
    let second = chat.send("And then?").unwrap();
    // All of the first prompt is still there.
    assert!(second.usage.cached >= first.usage.prompt, "{:?} after {:?}", second.usage, first.usage);
    assert!(second.timings.prefill_tokens < second.usage.prompt);
    assert_eq!(second.timings.prefill_tokens + second.usage.cached, second.usage.prompt);

    // The cache changes nothing: a new conversation with the same past gives the same answer.
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
fn a_conversation_has_its_messages_in_order() {
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
fn a_cancelled_answer_stays_as_far_as_it_went() {
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
fn a_turn_dropped_before_its_first_token_leaves_nothing() {
    let mut chat = start();
    drop(chat.send_stream("Who?").unwrap());
    assert_eq!(chat.messages().len(), 1);
    assert_eq!(chat.send("Who?").unwrap().text, start().send("Who?").unwrap().text);
}

#[test]
fn a_turn_that_does_not_fit_is_refused_and_the_conversation_goes_on() {
    let model = load(|b| b.context_length(128));
    let mut chat = model.chat().temperature(0.0).max_tokens(8).start().unwrap();
    let first = chat.send("Who?").unwrap();
    let before = chat.messages().to_vec();
    let error = chat.send("Once upon a time. ".repeat(40)).unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { context_tokens: 128, .. }), "{error:?}");
    assert_eq!(chat.messages(), before);
    let second = chat.send("And then?").unwrap();
    assert!(second.usage.cached >= first.usage.prompt);
}

#[test]
fn conversations_do_not_mix() {
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
