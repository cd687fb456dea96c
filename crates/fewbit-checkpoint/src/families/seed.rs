//! Seed-OSS.

use super::llama::LLAMA_CLASS;
use super::qwen::QWEN2;
use super::{Architecture, Class, Family};
use crate::names::Part;

pub(super) const FAMILY: Family = Family {
    gguf: &[&SEED_OSS],
    classes: &[Class {
        name: "SeedOssForCausalLM",
        model_type: "seed_oss",
        gguf: &SEED_OSS,
        head_dim: Some(128),
        n_heads: Some(80),
        n_kv_heads: Some(8),
        has_qkv_bias: true,
        context_length: 524_288,
        ..LLAMA_CLASS
    }],
    ..Family::NONE
};

const SEED_OSS: Architecture =
    Architecture { name: "seed_oss", ffn_norm: Part::AttnPostNorm, after_attention: Part::AttnPostNorm, ..QWEN2 };

#[cfg(test)]
mod tests {
    use super::super::tests::without_weights;
    use serde_json::json;

    #[test]
    fn seed_oss_config_is_read() {
        let c = without_weights(json!({ "architectures": ["SeedOssForCausalLM"], "rope_theta": 1e7 }));
        assert_eq!((c.head_dim, c.rope.theta, c.architecture.as_str()), (128, 1e7, "seed_oss"));
        assert!(!c.has_post_norms && c.sliding_window.is_none());
    }
}
