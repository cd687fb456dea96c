//! Tests of `fewbit quantize` and `fewbit imatrix` as users run them: arguments, streams, exit status.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use fewbit::quantize::Importance;
use serde_json::Value;
use tempfile::TempDir;

const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/stories260K-f32.gguf");
const PROSE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/prose.txt");
const PROSE_IMATRIX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fewbit-model/tests/golden/prose-imatrix.gguf");

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewbit"));
    command.args(args).stdin(Stdio::null()).env("FEWBIT_THREADS", "1");
    command.env("FEWBIT_HOME", "/nonexistent/fewbit").env("HF_ENDPOINT", "http://127.0.0.1:9");
    command.output().unwrap()
}

/// The single JSON object on stdout.
#[track_caller]
fn json(args: &[&str]) -> Value {
    let output = run(args);
    let (text, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{log}");
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Checks for exit status 1, nothing on stdout, and one line on stderr that contains `words`.
#[track_caller]
fn assert_fails(args: &[&str], words: &str) {
    let output = run(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("error: ") && text.contains(words), "{text:?} does not say {words:?}");
}

/// The path of a file in a folder.
fn at(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_quantized_model_runs() {
    let folder = TempDir::new().unwrap();
    let out = at(&folder, "q8.gguf");
    let object = json(&["quantize", STORIES, &out, "--type", "q8_0", "--json"]);
    assert_eq!(object["bytes"], std::fs::metadata(&out).unwrap().len());
    let bits = object["bits_per_weight"].as_f64().unwrap();
    assert!((8.5..11.0).contains(&bits), "{bits}");
    let types = object["types"].as_object().unwrap();
    assert_eq!(types.keys().collect::<Vec<_>>(), ["F16", "F32", "Q8_0"], "rows of 172 fit no block");
    assert_eq!(types["F16"]["tensors"], 5);
    let n_bytes: u64 = types.values().map(|ty| ty["bytes"].as_u64().unwrap()).sum();
    assert!(n_bytes < object["bytes"].as_u64().unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");

    let answer = json(&["run", &out, "Once upon a time", "--raw", "--temp", "0", "-n", "12", "--json"]);
    assert_eq!(answer["text"], ", there was a little girl named Lily. She");
}

#[test]
fn quantize_prints_a_table_without_json() {
    let folder = TempDir::new().unwrap();
    let out = at(&folder, "out.gguf");
    let output = run(&["quantize", STORIES, &out, "--type", "Q4_K_M", "--imatrix", PROSE_IMATRIX]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("Q5_0") && text.contains("bits per weight"), "{text}");
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("the importance matrix has nothing for"), "{log}");
}

#[test]
fn options_change_the_tensor_types() {
    let folder = TempDir::new().unwrap();
    let out = at(&folder, "out.gguf");
    let types = |more: &[&str]| {
        let mut args = vec!["quantize", STORIES, &out, "--json", "--type", "Q4_0"];
        args.extend(more);
        json(&args)["types"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    // The output matrix would get Q6_K, but 64 columns are not a multiple of 256, and rows of 172 do not fit any block.
    assert_eq!(types(&[]), ["F16", "F32", "Q4_0", "Q8_0"]);
    assert_eq!(types(&["--pure"]), ["F16", "F32", "Q4_0"]);
    assert_eq!(types(&["--leave-output-tensor"]), ["F16", "F32", "Q4_0"]);
    assert_eq!(types(&["--token-embedding-type", "q5_0"]), ["F16", "F32", "Q4_0", "Q5_0", "Q8_0"]);
    assert_eq!(types(&["--output-type", "Q5_1"]), ["F16", "F32", "Q4_0", "Q5_1"]);
}

#[test]
fn invalid_requests_fail_with_a_one_line_error() {
    let folder = TempDir::new().unwrap();
    let (out, again) = (at(&folder, "out.gguf"), at(&folder, "again.gguf"));
    assert_fails(&["quantize", STORIES, STORIES, "--type", "Q8_0"], "overwrite");
    assert_fails(&["quantize", "/nonexistent.gguf", &out, "--type", "Q8_0"], "/nonexistent.gguf");
    assert_fails(&["quantize", STORIES, &out, "--type", "Q8_0", "--imatrix", STORIES], "not an importance matrix");
    for (wrong, words) in [
        (&["--type", "Q4_K_XL"][..], "unknown quantization"),
        (&["--type", "Q8_0", "--output-type", "IQ1_S"], "no type that weights"),
    ] {
        let output = run(&[&["quantize", STORIES, &out], wrong].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && text.contains(words), "{text}");
    }
    assert_fails(&["quantize", STORIES, "/nonexistent/out.gguf", "--type", "Q8_0"], "/nonexistent/out.gguf");
    assert!(!Path::new(&out).exists());
    json(&["quantize", STORIES, &out, "--type", "Q8_0", "--json"]);
    assert_fails(&["quantize", &out, &again, "--type", "Q4_0"], "--allow-requantize");
    json(&["quantize", &out, &again, "--type", "Q4_0", "--allow-requantize", "--json"]);
    assert_eq!(run(&["quantize", STORIES, &out]).status.code(), Some(2), "--type is missing");
}

#[test]
fn compare_measures_each_type_in_memory() {
    let folder = TempDir::new().unwrap();
    let (svg, page) = (at(&folder, "plot.svg"), at(&folder, "plot.html"));
    let args = ["compare", STORIES, "--file", PROSE, "--ctx", "64", "--chunks", "4", "--types", "Q8_0,Q4_0"];
    let object = json(&[&args[..], &["--plot", &svg, "--json"]].concat());
    assert_eq!((&object["chunks"], &object["tokens_scored"]), (&4.into(), &(4 * 31).into()));
    let rows = object["rows"].as_array().unwrap();
    let number = |row: usize, key: &str| rows[row][key].as_f64().unwrap();
    assert_eq!(rows.iter().map(|row| row["type"].as_str().unwrap()).collect::<Vec<_>>(), ["original", "Q8_0", "Q4_0"]);
    for row in [0, 1] {
        assert!(number(row, "bytes") > number(row + 1, "bytes"));
        assert!(number(row, "kl_divergence") < number(row + 1, "kl_divergence"));
        assert!(number(row, "top1_agreement") > number(row + 1, "top1_agreement"));
        assert!(number(row, "prefill_tok_s") > 0.0 && number(row, "decode_tok_s") > 0.0);
    }
    assert_eq!((number(0, "kl_divergence"), number(0, "top1_agreement")), (0.0, 1.0));
    assert!((number(1, "ppl") / number(0, "ppl") - 1.0).abs() < 0.01);
    let perplexity = json(&["perplexity", STORIES, "--file", PROSE, "--ctx", "64", "--chunks", "4", "--json"]);
    assert_eq!(perplexity["ppl"], object["rows"][0]["ppl"]);
    assert!(std::fs::read_to_string(&svg).unwrap().contains("Q4_0"));

    let output = run(&[&args[..], &["--plot", &page]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(std::fs::read_to_string(&page).unwrap().contains("<td>Q8_0</td>"));
    assert_fails(&[&args[..], &["--plot", "plot.png"]].concat(), ".svg");
    assert_fails(&["compare", STORIES, "--file", "/nonexistent"], "/nonexistent");
    assert_eq!(run(&["compare", STORIES, "--file", PROSE, "--types", "Q9"]).status.code(), Some(2));
}

/// `prose-imatrix.gguf` is what llama.cpp's llama-imatrix measured with the same model, text and windows.
#[test]
fn importance_matrix_matches_llama_cpp() {
    let folder = TempDir::new().unwrap();
    let out = at(&folder, "out.gguf");
    let object = json(&["imatrix", STORIES, "--file", PROSE, "-o", &out, "--ctx", "128", "--chunks", "4", "--json"]);
    assert_eq!((&object["entries"], &object["chunks"], &object["ctx"]), (&35.into(), &4.into(), &128.into()));
    let [ours, theirs] = [&out, PROSE_IMATRIX].map(|path| Importance::open(Path::new(path)).unwrap());
    assert_eq!(ours.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>());
    for name in theirs.names() {
        let (a, b) = (ours.mean_squares(name).unwrap(), theirs.mean_squares(name).unwrap());
        for (i, (a, b)) in a.iter().zip(&b).enumerate() {
            // llama.cpp stores keys and values in f16.
            assert!((a - b).abs() <= 0.01 * b + 1e-6, "{name} column {i}: {a}, llama.cpp has {b}");
        }
    }
    // `quantize` accepts the measured file.
    let made = at(&folder, "made.gguf");
    let object = json(&["quantize", STORIES, &made, "--type", "Q4_0", "--imatrix", &out, "--json"]);
    assert_eq!(object["weighted"], 30, "{object}");

    assert_fails(&["imatrix", STORIES, "--file", PROSE, "-o", &out, "--ctx", "100000"], "100000");
    assert_fails(&["imatrix", STORIES, "--file", "/nonexistent", "-o", &out], "/nonexistent");
    assert_fails(
        &["imatrix", STORIES, "--file", PROSE, "-o", "/nonexistent/out.gguf", "--ctx", "64"],
        "/nonexistent/out.gguf",
    );
}
