//! `config.json` of every architecture: what its keys, and the lack of them, mean.

#[path = "support/config.rs"]
mod settings;

use fewbit_model::{AttentionTemperature, GateFunction, ModelConfig, ModelError, RopeScaling, RopeStyle};
use serde_json::{Value, json};
use settings::read;

fn config(json: Value) -> ModelConfig {
    read(json).expect("a valid configuration")
}

fn of_class(class: &str, mut more: Value) -> ModelConfig {
    more.as_object_mut().expect("an object").insert("architectures".to_owned(), json!([class]));
    config(more)
}

/// `L` for a layer with a window, `-` for one that sees everything.
fn local(config: &ModelConfig) -> String {
    config.layers.iter().map(|layer| if layer.is_local { 'L' } else { '-' }).collect()
}

#[test]
fn llama() {
    let c = of_class("LlamaForCausalLM", json!({ "sliding_window": 4096 }));
    assert_eq!((c.architecture.as_str(), c.head_dim, c.n_kv_heads, c.sliding_window), ("llama", 8, 2, None));
    assert_eq!((c.rope.style, c.rope.theta, c.rms_norm_eps), (RopeStyle::Interleaved, 10_000.0, 1e-6));
    assert_eq!((c.gate, c.attention_scale), (GateFunction::Silu, 1.0 / 8f32.sqrt()));
    assert!(c.local_rope.is_none() && c.experts.is_none() && !c.has_qk_norm && !c.has_post_norms);
    assert_eq!(of_class("LlamaForCausalLM", json!({ "head_dim": 16 })).head_dim, 16);
    assert_eq!(config(json!({ "model_type": "mistral" })).sliding_window, Some(4096), "by its type");
}

#[test]
fn granite_has_four_multipliers() {
    let c = of_class(
        "GraniteForCausalLM",
        json!({
            "embedding_multiplier": 12, "attention_multiplier": 0.0078125, "residual_multiplier": 0.22, "logits_scaling": 8
        }),
    );
    assert_eq!((c.embedding_scale, c.attention_scale, c.residual_scale, c.logit_scale), (12.0, 0.0078125, 0.22, 0.125));
    let plain = of_class("GraniteForCausalLM", json!({}));
    assert_eq!(
        (plain.embedding_scale, plain.attention_scale, plain.logit_scale),
        (1.0, 1.0, 1.0),
        "the class's defaults"
    );
}

