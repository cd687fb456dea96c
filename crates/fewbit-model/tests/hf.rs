//! Hugging Face folders: the same bits as the GGUF file of the same model, the float64 logits of a sliding window, and
//! an error for each kind of folder that cannot be loaded.

#[path = "support/hf.rs"]
mod hf;
#[path = "support/run.rs"]
mod run;

use fewbit_format::{FormatError, GgufFile, GgufWriter};
use fewbit_model::hf::HfError;
use fewbit_model::quantize::Recipe;
use fewbit_model::{CheckpointError, Decoder, HfModel, Isa, LoadOptions, ModelError, WeightSource};
use fewbit_quant::TensorType;
use hf::{Folder, Tensor};
use run::{bits, stories};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

const IDS: [u32; 12] = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315];

fn options() -> LoadOptions {
    LoadOptions::new().threads(2)
}

fn logits(source: &dyn WeightSource, options: &LoadOptions, ids: &[u32]) -> Vec<f32> {
    let decoder = Decoder::load(source, options).expect("a valid model");
    run::logits(&decoder, &mut decoder.new_cache(), ids, ids.len())
}

fn written(folder: &Folder) -> TempDir {
    let to = tempfile::tempdir().expect("a folder");
    folder.write(to.path());
    to
}

fn opened(folder: &Folder) -> Result<HfModel, CheckpointError> {
    HfModel::open(written(folder).path())
}

/// The stories model with its matrices in another type of floats.
fn stories_in(ty: TensorType) -> GgufFile {
    let file = stories();
    let mut writer = GgufWriter::with_metadata(file.metadata().clone());
    for tensor in file.tensors() {
        let floats = file.tensor_bytes(tensor).as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b));
        let (ty, bytes): (_, Vec<u8>) = match (tensor.shape.len(), ty) {
            (2, TensorType::F16) => (ty, floats.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect()),
            (2, TensorType::BF16) => (ty, floats.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect()),
            _ => (TensorType::F32, file.tensor_bytes(tensor).to_vec()),
        };
        writer.tensor(tensor.name.clone(), &tensor.shape, ty, bytes).expect("a valid tensor");
    }
    GgufFile::from_bytes(writer.to_bytes().expect("a valid file")).expect("a valid file")
}

#[test]
fn hf_folder_gives_the_bits_of_the_gguf_file() {
    for ty in [TensorType::F32, TensorType::F16, TensorType::BF16] {
        let gguf = stories_in(ty);
        let folder = Folder::of_gguf(&gguf);
        let expected = bits(&logits(&gguf, &options(), &IDS));
        let whole = opened(&folder).expect("a valid folder");
        assert_eq!(bits(&logits(&whole, &options(), &IDS)), expected, "{ty}");
        let shards = tempfile::tempdir().expect("a folder");
        folder.write_shards(shards.path(), 3);
        let shards = HfModel::open(shards.path()).expect("a valid folder");
        assert_eq!(bits(&logits(&shards, &options().isa(Isa::Scalar), &IDS)), expected, "{ty}, in three files");
    }
}

/// The names of models that see, before and since `transformers` 4.52, and of decoders without an output.
#[test]
fn tensor_name_prefixes_do_not_matter() {
    let gguf = stories();
    let plain = Folder::of_gguf(&gguf);
    let expected = bits(&logits(&gguf, &options(), &IDS));
    let eyes = |name: &str| Tensor { name: name.to_owned(), dtype: "F32", shape: vec![1], bytes: vec![0; 4] };
    let old = |name: &str| format!("language_model.{name}");
    let new = |name: &str| match name.strip_prefix("model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None => name.to_owned(),
    };
    let renames: [&dyn Fn(&str) -> String; 2] = [&old, &new];
    for (prefix, rename) in ["", "model."].into_iter().zip(renames) {
        let mut folder = plain.clone();
        folder.tensors.iter_mut().for_each(|tensor| tensor.name = rename(&tensor.name));
        folder.tensors.push(eyes(&format!("{prefix}vision_tower.patch_conv.weight")));
        folder.tensors.push(eyes(&format!("{prefix}multi_modal_projector.linear_1.bias")));
        let error = opened(&folder).expect_err("no part of a Llama");
        assert!(matches!(error, CheckpointError::UnexpectedTensor { .. }), "{error}");
        let mut text = folder.config.clone();
        text.insert("model_type".into(), json!("mistral"));
        text.insert("sliding_window".into(), Value::Null);
        text.remove("architectures");
        folder.config.clear();
        let folder = folder.set("architectures", json!(["Mistral3ForConditionalGeneration"]));
        let folder = folder.set("text_config", Value::Object(text));
        assert_eq!(bits(&logits(&opened(&folder).expect("valid"), &options(), &IDS)), expected, "{prefix}");
    }
    let mut bare = plain.set("tie_word_embeddings", json!(true));
    let expected = bits(&logits(&opened(&bare).expect("valid"), &options(), &IDS));
    bare.tensors.retain(|tensor| tensor.name != "lm_head.weight");
    bare.tensors.iter_mut().for_each(|tensor| tensor.name = tensor.name.trim_start_matches("model.").to_owned());
    assert_eq!(bits(&logits(&opened(&bare).expect("valid"), &options(), &IDS)), expected);
}

