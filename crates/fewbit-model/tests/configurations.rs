//! Every feature that a configuration can have: logits compared with a float64 forward pass, the same bits however the
//! work is split, and a typed error for features that the decoder does not have.

#[path = "support/golden.rs"]
mod golden;
#[path = "support/random.rs"]
mod random;
#[allow(dead_code)]
#[path = "support/run.rs"]
mod run;

use fewbit_format::{GgufFile, GgufWriter, Value};
use fewbit_model::{CheckpointError, Chunk, Decoder, Isa, KvCache, LoadOptions, LogitsFor, ModelError};
use fewbit_quant::TensorType;
use golden::{GoldenModel, N_VOCAB, golden_models};
use run::{bits, logits};

fn options(model: &GoldenModel) -> LoadOptions {
    let options = LoadOptions::new();
    match model.options.context_length {
        Some(n) => options.context_length(n),
        None => options,
    }
}

/// The largest difference from the golden logits.
fn difference(model: &GoldenModel, options: &LoadOptions) -> f32 {
    let decoder = Decoder::load(&model.file(), options).expect("loads");
    let got = logits(&decoder, &mut decoder.new_cache(), &model.tokens, 64);
    let rows = model.positions.iter().zip(model.logits.chunks(N_VOCAB));
    rows.flat_map(|(i, want)| got[i * N_VOCAB..].iter().zip(want)).fold(0.0, |d, (g, w)| d.max((g - w).abs()))
}

/// Logits are up to some 10 in magnitude; f32 arithmetic is some 1e-5 off.
const BOUND: f32 = 1e-4;

#[test]
fn logits_match_float64() {
    let models = golden_models();
    assert!(models.len() > 20 && models.iter().all(|m| m.logits.len() == m.positions.len() * N_VOCAB));
    let mut worst = 0.0f32;
    for model in &models {
        let d = difference(model, &options(model));
        println!("{d:.1e}  {}", model.name);
        assert!(d < BOUND, "{}: {d}", model.name);
        worst = worst.max(d);
    }
    println!("largest difference of a logit from float64: {worst:e}");
}

#[test]
fn window_off_by_one_changes_the_logits() {
    let models = golden_models();
    let with_window: Vec<_> = models.iter().filter(|m| m.window > 0).collect();
    assert!(with_window.len() >= 5);
    for model in with_window {
        let right = options(model).sliding_window(Some(model.window));
        assert!(difference(model, &right) < BOUND, "{}: the window given", model.name);
        for wrong in [Some(model.window - 1), Some(model.window + 1), None] {
            let d = difference(model, &options(model).sliding_window(wrong));
            assert!(d > 100.0 * BOUND, "{}: a window of {wrong:?} is {d} off", model.name);
        }
    }
}

#[test]
fn window_can_be_set_if_the_file_has_none() {
    let models = golden_models();
    let model = models.iter().find(|m| m.name == "Mistral: window of 21").expect("in the list");
    let mut bare = golden_models().swap_remove(models.iter().position(|m| m.name == model.name).expect("in the list"));
    bare.metadata.remove("llama.attention.sliding_window");
    assert!(difference(&bare, &options(model)) > 100.0 * BOUND);
    assert!(difference(&bare, &options(model).sliding_window(Some(21))) < BOUND);
}

#[test]
fn local_layers_can_be_set_if_the_file_has_no_pattern() {
    let models = golden_models();
    let place = models.iter().position(|m| m.name.starts_with("Ministral: every fourth")).expect("in the list");
    let mut bare = golden_models().swap_remove(place);
    bare.metadata.remove("llama.attention.sliding_window");
    bare.metadata.remove("llama.attention.sliding_window_pattern");
    let window = options(&bare).sliding_window(Some(11));
    assert!(difference(&bare, &window) > 100.0 * BOUND, "in all layers");
    assert!(difference(&bare, &window.clone().local_layers([false, true, true, true])) < BOUND, "repeated");
    assert!(
        difference(&bare, &window.clone().local_layers([false, true, true, true, false])) < BOUND,
        "for each layer"
    );
    for wrong in [options(&bare).local_layers([true]), window.clone().local_layers([]), window.local_layers([true; 6])]
    {
        let error = Decoder::load(&bare.file(), &wrong).expect_err("makes no sense");
        assert!(matches!(error, ModelError::Checkpoint(CheckpointError::BadConfig { .. })), "{error}");
    }
}

/// The models with f32 weights, and with quantized ones of types for blocks of 32, where their width allows it.
fn all_files() -> Vec<(GoldenModel, GgufFile)> {
    let quantized = |m: &GoldenModel| m.metadata.iter().all(|(k, v)| !k.ends_with("embedding_length") || v.1 == 64);
    let mut files = Vec::new();
    for model in golden_models() {
        let file = match quantized(&model) {
            true => model.quantized([TensorType::Q4_1, TensorType::Q8_0]),
            false => model.file(),
        };
        files.push((model, file));
    }
    files
}

