//! Writes the files that fuzzing starts from into `fuzz/corpus`, with the writer and the samples of the
//! crates' own tests.

use std::fs;
use std::path::Path;

#[path = "../crates/fewbit-format/tests/gguf/samples.rs"]
mod samples;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let folder = corpus.join("gguf");
    fs::create_dir_all(&folder)?;
    samples::small().write_file(&folder.join("small.gguf"))?;
    samples::full().write_file(&folder.join("full.gguf"))?;
    samples::small().version_2().write_file(&folder.join("version_2.gguf"))?;
    samples::small().set("general.alignment", 8u32).write_file(&folder.join("alignment_8.gguf"))?;

    let folder = corpus.join("safetensors");
    fs::create_dir_all(&folder)?;
    let header = br#"{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F4","shape":[8],"data_offsets":[12,16]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    fs::write(folder.join("two.safetensors"), [length.as_slice(), header, &samples::counting(16)].concat())?;
    let index = r#"{"metadata":{"total_size":16},"weight_map":{"a.weight":"model-00001-of-00002.safetensors"}}"#;
    fs::write(folder.join("index.json"), index)?;
    println!("seeds written to {}", corpus.display());
    Ok(())
}
