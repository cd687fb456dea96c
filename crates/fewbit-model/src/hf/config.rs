//! `config.json`: what each architecture means by its keys, and what holds where a key is missing.
//!
//! Defaults are those of the architecture's configuration class in Hugging Face's `transformers`, because files
//! leave out what is at its default.

use super::HfError;
use super::json::Object;
use crate::ModelError;
use crate::config::{
    AttentionTemperature, ExpertConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, bad, embedding_scale,
    longrope_magnitude, yarn_magnitude,
};
use fewbit_kernels::{GateFunction, RopeStyle};

/// Which layers see only a window.
#[derive(Clone, Copy, PartialEq)]
enum Windows {
    /// No layer, whatever the file says.
    None,
    /// All layers, in a file that has a window.
    All,
    /// Those that `layer_types` says; else all but every so-manieth.
    Pattern(usize),
    /// As `layer_types` says, else those from `max_window_layers` on; none without `use_sliding_window`.
    Switched,
}

/// An architecture by the name of its class.
#[derive(Clone, Copy)]
struct Architecture {
    /// In `architectures`.
    class: &'static str,
    /// `model_type`, for files that name no class.
    model_type: &'static str,
    /// The same architecture in GGUF files, whose tensors this one's become.
    gguf: &'static str,
    rope_style: RopeStyle,
    windows: Windows,
    /// Window of a file that names none.
    window: Option<usize>,
    head_dim: Option<usize>,
    /// Heads of a file that does not say: the part of a model with images that is about text leaves out what is at
    /// its default, other files do not.
    n_heads: Option<usize>,
    /// Heads of keys and values of a file that does not say; else as many as queries have.
    n_kv_heads: Option<usize>,
    /// Output and embedding are one matrix in files that do not say.
    tied: bool,
    /// Q, k and v have biases without `attention_bias`.
    has_qkv_bias: bool,
    has_qk_norm: bool,
    has_post_norms: bool,
    /// Gemma's conventions: norms whose weights count from 1, scaled embeddings, GELU.
    is_gemma: bool,
    /// Granite's four multipliers: of embeddings, scores, residuals, logits.
    has_multipliers: bool,
    /// Dimensions of a head that scores are scaled by, and caps of scores and of logits, in files that do not say.
    scaled_by: Option<f64>,
    softcaps: (Option<f64>, Option<f64>),
    /// `partial_rotary_factor` is known here; elsewhere nothing reads it.
    has_partial_rope: bool,
    /// Queries grow with their position, as `llama_4_scaling_beta` says.
    has_temperature: bool,
    rope_theta: f64,
    /// Base in local layers of a file that names none.
    local_theta: Option<f64>,
    context_length: usize,
    /// Positions of the first training in a file that scales from them without naming them at its top.
    original_context: Option<usize>,
    rms_norm_eps: f64,
    experts: Experts,
    /// Every how many layers one has no position embedding, in files without `no_rope_layers`; 0 for none.
    nope_every: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Experts {
    None,
    Mixtral,
    Granite,
    Qwen2,
    Qwen3,
}

const LLAMA: Architecture = Architecture {
    class: "LlamaForCausalLM",
    model_type: "llama",
    gguf: "llama",
    rope_style: RopeStyle::Interleaved,
    windows: Windows::None,
    window: None,
    head_dim: None,
    n_heads: None,
    n_kv_heads: None,
    tied: false,
    has_qkv_bias: false,
    has_qk_norm: false,
    has_post_norms: false,
    is_gemma: false,
    has_multipliers: false,
    scaled_by: None,
    softcaps: (None, None),
    has_partial_rope: false,
    has_temperature: false,
    rope_theta: 10_000.0,
    local_theta: None,
    context_length: 2048,
    original_context: None,
    rms_norm_eps: 1e-6,
    experts: Experts::None,
    nope_every: 0,
};

const MISTRAL: Architecture = Architecture {
    class: "MistralForCausalLM",
    model_type: "mistral",
    windows: Windows::All,
    window: Some(4096),
    n_heads: Some(32),
    n_kv_heads: Some(8),
    context_length: 131_072,
    ..LLAMA
};

const QWEN2: Architecture = Architecture {
    class: "Qwen2ForCausalLM",
    model_type: "qwen2",
    gguf: "qwen2",
    rope_style: RopeStyle::HalfSplit,
    windows: Windows::Switched,
    window: Some(4096),
    n_kv_heads: Some(32),
    has_qkv_bias: true,
    context_length: 32_768,
    ..LLAMA
};

const QWEN3: Architecture = Architecture {
    class: "Qwen3ForCausalLM",
    model_type: "qwen3",
    gguf: "qwen3",
    head_dim: Some(128),
    has_qkv_bias: false,
    has_qk_norm: true,
    ..QWEN2
};

const GEMMA: Architecture = Architecture {
    class: "GemmaForCausalLM",
    model_type: "gemma",
    gguf: "gemma",
    rope_style: RopeStyle::HalfSplit,
    head_dim: Some(256),
    n_kv_heads: Some(16),
    tied: true,
    is_gemma: true,
    context_length: 8192,
    ..LLAMA
};

const GRANITE: Architecture = Architecture {
    class: "GraniteForCausalLM",
    model_type: "granite",
    gguf: "granite",
    has_multipliers: true,
    ..LLAMA
};

const ARCHITECTURES: [Architecture; 16] = [
    LLAMA,
    MISTRAL,
    Architecture { class: "MinistralForCausalLM", model_type: "ministral", windows: Windows::Pattern(0), ..MISTRAL },
    Architecture {
        class: "Ministral3ForCausalLM",
        model_type: "ministral3",
        gguf: "mistral3",
        window: None,
        head_dim: Some(128),
        has_temperature: true,
        rope_theta: 1e6,
        context_length: 262_144,
        rms_norm_eps: 1e-5,
        ..MISTRAL
    },
    Architecture {
        class: "MixtralForCausalLM",
        model_type: "mixtral",
        window: None,
        rope_theta: 1e6,
        rms_norm_eps: 1e-5,
        experts: Experts::Mixtral,
        ..MISTRAL
    },
    QWEN2,
    QWEN3,
    Architecture {
        class: "Qwen2MoeForCausalLM",
        model_type: "qwen2_moe",
        gguf: "qwen2moe",
        n_kv_heads: Some(16),
        experts: Experts::Qwen2,
        ..QWEN2
    },
    Architecture {
        class: "Qwen3MoeForCausalLM",
        model_type: "qwen3_moe",
        gguf: "qwen3moe",
        // Unlike its dense sibling's.
        head_dim: None,
        n_kv_heads: Some(4),
        experts: Experts::Qwen3,
        ..QWEN3
    },
    GEMMA,
    Architecture {
        class: "Gemma2ForCausalLM",
        model_type: "gemma2",
        gguf: "gemma2",
        has_post_norms: true,
        windows: Windows::Pattern(2),
        window: Some(4096),
        n_heads: Some(8),
        n_kv_heads: Some(4),
        scaled_by: Some(256.0),
        softcaps: (Some(50.0), Some(30.0)),
        ..GEMMA
    },
    Architecture {
        class: "Gemma3ForCausalLM",
        model_type: "gemma3_text",
        gguf: "gemma3",
        has_post_norms: true,
        windows: Windows::Pattern(6),
        window: Some(4096),
        n_heads: Some(8),
        n_kv_heads: Some(4),
        scaled_by: Some(256.0),
        has_qk_norm: true,
        rope_theta: 1e6,
        local_theta: Some(10_000.0),
        context_length: 131_072,
        ..GEMMA
    },
    Architecture {
        class: "Phi3ForCausalLM",
        model_type: "phi3",
        gguf: "phi3",
        rope_style: RopeStyle::HalfSplit,
        windows: Windows::All,
        has_partial_rope: true,
        context_length: 4096,
        original_context: Some(4096),
        rms_norm_eps: 1e-5,
        ..LLAMA
    },
    GRANITE,
    Architecture {
        class: "GraniteMoeForCausalLM",
        model_type: "granitemoe",
        gguf: "granitemoe",
        experts: Experts::Granite,
        ..GRANITE
    },
    Architecture {
        class: "SmolLM3ForCausalLM",
        model_type: "smollm3",
        gguf: "smollm3",
        windows: Windows::Switched,
        n_kv_heads: Some(4),
        tied: true,
        rope_theta: 2e6,
        context_length: 32_768,
        nope_every: 4,
        ..LLAMA
    },
];

/// Models that see: one of the architectures above under `text_config`, and behind a prefix its tensors, beside
/// those for images, which are passed over.
const WRAPPERS: [&str; 2] = ["Gemma3ForConditionalGeneration", "Mistral3ForConditionalGeneration"];

/// What `config.json` says that a [`ModelConfig`] has no place for.
pub(super) struct Extras {
    pub(super) n_vocab: Option<usize>,
    /// Output and embedding are one matrix.
    pub(super) tied: bool,
    /// Q, k and v must have biases.
    pub(super) has_qkv_bias: bool,
    /// The weights of norms are kept minus 1.
    pub(super) norms_from_one: bool,
    /// The tensors are those of a model that sees.
    pub(super) is_wrapped: bool,
}

/// Reads and checks a configuration.
pub(super) fn read(whole: Object<'_>) -> Result<(ModelConfig, Extras), ModelError> {
    let wrapped = match whole.strings("architectures")?.and_then(|classes| classes.first().copied()) {
        Some(class) if WRAPPERS.contains(&class) => {
            let text = whole.object("text_config", "text_config.")?;
            Some(whole.require("text_config", text)?)
        }
        _ => None,
    };
    let json = wrapped.unwrap_or(whole);
    let (arch, is_headless) = architecture(json)?;
    refuse(json)?;
    let dim = json.required_count("hidden_size")?;
    let n_heads = json.count("num_attention_heads")?.or(arch.n_heads);
    let n_heads = json.require("num_attention_heads", n_heads)?;
    let n_layers = json.required_count("num_hidden_layers")?;
    if n_heads == 0 || n_layers > crate::config::MAX_LAYERS {
        return Err(bad("num_attention_heads, num_hidden_layers", format!("{n_heads}, {n_layers}"), "sensible".into()));
    }
    let head_dim = json.count("head_dim")?.or(arch.head_dim).unwrap_or(dim / n_heads);
    let max_positions = json.count("max_position_embeddings")?.unwrap_or(arch.context_length);
    let (sliding_window, is_local) = windows(json, &arch, n_layers)?;
    let has_rope = rotated(json, &arch, n_layers)?;
    let scales = json.f64("query_pre_attn_scalar")?.filter(|_| arch.is_gemma).or(arch.scaled_by);
    let scales = scales.unwrap_or(head_dim as f64);
    // `null` is no cap, and only a key that is not there means the default.
    let softcap = |key: &str, default: Option<f64>| match json.has(key) && arch.is_gemma {
        true => json.f64(key),
        false => Ok(default),
    };
    let multiplier = |key: &str| match arch.has_multipliers {
        true => json.f64(key).map(|factor| factor.unwrap_or(1.0)),
        false => Ok(1.0),
    };
    let (rope, local_rope, context_length) = ropes(json, &arch, head_dim, max_positions)?;
    let attention_temperature = temperature(json, &arch)?;
    let experts = experts(json, &arch)?;
    let ffn_dim = match (json.count("intermediate_size")?, &experts) {
        (Some(n), _) => n,
        (None, Some(experts)) => experts.ffn_dim,
        (None, None) => json.required_count("intermediate_size")?,
    };
    let config = ModelConfig {
        architecture: arch.gguf.to_owned(),
        // For people; of whatever kind it is, it keeps no model from loading.
        name: json.str("_name_or_path").ok().flatten().filter(|name| !name.is_empty()).map(str::to_owned),
        dim,
        n_heads,
        n_kv_heads: match json.has("num_key_value_heads") {
            true => json.count("num_key_value_heads")?,
            false => arch.n_kv_heads,
        }
        .unwrap_or(n_heads),
        head_dim,
        ffn_dim,
        context_length,
        rms_norm_eps: json.f64("rms_norm_eps")?.unwrap_or(arch.rms_norm_eps) as f32,
        gate: gate(json, &arch)?,
        layers: is_local
            .into_iter()
            .zip(has_rope)
            .map(|(is_local, has_rope)| LayerConfig { is_local: is_local && sliding_window.is_some(), has_rope })
            .collect(),
        sliding_window,
        rope,
        local_rope: local_rope.filter(|_| sliding_window.is_some()),
        has_qk_norm: arch.has_qk_norm,
        has_post_norms: arch.has_post_norms,
        attention_scale: match arch.has_multipliers {
            true => multiplier("attention_multiplier")? as f32,
            false => (1.0 / scales.sqrt()) as f32,
        },
        attention_softcap: softcap("attn_logit_softcapping", arch.softcaps.0)?.map(|x| x as f32),
        attention_temperature,
        experts,
        embedding_scale: match arch.is_gemma {
            true => embedding_scale(dim),
            false => multiplier("embedding_multiplier")? as f32,
        },
        residual_scale: multiplier("residual_multiplier")? as f32,
        logit_scale: (1.0 / multiplier("logits_scaling")?) as f32,
        logit_softcap: softcap("final_logit_softcapping", arch.softcaps.1)?.map(|x| x as f32),
        pooling: None,
    };
    let extras = Extras {
        n_vocab: json.count("vocab_size")?,
        tied: is_headless
            || match json.bool("tie_word_embeddings")? {
                Some(tied) => tied,
                None => whole.bool("tie_word_embeddings")?.unwrap_or(arch.tied),
            },
        has_qkv_bias: arch.has_qkv_bias || json.bool("attention_bias")? == Some(true),
        norms_from_one: arch.is_gemma,
        is_wrapped: wrapped.is_some(),
    };
    Ok((config.checked()?, extras))
}

/// The architecture, and whether it is the bare decoder of a model made for embeddings, without an output.
fn architecture(json: Object<'_>) -> Result<(Architecture, bool), ModelError> {
    let classes = json.strings("architectures")?.unwrap_or_default();
    let model_type = json.str("model_type")?;
    let found = match classes.first() {
        Some(class) => {
            let bare = class.strip_suffix("Model").map(|name| format!("{name}ForCausalLM"));
            let find = |class: &str| ARCHITECTURES.iter().find(|a| a.class == class);
            find(class).map(|a| (*a, false)).or(bare.and_then(|class| find(&class)).map(|a| (*a, true)))
        }
        None => ARCHITECTURES.iter().find(|a| Some(a.model_type) == model_type).map(|a| (*a, false)),
    };
    let unknown = || match classes.first().copied().or(model_type) {
        Some(name) => ModelError::UnknownArchitecture {
            name: name.to_owned(),
            known: ARCHITECTURES.iter().map(|a| a.class).chain(WRAPPERS).collect(),
        },
        None => HfError::MissingKey { file: super::CONFIG, key: "architectures".to_owned() }.into(),
    };
    found.ok_or_else(unknown)
}

/// Refuses what asks for something that the decoder does not have; ignoring it would give plausible nonsense.
fn refuse(json: Object<'_>) -> Result<(), ModelError> {
    const SEES_AHEAD: &str = "attention that is not causal";
    if json.bool("use_bidirectional_attention")? == Some(true) {
        return Err(json.unsupported("use_bidirectional_attention", SEES_AHEAD));
    }
    if json.bool("is_causal")? == Some(false) {
        return Err(json.unsupported("is_causal", SEES_AHEAD));
    }
    Ok(())
}

/// How queries grow with their position.
fn temperature(json: Object<'_>, arch: &Architecture) -> Result<Option<AttentionTemperature>, ModelError> {
    if !arch.has_temperature {
        return Ok(None);
    }
    let rope = json.object("rope_parameters", "rope_parameters.")?;
    let rope = json.require("rope_parameters", rope)?;
    let scale = rope.f64("llama_4_scaling_beta")?;
    let scale = rope.require("llama_4_scaling_beta", scale)?;
    let length = rope.required_count("original_max_position_embeddings")?;
    Ok(Some(AttentionTemperature { scale, length }))
}

fn gate(json: Object<'_>, arch: &Architecture) -> Result<GateFunction, ModelError> {
    // Gemma's first files say `hidden_act: gelu` and mean what `hidden_activation` says or, without it, the same.
    if arch.is_gemma {
        return match json.str("hidden_activation")? {
            None | Some("gelu_pytorch_tanh") => Ok(GateFunction::GeluTanh),
            Some(_) => Err(json.unsupported("hidden_activation", "another activation function")),
        };
    }
    match json.str("hidden_act")? {
        None | Some("silu" | "swish") => Ok(GateFunction::Silu),
        Some("gelu_pytorch_tanh") => Ok(GateFunction::GeluTanh),
        Some(_) => Err(json.unsupported("hidden_act", "another activation function")),
    }
}

/// The window, and which layers have it.
fn windows(json: Object<'_>, arch: &Architecture, n_layers: usize) -> Result<(Option<usize>, Vec<bool>), ModelError> {
    // `null` is no window, and only a key that is not there means the default.
    let window = match json.has("sliding_window") {
        true => json.count("sliding_window")?,
        false => arch.window,
    };
    let every = |period: usize| (0..n_layers).map(|i| period == 0 || (i + 1) % period != 0).collect::<Vec<_>>();
    let listed = match arch.windows {
        Windows::None => None,
        _ => layer_types(json, n_layers)?,
    };
    let (window, is_local) = match (arch.windows, listed) {
        (Windows::None, _) => (None, every(1)),
        (Windows::Switched, _) if json.bool("use_sliding_window")? != Some(true) => (None, every(1)),
        (_, Some(list)) => (window, list),
        (Windows::All, None) => (window, every(0)),
        (Windows::Pattern(period), None) => {
            let named = json.count("sliding_window_pattern")?.or(json.count("_sliding_window_pattern")?);
            (window, every(named.unwrap_or(period)))
        }
        (Windows::Switched, None) if arch.nope_every > 0 => {
            return Err(json.unsupported("use_sliding_window", "a window without `layer_types`"));
        }
        (Windows::Switched, None) => {
            let first = json.count("max_window_layers")?.unwrap_or(28);
            (window, (0..n_layers).map(|i| i >= first).collect())
        }
    };
    Ok((window.filter(|_| is_local.contains(&true)), is_local))
}

/// `layer_types`: whether each layer is local.
fn layer_types(json: Object<'_>, n_layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
    let Some(list) = json.strings("layer_types")? else { return Ok(None) };
    if list.len() != n_layers {
        return Err(bad("layer_types", format!("{} layers", list.len()), format!("{n_layers} layers")));
    }
    let is_local = list.into_iter().map(|kind| match kind {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(ModelError::UnsupportedFeature {
            feature: "another kind of attention",
            key: json.path("layer_types"),
            value: other.to_owned(),
        }),
    });
    is_local.collect::<Result<_, _>>().map(Some)
}

/// Whether each layer has a position embedding.
fn rotated(json: Object<'_>, arch: &Architecture, n_layers: usize) -> Result<Vec<bool>, ModelError> {
    if arch.nope_every == 0 {
        return Ok(vec![true; n_layers]);
    }
    if let Some(list) = json.list("no_rope_layers")? {
        // In spite of its name, 1 stands for a layer that has one.
        let list = list.iter().map(|x| x.as_u64().map(|x| x != 0).or(x.as_bool())).collect::<Option<Vec<_>>>();
        return match list {
            Some(list) if list.len() == n_layers => Ok(list),
            _ => Err(bad("no_rope_layers", "something else", format!("{n_layers} times 0 or 1"))),
        };
    }
    let every = json.count("no_rope_layer_interval")?.unwrap_or(arch.nope_every).max(1);
    Ok((0..n_layers).map(|i| (i + 1) % every != 0).collect())
}

/// Position embedding of all layers and of local ones, and how many positions there are.
fn ropes(
    json: Object<'_>,
    arch: &Architecture,
    head_dim: usize,
    max_positions: usize,
) -> Result<(RopeConfig, Option<RopeConfig>, usize), ModelError> {
    // Newer files have everything in `rope_parameters`, by kind of layer where there are two. A `rope_scaling` that is
    // not empty takes its place, as in transformers, and may have the base as well.
    let old = json.object("rope_scaling", "rope_scaling.")?.filter(|old| !old.is_empty());
    let new = json.object("rope_parameters", "rope_parameters.")?;
    let by_kind = |key, prefix| match new {
        Some(new) => new.object(key, prefix),
        None => Ok(None),
    };
    let global = by_kind("full_attention", "rope_parameters.full_attention.")?;
    let local = by_kind("sliding_attention", "rope_parameters.sliding_attention.")?;
    // Where layers are of two kinds, `rope_scaling` is that of global ones and leaves what it does not name.
    let merged = old.zip(global).filter(|_| arch.local_theta.is_some()).map(|(old, global)| old.over(global));
    let global = match (&merged, arch.local_theta) {
        (Some(map), _) => Some(Object::new(super::CONFIG, map)),
        (None, Some(_)) => old.or(global),
        (None, None) => old.or(global).or(new),
    };
    let theta = |own: Option<Object<'_>>, key: &str, default: f64| -> Result<f64, HfError> {
        let own = own.map(|own| own.f64("rope_theta")).transpose()?.flatten();
        Ok(match own {
            Some(theta) => theta,
            None => json.f64(key)?.unwrap_or(default),
        })
    };
    let fraction = match global.map(|own| own.f64("partial_rotary_factor")).transpose()?.flatten() {
        Some(fraction) => fraction,
        None => json.f64("partial_rotary_factor")?.unwrap_or(1.0),
    };
    if fraction != 1.0 && !arch.has_partial_rope {
        let own = global.filter(|own| own.get("partial_rotary_factor").is_some()).unwrap_or(json);
        return Err(own.unsupported("partial_rotary_factor", "heads that are rotated in part"));
    }
    let n_dims = (head_dim as f64 * fraction) as usize;
    let mut rope = RopeConfig::new(theta(global, "rope_theta", arch.rope_theta)?, n_dims, arch.rope_style);
    let mut context_length = max_positions;
    if let Some(own) = global {
        (rope.scaling, rope.attention_factor) = rope_scaling(json, own, arch, max_positions)?;
        if let RopeScaling::Yarn { factor, original_context, .. } = rope.scaling {
            context_length = context_length.max((original_context as f64 * factor) as usize);
        }
    }
    let local_rope = match (arch.local_theta, local) {
        (None, None) => None,
        (default, own) => {
            let theta = theta(own, "rope_local_base_freq", default.unwrap_or(arch.rope_theta))?;
            let mut rope = RopeConfig::new(theta, n_dims, arch.rope_style);
            if let Some(own) = own {
                (rope.scaling, rope.attention_factor) = rope_scaling(json, own, arch, max_positions)?;
            }
            Some(rope)
        }
    };
    Ok((rope, local_rope, context_length))
}