#[test]
fn rope_scalings() {
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
    // As newer files have it, with the base beside the scaling.
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
fn mistral_and_its_experts() {
    assert_eq!(local(&of_class("MistralForCausalLM", json!({ "sliding_window": 64 }))), "LLLLLL");
    let none = of_class("MistralForCausalLM", json!({ "sliding_window": null }));
    assert_eq!((local(&none).as_str(), none.sliding_window), ("------", None));
    let layers = json!([
        "full_attention",
        "sliding_attention",
        "sliding_attention",
        "full_attention",
        "sliding_attention",
        "sliding_attention"
    ]);
    let ministral = of_class("MinistralForCausalLM", json!({ "sliding_window": 64, "layer_types": layers }));
    assert_eq!(local(&ministral), "-LL-LL");
    let mixtral = of_class("MixtralForCausalLM", json!({ "num_local_experts": 8, "num_experts_per_tok": 2 }));
    let experts = mixtral.experts.expect("experts");
    assert_eq!((experts.n_experts, experts.n_used, experts.ffn_dim, experts.is_normalized), (8, 2, 64, true));
    assert_eq!(mixtral.architecture, "llama");
}

#[test]
fn qwen() {
    let biased = read(json!({ "architectures": ["Qwen2ForCausalLM"] })).expect_err("it must have biases");
    assert!(matches!(biased, ModelError::MissingTensor { name } if name.ends_with("q_proj.bias")));
    let c = of_class("Qwen3ForCausalLM", json!({ "sliding_window": 64, "max_window_layers": 2 }));
    assert_eq!((c.rope.style, c.head_dim, c.has_qk_norm), (RopeStyle::HalfSplit, 128, true));
    assert_eq!(local(&c), "------", "the window is off unless it is switched on");
    let on = json!({ "sliding_window": 64, "max_window_layers": 2, "use_sliding_window": true });
    assert_eq!(local(&of_class("Qwen3ForCausalLM", on)), "--LLLL");
    let moe =
        json!({ "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 8, "norm_topk_prob": true });
    let experts = of_class("Qwen3MoeForCausalLM", moe.clone()).experts.expect("experts");
    assert_eq!((experts.n_experts, experts.ffn_dim, experts.is_normalized), (16, 8, true));
    let mut sparse = moe;
    sparse["architectures"] = json!(["Qwen3MoeForCausalLM"]);
    sparse["mlp_only_layers"] = json!([0]);
    assert!(matches!(read(sparse), Err(ModelError::UnsupportedFeature { .. })));
}

#[test]
fn gemma3() {
    let c = of_class(
        "Gemma3ForCausalLM",
        json!({
            "sliding_window": 512, "query_pre_attn_scalar": 64, "rope_local_base_freq": 10_000.0,
            "rope_theta": 1_000_000.0, "rope_scaling": { "rope_type": "linear", "factor": 8.0 }
        }),
    );
    assert_eq!((local(&c).as_str(), c.head_dim, c.gate), ("LLLLL-", 256, GateFunction::GeluTanh));
    assert_eq!((c.attention_scale, c.has_qk_norm, c.has_post_norms), (1.0 / 8.0, true, true));
    assert_eq!((c.rope.theta, &c.rope.scaling), (1e6, &RopeScaling::Linear { factor: 8.0 }));
    let local_rope = c.local_rope.expect("another one");
    assert_eq!((local_rope.theta, local_rope.scaling), (1e4, RopeScaling::None));
    // The root of 32, in bf16.
    assert_eq!(c.embedding_scale, 5.65625);
    let by_kind = json!({ "rope_parameters": {
        "full_attention": { "rope_type": "default", "rope_theta": 2e6 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 3e4 }
    }});
    let c = of_class("Gemma3ForCausalLM", by_kind);
    assert_eq!((c.rope.theta, c.local_rope.map(|rope| rope.theta)), (2e6, Some(3e4)));
}

#[test]
fn phi3_and_smollm3() {
    let phi = json!({
        "head_dim": 8, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 4096,
        "max_position_embeddings": 131_072, "sliding_window": 2047,
        "rope_scaling": { "type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0] }
    });
    let c = of_class("Phi3ForCausalLM", phi);
    assert_eq!((c.rope.n_dims, c.rope.style, local(&c).as_str()), (4, RopeStyle::HalfSplit, "LLLLLL"));
    let expected = RopeScaling::LongRope { original_context: 4096, short: vec![1.0, 1.5], long: vec![2.0, 4.0] };
    assert_eq!(c.rope.scaling, expected);
    let factor = (1.0 + 32f64.ln() / 4096f64.ln()).sqrt();
    assert!((c.rope.attention_factor - factor).abs() < 1e-12, "{}", c.rope.attention_factor);

    let rotated = |c: &ModelConfig| c.layers.iter().map(|layer| layer.has_rope).collect::<Vec<_>>();
    let c = of_class("SmolLM3ForCausalLM", json!({ "use_sliding_window": false, "sliding_window": null }));
    assert_eq!(rotated(&c), [true, true, true, false, true, true]);
    let c = of_class("SmolLM3ForCausalLM", json!({ "no_rope_layers": [1, 0, 1, 0, 1, 0] }));
    assert_eq!(rotated(&c), [true, false, true, false, true, false]);
}

#[test]
fn defaults_of_files_that_do_not_say() {
    // Heads are 4 and 2 in the folders of these tests, unless `null` takes them away.
    let c = of_class("Gemma2ForCausalLM", json!({ "head_dim": 32 }));
    assert_eq!((c.attention_softcap, c.logit_softcap, c.attention_scale), (Some(50.0), Some(30.0), 1.0 / 16.0));
    let none = json!({ "attn_logit_softcapping": null, "final_logit_softcapping": null, "query_pre_attn_scalar": 64 });
    let c = of_class("Gemma2ForCausalLM", none);
    assert_eq!((c.attention_softcap, c.logit_softcap, c.attention_scale), (None, None, 1.0 / 8.0));
    let c = of_class("MistralForCausalLM", json!({ "num_key_value_heads": null }));
    assert_eq!(c.n_kv_heads, 4, "as many as queries have");
}

#[test]
fn a_model_that_sees() {
    // As gemma-3-4b-it has it: what is at its default is left out.
    let folder = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": 256,
        "vision_config": { "model_type": "siglip_vision_model", "hidden_size": 1152 },
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6,
            "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024
        }
    });
    let c = config(folder);
    assert_eq!((c.architecture.as_str(), c.n_heads, c.n_kv_heads, c.head_dim), ("gemma3", 8, 4, 256));
    assert_eq!((local(&c).as_str(), c.sliding_window, c.context_length), ("LLLLL-", Some(1024), 131_072));
    assert_eq!((&c.rope.scaling, c.attention_scale), (&RopeScaling::Linear { factor: 8.0 }, 1.0 / 16.0));

    let text = json!({
        "model_type": "ministral3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": null,
        "max_position_embeddings": 262_144, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16_384,
            "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1
        }
    });
    let c = config(json!({ "architectures": ["Mistral3ForConditionalGeneration"], "text_config": text.clone() }));
    assert_eq!((c.architecture.as_str(), c.sliding_window, c.rope.attention_factor), ("mistral3", None, 1.0));
    assert_eq!(c.attention_temperature, Some(AttentionTemperature { scale: 0.1, length: 16_384 }));
    let mut alone = text;
    alone["architectures"] = json!(["Ministral3ForCausalLM"]);
    assert_eq!(config(alone), c);

    let nothing = read(json!({ "architectures": ["Gemma3ForConditionalGeneration"] })).expect_err("no text");
    assert!(nothing.to_string().contains("text_config"), "{nothing}");
    let other =
        json!({ "architectures": ["Mistral3ForConditionalGeneration"], "text_config": { "model_type": "mistral4" } });
    assert!(matches!(read(other), Err(ModelError::UnknownArchitecture { name, .. }) if name == "mistral4"));
}

#[test]
fn bare_decoders() {
    let c = of_class("Qwen3Model", json!({ "tie_word_embeddings": false, "head_dim": 16 }));
    assert_eq!((c.architecture.as_str(), c.head_dim), ("qwen3", 16), "an output is not asked for");
    let unknown = read(json!({ "architectures": ["BertModel"] })).expect_err("another one");
    assert!(matches!(unknown, ModelError::UnknownArchitecture { name, .. } if name == "BertModel"));
}

#[test]
fn what_would_be_ignored_is_refused() {
    for (class, more) in [
        ("Gemma3ForCausalLM", json!({ "use_bidirectional_attention": true })),
        ("Qwen2ForCausalLM", json!({ "is_causal": false })),
        ("LlamaForCausalLM", json!({ "partial_rotary_factor": 0.5 })),
        ("LlamaForCausalLM", json!({ "rope_parameters": { "rope_theta": 1e4, "partial_rotary_factor": 0.5 } })),
    ] {
        let mut json = more;
        json["architectures"] = json!([class]);
        let error = read(json.clone()).expect_err("it would be another model");
        assert!(matches!(error, ModelError::UnsupportedFeature { .. }), "{json}: {error}");
    }
}
