//! A Hugging Face folder as a model of the public API: it generates, chats and is measured like the GGUF file of the
//! same model.

use std::fs;
use std::path::Path;

use fewbit::expert::format::{GgufFile, GgufWriter, Value as GgufValue};
use fewbit::expert::tokenizer::{SpecialTokens, TokenizerError, TokenizerOptions};
use fewbit::quantize::{FileOptions, Recipe};
use fewbit::{ErrorKind, Model, Sampling};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::STORIES;

#[path = "../../crates/fewbit-model/tests/support/hf.rs"]
#[allow(dead_code)]
mod support;

/// The stories model with its tokens, but without rules to merge them: texts become single characters, and tokens
/// become text as always.
pub(crate) fn folder() -> TempDir {
    let file = GgufFile::open(Path::new(STORIES)).unwrap();
    let to = tempfile::tempdir().unwrap();
    support::Folder::of_gguf(&file).write(to.path());
    let tokens = file.metadata().require_str_array("tokenizer.ggml.tokens").unwrap();
    let mut vocab = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        vocab.insert(token.clone(), json!(id));
    }
    let special = |id: usize| {
        json!({ "id": id, "content": tokens[id], "special": true, "normalized": false, "single_word": false,
            "lstrip": false, "rstrip": false })
    };
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "\u{2581}" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" }
        ]},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 }
        ]},
        "model": { "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": [] },
    });
    let config = json!({
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": true,
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    });
    write(&to, "tokenizer.json", &tokenizer);
    write(&to, "tokenizer_config.json", &config);
    to
}

fn write(folder: &TempDir, name: &str, json: &Value) {
    fs::write(folder.path().join(name), json.to_string()).unwrap();
}

fn story(model: &Model) -> String {
    model.generate("").temperature(0.0).max_tokens(60).run().unwrap().text
}

#[test]
fn hf_folder_generates_the_text_of_its_gguf_file() {
    let folder = folder();
    let path = folder.path().to_str().unwrap();
    let model = Model::builder().threads(2).load(path).unwrap();
    let expected = story(&Model::builder().threads(2).load(STORIES).unwrap());
    assert!(expected.starts_with("Once upon a time, there was a little girl named Lily."), "{expected}");
    assert_eq!(story(&model), expected);
    assert_eq!(model.file_bytes(), fs::metadata(folder.path().join("model.safetensors")).unwrap().len());
    let mut chat = model.chat().start().unwrap();
    assert!(!chat.send("Hi").unwrap().text.is_empty(), "its template is used");
    let estimate = Model::memory_estimate(path, 128).unwrap();
    assert_eq!(estimate.weight_bytes, Model::memory_estimate(STORIES, 128).unwrap().weight_bytes);
}

#[test]
fn weights_can_be_quantized_while_loading() {
    let folder = folder();
    let load = |path: &Path| Model::builder().threads(2).quantize(Recipe::Q8_0).load_file(path).unwrap();
    let (of_folder, of_file) = (load(folder.path()), load(Path::new(STORIES)));
    assert_eq!(story(&of_folder), story(&of_file));
    assert!(fewbit::expert::decoder(&of_folder).weight_bytes() < of_folder.file_bytes() / 3);
    assert_eq!(fewbit::expert::decoder(&of_folder).weight_bytes(), fewbit::expert::decoder(&of_file).weight_bytes());
}

#[test]
fn generation_config_sets_sampling_and_end_tokens() {
    let folder = folder();
    let recommended = || Model::builder().threads(1).load_file(folder.path()).map(|m| m.recommended_sampling());
    let own = json!({ "do_sample": true, "temperature": 0.25, "top_k": 7, "top_p": 0.5, "repetition_penalty": 1.5 });
    write(&folder, "generation_config.json", &own);
    let sampling = recommended().unwrap();
    assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (0.25, 7, 0.5));
    assert_eq!(sampling.penalties.repeat, 1.5);
    write(&folder, "generation_config.json", &json!({ "do_sample": false, "temperature": 0.25 }));
    assert_ne!(recommended().unwrap().temperature, 0.25);
    // 432 is a comma; the story has one after its fourth word.
    write(&folder, "generation_config.json", &json!({ "eos_token_id": [2, 432] }));
    let model = Model::builder().threads(1).load_file(folder.path()).unwrap();
    assert_eq!(story(&model), "Once upon a time");
}

