//! Gemma 1, 2, 3 and 4 (text).

use super::llama::{LLAMA, LLAMA_CLASS};
use super::mistral::MIXTRAL_EXPERTS;
use super::{Architecture, Class, ExpertKeys, ExpertLayout, Family, Windows};
use crate::names::Part;
use fewbit_quant::{GateFunction, RopeStyle};

pub(super) const FAMILY: Family = Family {
    gguf: &[&GEMMA, &GEMMA2, &GEMMA3, &GEMMA4],
    classes: &[
        GEMMA_CLASS,
        Class {
            name: "Gemma2ForCausalLM",
            model_type: "gemma2",
            gguf: &GEMMA2,
            windows: Windows::Pattern(2),
            window: Some(4096),
            n_heads: Some(8),
            n_kv_heads: Some(4),
            scaled_by: Some(256.0),
            softcaps: (Some(50.0), Some(30.0)),
            ..GEMMA_CLASS
        },
        Class {
            name: "Gemma3ForCausalLM",
            model_type: "gemma3_text",
            gguf: &GEMMA3,
            windows: Windows::Pattern(6),
            window: Some(4096),
            n_heads: Some(8),
            n_kv_heads: Some(4),
            scaled_by: Some(256.0),
            rope_theta: 1e6,
            local_theta: Some(10_000.0),
            context_length: 131_072,
            ..GEMMA_CLASS
        },
        GEMMA4_CLASS,
        Class {
            name: "Gemma4UnifiedForCausalLM",
            model_type: "gemma4_unified_text",
            window: Some(1024),
            context_length: 262_144,
            experts: None,
            per_layer_dim: None,
            ..GEMMA4_CLASS
        },
    ],
    wrappers: &[
        "Gemma3ForConditionalGeneration",
        "Gemma4ForConditionalGeneration",
        "Gemma4UnifiedForConditionalGeneration",
    ],
    modules: &[
        (Part::FfnNorm, "pre_feedforward_layernorm"),
        (Part::FfnPostNorm, "post_feedforward_layernorm"),
        (Part::MlpPostNorm, "post_feedforward_layernorm_1"),
        (Part::ExpertNorm, "pre_feedforward_layernorm_2"),
        (Part::ExpertPostNorm, "post_feedforward_layernorm_2"),
        (Part::Router, "router.proj"),
        (Part::RouterNorm, "router.scale"),
        (Part::ExpertFactors, "router.per_expert_scale"),
        (Part::ExpertUps, "experts.gate_up_proj"),
        (Part::ExpertDowns, "experts.down_proj"),
        (Part::LayerGate, "per_layer_input_gate"),
        (Part::LayerProjection, "per_layer_projection"),
        (Part::LayerPostNorm, "post_per_layer_input_norm"),
        (Part::LayerScale, "layer_scalar"),
    ],
    ..Family::NONE
};

const GEMMA: Architecture = Architecture {
    name: "gemma",
    rope_style: RopeStyle::HalfSplit,
    gate: GateFunction::GeluTanh,
    scales_embeddings: true,
    ..LLAMA
};

const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    has_post_norms: true,
    after_attention: Part::AttnPostNorm,
    global_every: 2,
    window: Some(4096),
    softcaps: (Some(50.0), Some(30.0)),
    scaled_by_width: &[46],
    ..GEMMA
};

const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    has_qk_norm: true,
    has_post_norms: true,
    after_attention: Part::AttnPostNorm,
    global_every: 6,
    local_theta: Some(Some(10_000.0)),
    scaled_by_width: &[62],
    ..GEMMA
};

/// The shape of a layer depends on its kind: global layers have larger heads, whose last pairs are not rotated, and can
/// lack the matrix of values; the last layers can see the keys and values of earlier ones.
const GEMMA4: Architecture = Architecture {
    name: "gemma4",
    has_local_heads: true,
    has_per_layer_embeddings: true,
    has_value_norm: true,
    has_layer_scales: true,
    attention_scale: Some(1.0),
    experts_next_to_mlp: true,
    scaled_by_width: &[],
    ..GEMMA3
};

