//! Sixty-four requests at once on a real model: each gives the same as alone.
//!
//! `engine.rs` does the same on a small model, thousands of times. This file adds what that cannot show: steps that
//! take long enough for requests to meet in every state, a large vocabulary, and constraints that leave no choice.

use std::path::Path;
use std::thread;

use fewbit::{Constraint, FinishReason, Generate, Model, Speculation};
use serde_json::json;

use crate::smollm2;

const REQUESTS: usize = 64;

/// The beginnings of the prompts. Some are alike, as in an application.
const PROMPTS: [&str; 6] = [
    "Translate to French: the harbour is open. French:",
    "Translate to French: the bread is warm. French:",
    "# Reads a file and counts its words\ndef ",
    "1, 1, 2, 3, 5, 8,",
    "The sky is blue because the sky is blue because the sky",
    "A recipe for pancakes needs",
];

/// A request that differs from all others in its prompt, its length, or how its tokens are chosen.
fn request(model: &Model, i: usize) -> Generate {
    let prompt = PROMPTS[i % PROMPTS.len()];
    let request = model.generate(format!("{prompt} {}", "so ".repeat(i % 5))).seed(i as u64).max_tokens(6 + i % 7);
    let object = json!({
        "type": "object", "properties": { "name": { "type": "string" }, "amount": { "type": "integer" } },
        "required": ["name", "amount"], "additionalProperties": false
    });
    match i % 9 {
        0 => request.temperature(0.0),
        1 => request.temperature(1.2).top_k(0).top_p(0.9),
        2 => request.temperature(0.8).min_p(0.1).options(fewbit::GenerateOptions::new().repeat_penalty(1.3)),
        3 => request.temperature(0.7).constraint(Constraint::json_schema(object)),
        4 => request.temperature(0.0).constraint(Constraint::json_schema(object).compact()),
        5 => request.temperature(1.0).constraint(Constraint::choice(["yes, of course", "no, never", "perhaps"])),
        6 => request.temperature(0.9).constraint(Constraint::regex("[a-z]+ [0-9]{4}-[0-9]{2}")),
        7 => request.temperature(1.5).ignore_eos(true).stop("the"),
        _ => request.temperature(0.0).logprobs(2),
    }
}

type Outcome = (Vec<u32>, String, FinishReason);

/// The next turn of a saved conversation.
fn turn(model: &Model, saved: &Path, i: usize) -> Outcome {
    let chat = model.chat().options(fewbit::GenerateOptions::new().share_prefix(false)).temperature(0.8).max_tokens(8);
    let out = chat.restore(saved).unwrap().send(format!("And what about {i}?")).unwrap();
    assert!(out.usage.cached > 0, "its pages came from the file");
    (out.tokens, out.text, out.finish_reason)
}

/// One of each eight is a turn of a conversation.
fn is_turn(i: usize) -> bool {
    i % 8 == 5
}

#[test]
fn sixty_four_concurrent_requests_equal_single_ones() {
    let load = || smollm2::load(Model::builder().threads(2).prefix_memory(0));
    let (one_by_one, without_prefixes) = (load(), load());
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("chat.session");
    let mut chat = one_by_one.chat().system("Be brief.").temperature(0.8).seed(5).max_tokens(8).start().unwrap();
    chat.send("What is 7?").unwrap();
    chat.save(&saved).unwrap();
    let want: Vec<Outcome> = (0..REQUESTS)
        .map(|i| {
            if is_turn(i) {
                return turn(&one_by_one, &saved, i);
            }
            let out = request(&one_by_one, i).speculation(Speculation::Off).run().unwrap();
            (out.tokens, out.text, out.finish_reason)
        })
        .collect();

    let check = |what: &str, model: &Model, speculation: Speculation, cancels: bool| {
        let (want, saved) = (&want, &saved);
        thread::scope(|scope| {
            for (i, want) in want.iter().enumerate() {
                scope.spawn(move || {
                    if is_turn(i) {
                        return assert_eq!(&turn(model, saved, i), want, "turn {i}, {what}");
                    }
                    let mut stream = request(model, i).speculation(speculation).stream().unwrap();
                    // Half of them, at any point.
                    if cancels && (i * 7 + i / 8) % 2 == 0 {
                        stream.by_ref().take(i % 6).for_each(|piece| drop(piece.unwrap()));
                        let got = stream.into_completion();
                        return assert!(want.0.starts_with(&got.tokens), "request {i}, cancelled, {what}");
                    }
                    stream.by_ref().for_each(|piece| drop(piece.unwrap()));
                    let got = stream.into_completion();
                    assert_eq!(&(got.tokens, got.text, got.finish_reason), want, "request {i}, {what}");
                });
            }
        });
    };
    let model = smollm2::model();
    check("drafts forced, half cancelled", model, Speculation::Always, true);
    check("prefixes known, drafts forced", model, Speculation::Always, false);
    check("prefixes known", model, Speculation::Off, false);
    check("no prefixes", &without_prefixes, Speculation::Auto, false);
    assert_eq!(without_prefixes.clear_prefixes().unwrap(), 0, "nothing is left behind");
    assert!(model.metrics().cached_tokens > 0 && model.metrics().accepted_tokens > 0, "{:?}", model.metrics());
}
