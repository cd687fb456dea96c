//! Hugging Face folders of every class that is supported: logits against a float64 forward pass, and the same from the
//! GGUF file that quantizing the folder to F32 writes. `golden/hf_models.py` made the folders and the numbers.

#[allow(dead_code)]
#[path = "support/golden.rs"]
mod golden;
#[allow(dead_code)]
#[path = "support/hf.rs"]
mod hf;
#[path = "support/random.rs"]
mod random;

use std::path::Path;

use fewbit_format::{GgufFile, Metadata};
use fewbit_model::quantize::{FileOptions, QuantizeError, Recipe, quantize_folder};
use fewbit_model::{CheckpointError, Chunk, Decoder, HfModel, LoadOptions, LogitsFor, ModelError, WeightSource};
use fewbit_quant::TensorType;
use golden::{N_VOCAB, values};
use hf::{Folder, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

#[derive(Deserialize)]
struct Models {
    tokens: Vec<u32>,
    positions: Vec<usize>,
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
    config: Map<String, Value>,
    /// Name and shape in the folder; name in a GGUF file, scale and offset, which make the values; and what is done
    /// to them.
    tensors: Vec<(String, Vec<u64>, String, f64, f64, Conversion)>,
}

#[derive(Deserialize)]
struct Conversion {
    /// Rows of interleaved pairs become those of halves: elements of a head, and how many of them are rotated.
    halves: Option<(usize, usize)>,
    /// Of each expert, the rows of this tensor come first: its name, scale and offset.
    after: Option<(String, f64, f64)>,
    /// Norms are kept minus 1.
    #[serde(default)]
    minus_one: bool,
}

fn models() -> Models {
    serde_json::from_str(include_str!("golden/hf_models.json")).expect("valid JSON")
}

/// `[models, positions, n_vocab]`
fn golden_logits() -> Vec<f32> {
    let bytes = include_bytes!("golden/hf_models.f32").as_chunks::<4>().0;
    bytes.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

impl Model {
    fn folder(&self) -> Folder {
        let tensors = self.tensors.iter().map(|(name, shape, gguf, scale, offset, how)| {
            let n = shape.iter().product::<u64>() as usize;
            let mut bytes = match &how.after {
                None => values(gguf, n, *scale as f32, *offset as f32),
                Some((first, first_scale, first_offset)) => {
                    let first = values(first, n / 2, *first_scale as f32, *first_offset as f32);
                    let second = values(gguf, n / 2, *scale as f32, *offset as f32);
                    let size = first.len() / shape[0] as usize;
                    first.chunks(size).zip(second.chunks(size)).flat_map(|both| [both.0, both.1].concat()).collect()
                }
            };
            if how.minus_one {
                let floats = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b) - 1.0);
                bytes = floats.flat_map(f32::to_le_bytes).collect();
            }
            if let Some((head_dim, n_rotated)) = how.halves {
                let n_rows = shape[0] as usize;
                let row_bytes = bytes.len() / n_rows;
                let row = |r: usize| {
                    let (head, e) = (r / head_dim, r % head_dim);
                    let half = n_rotated / 2;
                    let from = if e < n_rotated { 2 * (e % half) + e / half } else { e };
                    let at = (head * head_dim + from) * row_bytes;
                    bytes[at..at + row_bytes].iter().copied()
                };
                bytes = (0..n_rows).flat_map(row).collect();
            }
            Tensor { name: name.clone(), dtype: "F32", shape: shape.clone(), bytes }
        });
        Folder { config: self.config.clone(), tensors: tensors.collect() }
    }
}

fn opened(folder: &Folder) -> (TempDir, HfModel) {
    let to = tempfile::tempdir().expect("a folder");
    folder.write(to.path());
    let model = HfModel::open(to.path()).expect("a valid folder");
    (to, model)
}

