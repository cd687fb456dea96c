//! Embeddings: comparison with reference values, the same bits whatever else runs, and typed errors.

use std::thread;
use std::time::{Duration, Instant};

use fewbit::expert::format::GgufWriter;
use fewbit::{CancelToken, Error, ErrorKind, FinishReason, Model, Pooling};
use serde::Deserialize;

use crate::{altered, load, smollm2, stories};

const ALL: [Pooling; 3] = [Pooling::Mean, Pooling::Last, Pooling::Cls];

/// What `embeddings.py` computed, and llama.cpp.
#[derive(Deserialize)]
struct Golden<Input> {
    #[serde(alias = "ids", alias = "text")]
    input: Input,
    mean: Vec<f32>,
    last: Vec<f32>,
    cls: Vec<f32>,
}

impl<Input> Golden<Input> {
    fn of(&self, pooling: Pooling) -> &[f32] {
        match pooling {
            Pooling::Last => &self.last,
            Pooling::Cls => &self.cls,
            _ => &self.mean,
        }
    }
}

#[derive(Deserialize)]
struct Goldens {
    stories: Golden<Vec<u32>>,
    smollm2: Golden<String>,
}

fn goldens() -> Goldens {
    serde_json::from_str(include_str!("../data/embeddings.json")).unwrap()
}

/// Texts of one token to more than a page of the cache.
fn texts() -> Vec<String> {
    let sentence = "Lily and her mom went to the park, and she was very happy. ";
    (0..21).map(|i| format!("{i}{}", sentence.repeat([0, 1, 3, 22][i % 4]))).collect()
}

fn bits(vectors: &[Vec<f32>]) -> Vec<Vec<u32>> {
    vectors.iter().map(|v| v.iter().map(|x| x.to_bits()).collect()).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[test]
fn vectors_match_float64() {
    let golden = goldens().stories;
    for pooling in ALL {
        let out = stories().embed([&golden.input]).pooling(pooling).normalize(false).run().unwrap();
        let pairs = out.vectors[0].iter().zip(golden.of(pooling));
        let worst = pairs.map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        println!("{pooling:?}: {worst:e} off");
        assert!(out.vectors[0].len() == golden.mean.len() && worst < 1e-4, "{pooling:?}: {worst}");
        assert_eq!((out.usage.prompt, out.usage.completion), (golden.input.len(), 0));
    }
}

#[test]
fn vectors_match_llama_cpp() {
    let golden = goldens().smollm2;
    for pooling in ALL {
        let out = smollm2::model().embed([&golden.input[..]]).pooling(pooling).run().unwrap();
        let cosine = dot(&out.vectors[0], golden.of(pooling));
        println!("{pooling:?}: cosine {cosine:.6}");
        // Both quantize the inputs of products, in different ways.
        assert!(cosine > 0.999, "{pooling:?}: {cosine}");
        let length = dot(&out.vectors[0], &out.vectors[0]);
        assert!((length - 1.0).abs() < 1e-6, "{length}");
    }
}

#[test]
fn vector_bits_depend_only_on_the_text() {
    let texts = texts();
    for pooling in ALL {
        let plain = load(|b| b);
        let alone = texts.iter().map(|text| plain.embed([text]).pooling(pooling).run().unwrap().vectors.remove(0));
        let alone: Vec<_> = alone.collect();
        let together = |model: &Model| model.embed(&texts).pooling(pooling).run().unwrap();
        assert_eq!(bits(&together(&plain).vectors), bits(&alone), "{pooling:?}, together");
        assert_eq!(plain.metrics().prefix_pages, 0, "texts are not remembered");
        assert_eq!(plain.clear_prefixes().unwrap(), 0, "texts leave nothing behind");

        // With the texts as known prefixes, and with generations of the same texts at the same time.
        let known = load(|b| b.threads(2));
        thread::scope(|scope| {
            for text in &texts[..8] {
                known.generate(text).max_tokens(1).run().unwrap();
                let known = &known;
                scope.spawn(move || known.generate(text).seed(1).max_tokens(20).run().unwrap());
            }
            assert_eq!(bits(&together(&known).vectors), bits(&alone), "{pooling:?}, beside generations");
        });
        assert!(known.metrics().prefix_pages > 0);

        let page = plain.metrics().kv_page_bytes;
        for (what, model) in [
            ("small chunks", load(|b| b.prefill_chunk(7))),
            ("little memory", load(|b| b.kv_memory(6 * page).prefill_chunk(100))),
            ("few at once", load(|b| b.max_running(2).max_waiting(1))),
        ] {
            assert_eq!(bits(&together(&model).vectors), bits(&alone), "{pooling:?}, {what}");
            assert_eq!(model.clear_prefixes().unwrap(), 0, "{what}");
        }
    }
}

#[test]
fn embeddings_do_not_affect_concurrent_generations() {
    let model = load(|b| b);
    let generate = || model.generate("Once upon a time").seed(5).max_tokens(60).run().unwrap().tokens;
    let alone = generate();
    thread::scope(|scope| {
        let embedding = scope.spawn(|| model.embed(texts()).run().unwrap());
        assert_eq!(generate(), alone);
        assert_eq!(embedding.join().unwrap().vectors.len(), 21);
    });
}

#[test]
fn texts_and_their_tokens_give_the_same_vectors() {
    let text = "Once upon a time";
    let tokenizer = stories().tokenizer();
    let ids = tokenizer.with_bos(tokenizer.encode(text, fewbit::expert::tokenizer::SpecialTokens::Plain));
    let list: &[&str] = &[text];
    let of_text = stories().embed(list).run().unwrap();
    assert_eq!(of_text.tokens, [ids.len()]);
    assert_eq!(stories().embed([ids]).run().unwrap().vectors, of_text.vectors);
    assert_eq!(stories().embed([text.to_owned()]).run().unwrap().vectors, of_text.vectors);
    let none = stories().embed(Vec::<String>::new()).run().unwrap();
    assert!(none.vectors.is_empty() && none.usage.prompt == 0);
}

#[test]
fn pooling_and_eos_follow_the_metadata() {
    let metadata = |writer: &mut GgufWriter<'_>| {
        writer.set("llama.pooling_type", 3u32).set("tokenizer.ggml.add_eos_token", true);
    };
    let model = altered(metadata, |_, _| {});

    assert_eq!((model.default_pooling(), stories().default_pooling()), (Pooling::Last, Pooling::Mean));
    let tokenizer = model.tokenizer();
    let mut ids = tokenizer.with_bos(tokenizer.encode("Once", fewbit::expert::tokenizer::SpecialTokens::Plain));
    ids.extend(tokenizer.eos());
    let want = stories().embed([ids]).pooling(Pooling::Last).run().unwrap();
    assert_eq!(model.embed(["Once"]).run().unwrap().vectors, want.vectors);
}