const GEMMA4_CLASS: Class = Class {
    name: "Gemma4ForCausalLM",
    model_type: "gemma4_text",
    gguf: &GEMMA4,
    windows: Windows::EndsGlobal(6),
    window: Some(512),
    n_heads: Some(8),
    n_kv_heads: Some(4),
    norms_from_one: false,
    has_proportional_rope: true,
    rope_fraction: 0.25,
    rope_theta: 1e6,
    local_theta: Some(10_000.0),
    context_length: 131_072,
    experts: Some(EXPERTS),
    per_layer_dim: Some(256),
    ..GEMMA_CLASS
};

const EXPERTS: ExpertKeys = ExpertKeys {
    count: "num_experts",
    width: "moe_intermediate_size",
    used: "top_k_experts",
    switch: Some("enable_moe_block"),
    layout: ExpertLayout::Joint,
    ..MIXTRAL_EXPERTS
};

const GEMMA_CLASS: Class = Class {
    name: "GemmaForCausalLM",
    model_type: "gemma",
    gguf: &GEMMA,
    head_dim: Some(256),
    n_kv_heads: Some(16),
    tied: true,
    is_gemma: true,
    norms_from_one: true,
    context_length: 8192,
    ..LLAMA_CLASS
};

#[cfg(test)]
mod tests {
    use super::super::tests::{config, local, of_class, read, without_weights};
    use crate::{CheckpointError, LocalHeads, RopeScaling, SharedKv};
    use fewbit_quant::GateFunction;
    use serde_json::{Value, json};

    #[test]
    fn gemma2_config_is_read() {
        let c = of_class("Gemma2ForCausalLM", json!({ "head_dim": 32 }));
        assert_eq!((c.attention_softcap, c.logit_softcap, c.attention_scale), (Some(50.0), Some(30.0), 1.0 / 16.0));
        let none =
            json!({ "attn_logit_softcapping": null, "final_logit_softcapping": null, "query_pre_attn_scalar": 64 });
        let c = of_class("Gemma2ForCausalLM", none);
        assert_eq!((c.attention_softcap, c.logit_softcap, c.attention_scale), (None, None, 1.0 / 8.0));
    }

