//! DeepSeek 2, 3 and R1, and models with their structure, such as Kimi K2: multi-head latent attention, and experts that
//! are chosen in groups after a few layers without experts.

use super::llama::{LLAMA, LLAMA_CLASS};
use super::mistral::MIXTRAL_EXPERTS;
use super::{Architecture, Class, ExpertKeys, Family};
use crate::config::{Gating, LatentConfig};
use crate::names::Part;

pub(super) const FAMILY: Family = Family {
    gguf: &[&DEEPSEEK2],
    classes: &[
        Class {
            name: "DeepseekV2ForCausalLM",
            model_type: "deepseek_v2",
            gguf: &DEEPSEEK2,
            experts: Some(DEEPSEEK_EXPERTS),
            latent: Some(LATENT),
            ..LLAMA_CLASS
        },
        DEEPSEEK3_CLASS,
    ],
    modules: &[
        (Part::QLatent, "self_attn.q_a_proj"),
        (Part::QLatentNorm, "self_attn.q_a_layernorm"),
        (Part::QFromLatent, "self_attn.q_b_proj"),
        (Part::KvLatent, "self_attn.kv_a_proj_with_mqa"),
        (Part::KvLatentNorm, "self_attn.kv_a_layernorm"),
        (Part::KvFromLatent, "self_attn.kv_b_proj"),
        (Part::SharedGate, "mlp.shared_experts.gate_proj"),
        (Part::SharedUp, "mlp.shared_experts.up_proj"),
        (Part::SharedDown, "mlp.shared_experts.down_proj"),
    ],
    ..Family::NONE
};

/// Files from before the groups of experts were written have those of DeepSeek 2 and 3, which are known by their number
/// of experts.
pub(super) const DEEPSEEK2: Architecture = Architecture {
    name: "deepseek2",
    has_same_pairs: true,
    normalizes_experts: false,
    has_shared_expert: true,
    counts_shared_experts: true,
    is_latent: true,
    has_further_layers: true,
    has_dense_lead: true,
    has_groups: true,
    groups: &[(160, [8, 3]), (256, [8, 4])],
    ..LLAMA
};

pub(super) const DEEPSEEK3_CLASS: Class = Class {
    name: "DeepseekV3ForCausalLM",
    model_type: "deepseek_v3",
    gguf: &DEEPSEEK2,
    context_length: 4096,
    experts: Some(ExpertKeys {
        is_normalized: true,
        n_dense: 3,
        scale: 2.5,
        groups: Some([8, 4]),
        gating: Some(Gating::Sigmoid),
        ..DEEPSEEK_EXPERTS
    }),
    latent: Some(LATENT),
    ..LLAMA_CLASS
};

const LATENT: LatentConfig =
    LatentConfig { q_rank: Some(1536), kv_rank: 512, plain_dim: 128, rotated_dim: 64, value_dim: 128 };

pub(super) const DEEPSEEK_EXPERTS: ExpertKeys = ExpertKeys {
    count: "n_routed_experts",
    width: "moe_intermediate_size",
    is_normalized: false,
    shared_count: Some("n_shared_experts"),
    ..MIXTRAL_EXPERTS
};

#[cfg(test)]
mod tests {
    use super::super::tests::{config, read};
    use crate::{CheckpointError, ExpertGroups, Gating, LatentConfig, RopeScaling};
    use serde_json::{Value, json};

    /// As DeepSeek-V2-Lite has it, with fewer layers and a smaller vocabulary.
    fn lite() -> Value {
        json!({
            "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "attention_bias": false,
            "first_k_dense_replace": 1, "hidden_act": "silu", "kv_lora_rank": 512, "max_position_embeddings": 163_840,
            "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64,
            "n_shared_experts": 2, "norm_topk_prob": false, "num_experts_per_tok": 6, "q_lora_rank": null,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_scaling": {
                "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                "original_max_position_embeddings": 4096, "type": "yarn"
            },
            "rope_theta": 10_000, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_group": 1,
            "topk_method": "greedy", "v_head_dim": 128
        })
    }

    #[test]
    fn deepseek_configs_are_read() {
        let c = config(lite());
        let latent = LatentConfig { q_rank: None, kv_rank: 512, plain_dim: 128, rotated_dim: 64, value_dim: 128 };
        assert_eq!((c.latent, c.n_kv_heads, c.head_dim, c.rope.n_dims), (Some(latent), 1, 576, 64));
        // Scores are scaled by the square of 0.1 * 0.707 * ln(40) + 1; rotations are not.
        assert!((f64::from(c.attention_scale) * 192f64.sqrt() - 1.5896f64).abs() < 1e-3, "{}", c.attention_scale);
        assert!(matches!(c.rope.scaling, RopeScaling::Yarn { factor: 40.0, .. }) && c.rope.attention_factor == 1.0);
        let e = c.experts.expect("experts");
        assert_eq!((e.n_used, e.shared_ffn_dim, e.gating, e.groups), (6, Some(2816), Gating::Softmax, None));
        assert_eq!(c.layers.iter().map(|layer| layer.has_experts).collect::<Vec<_>>()[..3], [false, true, true]);
        assert_eq!(c.only_on_cpu(), Some("multi-head latent attention"));
        assert!(c.to_gguf().is_ok(), "all of it can be said in a GGUF file");

        let mut three = lite();
        let object = three.as_object_mut().expect("an object");
        for key in ["scoring_func", "topk_method", "norm_topk_prob", "first_k_dense_replace", "routed_scaling_factor"] {
            object.remove(key);
        }
        three["architectures"] = json!(["DeepseekV3ForCausalLM"]);
        (three["q_lora_rank"], three["n_group"], three["topk_group"]) = (json!(1536), json!(8), json!(4));
        three["num_nextn_predict_layers"] = json!(1);
        let c = config(three);
        let e = c.experts.expect("experts");
        assert_eq!(e.groups, Some(ExpertGroups { n_groups: 8, n_used: 4, n_best: 2 }));
        assert_eq!((e.gating, e.is_normalized, e.scale), (Gating::Sigmoid, true, 2.5));
        assert!(c.to_gguf().is_ok() && c.latent.is_some_and(|latent| latent.q_rank == Some(1536)));
        assert_eq!(c.layers.iter().filter(|layer| !layer.has_experts).count(), 3);
    }

    #[test]
    fn other_ways_to_choose_experts_and_other_pairs_are_refused() {
        for (key, value) in [
            ("scoring_func", json!("sigmoid")),
            ("topk_method", json!("noaux_tc")),
            ("norm_topk_prob", json!(true)),
            ("moe_layer_freq", json!(2)),
            ("rope_interleave", json!(false)),
        ] {
            let mut other = lite();
            other[key] = value;
            match read(other) {
                Err(CheckpointError::UnsupportedFeature { key: found, .. }) => assert_eq!(found, key),
                other => panic!("{key}: {other:?}"),
            }
        }
    }
}
