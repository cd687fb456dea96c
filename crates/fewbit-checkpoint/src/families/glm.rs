//! GLM-4-0414: norms before and after attention and feed-forward block, and heads that are rotated in part.

use super::llama::{LLAMA, LLAMA_CLASS};
use super::{Architecture, Class, Family};
use crate::names::Part;

pub(super) const FAMILY: Family = Family {
    gguf: &[&GLM4],
    classes: &[Class {
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
    }],
    modules: &[(Part::AttnPostNorm, "post_self_attn_layernorm"), (Part::FfnPostNorm, "post_mlp_layernorm")],
    ..Family::NONE
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
