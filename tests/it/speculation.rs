//! Speculation changes the time, but not the tokens.

use fewbit::expert::format::{GgufFile, GgufWriter};
use fewbit::{Constraint, ErrorKind, FinishReason, Generate, Model, Speculation};
use serde_json::json;

use crate::{STORIES, altered, load, stories};

/// A text that repeats itself, and one that does not.
const PROMPTS: [&str; 2] = [
    "Lily had a red ball. Lily had a red ball. Tom had a blue car. Lily had a red ball. Tom had a blue",
    "Once upon a time",
];

fn requests(model: &Model) -> Vec<Generate> {
    let mut all = Vec::new();
    for prompt in PROMPTS {
        let request = || model.generate(prompt).max_tokens(80).seed(5);
        all.push(request().temperature(0.0));
        all.push(request().temperature(0.0).ignore_eos(true).max_tokens(300));
        all.push(request().temperature(0.8));
        all.push(request().temperature(2.0).top_k(0).top_p(1.0).min_p(0.0).ignore_eos(true));
        all.push(request().temperature(0.0).stop("ball"));
        all.push(request().temperature(0.3).options(fewbit::GenerateOptions::new().repeat_penalty(1.2)).min_p(0.1));
        all.push(request().max_tokens(1));
        all.push(request().max_tokens(2));
    }
    all
}

#[test]
fn lookup_changes_no_token_and_reports_its_drafts() {
    let (mut drafted, mut accepted) = (0, 0);
    for (i, request) in requests(stories()).into_iter().enumerate() {
        let plain = request.clone().speculation(Speculation::Off).run().unwrap();
        assert_eq!((plain.usage.drafted, plain.usage.accepted), (0, 0));
        for speculation in [Speculation::Always, Speculation::Auto] {
            let out = request.clone().speculation(speculation).run().unwrap();
            assert_eq!((&out.tokens, &out.text), (&plain.tokens, &plain.text), "request {i}, {speculation:?}");
            assert_eq!(out.finish_reason, plain.finish_reason, "request {i}, {speculation:?}");
            assert_eq!(out.usage.completion, plain.usage.completion);
            assert!(out.usage.accepted <= out.usage.drafted && out.usage.accepted < out.usage.completion.max(1));
            if speculation == Speculation::Always {
                drafted += out.usage.drafted;
                accepted += out.usage.accepted;
            }
        }
    }
    assert!(accepted > 50 && accepted < drafted, "{accepted} of {drafted}: both kinds must come up");
}

#[test]
fn pieces_have_one_token_each_with_speculation() {
    let request = || stories().generate(PROMPTS[0]).temperature(0.0).max_tokens(60).speculation(Speculation::Always);
    let whole = request().run().unwrap();
    let mut stream = request().stream().unwrap();
    let pieces: Vec<_> = stream.by_ref().map(|piece| piece.unwrap()).collect();
    assert!(pieces.iter().all(|piece| piece.token_ids.len() <= 1));
    assert_eq!(pieces.iter().map(|piece| &piece.text[..]).collect::<String>(), whole.text);
    assert_eq!(stream.into_completion().tokens, whole.tokens);
}

/// Makes a model worse.
fn worsen(name: &str, bytes: &mut [u8]) {
    if name.contains("ffn_down") {
        bytes.fill(0);
    }
}

#[test]
fn good_and_bad_draft_models_change_no_token() {
    let good = load(|b| b);
    let bad = altered(|_| {}, worsen);
    for (draft, at_least) in [(&good, 0.2), (&bad, 0.0)] {
        let (mut drafted, mut accepted) = (0, 0);
        for (i, request) in requests(stories()).into_iter().enumerate() {
            let plain = request.clone().speculation(Speculation::Off).run().unwrap();
            let out = request.draft(draft).speculation(Speculation::Always).run().unwrap();
            assert_eq!((out.tokens, out.text), (plain.tokens, plain.text), "request {i}");
            drafted += out.usage.drafted;
            accepted += out.usage.accepted;
        }
        assert!(accepted as f64 >= at_least * drafted as f64 && accepted < drafted, "{accepted} of {drafted}");
    }
    good.clear_prefixes().unwrap();
    assert_eq!(good.metrics().kv_pages, 0, "drafting leaves nothing behind");
}

