//! Nemotron-H, dense and with experts (Nemotron 3): a layer is a state space, attention without position embedding, or a
//! feed-forward block without a gate, which experts can take the place of.

use super::llama::{LLAMA, LLAMA_CLASS};
use super::mistral::MIXTRAL_EXPERTS;
use super::{Architecture, Class, ExpertKeys, Family, RecurrentKind, SpaceKeys};
use crate::config::Gating;
use crate::names::Part;

pub(super) const FAMILY: Family = Family {
    gguf: &[&NEMOTRON_H, &NEMOTRON_H_MOE],
    classes: &[Class {
        name: "NemotronHForCausalLM",
        model_type: "nemotron_h",
        gguf: &NEMOTRON_H,
        gguf_of_experts: Some(&NEMOTRON_H_MOE),
        n_kv_heads: Some(8),
        head_dim: Some(128),
        eps: "layer_norm_epsilon",
        rms_norm_eps: 1e-5,
        context_length: 4096,
        experts: Some(ExpertKeys {
            count: "n_routed_experts",
            width: "moe_intermediate_size",
            shared_width: Some("moe_shared_expert_intermediate_size"),
            ..MIXTRAL_EXPERTS
        }),
        space: Some(SpaceKeys {
            n_groups: ("n_groups", 8),
            n_heads: ("mamba_num_heads", 128),
            state_dim: ("ssm_state_size", 128),
            head_dim: ("mamba_head_dim", 64),
            n_taps: ("conv_kernel", 4),
        }),
        ..LLAMA_CLASS
    }],
    modules: &[
        // Of every layer, whatever it is.
        (Part::AttnNorm, "norm"),
        (Part::Q, "mixer.q_proj"),
        (Part::K, "mixer.k_proj"),
        (Part::V, "mixer.v_proj"),
        (Part::AttnOutput, "mixer.o_proj"),
        (Part::Up, "mixer.up_proj"),
        (Part::Down, "mixer.down_proj"),
        (Part::Router, "mixer.gate"),
        (Part::SharedUp, "mixer.shared_experts.up_proj"),
        (Part::SharedDown, "mixer.shared_experts.down_proj"),
        (Part::SsmIn, "mixer.in_proj"),
        (Part::SsmConv, "mixer.conv1d"),
        (Part::SsmDt, "mixer.dt"),
        (Part::SsmA, "mixer.A_log"),
        (Part::SsmD, "mixer.D"),
        (Part::SsmNorm, "mixer.norm"),
        (Part::SsmOut, "mixer.out_proj"),
    ],
    experts: Some(("mixer.experts.", &[(Part::Up, "up_proj"), (Part::Down, "down_proj")])),
    ..Family::NONE
};

const NEMOTRON_H: Architecture = Architecture {
    name: "nemotron_h",
    is_gated: false,
    has_one_mixer: true,
    recurrent: Some(RecurrentKind::StateSpace),
    nope_every: 1,
    ffn_norm: Part::AttnNorm,
    has_layer_norm_eps: true,
    ..LLAMA
};

/// Every layer with a feed-forward part has experts, and one that all tokens go through.
const NEMOTRON_H_MOE: Architecture = Architecture {
    name: "nemotron_h_moe",
    gating: Gating::Sigmoid,
    has_groups: true,
    has_further_layers: true,
    ..NEMOTRON_H
};

#[cfg(test)]
mod tests {
    use super::super::tests::{config, read};
    use crate::CheckpointError;
    use crate::config::{ExpertGroups, Gating, Recurrent, StateSpaceConfig};
    use serde_json::{Value, json};

    fn sizes() -> Value {
        json!({
            "architectures": ["NemotronHForCausalLM"], "hybrid_override_pattern": "M-M*-M", "head_dim": 16,
            "mamba_num_heads": 6, "mamba_head_dim": 12, "n_groups": 3, "ssm_state_size": 20, "mlp_hidden_act": "relu2",
        })
    }