#[test]
fn bits_do_not_depend_on_chunks_threads_or_instruction_set() {
    for (model, file) in all_files() {
        let load = |isa, threads| Decoder::load(&file, &options(&model).isa(isa).threads(threads)).expect("loads");
        let tokens = &model.tokens[..model.tokens.len().min(70)];
        let reference = load(Isa::Scalar, 1);
        let want = bits(&logits(&reference, &mut reference.new_cache(), tokens, 512));
        assert!(want.iter().all(|&b| f32::from_bits(b).is_finite()), "{}", model.name);
        for isa in Isa::available() {
            let sizes: &[usize] = if isa == Isa::Scalar { &[40] } else { &[1, 7, 40, 512] };
            for threads in [1, 2] {
                let decoder = load(isa, threads);
                for &size in sizes {
                    let same = bits(&logits(&decoder, &mut decoder.new_cache(), tokens, size)) == want;
                    assert!(same, "{}, {isa}, {threads} threads, chunks of {size}", model.name);
                }
            }
        }
    }
}

#[test]
fn batched_and_single_sequences_have_the_same_bits() {
    for (model, file) in all_files() {
        let decoder = Decoder::load(&file, &options(&model).threads(2)).expect("loads");
        let prompts: Vec<&[u32]> = [1usize, 5, 40, 2, 9].iter().map(|&n| &model.tokens[n / 2..n / 2 + n]).collect();
        let alone: Vec<f32> = prompts.iter().flat_map(|p| logits(&decoder, &mut decoder.new_cache(), p, 512)).collect();
        let mut caches: Vec<KvCache> = prompts.iter().map(|_| decoder.new_cache()).collect();
        let chunks = caches.iter_mut().zip(&prompts);
        let mut batch: Vec<_> = chunks.map(|(cache, tokens)| Chunk { cache, tokens, logits: LogitsFor::All }).collect();
        let got = decoder.forward(&mut batch).expect("runs");
        let got: Vec<u32> = (0..got.n_rows()).flat_map(|i| bits(got.row(i))).collect();
        assert!(got == bits(&alone), "{}", model.name);
    }
}

/// A model of the list, with changes to its metadata, as far as it loads.
fn load_with(name: &str, changes: &[(&str, Value)]) -> Result<Decoder, ModelError> {
    let model = golden_models().into_iter().find(|m| m.name.starts_with(name)).expect("in the list");
    let file = model.file();
    let mut w = model.writer();
    changes.iter().for_each(|(key, value)| {
        w.set(*key, value.clone());
    });
    Decoder::load(&with_tensors(w, &file, |_| true), &LoadOptions::new())
}

/// A file of this metadata and those tensors of another file that are wanted.
fn with_tensors(mut w: GgufWriter<'static>, file: &GgufFile, wanted: impl Fn(&str) -> bool) -> GgufFile {
    for t in file.tensors().iter().filter(|t| wanted(&t.name)) {
        w.tensor(t.name.clone(), &t.shape, t.ty, file.tensor_bytes(t).to_vec()).expect("a valid tensor");
    }
    GgufFile::from_bytes(w.to_bytes().expect("a valid file")).expect("a valid file")
}

#[test]
fn unsupported_keys_are_rejected_by_name() {
    let unsupported: [(&str, Value); 17] = [
        ("attention.causal", false.into()),
        ("attention.clamp_kqv", 8.0f32.into()),
        ("attention.max_alibi_bias", 8.0f32.into()),
        ("attention.key_length_swa", 32u32.into()),
        ("attention.key_length_mla", 32u32.into()),
        ("attention.output_scale", 0.5f32.into()),
        ("attention.shared_kv_layers", 2u32.into()),
        ("rope.dimension_count_swa", 8u32.into()),
        ("rope.scaling.alpha", 4.0f32.into()),
        ("rope.scaling.yarn_ext_factor", 0.5f32.into()),
        ("use_parallel_residual", true.into()),
        ("expert_group_count", 2u32.into()),
        ("expert_gating_func", 2u32.into()),
        ("leading_dense_block_count", 1u32.into()),
        ("router_logit_softcapping", 30.0f32.into()),
        ("nextn_predict_layers", 1u32.into()),
        ("rope.scaling.type", "ntk".into()),
    ];
    for (key, value) in unsupported {
        let full = format!("llama.{key}");
        match load_with("Llama: grouped", &[(&full, value)]) {
            Err(ModelError::Checkpoint(CheckpointError::UnsupportedFeature { key, .. })) => assert_eq!(key, full),
            other => panic!("{full}: {other:?}"),
        }
    }
    let harmless: [(&str, Value); 5] = [
        ("llama.attention.causal", true.into()),
        ("llama.attention.clamp_kqv", 0.0f32.into()),
        ("llama.expert_gating_func", 0u32.into()),
        ("llama.rope.scaling.yarn_ext_factor", 1.0f32.into()),
        ("llama.rope.scaling.type", "none".into()),
    ];
    load_with("Llama: grouped", &harmless).expect("values that ask for nothing");
    let error = load_with("Llama: grouped", &[("general.architecture", "mamba".into())]).expect_err("unknown");
    assert!(
        matches!(&error, ModelError::Checkpoint(CheckpointError::UnknownArchitecture { name, .. }) if name == "mamba"),
        "{error:?}"
    );
    assert!(error.to_string().contains("gemma3"), "{error}");
}

