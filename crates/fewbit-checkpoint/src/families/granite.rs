//! Granite 3 and 4, dense and with experts: the hybrid ones of Granite 4 have a state space in most layers.

use super::llama::{LLAMA, LLAMA_CLASS};
use super::mistral::MIXTRAL_EXPERTS;
use super::{Architecture, Class, ExpertKeys, Family, RecurrentKind, SpaceKeys};
use crate::names::Part;

pub(super) const FAMILY: Family = Family {
    gguf: &[&GRANITE, &GRANITEMOE, &GRANITEHYBRID],
    classes: &[
        GRANITE_CLASS,
        Class {
            name: "GraniteMoeForCausalLM",
            model_type: "granitemoe",
            gguf: &GRANITEMOE,
            experts: Some(MIXTRAL_EXPERTS),
            ..GRANITE_CLASS
        },
        Class {
            name: "GraniteMoeHybridForCausalLM",
            model_type: "granitemoehybrid",
            gguf: &GRANITEHYBRID,
            // That of the experts, if there are some, is `intermediate_size`.
            ffn_width: "shared_intermediate_size",
            experts: Some(ExpertKeys { shared_width: Some("shared_intermediate_size"), ..MIXTRAL_EXPERTS }),
            space: Some(SpaceKeys {
                n_groups: ("mamba_n_groups", 1),
                n_heads: ("mamba_n_heads", 128),
                state_dim: ("mamba_d_state", 256),
                head_dim: ("mamba_d_head", 64),
                n_taps: ("mamba_d_conv", 4),
            }),
            ..GRANITE_CLASS
        },
    ],
    modules: &[
        // Of every expert, rows of the gate, then of the other.
        (Part::ExpertUps, "block_sparse_moe.input_linear"),
        (Part::ExpertDowns, "block_sparse_moe.output_linear"),
        (Part::Router, "block_sparse_moe.router.layer"),
        // The rows of the gate, then of the other. Without experts, they are the feed-forward block.
        (Part::SharedUp, "shared_mlp.input_linear"),
        (Part::SharedDown, "shared_mlp.output_linear"),
        (Part::SsmIn, "mamba.in_proj"),
        (Part::SsmConv, "mamba.conv1d"),
        (Part::SsmDt, "mamba.dt"),
        (Part::SsmA, "mamba.A_log"),
        (Part::SsmD, "mamba.D"),
        (Part::SsmNorm, "mamba.norm"),
        (Part::SsmOut, "mamba.out_proj"),
    ],
    ..Family::NONE
};

const GRANITE: Architecture = Architecture { name: "granite", has_multipliers: true, has_nope_switch: true, ..LLAMA };

const GRANITEMOE: Architecture = Architecture { name: "granitemoe", ..GRANITE };

const GRANITEHYBRID: Architecture =
    Architecture { name: "granitehybrid", recurrent: Some(RecurrentKind::StateSpace), ..GRANITE };

const GRANITE_CLASS: Class = Class { name: "GraniteForCausalLM", model_type: "granite", gguf: &GRANITE, ..LLAMA_CLASS };

#[cfg(test)]
mod tests {
    use super::super::tests::{config, of_class, read};
    use crate::CheckpointError;
    use crate::config::{Recurrent, StateSpaceConfig};
    use serde_json::{Value, json};

    #[test]
    fn granite_multipliers_are_read() {
        let c = of_class(
            "GraniteForCausalLM",
            json!({
                "embedding_multiplier": 12, "attention_multiplier": 0.0078125, "residual_multiplier": 0.22, "logits_scaling": 8
            }),
        );
        assert_eq!(
            (c.embedding_scale, c.attention_scale, c.residual_scale, c.logit_scale),
            (12.0, 0.0078125, 0.22, 0.125)
        );
        let plain = of_class("GraniteForCausalLM", json!({}));
        assert_eq!(
            (plain.embedding_scale, plain.attention_scale, plain.logit_scale),
            (1.0, 1.0, 1.0),
            "the class's defaults"
        );
    }

    #[test]
    fn granite_moe_experts_are_read() {
        let moe = json!({ "num_local_experts": 32, "num_experts_per_tok": 8, "residual_multiplier": 0.22 });
        let c = of_class("GraniteMoeForCausalLM", moe);
        let experts = c.experts.expect("experts");
        assert_eq!((experts.n_experts, experts.n_used, experts.ffn_dim, experts.is_normalized), (32, 8, 64, true));
        assert_eq!((c.architecture.as_str(), c.residual_scale), ("granitemoe", 0.22));
    }

    fn hybrid() -> Value {
        json!({
            "architectures": ["GraniteMoeHybridForCausalLM"], "num_local_experts": 0, "num_experts_per_tok": 0,
            "layer_types": ["mamba", "mamba", "attention", "mamba", "attention", "mamba"],
            "shared_intermediate_size": 48, "intermediate_size": 16, "position_embedding_type": "nope",
            "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 24, "mamba_d_head": "auto",
        })
    }

    #[test]
    fn hybrid_configs_are_read() {
        let c = config(hybrid());
        let space = StateSpaceConfig { n_groups: 2, n_heads: 4, state_dim: 24, head_dim: 16, n_taps: 4 };
        assert_eq!((c.recurrent, c.ffn_dim, c.experts), (Some(Recurrent::StateSpace(space)), 48, None));
        let is_recurrent: Vec<bool> = c.layers.iter().map(|layer| layer.is_recurrent).collect();
        assert_eq!(is_recurrent, [true, true, false, true, false, true]);
        assert!(c.layers.iter().all(|layer| !layer.has_rope && layer.has_attention && layer.has_feed_forward));
        let mut other = hybrid();
        (other["num_local_experts"], other["num_experts_per_tok"]) = (json!(5), json!(2));
        other["position_embedding_type"] = json!("rope");
        other["layer_types"] = json!(vec!["attention"; 6]);
        let c = config(other);
        let experts = c.experts.expect("experts");
        assert_eq!((experts.ffn_dim, experts.shared_ffn_dim, c.ffn_dim), (16, Some(48), 16));
        assert!(c.layers.iter().all(|layer| layer.has_rope && layer.has_experts && !layer.is_recurrent));
    }

    #[test]
    fn hybrid_variants_are_refused_by_their_key() {
        for (key, value) in [
            ("layer_types", json!(vec!["moe"; 6])),
            ("mamba_proj_bias", json!(true)),
            ("time_step_limit", json!([0.001, 0.1])),
            ("time_step_limit", json!([0.0, 0.1])),
        ] {
            let mut other = hybrid();
            other[key] = value;
            let found = match read(other) {
                Err(CheckpointError::UnsupportedFeature { key, .. }) => key,
                other => panic!("{key}: {other:?}"),
            };
            assert_eq!(found, key);
        }
        for (key, value) in [("mamba_n_groups", 3), ("mamba_d_conv", 1), ("mamba_d_state", 0)] {
            let mut other = hybrid();
            other[key] = json!(value);
            assert!(matches!(read(other), Err(CheckpointError::BadConfig { .. })), "{key}");
        }
        let mut other = hybrid();
        other["time_step_limit"] = json!([0.0, null]);
        config(other);
    }
}
