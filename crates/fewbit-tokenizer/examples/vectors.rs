//! Checks tokenizers against a folder of vocabularies with expected ids.
//!
//! `cargo run --release -p fewbit-tokenizer --example vectors -- FOLDER` looks for `NAME.gguf` with `NAME.gguf.inp`
//! (cases, separated by a line `__ggml_vocab_test__`) and `NAME.gguf.out` (a line of ids for each), as in llama.cpp's
//! repository, and prints how many cases agree exactly.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use fewbit_format::GgufFile;
use fewbit_tokenizer::{SpecialTokens, Tokenizer};

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<ExitCode, AnyError> {
    let folder = std::env::args_os().nth(1).ok_or("usage: vectors FOLDER")?;
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_, std::io::Error>>()?;
    files.retain(|path| path.extension().is_some_and(|ext| ext == "gguf"));
    files.sort();
    let mut all_agree = true;
    for path in files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match check(&path) {
            Ok(Some((agree, total))) => {
                println!("{name}: {agree} of {total} cases agree");
                all_agree &= agree == total;
            }
            Ok(None) => println!("{name}: no .inp and .out next to it"),
            Err(error) => println!("{name}: {error}"),
        }
    }
    Ok(if all_agree { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The number of cases that agree, and the number of all cases; `None` if there are no cases.
fn check(path: &Path) -> Result<Option<(usize, usize)>, AnyError> {
    let with = |suffix| PathBuf::from(format!("{}{suffix}", path.display()));
    if !with(".inp").exists() || !with(".out").exists() {
        return Ok(None);
    }
    let file = GgufFile::open(path)?;
    let start = std::time::Instant::now();
    let tokenizer = Tokenizer::from_gguf(file.metadata())?;
    eprintln!("{}: {} tokens, built in {:?}", path.display(), tokenizer.n_vocab(), start.elapsed());
    let inputs = std::fs::read_to_string(with(".inp"))?;
    let outputs = std::fs::read_to_string(with(".out"))?;
    let mut cases: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
    // Some files end in a separator, some do not.
    cases.truncate(outputs.lines().count());
    let mut agree = 0;
    for (case, line) in cases.iter().zip(outputs.lines()) {
        let expected: Vec<u32> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let found = tokenizer.encode(case, SpecialTokens::Plain);
        if found == expected {
            agree += 1;
        } else {
            eprintln!("  {case:?}\n    expected {expected:?}\n    found    {found:?}");
        }
    }
    Ok(Some((agree, cases.len())))
}
