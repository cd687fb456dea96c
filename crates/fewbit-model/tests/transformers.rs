//! Models of Hugging Face's library, with the logits that it computes itself: the folder, the GGUF file that fewbit
//! writes and the one that llama.cpp's converter writes give these logits, and the same bits however the work is split.
//! `golden/transformers_models.py` made the numbers.

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

use fewbit_format::{GgufFile, GgufWriter, Value};
use fewbit_kernels::convert_rows;
use fewbit_model::quantize::Recipe;
use fewbit_model::{Chunk, Decoder, HfModel, Isa, KvType, LoadOptions, LogitsFor, ModelError, Placement, WeightSource};
use fewbit_quant::{TensorType, decode};
use golden::{N_VOCAB, values};
use half::f16;
use hf::Tensor;
use library::{Models, fnv};
use run::{bits, logits};
use std::collections::BTreeMap;
use tempfile::TempDir;

/// The files of models and of their logits.
const FILES: [(&str, &[u8]); 4] = [
    (include_str!("golden/transformers_models.json"), include_bytes!("golden/transformers_models.f32")),
    (include_str!("golden/transformers_deepseek.json"), include_bytes!("golden/transformers_deepseek.f32")),
    (include_str!("golden/transformers_hybrid.json"), include_bytes!("golden/transformers_hybrid.f32")),
    (include_str!("golden/transformers_gemma.json"), include_bytes!("golden/transformers_gemma.f32")),
];

/// The models of all files, which have the same tokens and positions.
fn models() -> Models {
    let mut files = FILES.iter().map(|(json, _)| serde_json::from_str::<Models>(json).expect("valid JSON"));
    let mut all = files.next().expect("a file");
    for file in files {
        assert_eq!((&file.tokens, &file.positions), (&all.tokens, &all.positions));
        all.models.extend(file.models);
    }
    all
}

