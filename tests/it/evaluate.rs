//! Likelihoods and perplexity, on a model small enough to compute them in another way.

use fewbit::ErrorKind;
use fewbit::evaluate::PerplexityOptions;
use fewbit::expert::engine::{Chunk, LogitsFor};

use crate::stories;

const TEXT: &str = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One \
                    day, she saw a big, red ball. She wanted to play with it, but it was too high. Her mom said no.";

fn tokens(text: &str) -> Vec<u32> {
    stories().generate(text).max_tokens(0).stream().unwrap().prompt_tokens().to_vec()
}

/// One token at a time, and the softmax written out.
fn one_by_one(tokens: &[u32]) -> Vec<f64> {
    let decoder = fewbit::expert::decoder(stories());
    let mut cache = decoder.new_cache();
    tokens
        .windows(2)
        .map(|pair| {
            let chunk = Chunk { cache: &mut cache, tokens: &pair[..1], logits: LogitsFor::Last };
            let logits = decoder.forward(&mut [chunk]).unwrap();
            let exps: Vec<f64> = logits.row(0).iter().map(|&x| f64::from(x).exp()).collect();
            -(exps[pair[1] as usize] / exps.iter().sum::<f64>()).ln()
        })
        .collect()
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() < 1e-9, "token {i}: {a} for {b}");
    }
}

#[test]
fn scores_match_single_steps() {
    let tokens = tokens(TEXT);
    assert!(tokens.len() > 65, "more than one block of logits: {}", tokens.len());
    assert_close(&stories().score(&tokens).unwrap(), &one_by_one(&tokens));
    assert!(stories().score(&tokens[..1]).unwrap().is_empty());
    assert!(stories().score(&[]).unwrap().is_empty());
    assert!(matches!(
        stories().score(&[1, 9999]).map_err(fewbit::Error::into_kind),
        Err(ErrorKind::TokenOutOfRange { token: 9999, .. })
    ));
}

#[test]
fn perplexity_scores_the_second_half_of_each_window() {
    let text = TEXT.repeat(2);
    let tokens = tokens(&text);
    let ctx = 32;
    let mut expected = Vec::new();
    for window in tokens.chunks_exact(ctx).take(3) {
        // Every window begins with the token that begins a text, in place of its first token.
        let mut window = window.to_vec();
        window[0] = 1;
        expected.extend_from_slice(&one_by_one(&window)[ctx / 2..]);
    }
    let mut seen = Vec::new();
    let options = PerplexityOptions::default().ctx(ctx).chunks(3);
    let result = stories().perplexity(&text, &options, |so_far| seen.push(so_far.chunks_done)).unwrap();
    assert_eq!(seen, [1, 2, 3]);
    assert_eq!(result.nll_per_token.len(), 3 * (ctx / 2 - 1));
    assert_close(&result.nll_per_token, &expected);
    let mean = expected.iter().sum::<f64>() / expected.len() as f64;
    assert!((result.ppl() - mean.exp()).abs() < 1e-9);

    let all = stories().perplexity(&text, &PerplexityOptions::default().ctx(ctx), |_| {}).unwrap();
    assert_eq!(all.chunks_done, tokens.len() / ctx);
    assert_eq!(all.nll_per_token[..expected.len()], result.nll_per_token);
}

#[test]
fn invalid_windows_are_errors() {
    let run = |text: &str, ctx| stories().perplexity(text, &PerplexityOptions::default().ctx(ctx), |_| {});
    assert!(matches!(run(TEXT, 3).map_err(fewbit::Error::into_kind), Err(ErrorKind::TooShort { found: 3, .. })));
    assert!(matches!(run(TEXT, 1 << 20).map_err(fewbit::Error::into_kind), Err(ErrorKind::ContextTooLong { .. })));
    assert!(matches!(
        run("Once", 64).map_err(fewbit::Error::into_kind),
        Err(ErrorKind::TooShort { needed: 128, found: 2.. })
    ));
}

/// Scoring uses the engine like any request, so its keys and values count towards the memory limit.
#[test]
fn scoring_counts_towards_the_memory_limit() {
    let page = stories().metrics().kv_page_bytes;
    let small = crate::load(|builder| builder.kv_memory(page).prefix_memory(page));
    let text = TEXT.repeat(20);
    let long = tokens(&TEXT.repeat(6));
    // The context is two pages of 256 tokens, and there may be one.
    let options = |ctx| PerplexityOptions::default().ctx(ctx).chunks(2);
    let error = small.perplexity(&text, &options(400), |_| {}).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::KvMemory { .. }), "{error:?}");
    let error = small.importance(&text, "text", &options(400), |_, _| {}).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::KvMemory { .. }), "{error:?}");
    assert!(matches!(small.score(&long[..300]).map_err(fewbit::Error::into_kind), Err(ErrorKind::KvMemory { .. })));
    assert!(matches!(
        small.logprobs(fewbit::Prompt::Tokens(long[..300].to_vec()), 1).map_err(fewbit::Error::into_kind),
        Err(ErrorKind::KvMemory { .. })
    ));

    // Pages that requests have left for reuse are evicted for it, and it waits for running requests.
    let expected = stories().perplexity(&text, &options(128), |_| {}).unwrap().nll_per_token;
    let kept = small.generate("Once upon a time, there was").max_tokens(8).temperature(0.0).run().unwrap();
    let results = crate::together(6, |i| match i % 2 {
        0 => Ok(small.perplexity(&text, &options(128), |_| {}).unwrap().nll_per_token),
        _ => Err(small.generate("Once upon a time, there was").max_tokens(8).temperature(0.0).run().unwrap().tokens),
    });
    for result in results {
        match result {
            Ok(nll) => assert_eq!(nll, expected),
            Err(tokens) => assert_eq!(tokens, kept.tokens),
        }
    }
    // A stream that nobody reads gives up its pages; otherwise this would wait forever.
    let mut stream = small.generate("Once upon a time, there was").max_tokens(40).temperature(0.0).stream().unwrap();
    let first = stream.next().unwrap().unwrap().text;
    assert_eq!(small.perplexity(&text, &options(128), |_| {}).unwrap().nll_per_token, expected);
    let rest: String = stream.map(|piece| piece.unwrap().text).collect();
    let whole = stories().generate("Once upon a time, there was").max_tokens(40).temperature(0.0).run().unwrap();
    assert_eq!(first + &rest, whole.text);
    assert!(small.metrics().kv_pages <= 1, "{:?}", small.metrics());
    assert!(small.divergence_from(stories(), &text, &options(128), |_, _| {}).unwrap().mean_kl() < 1e-9);
}
