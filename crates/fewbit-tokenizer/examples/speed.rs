//! Measures how fast a tokenizer loads and how fast it encodes a text.
//!
//! `cargo run --release -p fewbit-tokenizer --example speed -- MODEL TEXT` reads the text file, splits it at blank
//! lines, and encodes the parts five times; `tests/data/speed.py` does the same with Hugging Face's `tokenizers`.

use std::path::Path;
use std::time::Instant;

use fewbit_format::GgufFile;
use fewbit_tokenizer::{SpecialTokens, Tokenizer};

type AnyError = Box<dyn std::error::Error>;

fn load(path: &Path) -> Result<Tokenizer, AnyError> {
    Ok(match path.extension().is_some_and(|ext| ext == "gguf") {
        true => Tokenizer::from_gguf(GgufFile::open(path)?.metadata())?,
        false => Tokenizer::from_hf_folder(path)?,
    })
}

fn main() -> Result<(), AnyError> {
    let mut args = std::env::args_os().skip(1);
    let usage = "usage: speed MODEL TEXT";
    let (model, text) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let text = std::fs::read_to_string(text)?;
    let parts: Vec<&str> = text.split("\n\n").collect();
    let mut ready = Vec::new();
    let mut tokenizer = load(Path::new(&model))?;
    for _ in 0..5 {
        let start = Instant::now();
        tokenizer = load(Path::new(&model))?;
        ready.push(start.elapsed());
    }
    let mut rates = Vec::new();
    let mut n_tokens = 0;
    for _ in 0..5 {
        let start = Instant::now();
        n_tokens = parts.iter().map(|part| tokenizer.encode(part, SpecialTokens::Plain).len()).sum::<usize>();
        rates.push(text.len() as f64 / 1e6 / start.elapsed().as_secs_f64());
    }
    ready.sort();
    rates.sort_by(f64::total_cmp);
    println!("ready in {:?}, {n_tokens} tokens, {:.1} MB/s (medians of five)", ready[2], rates[2]);
    Ok(())
}
