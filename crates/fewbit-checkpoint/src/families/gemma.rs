//! Gemma 1, 2 and 3 (text).

use super::llama::{LLAMA, LLAMA_CLASS};
use super::{Architecture, Class, Family, Windows};
use crate::names::Part;
use fewbit_quant::{GateFunction, RopeStyle};

pub(super) const FAMILY: Family = Family {
    gguf: &[&GEMMA, &GEMMA2, &GEMMA3],
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
    ],
    wrappers: &["Gemma3ForConditionalGeneration"],
    modules: &[(Part::FfnNorm, "pre_feedforward_layernorm"), (Part::FfnPostNorm, "post_feedforward_layernorm")],
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
    use super::super::tests::{config, local, of_class, read};
    use crate::RopeScaling;
    use fewbit_quant::GateFunction;
    use serde_json::json;

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
}
