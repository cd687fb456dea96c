//! GLM-4-0414: norms before and after attention and feed-forward block, and heads that are rotated in part. GLM-4.5: the
//! same heads, and experts as DeepSeek's. GLM-4.7-Flash: DeepSeek's latent attention as well.

use super::deepseek::{DEEPSEEK_EXPERTS, DEEPSEEK2, DEEPSEEK3_CLASS};
use super::llama::{LLAMA, LLAMA_CLASS};
use super::qwen::QWEN2;
use super::{Architecture, Class, ExpertKeys, Family};
use crate::config::{Gating, LatentConfig};
use crate::names::Part;

pub(super) const FAMILY: Family = Family {
    gguf: &[&GLM4, &GLM4MOE],
    classes: &[
        GLM4_CLASS,
        Class {
            name: "Glm4MoeForCausalLM",
            model_type: "glm4_moe",
            gguf: &GLM4MOE,
            head_dim: None,
            n_kv_heads: Some(8),
            rms_norm_eps: 1e-5,
            experts: Some(GLM_EXPERTS),
            ..GLM4_CLASS
        },
        // GLM-4.7-Flash.
        Class {
            name: "Glm4MoeLiteForCausalLM",
            model_type: "glm4_moe_lite",
            gguf: &DEEPSEEK2,
            context_length: 202_752,
            rms_norm_eps: 1e-5,
            experts: Some(ExpertKeys { scale: 1.8, ..GLM_EXPERTS }),
            latent: Some(LatentConfig {
                q_rank: Some(768),
                kv_rank: 512,
                plain_dim: 192,
                rotated_dim: 64,
                value_dim: 256,
            }),
            ..DEEPSEEK3_CLASS
        },
    ],
    modules: &[(Part::AttnPostNorm, "post_self_attn_layernorm"), (Part::FfnPostNorm, "post_mlp_layernorm")],
    ..Family::NONE
};

const GLM4_CLASS: Class = Class {
    name: "Glm4ForCausalLM",
    model_type: "glm4",
    gguf: &GLM4,
    head_dim: Some(128),
    n_kv_heads: Some(2),
    has_partial_rope: true,
    rope_fraction: 0.5,
    context_length: 131_072,
    rms_norm_eps: 1.5625e-7,
    ..LLAMA_CLASS
};

const GLM_EXPERTS: ExpertKeys = ExpertKeys {
    is_normalized: true,
    n_dense: 1,
    groups: None,
    scale: 1.0,
    gating: Some(Gating::Sigmoid),
    ..DEEPSEEK_EXPERTS
};

/// GLM-4.5 and 4.6. Only some have norms of queries and keys.
const GLM4MOE: Architecture = Architecture {
    name: "glm4moe",
    has_qk_norm: true,
    has_optional_qk_norm: true,
    ffn_norm: Part::AttnPostNorm,
    after_attention: Part::AttnPostNorm,
    gating: Gating::Sigmoid,
    has_shared_expert: true,
    counts_shared_experts: true,
    has_further_layers: true,
    has_mtp: true,
    has_dense_lead: true,
    has_groups: true,
    ..QWEN2
};

const GLM4: Architecture = Architecture { name: "glm4", has_same_pairs: true, has_post_norms: true, ..LLAMA };

#[cfg(test)]
mod tests {
    use super::super::tests::of_class;
    use fewbit_quant::RopeStyle;
    use serde_json::json;

    #[test]
    fn glm4_config_is_read() {
        let c = of_class("Glm4ForCausalLM", json!({ "head_dim": 16 }));
        assert_eq!((c.rope.n_dims, c.rope.style, c.has_post_norms), (8, RopeStyle::Interleaved, true));
        let c = of_class("Glm4ForCausalLM", json!({ "head_dim": 16, "partial_rotary_factor": 0.25 }));
        assert_eq!((c.rope.n_dims, c.n_kv_heads, c.only_on_cpu()), (4, 2, None));
    }
}
