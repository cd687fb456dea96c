//! LFM2, dense and with experts: short convolutions in most layers, attention in the others.

use super::llama::{LLAMA, LLAMA_CLASS};
use super::mistral::MIXTRAL_EXPERTS;
use super::{Architecture, Class, ExpertKeys, Family, RecurrentKind};
use crate::config::Gating;
use crate::names::Part;
use fewbit_quant::RopeStyle;

pub(super) const FAMILY: Family = Family {
    gguf: &[&LFM2, &LFM2MOE],
    classes: &[
        LFM2_CLASS,
        Class {
            name: "Lfm2MoeForCausalLM",
            model_type: "lfm2_moe",
            gguf: &LFM2MOE,
            experts: Some(ExpertKeys {
                count: "num_experts",
                width: "moe_intermediate_size",
                n_dense: 2,
                ..MIXTRAL_EXPERTS
            }),
            ..LFM2_CLASS
        },
    ],
    modules: &[
        (Part::AttnNorm, "operator_norm"),
        (Part::FfnNorm, "ffn_norm"),
        (Part::QNorm, "self_attn.q_layernorm"),
        (Part::KNorm, "self_attn.k_layernorm"),
        (Part::AttnOutput, "self_attn.out_proj"),
        (Part::ConvIn, "conv.in_proj"),
        (Part::Conv, "conv.conv"),
        (Part::ConvOut, "conv.out_proj"),
        (Part::Gate, "feed_forward.w1"),
        (Part::Up, "feed_forward.w3"),
        (Part::Down, "feed_forward.w2"),
        (Part::Router, "feed_forward.gate"),
        (Part::ExpertBias, "feed_forward.expert_bias"),
    ],
    experts: Some(("feed_forward.experts.", &[(Part::Gate, "w1"), (Part::Up, "w3"), (Part::Down, "w2")])),
    ..Family::NONE
};

const LFM2: Architecture = Architecture {
    name: "lfm2",
    rope_style: RopeStyle::HalfSplit,
    has_qk_norm: true,
    recurrent: Some(RecurrentKind::ShortConvolution),
    output_norm: Part::EmbeddingNorm,
    ..LLAMA
};

const LFM2MOE: Architecture = Architecture { name: "lfm2moe", gating: Gating::Sigmoid, has_dense_lead: true, ..LFM2 };

const LFM2_CLASS: Class = Class {
    name: "Lfm2ForCausalLM",
    model_type: "lfm2",
    gguf: &LFM2,
    n_heads: Some(32),
    n_kv_heads: Some(8),
    eps: "norm_eps",
    tied: true,
    rope_theta: 1e6,
    context_length: 128_000,
    rms_norm_eps: 1e-5,
    ..LLAMA_CLASS
};

#[cfg(test)]
mod tests {
    use super::super::tests::{of_class, read};
    use crate::CheckpointError;
    use crate::config::{Gating, Recurrent};
    use serde_json::json;

    #[test]
    fn lfm2_config_is_read() {
        let kinds = json!(["conv", "conv", "full_attention", "conv", "full_attention", "conv"]);
        let c = of_class("Lfm2ForCausalLM", json!({ "layer_types": kinds, "norm_eps": 1e-4, "block_multiple_of": 10 }));
        let is_recurrent: Vec<bool> = c.layers.iter().map(|layer| layer.is_recurrent).collect();
        assert_eq!(is_recurrent, [true, true, false, true, false, true]);
        assert_eq!((c.recurrent, c.rms_norm_eps), (Some(Recurrent::ShortConvolution { n_taps: 3 }), 1e-4));
        assert_eq!((c.ffn_dim, c.rope.theta, c.has_qk_norm), (50, 1e6, true), "2/3 of 64, rounded up");
        let c = of_class("Lfm2ForCausalLM", json!({ "full_attn_idxs": [1, 4], "block_auto_adjust_ff_dim": false }));
        assert_eq!(c.layers.iter().filter(|layer| layer.is_recurrent).count(), 4);
        assert_eq!(c.ffn_dim, 64);
        let biased = json!({ "architectures": ["Lfm2ForCausalLM"], "full_attn_idxs": [1], "conv_bias": true });
        assert!(matches!(read(biased), Err(CheckpointError::UnsupportedFeature { key, .. }) if key == "conv_bias"));
    }

    #[test]
    fn lfm2_moe_config_is_read() {
        let kinds = json!(["conv", "conv", "full_attention", "conv", "full_attention", "conv"]);
        let sizes = json!({
            "layer_types": kinds, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24,
            "num_dense_layers": 1, "routed_scaling_factor": 1.5, "norm_topk_prob": false,
        });
        let c = of_class("Lfm2MoeForCausalLM", sizes);
        let has_experts: Vec<bool> = c.layers.iter().map(|layer| layer.has_experts).collect();
        assert_eq!(has_experts, [false, true, true, true, true, true]);
        let experts = c.experts.expect("experts");
        assert_eq!((experts.n_experts, experts.n_used, experts.ffn_dim, c.ffn_dim), (8, 3, 24, 64));
        assert_eq!((experts.gating, experts.scale, experts.is_normalized), (Gating::Sigmoid, 1.5, false));
    }
}
