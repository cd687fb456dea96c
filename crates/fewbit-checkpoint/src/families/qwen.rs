//! Qwen 2, 2.5 and 3, dense and with experts.

use super::llama::{LLAMA, LLAMA_CLASS};
use super::mistral::MIXTRAL_EXPERTS;
use super::{Architecture, Class, ExpertKeys, Family, Windows};
use crate::names::Part;
use fewbit_quant::RopeStyle;

pub(super) const FAMILY: Family = Family {
    gguf: &[&QWEN2, &QWEN3, &QWEN2MOE, &QWEN3MOE],
    classes: &[
        QWEN2_CLASS,
        QWEN3_CLASS,
        Class {
            name: "Qwen2MoeForCausalLM",
            model_type: "qwen2_moe",
            gguf: &QWEN2MOE,
            n_kv_heads: Some(16),
            experts: Some(ExpertKeys { shared_width: Some("shared_expert_intermediate_size"), ..EXPERTS }),
            ..QWEN2_CLASS
        },
        Class {
            name: "Qwen3MoeForCausalLM",
            model_type: "qwen3_moe",
            gguf: &QWEN3MOE,
            // Unlike its dense sibling's.
            head_dim: None,
            n_kv_heads: Some(4),
            experts: Some(EXPERTS),
            ..QWEN3_CLASS
        },
    ],
    modules: &[
        (Part::Router, "mlp.gate"),
        (Part::SharedRouter, "mlp.shared_expert_gate"),
        (Part::SharedGate, "mlp.shared_expert.gate_proj"),
        (Part::SharedUp, "mlp.shared_expert.up_proj"),
        (Part::SharedDown, "mlp.shared_expert.down_proj"),
    ],
    experts: Some(("mlp.experts.", &[(Part::Gate, "gate_proj"), (Part::Up, "up_proj"), (Part::Down, "down_proj")])),
    ..Family::NONE
};

pub(super) const QWEN2: Architecture = Architecture { name: "qwen2", rope_style: RopeStyle::HalfSplit, ..LLAMA };

const QWEN3: Architecture = Architecture { name: "qwen3", has_qk_norm: true, ..QWEN2 };

const QWEN2MOE: Architecture = Architecture {
    name: "qwen2moe",
    normalizes_experts: false,
    has_shared_expert: true,
    has_shared_gate: true,
    ..QWEN2
};

const QWEN3MOE: Architecture = Architecture { name: "qwen3moe", ..QWEN3 };

const QWEN2_CLASS: Class = Class {
    name: "Qwen2ForCausalLM",
    model_type: "qwen2",
    gguf: &QWEN2,
    windows: Windows::Switched,
    window: Some(4096),
    n_kv_heads: Some(32),
    has_qkv_bias: true,
    context_length: 32_768,
    ..LLAMA_CLASS
};

const QWEN3_CLASS: Class = Class {
    name: "Qwen3ForCausalLM",
    model_type: "qwen3",
    gguf: &QWEN3,
    head_dim: Some(128),
    has_qkv_bias: false,
    ..QWEN2_CLASS
};

const EXPERTS: ExpertKeys =
    ExpertKeys { count: "num_experts", width: "moe_intermediate_size", is_normalized: false, ..MIXTRAL_EXPERTS };

#[cfg(test)]
mod tests {
    use super::super::tests::{local, of_class, read};
    use crate::CheckpointError;
    use fewbit_quant::RopeStyle;
    use serde_json::json;

    #[test]
    fn qwen_configs_are_read() {
        let biased = read(json!({ "architectures": ["Qwen2ForCausalLM"] })).expect_err("it must have biases");
        assert!(matches!(biased, CheckpointError::MissingTensor { name } if name.ends_with("q_proj.bias")));
        let c = of_class("Qwen3ForCausalLM", json!({ "sliding_window": 64, "max_window_layers": 2 }));
        assert_eq!((c.rope.style, c.head_dim, c.has_qk_norm), (RopeStyle::HalfSplit, 128, true));
        assert_eq!(local(&c), "------", "the window is off unless it is switched on");
        let on = json!({ "sliding_window": 64, "max_window_layers": 2, "use_sliding_window": true });
        assert_eq!(local(&of_class("Qwen3ForCausalLM", on)), "--LLLL");
        let moe =
            json!({ "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 8, "norm_topk_prob": true });
        let experts = of_class("Qwen3MoeForCausalLM", moe.clone()).experts.expect("experts");
        assert_eq!((experts.n_experts, experts.ffn_dim, experts.is_normalized), (16, 8, true));
        let mut sparse = moe;
        sparse["architectures"] = json!(["Qwen3MoeForCausalLM"]);
        sparse["mlp_only_layers"] = json!([0]);
        assert!(matches!(read(sparse), Err(CheckpointError::UnsupportedFeature { .. })));
    }
}
