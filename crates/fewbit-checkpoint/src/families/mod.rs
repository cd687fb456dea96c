//! The families of models, one file each: the properties of their GGUF files and Hugging Face folders, defaults for
//! missing values, and tensor names that only this family uses. Every other table of architectures, classes and names
//! is derived from [`FAMILIES`].
//!
//! To add a family, write its file, name it here, and add a tiny model of it with its logits to the goldens of
//! `fewbit-model` (`tests/golden/reference.py`, and `hf_models.py` for folders).

mod cohere;
mod deepseek;
mod exaone;
mod gemma;
mod glm;
mod gpt_oss;
mod granite;
mod hunyuan;
mod lfm;
mod llama;
mod llama4;
mod mistral;
mod nemotron;
mod olmo;
mod phi;
mod qwen;
mod qwen_next;
mod seed;
mod smollm;

use crate::config::{AttentionTemperature, Gating, LatentConfig, NormKind, QkNorm};
use crate::names::Part;
use fewbit_quant::{GateFunction, RopeStyle};

static FAMILIES: [Family; 19] = [
    llama::FAMILY,
    mistral::FAMILY,
    smollm::FAMILY,
    granite::FAMILY,
    qwen::FAMILY,
    qwen_next::FAMILY,
    lfm::FAMILY,
    nemotron::FAMILY,
    phi::FAMILY,
    gemma::FAMILY,
    gpt_oss::FAMILY,
    llama4::FAMILY,
    olmo::FAMILY,
    glm::FAMILY,
    exaone::FAMILY,
    seed::FAMILY,
    hunyuan::FAMILY,
    deepseek::FAMILY,
    cohere::FAMILY,
];

