//! EXAONE 4: no norms of the inputs of attention and feed-forward block, but of their outputs; global layers of models
//! with a window have no position embedding.

use super::llama::LLAMA_CLASS;
use super::qwen::QWEN2;
use super::{Architecture, Class, Family, Windows};
use crate::names::Part;

pub(super) const FAMILY: Family = Family {
    gguf: &[&EXAONE4],
    classes: &[Class {
        name: "Exaone4ForCausalLM",
        model_type: "exaone4",
        gguf: &EXAONE4,
        windows: Windows::Pattern(4),
        window: Some(4096),
        n_heads: Some(32),
        n_kv_heads: Some(32),
        rms_norm_eps: 1e-5,
        ..LLAMA_CLASS
    }],
    ..Family::NONE
};

const EXAONE4: Architecture = Architecture {
    name: "exaone4",
    has_pre_norms: false,
    has_qk_norm: true,
    has_post_norms: true,
    after_attention: Part::AttnPostNorm,
    global_every: 4,
    has_global_nope: true,
    ..QWEN2
};

#[cfg(test)]
mod tests {
    use super::super::tests::{local, of_class};
    use crate::RopeScaling;
    use serde_json::json;

    #[test]
    fn exaone4_configs_are_read() {
        let scaling = json!({
            "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3",
            "original_max_position_embeddings": 8192
        });
        // As EXAONE-4.0-1.2B has it, and as EXAONE-4.0-32B does.
        let none = json!({ "sliding_window": null, "rope_theta": 1_000_000, "rope_scaling": scaling, "head_dim": 64 });
        let small = of_class("Exaone4ForCausalLM", none);
        assert_eq!((local(&small).as_str(), small.sliding_window, small.head_dim), ("------", None, 64));
        assert!(small.layers.iter().all(|layer| layer.has_rope) && !small.has_pre_norms);
        assert!(matches!(small.rope.scaling, RopeScaling::Llama3 { factor: 16.0, .. }));
        let large = of_class("Exaone4ForCausalLM", json!({ "sliding_window": 4096, "sliding_window_pattern": "LLLG" }));
        assert_eq!((local(&large).as_str(), large.sliding_window), ("LLL-LL", Some(4096)));
        assert!(large.layers.iter().all(|layer| layer.has_rope == layer.is_local));
    }
}
