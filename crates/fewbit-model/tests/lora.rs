//! Adapters: logits against a float64 forward pass with merged weights, the same bits from either kind of file and
//! whatever else is in the batch, and a typed error for everything that an adapter's file can have wrong.

#[allow(dead_code)]
#[path = "support/golden.rs"]
mod golden;
#[path = "support/hf.rs"]
#[allow(dead_code)]
mod hf;
#[path = "support/random.rs"]
#[allow(dead_code)]
mod random;
#[allow(dead_code)]
#[path = "support/run.rs"]
mod run;

use fewbit_format::GgufWriter;
use fewbit_model::{
    Chunk, Decoder, Isa, KvCache, LoadOptions, LogitsFor, Lora, LoraError, LoraSet, ModelError, Placement,
};
use fewbit_quant::TensorType;
use golden::{GoldenModel, N_VOCAB, golden_models, values};
use half::f16;
use hf::{Tensor, safetensors};
use run::bits;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What `golden/lora.py` wrote.
#[derive(Deserialize)]
struct Golden {
    rank: usize,
    alpha: f32,
    scale: f32,
    adapters: Vec<GoldenAdapter>,
}

#[derive(Deserialize)]
struct GoldenAdapter {
    /// Its place in `models.json`.
    model: usize,
    /// Name, shape (rows first), scale.
    tensors: Vec<(String, Vec<u64>, f32)>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/lora.json")).expect("valid JSON")
}

