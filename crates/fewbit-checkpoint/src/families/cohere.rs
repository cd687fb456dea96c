//! Cohere's Command R, Command R7B and Aya: layer norms without bias, and attention next to the feed-forward block. Command
//! R+, whose queries and keys have layer norms, is refused.

use super::llama::{LLAMA, LLAMA_CLASS};
use super::{Architecture, Class, Family, Windows};
use crate::config::NormKind;

pub(super) const FAMILY: Family = Family {
    gguf: &[&COMMAND_R, &COHERE2],
    classes: &[
        COHERE_CLASS,
        Class {
            name: "Cohere2ForCausalLM",
            model_type: "cohere2",
            gguf: &COHERE2,
            windows: Windows::Pattern(4),
            window: Some(4096),
            rope_theta: 10_000.0,
            ..COHERE_CLASS
        },
    ],
    ..Family::NONE
};

const COMMAND_R: Architecture = Architecture {
    name: "command-r",
    has_same_pairs: true,
    norm: NormKind::Layer,
    is_parallel: true,
    multiplies_logits: true,
    ..LLAMA
};

const COHERE2: Architecture = Architecture { name: "cohere2", global_every: 4, has_global_nope: true, ..COMMAND_R };

const COHERE_CLASS: Class = Class {
    name: "CohereForCausalLM",
    model_type: "cohere",
    gguf: &COMMAND_R,
    eps: "layer_norm_eps",
    tied: true,
    rope_theta: 500_000.0,
    context_length: 8192,
    rms_norm_eps: 1e-5,
    ..LLAMA_CLASS
};

#[cfg(test)]
mod tests {
    use super::super::tests::{local, of_class, read};
    use crate::{CheckpointError, NormKind};
    use serde_json::json;

    #[test]
    fn cohere_configs_are_read() {
        // As c4ai-command-r7b-12-2024 has it.
        let seven = json!({
            "head_dim": 128, "layer_norm_eps": 1e-5, "logit_scale": 0.25, "rope_theta": 50_000, "rotary_pct": 1.0,
            "sliding_window": 4096, "sliding_window_pattern": 4, "use_embedding_sharing": true, "use_gated_activation": true,
            "use_parallel_block": true, "use_parallel_embedding": false, "position_embedding_type": "rope_gptj"
        });
        let c = of_class("Cohere2ForCausalLM", seven);
        assert_eq!((local(&c).as_str(), c.sliding_window, c.logit_scale), ("LLL-LL", Some(4096), 0.25));
        assert!(c.layers.iter().all(|layer| layer.has_rope == layer.is_local) && c.is_parallel);
        assert_eq!((c.norm, c.only_on_cpu()), (NormKind::Layer, None));
        assert!(c.to_gguf().is_ok(), "all of it can be said in a GGUF file");
        let c = of_class("CohereForCausalLM", json!({ "model_max_length": 131_072, "rope_theta": 8_000_000.0 }));
        assert_eq!((c.context_length, c.logit_scale, c.sliding_window), (131_072, 0.0625, None));
        let plus = json!({ "architectures": ["CohereForCausalLM"], "use_qk_norm": true });
        assert!(matches!(read(plus), Err(CheckpointError::UnsupportedFeature { key, .. }) if key == "use_qk_norm"));
    }
}
