//! Hunyuan, the dense models: queries and keys are normalized after they are rotated.

use super::llama::LLAMA_CLASS;
use super::qwen::QWEN2;
use super::{Architecture, Class, Family};
use crate::config::QkNorm;
use crate::names::Part;

pub(super) const FAMILY: Family = Family {
    gguf: &[&HUNYUAN_DENSE],
    classes: &[Class {
        name: "HunYuanDenseV1ForCausalLM",
        model_type: "hunyuan_v1_dense",
        gguf: &HUNYUAN_DENSE,
        has_ntk_alpha: true,
        rms_norm_eps: 1e-5,
        ..LLAMA_CLASS
    }],
    modules: &[(Part::QNorm, "self_attn.query_layernorm"), (Part::KNorm, "self_attn.key_layernorm")],
    ..Family::NONE
};

const HUNYUAN_DENSE: Architecture =
    Architecture { name: "hunyuan-dense", has_qk_norm: true, qk_norm: QkNorm::RotatedHeads, ..QWEN2 };

#[cfg(test)]
mod tests {
    use super::super::tests::of_class;
    use crate::{QkNorm, RopeScaling};
    use serde_json::json;

    #[test]
    fn hunyuan_config_is_read() {
        // As Hunyuan-4B-Instruct has it.
        let scaling = json!({
            "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "type": "dynamic"
        });
        let c = of_class(
            "HunYuanDenseV1ForCausalLM",
            json!({ "head_dim": 128, "rope_theta": 10_000.0, "rope_scaling": scaling }),
        );
        assert_eq!((c.qk_norm_of(0), c.only_on_cpu()), (Some(QkNorm::RotatedHeads), None));
        // The base that llama.cpp's converter writes into files.
        assert!((c.rope.theta / 11_158_840.0 - 1.0).abs() < 1e-4, "{}", c.rope.theta);
        assert_eq!((c.rope.scaling, c.rope.attention_factor), (RopeScaling::None, 1.0));
        let plain = of_class("HunYuanDenseV1ForCausalLM", json!({ "rope_theta": 500.0, "rope_scaling": null }));
        assert_eq!(plain.rope.theta, 500.0);
    }
}
