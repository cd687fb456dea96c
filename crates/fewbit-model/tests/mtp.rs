//! The layer that predicts a further token, against Hugging Face's library, which has it too; and that what it computes
//! does not depend on how the work is split. `golden/mtp.py` made the numbers.

#[path = "support/described.rs"]
mod described;
#[allow(dead_code)]
#[path = "support/golden.rs"]
mod golden;
#[allow(dead_code)]
#[path = "support/hf.rs"]
mod hf;
#[path = "support/library.rs"]
mod library;
#[allow(dead_code)]
#[path = "support/random.rs"]
mod random;
#[allow(dead_code)]
#[path = "support/run.rs"]
mod run;

use fewbit_model::quantize::Recipe;
use fewbit_model::{
    Chunk, CpuDevice, Decoder, Isa, KvCache, KvType, LoadOptions, LogitsFor, LoraSet, ModelError, Placement,
    WeightSource,
};
use golden::N_VOCAB;
use library::{Models, fnv};
use run::{bits, logits};
use std::sync::Arc;

/// As in `transformers.rs`.
const BOUND: f32 = 1e-4;
/// Drafted tokens from the last position.
const N_DRAFTED: usize = 3;

fn models() -> Models {
    serde_json::from_str(include_str!("golden/mtp.json")).expect("valid JSON")
}

fn load(source: &dyn WeightSource, options: LoadOptions) -> Decoder {
    Decoder::load(source, &options).expect("a valid model")
}

fn with_layer() -> LoadOptions {
    LoadOptions::new().threads(2).mtp(true)
}

/// The most probable tokens after `token`, which follows the cache, and their logits.
fn draft(decoder: &Decoder, cache: &mut KvCache, token: u32, n: usize) -> (Vec<u32>, Vec<f32>) {
    let mut all = Vec::new();
    let mut choose = |logits: &[f32]| {
        all.extend_from_slice(logits);
        (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).map(|best| best as u32)
    };
    let drafted = decoder.draft(cache, &[token], n, &mut choose).expect("runs");
    (drafted, all)
}

#[test]
fn logits_are_those_of_transformers() {
    let all = models();
    let mut numbers = include_bytes!("golden/mtp.f32").as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    let (rows, tokens) = (&all.positions, &all.tokens);
    for model in &all.models {
        let mut take = |n: usize| numbers.by_ref().take(n * N_VOCAB).collect::<Vec<_>>();
        let n_drafts = rows.iter().filter(|&&row| row > 0).count();
        let [of_model, of_layer, of_draft] = [rows.len(), n_drafts, N_DRAFTED].map(&mut take);
        let (_to, folder) = model.opened();
        let file = model.quantized(Recipe::F32);
        let mut ours: Vec<_> = file
            .tensors()
            .iter()
            .map(|t| (t.name.clone(), t.ty.name().to_owned(), t.shape.clone(), fnv(file.tensor_bytes(t))))
            .collect();
        ours.sort();
        let is_copy = |name: &str| name.contains("nextn.embed_tokens") || name.contains("nextn.shared_head_head");
        let theirs: Vec<_> = model.gguf.tensors.iter().filter(|(name, ..)| !is_copy(name)).cloned().collect();
        assert_eq!(ours, theirs, "{}: tensors of llama.cpp's converter", model.name);
        let converted = model.converted(&file);
        for (what, source) in [("folder", &folder as &dyn WeightSource), ("file", &file), ("llama.cpp's", &converted)] {
            let decoder = load(source, with_layer());
            let without = load(source, LoadOptions::new().threads(2));
            let got = logits(&decoder, &mut decoder.new_cache(), tokens, 512);
            let plain = logits(&without, &mut without.new_cache(), tokens, 512);
            assert!(bits(&got) == bits(&plain), "{} ({what}): the layer changes the model", model.name);
            let mut cache = decoder.new_cache();
            let (mut drafts, mut rest) = (Vec::new(), Vec::new());
            for (i, &token) in tokens.iter().enumerate() {
                if i > 0 && rows.contains(&i) {
                    drafts.extend(draft(&decoder, &mut cache, token, 1).1);
                }
                if i + 1 == tokens.len() {
                    rest = draft(&decoder, &mut cache, token, N_DRAFTED).1;
                }
                logits(&decoder, &mut cache, &[token], 1);
            }
            let of_rows = rows.iter().flat_map(|&i| got[i * N_VOCAB..][..N_VOCAB].to_vec()).collect();
            for (got, want, of) in
                [(of_rows, &of_model, "model"), (drafts, &of_layer, "layer"), (rest, &of_draft, "draft")]
            {
                assert_eq!(got.len(), want.len(), "{} ({what}, {of})", model.name);
                let d = got.iter().zip(want).fold(0.0f32, |d, (g, w)| d.max((g - w).abs()));
                println!("{d:.1e}  {} ({what}, {of})", model.name);
                assert!(d < BOUND, "{} ({what}, {of}): {d}", model.name);
            }
        }
    }
    assert_eq!(numbers.count(), 0);
}

