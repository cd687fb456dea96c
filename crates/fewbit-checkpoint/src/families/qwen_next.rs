//! Qwen3-Next, Qwen 3.5 and 3.6: three of four layers have the gated delta rule, the others gated attention.

use super::llama::{LLAMA, LLAMA_CLASS};
use super::mistral::MIXTRAL_EXPERTS;
use super::{Architecture, Class, ExpertKeys, Family, RecurrentKind};
use crate::names::Part;
use fewbit_quant::RopeStyle;

pub(super) const FAMILY: Family = Family {
    gguf: &[&QWEN3NEXT, &QWEN35, &QWEN35MOE],
    classes: &[
        Class { name: "Qwen3NextForCausalLM", model_type: "qwen3_next", experts: Some(EXPERTS), ..QWEN3NEXT_CLASS },
        Class {
            name: "Qwen3_5ForCausalLM",
            model_type: "qwen3_5_text",
            gguf: &QWEN35,
            n_kv_heads: Some(4),
            ..QWEN3NEXT_CLASS
        },
        Class {
            name: "Qwen3_5MoeForCausalLM",
            model_type: "qwen3_5_moe_text",
            gguf: &QWEN35MOE,
            experts: Some(EXPERTS),
            ..QWEN3NEXT_CLASS
        },
    ],
    wrappers: &["Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"],
    modules: &[
        (Part::SsmIn, "linear_attn.in_proj_qkvz"),
        (Part::SsmBetaAlpha, "linear_attn.in_proj_ba"),
        (Part::Qkv, "linear_attn.in_proj_qkv"),
        (Part::AttnGate, "linear_attn.in_proj_z"),
        (Part::SsmBeta, "linear_attn.in_proj_b"),
        (Part::SsmAlpha, "linear_attn.in_proj_a"),
        (Part::SsmConv, "linear_attn.conv1d"),
        (Part::SsmDt, "linear_attn.dt"),
        (Part::SsmA, "linear_attn.A_log"),
        (Part::SsmNorm, "linear_attn.norm"),
        (Part::SsmOut, "linear_attn.out_proj"),
    ],
    ..Family::NONE
};

const QWEN3NEXT: Architecture = Architecture {
    name: "qwen3next",
    rope_style: RopeStyle::HalfSplit,
    has_qk_norm: true,
    has_output_gate: true,
    recurrent: Some(RecurrentKind::DeltaNet { is_tiled: false }),
    has_further_layers: true,
    has_mtp: true,
    ffn_norm: Part::AttnPostNorm,
    after_attention: Part::AttnPostNorm,
    has_shared_expert: true,
    has_shared_gate: true,
    ..LLAMA
};

const QWEN35: Architecture = Architecture {
    name: "qwen35",
    recurrent: Some(RecurrentKind::DeltaNet { is_tiled: true }),
    has_rope_sections: true,
    ..QWEN3NEXT
};

const QWEN35MOE: Architecture = Architecture { name: "qwen35moe", ..QWEN35 };

const QWEN3NEXT_CLASS: Class = Class {
    gguf: &QWEN3NEXT,
    head_dim: Some(256),
    n_heads: Some(16),
    n_kv_heads: Some(2),
    has_partial_rope: true,
    rope_fraction: 0.25,
    norms_from_one: true,
    context_length: 32_768,
    ..LLAMA_CLASS
};

const EXPERTS: ExpertKeys = ExpertKeys {
    count: "num_experts",
    width: "moe_intermediate_size",
    shared_width: Some("shared_expert_intermediate_size"),
    ..MIXTRAL_EXPERTS
};

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use crate::config::{DeltaNetConfig, Recurrent};
    use crate::{CheckpointError, ModelConfig};
    use serde_json::{Value, json};

    fn sizes() -> Value {
        json!({
            "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 8, "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4, "head_dim": 16, "num_hidden_layers": 8,
            "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 24,
        })
    }

    fn of(class: &str, more: &Value) -> Result<ModelConfig, CheckpointError> {
        let mut config = sizes();
        config["architectures"] = json!([class]);
        for (key, value) in more.as_object().expect("an object") {
            config[key] = value.clone();
        }
        read(config)
    }

    fn kinds(config: &ModelConfig) -> String {
        config.layers.iter().map(|layer| if layer.is_recurrent { 'R' } else { '-' }).collect()
    }

    #[test]
    fn configs_are_read() {
        let c = of("Qwen3NextForCausalLM", &json!({})).expect("valid");
        assert_eq!((kinds(&c).as_str(), c.rope.n_dims, c.has_output_gate), ("RRR-RRR-", 4, true));
        let delta = DeltaNetConfig { n_k_heads: 2, n_v_heads: 6, k_dim: 8, v_dim: 16, n_taps: 4, is_tiled: false };
        assert_eq!(c.recurrent, Some(Recurrent::DeltaNet(delta)));
        let experts = c.experts.expect("experts");
        assert!(experts.is_normalized && experts.has_shared_gate && experts.shared_ffn_dim == Some(24));
        assert_eq!(c.only_on_cpu(), Some("layers with a state instead of attention"), "what a GPU refuses it for");
        let c = of("Qwen3_5ForCausalLM", &json!({ "full_attention_interval": 2 })).expect("valid");
        assert_eq!((kinds(&c).as_str(), c.experts, c.ffn_dim), ("R-R-R-R-", None, 64));
        assert_eq!(c.recurrent, Some(Recurrent::DeltaNet(DeltaNetConfig { is_tiled: true, ..delta })));
        let mut text = sizes();
        text["model_type"] = json!("qwen3_5_moe_text");
        let wrapped = json!({ "architectures": ["Qwen3_5MoeForConditionalGeneration"], "text_config": text });
        let mut whole = wrapped;
        for (key, value) in [("hidden_size", 32), ("num_attention_heads", 4), ("vocab_size", 3)] {
            whole["text_config"][key] = json!(value);
        }
        whole["text_config"]["tie_word_embeddings"] = json!(true);
        // Its embedding has another name, which `read` does not write.
        assert!(!matches!(read(whole), Err(CheckpointError::UnknownArchitecture { .. })));
    }

    #[test]
    fn variants_are_refused_by_their_key() {
        for (key, value) in [
            ("attn_output_gate", json!(false)),
            ("mlp_only_layers", json!([1])),
            ("decoder_sparse_step", json!(2)),
            ("layer_types", json!(["full_attention", "sliding_attention"])),
        ] {
            let found = match of("Qwen3NextForCausalLM", &json!({ key: value })) {
                Err(CheckpointError::UnsupportedFeature { key, .. } | CheckpointError::BadConfig { key, .. }) => key,
                other => panic!("{key}: {other:?}"),
            };
            assert!(found.contains(key), "{found}");
        }
        let heads = of("Qwen3NextForCausalLM", &json!({ "linear_num_value_heads": 5 }));
        assert!(matches!(heads, Err(CheckpointError::BadConfig { key, .. }) if key == "recurrent.n_v_heads"));
    }
}
