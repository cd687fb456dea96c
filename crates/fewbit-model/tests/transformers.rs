//! Models of Hugging Face's library, with the logits that it computes itself: the folder, the GGUF file that fewbit
//! writes and the one that llama.cpp's converter writes give these logits, and the same bits however the work is split.
//! `golden/transformers_models.py` made the numbers.

#[allow(dead_code)]
#[path = "support/golden.rs"]
mod golden;
#[allow(dead_code)]
#[path = "support/hf.rs"]
mod hf;
#[allow(dead_code)]
#[path = "support/random.rs"]
mod random;
#[allow(dead_code)]
#[path = "support/run.rs"]
mod run;

use fewbit_format::{GgufFile, GgufWriter, Metadata, Value};
use fewbit_model::quantize::{FileOptions, Recipe, quantize_folder};
use fewbit_model::{Chunk, Decoder, HfModel, Isa, LoadOptions, LogitsFor, WeightSource};
use golden::{N_VOCAB, values};
use hf::{Folder, Tensor};
use run::{bits, logits};
use serde::Deserialize;
use serde_json::Map;
use std::collections::BTreeMap;
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
    config: Map<String, serde_json::Value>,
    /// Name, element type, shape, scale and offset.
    tensors: Vec<(String, String, Vec<u64>, f64, f64)>,
    gguf: Gguf,
}

/// The file that llama.cpp's converter makes of the folder.
#[derive(Deserialize)]
struct Gguf {
    /// Types (an array's and its elements') and value of every key.
    metadata: BTreeMap<String, (String, serde_json::Value)>,
    /// Name, type, shape and hash of the bytes.
    tensors: Vec<(String, String, Vec<u64>, String)>,
}

fn models() -> Models {
    serde_json::from_str(include_str!("golden/transformers_models.json")).expect("valid JSON")
}

/// `[models, positions, n_vocab]`
fn golden_logits() -> Vec<f32> {
    let bytes = include_bytes!("golden/transformers_models.f32").as_chunks::<4>().0;
    bytes.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

impl Model {
    fn folder(&self) -> Folder {
        let tensors = self.tensors.iter().map(|(name, dtype, shape, scale, offset)| {
            let n = shape.iter().product::<u64>() as usize;
            let (dtype, bytes) = match dtype.as_str() {
                "F32" => ("F32", values(name, n, *scale as f32, *offset as f32)),
                _ => {
                    let units = values(name, n, 1.0, 0.0);
                    let units = units.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)));
                    ("U8", units.map(|u| ((u + 1.0) * 128.0 * scale).floor() as u8 + *offset as u8).collect())
                }
            };
            Tensor { name: name.clone(), dtype, shape: shape.clone(), bytes }
        });
        Folder { config: self.config.clone(), tensors: tensors.collect() }
    }

    fn opened(&self) -> (TempDir, HfModel) {
        let to = tempfile::tempdir().expect("a folder");
        self.folder().write(to.path());
        let model = HfModel::open(to.path()).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        (to, model)
    }

    /// The file that fewbit makes.
    fn quantized(&self, recipe: Recipe) -> GgufFile {
        let (to, model) = self.opened();
        let out = to.path().join("out.gguf");
        quantize_folder(&model, &Metadata::default(), &out, &FileOptions::new(recipe), &mut |_, _| {})
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        GgufFile::from_bytes(std::fs::read(&out).expect("written above")).expect("a valid file")
    }

    /// The file that llama.cpp's converter makes: its keys, and the tensors, which are those of `file`.
    fn converted(&self, file: &GgufFile) -> GgufFile {
        let mut w = GgufWriter::new();
        for (key, (kind, value)) in &self.gguf.metadata {
            let value = match kind.as_str() {
                "string" => Value::from(value.as_str().expect("text")),
                "uint32" => Value::from(value.as_u64().expect("an integer") as u32),
                "float32" => Value::from(value.as_f64().expect("a number") as f32),
                "bool" => Value::from(value.as_bool().expect("a bool")),
                "array+bool" => {
                    let list = value.as_array().expect("a list").iter();
                    Value::from(list.map(|b| b.as_bool().expect("a bool")).collect::<Vec<_>>())
                }
                "array+int32" => {
                    let list = value.as_array().expect("a list").iter();
                    Value::from(list.map(|n| n.as_i64().expect("an integer") as i32).collect::<Vec<_>>())
                }
                other => panic!("{key} is {other}"),
            };
            w.set(key.clone(), value);
        }
        for tensor in file.tensors() {
            let bytes = file.tensor_bytes(tensor).to_vec();
            w.tensor(tensor.name.clone(), &tensor.shape, tensor.ty, bytes).expect("a valid tensor");
        }
        GgufFile::from_bytes(w.to_bytes().expect("a valid file")).expect("a valid file")
    }
}