/// Drafts are the same to the bit whatever instruction set, threads and chunks, after rolled-back drafts, in a fork, in a
/// restored cache, from a prefix of another sequence, and after other drafts from the same place.
#[test]
fn bits_of_drafts_do_not_depend_on_how_the_work_is_split() {
    let tokens: Vec<u32> = (0..300).map(|i| (i * i / 3 + i * 7) % 60).collect();
    let (last, prompt) = tokens.split_last().expect("tokens");
    for model in &models().models {
        let name = &model.name;
        let file = model.quantized(Recipe::Q4_0);
        let whole = load(&file, with_layer());
        let mut cache = whole.new_cache();
        logits(&whole, &mut cache, prompt, 512);
        let (drafted, want) = draft(&whole, &mut cache, *last, 5);
        let want = bits(&want);
        assert_eq!(drafted.len(), 5);
        assert!(want.iter().all(|&b| f32::from_bits(b).is_finite()), "{name}");
        let check = |decoder: &Decoder, cache: &mut KvCache, what: &str| {
            assert!(bits(&draft(decoder, cache, *last, 5).1) == want, "{name}: {what}");
        };
        check(&whole, &mut cache, "again");
        for isa in Isa::available().into_iter().filter(|isa| *isa != Isa::Scalar) {
            for size in if isa == Isa::best() { &[1, 7, 64][..] } else { &[512] } {
                let decoder = load(&file, with_layer().isa(isa).threads(1 + size % 2));
                let mut cache = decoder.new_cache();
                logits(&decoder, &mut cache, prompt, *size);
                check(&decoder, &mut cache, &format!("{isa}, chunks of {size}"));
            }
        }
        // Others drafts, of which some tokens are appended as drafts are and some rejected.
        let mut cache = whole.new_cache();
        logits(&whole, &mut cache, &prompt[..270], 512);
        draft(&whole, &mut cache, 5, 9);
        logits(&whole, &mut cache, &[&prompt[270..274], &[1, 2, 3]].concat(), 7);
        assert_eq!(cache.truncate(274), 274);
        draft(&whole, &mut cache, 6, 3);
        let mut fork = cache.fork();
        let mut saved = Vec::new();
        cache.serialize(&mut saved).expect("the CPU does not fail");
        let loras = LoraSet::default();
        let mut restored = whole.restore_cache(&loras, cache.len(), &saved).expect("what serialize wrote");
        let mut other = whole.new_cache();
        let mut batch: Vec<Chunk<'_>> = [(&mut cache, &prompt[274..]), (&mut fork, &prompt[274..])]
            .into_iter()
            .chain([(&mut other, &prompt[..33]), (&mut restored, &prompt[274..])])
            .map(|(cache, tokens)| Chunk { cache, tokens, logits: LogitsFor::None })
            .collect();
        whole.forward(&mut batch).expect("runs");
        for (cache, what) in [(&mut cache, "rolled back"), (&mut fork, "forked"), (&mut restored, "restored")] {
            check(&whole, cache, what);
        }
        let mut tree = whole.new_prefix_tree();
        tree.insert(prompt, &cache);
        let mut found = tree.find(&prompt[..298], &loras);
        assert_eq!(found.len(), 256, "{name}");
        logits(&whole, &mut found, &prompt[256..], 512);
        check(&whole, &mut found, "of a prefix");
        let mut found = tree.find(prompt, &loras);
        assert_eq!(found.len(), prompt.len(), "{name}");
        check(&whole, &mut found, "of all of a prefix");
    }
}

