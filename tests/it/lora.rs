//! Adapters: they affect the tokens of their request and of no other, whatever runs together.

use std::path::{Path, PathBuf};

use fewbit::expert::format::GgufWriter;
use fewbit::{ErrorKind, Generate, Lora, LoraError, Model, SessionError, Speculation, TensorType};

use crate::{STORIES, load, stories, together};

/// An adapter of rank 4 for some matrices of the stories model, with random numbers.
pub(crate) fn adapter(folder: &Path, seed: u64) -> PathBuf {
    let file = fewbit::expert::format::GgufFile::open(STORIES.as_ref()).unwrap();
    let mut w = GgufWriter::new();
    w.set("general.architecture", "llama");
    w.set("general.type", "adapter");
    w.set("adapter.type", "lora");
    w.set("adapter.lora.alpha", 8.0f32);
    let mut state = seed;
    let mut random = |n: u64, scale: f32| -> Vec<u8> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * scale
        };
        (0..n).flat_map(|_| next().to_le_bytes()).collect()
    };
    for tensor in file.tensors().iter().filter(|t| t.name.contains("attn_") || t.name.contains("ffn_")) {
        if let [rows, cols] = tensor.shape[..] {
            let (a, b) = (random(4 * cols, 0.3), random(4 * rows, 0.3));
            w.tensor(format!("{}.lora_a", tensor.name), &[4, cols], TensorType::F32, a).unwrap();
            w.tensor(format!("{}.lora_b", tensor.name), &[rows, 4], TensorType::F32, b).unwrap();
        }
    }
    let path = folder.join(format!("{seed}.gguf"));
    w.write_file(&path).unwrap();
    path
}

/// Requests with the same beginning, which differ mainly in their adapters.
fn request(model: &Model, loras: &[Lora; 2], i: usize) -> Generate {
    let text = "Once upon a time, there was a little girl named Lily. She loved to play and to run and to sing.";
    let request = model.generate(text).seed(i as u64 / 6).max_tokens(40).ignore_eos(true);
    let request = if i.is_multiple_of(2) { request.speculation(Speculation::Always) } else { request };
    match i % 6 {
        0 => request.temperature(0.0),
        1 => request.lora(&loras[0], 1.0),
        2 => request.lora(&loras[1], 1.0).temperature(0.0),
        3 => request.lora(&loras[1], 0.5),
        4 => request.lora(&loras[0], 0.7).lora(&loras[1], -0.5),
        _ => request.lora(&loras[0], 0.0),
    }
}

#[test]
fn concurrent_requests_with_adapters_equal_single_ones() {
    let folder = tempfile::tempdir().unwrap();
    let paths = [adapter(folder.path(), 1), adapter(folder.path(), 2)];
    let on = |model: &Model| paths.each_ref().map(|path| model.load_lora(path).unwrap());
    let alone = load(|b| b.prefix_memory(0).max_running(1));
    let loras = on(&alone);
    let want: Vec<_> = (0..24).map(|i| request(&alone, &loras, i).run().unwrap().tokens).collect();
    assert_eq!(
        want[0],
        stories()
            .generate("Once upon a time, there was a little girl named Lily. She loved to play and to run and to sing.")
            .temperature(0.0)
            .max_tokens(40)
            .ignore_eos(true)
            .run()
            .unwrap()
            .tokens,
        "without adapters nothing is changed"
    );
    assert!((1..5).all(|i| !want[..i].contains(&want[i])), "adapters change the text");

    for (what, model) in
        [("everything on", load(|b| b)), ("small chunks, two threads", load(|b| b.prefill_chunk(7).threads(2)))]
    {
        let loras = on(&model);
        // Two rounds, because the second one finds the prefixes of the first.
        for round in 0..2 {
            let got = together(24, |i| request(&model, &loras, i).run().unwrap().tokens);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_eq!(got, want, "request {i}, {what}, round {round}");
            }
        }
        let known = request(&model, &loras, 1).run().unwrap().usage.cached;
        assert!(known > 16, "what was computed with an adapter is known to others with it: {known}");
        assert_eq!(model.clear_prefixes().unwrap(), 0);
    }
}

