//! Configurations without weights.

use fewbit_checkpoint::{CheckpointError, HfModel, ModelConfig, WeightSource};
use serde_json::{Value, json};
use std::fs;

/// A configuration with the sizes that it lacks.
pub(crate) fn sized(mut config: Value) -> Value {
    let sizes = json!({
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 3, "max_position_embeddings": 8192, "tie_word_embeddings": true,
    });
    for (key, value) in sizes.as_object().expect("an object") {
        config.as_object_mut().expect("an object").entry(key.as_str()).or_insert(value.clone());
    }
    config
}

/// Reads a configuration through a folder that has nothing but an embedding.
pub(crate) fn read(config: Value) -> Result<ModelConfig, CheckpointError> {
    let (config, folder) = (sized(config), tempfile::tempdir().expect("a folder"));
    fs::write(folder.path().join("config.json"), config.to_string()).expect("writable");
    let dim = config["hidden_size"].as_u64().unwrap_or(32);
    let shape = json!({ "dtype": "F16", "shape": [3, dim], "data_offsets": [0, 6 * dim] });
    let header = json!({ "model.embed_tokens.weight": shape }).to_string().into_bytes();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &vec![0; 6 * dim as usize]].concat();
    fs::write(folder.path().join("model.safetensors"), file).expect("writable");
    HfModel::open(folder.path())?.config()
}