/// Files are also written for programs in which a `top_k` of -1 means "off".
#[test]
fn invalid_recommendations_are_ignored_with_a_warning() {
    let folder = folder();
    let load = || Model::builder().threads(1).load_file(folder.path()).unwrap();
    let silent = load().recommended_sampling();
    type IsOff = fn(&Sampling) -> bool;
    let cases: [(&str, Value, IsOff); 8] = [
        ("temperature", json!(-0.5), |s| s.temperature == 1.0),
        ("temperature", json!(1e300), |s| s.temperature == 1.0),
        ("top_k", json!(-1), |s| s.top_k == 0),
        ("top_k", json!(2.5), |s| s.top_k == 0),
        ("top_p", json!(0.0), |s| s.top_p == 1.0),
        ("top_p", json!(1.5), |s| s.top_p == 1.0),
        ("min_p", json!(-1.0), |s| s.min_p == 0.0),
        ("repetition_penalty", json!(0.0), |s| s.penalties.repeat == 1.0),
    ];
    for (setting, value, is_off) in cases {
        write(&folder, "generation_config.json", &json!({ "do_sample": true, setting: value }));
        let model = load();
        assert!(is_off(&model.recommended_sampling()), "{setting} = {value}");
        assert!(matches!(model.warnings(), [w] if w.contains(setting) && w.contains("off")), "{:?}", model.warnings());
    }
    for value in [json!("hot"), json!([0.5]), json!({})] {
        write(&folder, "generation_config.json", &json!({ "temperature": value, "top_p": 0.5 }));
        let model = load();
        let mut expected = silent.clone();
        expected.top_p = 0.5;
        assert_eq!(model.recommended_sampling(), expected, "{value}");
        assert!(matches!(model.warnings(), [w] if w.contains("no number")), "{:?}", model.warnings());
    }
    write(&folder, "generation_config.json", &json!({ "do_sample": "yes", "top_k": 0, "top_p": 1.0 }));
    let model = load();
    assert!(model.warnings().is_empty(), "what is off by its own value is no mistake: {:?}", model.warnings());
    assert_eq!((model.recommended_sampling().top_k, model.recommended_sampling().top_p), (0, 1.0));
    assert_eq!(silent, Sampling::default(), "and nothing is recommended without the file");
}

/// Names and descriptions, whatever their type.
#[test]
fn descriptive_fields_of_any_type_do_not_prevent_loading() {
    let folder = folder();
    let config: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("config.json")).unwrap()).expect("written above");
    for value in [json!(7), json!(["a", "b"]), json!({ "name": "a" }), json!(null), json!(true), json!("")] {
        let mut config = config.clone();
        for key in ["_name_or_path", "name", "description", "transformers_version", "license", "tags"] {
            config[key] = value.clone();
        }
        write(&folder, "config.json", &config);
        write(
            &folder,
            "tokenizer_config.json",
            &json!({ "name_or_path": value, "tokenizer_class": value, "extra": value }),
        );
        write(
            &folder,
            "generation_config.json",
            &json!({ "transformers_version": value, "_from_model_config": value }),
        );
        Model::builder().threads(1).load_file(folder.path()).unwrap_or_else(|error| panic!("{value}: {error}"));
    }
    let file = GgufFile::open(Path::new(STORIES)).unwrap();
    for value in [GgufValue::from(7u32), vec!["a".to_owned()].into(), 0.5f32.into(), true.into(), "".into()] {
        let mut writer = GgufWriter::new();
        for (key, own) in file.metadata().iter() {
            writer.set(key, own.clone());
        }
        for key in ["name", "description", "author", "license", "tags", "basename", "size_label", "url", "quantized_by"]
        {
            writer.set(format!("general.{key}"), value.clone());
        }
        for tensor in file.tensors() {
            let bytes = file.tensor_bytes(tensor).to_vec();
            writer.tensor(tensor.name.clone(), &tensor.shape, tensor.ty, bytes).unwrap();
        }
        let path = folder.path().join("people.gguf");
        writer.write_file(&path).unwrap();
        let model = Model::builder().threads(1).load_file(&path).unwrap_or_else(|error| panic!("{value:?}: {error}"));
        assert!(!story(&model).is_empty());
    }
}

