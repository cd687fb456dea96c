//! Compares the decoder with a float64 forward pass, and with itself under every way to split the same work.

#[path = "support/run.rs"]
mod run;
mod support;

use fewbit_format::GgufFile;
use fewbit_model::{Chunk, Decoder, Isa, KV_PAGE, KvCache, LoadOptions, LogitsFor, LoraSet, ModelError, PrefixTree};
use run::{bits, stories};
use support::{TinyModel, tiny_models};

fn load(file: &GgufFile, isa: Isa, threads: usize) -> Decoder {
    Decoder::load(file, &LoadOptions::new().isa(isa).threads(threads)).expect("loads")
}

/// The bits of [`run::logits`].
fn logits(decoder: &Decoder, cache: &mut KvCache, tokens: &[u32], size: usize) -> Vec<u32> {
    bits(&run::logits(decoder, cache, tokens, size))
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as u32
}

#[derive(serde::Deserialize)]
struct Golden {
    ids: Vec<u32>,
}

#[test]
fn stories260k_generates_the_golden_tokens() {
    let golden: Golden = serde_json::from_str(include_str!("golden/stories260k_greedy.json")).expect("valid JSON");
    for isa in Isa::available() {
        let decoder = load(&stories(), isa, 2);
        let mut cache = decoder.new_cache();
        let mut ids = vec![golden.ids[0]];
        while ids.len() < golden.ids.len() {
            let tokens = &ids[ids.len() - 1..];
            let got = decoder.forward(&mut [Chunk { cache: &mut cache, tokens, logits: LogitsFor::Last }]);
            ids.push(argmax(got.expect("runs").row(0)));
        }
        assert_eq!(ids, golden.ids, "{isa}");
    }
}

#[test]
fn stories260k_logits_match_float64() {
    let golden: Golden = serde_json::from_str(include_str!("golden/stories260k_greedy.json")).expect("valid JSON");
    let want: Vec<f32> = include_bytes!("golden/stories260k_logits.f32")
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    let decoder = load(&stories(), Isa::best(), 1);
    let mut cache = decoder.new_cache();
    let chunk = Chunk { cache: &mut cache, tokens: &golden.ids[..200], logits: LogitsFor::All };
    let got = decoder.forward(&mut [chunk]).expect("runs");
    let mut worst = 0.0f32;
    for (i, want) in want.chunks(decoder.n_vocab()).enumerate() {
        for (g, w) in got.row(20 * i).iter().zip(want) {
            worst = worst.max((g - w).abs());
        }
    }
    println!("largest difference of a logit from float64: {worst:e}");
    assert!(worst < 1e-3, "{worst}");
}

#[test]
fn bits_do_not_depend_on_chunks_threads_or_instruction_set() {
    for TinyModel { name, file } in tiny_models() {
        let tokens: Vec<u32> = (0..300).map(|i| (i * 7 + i / 3) % 60).collect();
        let reference = load(&file, Isa::Scalar, 1);
        let want = logits(&reference, &mut reference.new_cache(), &tokens, 512);
        assert!(want.iter().all(|&b| f32::from_bits(b).is_finite()), "{name}: finite logits");
        for isa in Isa::available() {
            // One token at a time on the scalar definitions would take most of the test's time.
            let sizes: &[usize] = if isa == Isa::Scalar { &[64] } else { &[1, 7, 64, 512] };
            for threads in [1, 2] {
                let decoder = load(&file, isa, threads);
                for &size in sizes {
                    let got = logits(&decoder, &mut decoder.new_cache(), &tokens, size);
                    assert!(got == want, "{name}, {isa}, {threads} threads, chunks of {size}");
                }
            }
        }
    }
}

#[test]
fn batched_and_single_sequences_have_the_same_bits() {
    for TinyModel { name, file } in tiny_models() {
        let decoder = load(&file, Isa::best(), 2);
        let prompts: Vec<Vec<u32>> =
            [1usize, 5, 40, 2, 9].iter().map(|&n| (0..n as u32).map(|i| (i * 13 + n as u32) % 60).collect()).collect();
        let alone: Vec<Vec<u32>> = prompts.iter().map(|p| logits(&decoder, &mut decoder.new_cache(), p, 512)).collect();
        let mut caches: Vec<KvCache> = prompts.iter().map(|_| decoder.new_cache()).collect();
        let mut batch: Vec<Chunk<'_>> = caches
            .iter_mut()
            .zip(&prompts)
            .map(|(cache, tokens)| Chunk { cache, tokens, logits: LogitsFor::All })
            .collect();
        let got = decoder.forward(&mut batch).expect("runs");
        let got: Vec<u32> = (0..got.n_rows()).flat_map(|i| bits(got.row(i))).collect();
        assert!(got == alone.concat(), "{name}");
    }
}

