//! Mistral: the 7B versions, Nemo, Small, Mixtral, Ministral. In GGUF files, the architecture of most of them is
//! `llama`.

use super::deepseek::{DEEPSEEK_EXPERTS, DEEPSEEK2};
use super::llama::{LLAMA, LLAMA_CLASS};
use super::{Architecture, Class, ExpertKeys, ExpertLayout, Family, Temperatures, Windows};
use crate::config::{AttentionTemperature, LatentConfig};
use crate::names::Part;

pub(super) const FAMILY: Family = Family {
    gguf: &[&MISTRAL3, &MISTRAL4],
    classes: &[
        MISTRAL,
        Class { name: "MinistralForCausalLM", model_type: "ministral", windows: Windows::Pattern(0), ..MISTRAL },
        Class {
            name: "Ministral3ForCausalLM",
            model_type: "ministral3",
            gguf: &MISTRAL3,
            window: None,
            head_dim: Some(128),
            temperatures: Temperatures::Mistral,
            rope_theta: 1e6,
            context_length: 262_144,
            rms_norm_eps: 1e-5,
            ..MISTRAL
        },
        Class {
            name: "MixtralForCausalLM",
            model_type: "mixtral",
            window: None,
            rope_theta: 1e6,
            rms_norm_eps: 1e-5,
            experts: Some(MIXTRAL_EXPERTS),
            ..MISTRAL
        },
        Class {
            name: "Mistral4ForCausalLM",
            model_type: "mistral4",
            gguf: &MISTRAL4,
            windows: Windows::None,
            window: None,
            temperatures: Temperatures::Mistral,
            context_length: 1_048_576,
            experts: Some(ExpertKeys { is_normalized: true, layout: ExpertLayout::Joint, ..DEEPSEEK_EXPERTS }),
            latent: Some(LatentConfig {
                q_rank: Some(1024),
                kv_rank: 256,
                plain_dim: 64,
                rotated_dim: 64,
                value_dim: 128,
            }),
            ..MISTRAL
        },
    ],
    wrappers: &["Mistral3ForConditionalGeneration"],
    modules: &[(Part::Router, "block_sparse_moe.gate")],
    experts: Some(("block_sparse_moe.experts.", &[(Part::Gate, "w1"), (Part::Up, "w3"), (Part::Down, "w2")])),
};

const MISTRAL3: Architecture = Architecture { name: "mistral3", ..LLAMA };

/// Queries are scaled by position even if the file does not say so, as llama.cpp's converter leaves it out.
const MISTRAL4: Architecture = Architecture {
    name: "mistral4",
    groups: &[],
    adds_two_per_group: true,
    temperature: Some(AttentionTemperature { scale: 0.1f32 as f64, length: 8192, offset: 0, only_without_rope: false }),
    ..DEEPSEEK2
};

const MISTRAL: Class = Class {
    name: "MistralForCausalLM",
    model_type: "mistral",
    windows: Windows::All,
    window: Some(4096),
    n_heads: Some(32),
    n_kv_heads: Some(8),
    context_length: 131_072,
    ..LLAMA_CLASS
};

pub(super) const MIXTRAL_EXPERTS: ExpertKeys = ExpertKeys {
    count: "num_local_experts",
    width: "intermediate_size",
    shared_width: None,
    is_normalized: true,
    layout: ExpertLayout::Rows,
    shared_count: None,
    n_dense: 0,
    scale: 1.0,
    groups: None,
    used: "num_experts_per_tok",
    switch: None,
    gating: None,
};

#[cfg(test)]
mod tests {
    use super::super::tests::{config, local, of_class, read};
    use crate::{AttentionTemperature, CheckpointError};
    use serde_json::json;

    #[test]
    fn mistral_ministral_and_mixtral_configs_are_read() {
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
        let c = of_class("MistralForCausalLM", json!({ "num_key_value_heads": null }));
        assert_eq!(c.n_kv_heads, 4, "as many as queries have");
    }

    #[test]
    fn text_config_of_a_vision_model_is_read() {
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
        assert_eq!(
            c.attention_temperature,
            Some(AttentionTemperature { scale: 0.1f32.into(), length: 16_384, offset: 0, only_without_rope: false })
        );
        let mut alone = text;
        alone["architectures"] = json!(["Ministral3ForCausalLM"]);
        assert_eq!(config(alone), c);

        let other = json!({ "architectures": ["Mistral3ForConditionalGeneration"], "text_config": { "model_type": "mistral5" } });
        assert!(matches!(read(other), Err(CheckpointError::UnknownArchitecture { name, .. }) if name == "mistral5"));
    }
}