fn fnv(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01B3));
    format!("{hash:016x}")
}

fn load(source: &dyn WeightSource, options: LoadOptions) -> Decoder {
    Decoder::load(source, &options).expect("a valid model")
}

/// As in `configurations.rs`.
const BOUND: f32 = 1e-4;

#[test]
fn logits_of_folder_and_files_are_those_of_transformers() {
    let (all, golden) = (models(), golden_logits());
    assert_eq!(golden.len(), all.models.len() * all.positions.len() * N_VOCAB);
    for (model, golden) in all.models.iter().zip(golden.chunks(all.positions.len() * N_VOCAB)) {
        let (_to, folder) = model.opened();
        let file = model.quantized(Recipe::F32);
        let mut ours: Vec<_> = file
            .tensors()
            .iter()
            .map(|t| (t.name.clone(), t.ty.name().to_owned(), t.shape.clone(), fnv(file.tensor_bytes(t))))
            .collect();
        ours.sort();
        assert_eq!(ours, model.gguf.tensors, "{}: tensors of llama.cpp's converter", model.name);
        let converted = model.converted(&file);
        for (what, source) in [("folder", &folder as &dyn WeightSource), ("file", &file), ("llama.cpp's", &converted)] {
            let decoder = load(source, LoadOptions::new().threads(2));
            let got = logits(&decoder, &mut decoder.new_cache(), &all.tokens, 512);
            let got: Vec<f32> = all.positions.iter().flat_map(|&i| got[i * N_VOCAB..][..N_VOCAB].to_vec()).collect();
            let d = got.iter().zip(golden).fold(0.0f32, |d, (g, w)| d.max((g - w).abs()));
            println!("{d:.1e}  {} ({what})", model.name);
            let bound = if model.name.contains("MXFP4") { ACTIVATIONS } else { BOUND };
            assert!(d < bound, "{} ({what}): {d}", model.name);
        }
    }
}

/// With quantized weights, activations are rounded to 8 bits, which golden logits are not.
const ACTIVATIONS: f32 = 0.3;

/// Quantizing as the model is loaded gives the bits of the quantized file, and these do not depend on instruction set,
/// threads, chunks, the rest of the batch, forks, rolled-back drafts or whether the cache was saved.
#[test]
fn bits_of_quantized_models_do_not_depend_on_how_the_work_is_split() {
    let all = models();
    let tokens: Vec<u32> = (0..300).map(|i| (i * i / 3 + i * 7) % 60).collect();
    for model in &all.models {
        let name = &model.name;
        let (_to, folder) = model.opened();
        let file = model.quantized(Recipe::Q4_0);
        let options = || LoadOptions::new().isa(Isa::best()).threads(2);
        let whole = load(&file, options());
        let want = bits(&logits(&whole, &mut whole.new_cache(), &tokens, 512));
        assert!(want.iter().all(|&b| f32::from_bits(b).is_finite()), "{name}");
        let at_load = load(&folder, options().quantize(Recipe::Q4_0).kv_type(whole.kv_type()));
        let got = bits(&logits(&at_load, &mut at_load.new_cache(), &tokens, 512));
        // Files have Llama 3's scaling as divisors in f32, which are not the exact ones of a folder.
        assert!(got == want || file.tensor("rope_freqs.weight").is_some(), "{name}: quantized at load");
        for isa in Isa::available() {
            let (threads, sizes): (usize, &[usize]) = match isa {
                Isa::Scalar => (1, &[64]),
                _ if isa == Isa::best() => (2, &[1, 7, 64, 512]),
                _ => (1, &[512]),
            };
            let decoder = load(&file, LoadOptions::new().isa(isa).threads(threads).kv_type(whole.kv_type()));
            for &size in sizes {
                let n = if isa == Isa::Scalar { 64 } else { tokens.len() };
                let got = bits(&logits(&decoder, &mut decoder.new_cache(), &tokens[..n], size));
                assert!(got == want[..n * N_VOCAB], "{name}, {isa}, {threads} threads, chunks of {size}");
            }
        }
        let after = |n: usize| want[n * N_VOCAB..].to_vec();
        let mut cache = whole.new_cache();
        logits(&whole, &mut cache, &tokens[..270], 512);
        let mut fork = cache.fork();
        // Drafted tokens that are rejected, in one of the two.
        logits(&whole, &mut cache, &[1, 2, 3, 4], 4);
        cache.truncate(270);
        let mut saved = Vec::new();
        cache.serialize(&mut saved).expect("the CPU does not fail");
        let loras = fewbit_model::LoraSet::default();
        let mut restored = whole.restore_cache(&loras, cache.len(), &saved).expect("what serialize wrote");
        let mut other = whole.new_cache();
        let mut batch: Vec<Chunk<'_>> = [(&mut cache, &tokens[270..]), (&mut fork, &tokens[270..])]
            .into_iter()
            .chain([(&mut other, &tokens[..33]), (&mut restored, &tokens[270..])])
            .map(|(cache, tokens)| Chunk { cache, tokens, logits: LogitsFor::All })
            .collect();
        let got = whole.forward(&mut batch).expect("runs");
        let got: Vec<u32> = (0..got.n_rows()).flat_map(|i| bits(got.row(i))).collect();
        let expected = [after(270), after(270), want[..33 * N_VOCAB].to_vec(), after(270)].concat();
        assert!(got == expected, "{name}: rolled back, forked, alone and restored");
    }
}