/// A kind of scaling, and its attention factor.
fn rope_scaling(
    json: Object<'_>,
    own: Object<'_>,
    arch: &Architecture,
    max_positions: usize,
) -> Result<(RopeScaling, f64), ModelError> {
    let key = if own.get("rope_type").is_some() { "rope_type" } else { "type" };
    let kind = own.str(key)?.unwrap_or("default");
    let required = |key: &str| own.f64(key).and_then(|x| own.require(key, x));
    // Some classes have this one at the top, and then it is that one which counts.
    let original = match json.count("original_max_position_embeddings")?.or(arch.original_context) {
        Some(n) => Some(n),
        None => own.count("original_max_position_embeddings")?,
    };
    let original_context = original.unwrap_or(max_positions);
    let ratio = max_positions as f64 / original_context.max(1) as f64;
    let scaling = match kind {
        // The dynamic kind changes only positions beyond `max_position_embeddings`, which there are none of.
        "default" | "dynamic" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: required("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_context,
        },
        "yarn" => RopeScaling::Yarn {
            factor: match own.f64("factor")? {
                None if own.has("factor") => ratio,
                factor => own.require("factor", factor)?,
            },
            original_context,
            // 0 stands for "not set", as does `null`.
            beta_fast: own.f64("beta_fast")?.filter(|&x| x != 0.0).unwrap_or(32.0),
            beta_slow: own.f64("beta_slow")?.filter(|&x| x != 0.0).unwrap_or(1.0),
            is_truncated: own.bool("truncate")?.unwrap_or(true),
        },
        "longrope" | "su" => RopeScaling::LongRope {
            original_context,
            short: own.floats("short_factor").and_then(|x| own.require("short_factor", x))?,
            long: own.floats("long_factor").and_then(|x| own.require("long_factor", x))?,
        },
        _ => return Err(own.unsupported(key, "another kind of rope scaling")),
    };
    let usual = match &scaling {
        RopeScaling::Yarn { factor, .. } => match (own.f64("mscale")?, own.f64("mscale_all_dim")?) {
            (Some(m), Some(all)) if m != 0.0 && all != 0.0 => yarn_magnitude(*factor, m) / yarn_magnitude(*factor, all),
            _ => scaling.default_attention_factor(max_positions),
        },
        RopeScaling::LongRope { original_context, .. } => {
            let factor = own.f64("factor")?.unwrap_or(ratio);
            longrope_magnitude(factor, *original_context)
        }
        _ => scaling.default_attention_factor(max_positions),
    };
    let named = match scaling {
        RopeScaling::Yarn { .. } | RopeScaling::LongRope { .. } => own.f64("attention_factor")?,
        _ => None,
    };
    Ok((scaling, named.unwrap_or(usual)))
}

