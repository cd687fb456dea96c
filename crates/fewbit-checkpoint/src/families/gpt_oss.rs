//! gpt-oss.

use super::llama::LLAMA_CLASS;
use super::mistral::MIXTRAL_EXPERTS;
use super::qwen::QWEN2;
use super::{Architecture, Class, ExpertKeys, ExpertLayout, Family, Windows};
use crate::names::Part;
use fewbit_quant::GateFunction;

pub(super) const FAMILY: Family = Family {
    gguf: &[&GPT_OSS],
    classes: &[Class {
        name: "GptOssForCausalLM",
        model_type: "gpt_oss",
        gguf: &GPT_OSS,
        windows: Windows::Pattern(2),
        window: Some(128),
        head_dim: Some(64),
        n_heads: Some(64),
        n_kv_heads: Some(8),
        has_qkv_bias: true,
        rope_theta: 150_000.0,
        context_length: 131_072,
        rms_norm_eps: 1e-5,
        experts: Some(ExpertKeys { layout: ExpertLayout::Interleaved, ..MIXTRAL_EXPERTS }),
        ..LLAMA_CLASS
    }],
    modules: &[
        (Part::AttnSinks, "self_attn.sinks"),
        (Part::Router, "mlp.router"),
        (Part::ExpertUps, "mlp.experts.gate_up_proj"),
        (Part::ExpertDowns, "mlp.experts.down_proj"),
    ],
    ..Family::NONE
};

/// The weights are the softmax of the scores of the chosen experts, which is the softmax of all divided by the sum of
/// those chosen.
const GPT_OSS: Architecture = Architecture {
    name: "gpt-oss",
    gate: GateFunction::ClampedSilu,
    has_sinks: true,
    ffn_norm: Part::AttnPostNorm,
    after_attention: Part::AttnPostNorm,
    global_every: 2,
    truncates_yarn: false,
    ..QWEN2
};

#[cfg(test)]
mod tests {
    use super::super::tests::{local, read};
    use crate::{CheckpointError, RopeScaling};
    use fewbit_quant::GateFunction;
    use serde_json::{Value, json};

    /// As gpt-oss-20b has it, with fewer and narrower layers.
    fn folder() -> Value {
        json!({
            "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "attention_bias": false, "head_dim": 64,
            "hidden_act": "silu", "initial_context_length": 4096, "max_position_embeddings": 131_072,
            "num_experts_per_tok": 4, "num_local_experts": 32, "experts_per_token": 4, "rms_norm_eps": 1e-5,
            "rope_theta": 150_000, "sliding_window": 128, "swiglu_limit": 7.0, "rope_scaling": {
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
                "rope_type": "yarn", "truncate": false
            }
        })
    }

    #[test]
    fn gpt_oss_config_is_read() {
        let biased = read(folder()).expect_err("it must have biases");
        assert!(matches!(biased, CheckpointError::MissingTensor { name } if name.ends_with("q_proj.bias")));
        let c = super::super::tests::without_weights(folder());
        assert_eq!((local(&c).as_str(), c.sliding_window, c.gate), ("L-L-L-", Some(128), GateFunction::ClampedSilu));
        let scaling = RopeScaling::Yarn {
            factor: 32.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            is_truncated: false,
        };
        assert_eq!((&c.rope.scaling, c.rope.theta, c.context_length), (&scaling, 150_000.0, 131_072));
        assert_eq!(c.only_on_cpu(), None);
        assert!(c.has_sinks && c.experts.is_some_and(|e| e.n_used == 4 && e.is_normalized && e.ffn_dim == 64));
    }

    #[test]
    fn other_limits_and_other_activations_are_refused() {
        for (key, value) in [("swiglu_limit", json!(5.0)), ("swiglu_alpha", json!(2)), ("hidden_act", json!("gelu"))] {
            let mut other = folder();
            other[key] = value;
            match read(other) {
                Err(CheckpointError::UnsupportedFeature { key: found, .. }) => assert_eq!(found, key),
                other => panic!("{key}: {other:?}"),
            }
        }
    }
}
