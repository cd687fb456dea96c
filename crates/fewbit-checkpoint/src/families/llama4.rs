//! Llama 4, the text part: Scout and Maverick.

use super::llama::{LLAMA, LLAMA_CLASS};
use super::mistral::MIXTRAL_EXPERTS;
use super::{Architecture, Class, ExpertKeys, ExpertLayout, Family, Temperatures, Windows};
use crate::config::{AttentionTemperature, Gating, QkNorm};
use crate::names::Part;

pub(super) const FAMILY: Family = Family {
    gguf: &[&LLAMA4],
    classes: &[Class {
        name: "Llama4ForCausalLM",
        model_type: "llama4_text",
        gguf: &LLAMA4,
        windows: Windows::Chunks,
        window: Some(8192),
        head_dim: Some(128),
        ffn_width: "intermediate_size_mlp",
        n_heads: Some(40),
        n_kv_heads: Some(8),
        temperatures: Temperatures::Llama4,
        rope_theta: 500_000.0,
        context_length: 131_072,
        rms_norm_eps: 1e-5,
        experts: Some(ExpertKeys {
            shared_width: Some("intermediate_size"),
            is_normalized: false,
            layout: ExpertLayout::Columns,
            ..MIXTRAL_EXPERTS
        }),
        nope_every: 4,
        ..LLAMA_CLASS
    }],
    wrappers: &["Llama4ForConditionalGeneration"],
    modules: &[
        (Part::Gate, "feed_forward.gate_proj"),
        (Part::Up, "feed_forward.up_proj"),
        (Part::Down, "feed_forward.down_proj"),
        (Part::Router, "feed_forward.router"),
        (Part::ExpertUps, "feed_forward.experts.gate_up_proj"),
        (Part::ExpertDowns, "feed_forward.experts.down_proj"),
        (Part::SharedGate, "feed_forward.shared_expert.gate_proj"),
        (Part::SharedUp, "feed_forward.shared_expert.up_proj"),
        (Part::SharedDown, "feed_forward.shared_expert.down_proj"),
    ],
    ..Family::NONE
};

/// GGUF files leave out what all models of this architecture have: chunks of 8192, in all layers but every fourth,
/// which has no position embedding and scales its queries. With a window of 0, no layer does any of this. Of the two
/// models, the one with 128 experts does not normalize queries and keys.
const LLAMA4: Architecture = Architecture {
    name: "llama4",
    has_same_pairs: true,
    has_qk_norm: true,
    qk_norm: QkNorm::Plain,
    no_qk_norm: Some(128),
    global_every: 4,
    window: Some(8192),
    has_chunks: true,
    temperature: Some(AttentionTemperature { scale: 0.1f32 as f64, length: 8192, offset: 1, only_without_rope: true }),
    has_global_nope: true,
    normalizes_experts: false,
    gating: Gating::Sigmoid,
    scales_expert_inputs: true,
    has_shared_expert: true,
    ..LLAMA
};

#[cfg(test)]
mod tests {
    use super::super::tests::{config, local};
    use crate::{AttentionTemperature, Gating, QkNorm, RopeScaling};
    use serde_json::{Value, json};

    /// As Maverick has it, with fewer and narrower layers.
    fn text() -> Value {
        json!({
            "model_type": "llama4_text", "attention_chunk_size": 8192, "attn_scale": 0.1, "floor_scale": 8192,
            "attn_temperature_tuning": 4, "for_llm_compressor": false, "head_dim": 128, "hidden_size": 32,
            "interleave_moe_layer_step": 2, "intermediate_size": 64, "intermediate_size_mlp": 128, "vocab_size": 3,
            "max_position_embeddings": 1_048_576, "moe_layers": [1, 3, 5, 7], "no_rope_layers": [],
            "num_attention_heads": 40, "num_experts_per_tok": 1, "num_hidden_layers": 8, "num_key_value_heads": 8,
            "num_local_experts": 128, "rope_scaling": null, "rope_theta": 500_000.0, "use_qk_norm": false
        })
    }

    #[test]
    fn llama4_text_config_is_read() {
        let json = json!({ "architectures": ["Llama4ForConditionalGeneration"], "text_config": text() });
        let c = config(json);
        assert_eq!((local(&c).as_str(), c.sliding_window, c.has_chunks), ("LLL-LLL-", Some(8192), true));
        assert!(
            c.layers
                .iter()
                .enumerate()
                .all(|(i, layer)| layer.has_rope == layer.is_local && layer.has_experts == (i % 2 == 1))
        );
        assert_eq!((c.has_qk_norm, c.ffn_dim, c.rope.scaling.clone()), (false, 128, RopeScaling::None));
        let temperature =
            AttentionTemperature { scale: 0.1f32 as f64, length: 8192, offset: 1, only_without_rope: true };
        assert_eq!(c.attention_temperature, Some(temperature));
        let e = c.experts.expect("experts");
        assert_eq!((e.n_used, e.ffn_dim, e.shared_ffn_dim, e.gating), (1, 64, Some(64), Gating::Sigmoid));
        assert!(e.scales_inputs && !e.is_normalized && !e.has_shared_gate);
        assert_eq!(c.only_on_cpu(), None);
        assert!(c.to_gguf().is_ok(), "all of it can be said in a GGUF file");
    }

    #[test]
    fn scouts_norm_and_a_model_without_chunks_are_read() {
        let mut scout = text();
        let object = scout.as_object_mut().expect("an object");
        object.extend([
            ("use_qk_norm".to_owned(), json!(true)),
            ("num_local_experts".to_owned(), json!(16)),
            ("interleave_moe_layer_step".to_owned(), json!(1)),
            ("attention_chunk_size".to_owned(), json!(null)),
            ("attn_temperature_tuning".to_owned(), json!(false)),
        ]);
        object.remove("moe_layers");
        let c = config(json!({ "architectures": ["Llama4ForConditionalGeneration"], "text_config": scout }));
        assert_eq!((c.qk_norm_of(0), c.qk_norm_of(3), local(&c).as_str()), (Some(QkNorm::Plain), None, "--------"));
        assert!(c.attention_temperature.is_none() && !c.has_chunks && c.layers.iter().all(|layer| layer.has_experts));
    }
}
