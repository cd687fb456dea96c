//! Nemotron-H: a layer is a state space, attention without position embedding, or a feed-forward block without a gate.

use super::llama::{LLAMA, LLAMA_CLASS};
use super::{Architecture, Class, Family, RecurrentKind, SpaceKeys};
use crate::names::Part;

pub(super) const FAMILY: Family = Family {
    gguf: &[&NEMOTRON_H],
    classes: &[Class {
        name: "NemotronHForCausalLM",
        model_type: "nemotron_h",
        gguf: &NEMOTRON_H,
        n_kv_heads: Some(8),
        head_dim: Some(128),
        eps: "layer_norm_epsilon",
        rms_norm_eps: 1e-5,
        context_length: 4096,
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
        (Part::SsmIn, "mixer.in_proj"),
        (Part::SsmConv, "mixer.conv1d"),
        (Part::SsmDt, "mixer.dt"),
        (Part::SsmA, "mixer.A_log"),
        (Part::SsmD, "mixer.D"),
        (Part::SsmNorm, "mixer.norm"),
        (Part::SsmOut, "mixer.out_proj"),
    ],
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

#[cfg(test)]
mod tests {
    use super::super::tests::{config, read};
    use crate::CheckpointError;
    use crate::config::{Recurrent, StateSpaceConfig};
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