#[test]
fn quantizing_at_load_does_not_depend_on_the_format() {
    let gguf = stories_in(TensorType::F16);
    let folder = opened(&Folder::of_gguf(&gguf)).expect("a valid folder");
    let plain = logits(&gguf, &options(), &IDS);
    for recipe in [Recipe::Q8_0, Recipe::Q4_K_M] {
        let options = options().quantize(recipe);
        let expected = bits(&logits(&gguf, &options, &IDS));
        assert_eq!(bits(&logits(&folder, &options, &IDS)), expected, "{recipe}");
        assert_ne!(bits(&plain), expected, "{recipe} changes nothing");
        // And as if the file had been quantized before.
        let out = tempfile::tempdir().expect("a folder");
        let path = out.path().join("quantized.gguf");
        let file = fewbit_model::quantize::FileOptions::new(recipe);
        fewbit_model::quantize::quantize_file(&gguf, &path, &file, &mut |_, _| {}).expect("written");
        let file = GgufFile::open(&path).expect("a valid file");
        assert_eq!(bits(&logits(&file, &self::options(), &IDS)), expected, "{recipe} as a file");
    }
}

/// float64 logits: see `golden/make_stories.py`.
struct Golden {
    ids: Vec<u32>,
    positions: Vec<usize>,
    full: Vec<Vec<f32>>,
    window64: Vec<Vec<f32>>,
}

fn golden() -> Golden {
    let json: Value = serde_json::from_str(include_str!("golden/stories.json")).expect("JSON");
    let numbers =
        |v: &Value| v.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number") as f32).collect();
    let rows = |key: &str| json[key].as_array().expect("a list").iter().map(numbers).collect();
    let ints = |key: &str| -> Vec<u64> {
        json[key].as_array().expect("a list").iter().map(|x| x.as_u64().expect("a number")).collect()
    };
    Golden {
        ids: ints("ids").into_iter().map(|id| id as u32).collect(),
        positions: ints("positions").into_iter().map(|i| i as usize).collect(),
        full: rows("full"),
        window64: rows("window64"),
    }
}

/// The largest difference at any of the golden positions.
fn difference(found: &[f32], golden: &Golden, expected: &[Vec<f32>]) -> f32 {
    let n_vocab = expected[0].len();
    let rows = golden.positions.iter().map(|&i| &found[i * n_vocab..(i + 1) * n_vocab]);
    let errors = rows.zip(expected).flat_map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).abs()));
    errors.fold(0.0, f32::max)
}

#[test]
fn window_size_follows_the_configuration() {
    let golden = golden();
    let llama = Folder::of_gguf(&stories());
    let found = logits(&opened(&llama).expect("valid"), &options(), &golden.ids);
    assert!(difference(&found, &golden, &golden.full) < 1e-3, "{}", difference(&found, &golden, &golden.full));
    let greedy = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("a vocabulary") as u32;
    let n_vocab = golden.full[0].len();
    for (i, pair) in golden.ids.windows(2).enumerate() {
        assert_eq!(greedy(&found[i * n_vocab..(i + 1) * n_vocab]), pair[1], "token {i}");
    }
    for window in [63, 64, 65] {
        let mistral =
            llama.clone().set("architectures", json!(["MistralForCausalLM"])).set("sliding_window", json!(window));
        let found = logits(&opened(&mistral).expect("valid"), &options(), &golden.ids);
        let difference = difference(&found, &golden, &golden.window64);
        match window {
            64 => assert!(difference < 1e-3, "{difference}"),
            _ => assert!(difference > 0.5, "a window of {window}: {difference}"),
        }
    }
}

