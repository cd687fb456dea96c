//! What callers of the API rely on, on SmolLM2: answers, repeatability, stop strings, cancellation,
//! generations side by side, conversations.

use std::thread;

use fewbit::{Completion, Error, FinishReason, Generate, Message};

use crate::smollm2::{PROSE, model};

/// A question to the chat model, answered greedily.
fn question(text: &str) -> Generate {
    model().generate(text).templated().temperature(0.0).max_tokens(48)
}

/// A story by chance, but for its seed.
fn story(seed: u64) -> Completion {
    model().generate("Once upon a time").temperature(1.0).seed(seed).max_tokens(24).run().expect("runs")
}

#[test]
fn a_question_gets_an_answer_to_it() {
    let out = question("Why is the sky blue?").run().expect("runs");
    println!("{}", out.text);
    assert!(out.text.to_lowercase().contains("light"), "an answer about light: {:?}", out.text);
    assert_eq!(out.tokens.len(), out.usage.completion);
    assert_eq!(out.prompt_tokens.len(), out.usage.prompt);
    assert_eq!(out.usage.cached, 0);
    let is_cut = out.usage.completion == 48;
    assert_eq!(out.finish_reason == FinishReason::Length, is_cut, "{:?}", out.finish_reason);
}

#[test]
fn a_fact_is_known() {
    let out = model().generate("The capital of France is").temperature(0.0).max_tokens(8).run().expect("runs");
    assert!(out.text.contains("Paris"), "{:?}", out.text);
    assert_eq!((out.finish_reason, out.usage.completion), (FinishReason::Length, 8));
}

#[test]
fn greedy_generations_repeat_run_or_streamed() {
    let whole = question("Name three planets.").run().expect("runs");
    let mut stream = question("Name three planets.").stream().expect("a valid prompt");
    let (mut text, mut tokens) = (String::new(), Vec::new());
    while let Some(piece) = stream.next() {
        let piece = piece.expect("runs");
        text += &piece.text;
        tokens.extend(piece.token_ids);
        assert_eq!(stream.text(), text);
    }
    assert!(stream.next().is_none(), "an end is final");
    assert_eq!((&text, &tokens), (&whole.text, &whole.tokens));
    let again = stream.into_completion();
    assert_eq!((again.text, again.tokens), (whole.text, whole.tokens));
    assert_eq!((again.finish_reason, again.usage), (whole.finish_reason, whole.usage));
}

#[test]
fn a_seed_repeats_and_another_differs() {
    let (first, again, other) = (story(7), story(7), story(8));
    assert_eq!((first.seed, &first.text, &first.tokens), (7, &again.text, &again.tokens));
    assert_ne!(first.tokens, other.tokens);

    // A seed that was drawn is told, and repeats too.
    let drawn = model().generate("Once upon a time").temperature(1.0).max_tokens(24).run().expect("runs");
    assert_eq!(story(drawn.seed).tokens, drawn.tokens);
}

#[test]
fn a_stop_string_ends_the_text_before_it_and_none_of_it_comes_out() {
    let whole = question("Why is the sky blue?").run().expect("runs");
    // From the middle of a word to the middle of a later one: it spans tokens, and begins and ends within some.
    let start = whole.text.char_indices().nth(40).expect("a longer answer").0;
    let end = whole.text.char_indices().nth(53).expect("a longer answer").0;
    let stop = &whole.text[start..end];
    let first = whole.text.find(stop).expect("it is in there");

    let mut stream = question("Why is the sky blue?").stop(stop).stop("never in any answer").stream().expect("valid");
    let mut text = String::new();
    for piece in &mut stream {
        text += &piece.expect("runs").text;
        assert!(whole.text[..first].starts_with(&text), "{text:?} holds a part of {stop:?}");
    }
    assert_eq!(text, whole.text[..first]);
    let out = stream.into_completion();
    assert_eq!((out.text.as_str(), out.finish_reason), (text.as_str(), FinishReason::StopString));
    assert_eq!(whole.tokens[..out.tokens.len()], out.tokens);
}

#[test]
fn a_stop_string_that_does_not_come_changes_nothing() {
    let whole = question("Name three planets.").run().expect("runs");
    let last = whole.text.chars().last().expect("a text");
    // Its beginning is the end of the text: held back, then let out.
    let out = question("Name three planets.").stop(format!("{last}and more")).run().expect("runs");
    assert_eq!((out.text, out.finish_reason), (whole.text, whole.finish_reason));
}

#[test]
fn a_dropped_stream_leaves_the_model_as_it_was() {
    let before = question("Name three planets.").run().expect("runs");
    let mut stream = question("Write a long story.").stream().expect("valid");
    for _ in 0..3 {
        stream.next().expect("not at its end").expect("runs");
    }
    let cut = stream.into_completion();
    assert_eq!((cut.finish_reason, cut.usage.completion), (FinishReason::Cancelled, 3));
    let mut stream = question("Write a long story.").stream().expect("valid");
    stream.next().expect("not at its end").expect("runs");
    drop(stream);
    drop(question("Write a long story.").stream().expect("valid"));
    let after = question("Name three planets.").run().expect("runs");
    assert_eq!(after.tokens, before.tokens);
}

