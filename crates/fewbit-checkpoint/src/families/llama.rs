//! Llama and models with its structure: TinyLlama, SmolLM 1 and 2, CodeLlama. Other families are based on its rows.

use super::{Architecture, Class, Family, Temperatures, Windows};
use crate::config::{Gating, NormKind, QkNorm};
use crate::names::Part;
use fewbit_quant::{GateFunction, RopeStyle};

pub(super) const FAMILY: Family = Family { gguf: &[&LLAMA], classes: &[LLAMA_CLASS], ..Family::NONE };

pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    rope_style: RopeStyle::Interleaved,
    has_same_pairs: false,
    gate: GateFunction::Silu,
    is_gated: true,
    has_one_mixer: false,
    has_pre_norms: true,
    norm: NormKind::Rms,
    is_parallel: false,
    multiplies_logits: false,
    has_qk_norm: false,
    qk_norm: QkNorm::Heads,
    no_qk_norm: None,
    has_sinks: false,
    has_output_gate: false,
    recurrent: None,
    output_norm: Part::OutputNorm,
    has_further_layers: false,
    has_mtp: false,
    has_rope_sections: false,
    has_layer_norm_eps: false,
    has_post_norms: false,
    ffn_norm: Part::FfnNorm,
    after_attention: Part::FfnNorm,
    scales_embeddings: false,
    has_multipliers: false,
    global_every: 0,
    window: None,
    has_chunks: false,
    temperature: None,
    truncates_yarn: true,
    local_theta: None,
    nope_every: 0,
    has_global_nope: false,
    has_nope_switch: false,
    softcaps: (None, None),
    scaled_by_width: &[],
    normalizes_experts: true,
    gating: Gating::Softmax,
    scales_expert_inputs: false,
    has_shared_expert: false,
    has_shared_gate: false,
    counts_shared_experts: false,
    is_latent: false,
    has_dense_lead: false,
    has_groups: false,
    groups: &[],
    adds_two_per_group: false,
    has_optional_qk_norm: false,
    has_local_heads: false,
    has_per_layer_embeddings: false,
    has_value_norm: false,
    has_layer_scales: false,
    attention_scale: None,
    experts_next_to_mlp: false,
};

pub(super) const LLAMA_CLASS: Class = Class {
    name: "LlamaForCausalLM",
    model_type: "llama",
    gguf: &LLAMA,
    gguf_of_experts: None,
    windows: Windows::None,
    window: None,
    head_dim: None,
    eps: "rms_norm_eps",
    ffn_width: "intermediate_size",
    n_heads: None,
    n_kv_heads: None,
    tied: false,
    has_qkv_bias: false,
    is_gemma: false,
    norms_from_one: false,
    scaled_by: None,
    softcaps: (None, None),
    has_partial_rope: false,
    has_proportional_rope: false,
    per_layer_dim: None,
    has_ntk_alpha: false,
    rope_fraction: 1.0,
    temperatures: Temperatures::None,
    rope_theta: 10_000.0,
    local_theta: None,
    context_length: 2048,
    original_context: None,
    rms_norm_eps: 1e-6,
    experts: None,
    nope_every: 0,
    latent: None,
    space: None,
};

#[cfg(test)]
mod tests {
    use super::super::tests::{config, of_class};
    use fewbit_quant::{GateFunction, RopeStyle};
    use serde_json::json;

    #[test]
    fn llama_config_is_read() {
        let c = of_class("LlamaForCausalLM", json!({ "sliding_window": 4096 }));
        assert_eq!((c.architecture.as_str(), c.head_dim, c.n_kv_heads, c.sliding_window), ("llama", 8, 2, None));
        assert_eq!((c.rope.style, c.rope.theta, c.rms_norm_eps), (RopeStyle::Interleaved, 10_000.0, 1e-6));
        assert_eq!((c.gate, c.attention_scale), (GateFunction::Silu, 1.0 / 8f32.sqrt()));
        assert!(c.local_rope.is_none() && c.experts.is_none() && !c.has_qk_norm && !c.has_post_norms);
        assert_eq!(of_class("LlamaForCausalLM", json!({ "head_dim": 16 })).head_dim, 16);
        assert_eq!(config(json!({ "model_type": "mistral" })).sliding_window, Some(4096), "by its type");
    }
}