/// The properties that the files of one family share.
struct Family {
    /// Its architectures in GGUF files.
    gguf: &'static [&'static Architecture],
    /// Its classes in `config.json`.
    classes: &'static [Class],
    /// Classes of vision models that have one of these classes as `text_config`. Their text tensors have a prefix; the
    /// vision tensors next to them are ignored.
    wrappers: &'static [&'static str],
    /// Names of modules of a layer in Hugging Face files, in addition to those that all families share.
    modules: &'static [(Part, &'static str)],
    /// The names of an expert's matrices in Hugging Face files: the part before the expert's number, and the parts
    /// after it.
    experts: Option<(&'static str, &'static [(Part, &'static str)])>,
}

impl Family {
    /// A family without entries, as a base for others.
    const NONE: Self = Self { gguf: &[], classes: &[], wrappers: &[], modules: &[], experts: None };
}

/// An architecture of GGUF files that the one decoder can run, as a row of data.
#[derive(Clone, Copy)]
pub(crate) struct Architecture {
    /// `general.architecture`, and the prefix of the model's metadata keys.
    pub(crate) name: &'static str,
    /// Which elements of a head form pairs. If they are interleaved, queries and keys have another order than in
    /// Hugging Face's files.
    pub(crate) rope_style: RopeStyle,
    /// Whether Hugging Face's files have the same pairs, although they are interleaved.
    pub(crate) has_same_pairs: bool,
    pub(crate) gate: GateFunction,
    /// Whether feed-forward blocks have a gate.
    pub(crate) is_gated: bool,
    /// Whether a layer is attention, a state or a feed-forward block, and not two of them.
    pub(crate) has_one_mixer: bool,
    pub(crate) has_pre_norms: bool,
    pub(crate) norm: NormKind,
    /// Whether attention and the feed-forward block of a layer have the same input.
    pub(crate) is_parallel: bool,
    /// Whether `logit_scale` is a factor, not a divisor.
    pub(crate) multiplies_logits: bool,
    pub(crate) has_qk_norm: bool,
    pub(crate) qk_norm: QkNorm,
    /// The number of experts of models of this architecture that have no norm of queries and keys.
    pub(crate) no_qk_norm: Option<usize>,
    pub(crate) has_sinks: bool,
    /// Whether queries come with gates of the outputs.
    pub(crate) has_output_gate: bool,
    /// What layers without attention compute.
    pub(crate) recurrent: Option<RecurrentKind>,
    /// The norm after the last layer in GGUF files: its own name, or one that its first files had by mistake.
    pub(crate) output_norm: Part,
    /// Whether files may have further layers after the last one, which predict further tokens and are left out.
    pub(crate) has_further_layers: bool,
    /// Whether the first of these can draft tokens: it has plain attention.
    pub(crate) has_mtp: bool,
    /// Whether other programs need `rope.dimension_sections` in its files.
    pub(crate) has_rope_sections: bool,
    /// Whether other programs need `attention.layer_norm_epsilon` in its files, although its norms are RMS norms.
    pub(crate) has_layer_norm_eps: bool,
    pub(crate) has_post_norms: bool,
    /// The name of the norm before the feed-forward block in GGUF files: its own, or that of the norm after attention.
    pub(crate) ffn_norm: Part,
    /// What Hugging Face's files call `post_attention_layernorm`, under its name in GGUF files.
    pub(crate) after_attention: Part,
    /// Whether token embeddings are scaled by the square root of their width.
    pub(crate) scales_embeddings: bool,
    /// Whether metadata keys specify factors of embeddings, residuals and logits.
    pub(crate) has_multipliers: bool,
    /// In a model with a sliding window, every n-th layer is global; 0 for none.
    pub(crate) global_every: usize,
    /// The window of a file that does not specify one.
    pub(crate) window: Option<usize>,
    /// Whether the window does not slide.
    pub(crate) has_chunks: bool,
    /// How queries are scaled by position in a file that does not specify it.
    pub(crate) temperature: Option<AttentionTemperature>,
    /// Whether the ends of YaRN's ramp are rounded to whole pairs. GGUF files do not say so.
    pub(crate) truncates_yarn: bool,
    /// Base of the rotary frequencies in local layers, if it differs: `Some(None)` is the base of all layers without
    /// their scaling.
    pub(crate) local_theta: Option<Option<f64>>,
    /// Every n-th layer has no position embedding; 0 for none.
    pub(crate) nope_every: usize,
    /// Whether the global layers of a model with a window have no position embedding.
    pub(crate) has_global_nope: bool,
    /// Whether `rope.scaling.finetuned = false` means that no layer has a position embedding.
    pub(crate) has_nope_switch: bool,
    /// Caps of the attention scores and of the logits in a file that does not specify them.
    pub(crate) softcaps: (Option<f32>, Option<f32>),
    /// Numbers of layers of models whose attention scale is derived from `dim / n_heads` instead of `head_dim`.
    pub(crate) scaled_by_width: &'static [usize],
    /// Whether the weights of the used experts are divided by their sum.
    pub(crate) normalizes_experts: bool,
    pub(crate) gating: Gating,
    pub(crate) scales_expert_inputs: bool,
    /// Whether there is a shared expert, as wide as a routed one if the file does not specify it.
    pub(crate) has_shared_expert: bool,
    /// Whether the shared expert has a gate.
    pub(crate) has_shared_gate: bool,
    /// Whether the width of the shared expert is given as a number of routed ones.
    pub(crate) counts_shared_experts: bool,
    /// Whether attention is multi-head latent attention.
    pub(crate) is_latent: bool,
    /// Whether the first layers can have no experts.
    pub(crate) has_dense_lead: bool,
    /// Whether experts can be in groups, and scores become weights as the file says.
    pub(crate) has_groups: bool,
    /// Groups, and how many of them are used, in files that do not say so, by the number of experts.
    pub(crate) groups: &'static [(usize, [usize; 2])],
    /// Whether a group's weight is the sum of its two best, even if weights are a softmax.
    pub(crate) adds_two_per_group: bool,
    /// Whether files without the norms of queries and keys are of models that do not have them.
    pub(crate) has_optional_qk_norm: bool,
    /// Whether the heads of local layers can differ from those of global ones, and the last layers can share keys and
    /// values of earlier ones.
    pub(crate) has_local_heads: bool,
    /// Whether layers can have embeddings of their own.
    pub(crate) has_per_layer_embeddings: bool,
    /// Whether values have a norm, and global layers can lack the matrix of values.
    pub(crate) has_value_norm: bool,
    /// Whether layers can have factors.
    pub(crate) has_layer_scales: bool,
    /// Factor of the attention scores in a file that does not specify it, if it does not follow from the size of heads.
    pub(crate) attention_scale: Option<f32>,
    /// Whether layers with experts have a plain feed-forward block too, each with norms of its own.
    pub(crate) experts_next_to_mlp: bool,
}

/// What layers with a state of fixed size compute.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum RecurrentKind {
    /// The gated delta rule. In GGUF files, heads are tiled or not: see `DeltaNetConfig`.
    DeltaNet { is_tiled: bool },
    /// A short convolution, in layers without key and value heads.
    ShortConvolution,
    /// A state space, in layers without key and value heads.
    StateSpace,
}

/// Which layers see only a window.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Windows {
    /// No layer, whatever the file says.
    None,
    /// All layers, in a file that has a window.
    All,
    /// Those given by `layer_types`; otherwise all except every n-th.
    Pattern(usize),
    /// As `Pattern`, but the last one is always global.
    EndsGlobal(usize),
    /// As `Pattern(0)`, with chunks of `attention_chunk_size`: otherwise all that have a position embedding.
    Chunks,
    /// Those given by `layer_types`, otherwise those from `max_window_layers` on; none without `use_sliding_window`.
    Switched,
}

