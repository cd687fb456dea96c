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

    // The first byte says which file the others are.
    let folder = corpus.join("tokenizer");
    fs::create_dir_all(&folder)?;
    let json = r#"{"added_tokens":[{"id":4,"content":"<s>","special":true,"rstrip":true}],"normalizer":{"type":"NFC"},
        "pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{L}+|\\s+(?!\\S)|\\s+"},
        "behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]},
        "decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"Ġ":3},"merges":["a b"]}}"#;
    let tekken = r#"{"config":{"pattern":"\\p{L}+","default_vocab_size":3,"default_num_special_tokens":1,"version":"v3"},
        "vocab":[{"rank":0,"token_bytes":"YQ=="},{"rank":1,"token_bytes":"YWE="}],
        "special_tokens":[{"rank":0,"token_str":"<s>"}]}"#;
    let config = r#"{"bos_token":"<s>","add_bos_token":true,"added_tokens_decoder":{"4":{"content":"<t>","special":true}}}"#;
    for (kind, name, text) in [(0u8, "tokenizer_json", json), (1, "tekken_json", tekken), (3, "config", config)] {
        fs::write(folder.join(name), [&[kind], text.as_bytes()].concat())?;
    }
    let folder = corpus.join("hf_config");
    fs::create_dir_all(&folder)?;
    let config = r#"{"architectures":["MistralForCausalLM"],"hidden_size":8,"num_attention_heads":2,"num_hidden_layers":1,
        "intermediate_size":8,"tie_word_embeddings":true,"sliding_window":4,"rope_scaling":{"rope_type":"yarn","factor":4.0,
        "original_max_position_embeddings":64},"quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}}"#;
    let gptq = r#"{"bits":4,"group_size":128,"desc_act":true,"sym":false}"#;
    let generation = r#"{"do_sample":true,"temperature":0.7,"top_k":40,"eos_token_id":[1,2]}"#;
    for (kind, name, text) in [(0u8, "config", config), (1, "gptq", gptq), (2, "generation", generation)] {
        fs::write(folder.join(name), [&[kind], text.as_bytes()].concat())?;
    }
    println!("seeds written to {}", corpus.display());
    Ok(())
}