/// The models that have an adapter, each with it and with the logits that the two should give.
fn cases() -> (Golden, Vec<(GoldenModel, Vec<f32>)>) {
    let golden = golden();
    let mut models: Vec<_> = golden_models().into_iter().map(Some).collect();
    let mut logits = include_bytes!("golden/lora.f32").as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    let cases = golden.adapters.iter().map(|adapter| {
        let model = models[adapter.model].take().expect("one adapter for a model");
        let want = logits.by_ref().take(model.positions.len() * N_VOCAB).collect();
        (model, want)
    });
    let cases = cases.collect();
    (golden, cases)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// A tensor of an adapter, in f32 or rounded to f16.
fn bytes(name: &str, shape: &[u64], scale: f32, ty: TensorType) -> Vec<u8> {
    let bytes = values(name, shape.iter().product::<u64>() as usize, scale, 0.0);
    match ty {
        TensorType::F16 => floats(&bytes).iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        _ => bytes,
    }
}

/// A GGUF adapter, with a change.
fn gguf(
    folder: &Path,
    architecture: &str,
    golden: &Golden,
    adapter: &GoldenAdapter,
    ty: TensorType,
    change: impl FnOnce(&mut GgufWriter<'_>),
) -> PathBuf {
    let mut w = GgufWriter::new();
    w.set("general.architecture", architecture);
    w.set("general.type", "adapter");
    w.set("adapter.type", "lora");
    w.set("adapter.lora.alpha", golden.alpha);
    for (name, shape, scale) in &adapter.tensors {
        w.tensor(name.clone(), shape, ty, bytes(name, shape, *scale, ty)).expect("a valid tensor");
    }
    change(&mut w);
    let path = folder.join("adapter.gguf");
    w.write_file(&path).expect("writable");
    path
}

/// The tensors as PEFT has them: rows of B for queries and keys are those of half-split pairs.
fn peft_tensors(model: &GoldenModel, adapter: &GoldenAdapter, ty: TensorType) -> Vec<Tensor> {
    let is_interleaved = ["llama", "granite"].contains(&architecture(model));
    let names = [
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_qkv", "self_attn.qkv_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    let of = |(name, shape, scale): &(String, Vec<u64>, f32)| {
        let (weight, half) = name.rsplit_once('.').expect("a half");
        let module = match weight.trim_end_matches(".weight") {
            "output" => "lm_head".to_owned(),
            of_layer => {
                let (layer, part) = of_layer.trim_start_matches("blk.").split_once('.').expect("a tensor of a layer");
                let fused = !adapter.tensors.iter().any(|(name, ..)| name.contains("ffn_gate"));
                let hf = match part {
                    "ffn_up" if fused => "mlp.gate_up_proj",
                    part => names.iter().find(|(gguf, _)| *gguf == part).expect("a known part").1,
                };
                format!("model.layers.{layer}.{hf}")
            }
        };
        let mut bytes = bytes(name, shape, *scale, ty);
        if half == "lora_b" && is_interleaved && (weight.contains("attn_q.") || weight.contains("attn_k.")) {
            bytes = hf::half_split(&bytes, shape[0] as usize, 16);
        }
        let half = if half == "lora_a" { 'A' } else { 'B' };
        let name = format!("base_model.model.{module}.lora_{half}.weight");
        Tensor { name, dtype: ty.name(), shape: shape.clone(), bytes }
    };
    adapter.tensors.iter().map(of).collect()
}

/// A PEFT folder.
fn peft(folder: &Path, tensors: &[Tensor], config: &Value) -> PathBuf {
    let path = folder.join("peft");
    fs::create_dir_all(&path).expect("writable");
    fs::write(path.join("adapter_config.json"), config.to_string()).expect("writable");
    fs::write(path.join("adapter_model.safetensors"), safetensors(tensors)).expect("writable");
    path
}

fn peft_config(golden: &Golden) -> Value {
    json!({
        "peft_type": "LORA", "r": golden.rank, "lora_alpha": golden.alpha, "bias": "none", "use_dora": false,
        "modules_to_save": null, "target_modules": ["q_proj"], "fan_in_fan_out": false, "init_lora_weights": true,
    })
}

fn load(model: &GoldenModel) -> Decoder {
    Decoder::load(&model.file(), &LoadOptions::new().threads(1)).expect("loads")
}

fn architecture(model: &GoldenModel) -> &str {
    model.metadata["general.architecture"].1.as_str().expect("text")
}

/// Logits of all tokens, which are fed in chunks of `size`.
fn logits(decoder: &Decoder, loras: &LoraSet, tokens: &[u32], size: usize) -> Vec<f32> {
    run::logits(decoder, &mut decoder.new_cache_with(loras), tokens, size)
}

#[test]
fn logits_match_float64_with_merged_weights() {
    let (golden, cases) = cases();
    let folder = TempDir::new().expect("a folder");
    for ((model, want), adapter) in cases.iter().zip(&golden.adapters) {
        let decoder = load(model);
        let path = gguf(folder.path(), architecture(model), &golden, adapter, TensorType::F32, |_| {});
        let lora = decoder.load_lora(&path).expect("loads");
        assert!(lora.n_bytes() >= Lora::estimate(&path).expect("an adapter"));
        let set = decoder.lora_set(&[(lora, golden.scale)]).expect("a set");
        let got = logits(&decoder, &set, &model.tokens, 64);
        let rows = model.positions.iter().zip(want.chunks(N_VOCAB));
        let off = rows.flat_map(|(i, want)| got[i * N_VOCAB..].iter().zip(want)).map(|(g, w)| (g - w).abs());
        let worst = off.fold(0.0f32, f32::max);
        println!("{worst:.1e}  {}", model.name);
        assert!(worst < 2e-4, "{}: {worst}", model.name);
    }
}

#[test]
fn gguf_and_peft_adapters_give_the_same_bits() {
    let (golden, cases) = cases();
    let folder = TempDir::new().expect("a folder");
    for ((model, _), adapter) in cases.iter().zip(&golden.adapters) {
        let decoder = load(model);
        for ty in [TensorType::F32, TensorType::F16] {
            let gguf = gguf(folder.path(), architecture(model), &golden, adapter, ty, |_| {});
            let mut config = peft_config(&golden);
            let mut tensors = peft_tensors(model, adapter, ty);
            let peft = peft(folder.path(), &tensors, &config);
            let (a, b) = (decoder.load_lora(&gguf).expect("loads"), decoder.load_lora(&peft).expect("loads"));
            assert_eq!((a.fingerprint(), a.n_matrices()), (b.fingerprint(), b.n_matrices()), "{}", model.name);
            let run = |lora: &Lora| {
                let set = decoder.lora_set(&[(lora.clone(), golden.scale)]).expect("a set");
                bits(&logits(&decoder, &set, &model.tokens[..20], 64))
            };
            assert!(run(&a) == run(&b), "{}", model.name);

            // The scale in PEFT's other ways: by the root of the rank, and by patterns over what is wrong.
            config["use_rslora"] = true.into();
            config["lora_alpha"] = (f64::from(golden.alpha) / (golden.rank as f64).sqrt()).into();
            tensors.reverse();
            let by_root = decoder.load_lora(&self::peft(folder.path(), &tensors, &config)).expect("loads");
            assert_eq!(by_root.fingerprint(), a.fingerprint(), "{}", model.name);
            let patterns = json!({ "r": 77, "lora_alpha": 1, "rank_pattern": { "model.layers.[0-9]+.*": golden.rank, "lm_head": golden.rank },
                "alpha_pattern": { ".*": golden.alpha }});
            let of_patterns = decoder.load_lora(&self::peft(folder.path(), &tensors, &patterns)).expect("loads");
            assert_eq!(of_patterns.fingerprint(), a.fingerprint(), "{}", model.name);
        }
    }
}

/// Two adapters of a model: the golden one, and one for some matrices only.
fn two_adapters(
    folder: &Path,
    golden: &Golden,
    model: &GoldenModel,
    adapter: &GoldenAdapter,
    decoder: &Decoder,
) -> [Lora; 2] {
    let path = gguf(folder, architecture(model), golden, adapter, TensorType::F32, |_| {});
    let all = decoder.load_lora(&path).expect("loads");
    let some = adapter.tensors.iter().filter(|(name, ..)| name.starts_with("blk.1.") && !name.contains("ffn_up"));
    let some = GoldenAdapter { model: adapter.model, tensors: some.cloned().collect() };
    let path = gguf(folder, architecture(model), golden, &some, TensorType::F16, |_| {});
    [all, decoder.load_lora(&path).expect("loads")]
}

#[test]
fn adapters_give_the_same_bits_in_segments() {
    let (golden, cases) = cases();
    let folder = TempDir::new().expect("a folder");
    for ((model, _), adapter) in cases.iter().zip(&golden.adapters) {
        let file = model.quantized([TensorType::Q4_0, TensorType::Q8_0]);
        let run = |placement: Placement| {
            let decoder = Decoder::load(&file, &LoadOptions::new().threads(2).placement(placement)).expect("loads");
            let [all, some] = two_adapters(folder.path(), &golden, model, adapter, &decoder);
            let set = |loras: &[(Lora, f32)]| decoder.lora_set(loras).expect("a set");
            let sets = [set(&[(all.clone(), 1.0)]), set(&[(some.clone(), 2.0), (all, 0.25)]), set(&[])];
            let mut caches = sets.each_ref().map(|set| decoder.new_cache_with(set));
            let mut got = Vec::new();
            for tokens in model.tokens[..24].chunks(5) {
                let mut batch: Vec<_> =
                    caches.iter_mut().map(|cache| Chunk { cache, tokens, logits: LogitsFor::All }).collect();
                got.extend(bits(decoder.forward(&mut batch).expect("runs").values_mut()));
            }
            (got, some.n_bytes(), some.fingerprint())
        };
        let whole = run(Placement::new());
        assert!(run(Placement::new().cpu(1)) == whole, "{}", model.name);
    }
}

#[test]
fn row_bits_depend_only_on_the_sequence_and_its_adapters() {
    let (golden, cases) = cases();
    let folder = TempDir::new().expect("a folder");
    for ((model, _), adapter) in cases.iter().zip(&golden.adapters) {
        let file = model.quantized([TensorType::Q4_0, TensorType::Q8_0]);
        let options = LoadOptions::new().threads(1);
        let reference = Decoder::load(&file, &options.clone().isa(Isa::Scalar)).expect("loads");
        let loras = two_adapters(folder.path(), &golden, model, adapter, &reference);
        let sets = |[all, some]: [Lora; 2]| -> Vec<Vec<(Lora, f32)>> {
            vec![vec![], vec![(all.clone(), 1.0)], vec![(some.clone(), -0.5)], vec![(some, 2.0), (all, 0.25)]]
        };
        let tokens = &model.tokens[..24];
        let want: Vec<_> = sets(loras)
            .iter()
            .map(|set| bits(&logits(&reference, &reference.lora_set(set).expect("a set"), tokens, 64)))
            .collect();
        assert!((1..want.len()).all(|i| !want[..i].contains(&want[i])), "adapters change something");

        for (isa, threads) in [(Isa::best(), 1), (Isa::best(), 3), (Isa::Scalar, 2)] {
            let decoder = Decoder::load(&file, &LoadOptions::new().isa(isa).threads(threads)).expect("loads");
            let loras = two_adapters(folder.path(), &golden, model, adapter, &decoder);
            let sets: Vec<_> = sets(loras).iter().map(|set| decoder.lora_set(set).expect("a set")).collect();
            // Alone, token by token.
            assert!(bits(&logits(&decoder, &sets[3], tokens, 1)) == want[3], "{}: {isa}", model.name);
            // All in one batch, twice, in steps of different lengths.
            let order = [1, 0, 3, 1, 2, 0, 3, 2];
            let mut caches: Vec<KvCache> = order.iter().map(|&i| decoder.new_cache_with(&sets[i])).collect();
            let mut got = vec![Vec::new(); order.len()];
            while caches.iter().any(|cache| cache.len() < tokens.len()) {
                let chunks = caches.iter_mut().enumerate().filter(|(_, cache)| cache.len() < tokens.len());
                let (places, mut batch): (Vec<usize>, Vec<Chunk<'_>>) = chunks
                    .map(|(i, cache)| {
                        let from = cache.len();
                        let tokens = &tokens[from..tokens.len().min(from + 1 + 3 * i)];
                        (i, Chunk { cache, tokens, logits: LogitsFor::All })
                    })
                    .unzip();
                let lengths: Vec<usize> = batch.iter().map(|chunk| chunk.tokens.len()).collect();
                let rows = decoder.forward(&mut batch).expect("runs");
                let mut row = 0;
                for (place, n) in places.into_iter().zip(lengths) {
                    (row..row + n).for_each(|i| got[place].extend(bits(rows.row(i))));
                    row += n;
                }
            }
            for (got, i) in got.iter().zip(order) {
                assert!(*got == want[i], "{}: set {i}, {isa}, {threads} threads", model.name);
            }
        }
    }
}

#[test]
fn adapter_sets_with_the_same_effect_are_equal() {
    let (golden, cases) = cases();
    let folder = TempDir::new().expect("a folder");
    let (model, adapter) = (&cases[0].0, &golden.adapters[0]);
    let decoder = load(model);
    let [a, b] = two_adapters(folder.path(), &golden, model, adapter, &decoder);
    let set = |loras: &[(Lora, f32)]| decoder.lora_set(loras).expect("a set");
    assert!(set(&[(a.clone(), 0.0)]).is_empty());
    assert!(set(&[(a.clone(), 1.0), (b.clone(), 2.0)]) == set(&[(b.clone(), 2.0), (a.clone(), 1.0)]));
    assert!(set(&[(a.clone(), 1.0), (a.clone(), 2.0)]) == set(&[(a.clone(), 2.0)]), "the last scale counts");
    assert!(
        set(&[(a.clone(), 1.0)]) != set(&[(a.clone(), 2.0)]) && set(&[(a.clone(), 1.0)]) != set(&[(b.clone(), 1.0)])
    );

    assert!(matches!(decoder.lora_set(&[(a.clone(), f32::NAN)]), Err(ModelError::LoraScale { .. })));
    let other = load(model);
    assert!(matches!(other.lora_set(&[(a.clone(), 1.0)]), Err(ModelError::ForeignLora { .. })));
    let mut cache = other.new_cache_with(&set(&[(a, 1.0)]));
    let chunk = Chunk { cache: &mut cache, tokens: &[1], logits: LogitsFor::Last };
    assert!(matches!(other.forward(&mut [chunk]), Err(ModelError::ForeignLora { .. })));
}

#[test]
fn prefixes_are_cached_per_adapter_set() {
    let (golden, cases) = cases();
    let folder = TempDir::new().expect("a folder");
    let (model, adapter) = (&cases[0].0, &golden.adapters[0]);
    let decoder = load(model);
    let [a, b] = two_adapters(folder.path(), &golden, model, adapter, &decoder);
    let of = |loras: &[(Lora, f32)]| decoder.lora_set(loras).expect("a set");
    let sets =
        [of(&[]), of(&[(a.clone(), 1.0)]), of(&[(a.clone(), 0.5)]), of(&[(b.clone(), 1.0)]), of(&[(a, 1.0), (b, 1.0)])];
    let mut tree = decoder.new_prefix_tree();
    for (i, set) in sets.iter().enumerate() {
        let tokens = &model.tokens[..40 + i];
        assert!(tree.find(tokens, set).is_empty(), "set {i} is new");
        let mut cache = decoder.new_cache_with(set);
        let chunk = Chunk { cache: &mut cache, tokens, logits: LogitsFor::None };
        decoder.forward(&mut [chunk]).expect("runs");
        tree.insert(tokens, &cache);
        let found = tree.find(&model.tokens, set);
        assert!(found.len() == 40 + i && found.loras() == set);
    }
    assert_eq!((tree.n_pages(), decoder.kv_pages()), (5, 5));
    // The oldest goes first, whichever tree it is in.
    tree.find(&model.tokens, &sets[0]);
    assert_eq!(tree.evict(2), 2);
    let known = sets.each_ref().map(|set| tree.find(&model.tokens, set).len());
    assert_eq!(known, [40, 0, 0, 43, 44]);
    tree.clear();
    assert_eq!((tree.n_pages(), decoder.kv_pages()), (0, 0));
}

#[test]
fn invalid_gguf_adapters_fail_with_typed_errors() {
    let (golden, cases) = cases();
    let folder = TempDir::new().expect("a folder");
    let (model, adapter) = (&cases[0].0, &golden.adapters[0]);
    let decoder = load(model);
    let none = GoldenAdapter { model: 0, tensors: Vec::new() };
    let error = |adapter: &GoldenAdapter, change: &dyn Fn(&mut GgufWriter<'_>)| {
        let path = gguf(folder.path(), "llama", &golden, adapter, TensorType::F32, change);
        let error = decoder.load_lora(&path).expect_err("refused");
        assert!(error.to_string().contains("adapter.gguf"), "{error}");
        error
    };
    assert!(matches!(error(&none, &|_| {}), LoraError::Empty { .. }));
    assert!(matches!(
        error(adapter, &|w| {
            w.set("general.type", "model");
        }),
        LoraError::NotAnAdapter { key: "general.type", .. }
    ));
    assert!(matches!(
        error(adapter, &|w| {
            w.set("adapter.type", "control_vector");
        }),
        LoraError::NotAnAdapter { key: "adapter.type", .. }
    ));
    assert!(matches!(
        error(adapter, &|w| {
            w.set("general.architecture", "qwen2");
        }),
        LoraError::Architecture { .. }
    ));
    assert!(matches!(
        error(adapter, &|w| {
            w.set("adapter.lora.alpha", f32::NAN);
        }),
        LoraError::BadNumber { .. }
    ));
    let alora = |w: &mut GgufWriter<'_>| {
        w.set("adapter.alora.invocation_tokens", vec![1u32]);
    };
    assert!(matches!(error(adapter, &alora), LoraError::Unsupported { .. }));

    let tensor = |name: &'static str, shape: [u64; 2]| {
        move |w: &mut GgufWriter<'_>| {
            w.tensor(name, &shape, TensorType::F32, vec![0; (4 * shape[0] * shape[1]) as usize]).expect("a tensor");
        }
    };
    let lonely = error(&none, &tensor("blk.0.attn_q.weight.lora_a", [4, 64]));
    assert!(
        matches!(lonely, LoraError::MissingHalf { ref missing, .. } if missing == "blk.0.attn_q.weight.lora_b"),
        "{lonely}"
    );
    let lonely = error(&none, &tensor("blk.0.attn_q.weight.lora_b", [64, 4]));
    assert!(matches!(lonely, LoraError::MissingHalf { .. }), "{lonely}");
    for name in [
        "blk.0.attn_q.weight",
        "blk.9.attn_q.weight.lora_a",
        "blk.0.attn_qkv.weight.lora_a",
        "token_embd.weight.lora_a",
        "blk.0.attn_norm.weight.lora_a",
        "blk.0.ffn_gate_exps.weight.lora_a",
        "odd",
    ] {
        let other = name.replace("lora_a", "lora_b");
        let unknown = error(&none, &|w| {
            w.tensor(name, &[4, 64], TensorType::F32, vec![0; 1024]).expect("a tensor");
            if other != name {
                w.tensor(other.clone(), &[64, 4], TensorType::F32, vec![0; 1024]).expect("a tensor");
            }
        });
        assert!(matches!(unknown, LoraError::UnknownTarget { ref tensor, .. } if tensor == name), "{unknown}");
    }
    for (a, b) in [([4, 63], [64, 4]), ([4, 64], [65, 4]), ([4, 64], [64, 5])] {
        let wrong = error(&none, &|w| {
            tensor("blk.0.attn_q.weight.lora_a", a)(w);
            tensor("blk.0.attn_q.weight.lora_b", b)(w);
        });
        assert!(matches!(wrong, LoraError::Shape { .. }), "{wrong}");
    }
    let path = folder.path().join("nothing.gguf");
    let missing = decoder.load_lora(&path).expect_err("no file");
    assert!(matches!(missing, LoraError::Format { .. }));
    assert_eq!(missing.to_string().matches(&*path.to_string_lossy()).count(), 1, "{missing}");
}

/// As PEFT writes them for Llava, Gemma 3 and Mistral 3, before and since `transformers` 4.52.
#[test]
fn vision_model_adapters_apply_to_the_text_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let golden = golden();
    let (models, adapter) = (golden_models(), &golden.adapters[0]);
    let model = &models[adapter.model];
    let decoder = Decoder::load(&model.file(), &LoadOptions::new().threads(1)).expect("a valid model");
    let plain = peft_tensors(model, adapter, TensorType::F32);
    let config = peft_config(&golden);
    let known = decoder.load_lora(&peft(folder.path(), &plain, &config)).expect("loads").fingerprint();
    for (layers, head) in [
        ("language_model.model.layers.", "language_model.lm_head."),
        ("model.language_model.layers.", "lm_head."),
        ("model.language_model.model.layers.", "model.language_model.lm_head."),
        ("language_model.layers.", "lm_head."),
        ("layers.", "lm_head."),
    ] {
        let mut tensors = plain.clone();
        for tensor in &mut tensors {
            let name = tensor.name.trim_start_matches("base_model.model.");
            let name = name.replacen("model.layers.", layers, 1).replacen("lm_head.", head, 1);
            tensor.name = format!("base_model.model.{name}");
        }
        let same = decoder.load_lora(&peft(folder.path(), &tensors, &config)).expect("loads");
        assert_eq!(same.fingerprint(), known, "{layers}");
        // What is trained of the images' part has no effect on text.
        for half in ["A", "B"] {
            let module = "base_model.model.model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj";
            tensors.push(Tensor { name: format!("{module}.lora_{half}.weight"), ..tensors[0].clone() });
        }
        let same = decoder.load_lora(&peft(folder.path(), &tensors, &config)).expect("loads");
        assert_eq!(same.fingerprint(), known, "{layers}, and images");
    }
}