fn logits(source: &dyn WeightSource, all: &Models) -> Vec<f32> {
    let decoder = Decoder::load(source, &LoadOptions::new().threads(2)).expect("a valid model");
    let mut cache = decoder.new_cache();
    let chunk = Chunk { cache: &mut cache, tokens: &all.tokens, logits: LogitsFor::All };
    let got = decoder.forward(&mut [chunk]).expect("runs");
    all.positions.iter().flat_map(|&i| got.row(i).to_vec()).collect()
}

fn quantized(model: &HfModel, out: &Path, recipe: Recipe) -> Result<GgufFile, QuantizeError> {
    quantize_folder(model, &Metadata::default(), out, &FileOptions::new(recipe), &mut |_, _| {})?;
    Ok(GgufFile::open(out).expect("a valid file"))
}

/// As in `configurations.rs`.
const BOUND: f32 = 1e-4;

#[test]
fn logits_of_folder_and_gguf_file_match_float64() {
    let (all, golden) = (models(), golden_logits());
    let mut classes: Vec<&Value> = all.models.iter().map(|m| &m.config["architectures"][0]).collect();
    classes.sort_by_key(|class| class.to_string());
    classes.dedup();
    assert_eq!(classes.len(), 15, "one for every class");
    for (model, golden) in all.models.iter().zip(golden.chunks(all.positions.len() * N_VOCAB)) {
        let (to, folder) = opened(&model.folder());
        let file = quantized(&folder, &to.path().join("out.gguf"), Recipe::F32).expect("quantizes");
        assert!(file.tensors().iter().all(|tensor| tensor.ty == TensorType::F32), "{}", model.name);
        for (what, source) in [("folder", &folder as &dyn WeightSource), ("file", &file)] {
            let got = logits(source, &all);
            let d = got.iter().zip(golden).fold(0.0f32, |d, (g, w)| d.max((g - w).abs()));
            println!("{d:.1e}  {} ({what})", model.name);
            assert!(got.len() == golden.len() && d < BOUND, "{} ({what}): {d}", model.name);
        }
    }
}

#[test]
fn gguf_file_has_the_expected_names_shapes_and_keys() {
    let all = models();
    let find = |name: &str| all.models.iter().find(|m| m.name == name).expect("in the list");
    let (to, folder) = opened(&find("Mixtral").folder());
    let out = to.path().join("out.gguf");
    let mut about = Metadata::default();
    about.set("general.name", "a name");
    let report =
        quantize_folder(&folder, &about, &out, &FileOptions::new(Recipe::Q8_0), &mut |_, _| {}).expect("quantizes");
    let file = GgufFile::open(&out).expect("a valid file");
    assert_eq!(report.file_bytes, file.file_bytes());
    assert_eq!(file.metadata().str("general.name").expect("text"), Some("a name"));
    assert_eq!(file.metadata().require_u32("llama.vocab_size").expect("a number"), N_VOCAB as u32);
    assert_eq!(file.metadata().require_u32("llama.expert_count").expect("a number"), 8);
    let names: Vec<&str> = file.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(
        names[..5],
        ["token_embd.weight", "output_norm.weight", "output.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight"]
    );
    // One tensor for the experts of a layer, and the small matrix that chooses among them whole.
    let tensor = |name: &str| file.tensor(name).expect("there");
    assert_eq!(tensor("blk.1.ffn_gate_exps.weight").shape, [8, 48, 64]);
    assert_eq!(tensor("blk.1.ffn_gate_exps.weight").ty, TensorType::Q8_0);
    assert_eq!(tensor("blk.1.ffn_down_exps.weight").ty, TensorType::F16, "48 columns are no blocks");
    assert_eq!(tensor("blk.1.ffn_gate_inp.weight").ty, TensorType::F32);
    assert!(!names.iter().any(|name| name.contains("ffn_gate.")), "{names:?}");

    let (to, folder) = opened(&find("Llama 3.1").folder());
    let file = quantized(&folder, &to.path().join("out.gguf"), Recipe::F16).expect("quantizes");
    assert_eq!(file.tensor("rope_freqs.weight").expect("the scaling").shape, [8]);
    assert!(!file.metadata().contains("llama.rope.scaling.type"), "the scaling is in the divisors");
    assert_eq!(file.tensor("blk.0.attn_q.weight").expect("there").ty, TensorType::F16);
    assert_eq!(file.tensor("blk.0.attn_norm.weight").expect("there").ty, TensorType::F32);
}