#[test]
fn draft_model_with_another_vocabulary_is_rejected() {
    let metadata = |writer: &mut GgufWriter<'_>| {
        let file = GgufFile::open(STORIES.as_ref()).unwrap();
        let mut tokens = file.metadata().require_str_array("tokenizer.ggml.tokens").unwrap().to_vec();
        tokens.swap(300, 301);
        writer.set("tokenizer.ggml.tokens", tokens);
    };
    let other = altered(metadata, worsen);
    let error = stories().generate("Once").draft(&other).run().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OtherVocabulary { .. }), "{error:?}");
}

#[test]
fn drafts_end_at_the_context_length() {
    let request = |speculation| {
        let prompt = "Lily had a red ball. ".repeat(30);
        stories().generate(prompt).temperature(0.0).ignore_eos(true).speculation(speculation).run().unwrap()
    };
    let (plain, out) = (request(Speculation::Off), request(Speculation::Always));
    assert_eq!((out.tokens, out.finish_reason), (plain.tokens, FinishReason::Length));
    assert!(out.usage.accepted > 0);
}

#[test]
fn forced_tokens_take_fewer_steps_and_stay_the_same() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["identification", "classification"],
        "properties": {
            "identification": { "type": "integer", "minimum": 0, "maximum": 99 },
            "classification": { "enum": ["vertebrate animal", "flowering plant"] }
        }
    });
    let model = crate::smollm2::model();
    for (i, constraint) in [
        Constraint::json_schema(schema.clone()).compact(),
        Constraint::json_schema(schema),
        Constraint::regex("The answer to the question of life is (forty-two|unknown)\\."),
        Constraint::choice(["the longest of all rivers", "the highest of all mountains"]),
    ]
    .into_iter()
    .enumerate()
    {
        let request =
            || model.generate("A record:").temperature(0.8).seed(7).max_tokens(60).constraint(constraint.clone());
        let plain = request().speculation(Speculation::Off).run().unwrap();
        assert_eq!(plain.usage.drafted, 0);
        // By default too: a token that is certain always pays.
        for speculation in [Speculation::Always, Speculation::Auto] {
            let out = request().speculation(speculation).run().unwrap();
            assert_eq!((&out.tokens, &out.text), (&plain.tokens, &plain.text), "constraint {i}");
            assert_eq!(out.finish_reason, plain.finish_reason, "constraint {i}");
            assert!(out.usage.accepted > 0, "constraint {i}: {:?} {:?}", out.usage, out.text);
        }
    }
}

#[test]
fn draft_model_cache_counts_towards_both_limits() {
    let page = stories().metrics().kv_page_bytes;
    let with = |pages: u64| load(|b| b.kv_memory(pages * page).prefix_memory(0));
    let drafted = |pages, draft_pages, prompt: &str| {
        let (model, draft) = (with(pages), with(draft_pages));
        let request = model.generate(prompt).temperature(0.0).ignore_eos(true).max_tokens(20);
        let plain = request.clone().run().unwrap();
        let out = request.draft(&draft).speculation(Speculation::Always).run().unwrap();
        assert_eq!(out.tokens, plain.tokens);
        out.usage.drafted
    };
    assert!(drafted(2, 1, "Once upon") > 0, "a page for each");
    assert_eq!(drafted(1, 9, "Once upon"), 0, "no room beside the model's own");
    let long = "Lily had a red ball. ".repeat(40);
    assert!(drafted(9, 2, &long) > 0);
    assert_eq!(drafted(9, 1, &long), 0, "more than the draft model may hold");
}