fn experts(json: Object<'_>, arch: &Architecture) -> Result<Option<ExpertConfig>, ModelError> {
    let (count, width) = match arch.experts {
        Experts::None => return Ok(None),
        Experts::Mixtral | Experts::Granite => ("num_local_experts", "intermediate_size"),
        Experts::Qwen2 | Experts::Qwen3 => ("num_experts", "moe_intermediate_size"),
    };
    if json.count("decoder_sparse_step")?.is_some_and(|n| n != 1) {
        return Err(json.unsupported("decoder_sparse_step", "layers without experts between those with"));
    }
    if json.list("mlp_only_layers")?.is_some_and(|list| !list.is_empty()) {
        return Err(json.unsupported("mlp_only_layers", "layers without experts between those with"));
    }
    let shared_ffn_dim = match arch.experts {
        Experts::Qwen2 => Some(json.required_count("shared_expert_intermediate_size")?),
        _ => None,
    };
    Ok(Some(ExpertConfig {
        n_experts: json.required_count(count)?,
        n_used: json.required_count("num_experts_per_tok")?,
        ffn_dim: json.required_count(width)?,
        is_normalized: matches!(arch.experts, Experts::Mixtral | Experts::Granite)
            || json.bool("norm_topk_prob")?.unwrap_or(false),
        scale: 1.0,
        shared_ffn_dim,
        has_shared_gate: shared_ffn_dim.is_some(),
    }))
}