#[test]
fn models_gguf_cannot_express_are_rejected_and_leave_no_file() {
    let all = models();
    let find = |name: &str| all.models.iter().find(|m| m.name == name).expect("in the list").folder();
    // Layers without position elsewhere than where the architecture has them; a YaRN ramp that is not rounded.
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "truncate": false});
    for (folder, what) in [
        (find("SmolLM3").set("no_rope_layers", json!([1, 0, 1, 1, 1])), "position embedding"),
        (find("Llama, YaRN").set("rope_scaling", yarn), "position embedding"),
    ] {
        let (to, model) = opened(&folder);
        let out = to.path().join("out.gguf");
        match quantized(&model, &out, Recipe::F16) {
            Err(QuantizeError::Model(error @ ModelError::Checkpoint(CheckpointError::NoGgufForm { .. }))) => {
                assert!(error.to_string().contains(what), "{error}");
            }
            other => panic!("{what}: {:?}", other.map(|file| file.file_bytes())),
        }
        assert!(!out.exists());
    }
    // An expert that is missing or too many, and a name that is that of a file which is read.
    let mut folder = find("Mixtral");
    folder.tensors.retain(|tensor| !tensor.name.contains("experts.7.w2"));
    let (to, model) = opened(&folder);
    let error = quantized(&model, &to.path().join("out.gguf"), Recipe::F16).expect_err("incomplete");
    assert!(
        matches!(&error, QuantizeError::Model(ModelError::Checkpoint(CheckpointError::MissingTensor { .. }))),
        "{error}"
    );
    let mut folder = find("Mixtral");
    let extra = Tensor {
        name: "model.layers.0.block_sparse_moe.experts.8.w2.weight".into(),
        ..folder.tensor("model.layers.0.block_sparse_moe.experts.7.w2.weight").clone()
    };
    folder.tensors.push(extra);
    let (to, model) = opened(&folder);
    let error = quantized(&model, &to.path().join("out.gguf"), Recipe::F16).expect_err("one too many");
    assert!(
        matches!(&error, QuantizeError::Model(ModelError::Checkpoint(CheckpointError::UnexpectedTensor { .. }))),
        "{error}"
    );
    let (to, model) = opened(&find("Qwen3"));
    let error = quantized(&model, &to.path().join("model.safetensors"), Recipe::F16).expect_err("refused");
    assert!(matches!(&error, QuantizeError::SameFile { .. }), "{error}");
}

/// Bytes of configurations that are changed at random give an error or another configuration, and never a panic.
#[test]
fn damaged_configurations_do_not_panic() {
    let mut state = 3u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for model in &models().models {
        let (to, _) = opened(&model.folder());
        let path = to.path().join("config.json");
        let whole = std::fs::read(&path).expect("written above");
        let mut n_refused = 0;
        for _ in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..=below(3) {
                let at = below(bytes.len());
                match below(4) {
                    0 => bytes[at] = below(256) as u8,
                    // Another digit, or a longer number.
                    1 => bytes[at] = b'0' + below(10) as u8,
                    2 => bytes.insert(at, b'9'),
                    _ => drop(bytes.remove(at)),
                }
            }
            std::fs::write(&path, &bytes).expect("writable");
            let opened = HfModel::open(to.path());
            n_refused += usize::from(opened.is_err());
            if let Ok(model) = opened {
                let _ = model.config().expect("has been read").to_gguf();
            }
        }
        assert!(n_refused > 0, "{}", model.name);
    }
}