#[test]
fn truncated_cache_continues_with_the_same_bits() {
    for TinyModel { name, file } in tiny_models() {
        let decoder = load(&file, Isa::best(), 2);
        let tokens: Vec<u32> = (0..300).map(|i| i % 60).collect();
        let (mut straight, mut bent) = (decoder.new_cache(), decoder.new_cache());
        logits(&decoder, &mut straight, &tokens, 64);
        logits(&decoder, &mut bent, &tokens, 64);
        logits(&decoder, &mut bent, &[3; 100], 64);
        bent.truncate(tokens.len());
        assert_eq!(bent.len(), tokens.len());
        let next = [11, 12, 13];
        assert!(logits(&decoder, &mut bent, &next, 2) == logits(&decoder, &mut straight, &next, 3), "{name}");
    }
}

#[test]
fn logits_are_computed_only_where_requested() {
    let decoder = load(&stories(), Isa::best(), 1);
    let (mut a, mut b, mut c) = (decoder.new_cache(), decoder.new_cache(), decoder.new_cache());
    let all = decoder.forward(&mut [Chunk { cache: &mut a, tokens: &[1, 2, 3, 4], logits: LogitsFor::All }]);
    let some = decoder.forward(&mut [
        Chunk { cache: &mut b, tokens: &[1, 2, 3, 4], logits: LogitsFor::LastN(2) },
        Chunk { cache: &mut c, tokens: &[1, 2], logits: LogitsFor::None },
    ]);
    let (all, some) = (all.expect("runs"), some.expect("runs"));
    assert_eq!((all.n_rows(), some.n_rows()), (4, 2));
    assert_eq!((some.row(0), some.row(1)), (all.row(2), all.row(3)));
    let next = decoder.forward(&mut [Chunk { cache: &mut c, tokens: &[3], logits: LogitsFor::Last }]).expect("runs");
    assert_eq!(next.row(0), all.row(2));
}

/// Random-looking tokens of the tiny models' vocabulary.
fn some_tokens(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * i / 3 + i * 7) % 60).collect()
}

#[test]
fn forks_share_pages_and_diverge_independently() {
    for TinyModel { name, file } in tiny_models() {
        let decoder = load(&file, Isa::best(), 2);
        // A whole page and a part of one.
        let tokens = some_tokens(300);
        let alone = |rest: &[u32]| {
            let mut cache = decoder.new_cache();
            logits(&decoder, &mut cache, &tokens, 512);
            logits(&decoder, &mut cache, rest, 512)
        };
        let (left, right) = ([5, 6, 7], [8, 9, 10, 11]);
        let want = (alone(&left), alone(&right));
        assert_eq!(decoder.kv_pages(), 0, "{name}: dropped caches leave no pages");

        let mut a = decoder.new_cache();
        logits(&decoder, &mut a, &tokens, 512);
        let mut b = a.fork();
        assert_eq!((decoder.kv_pages(), b.pages_to_append(1), a.pages_to_append(1)), (2, 1, 1), "{name}");
        let got = (logits(&decoder, &mut a, &left, 1), logits(&decoder, &mut b, &right, 2));
        assert!(got == want, "{name}: a fork changed its sibling");
        assert_eq!(decoder.kv_pages(), 3, "{name}: one page is shared, one was copied");
        drop((a, b));
        assert_eq!(decoder.kv_pages(), 0, "{name}");
    }
}

#[test]
fn cached_prefix_gives_the_same_bits_as_computing_it() {
    for TinyModel { name, file } in tiny_models() {
        let decoder = load(&file, Isa::best(), 2);
        let mut tree = decoder.new_prefix_tree();
        let tokens = some_tokens(700);
        let mut cache = decoder.new_cache();
        let want = logits(&decoder, &mut cache, &tokens, 512);
        let has_window = decoder.config().sliding_window.is_some();
        // Before pages are given up: a sliding window keeps what it can see, and a page more.
        cache.truncate(if has_window { 0 } else { 700 });
        if has_window {
            logits(&decoder, &mut cache, &tokens[..300], 512);
        }
        tree.insert(&tokens, &cache);
        let known = cache.len();
        drop(cache);

        // The whole, and sequences that part from it inside a page and at the end of one.
        for common in [known, 280, 256, 100, 0] {
            let mut other = tokens[..common].to_vec();
            other.push(60);
            let mut found = tree.find(&other, &LoraSet::default());
            assert_eq!(found.len(), common, "{name}");
            let n_vocab = decoder.n_vocab();
            let got = logits(&decoder, &mut found, &tokens[common..], 512);
            assert!(got == want[common * n_vocab..], "{name}: after {common} known tokens");
        }
        // What others wrote after a shared prefix is not in the tree.
        assert_eq!(tree.find(&tokens, &LoraSet::default()).len(), known, "{name}");
        tree.clear();
        assert_eq!((tree.n_pages(), decoder.kv_pages()), (0, 0), "{name}");
    }
}

