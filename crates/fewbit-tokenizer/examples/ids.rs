//! Checks a tokenizer against texts with expected ids.
//!
//! `cargo run --release -p fewbit-tokenizer --example ids -- MODEL < cases.jsonl`, where MODEL is a .gguf file or a
//! file or folder from Hugging Face. Each line of the cases is an object with `text`, `plain` (ids with special tokens
//! treated as text) and `special` (ids with special tokens recognised), as written by `tests/data/random_ids.py`.
//! Prints the first differences and how long encoding took.

use std::io::BufRead;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fewbit_format::GgufFile;
use fewbit_tokenizer::{SpecialTokens, Tokenizer};
use serde::Deserialize;

type AnyError = Box<dyn std::error::Error>;

#[derive(Deserialize)]
struct Case {
    text: String,
    plain: Vec<u32>,
    special: Vec<u32>,
}

/// Maximum number of differences to print.
const MAX_SHOWN: usize = 10;

fn main() -> Result<ExitCode, AnyError> {
    let path = std::env::args_os().nth(1).ok_or("usage: ids MODEL < cases.jsonl")?;
    let path = Path::new(&path);
    let start = Instant::now();
    let tokenizer = if path.extension().is_some_and(|ext| ext == "gguf") {
        Tokenizer::from_gguf(GgufFile::open(path)?.metadata())?
    } else {
        Tokenizer::from_hf_folder(if path.is_dir() { path } else { path.parent().unwrap_or(path) })?
    };
    println!("{} tokens, ready in {:?}", tokenizer.n_vocab(), start.elapsed());
    let (mut n_cases, mut n_differences, mut n_bytes) = (0, 0, 0);
    let mut taken = Duration::ZERO;
    for line in std::io::stdin().lock().lines() {
        let case: Case = serde_json::from_str(&line?)?;
        n_cases += 1;
        for (special, expected) in [(SpecialTokens::Plain, &case.plain), (SpecialTokens::Parse, &case.special)] {
            let start = Instant::now();
            let found = tokenizer.encode(&case.text, special);
            taken += start.elapsed();
            n_bytes += case.text.len();
            if found != *expected {
                n_differences += 1;
                if n_differences <= MAX_SHOWN {
                    println!("{special:?} {:?}\n  expected {expected:?}\n  found    {found:?}", case.text);
                }
            }
        }
    }
    let mb_per_s = n_bytes as f64 / 1e6 / taken.as_secs_f64();
    println!("{n_cases} texts twice, {n_differences} differences, {mb_per_s:.1} MB/s");
    Ok(if n_differences == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