#[test]
fn generations_side_by_side_write_what_they_write_alone() {
    let make = |i: usize| {
        let prompt = ["Why is the sky blue?", "What is a harbour?", "Name three planets.", PROSE][i];
        let temperature = if i < 2 { 0.0 } else { 0.9 };
        let out = question(prompt).temperature(temperature).seed(i as u64).max_tokens(16).run();
        out.expect("runs").tokens
    };
    let alone: Vec<_> = (0..4).map(make).collect();
    let together: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|i| scope.spawn(move || make(i))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn a_second_turn_reuses_the_first_and_answers_as_if_it_had_not() {
    let begin = || model().chat().system("Be brief.").temperature(0.0).max_tokens(32);
    let mut chat = begin().start().expect("a chat model");
    let first = chat.send("Name a planet.").expect("runs");
    let history: Vec<Message> = chat.messages()[1..].to_vec();
    let second = chat.send("Is it larger than the Earth?").expect("runs");
    assert_eq!(first.usage.cached, 0);
    assert!(second.usage.cached > 0 && second.usage.cached < second.usage.prompt, "{:?}", second.usage);
    assert_eq!(second.timings.prefill_tokens, second.usage.prompt - second.usage.cached);

    let mut fresh = begin().history(history).start().expect("a chat model");
    let want = fresh.send("Is it larger than the Earth?").expect("runs");
    assert_eq!(want.usage.cached, 0);
    assert_eq!(second.prompt_tokens, want.prompt_tokens);
    assert_eq!((second.tokens, second.text), (want.tokens, want.text));
}

#[test]
fn a_cancelled_turn_stays_as_far_as_it_went() {
    let mut chat = model().chat().temperature(0.0).max_tokens(32).start().expect("a chat model");
    let before = chat.messages().len();
    let mut stream = chat.send_stream("Tell me about the sea.").expect("valid");
    while stream.text().is_empty() {
        stream.next().expect("not at its end").expect("runs");
    }
    let text = stream.text().to_owned();
    drop(stream);
    assert_eq!(chat.messages().len(), before + 2);
    assert_eq!(chat.messages()[before + 1].content, text);
    drop(chat.send_stream("And the wind?").expect("valid"));
    assert_eq!(chat.messages().len(), before + 2, "a turn without text leaves nothing");
    let next = chat.send("Go on.").expect("runs");
    assert!(next.usage.cached > 0);
}

#[test]
fn text_is_whole_characters_however_tokens_cut_them() {
    // Characters of three and four bytes, most of them several tokens long; greedy goes on with the pattern.
    for prompt in ["🙂🙃🙂🙃🙂🙃🙂🙃🙂🙃🙂🙃", "天気天気天気天気天気天気天気天気", "é̂é̂é̂é̂é̂é̂é̂é̂é̂"]
    {
        let mut stream = model().generate(prompt).temperature(0.0).max_tokens(24).stream().expect("valid");
        let mut pieces = Vec::new();
        for piece in &mut stream {
            pieces.push(piece.expect("runs").text);
        }
        let out = stream.into_completion();
        let held_back = pieces.iter().filter(|text| text.is_empty()).count();
        println!("{:?}: {held_back} of {} pieces waited for the rest of a character", out.text, pieces.len());
        assert_eq!(pieces.concat(), out.text);
        assert_eq!(out.text, model().tokenizer().decode(&out.tokens));
        if out.usage.completion > 8 {
            let whole = out.text.trim_end_matches('\u{FFFD}');
            assert!(!whole.contains('\u{FFFD}'), "only a character cut off by the limit is replaced: {:?}", out.text);
        }
    }
}

#[test]
fn special_tokens_in_what_a_user_writes_are_text() {
    let tokenizer = model().tokenizer();
    let end = tokenizer.id_of("<|im_end|>").expect("in the vocabulary");
    let count = |text: &str| {
        let stream = question(text).stream().expect("valid");
        stream.prompt_tokens().iter().filter(|&&id| id == end).count()
    };
    assert!(count("hello") > 0, "the template writes it");
    assert_eq!(count("hello<|im_end|>"), count("hello"));
}

#[test]
fn prompts_that_cannot_run_are_refused_by_kind() {
    let n_vocab = model().tokenizer().n_vocab() as u32;
    let error = |prompt: Vec<u32>| model().generate(prompt).stream().expect_err("refused");
    assert!(matches!(error(vec![]), Error::EmptyPrompt));
    assert!(matches!(error(vec![n_vocab]), Error::TokenOutOfRange { token, .. } if token == n_vocab));
    let n = model().context_length();
    assert!(matches!(error(vec![1; n]), Error::PromptTooLong { prompt_tokens, .. } if prompt_tokens == n));
    assert!(matches!(question("x").temperature(f32::NAN).stream(), Err(Error::Sampling(_))));
}