/// Keys and values of every type, and what they and the layer take in memory, which is nothing if it is not asked for.
#[test]
fn memory_is_as_estimated() {
    for model in &models().models {
        let file = model.quantized(Recipe::F32);
        for ty in [KvType::F32, KvType::F16] {
            let estimate = |mtp| fewbit_model::estimate(&file, Isa::best(), 256, Some(ty), mtp).expect("a valid model");
            let [with, without] = [true, false].map(|mtp| {
                let decoder = load(&file, LoadOptions::new().kv_type(ty).mtp(mtp));
                assert_eq!(decoder.has_drafts(), mtp);
                let mut cache = decoder.new_cache();
                logits(&decoder, &mut cache, &[1, 2, 3, 4, 5], 5);
                let (drafted, _) = draft(&decoder, &mut cache, 6, 4);
                assert_eq!(drafted.len(), if mtp { 4 } else { 0 });
                assert!(cache.bytes() <= estimate(mtp).kv_bytes, "{}", model.name);
                decoder
            });
            let weights = estimate(true).weight_bytes - estimate(false).weight_bytes;
            assert_eq!(with.weight_bytes() - without.weight_bytes(), weights, "{}", model.name);
            let layer = 2 * 256 * with.config().n_kv_heads * with.config().head_dim * ty.elem_bytes();
            let page = with.kv_page_bytes() - without.kv_page_bytes();
            // Besides pages there are the hidden states that the layer goes on from.
            let estimated = estimate(true).kv_bytes - estimate(false).kv_bytes;
            assert!((layer as u64..=estimated).contains(&page), "{}: {page} of {estimated}", model.name);
            assert!(weights > 0);
            assert!(with.fingerprint() != without.fingerprint(), "caches are not those of the other");
        }
    }
}

#[test]
fn drafts_end_where_there_is_no_room() {
    let model = &models().models[1];
    let decoder = load(&model.quantized(Recipe::F32), with_layer().context_length(12));
    let mut cache = decoder.new_cache();
    assert!(draft(&decoder, &mut cache, 1, 4).0.is_empty(), "nothing is known of an empty sequence");
    logits(&decoder, &mut cache, &[1, 2, 3, 4, 5, 6, 7, 8], 8);
    assert_eq!(draft(&decoder, &mut cache, 9, 9).0.len(), 3);
    assert_eq!(cache.len(), 8, "nothing is appended");
    let wrong = decoder.draft(&mut cache, &[99_999], 2, &mut |_| None);
    assert!(matches!(wrong, Err(ModelError::TokenId { .. })));
    let mut n = 0;
    let mut twice = |_: &[f32]| {
        n += 1;
        (n < 3).then_some(5)
    };
    assert_eq!(decoder.draft(&mut cache, &[9, 10], 2, &mut twice).expect("runs"), [5, 5]);
    n = 1;
    let mut once = |_: &[f32]| {
        n += 1;
        (n < 3).then_some(5)
    };
    assert_eq!(decoder.draft(&mut cache, &[9], 3, &mut once).expect("runs"), [5], "it may end early");
}

#[test]
fn the_layer_is_refused_where_it_cannot_be() {
    let model = &models().models[4];
    let file = model.quantized(Recipe::F32);
    let refused = |source: &dyn WeightSource, options: LoadOptions| {
        Decoder::load(source, &options).map(|_| ()).expect_err("refused").to_string()
    };
    let here = fewbit_model::Cpu::new(Isa::Scalar, 1).expect("always available");
    let elsewhere = Placement::new().device(1, Arc::new(CpuDevice::new(here)));
    let message = refused(&file, with_layer().placement(elsewhere));
    assert!(message.contains("nextn_predict_layers") && message.contains("CPU"), "{message}");
    // A folder whose configuration has the layer, but not its files.
    let mut folder = model.folder();
    folder.tensors.retain(|tensor| !tensor.name.starts_with("model.layers.4."));
    let to = tempfile::tempdir().expect("a folder");
    folder.write(to.path());
    let source = fewbit_model::HfModel::open(to.path()).expect("a valid model");
    load(&source, LoadOptions::new());
    let message = refused(&source, with_layer());
    assert!(message.contains("nextn_predict_layers") && message.contains("missing"), "{message}");
}
