//! Arbitrary bytes as the configuration files of a Hugging Face folder: `config.json`, `quantize_config.json`,
//! `generation_config.json`. What is accepted either has a GGUF form or is refused one.
//!
//! See `gguf.rs` for how to run it. The first byte says which file the others are.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use fewbit_checkpoint::hf::GenerationDefaults;
use fewbit_checkpoint::{HfModel, WeightSource};
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 3] = ["config.json", "quantize_config.json", "generation_config.json"];
const PLAIN: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "num_attention_heads": 2,
    "num_hidden_layers": 1, "intermediate_size": 8, "tie_word_embeddings": true}"#;

/// A folder of this process with a model of one tensor.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("fewbit-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for temporary files");
    let header = br#"{"model.embed_tokens.weight":{"dtype":"F32","shape":[2,8],"data_offsets":[0,64]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 64]].concat();
    fs::write(folder.join("model.safetensors"), file).expect("writable");
    folder
});

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    let write = |name: &str, bytes: &[u8]| fs::write(FOLDER.join(name), bytes).expect("writable");
    FILES.iter().for_each(|name| drop(fs::remove_file(FOLDER.join(name))));
    write(FILES[0], PLAIN.as_bytes());
    write(FILES[usize::from(kind) % FILES.len()], bytes);
    let _ = GenerationDefaults::read(&FOLDER);
    let Ok(model) = HfModel::open(&FOLDER) else { return };
    let _ = model.config().expect("has been read").to_gguf();
});
