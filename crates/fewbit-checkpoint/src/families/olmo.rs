//! OLMo 2 and 3: no norms of the inputs of attention and feed-forward block, but of their outputs.

use super::llama::LLAMA_CLASS;
use super::qwen::QWEN2;
use super::{Architecture, Class, Family, Windows};
use crate::config::QkNorm;
use crate::names::Part;

pub(super) const FAMILY: Family = Family {
    gguf: &[&OLMO2],
    classes: &[
        OLMO2_CLASS,
        Class {
            name: "Olmo3ForCausalLM",
            model_type: "olmo3",
            windows: Windows::Pattern(4),
            window: Some(4096),
            // Local layers have the base of global ones, without their scaling.
            local_theta: Some(500_000.0),
            ..OLMO2_CLASS
        },
    ],
    ..Family::NONE
};

const OLMO2: Architecture = Architecture {
    name: "olmo2",
    has_pre_norms: false,
    has_qk_norm: true,
    qk_norm: QkNorm::Rows,
    has_post_norms: true,
    after_attention: Part::AttnPostNorm,
    global_every: 4,
    local_theta: Some(None),
    ..QWEN2
};

const OLMO2_CLASS: Class = Class {
    name: "Olmo2ForCausalLM",
    model_type: "olmo2",
    gguf: &OLMO2,
    rope_theta: 500_000.0,
    rms_norm_eps: 1e-5,
    ..LLAMA_CLASS
};

#[cfg(test)]
mod tests {
    use super::super::tests::{local, of_class};
    use crate::{QkNorm, RopeScaling};
    use serde_json::json;

    #[test]
    fn olmo_configs_are_read() {
        let two = of_class("Olmo2ForCausalLM", json!({ "rope_theta": 500_000, "sliding_window": 5 }));
        assert_eq!((two.has_pre_norms, two.has_post_norms, two.qk_norm_of(0)), (false, true, Some(QkNorm::Rows)));
        assert_eq!(two.only_on_cpu(), None);
        assert_eq!((two.sliding_window, two.local_rope.is_none()), (None, true));
        // As Olmo-3-7B-Instruct has it.
        let three = json!({
            "sliding_window": 4096, "rope_theta": 500_000, "max_position_embeddings": 65_536, "rope_scaling": {
                "attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1, "factor": 8.0,
                "original_max_position_embeddings": 8192, "rope_type": "yarn"
            }
        });
        let c = of_class("Olmo3ForCausalLM", three);
        assert_eq!((local(&c).as_str(), c.sliding_window, c.rope.theta), ("LLL-LL", Some(4096), 500_000.0));
        assert!(matches!(c.rope.scaling, RopeScaling::Yarn { factor: 8.0, .. }), "{:?}", c.rope.scaling);
        let rope = c.local_rope.expect("one of their own");
        assert_eq!((rope.scaling, rope.theta, rope.attention_factor), (RopeScaling::None, 500_000.0, 1.0));
    }
}
