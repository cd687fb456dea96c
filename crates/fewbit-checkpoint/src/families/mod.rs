//! The families of models, one file each: what GGUF files and Hugging Face folders of a family say, what holds where they
//! do not say it, and what only their files call a tensor. Every other table of architectures, classes and names is made
//! from [`FAMILIES`].
//!
//! To add a family, write its file, name it here, and add a tiny model of it with its logits to the goldens of
//! `fewbit-model` (`tests/golden/reference.py`, and `hf_models.py` for folders).

mod gemma;
mod granite;
mod llama;
mod mistral;
mod phi;
mod qwen;
mod smollm;

use crate::names::Part;
use fewbit_quant::{GateFunction, RopeStyle};

static FAMILIES: [Family; 7] =
    [llama::FAMILY, mistral::FAMILY, smollm::FAMILY, granite::FAMILY, qwen::FAMILY, phi::FAMILY, gemma::FAMILY];

/// What one family's files have in common.
struct Family {
    /// Its architectures in GGUF files.
    gguf: &'static [&'static Architecture],
    /// Its classes in `config.json`.
    classes: &'static [Class],
    /// Classes of vision models with one of these as `text_config`, whose tensors have a prefix and stand next to those for
    /// images, which are passed over.
    wrappers: &'static [&'static str],
    /// Modules of a layer in Hugging Face files, besides those that all have.
    modules: &'static [(Part, &'static str)],
    /// The matrices of one expert in Hugging Face files: what comes before its number, and what after it.
    experts: Option<(&'static str, [(Part, &'static str); 3])>,
}

impl Family {
    /// One of nothing.
    const NONE: Self = Self { gguf: &[], classes: &[], wrappers: &[], modules: &[], experts: None };
}

/// An architecture of GGUF files that the one decoder can run, as a row of data.
#[derive(Clone, Copy)]
pub(crate) struct Architecture {
    /// `general.architecture`, and the prefix of the model's metadata keys.
    pub(crate) name: &'static str,
    /// Which elements of a head are pairs. Where they are interleaved, queries and keys are in another order than in
    /// Hugging Face's files.
    pub(crate) rope_style: RopeStyle,
    pub(crate) gate: GateFunction,
    pub(crate) has_qk_norm: bool,
    pub(crate) has_post_norms: bool,
    /// Token embeddings are scaled by the root of their width.
    pub(crate) scales_embeddings: bool,
    /// Keys scale embeddings, residuals and logits.
    pub(crate) has_multipliers: bool,
    /// Every how many layers one sees everything, in a model with a sliding window; 0 for none.
    pub(crate) global_every: usize,
    /// The window of a file that names none.
    pub(crate) window: Option<usize>,
    /// Base of the rotary frequencies in local layers, where it is another one: `Some(None)` is that of all layers
    /// but without their scaling.
    pub(crate) local_theta: Option<Option<f64>>,
    /// Every how many layers one has no position embedding; 0 for none.
    pub(crate) nope_every: usize,
    /// `rope.scaling.finetuned = false` stands for no position embedding in any layer.
    pub(crate) has_nope_switch: bool,
    /// Caps of the attention scores and of the logits in a file that names none.
    pub(crate) softcaps: (Option<f32>, Option<f32>),
    /// Layer counts of models whose attention scale comes from `dim / n_heads` instead of `head_dim`.
    pub(crate) scaled_by_width: &'static [usize],
    /// Weights of the experts used are divided by their sum.
    pub(crate) normalizes_experts: bool,
    /// The shared expert has a gate.
    pub(crate) has_shared_gate: bool,
}

/// Which layers see only a window.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Windows {
    /// No layer, whatever the file says.
    None,
    /// All layers, in a file that has a window.
    All,
    /// Those that `layer_types` says; else all but every n-th.
    Pattern(usize),
    /// As `layer_types` says, else those from `max_window_layers` on; none without `use_sliding_window`.
    Switched,
}

/// What `config.json` calls the numbers of experts.
#[derive(Clone, Copy)]
pub(crate) struct ExpertKeys {
    pub(crate) count: &'static str,
    /// The inner width of one.
    pub(crate) width: &'static str,
    /// The inner width of the shared one, which has a gate.
    pub(crate) shared_width: Option<&'static str>,
    /// The weights of the experts used are divided by their sum without `norm_topk_prob`.
    pub(crate) is_normalized: bool,
}

/// A class of `config.json`.
#[derive(Clone, Copy)]
pub(crate) struct Class {
    /// In `architectures`.
    pub(crate) name: &'static str,
    /// `model_type`, for files that name no class.
    pub(crate) model_type: &'static str,
    /// The same architecture in GGUF files, whose tensors this one's become.
    pub(crate) gguf: &'static Architecture,
    pub(crate) windows: Windows,
    /// Window of a file that names none.
    pub(crate) window: Option<usize>,
    pub(crate) head_dim: Option<usize>,
    /// Heads of a file that does not say: the text part of a vision model leaves out what is at its default, other
    /// files do not.
    pub(crate) n_heads: Option<usize>,
    /// Heads of keys and values of a file that does not say; else as many as queries have.
    pub(crate) n_kv_heads: Option<usize>,
    /// Output and embedding are one matrix in files that do not say.
    pub(crate) tied: bool,
    /// Q, k and v have biases without `attention_bias`.
    pub(crate) has_qkv_bias: bool,
    /// Gemma's conventions: norms whose weights count from 1, scaled embeddings, GELU.
    pub(crate) is_gemma: bool,
    /// Dimensions of a head that scores are scaled by, and caps of scores and of logits, in files that do not say.
    pub(crate) scaled_by: Option<f64>,
    pub(crate) softcaps: (Option<f64>, Option<f64>),
    /// `partial_rotary_factor` is known here; elsewhere nothing reads it.
    pub(crate) has_partial_rope: bool,
    /// Queries grow with their position, as `llama_4_scaling_beta` says.
    pub(crate) has_temperature: bool,
    pub(crate) rope_theta: f64,
    /// Base in local layers of a file that names none.
    pub(crate) local_theta: Option<f64>,
    pub(crate) context_length: usize,
    /// Positions of the first training in a file that scales from them without naming them at its top.
    pub(crate) original_context: Option<usize>,
    pub(crate) rms_norm_eps: f64,
    pub(crate) experts: Option<ExpertKeys>,
    /// Every how many layers one has no position embedding, in files without `no_rope_layers`; 0 for none.
    pub(crate) nope_every: usize,
}