#[test]
fn model_adapters_are_the_default_of_requests() {
    let folder = tempfile::tempdir().unwrap();
    let path = adapter(folder.path(), 1);
    let model = load(|b| b.lora(&path, 0.8));
    let base = load(|b| b);
    let of_base = base.load_lora(&path).unwrap();
    let generate = |model: &Model| model.generate("Once").temperature(0.0).max_tokens(30).ignore_eos(true);
    let want = generate(&base).lora(&of_base, 0.8).run().unwrap().tokens;
    let plain = generate(&base).run().unwrap().tokens;
    assert_ne!(want, plain);
    assert_eq!(generate(&model).run().unwrap().tokens, want);
    assert_eq!(generate(&model).without_loras().run().unwrap().tokens, plain);
    let own = model.loras().iter().next().map(|(lora, _)| lora.clone()).unwrap();
    assert_eq!(generate(&model).lora(&own, 0.0).run().unwrap().tokens, plain);
    assert_eq!(own.path(), path);

    // Adapters also apply to calls other than generation.
    let text = "Once upon a time there was a dog";
    assert_ne!(model.embed([text]).run().unwrap().vectors, base.embed([text]).run().unwrap().vectors);
    let of_lora = base.embed([text]).lora(&of_base, 0.8).run().unwrap().vectors;
    assert_eq!(model.embed([text]).run().unwrap().vectors, of_lora);
    assert_eq!(model.embed([text]).without_loras().run().unwrap().vectors, base.embed([text]).run().unwrap().vectors);
    let scores = model.logprobs(text, 0).unwrap();
    assert_ne!(scores, base.logprobs(text, 0).unwrap());
    let echoed = base.generate(text).lora(&of_base, 0.8).echo(true).logprobs(0).max_tokens(1).run().unwrap();
    assert_eq!(echoed.prompt_logprobs, scores);
    // A draft model with adapters for a model without: the tokens are those of the latter.
    let drafted = generate(&base).draft(&model).speculation(Speculation::Always).run().unwrap();
    assert_eq!(drafted.tokens, plain);
    assert!(drafted.usage.drafted > 0);
}

#[test]
fn changing_adapters_recomputes_the_conversation() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(|b| b);
    let loras = [1, 2].map(|seed| model.load_lora(adapter(folder.path(), seed)).unwrap());
    let start =
        || model.chat().temperature(0.0).max_tokens(12).options(fewbit::GenerateOptions::new().share_prefix(false));
    let path = folder.path().join("chat.session");

    let mut chat = start().lora(&loras[0], 1.0).start().unwrap();
    chat.send("Who are you, and where do you live?").unwrap();
    assert!(chat.send("Why?").unwrap().usage.cached > 0);
    let other = chat.ask("And?").without_loras().run().unwrap();
    assert_eq!(other.usage.cached, 0, "keys and values of other adapters are of no use");
    let mut fresh = start().history(chat.messages()[..4].to_vec()).start().unwrap();
    assert_eq!(fresh.send("And?").unwrap().text, other.text);
    // Saved now, it begins anew, as it would here.
    chat.save(&path).unwrap();
    assert_eq!(start().lora(&loras[0], 1.0).restore(&path).unwrap().cached_tokens(), 0);

    let want = chat.send("Once more?").unwrap();
    assert_eq!(want.usage.cached, 0);
    chat.save(&path).unwrap();
    let restored = start().lora(&loras[0], 1.0).restore(&path).unwrap();
    assert_eq!(restored.cached_tokens(), chat.cached_tokens());
    // The same adapter loaded again is the same.
    let again = model.load_lora(adapter(folder.path(), 1)).unwrap();
    assert!(start().lora(&again, 1.0).restore(&path).is_ok());
    for (what, builder) in [
        ("none", start()),
        ("another scale", start().lora(&loras[0], 0.5)),
        ("another adapter", start().lora(&loras[1], 1.0)),
        ("one more", start().lora(&loras[0], 1.0).lora(&loras[1], 1.0)),
    ] {
        let error = builder.restore(&path).unwrap_err();
        assert!(matches!(error.cause(), Some(SessionError::OtherModel { .. })), "{what}: {error}");
    }
}

#[test]
fn adapter_memory_is_estimated_and_bad_ones_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = adapter(folder.path(), 1);
    let without = Model::builder().memory_estimate(STORIES).unwrap();
    let with = Model::builder().lora(&path, 1.0).memory_estimate(STORIES).unwrap();
    let lora = stories().load_lora(&path).unwrap();
    assert!(with.lora_bytes > 0 && with.lora_bytes <= lora.n_bytes());
    assert_eq!(with.total_bytes(), without.total_bytes() + with.lora_bytes);

    let missing = folder.path().join("none.gguf");
    assert!(matches!(
        stories().load_lora(&missing).as_ref().err().and_then(|e| e.cause()),
        Some(LoraError::Format { .. })
    ));
    let error = Model::builder().lora(STORIES, 1.0).load(STORIES).unwrap_err();
    assert!(matches!(error.cause(), Some(LoraError::NotAnAdapter { .. })), "{error}");
    let model = load(|b| b);
    assert!(
        matches!(model.generate("a").lora(&lora, 1.0).run().map_err(fewbit::Error::into_kind), Err(ErrorKind::Model)),
        "another model's"
    );
    assert!(matches!(
        stories().generate("a").lora(&lora, f32::INFINITY).run().map_err(fewbit::Error::into_kind),
        Err(ErrorKind::Model)
    ));
    assert!(stories().generate("a").max_tokens(1).run().is_ok());
}