    #[test]
    fn nemotron_h_config_is_read() {
        let c = config(sizes());
        let space = StateSpaceConfig { n_groups: 3, n_heads: 6, state_dim: 20, head_dim: 12, n_taps: 4 };
        assert_eq!((c.recurrent, c.head_dim, c.ffn_dim), (Some(Recurrent::StateSpace(space)), 16, 64));
        let kinds: String = (0..c.n_layers())
            .map(|i| match c.layers[i] {
                layer if layer.has_feed_forward => '-',
                layer if layer.is_recurrent => 'M',
                _ => '*',
            })
            .collect();
        assert_eq!(kinds, "M-M*-M");
        assert!(!c.is_gated && c.layers.iter().all(|layer| layer.has_attention != layer.has_feed_forward));
        assert!((0..c.n_layers()).all(|i| c.has_keys_values(i) == (i == 3)));
        assert_eq!(c.only_on_cpu(), Some("layers with a state instead of attention"), "what a GPU refuses it for");
        let mut listed = sizes();
        listed.as_object_mut().expect("an object").remove("hybrid_override_pattern");
        let kinds = ["linear_attention", "mlp", "mamba", "full_attention", "mlp", "linear_attention"];
        listed["layers_block_type"] = json!(kinds);
        assert_eq!(config(listed).layers, c.layers);
    }

    /// As NVIDIA Nemotron 3 Nano has it, with fewer layers and other sizes of its states.
    fn with_experts() -> Value {
        let mut json = sizes();
        for (key, value) in [
            ("hybrid_override_pattern", json!("MEM*ME")),
            ("n_routed_experts", json!(128)),
            ("num_experts_per_tok", json!(6)),
            ("moe_intermediate_size", json!(1856)),
            ("moe_shared_expert_intermediate_size", json!(3712)),
            ("n_shared_experts", json!(1)),
            ("n_group", json!(1)),
            ("topk_group", json!(1)),
            ("norm_topk_prob", json!(true)),
            ("routed_scaling_factor", json!(2.5)),
            ("moe_latent_size", json!(null)),
        ] {
            json[key] = value;
        }
        json
    }

    #[test]
    fn nemotron_h_with_experts_is_read() {
        let c = config(with_experts());
        assert_eq!((c.architecture.as_str(), c.ffn_dim, c.is_gated), ("nemotron_h_moe", 1856, false));
        let e = c.experts.expect("experts");
        assert_eq!((e.n_experts, e.n_used, e.ffn_dim, e.shared_ffn_dim), (128, 6, 1856, Some(3712)));
        assert_eq!((e.gating, e.groups, e.is_normalized, e.scale), (Gating::Sigmoid, None, true, 2.5));
        let has_experts: Vec<bool> = c.layers.iter().map(|layer| layer.has_experts).collect();
        assert_eq!(has_experts, [false, true, false, false, false, true]);
        assert!(c.layers.iter().all(|layer| layer.has_experts == layer.has_feed_forward && !layer.has_rope));
        assert!(c.to_gguf().is_ok(), "all of it can be said in a GGUF file");
        let mut grouped = with_experts();
        (grouped["n_group"], grouped["topk_group"]) = (json!(8), json!(3));
        let e = config(grouped).experts.expect("experts");
        assert_eq!(e.groups, Some(ExpertGroups { n_groups: 8, n_used: 3, n_best: 2 }));
        // What dense models of newer versions of the library say of experts means nothing.
        let mut dense = with_experts();
        dense["hybrid_override_pattern"] = json!("M-M*M-");
        let c = config(dense);
        assert_eq!((c.architecture.as_str(), c.experts, c.ffn_dim), ("nemotron_h", None, 64));
    }

    #[test]
    fn variants_with_experts_are_refused_by_their_key() {
        for (key, value) in [
            ("hybrid_override_pattern", json!("ME-*ME")),
            ("moe_latent_size", json!(1024)),
            ("n_group", json!(3)),
            ("moe_intermediate_size", json!(null)),
        ] {
            let mut other = with_experts();
            other[key] = value;
            let error = read(other).map(|_| ()).expect_err("refused").to_string();
            assert!(error.contains(if key == "n_group" { "n_groups" } else { key }), "{error}");
        }
    }

    #[test]
    fn variants_are_refused_by_their_key() {
        for (key, value) in [
            ("hybrid_override_pattern", json!("M-ME-M")),
            ("hybrid_override_pattern", json!("M-M")),
            ("mlp_hidden_act", json!("silu")),
            ("mamba_hidden_act", json!("relu")),
            ("use_bias", json!(true)),
            ("mamba_proj_bias", json!(true)),
        ] {
            let mut other = sizes();
            other[key] = value;
            let found = match read(other) {
                Err(CheckpointError::UnsupportedFeature { key, .. } | CheckpointError::BadConfig { key, .. }) => key,
                other => panic!("{key}: {other:?}"),
            };
            assert_eq!(found, key);
        }
    }
}