    #[test]
    fn gemma3_config_is_read() {
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
    fn text_config_of_a_vision_model_is_read() {
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

        let nothing = read(json!({ "architectures": ["Gemma3ForConditionalGeneration"] })).expect_err("no text");
        assert!(nothing.to_string().contains("text_config"), "{nothing}");
    }
    /// As the published files have it; `text` changes the text part.
    fn gemma4(text: Value) -> Value {
        let mut config = json!({
            "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "vision_config": {},
            "text_config": {
                "model_type": "gemma4_text", "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 10,
                "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "global_head_dim": 512,
                "num_kv_shared_layers": 4, "use_double_wide_mlp": true, "final_logit_softcapping": 30.0,
                "layer_types": null, "use_bidirectional_attention": null, "enable_moe_block": false,
                "num_experts": null, "rope_parameters": {
                    "full_attention": {
                        "rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0
                    },
                    "sliding_attention": { "rope_type": "default", "rope_theta": 10_000.0 }
                }
            }
        });
        for (key, value) in text.as_object().expect("an object") {
            config["text_config"][key] = value.clone();
        }
        config
    }

    #[test]
    fn gemma4_config_is_read() {
        let c = without_weights(gemma4(json!({})));
        assert_eq!((c.architecture.as_str(), local(&c).as_str()), ("gemma4", "LLLLL-LLL-"), "the last one is global");
        assert_eq!((c.head_dim, c.local_heads), (512, Some(LocalHeads { n_kv_heads: 1, head_dim: 256 })));
        assert_eq!((c.shared_kv, c.per_layer_dim), (Some(SharedKv { n_layers: 4, ffn_dim: 12_288 }), Some(256)));
        let sources: Vec<_> = (0..10).map(|layer| c.kv_layer(layer)).collect();
        assert_eq!(sources, [0, 1, 2, 3, 4, 5, 4, 4, 4, 5]);
        assert_eq!((c.ffn_dim_of(5), c.ffn_dim_of(6), c.n_kv_heads_of(9)), (6144, 12_288, 1));
        assert_eq!((c.attention_scale, c.embedding_scale, c.per_layer_scale()), (1.0, 39.25, 16.0));
        assert_eq!((c.rope.n_dims, c.rope.theta, c.window(0), c.context_length), (512, 1e6, Some(512), 131_072));
        let divisors = c.rope.divisors.as_ref().expect("there");
        assert_eq!((divisors.len(), divisors[63], divisors[64]), (256, 1.0, 1e30));
        let of_local = c.local_rope.as_ref().expect("another one");
        assert_eq!((of_local.n_dims, of_local.theta, &of_local.divisors), (256, 1e4, &None));
        assert_eq!((c.logit_softcap, c.experts, c.only_on_cpu()), (Some(30.0), None, None));

        // Nothing else says how global layers are rotated.
        let usual = without_weights(gemma4(json!({ "rope_parameters": null, "hidden_size_per_layer_input": 0 })));
        assert_eq!((&usual.rope, &usual.local_rope, usual.per_layer_dim), (&c.rope, &c.local_rope, None));
        assert!(c.leaves_out("blk.6.attn_k.weight") && c.leaves_out("blk.9.attn_k_norm.weight"));
        assert!(!c.leaves_out("blk.5.attn_k.weight") && !c.leaves_out("blk.6.attn_q.weight"));
    }

    #[test]
    fn gemma4_global_layers_without_values_and_experts_are_read() {
        let experts = json!({
            "attention_k_eq_v": true, "num_global_key_value_heads": 2, "num_key_value_heads": 8,
            "num_kv_shared_layers": 0, "enable_moe_block": true, "num_experts": 16, "top_k_experts": 4,
            "moe_intermediate_size": 704, "use_bidirectional_attention": "vision"
        });
        let c = without_weights(gemma4(experts));
        assert_eq!((c.n_kv_heads, c.n_kv_heads_of(0), c.n_kv_heads_of(5), c.shared_kv), (2, 8, 2, None));
        assert!(c.can_lack_values(5) && !c.can_lack_values(4));
        let e = c.experts.expect("there");
        assert_eq!((e.n_experts, e.n_used, e.ffn_dim, e.next_to_mlp), (16, 4, 704, true));
        // As transformers writes it since 5.20.
        let by_layer = json!({
            "global_head_dim": null, "num_key_value_heads": 8, "num_kv_shared_layers": 0,
            "per_layer_config": {
                "5": { "head_dim": 512, "num_key_value_heads": 2 }, "9": { "head_dim": 512, "num_key_value_heads": 2 }
            }
        });
        let other = without_weights(gemma4(by_layer));
        assert_eq!((other.local_heads, other.n_kv_heads, other.head_dim), (c.local_heads, 2, 512));
    }

    #[test]
    fn gemma4_configs_that_do_not_fit_are_refused() {
        let refused = |text: Value| read(gemma4(text)).expect_err("refused");
        for (key, text) in [
            ("use_bidirectional_attention", json!({ "use_bidirectional_attention": "all" })),
            ("per_layer_config", json!({ "per_layer_config": { "5": { "head_dim": 512 } } })),
            ("rope_type", json!({ "rope_parameters": { "sliding_attention": { "rope_type": "proportional" } } })),
        ] {
            let error = refused(text);
            assert!(
                matches!(&error, CheckpointError::UnsupportedFeature { key: k, .. } if k.ends_with(key)),
                "{error}"
            );
        }
        for text in [
            json!({ "num_kv_shared_layers": 10 }),
            json!({ "num_kv_shared_layers": 5 }),
            json!({ "num_kv_shared_layers": 11 }),
            json!({ "hidden_size_per_layer_input": 1 << 24 }),
            json!({ "global_head_dim": 1u64 << 60 }),
            json!({ "head_dim": 0 }),
        ] {
            let error = refused(text);
            assert!(matches!(error, CheckpointError::BadConfig { .. }), "{error}");
        }
        let missing = refused(json!({ "num_hidden_layers": 10 }));
        assert!(matches!(&missing, CheckpointError::MissingTensor { name } if name.contains("v_proj")), "{missing}");
    }

    #[test]
    fn gemma4_layers_stay_local_with_another_window() {
        let mut c = without_weights(gemma4(json!({})));
        c.set_sliding_window(None);
        let c = c.checked().expect("valid");
        assert_eq!((local(&c).as_str(), c.window(0), c.head_dim_of(0)), ("LLLLL-LLL-", None, 256));
        let mut other = c.clone();
        other.set_sliding_window(Some(7));
        assert_eq!((other.window(0), other.window(5)), (Some(7), None));
        assert!(other.set_local_layers(&[true, false]).is_err());
    }
}
