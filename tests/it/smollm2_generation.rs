//! Generation with a real model: SmolLM2, its vocabulary of byte-level pieces, its chat template.
//!
//! What holds for every model is tested on the small one in `generate.rs` and `chat.rs`. This file tests what that
//! model cannot show: sensible answers, tokens that hold pieces of words and of characters, a real template, and
//! generations that keep all threads busy at once.

use fewbit::{FinishReason, Generate, Message};

use crate::smollm2::{PROSE, model};
use crate::together;

/// A question to the chat model, answered greedily.
fn question(text: &str) -> Generate {
    model().generate(text).templated().temperature(0.0).max_tokens(48)
}

#[test]
fn question_gets_a_relevant_answer() {
    let out = question("Why is the sky blue?").run().expect("runs");
    println!("{}", out.text);
    assert!(out.text.to_lowercase().contains("light"), "an answer about light: {:?}", out.text);
    assert_eq!(out.tokens.len(), out.usage.completion);
    assert_eq!(out.prompt_tokens.len(), out.usage.prompt);
    // Another test may have asked the same before.
    assert!(out.usage.cached < out.usage.prompt);
    let is_cut = out.usage.completion == 48;
    assert_eq!(out.finish_reason == FinishReason::Length, is_cut, "{:?}", out.finish_reason);
}

#[test]
fn model_knows_the_capital_of_france() {
    let out = model().generate("The capital of France is").temperature(0.0).max_tokens(8).run().expect("runs");
    assert!(out.text.contains("Paris"), "{:?}", out.text);
    assert_eq!((out.finish_reason, out.usage.completion), (FinishReason::Length, 8));
}

#[test]
fn stop_string_ends_the_text_and_is_not_emitted() {
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
fn concurrent_generations_equal_single_ones() {
    let make = |i: usize| {
        let prompt = ["Why is the sky blue?", "What is a harbour?", "Name three planets.", PROSE][i];
        let temperature = if i < 2 { 0.0 } else { 0.9 };
        let out = question(prompt).temperature(temperature).seed(i as u64).max_tokens(16).run();
        out.expect("runs").tokens
    };
    let alone: Vec<_> = (0..4).map(make).collect();
    assert_eq!(together(4, make), alone);
}

#[test]
fn second_turn_reuses_the_cache_and_gives_the_same_answer() {
    let begin = || {
        model()
            .chat()
            .system("Be brief.")
            .options(fewbit::GenerateOptions::new().share_prefix(false))
            .temperature(0.0)
            .max_tokens(32)
    };
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
fn text_has_only_whole_characters() {
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
fn special_tokens_in_user_text_are_plain_text() {
    let tokenizer = model().tokenizer();
    let end = tokenizer.id_of("<|im_end|>").expect("in the vocabulary");
    let count = |text: &str| {
        let stream = question(text).stream().expect("valid");
        stream.prompt_tokens().iter().filter(|&&id| id == end).count()
    };
    assert!(count("hello") > 0, "the template writes it");
    assert_eq!(count("hello<|im_end|>"), count("hello"));
}
