//! Writes the files that fuzzing starts from into `fuzz/corpus`, with the writer and the samples of the
//! crates' own tests.

use std::fs;
use std::path::Path;

#[path = "../crates/fewbit-format/tests/gguf/samples.rs"]
mod samples;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/gguf");
    fs::create_dir_all(&folder)?;
    samples::small().write_file(&folder.join("small.gguf"))?;
    samples::full().write_file(&folder.join("full.gguf"))?;
    samples::small().version_2().write_file(&folder.join("version_2.gguf"))?;
    samples::small().set("general.alignment", 8u32).write_file(&folder.join("alignment_8.gguf"))?;
    println!("seeds written to {}", folder.display());
    Ok(())
}