#[test]
fn invalid_inputs_fail_before_anything_is_computed() {
    let model = load(|b| b.context_length(16));
    let steps = model.metrics().steps;
    assert!(matches!(
        model.embed(["a", ""]).run().map_err(fewbit::Error::into_kind),
        Err(ErrorKind::Empty { index: Some(1) })
    ));
    assert!(matches!(
        model.embed([Vec::<u32>::new()]).run().map_err(fewbit::Error::into_kind),
        Err(ErrorKind::Empty { index: Some(0) })
    ));
    let long = "They were happy. ".repeat(10);
    let error = model.embed(["a", "b", &long]).run().unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::TooLong { index: Some(2), context_tokens: 16, tokens } if *tokens > 16),
        "{error}"
    );
    assert!(matches!(
        model.embed([vec![1, 512]]).run().map_err(fewbit::Error::into_kind),
        Err(ErrorKind::TokenOutOfRange { token: 512, n_vocab: 512 })
    ));
    assert_eq!(model.metrics().steps, steps);
    // A text may fill the context, because nothing is generated after it.
    assert_eq!(model.embed([vec![5; 16]]).run().unwrap().tokens, [16]);

    let page = model.metrics().kv_page_bytes;
    let tight = load(|b| b.kv_memory(page));
    assert!(matches!(
        tight.embed([vec![5; 300]]).run().map_err(Error::into_kind),
        Err(ErrorKind::KvMemory { n_tokens: 300, .. })
    ));
    assert!(tight.embed([vec![5; 256]]).run().is_ok());
    let full = load(|b| b.max_waiting(0));
    assert!(matches!(
        full.embed(["a"]).run().map_err(fewbit::Error::into_kind),
        Err(ErrorKind::QueueFull { limit: 0 })
    ));
}

#[test]
fn deadlines_and_cancellation_end_embedding() {
    let model = load(|b| b.max_running(1));
    let late = model.embed(["a", "b"]).deadline(Instant::now()).run().map_err(Error::into_kind);
    assert!(matches!(late, Err(ErrorKind::NotEmbedded { index: 0, reason: FinishReason::Timeout })), "{late:?}");
    let late = model.embed(["a"]).timeout(Duration::ZERO).run().map_err(Error::into_kind);
    assert!(matches!(late, Err(ErrorKind::NotEmbedded { reason: FinishReason::Timeout, .. })), "{late:?}");
    let stop = CancelToken::new();
    stop.cancel();
    let stopped = model.embed(["a"]).cancel_token(&stop).run().map_err(Error::into_kind);
    assert!(matches!(stopped, Err(ErrorKind::NotEmbedded { reason: FinishReason::Cancelled, .. })), "{stopped:?}");
    // And leaves the model as it was.
    assert_eq!(model.embed(["a"]).run().unwrap().vectors.len(), 1);
    assert_eq!(model.clear_prefixes().unwrap(), 0);
}