/// Tokens of a text, and the logits after each.
struct Text {
    decoder: Decoder,
    tokens: Vec<u32>,
    want: Vec<u32>,
}

impl Text {
    /// A text for every model with recurrent layers.
    fn all() -> impl Iterator<Item = (String, Self)> {
        let models = models().models.into_iter();
        models.filter_map(|model| {
            let file = model.quantized(Recipe::Q4_0);
            file.config().expect("a valid configuration").recurrent?;
            let decoder = load(&file, LoadOptions::new().threads(2));
            let tokens: Vec<u32> = (0..600).map(|i| (i * i / 3 + i * 7) % 60).collect();
            let tokens = tokens[..decoder.config().context_length.min(600) - 90].to_vec();
            let want = bits(&logits(&decoder, &mut decoder.new_cache(), &tokens, 512));
            Some((model.name, Self { decoder, tokens, want }))
        })
    }

    /// Appends the tokens from the end of the cache up to `to`, and compares the logits.
    fn append(&self, cache: &mut fewbit_model::KvCache, to: usize, what: &str) {
        let from = cache.len();
        let got = bits(&logits(&self.decoder, cache, &self.tokens[from..to], 64));
        assert!(got == self.want[from * N_VOCAB..to * N_VOCAB], "{what}: tokens {from} to {to}");
    }
}

#[test]
fn rejected_drafts_leave_no_trace_in_recurrent_layers() {
    for (name, text) in Text::all() {
        let n = text.tokens.len();
        for (drafted, accepted) in [(5, 2), (17, 16), (9, 1), (4, 4), (36, 4), (100, 7)] {
            let mut cache = text.decoder.new_cache();
            text.append(&mut cache, 3, &name);
            while cache.len() + drafted < n {
                let (start, right) = (cache.len(), cache.len() + accepted);
                let draft: Vec<u32> = (start..start + drafted)
                    .map(|i| if i < right { text.tokens[i] } else { 59 - text.tokens[i] })
                    .collect();
                let got = bits(&logits(&text.decoder, &mut cache, &draft, 512));
                assert!(got[..accepted * N_VOCAB] == text.want[start * N_VOCAB..right * N_VOCAB], "{name}: at {start}");
                let left = cache.truncate(right);
                match drafted {
                    // Too many for the log, so the step is computed again: its beginning is known.
                    100 => assert!(left >= start, "{name}: {left} of {right}, from {start}"),
                    _ => assert_eq!(left, right, "{name}: from {start}"),
                }
                // Saved and forked where the state is yet to be computed.
                let mut saved = Vec::new();
                cache.serialize(&mut saved).expect("the CPU does not fail");
                assert!(saved.len() as u64 <= text.decoder.cache_state_bytes(cache.len()), "{name}");
                let loras = fewbit_model::LoraSet::default();
                let mut restored = text.decoder.restore_cache(&loras, left, &saved).expect("what serialize wrote");
                let mut fork = cache.fork();
                text.append(&mut restored, (right + 2).min(n), &name);
                text.append(&mut fork, (right + 3).min(n), &name);
                text.append(&mut cache, right, &name);
            }
            text.append(&mut cache, n, &name);
        }
        assert_eq!(text.decoder.kv_pages(), 0, "{name}: everything is given back");
    }
}