/// `[models, positions, n_vocab]`
fn golden_logits() -> Vec<f32> {
    let bytes = FILES.iter().flat_map(|(_, logits)| logits.as_chunks::<4>().0);
    bytes.map(|b| f32::from_le_bytes(*b)).collect()
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

/// A tensor with its name, shape, type and bytes.
type Stored = (String, Vec<u64>, TensorType, Vec<u8>);

/// A file of the converter's keys with other ones in their place, and of tensors.
fn file_of(keys: &BTreeMap<String, Value>, tensors: &[Stored]) -> GgufFile {
    let mut w = GgufWriter::new();
    for (key, value) in keys {
        w.set(key.clone(), value.clone());
    }
    for (name, shape, ty, bytes) in tensors {
        w.tensor(name.clone(), shape, *ty, bytes.clone()).expect("a valid tensor");
    }
    GgufFile::from_bytes(w.to_bytes().expect("a valid file")).expect("a valid file")
}

fn keys_and_tensors(file: &GgufFile) -> (BTreeMap<String, Value>, Vec<Stored>) {
    let keys = file.metadata().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
    let tensors = file.tensors().iter().map(|t| (t.name.clone(), t.shape.clone(), t.ty, file.tensor_bytes(t).to_vec()));
    (keys, tensors.collect())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn all_bits(file: &GgufFile, options: LoadOptions) -> Vec<u32> {
    let decoder = load(file, options.threads(2));
    bits(&logits(&decoder, &mut decoder.new_cache(), &models().tokens, 512))
}

/// Older files have one tensor for keys and values of all heads, which may be quantized, and lengths of heads.
#[test]
fn older_files_of_latent_attention_give_the_same_bits() {
    let all = models();
    for model in all.models.iter().filter(|model| ["DeepSeek 2 Lite", "DeepSeek 3"].contains(&model.name.as_str())) {
        let (keys, tensors) = keys_and_tensors(&model.converted(&model.quantized(Recipe::F32)));
        let [n_heads, kv_rank, plain, value] = [6, 64, 24, 40usize];
        for ty in [TensorType::F32, TensorType::Q8_0] {
            let (mut older, mut newer) = (Vec::new(), Vec::new());
            for (name, shape, own, bytes) in &tensors {
                if name.ends_with("attn_k_b.weight") {
                    let values = name.replace("attn_k_b", "attn_v_b");
                    let (_, _, _, v) = tensors.iter().find(|(name, ..)| *name == values).expect("values");
                    let (k, v) = (floats(bytes), floats(v));
                    let rows: Vec<f32> = (0..n_heads)
                        .flat_map(|head| {
                            let key = |d: usize, c: usize| k[(head * kv_rank + c) * plain + d];
                            let keys = (0..plain * kv_rank).map(|at| key(at / kv_rank, at % kv_rank));
                            let v = &v[head * value * kv_rank..(head + 1) * value * kv_rank];
                            keys.chain(v.iter().copied()).collect::<Vec<_>>()
                        })
                        .collect();
                    let plain_bytes: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
                    let mut joint = vec![0; ty.row_bytes(kv_rank).expect("whole blocks") * rows.len() / kv_rank];
                    convert_rows(TensorType::F32, &plain_bytes, ty, kv_rank, &mut joint).expect("encodable");
                    let shape = vec![(rows.len() / kv_rank) as u64, kv_rank as u64];
                    older.push((name.replace("attn_k_b", "attn_kv_b"), shape, ty, joint.clone()));
                    // The same as two tensors: keys in floats, values as they are.
                    let mut decoded = vec![0.0; rows.len()];
                    decode(ty, &joint, &mut decoded).expect("valid");
                    let head_rows = plain + value;
                    let k: Vec<u8> = (0..n_heads * kv_rank * plain)
                        .map(|at| (at / (kv_rank * plain), at / plain % kv_rank, at % plain))
                        .flat_map(|(head, c, d)| decoded[(head * head_rows + d) * kv_rank + c].to_le_bytes())
                        .collect();
                    let head_bytes = joint.len() / n_heads;
                    let v: Vec<u8> = (0..n_heads)
                        .flat_map(|head| {
                            joint[head * head_bytes + head_bytes * plain / head_rows..(head + 1) * head_bytes].to_vec()
                        })
                        .collect();
                    let v_shape = [n_heads, value, kv_rank].map(|n| n as u64).to_vec();
                    newer.push((
                        name.clone(),
                        [n_heads, kv_rank, plain].map(|n| n as u64).to_vec(),
                        TensorType::F32,
                        k,
                    ));
                    newer.push((values, v_shape, ty, v));
                } else if !name.ends_with("attn_v_b.weight") {
                    older.push((name.clone(), shape.clone(), *own, bytes.clone()));
                    newer.push((name.clone(), shape.clone(), *own, bytes.clone()));
                }
            }
            let mut old_keys = keys.clone();
            let mut set =
                |key: &str, n: usize| old_keys.insert(format!("deepseek2.attention.{key}"), (n as u32).into());
            set("key_length", plain + 32);
            set("value_length", value);
            set("head_count_kv", n_heads);
            for key in ["key_length_mla", "value_length_mla"] {
                old_keys.remove(&format!("deepseek2.attention.{key}"));
            }
            let options = || LoadOptions::new().kv_type(KvType::F32);
            let [old, new] =
                [file_of(&old_keys, &older), file_of(&keys, &newer)].map(|file| all_bits(&file, options()));
            assert!(old == new, "{}, {ty:?}", model.name);
        }
    }
}

/// Caches of every type give the same bits however a prompt is cut, and take what was estimated.
#[test]
fn latent_caches_of_every_type_are_split_alike() {
    let all = models();
    let tokens: Vec<u32> = (0..300).map(|i| (i * i / 3 + i * 7) % 60).collect();
    for model in all.models.iter().filter(|model| ["DeepSeek 3", "Mistral Small 4"].contains(&model.name.as_str())) {
        let file = model.quantized(Recipe::F32);
        for ty in KvType::ALL {
            let decoder = load(&file, LoadOptions::new().threads(2).kv_type(ty));
            let estimate = fewbit_model::estimate(&file, Isa::best(), 512, Some(ty), false).expect("a valid model");
            // Latent and key of 96 elements in four layers, and nothing else.
            let row_bytes =
                [96 * 2, 96 * 4, 96 + 3 * 2][KvType::ALL.iter().position(|known| *known == ty).expect("known")];
            assert_eq!(estimate.kv_bytes, 512 * 4 * row_bytes, "{ty}");
            let want = bits(&logits(&decoder, &mut decoder.new_cache(), &tokens, 512));
            for size in [1, 7, 64] {
                let got = bits(&logits(&decoder, &mut decoder.new_cache(), &tokens, size));
                assert!(got == want, "{}, {ty}, chunks of {size}", model.name);
            }
        }
    }
}

/// Layers that predict further tokens are neither loaded nor counted.
#[test]
fn layers_after_the_last_are_left_out() {
    let all = models();
    let model = all.models.iter().find(|model| model.name == "GLM-4.5 Air").expect("there");
    let file = model.converted(&model.quantized(Recipe::F32));
    let (mut keys, mut tensors) = keys_and_tensors(&file);
    keys.insert("glm4moe.block_count".to_owned(), 5u32.into());
    keys.insert("glm4moe.nextn_predict_layers".to_owned(), 1u32.into());
    let more: Vec<_> = tensors.iter().filter(|(name, ..)| name.starts_with("blk.3.")).cloned().collect();
    tensors.extend(more.into_iter().map(|(name, a, b, c)| (name.replace("blk.3.", "blk.4."), a, b, c)));
    tensors.push(("blk.4.nextn.eh_proj.weight".to_owned(), vec![96, 192], TensorType::F32, vec![0; 4 * 96 * 192]));
    let with = file_of(&keys, &tensors);
    assert!(all_bits(&with, LoadOptions::new()) == all_bits(&file, LoadOptions::new()));
    let bytes = |file| fewbit_model::estimate(file, Isa::best(), 512, None, false).expect("valid").weight_bytes;
    assert_eq!(bytes(&with), bytes(&file));
    // Where layers are listed, the further one is in the lists.
    let nemotron = all.models.iter().find(|model| model.name == "Nemotron 3 Nano").expect("there");
    let file = nemotron.converted(&nemotron.quantized(Recipe::F32));
    let (mut with_more, mut all_tensors) = keys_and_tensors(&file);
    with_more.insert("nemotron_h_moe.block_count".to_owned(), 9u32.into());
    with_more.insert("nemotron_h_moe.nextn_predict_layers".to_owned(), 1u32.into());
    for (key, of_last) in [("feed_forward_length", 24), ("attention.head_count_kv", 2)] {
        let key = format!("nemotron_h_moe.{key}");
        let list = file.metadata().require_i32_array(&key).expect("a list");
        with_more.insert(key, [&*list, &[of_last]].concat().into());
    }
    all_tensors.push(("blk.8.nextn.eh_proj.weight".to_owned(), vec![96, 192], TensorType::F32, vec![0; 4 * 96 * 192]));
    let with = file_of(&with_more, &all_tensors);
    assert!(all_bits(&with, LoadOptions::new()) == all_bits(&file, LoadOptions::new()));
    assert_eq!(bytes(&with), bytes(&file));
    // Of an architecture that has no such layers they are refused.
    keys.insert("qwen3moe.nextn_predict_layers".to_owned(), 1u32.into());
    keys.insert("general.architecture".to_owned(), "qwen3moe".into());
    let refused = Decoder::load(&file_of(&keys, &tensors), &LoadOptions::new()).map(|_| ()).expect_err("refused");
    assert!(refused.to_string().contains("nextn_predict_layers"), "{refused}");
}

/// Folders with FP8 matrices give the bits of folders that have them in F16: those for keys and values in scaled blocks,
/// which are split and turned, and those of experts with a scale for each expert.
#[test]
fn fp8_of_latent_attention_and_of_experts_is_read() {
    let block = serde_json::json!({ "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128] });
    let whole = serde_json::json!({ "quant_method": "fp8", "activation_scheme": "static", "weight_block_size": null });
    let scales = |n: usize| -> Vec<f32> { (0..n).map(|i| [1.0 / 256.0, 1.0 / 512.0, 1.0 / 128.0][i % 3]).collect() };
    for (name, parts, scheme) in
        [("DeepSeek 3", &["kv_b_proj.weight"][..], block), ("Mistral Small 4", &["gate_up_proj", "down_proj"], whole)]
    {
        let all = models();
        let model = all.models.iter().find(|model| model.name == name).expect("there");
        let [fp8, f16] = [true, false].map(|is_fp8| {
            let mut folder = model.folder();
            let mut more = Vec::new();
            let is_one = |tensor: &Tensor| parts.iter().any(|part| tensor.name.ends_with(part));
            for tensor in folder.tensors.iter_mut().filter(|tensor| is_one(tensor)) {
                let n = tensor.bytes.len() / 4;
                // One scale for 128 rows, or for an expert.
                let (n_scales, shape, of) = match tensor.shape[..] {
                    [rows, cols] => (rows / 128, vec![rows / 128, 1], 128 * cols),
                    [experts, rows, cols] => (experts, vec![experts, 1, 1], rows * cols),
                    _ => unreachable!("matrices"),
                };
                let scales = scales(n_scales as usize);
                let codes = (0..n).map(|i| ((i * 37 + i / 64 * 11) % 112 + i % 3 / 2 * 128) as u8);
                if is_fp8 {
                    let bytes = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
                    more.push(Tensor { name: format!("{}_scale_inv", tensor.name), dtype: "F32", shape, bytes });
                    if !tensor.name.ends_with("weight") {
                        let (name, bytes) = (format!("{}_activation_scale", tensor.name), vec![0; 4]);
                        more.push(Tensor { name, dtype: "F32", shape: vec![1], bytes });
                    }
                    (tensor.dtype, tensor.bytes) = ("F8_E4M3", codes.collect());
                } else {
                    let values = codes.enumerate().map(|(i, code)| e4m3(code) * scales[i / of as usize]);
                    (tensor.dtype, tensor.bytes) =
                        ("F16", values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect());
                }
            }
            folder.tensors.extend(more);
            if is_fp8 {
                folder.config.insert("quantization_config".to_owned(), scheme.clone());
            }
            let to = tempfile::tempdir().expect("a folder");
            folder.write(to.path());
            let opened = HfModel::open(to.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
            let decoder = load(&opened, LoadOptions::new().threads(2));
            bits(&logits(&decoder, &mut decoder.new_cache(), &all.tokens, 512))
        });
        assert!(fp8 == f16 && fp8.iter().any(|&b| b != fp8[0]), "{name}");
    }
}

/// The value of an FP8 code without its scale.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7) };
    if code & 128 != 0 { -magnitude } else { magnitude }
}

/// Adapters of the queries and of the output projection do what merging them into the weights does; of the matrices
/// that latent attention does not apply as they are, they are refused.
#[test]
fn adapters_of_latent_attention_are_as_if_merged() {
    let modules = ["1.self_attn.q_proj", "1.self_attn.o_proj"];
    let refused = [("1.self_attn.kv_a_proj_with_mqa", &[96, 96][..])];
    adapters_are_as_if_merged("DeepSeek 2 Lite", "model.layers", &modules, &refused);
}

/// The same where a layer is attention, a feed-forward block or a state, whose matrices have no adapters.
#[test]
fn adapters_of_layers_with_one_mixer_are_as_if_merged() {
    let modules = ["3.mixer.q_proj", "3.mixer.v_proj", "3.mixer.o_proj", "4.mixer.up_proj", "4.mixer.down_proj"];
    let refused = [("0.mixer.in_proj", &[552, 96][..])];
    adapters_are_as_if_merged("Nemotron-H", "backbone.layers", &modules, &refused);
    let modules = ["3.mixer.q_proj", "3.mixer.k_proj", "6.mixer.o_proj"];
    let refused = [("1.mixer.shared_experts.up_proj", &[40, 96][..]), ("1.mixer.up_proj", &[24, 96])];
    adapters_are_as_if_merged("Nemotron 3 Nano", "backbone.layers", &modules, &refused);
}

/// Also of keys that are values too, of a feed-forward block next to experts, and of one that is wider than others.
/// Layers without keys and values of their own have no adapters of them.
#[test]
fn adapters_of_gemma_4_are_as_if_merged() {
    let modules =
        ["0.self_attn.v_proj", "1.self_attn.k_proj", "3.self_attn.q_proj", "1.mlp.gate_proj", "3.mlp.down_proj"];
    let refused = [("1.self_attn.v_proj", &[80, 64][..])];
    adapters_are_as_if_merged("Gemma 4 26B-A4B", "model.layers", &modules, &refused);
    let modules =
        ["2.self_attn.v_proj", "6.self_attn.q_proj", "6.mlp.up_proj", "7.self_attn.o_proj", "7.mlp.down_proj"];
    let refused = [("6.self_attn.k_proj", &[48, 64][..]), ("7.per_layer_projection", &[64, 16][..])];
    adapters_are_as_if_merged("Gemma 4 E2B", "model.layers", &modules, &refused);
}

/// Adapters of these modules of `layers` do what merging them does; those of `refused`, with the shapes of their matrices,
/// are refused by name.
fn adapters_are_as_if_merged(name: &str, layers: &str, modules: &[&str], refused: &[(&str, &[u64])]) {
    let all = models();
    let model = all.models.iter().find(|model| model.name == name).expect("there");
    let tensors = |modules: &[(&str, Vec<u64>)]| -> Vec<Tensor> {
        let pairs = modules.iter().flat_map(|(module, shape)| {
            [("lora_A", vec![2, shape[1]], 0.3), ("lora_B", vec![shape[0], 2], 0.2)].map(|(half, shape, scale)| {
                let name = format!("base_model.model.{layers}.{module}.{half}.weight");
                let bytes = values(&name, shape.iter().product::<u64>() as usize, scale, 0.0);
                Tensor { name, dtype: "F32", shape, bytes }
            })
        });
        pairs.collect()
    };
    let adapter = |to: &TempDir, tensors: &[Tensor]| {
        std::fs::write(to.path().join("adapter_config.json"), r#"{ "r": 2, "lora_alpha": 3 }"#).expect("writable");
        std::fs::write(to.path().join("adapter_model.safetensors"), hf::safetensors(tensors)).expect("writable");
    };
    let (to, plain) = (tempfile::tempdir().expect("a folder"), load(&model.opened().1, LoadOptions::new().threads(2)));
    let shape = |module: &str| {
        let name = format!("{layers}.{module}.weight");
        model.tensors.iter().find(|(known, ..)| *known == name).expect("a matrix").2.clone()
    };
    let parts = tensors(&modules.iter().map(|module| (*module, shape(module))).collect::<Vec<_>>());
    adapter(&to, &parts);
    let lora = plain.load_lora(to.path()).expect("loads");
    let set = plain.lora_set(&[(lora, 1.0)]).expect("a set");
    let got = logits(&plain, &mut plain.new_cache_with(&set), &all.tokens, 512);
    let mut merged = model.folder();
    for pair in parts.chunks(2) {
        let name = pair[0].name.replace("base_model.model.", "").replace("lora_A.", "");
        let tensor = merged.tensors.iter_mut().find(|tensor| tensor.name == name).expect("a matrix");
        let (a, b, n_cols) = (floats(&pair[0].bytes), floats(&pair[1].bytes), tensor.shape[1] as usize);
        let sums = floats(&tensor.bytes).into_iter().enumerate().map(|(at, w)| {
            let (row, col) = (at / n_cols, at % n_cols);
            w + 1.5 * (b[2 * row] * a[col] + b[2 * row + 1] * a[n_cols + col])
        });
        tensor.bytes = sums.flat_map(|w| w.to_le_bytes()).collect();
    }
    let folder = tempfile::tempdir().expect("a folder");
    merged.write(folder.path());
    let merged = load(&HfModel::open(folder.path()).expect("valid"), LoadOptions::new().threads(2));
    let want = logits(&merged, &mut merged.new_cache(), &all.tokens, 512);
    let without = logits(&plain, &mut plain.new_cache(), &all.tokens, 512);
    let far = |x: &[f32], y: &[f32]| x.iter().zip(y).fold(0.0f32, |d, (x, y)| d.max((x - y).abs()));
    assert!(far(&got, &want) < 1e-3 && far(&got, &without) > 0.1, "{} {}", far(&got, &want), far(&got, &without));
    for (module, shape) in refused {
        adapter(&to, &tensors(&[(module, shape.to_vec())]));
        let refused = plain.load_lora(to.path()).map(|_| ()).expect_err("refused").to_string();
        assert!(refused.contains(module), "{refused}");
    }
}

/// Published files of Gemma 4 have matrices of keys and values in layers that do not use them.
#[test]
fn keys_and_values_of_layers_that_share_others_are_left_out() {
    let all = models();
    let model = all.models.iter().find(|model| model.name == "Gemma 4 E2B").expect("there");
    let (_to, plain) = model.opened();
    let want = {
        let decoder = load(&plain, LoadOptions::new().threads(2));
        let bytes = decoder.kv_page_bytes();
        // Three local layers with 3 heads of 16, a global one with 3 of 40, whose values take 48.
        assert_eq!(bytes, 4 * 256 * (3 * 3 * (16 + 16) + 3 * (40 + 48)));
        let estimate = fewbit_model::estimate(&plain, Isa::best(), 256, None, false).expect("an estimate");
        assert_eq!((estimate.kv_bytes, estimate.weight_bytes), (bytes, decoder.weight_bytes()));
        (decoder.fingerprint(), bits(&logits(&decoder, &mut decoder.new_cache(), &all.tokens, 512)))
    };
    let mut folder = model.folder();
    for layer in 4..8 {
        for (part, shape) in [("k_proj", vec![7, 5]), ("v_proj", vec![3, 2]), ("k_norm", vec![3])] {
            let bytes = vec![0; 4 * shape.iter().product::<u64>() as usize];
            let name = format!("model.layers.{layer}.self_attn.{part}.weight");
            folder.tensors.push(Tensor { name, dtype: "F32", shape, bytes });
        }
    }
    let to = tempfile::tempdir().expect("a folder");
    folder.write(to.path());
    let with_more = HfModel::open(to.path()).expect("valid");
    let file = model.quantized(Recipe::F32);
    let (keys, mut tensors) = keys_and_tensors(&model.converted(&file));
    for name in ["blk.4.attn_k.weight", "blk.7.attn_v.weight", "blk.5.attn_k_norm.weight"] {
        tensors.push((name.to_owned(), vec![4], TensorType::F32, vec![0; 16]));
    }
    for (what, source) in [("folder", &with_more as &dyn WeightSource), ("file", &file_of(&keys, &tensors))] {
        let decoder = load(source, LoadOptions::new().threads(2));
        let got = bits(&logits(&decoder, &mut decoder.new_cache(), &all.tokens, 512));
        assert!((decoder.fingerprint(), got) == want, "{what}");
    }
}

/// A segment has the layers whose keys and values its own ones share.
#[test]
fn segments_keep_layers_with_the_keys_that_they_share() {
    let all = models();
    let model = all.models.iter().find(|model| model.name == "Gemma 4 E2B").expect("there");
    let (_to, folder) = model.opened();
    let run = |placement: Placement| {
        let options = LoadOptions::new().threads(2).placement(placement);
        let decoder = Decoder::load(&folder, &options)?;
        Ok::<_, ModelError>(bits(&logits(&decoder, &mut decoder.new_cache(), &all.tokens, 512)))
    };
    let whole = run(Placement::new()).expect("runs");
    assert!(run(Placement::new().cpu(2)).expect("layers 0 and 1 share with none") == whole);
    let error = run(Placement::new().cpu(3)).map(|_| ()).expect_err("layers 4 to 7 need layer 2");
    assert!(error.to_string().contains("keys and values"), "{error}");
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
    assert_eq!(n_models, 10, "models with recurrent layers");
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