/// Opens a broken folder and gives its error, which must not name the same file twice.
fn error(folder: &Folder) -> CheckpointError {
    match opened(folder) {
        Err(error) => error,
        Ok(model) => match Decoder::load(&model, &options()).expect_err("an error") {
            ModelError::Checkpoint(error) => error,
            other => panic!("{other:?}"),
        },
    }
}

#[test]
fn folders_with_missing_files_are_rejected() {
    let folder = Folder::of_gguf(&stories());
    let missing = |name: &str| {
        let to = written(&folder);
        fs::remove_file(to.path().join(name)).expect("written");
        HfModel::open(to.path()).expect_err("incomplete")
    };
    for name in ["config.json", "model.safetensors"] {
        let error = missing(name);
        assert!(
            matches!(&error, CheckpointError::Hf(HfError::MissingFile { path }) if path.ends_with(name)),
            "{error:?}"
        );
    }
    let to = written(&folder);
    for name in ["pytorch_model.bin", "consolidated.safetensors"] {
        let _ = fs::remove_file(to.path().join("model.safetensors"));
        fs::write(to.path().join(name), b"PK").expect("writable");
        let error = HfModel::open(to.path()).expect_err("weights of another format");
        assert!(matches!(&error, CheckpointError::Hf(HfError::OtherWeights { .. })), "{error:?}");
        assert!(error.to_string().contains(name), "{error}");
        fs::remove_file(to.path().join(name)).expect("written");
    }
    let to = written(&folder);
    for (text, expected) in [("[1]", "invalid type"), ("{\"a\":", "EOF"), ("", "EOF")] {
        fs::write(to.path().join("config.json"), text).expect("writable");
        let error = HfModel::open(to.path()).expect_err("no object");
        assert!(matches!(error, CheckpointError::Hf(HfError::Json { .. })), "{error:?}");
        assert!(error.to_string().contains("config.json"), "{error}");
        let cause = std::error::Error::source(&error).expect("the parser's own error").to_string();
        assert!(cause.contains(expected), "{cause}");
    }
    fs::write(to.path().join("config.json"), vec![b' '; (16 << 20) + 1]).expect("writable");
    assert!(matches!(HfModel::open(to.path()), Err(CheckpointError::Hf(HfError::TooLarge { .. }))));

    let shards = tempfile::tempdir().expect("a folder");
    folder.write_shards(shards.path(), 2);
    fs::remove_file(shards.path().join("model-1.safetensors")).expect("written");
    let error = HfModel::open(shards.path()).expect_err("a shard is missing");
    assert!(matches!(error, CheckpointError::Format(FormatError::MissingShard { .. })), "{error:?}");
    let index = shards.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).expect("written").replace("model-1", "model-0");
    fs::write(&index, text).expect("writable");
    let error = HfModel::open(shards.path()).expect_err("the index names tensors that are not there");
    assert!(matches!(error, CheckpointError::Format(FormatError::MissingTensor { .. })), "{error:?}");
}