#[test]
fn prefixes_are_known_up_to_the_last_state() {
    let mut n_models = 0;
    for (name, text) in Text::all() {
        n_models += 1;
        let (decoder, n) = (&text.decoder, text.tokens.len());
        let loras = fewbit_model::LoraSet::default();
        let mut tree = decoder.new_prefix_tree();
        let mut cache = decoder.new_cache();
        text.append(&mut cache, 300, &name);
        assert!(cache.n_pages() > 2 && cache.bytes() > 2 * decoder.kv_page_bytes(), "{name}: states are counted");
        tree.insert(&text.tokens, &cache);
        assert!(tree.n_pages() > 2, "{name}: states are counted");
        // The whole of it, a page of it, nothing of it.
        for (known, asked) in [(300, n), (256, 299), (256, 256), (0, 255)] {
            let mut found = tree.find(&text.tokens[..asked], &loras);
            assert_eq!(found.len(), known, "{name}: of {asked}");
            text.append(&mut found, n, &name);
        }
        // Back to a state at a page's end, and to the beginning.
        let mut long = cache.fork();
        text.append(&mut long, n, &name);
        assert_eq!(long.truncate(290), 256, "{name}");
        text.append(&mut long, n, &name);
        assert_eq!(long.truncate(100), 0, "{name}");
        text.append(&mut long, 100, &name);
        let pages = decoder.kv_pages();
        drop((cache, long));
        assert!(decoder.kv_pages() < pages && decoder.kv_pages() == tree.n_pages(), "{name}");
        assert!(tree.evict(usize::MAX) > 2, "{name}");
        assert_eq!((tree.n_pages(), decoder.kv_pages()), (0, 0), "{name}");
    }
    assert_eq!(n_models, 4, "models with recurrent layers");
}

#[test]
fn layers_that_predict_further_tokens_are_left_out() {
    for model in models().models.iter().filter(|model| model.name.starts_with("Qwen3")) {
        let file = model.quantized(Recipe::F32);
        let mut w = GgufWriter::new();
        for (key, value) in file.metadata().iter() {
            w.set(key.to_owned(), value.clone());
        }
        let config = file.config().expect("valid");
        let (n, prefix) = (config.n_layers(), &config.architecture);
        w.set(format!("{prefix}.block_count"), n as u32 + 1);
        w.set(format!("{prefix}.nextn_predict_layers"), 1u32);
        let kinds: Vec<bool> = config.layers.iter().map(|layer| layer.is_recurrent).chain([false]).collect();
        w.set(format!("{prefix}.attention.recurrent_layers"), kinds);
        for tensor in file.tensors() {
            let bytes = file.tensor_bytes(tensor).to_vec();
            w.tensor(tensor.name.clone(), &tensor.shape, tensor.ty, bytes).expect("a valid tensor");
        }
        for name in ["nextn.eh_proj.weight", "attn_q.weight"] {
            w.tensor(format!("blk.{n}.{name}"), &[2], fewbit_quant::TensorType::F32, vec![0; 8]).expect("valid");
        }
        let with_more = GgufFile::from_bytes(w.to_bytes().expect("a valid file")).expect("a valid file");
        let (with_more, without) = (load(&with_more, LoadOptions::new()), load(&file, LoadOptions::new()));
        assert_eq!(with_more.config().n_layers(), n);
        let run = |decoder: &Decoder| bits(&logits(decoder, &mut decoder.new_cache(), &[1, 2, 3, 4, 5], 512));
        assert!(run(&with_more) == run(&without), "{}", model.name);
    }
}

/// llama.cpp's first files of Qwen3-Next have queries, keys, values and gates in one tensor, as folders do.
#[test]
fn first_files_of_qwen3_next_have_the_same_bits() {
    let all = models();
    let model = all.models.iter().find(|model| model.name == "Qwen3-Next").expect("there");
    let file = model.quantized(Recipe::F32);
    let config = file.config().expect("valid");
    let delta = config.delta_net().expect("recurrent layers");
    let mut w = GgufWriter::new();
    for (key, value) in file.metadata().iter() {
        w.set(key.to_owned(), value.clone());
    }
    let row_bytes = 4 * config.dim;
    for tensor in file.tensors() {
        let bytes = file.tensor_bytes(tensor);
        if tensor.name.ends_with("attn_gate.weight") {
            continue;
        }
        let Some(layer) = tensor.name.strip_suffix("attn_qkv.weight") else {
            w.tensor(tensor.name.clone(), &tensor.shape, tensor.ty, bytes.to_vec()).expect("valid");
            continue;
        };
        let gates = file.tensors().iter().find(|t| t.name == format!("{layer}attn_gate.weight")).expect("there");
        let apart = [bytes, file.tensor_bytes(gates)].concat();
        let mut mixed = vec![0; apart.len()];
        for (row, from) in apart.chunks_exact(row_bytes).enumerate() {
            let to = delta.mixed_row(row) * row_bytes;
            mixed[to..to + row_bytes].copy_from_slice(from);
        }
        let shape = [(apart.len() / row_bytes) as u64, config.dim as u64];
        w.tensor(format!("{layer}ssm_in.weight"), &shape, tensor.ty, mixed).expect("valid");
    }
    let first = GgufFile::from_bytes(w.to_bytes().expect("a valid file")).expect("a valid file");
    let run = |file: &GgufFile| {
        let decoder = load(file, LoadOptions::new());
        bits(&logits(&decoder, &mut decoder.new_cache(), &all.tokens, 512))
    };
    assert!(run(&first) == run(&file));
}
