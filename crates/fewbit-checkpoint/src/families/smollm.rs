//! SmolLM3. Its predecessors have the architecture `llama`.

use super::llama::{LLAMA, LLAMA_CLASS};
use super::{Architecture, Class, Family, Windows};

pub(super) const FAMILY: Family = Family {
    gguf: &[&SMOLLM3],
    classes: &[Class {
        name: "SmolLM3ForCausalLM",
        model_type: "smollm3",
        gguf: &SMOLLM3,
        windows: Windows::Switched,
        n_kv_heads: Some(4),
        tied: true,
        rope_theta: 2e6,
        context_length: 32_768,
        nope_every: 4,
        ..LLAMA_CLASS
    }],
    ..Family::NONE
};

const SMOLLM3: Architecture = Architecture { name: "smollm3", nope_every: 4, ..LLAMA };

#[cfg(test)]
mod tests {
    use super::super::tests::of_class;
    use crate::ModelConfig;
    use serde_json::json;

    #[test]
    fn smollm3_config_is_read() {
        let rotated = |c: &ModelConfig| c.layers.iter().map(|layer| layer.has_rope).collect::<Vec<_>>();
        let c = of_class("SmolLM3ForCausalLM", json!({ "use_sliding_window": false, "sliding_window": null }));
        assert_eq!(rotated(&c), [true, true, true, false, true, true]);
        let c = of_class("SmolLM3ForCausalLM", json!({ "no_rope_layers": [1, 0, 1, 0, 1, 0] }));
        assert_eq!(rotated(&c), [true, false, true, false, true, false]);
    }
}