#[test]
fn invalid_peft_folders_fail_with_typed_errors() {
    let (golden, cases) = cases();
    let folder = TempDir::new().expect("a folder");
    let (model, adapter) = (&cases[0].0, &golden.adapters[0]);
    let decoder = load(model);
    let tensors = peft_tensors(model, adapter, TensorType::F32);
    let error = |tensors: &[Tensor], config: &Value| {
        let error = decoder.load_lora(&peft(folder.path(), tensors, config)).expect_err("refused");
        assert!(error.to_string().contains("peft"), "{error}");
        error
    };
    let with = |key: &str, value: Value| {
        let mut config = peft_config(&golden);
        config[key] = value;
        config
    };
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("bias", json!("lora_only")),
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("layer_replication", json!([[0, 1]])),
        ("target_parameters", json!(["experts"])),
        ("trainable_token_indices", json!({ "embed_tokens": [1] })),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("alpha_pattern", json!({ "(": 1 })),
        ("rank_pattern", json!({ "(.{100}){1000}": 1 })),
    ] {
        let refused = error(&tensors, &with(key, value));
        assert!(matches!(refused, LoraError::Unsupported { ref option, .. } if option == key), "{key}: {refused}");
    }
    for (key, value) in [("r", json!("4")), ("lora_alpha", json!(null)), ("alpha_pattern", json!({ "q_proj": "x" }))] {
        assert!(matches!(error(&tensors, &with(key, value)), LoraError::Config { .. }), "{key}");
    }
    assert!(matches!(error(&tensors, &with("lora_alpha", json!(1e300))), LoraError::BadNumber { .. }));
    assert!(matches!(error(&tensors, &with("r", json!(5))), LoraError::Shape { .. }));
    assert!(matches!(error(&[], &peft_config(&golden)), LoraError::Empty { .. }));

    let changed = |change: &dyn Fn(&mut Vec<Tensor>)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        error(&tensors, &peft_config(&golden))
    };
    assert!(matches!(
        changed(&|t| {
            t.remove(1);
        }),
        LoraError::MissingHalf { .. }
    ));
    for name in [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.embed_tokens.lora_A.weight",
        "other.model.layers.0.self_attn.q_proj.lora_A.weight",
    ] {
        let unknown = changed(&|t| {
            let mut add = |name: String| t.push(Tensor { name, ..t[0].clone() });
            add(name.to_owned());
            if name.contains("lora_A") {
                add(name.replace("lora_A", "lora_B"));
            }
        });
        assert!(matches!(unknown, LoraError::UnknownTarget { .. }), "{unknown}");
    }
    let typed = changed(&|t| {
        t[0].dtype = "I32";
    });
    assert!(matches!(typed, LoraError::Type { .. }), "{typed}");
    let path = folder.path().join("peft");
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        fs::remove_file(path.join(file)).expect("written above");
        let missing = decoder.load_lora(&path).expect_err("refused");
        let LoraError::Config { source, .. } = &missing else { panic!("{missing:?}") };
        assert!(source.to_string().contains(file), "{source}");
    }
}

#[test]
fn adapters_that_change_a_matrix_twice_are_rejected() {
    let (golden, cases) = cases();
    let folder = TempDir::new().expect("a folder");
    let (i, (model, _)) =
        cases.iter().enumerate().find(|(_, (m, _))| m.name.starts_with("Phi-3")).expect("there is one");
    // Two names of one fused matrix.
    let mut tensors = peft_tensors(model, &golden.adapters[i], TensorType::F32);
    let again = tensors.iter().filter(|t| t.name.contains("layers.0.mlp.gate_up_proj"));
    let again: Vec<_> = again.map(|t| Tensor { name: t.name.replace("gate_up", "up"), ..t.clone() }).collect();
    assert_eq!(again.len(), 2);
    tensors.extend(again);
    let path = peft(folder.path(), &tensors, &peft_config(&golden));
    assert!(matches!(load(model).load_lora(&path), Err(LoraError::Twice { .. })));
}