#[test]
fn invalid_numbers_are_rejected_by_name() {
    let nonsense: [(&str, &str, Value); 19] = [
        ("Llama: grouped", "llama.block_count", 0u32.into()),
        ("Llama: grouped", "llama.block_count", (1u32 << 20).into()),
        ("Llama: grouped", "llama.embedding_length", u64::MAX.into()),
        ("Llama: grouped", "llama.attention.head_count_kv", 3u32.into()),
        ("Llama: grouped", "llama.attention.value_length", 8u32.into()),
        ("Llama: grouped", "llama.attention.layer_norm_rms_epsilon", f32::NAN.into()),
        ("Llama: grouped", "llama.rope.dimension_count", 15u32.into()),
        ("Llama: grouped", "llama.rope.freq_base", (-1.0f32).into()),
        ("Llama: grouped", "llama.rope.freq_base", 0.5f32.into()),
        ("Llama: grouped", "llama.attention.scale", f32::INFINITY.into()),
        ("linear", "llama.rope.scaling.factor", (-4.0f32).into()),
        ("YaRN", "llama.rope.scaling.original_context_length", 0u32.into()),
        ("YaRN", "llama.rope.scaling.attn_factor", f32::NAN.into()),
        ("Ministral: ", "llama.attention.sliding_window_pattern", vec![true, false].into()),
        ("Gemma 2", "gemma2.attn_logit_softcapping", f32::NAN.into()),
        ("Mixtral", "llama.expert_used_count", 9u32.into()),
        ("Mixtral", "llama.expert_count", 5000u32.into()),
        ("Mixtral", "llama.expert_used_count", 0u32.into()),
        ("Ministral 3", "mistral3.attention.temperature_length", 0u32.into()),
    ];
    for (model, key, value) in nonsense {
        let shown = format!("{key} = {value:?}");
        match load_with(model, &[(key, value)]) {
            Err(ModelError::Checkpoint(CheckpointError::BadConfig { .. })) => {}
            other => panic!("{shown}: {other:?}"),
        }
    }
}

#[test]
fn missing_and_unexpected_tensors_are_rejected_by_name() {
    let find = |name: &str| golden_models().into_iter().find(|m| m.name.starts_with(name)).expect("in the list");
    for (model, tensor) in [
        ("Qwen3", "blk.1.attn_q_norm.weight"),
        ("Gemma 2", "blk.0.post_ffw_norm.weight"),
        ("Mixtral", "blk.1.ffn_gate_inp.weight"),
        ("Mixtral, a tensor", "blk.0.ffn_up.7.weight"),
        ("Phi-3: fused", "blk.0.ffn_up.weight"),
        ("Qwen2-MoE", "blk.0.ffn_gate_inp_shexp.weight"),
    ] {
        let model = find(model);
        let file = with_tensors(model.writer(), &model.file(), |name| name != tensor);
        match Decoder::load(&file, &LoadOptions::new()) {
            Err(ModelError::Checkpoint(CheckpointError::MissingTensor { name })) => assert_eq!(name, tensor),
            other => panic!("without {tensor}: {other:?}"),
        }
    }
    for (model, tensor) in [
        ("Llama: grouped", "blk.0.attn_q_norm.weight"),
        ("Llama: grouped", "blk.2.attn_norm.weight"),
        ("Qwen3", "blk.0.post_attention_norm.weight"),
        ("Mixtral", "blk.0.ffn_gate_shexp.weight"),
        ("Gemma", "output_norm.bias"),
    ] {
        let model = find(model);
        let mut w = model.writer();
        w.tensor(tensor, &[64], TensorType::F32, vec![0; 256]).expect("a valid tensor");
        match Decoder::load(&with_tensors(w, &model.file(), |_| true), &LoadOptions::new()) {
            Err(ModelError::Checkpoint(CheckpointError::UnexpectedTensor { name, .. })) => assert_eq!(name, tensor),
            other => panic!("with {tensor}: {other:?}"),
        }
    }
    // Constants that the configuration takes, and the vision parts of some files, are not in the way.
    let model = find("Llama: grouped");
    let mut w = model.writer();
    w.tensor("v.blk.0.attn_q.weight", &[64], TensorType::F32, vec![0; 256]).expect("a valid tensor");
    Decoder::load(&with_tensors(w, &model.file(), |_| true), &LoadOptions::new()).expect("loads");
    // Divisors of the wrong length.
    let mut w = model.writer();
    w.tensor("rope_freqs.weight", &[9], TensorType::F32, vec![0; 36]).expect("a valid tensor");
    let error = Decoder::load(&with_tensors(w, &model.file(), |_| true), &LoadOptions::new()).expect_err("refused");
    assert!(
        matches!(&error, ModelError::Checkpoint(CheckpointError::TensorShape { name, .. }) if name == "rope_freqs.weight"),
        "{error:?}"
    );
}
