//! `config.json`: what keys mean that families share. What is a family's own is tested in its file (`src/families`).

#[path = "support/config.rs"]
mod settings;

use fewbit_checkpoint::{CheckpointError, ModelConfig, RopeScaling};
use serde_json::{Value, json};
use settings::read;

fn config(json: Value) -> ModelConfig {
    read(json).expect("a valid configuration")
}

fn of_class(class: &str, mut more: Value) -> ModelConfig {
    more.as_object_mut().expect("an object").insert("architectures".to_owned(), json!([class]));
    config(more)
}

#[test]
fn rope_scaling_is_read_from_old_and_new_keys() {
    let scaled = |scaling: Value| of_class("LlamaForCausalLM", json!({ "rope_scaling": scaling })).rope;
    assert_eq!(scaled(json!({ "type": "linear", "factor": 4 })).scaling, RopeScaling::Linear { factor: 4.0 });
    assert_eq!(scaled(json!({ "rope_type": "default" })).scaling, RopeScaling::None);
    let llama3 = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 2048
    });
    let expected =
        RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 2048 };
    assert_eq!(scaled(llama3.clone()).scaling, expected);
    // As newer files have it, with the base next to the scaling.
    let mut new = llama3;
    new["rope_theta"] = json!(500_000.0);
    let rope = of_class("LlamaForCausalLM", json!({ "rope_parameters": new })).rope;
    assert_eq!((rope.scaling, rope.theta), (expected, 500_000.0));

    let yarn = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096 });
    let c = of_class("LlamaForCausalLM", json!({ "rope_scaling": yarn }));
    assert_eq!(c.context_length, 16_384, "what the scaling is for");
    assert!((c.rope.attention_factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
    let mscale = json!({ "type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0 });
    assert_eq!(scaled(mscale).attention_factor, 1.0);
    let named = json!({ "type": "yarn", "factor": 4.0, "attention_factor": 0.5, "truncate": false });
    let named = scaled(named);
    assert_eq!(named.attention_factor, 0.5);
    assert!(matches!(named.scaling, RopeScaling::Yarn { is_truncated: false, original_context: 8192, .. }));
}

#[test]
fn decoders_without_an_output_head_are_read() {
    let c = of_class("Qwen3Model", json!({ "tie_word_embeddings": false, "head_dim": 16 }));
    assert_eq!((c.architecture.as_str(), c.head_dim), ("qwen3", 16), "an output is not asked for");
    let unknown = read(json!({ "architectures": ["BertModel"] })).expect_err("another one");
    assert!(matches!(unknown, CheckpointError::UnknownArchitecture { name, .. } if name == "BertModel"));
}

#[test]
fn settings_that_would_be_ignored_are_rejected() {
    for (class, more) in [
        ("Gemma3ForCausalLM", json!({ "use_bidirectional_attention": true })),
        ("Qwen2ForCausalLM", json!({ "is_causal": false })),
        ("LlamaForCausalLM", json!({ "partial_rotary_factor": 0.5 })),
        ("LlamaForCausalLM", json!({ "rope_parameters": { "rope_theta": 1e4, "partial_rotary_factor": 0.5 } })),
    ] {
        let mut json = more;
        json["architectures"] = json!([class]);
        let error = read(json.clone()).expect_err("it would be another model");
        assert!(matches!(error, CheckpointError::UnsupportedFeature { .. }), "{json}: {error}");
    }
}
