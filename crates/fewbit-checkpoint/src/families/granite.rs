//! Granite 3, dense and with experts.

use super::llama::{LLAMA, LLAMA_CLASS};
use super::mistral::MIXTRAL_EXPERTS;
use super::{Architecture, Class, Family};
use crate::names::Part;

pub(super) const FAMILY: Family = Family {
    gguf: &[&GRANITE, &GRANITEMOE],
    classes: &[
        GRANITE_CLASS,
        Class {
            name: "GraniteMoeForCausalLM",
            model_type: "granitemoe",
            gguf: &GRANITEMOE,
            experts: Some(MIXTRAL_EXPERTS),
            ..GRANITE_CLASS
        },
    ],
    modules: &[
        // Of every expert, rows of the gate, then of the other.
        (Part::ExpertUps, "block_sparse_moe.input_linear"),
        (Part::ExpertDowns, "block_sparse_moe.output_linear"),
        (Part::Router, "block_sparse_moe.router.layer"),
    ],
    ..Family::NONE
};

const GRANITE: Architecture = Architecture { name: "granite", has_multipliers: true, has_nope_switch: true, ..LLAMA };

const GRANITEMOE: Architecture = Architecture { name: "granitemoe", ..GRANITE };

const GRANITE_CLASS: Class = Class { name: "GraniteForCausalLM", model_type: "granite", gguf: &GRANITE, ..LLAMA_CLASS };

#[cfg(test)]
mod tests {
    use super::super::tests::of_class;
    use serde_json::json;

    #[test]
    fn granite_multipliers_are_read() {
        let c = of_class(
            "GraniteForCausalLM",
            json!({
                "embedding_multiplier": 12, "attention_multiplier": 0.0078125, "residual_multiplier": 0.22, "logits_scaling": 8
            }),
        );
        assert_eq!(
            (c.embedding_scale, c.attention_scale, c.residual_scale, c.logit_scale),
            (12.0, 0.0078125, 0.22, 0.125)
        );
        let plain = of_class("GraniteForCausalLM", json!({}));
        assert_eq!(
            (plain.embedding_scale, plain.attention_scale, plain.logit_scale),
            (1.0, 1.0, 1.0),
            "the class's defaults"
        );
    }

    #[test]
    fn granite_moe_experts_are_read() {
        let moe = json!({ "num_local_experts": 32, "num_experts_per_tok": 8, "residual_multiplier": 0.22 });
        let c = of_class("GraniteMoeForCausalLM", moe);
        let experts = c.experts.expect("experts");
        assert_eq!((experts.n_experts, experts.n_used, experts.ffn_dim, experts.is_normalized), (32, 8, 64, true));
        assert_eq!((c.architecture.as_str(), c.residual_scale), ("granitemoe", 0.22));
    }
}