/// The names of all architectures of GGUF files that are known.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|family| family.gguf).map(|architecture| architecture.name)
}

/// The names of all classes of `config.json` that are known, vision models' with a known text part included.
pub fn classes() -> impl Iterator<Item = &'static str> {
    let classes = FAMILIES.iter().flat_map(|family| family.classes).map(|class| class.name);
    classes.chain(FAMILIES.iter().flat_map(|family| family.wrappers).copied())
}

/// The architecture of this name.
pub(crate) fn architecture(name: &str) -> Option<&'static Architecture> {
    FAMILIES.iter().flat_map(|family| family.gguf).copied().find(|architecture| architecture.name == name)
}

/// The class for which this is true.
pub(crate) fn class(is_it: impl Fn(&Class) -> bool) -> Option<Class> {
    FAMILIES.iter().flat_map(|family| family.classes).copied().find(|class| is_it(class))
}

/// Whether this is the class of a vision model with a known text part.
pub(crate) fn is_wrapper(class: &str) -> bool {
    FAMILIES.iter().any(|family| family.wrappers.contains(&class))
}

/// What families call modules of a layer besides those that all have.
pub(crate) fn modules() -> impl Iterator<Item = (Part, &'static str)> {
    FAMILIES.iter().flat_map(|family| family.modules).copied()
}

/// The same, those of this architecture's family first.
pub(crate) fn modules_of(architecture: &str) -> impl Iterator<Item = (Part, &'static str)> + use<'_> {
    let has = move |family: &&Family| family.gguf.iter().any(|known| known.name == architecture);
    FAMILIES.iter().filter(has).flat_map(|family| family.modules).copied().chain(modules())
}

/// The part and the number of an expert's module in a layer.
pub(crate) fn expert(module: &str) -> Option<(Part, usize)> {
    FAMILIES.iter().filter_map(|family| family.experts.as_ref()).find_map(|(prefix, parts)| {
        let (expert, name) = module.strip_prefix(prefix)?.split_once('.')?;
        let (part, _) = parts.iter().find(|(_, known)| *known == name)?;
        Some((*part, expert.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    //! What the families' own tests read configurations with, and what holds for all of them.

    use super::{FAMILIES, architecture, architectures, classes};
    use crate::{CheckpointError, HfModel, ModelConfig, WeightSource};
    use serde_json::{Value, json};
    use std::collections::HashSet;
    use std::fs;

    /// Reads a configuration through a folder that has nothing but an embedding.
    pub(super) fn read(mut config: Value) -> Result<ModelConfig, CheckpointError> {
        let folder = tempfile::tempdir().expect("a folder");
        let sizes = json!({
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 3, "max_position_embeddings": 8192, "tie_word_embeddings": true,
        });
        for (key, value) in sizes.as_object().expect("an object") {
            config.as_object_mut().expect("an object").entry(key.as_str()).or_insert(value.clone());
        }
        fs::write(folder.path().join("config.json"), config.to_string()).expect("writable");
        let header = br#"{"model.embed_tokens.weight":{"dtype":"F16","shape":[3,32],"data_offsets":[0,192]}}"#;
        let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 192]].concat();
        fs::write(folder.path().join("model.safetensors"), file).expect("writable");
        HfModel::open(folder.path())?.config()
    }

    pub(super) fn config(json: Value) -> ModelConfig {
        read(json).expect("a valid configuration")
    }

    pub(super) fn of_class(class: &str, mut more: Value) -> ModelConfig {
        more.as_object_mut().expect("an object").insert("architectures".to_owned(), json!([class]));
        config(more)
    }

    /// `L` for a layer with a window, `-` for one that sees everything.
    pub(super) fn local(config: &ModelConfig) -> String {
        config.layers.iter().map(|layer| if layer.is_local { 'L' } else { '-' }).collect()
    }

    #[test]
    fn every_name_is_of_one_family_and_every_class_has_an_architecture() {
        let mut names = HashSet::new();
        assert!(architectures().chain(classes()).all(|name| names.insert(name)));
        let mut types = HashSet::new();
        for class in FAMILIES.iter().flat_map(|family| family.classes) {
            assert!(types.insert(class.model_type), "{}", class.name);
            assert!(architecture(class.gguf.name).is_some(), "{}", class.name);
        }
        let mut modules = HashSet::new();
        assert!(super::modules().all(|(_, name)| modules.insert(name)));
    }
}