#[test]
fn prefixes_are_evicted_by_last_use_and_never_while_held() {
    let decoder = load(&stories(), Isa::best(), 1);
    let mut tree = decoder.new_prefix_tree();
    let text = |first: u32| -> Vec<u32> { (0..300).map(|i| first + i % 50).collect() };
    for first in [10, 100, 200] {
        let mut cache = decoder.new_cache();
        logits(&decoder, &mut cache, &text(first), 512);
        tree.insert(&text(first), &cache);
        // The same again adds nothing.
        tree.insert(&text(first), &cache);
    }
    assert_eq!((tree.n_pages(), decoder.kv_pages()), (6, 6));
    let held = tree.find(&text(10), &LoraSet::default());
    tree.find(&text(100), &LoraSet::default());
    assert_eq!(tree.evict(1), 1);
    let known = |tree: &mut PrefixTree, first: u32| tree.find(&text(first), &LoraSet::default()).len();
    assert_eq!(known(&mut tree, 200), 256, "the leaf of the oldest went first");
    assert_eq!(tree.evict(usize::MAX), 3, "what is held stays");
    assert_eq!((known(&mut tree, 10), known(&mut tree, 100), known(&mut tree, 200)), (300, 0, 0));
    drop(held);
    assert_eq!((tree.evict(usize::MAX), decoder.kv_pages()), (2, 0));
}

#[test]
fn sliding_window_frees_pages_and_allows_truncation() {
    let file = tiny_models().remove(1).file;
    let decoder = load(&file, Isa::best(), 2);
    let window = decoder.config().sliding_window.expect("the model with a window");
    let tokens = some_tokens(1500);
    let want = {
        let mut cache = decoder.new_cache();
        logits(&decoder, &mut cache, &tokens, 512)
    };
    let n_vocab = decoder.n_vocab();
    let mut cache = decoder.new_cache();
    for (i, tokens) in tokens.chunks(50).enumerate() {
        let got = logits(&decoder, &mut cache, tokens, 50);
        assert!(got == want[i * 50 * n_vocab..(i + 1) * 50 * n_vocab], "at {}", i * 50);
        assert!(cache.n_pages() <= (window + 50).div_ceil(KV_PAGE) + 2, "{} pages at {}", cache.n_pages(), i * 50);
    }
    // Up to a page of positions can always be removed.
    assert_eq!(cache.truncate(1500 - KV_PAGE), 1500 - KV_PAGE);
    let from = 1500 - KV_PAGE;
    assert!(logits(&decoder, &mut cache, &tokens[from..], 64) == want[from * n_vocab..]);
    // Removing more than that clears the cache, as the returned length shows.
    assert_eq!((cache.truncate(300), cache.n_pages(), decoder.kv_pages()), (0, 0, 0));
}

#[test]
fn cache_is_restored_from_its_bytes() {
    for TinyModel { name, file } in tiny_models() {
        let decoder = load(&file, Isa::best(), 2);
        let (tokens, next) = (some_tokens(900), [1, 2, 3]);
        let mut cache = decoder.new_cache();
        logits(&decoder, &mut cache, &tokens, 512);
        let mut bytes = Vec::new();
        cache.serialize(&mut bytes).expect("the CPU does not fail");
        let mut restored =
            decoder.restore_cache(&LoraSet::default(), cache.len(), &bytes).expect("what serialize wrote");
        let want = logits(&decoder, &mut cache, &next, 3);
        assert!(logits(&decoder, &mut restored, &next, 3) == want, "{name}");
        for (len, bytes) in [
            (900, &bytes[..bytes.len() - 1]),
            (900, &bytes[..5]),
            (1200, &bytes[..]),
            (usize::MAX, &bytes[..]),
            (0, &bytes[..]),
        ] {
            let error = decoder.restore_cache(&LoraSet::default(), len, bytes).expect_err("refused");
            assert!(matches!(error, ModelError::BadCacheState { .. }), "{name}: {error:?}");
        }
        let mut gone = bytes.clone();
        gone[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(decoder.restore_cache(&LoraSet::default(), 900, &gone).is_err(), "{name}");
    }
}