/// How queries are scaled by position.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Temperatures {
    None,
    /// As given by `llama_4_scaling_beta`.
    Mistral,
    /// As given by `attn_scale`, in layers without position embedding.
    Llama4,
}

/// How the matrices of a layer's experts lie in a tensor that holds all of them.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum ExpertLayout {
    /// Of every expert, the rows of the gate, then those of the other matrix; a row for each output.
    Rows,
    /// As `Rows`, and GGUF files have them so too.
    Joint,
    /// Of every expert, a row for each input: the columns of the gate, then those of the other matrix.
    Columns,
    /// As `Columns`, with every column of the gate before one of the other matrix. If they are quantized as MXFP4, they
    /// are rows.
    Interleaved,
}

/// The keys of `config.json` for the sizes of a state space, and what they are in files without them.
#[derive(Clone, Copy)]
pub(crate) struct SpaceKeys {
    pub(crate) n_groups: (&'static str, usize),
    pub(crate) n_heads: (&'static str, usize),
    pub(crate) state_dim: (&'static str, usize),
    pub(crate) head_dim: (&'static str, usize),
    pub(crate) n_taps: (&'static str, usize),
}

/// The keys of `config.json` for the numbers and sizes of experts.
#[derive(Clone, Copy)]
pub(crate) struct ExpertKeys {
    pub(crate) count: &'static str,
    /// The inner width of an expert.
    pub(crate) width: &'static str,
    /// The inner width of the shared expert.
    pub(crate) shared_width: Option<&'static str>,
    /// Whether the weights of the used experts are divided by their sum if `norm_topk_prob` is missing.
    pub(crate) is_normalized: bool,
    pub(crate) layout: ExpertLayout,
    /// The key of the width of the shared expert as a number of routed ones.
    pub(crate) shared_count: Option<&'static str>,
    /// How many of the first layers have no experts, if the file does not specify it.
    pub(crate) n_dense: usize,
    /// Factor of the weights, if the file does not specify it.
    pub(crate) scale: f64,
    /// Groups, and how many of them are used, if the file does not specify it.
    pub(crate) groups: Option<[usize; 2]>,
    /// The key of the number of experts that each token goes through.
    pub(crate) used: &'static str,
    /// The key that says whether there are experts, in classes with and without.
    pub(crate) switch: Option<&'static str>,
    /// How scores become weights, if not as the architecture's files say.
    pub(crate) gating: Option<Gating>,
}

/// A class of `config.json`.
#[derive(Clone, Copy)]
pub(crate) struct Class {
    /// The name in `architectures`.
    pub(crate) name: &'static str,
    /// The `model_type`, for files that name no class.
    pub(crate) model_type: &'static str,
    /// The same architecture in GGUF files; tensors are converted to its names and layout.
    pub(crate) gguf: &'static Architecture,
    /// That of models with experts, if their GGUF files have another one.
    pub(crate) gguf_of_experts: Option<&'static Architecture>,
    pub(crate) windows: Windows,
    /// The window of a file that does not specify one.
    pub(crate) window: Option<usize>,
    pub(crate) head_dim: Option<usize>,
    /// The key of the epsilon of norms.
    pub(crate) eps: &'static str,
    /// The key of the inner width of layers without experts.
    pub(crate) ffn_width: &'static str,
    /// Number of heads if the file does not specify it: the text part of a vision model leaves out values that equal
    /// the default, other files do not.
    pub(crate) n_heads: Option<usize>,
    /// Number of key and value heads if the file does not specify it; otherwise as many as query heads.
    pub(crate) n_kv_heads: Option<usize>,
    /// Whether output and embedding are one matrix if the file does not specify it.
    pub(crate) tied: bool,
    /// Whether q, k and v have biases even without `attention_bias`.
    pub(crate) has_qkv_bias: bool,
    /// Whether the model follows Gemma's conventions: scaled embeddings, GELU.
    pub(crate) is_gemma: bool,
    /// Whether the weights of norms are stored minus 1.
    pub(crate) norms_from_one: bool,
    /// Head size that scores are scaled by, and caps of scores and of logits, if the file does not specify them.
    pub(crate) scaled_by: Option<f64>,
    pub(crate) softcaps: (Option<f64>, Option<f64>),
    /// Whether this class reads `partial_rotary_factor`, which others ignore.
    pub(crate) has_partial_rope: bool,
    /// Whether global layers can have a proportional rotation, which leaves the last pairs of a head as they are; they
    /// have it if the file does not specify any.
    pub(crate) has_proportional_rope: bool,
    /// Width of what a layer gets of a token's per-layer embedding, if the file does not specify it.
    pub(crate) per_layer_dim: Option<usize>,
    /// Whether `alpha` of a dynamic scaling changes the base of the rotary frequencies, whatever the position.
    pub(crate) has_ntk_alpha: bool,
    /// The part of a head that is rotated if the file does not specify it.
    pub(crate) rope_fraction: f64,
    /// How queries are scaled by position.
    pub(crate) temperatures: Temperatures,
    pub(crate) rope_theta: f64,
    /// Base of the rotary frequencies in local layers if the file does not specify it.
    pub(crate) local_theta: Option<f64>,
    pub(crate) context_length: usize,
    /// Context length of pre-training, for files that scale from it without specifying it at the top level.
    pub(crate) original_context: Option<usize>,
    pub(crate) rms_norm_eps: f64,
    pub(crate) experts: Option<ExpertKeys>,
    /// Every n-th layer has no position embedding, in files without `no_rope_layers`; 0 for none.
    pub(crate) nope_every: usize,
    /// The dimensions of latent attention, if the file does not specify them.
    pub(crate) latent: Option<LatentConfig>,
    pub(crate) space: Option<SpaceKeys>,
}

/// The names of all supported GGUF architectures.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|family| family.gguf).map(|architecture| architecture.name)
}

/// The names of all supported classes of `config.json`, including vision models with a supported text part.
pub fn classes() -> impl Iterator<Item = &'static str> {
    let classes = FAMILIES.iter().flat_map(|family| family.classes).map(|class| class.name);
    classes.chain(FAMILIES.iter().flat_map(|family| family.wrappers).copied())
}

/// The architecture of this name.
pub(crate) fn architecture(name: &str) -> Option<&'static Architecture> {
    FAMILIES.iter().flat_map(|family| family.gguf).copied().find(|architecture| architecture.name == name)
}

/// Whether Hugging Face's files have the pairs of the GGUF files of this architecture, even if they are interleaved.
pub(crate) fn has_same_pairs(name: &str) -> bool {
    architecture(name).is_some_and(|architecture| architecture.has_same_pairs)
}

/// The class for which `is_it` is true.
pub(crate) fn class(is_it: impl Fn(&Class) -> bool) -> Option<Class> {
    FAMILIES.iter().flat_map(|family| family.classes).copied().find(|class| is_it(class))
}

/// Whether this is the class of a vision model with a supported text part.
pub(crate) fn is_wrapper(class: &str) -> bool {
    FAMILIES.iter().any(|family| family.wrappers.contains(&class))
}

/// The names of layer modules that families use in addition to those that all share.
pub(crate) fn modules() -> impl Iterator<Item = (Part, &'static str)> {
    FAMILIES.iter().flat_map(|family| family.modules).copied()
}

/// As `modules`, with those of this architecture's family first.
pub(crate) fn modules_of(architecture: &str) -> impl Iterator<Item = (Part, &'static str)> + use<'_> {
    let has = move |family: &&Family| family.gguf.iter().any(|known| known.name == architecture);
    FAMILIES.iter().filter(has).flat_map(|family| family.modules).copied().chain(modules())
}

/// The part and the expert number of an expert's module in a layer.
pub(crate) fn expert(module: &str) -> Option<(Part, usize)> {
    FAMILIES.iter().filter_map(|family| family.experts.as_ref()).find_map(|(prefix, parts)| {
        let (expert, name) = module.strip_prefix(prefix)?.split_once('.')?;
        let (part, _) = parts.iter().find(|(_, known)| *known == name)?;
        Some((*part, expert.parse().ok()?))
    })
}

#[cfg(test)]
#[path = "../../tests/support/config.rs"]
mod support;

#[cfg(test)]
mod tests {
    //! Helpers with which the tests of the families read configurations, and tests that apply to all of them.

    use super::{FAMILIES, architecture, architectures, classes};
    use crate::ModelConfig;
    use serde_json::{Value, json};
    use std::collections::HashSet;

    pub(super) use super::support::read;

    pub(super) fn config(json: Value) -> ModelConfig {
        read(json).expect("a valid configuration")
    }

    /// A configuration, whatever the tensors are.
    pub(super) fn without_weights(json: Value) -> ModelConfig {
        let json = super::support::sized(json);
        crate::hf::config_only(json.as_object().expect("an object")).expect("a valid configuration")
    }

    pub(super) fn of_class(class: &str, mut more: Value) -> ModelConfig {
        more.as_object_mut().expect("an object").insert("architectures".to_owned(), json!([class]));
        config(more)
    }

    /// `L` for a layer with a window, `-` for a global one.
    pub(super) fn local(config: &ModelConfig) -> String {
        config.layers.iter().map(|layer| if layer.is_local { 'L' } else { '-' }).collect()
    }

    #[test]
    fn family_names_are_unique_and_classes_have_architectures() {
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