/// The rules that lead to the tokens of a SentencePiece vocabulary: every way to cut one in two, by score.
fn merges(file: &GgufFile) -> Vec<Value> {
    let tokens = file.metadata().require_str_array("tokenizer.ggml.tokens").unwrap();
    let scores = file.metadata().f32_array("tokenizer.ggml.scores").unwrap().unwrap();
    let mut rules = Vec::new();
    for (token, score) in tokens.iter().zip(scores).filter(|(token, _)| !token.starts_with('<')) {
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if [left, right].iter().all(|part| tokens.iter().any(|token| token == part)) {
                rules.push((*score, json!(format!("{left} {right}"))));
            }
        }
    }
    rules.sort_by(|a, b| b.0.total_cmp(&a.0));
    rules.into_iter().map(|(_, rule)| rule).collect()
}

#[test]
fn hf_folder_is_converted_to_a_gguf_file() {
    let (folder, original) = (folder(), GgufFile::open(Path::new(STORIES)).unwrap());
    let quantize = |out: &Path| {
        let (options, tokenizer) = (FileOptions::new(Recipe::F32), TokenizerOptions::default());
        fewbit::expert::open(folder.path()).unwrap().quantize(out, &options, &tokenizer, &mut |_, _| {})
    };
    let out = folder.path().join("out.gguf");
    let error = quantize(&out).unwrap_err();
    let without_rules = matches!(error.cause(), Some(TokenizerError::NoGgufForm { .. }));
    assert!(without_rules, "SentencePiece would merge what the folder does not: {error}");
    assert!(!out.exists());

    let mut tokenizer: Value =
        serde_json::from_slice(&fs::read(folder.path().join("tokenizer.json")).unwrap()).unwrap();
    tokenizer["model"]["merges"] = merges(&original).into();
    write(&folder, "tokenizer.json", &tokenizer);
    write(&folder, "generation_config.json", &json!({ "temperature": 0.25, "top_k": 7, "eos_token_id": [2, 432] }));
    let report = quantize(&out).unwrap();
    assert_eq!(report.file_bytes, fs::metadata(&out).unwrap().len());
    let file = GgufFile::open(&out).unwrap();
    for tensor in original.tensors() {
        let same = file.tensor(&tensor.name).map(|t| file.tensor_bytes(t)) == Some(original.tensor_bytes(tensor));
        assert!(same, "{}", tensor.name);
    }
    let load = |path: &Path| Model::builder().threads(1).load_file(path).unwrap();
    let (of_file, of_folder, of_original) = (load(&out), load(folder.path()), load(Path::new(STORIES)));
    for text in ["Once upon a time", "  two  spaces\n", "caf\u{e9} \u{1F642}", "<s> is text"] {
        let ids = |model: &Model| model.tokenizer().encode(text, SpecialTokens::Plain);
        assert_eq!(ids(&of_file), ids(&of_original), "{text:?}");
    }
    assert_eq!(story(&of_file), "Once upon a time", "the comma is an end in the file as well");
    assert_eq!(of_file.recommended_sampling(), of_folder.recommended_sampling());
    assert_eq!(of_file.recommended_sampling().top_k, 7);
    assert!(of_file.has_chat_template());
}

#[test]
fn folder_without_a_tokenizer_is_rejected() {
    let folder = folder();
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let error = Model::builder().load_file(folder.path()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::File { .. }), "{error:?}");
}