#[test]
fn unsupported_configurations_are_rejected() {
    let folder = Folder::of_gguf(&stories());
    let with = |key: &str, value: Value| error(&folder.clone().set(key, value));
    assert!(
        matches!(with("architectures", json!(["BertModel"])), CheckpointError::UnknownArchitecture { name, .. } if name == "BertModel")
    );
    assert!(matches!(with("architectures", json!(null)), CheckpointError::Hf(HfError::MissingKey { .. })));
    assert!(matches!(with("architectures", json!("LlamaForCausalLM")), CheckpointError::Hf(HfError::KeyType { .. })));
    assert!(
        matches!(with("hidden_size", json!(null)), CheckpointError::Hf(HfError::MissingKey { key, .. }) if key == "hidden_size")
    );
    assert!(matches!(with("hidden_size", json!("64")), CheckpointError::Hf(HfError::KeyType { .. })));
    assert!(matches!(with("num_attention_heads", json!(0)), CheckpointError::BadConfig { .. }));
    assert!(matches!(with("num_key_value_heads", json!(3)), CheckpointError::BadConfig { .. }));
    assert!(
        matches!(with("hidden_act", json!("relu")), CheckpointError::UnsupportedFeature { key, .. } if key == "hidden_act")
    );
    let another = with("rope_scaling", json!({ "type": "mrope", "factor": 2.0 }));
    assert!(matches!(another, CheckpointError::UnsupportedFeature { key, .. } if key == "rope_scaling.type"));
    let incomplete = with("rope_scaling", json!({ "rope_type": "llama3", "factor": 8.0 }));
    assert!(
        matches!(incomplete, CheckpointError::Hf(HfError::MissingKey { key, .. }) if key == "rope_scaling.low_freq_factor")
    );
    let short = json!({ "rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] });
    assert!(matches!(with("rope_scaling", short), CheckpointError::BadConfig { .. }));
    let mistral = folder.clone().set("architectures", json!(["MistralForCausalLM"]));
    let chunked = error(&mistral.clone().set("layer_types", json!(vec!["chunked_attention"; 5])));
    assert!(matches!(chunked, CheckpointError::UnsupportedFeature { value, .. } if value == "chunked_attention"));
    assert!(matches!(error(&mistral.set("layer_types", json!(["full_attention"]))), CheckpointError::BadConfig { .. }));
}

#[test]
fn weights_that_do_not_match_the_config_are_rejected() {
    let folder = Folder::of_gguf(&stories());
    let changed = |change: &dyn Fn(&mut Folder)| {
        let mut folder = folder.clone();
        change(&mut folder);
        error(&folder)
    };
    let k = "model.layers.1.self_attn.k_proj.weight";
    let missing = |name: &'static str| changed(&|f| f.tensors.retain(|t| t.name != name));
    for name in [k, "model.embed_tokens.weight", "lm_head.weight", "model.layers.4.mlp.down_proj.weight"] {
        let error = missing(name);
        assert!(matches!(&error, CheckpointError::MissingTensor { name: found } if found == name), "{error:?}");
    }
    let shape = changed(&|f| f.tensor(k).shape = vec![64, 32]);
    assert!(matches!(&shape, CheckpointError::TensorShape { name, .. } if name == k), "{shape:?}");
    let shape = changed(&|f| f.tensor("model.layers.0.mlp.up_proj.weight").shape = vec![64, 172]);
    assert!(matches!(&shape, CheckpointError::TensorShape { .. }), "{shape:?}");
    let vocabulary = error(&folder.clone().set("vocab_size", json!(511)));
    assert!(matches!(vocabulary, CheckpointError::TensorShape { .. }), "{vocabulary:?}");
    let dtype = changed(&|f| f.tensor(k).dtype = "I32");
    assert!(matches!(&dtype, CheckpointError::Hf(HfError::TensorDtype { name, .. }) if name == k), "{dtype:?}");
    let extra = |name: &str| Tensor { name: name.to_owned(), dtype: "F32", shape: vec![1], bytes: vec![0; 4] };
    for name in ["model.layers.0.self_attn.sinks", "model.layers.0.self_attn.k_proj.scale", "vision.weight"] {
        let error = changed(&|f| f.tensors.push(extra(name)));
        assert!(matches!(&error, CheckpointError::UnexpectedTensor { name: found, .. } if found == name), "{error:?}");
    }
    let bias = error(&folder.clone().set("attention_bias", json!(true)));
    assert!(matches!(&bias, CheckpointError::MissingTensor { name } if name == "model.layers.0.self_attn.q_proj.bias"));
    // Tensors that are not weights are allowed, and so is an output matrix next to a tied embedding.
    let mut tied = folder.clone().set("tie_word_embeddings", json!(true));
    tied.tensors.push(extra("model.layers.0.self_attn.rotary_emb.inv_freq"));
    assert!(opened(&tied).is_ok_and(|model| model.tensor("output.weight").is_none()));
}

#[test]
fn unsupported_quantizations_are_rejected() {
    let folder = Folder::of_gguf(&stories());
    let cases = [
        (json!({ "quant_method": "bitsandbytes", "load_in_4bit": true }), "bitsandbytes"),
        (json!({ "quant_method": "gptq", "bits": 3, "group_size": 128 }), "3 bits"),
        (json!({ "quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin" }), "marlin"),
        (json!({ "quant_method": "awq", "bits": 4, "version": "gemv" }), "gemv"),
        (json!({ "quant_method": "awq", "bits": 4, "zero_point": false }), "zero points"),
        (json!({ "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized" }), "nvfp4"),
        (json!({ "quant_method": "compressed-tensors", "sparsity_config": { "format": "sparse-24" } }), "sparse-24"),
    ];
    for (config, named) in cases {
        let error = error(&folder.clone().set("quantization_config", config));
        assert!(matches!(error, CheckpointError::Hf(HfError::UnsupportedQuantization { .. })), "{error:?}");
        assert!(error.to_string().contains(named), "{error}");
    }
    let nameless = error(&folder.clone().set("quantization_config", json!({ "bits": 4 })));
    assert!(matches!(nameless, CheckpointError::Hf(HfError::MissingKey { .. })), "{nameless:?}");
}

#[test]
fn quantized_matrices_with_mismatched_parts_are_rejected() {
    let words = |rows: u64, cols: u64| (vec![rows, cols], vec![0x11u8; (rows * cols * 4) as usize]);
    let name = |leaf: &str| format!("model.layers.0.mlp.up_proj.{leaf}");
    let tensor =
        |leaf: &str, dtype, (shape, bytes): (Vec<u64>, Vec<u8>)| Tensor { name: name(leaf), dtype, shape, bytes };
    let gptq = json!({ "quant_method": "gptq", "bits": 4, "group_size": 32 });
    let mut folder = Folder::of_gguf(&stories()).set("quantization_config", gptq);
    folder.tensors.retain(|t| t.name != name("weight"));
    // [172, 64] in groups of 32; 172 rows are 21.5 words.
    folder.tensors.push(tensor("qweight", "I32", words(8, 172)));
    folder.tensors.push(tensor("qzeros", "I32", words(2, 22)));
    folder.tensors.push(tensor("scales", "F16", (vec![2, 172], vec![0x11; 2 * 172 * 2])));
    let model = opened(&folder).expect("a valid folder");
    assert_eq!(model.tensor("blk.0.ffn_up.weight").map(|t| t.ty), Some(TensorType::Q4_1));
    assert!(Decoder::load(&model, &options()).is_ok());

    let changed = |change: &dyn Fn(&mut Folder)| {
        let mut folder = folder.clone();
        change(&mut folder);
        error(&folder)
    };
    for leaf in ["qzeros", "scales"] {
        let error = changed(&|f| f.tensors.retain(|t| t.name != name(leaf)));
        assert!(
            matches!(&error, CheckpointError::Hf(HfError::MissingPart { name: n }) if *n == name(leaf)),
            "{error:?}"
        );
        let error = changed(&|f| f.tensor(&name(leaf)).shape.reverse());
        assert!(
            matches!(&error, CheckpointError::Hf(HfError::PartShape { name: n, .. }) if *n == name(leaf)),
            "{error:?}"
        );
    }
    let error = changed(&|f| f.tensor(&name("qzeros")).dtype = "U32");
    assert!(matches!(error, CheckpointError::Hf(HfError::TensorDtype { .. })), "{error:?}");
    // Half of infinity, as F16.
    let error = changed(&|f| f.tensor(&name("scales")).bytes.copy_from_slice(&[0, 0x7c].repeat(2 * 172)));
    assert!(matches!(error, CheckpointError::Hf(HfError::Scale { .. })), "{error:?}");
    let g_idx = tensor("g_idx", "I32", (vec![64], 2i32.to_le_bytes().repeat(64)));
    let error = changed(&|f| f.tensors.push(g_idx.clone()));
    assert!(matches!(error, CheckpointError::Hf(HfError::GroupIndex { group: 2, n_groups: 2, .. })), "{error:?}");
    let both = tensor("weight", "F32", (vec![172, 64], vec![0; 172 * 64 * 4]));
    let error = changed(&|f| f.tensors.push(both.clone()));
    assert!(matches!(error, CheckpointError::UnexpectedTensor { .. }), "{error:?}");
    // Rows of the experts' form and of the others' form stand for the same part.
    let mut twice = Folder::of_gguf(&stories());
    let copy =
        Tensor { name: "model.layers.0.mlp.gate_up_proj.weight".into(), ..twice.tensor(&name("weight")).clone() };
    twice.tensors.push(copy);
    let error = self::error(&twice);
    assert!(matches!(error, CheckpointError::Hf(HfError::Ambiguous { .. })), "{error:?}");
}
