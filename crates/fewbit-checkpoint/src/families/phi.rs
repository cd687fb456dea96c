//! Phi-3 and Phi-4-mini.

use super::llama::LLAMA_CLASS;
use super::qwen::QWEN2;
use super::{Architecture, Class, Family, Windows};
use crate::names::Part;

pub(super) const FAMILY: Family = Family {
    gguf: &[&PHI3],
    classes: &[Class {
        name: "Phi3ForCausalLM",
        model_type: "phi3",
        gguf: &PHI3,
        windows: Windows::All,
        has_partial_rope: true,
        context_length: 4096,
        original_context: Some(4096),
        rms_norm_eps: 1e-5,
        ..LLAMA_CLASS
    }],
    modules: &[
        (Part::Qkv, "self_attn.qkv_proj"),
        // Rows of the gate, then of the other, as in GGUF files without a gate.
        (Part::Up, "mlp.gate_up_proj"),
    ],
    ..Family::NONE
};

const PHI3: Architecture = Architecture { name: "phi3", ..QWEN2 };

#[cfg(test)]
mod tests {
    use super::super::tests::{local, of_class};
    use crate::RopeScaling;
    use fewbit_quant::RopeStyle;
    use serde_json::json;

    #[test]
    fn phi3_config_is_read() {
        let phi = json!({
            "head_dim": 8, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 4096,
            "max_position_embeddings": 131_072, "sliding_window": 2047,
            "rope_scaling": { "type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0] }
        });
        let c = of_class("Phi3ForCausalLM", phi);
        assert_eq!((c.rope.n_dims, c.rope.style, local(&c).as_str()), (4, RopeStyle::HalfSplit, "LLLLLL"));
        let expected = RopeScaling::LongRope { original_context: 4096, short: vec![1.0, 1.5], long: vec![2.0, 4.0] };
        assert_eq!(c.rope.scaling, expected);
        let factor = (1.0 + 32f64.ln() / 4096f64.ln()).sqrt();
        assert!((c.rope.attention_factor - factor).abs() < 1e-12, "{}", c.rope.attention_factor);
    }
}
