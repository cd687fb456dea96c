//! `config.json`: the meaning of its keys. Defaults for missing keys are in the row of the class's family (`families`).
//!
//! The defaults are those of the configuration class in Hugging Face's `transformers`, because files leave out values
//! that equal the default.

use super::HfError;
use super::json::Object;
use crate::CheckpointError;
use crate::config::{
    AttentionTemperature, ExpertConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, bad, embedding_scale,
    longrope_magnitude, yarn_magnitude,
};
use crate::families::{self, Class, Windows};
use fewbit_quant::GateFunction;

/// The information in `config.json` that is not part of a [`ModelConfig`].
pub(super) struct Extras {
    pub(super) n_vocab: Option<usize>,
    /// Whether output and embedding are one matrix.
    pub(super) tied: bool,
    /// Q, k and v must have biases.
    pub(super) has_qkv_bias: bool,
    /// Whether the weights of norms are stored minus 1.
    pub(super) norms_from_one: bool,
    /// Whether the tensors are those of a vision model.
    pub(super) is_wrapped: bool,
}

/// Reads and checks a configuration.
pub(super) fn read(whole: Object<'_>) -> Result<(ModelConfig, Extras), CheckpointError> {
    let wrapped = match whole.strings("architectures")?.and_then(|classes| classes.first().copied()) {
        Some(class) if families::is_wrapper(class) => {
            let text = whole.object("text_config", "text_config.")?;
            Some(whole.require("text_config", text)?)
        }
        _ => None,
    };
    let json = wrapped.unwrap_or(whole);
    let (class, is_headless) = read_class(json)?;
    refuse(json)?;
    let dim = json.required_count("hidden_size")?;
    let n_heads = json.count("num_attention_heads")?.or(class.n_heads);
    let n_heads = json.require("num_attention_heads", n_heads)?;
    let n_layers = json.required_count("num_hidden_layers")?;
    if n_heads == 0 || n_layers > crate::config::MAX_LAYERS {
        return Err(bad("num_attention_heads, num_hidden_layers", format!("{n_heads}, {n_layers}"), "sensible".into()));
    }
    let head_dim = json.count("head_dim")?.or(class.head_dim).unwrap_or(dim / n_heads);
    let max_positions = json.count("max_position_embeddings")?.unwrap_or(class.context_length);
    let (sliding_window, is_local) = windows(json, &class, n_layers)?;
    let has_rope = rotated(json, &class, n_layers)?;
    let scales = json.f64("query_pre_attn_scalar")?.filter(|_| class.is_gemma).or(class.scaled_by);
    let scales = scales.unwrap_or(head_dim as f64);
    // `null` means no cap; only a missing key means the default.
    let softcap = |key: &str, default: Option<f64>| match json.has(key) && class.is_gemma {
        true => json.f64(key),
        false => Ok(default),
    };
    let multiplier = |key: &str| match class.gguf.has_multipliers {
        true => json.f64(key).map(|factor| factor.unwrap_or(1.0)),
        false => Ok(1.0),
    };
    let (rope, local_rope, context_length) = ropes(json, &class, head_dim, max_positions)?;
    let attention_temperature = temperature(json, &class)?;
    let experts = experts(json, &class)?;
    let ffn_dim = match (json.count("intermediate_size")?, &experts) {
        (Some(n), _) => n,
        (None, Some(experts)) => experts.ffn_dim,
        (None, None) => json.required_count("intermediate_size")?,
    };
    let config = ModelConfig {
        architecture: class.gguf.name.to_owned(),
        // For display only: a value of the wrong type must not keep the model from loading.
        name: json.str("_name_or_path").ok().flatten().filter(|name| !name.is_empty()).map(str::to_owned),
        dim,
        n_heads,
        n_kv_heads: match json.has("num_key_value_heads") {
            true => json.count("num_key_value_heads")?,
            false => class.n_kv_heads,
        }
        .unwrap_or(n_heads),
        head_dim,
        ffn_dim,
        context_length,
        rms_norm_eps: json.f64("rms_norm_eps")?.unwrap_or(class.rms_norm_eps) as f32,
        gate: gate(json, &class)?,
        layers: is_local
            .into_iter()
            .zip(has_rope)
            .map(|(is_local, has_rope)| LayerConfig { is_local: is_local && sliding_window.is_some(), has_rope })
            .collect(),
        sliding_window,
        rope,
        local_rope: local_rope.filter(|_| sliding_window.is_some()),
        has_qk_norm: class.gguf.has_qk_norm,
        has_post_norms: class.gguf.has_post_norms,
        attention_scale: match class.gguf.has_multipliers {
            true => multiplier("attention_multiplier")? as f32,
            false => (1.0 / scales.sqrt()) as f32,
        },
        attention_softcap: softcap("attn_logit_softcapping", class.softcaps.0)?.map(|x| x as f32),
        attention_temperature,
        experts,
        embedding_scale: match class.is_gemma {
            true => embedding_scale(dim),
            false => multiplier("embedding_multiplier")? as f32,
        },
        residual_scale: multiplier("residual_multiplier")? as f32,
        logit_scale: (1.0 / multiplier("logits_scaling")?) as f32,
        logit_softcap: softcap("final_logit_softcapping", class.softcaps.1)?.map(|x| x as f32),
        pooling: None,
    };
    let extras = Extras {
        n_vocab: json.count("vocab_size")?,
        tied: is_headless
            || match json.bool("tie_word_embeddings")? {
                Some(tied) => tied,
                None => whole.bool("tie_word_embeddings")?.unwrap_or(class.tied),
            },
        has_qkv_bias: class.has_qkv_bias || json.bool("attention_bias")? == Some(true),
        norms_from_one: class.is_gemma,
        is_wrapped: wrapped.is_some(),
    };
    Ok((config.checked()?, extras))
}

/// The class, and whether it is the bare decoder of an embedding model, without an output matrix.
fn read_class(json: Object<'_>) -> Result<(Class, bool), CheckpointError> {
    let names = json.strings("architectures")?.unwrap_or_default();
    let model_type = json.str("model_type")?;
    let found = match names.first() {
        Some(name) => {
            let bare = name.strip_suffix("Model").map(|name| format!("{name}ForCausalLM"));
            let find = |name: &str| families::class(|class| class.name == name);
            find(name).map(|class| (class, false)).or(bare.and_then(|name| find(&name)).map(|class| (class, true)))
        }
        None => families::class(|class| Some(class.model_type) == model_type).map(|class| (class, false)),
    };
    let unknown = || match names.first().copied().or(model_type) {
        Some(name) => {
            CheckpointError::UnknownArchitecture { name: name.to_owned(), known: families::classes().collect() }
        }
        None => HfError::MissingKey { file: super::CONFIG, key: "architectures".to_owned() }.into(),
    };
    found.ok_or_else(unknown)
}

/// Returns an error for features that the decoder does not have; ignoring them would give plausible nonsense.
fn refuse(json: Object<'_>) -> Result<(), CheckpointError> {
    const SEES_AHEAD: &str = "attention that is not causal";
    if json.bool("use_bidirectional_attention")? == Some(true) {
        return Err(json.unsupported("use_bidirectional_attention", SEES_AHEAD));
    }
    if json.bool("is_causal")? == Some(false) {
        return Err(json.unsupported("is_causal", SEES_AHEAD));
    }
    Ok(())
}

/// How queries are scaled by their position.
fn temperature(json: Object<'_>, class: &Class) -> Result<Option<AttentionTemperature>, CheckpointError> {
    if !class.has_temperature {
        return Ok(None);
    }
    let rope = json.object("rope_parameters", "rope_parameters.")?;
    let rope = json.require("rope_parameters", rope)?;
    let scale = rope.f64("llama_4_scaling_beta")?;
    let scale = rope.require("llama_4_scaling_beta", scale)?;
    let length = rope.required_count("original_max_position_embeddings")?;
    Ok(Some(AttentionTemperature { scale, length }))
}

fn gate(json: Object<'_>, class: &Class) -> Result<GateFunction, CheckpointError> {
    // Gemma's first files have `hidden_act: gelu` but mean `hidden_activation` or, without it, the tanh form.
    if class.is_gemma {
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

/// The window, and the layers that have it.
fn windows(json: Object<'_>, class: &Class, n_layers: usize) -> Result<(Option<usize>, Vec<bool>), CheckpointError> {
    // `null` means no window; only a missing key means the default.
    let window = match json.has("sliding_window") {
        true => json.count("sliding_window")?,
        false => class.window,
    };
    let every = |period: usize| (0..n_layers).map(|i| period == 0 || (i + 1) % period != 0).collect::<Vec<_>>();
    let listed = match class.windows {
        Windows::None => None,
        _ => layer_types(json, n_layers)?,
    };
    let (window, is_local) = match (class.windows, listed) {
        (Windows::None, _) => (None, every(1)),
        (Windows::Switched, _) if json.bool("use_sliding_window")? != Some(true) => (None, every(1)),
        (_, Some(list)) => (window, list),
        (Windows::All, None) => (window, every(0)),
        (Windows::Pattern(period), None) => {
            let named = json.count("sliding_window_pattern")?.or(json.count("_sliding_window_pattern")?);
            (window, every(named.unwrap_or(period)))
        }
        (Windows::Switched, None) if class.nope_every > 0 => {
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
fn layer_types(json: Object<'_>, n_layers: usize) -> Result<Option<Vec<bool>>, CheckpointError> {
    let Some(list) = json.strings("layer_types")? else { return Ok(None) };
    if list.len() != n_layers {
        return Err(bad("layer_types", format!("{} layers", list.len()), format!("{n_layers} layers")));
    }
    let is_local = list.into_iter().map(|kind| match kind {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(CheckpointError::UnsupportedFeature {
            feature: "another kind of attention",
            key: json.path("layer_types"),
            value: other.to_owned(),
        }),
    });
    is_local.collect::<Result<_, _>>().map(Some)
}

/// Whether each layer has a position embedding.
fn rotated(json: Object<'_>, class: &Class, n_layers: usize) -> Result<Vec<bool>, CheckpointError> {
    if class.nope_every == 0 {
        return Ok(vec![true; n_layers]);
    }
    if let Some(list) = json.list("no_rope_layers")? {
        // Despite its name, 1 in this list means that the layer has a position embedding.
        let list = list.iter().map(|x| x.as_u64().map(|x| x != 0).or(x.as_bool())).collect::<Option<Vec<_>>>();
        return match list {
            Some(list) if list.len() == n_layers => Ok(list),
            _ => Err(bad("no_rope_layers", "something else", format!("{n_layers} times 0 or 1"))),
        };
    }
    let every = json.count("no_rope_layer_interval")?.unwrap_or(class.nope_every).max(1);
    Ok((0..n_layers).map(|i| (i + 1) % every != 0).collect())
}

/// Position embeddings of global and local layers, and the number of positions.
fn ropes(
    json: Object<'_>,
    class: &Class,
    head_dim: usize,
    max_positions: usize,
) -> Result<(RopeConfig, Option<RopeConfig>, usize), CheckpointError> {
    // Newer files have everything in `rope_parameters`, by kind of layer if there are two kinds. As in transformers, a
    // `rope_scaling` that is not empty replaces it, and may contain the base as well.
    let old = json.object("rope_scaling", "rope_scaling.")?.filter(|old| !old.is_empty());
    let new = json.object("rope_parameters", "rope_parameters.")?;
    let by_kind = |key, prefix| match new {
        Some(new) => new.object(key, prefix),
        None => Ok(None),
    };
    let global = by_kind("full_attention", "rope_parameters.full_attention.")?;
    let local = by_kind("sliding_attention", "rope_parameters.sliding_attention.")?;
    // If there are two kinds of layers, `rope_scaling` applies to global ones, and values that it lacks are kept.
    let merged = old.zip(global).filter(|_| class.local_theta.is_some()).map(|(old, global)| old.over(global));
    let global = match (&merged, class.local_theta) {
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
    if fraction != 1.0 && !class.has_partial_rope {
        let own = global.filter(|own| own.get("partial_rotary_factor").is_some()).unwrap_or(json);
        return Err(own.unsupported("partial_rotary_factor", "heads that are rotated in part"));
    }
    let n_dims = (head_dim as f64 * fraction) as usize;
    let mut rope = RopeConfig::new(theta(global, "rope_theta", class.rope_theta)?, n_dims, class.gguf.rope_style);
    let mut context_length = max_positions;
    if let Some(own) = global {
        (rope.scaling, rope.attention_factor) = rope_scaling(json, own, class, max_positions)?;
        if let RopeScaling::Yarn { factor, original_context, .. } = rope.scaling {
            context_length = context_length.max((original_context as f64 * factor) as usize);
        }
    }
    let local_rope = match (class.local_theta, local) {
        (None, None) => None,
        (default, own) => {
            let theta = theta(own, "rope_local_base_freq", default.unwrap_or(class.rope_theta))?;
            let mut rope = RopeConfig::new(theta, n_dims, class.gguf.rope_style);
            if let Some(own) = own {
                (rope.scaling, rope.attention_factor) = rope_scaling(json, own, class, max_positions)?;
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
    class: &Class,
    max_positions: usize,
) -> Result<(RopeScaling, f64), CheckpointError> {
    let key = if own.get("rope_type").is_some() { "rope_type" } else { "type" };
    let kind = own.str(key)?.unwrap_or("default");
    let required = |key: &str| own.f64(key).and_then(|x| own.require(key, x));
    // Some classes have this value at the top level, where it takes precedence.
    let original = match json.count("original_max_position_embeddings")?.or(class.original_context) {
        Some(n) => Some(n),
        None => own.count("original_max_position_embeddings")?,
    };
    let original_context = original.unwrap_or(max_positions);
    let ratio = max_positions as f64 / original_context.max(1) as f64;
    let scaling = match kind {
        // The dynamic kind changes only positions beyond `max_position_embeddings`, which are never used.
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
            // 0 and `null` mean "not set".
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

fn experts(json: Object<'_>, class: &Class) -> Result<Option<ExpertConfig>, CheckpointError> {
    let Some(keys) = class.experts else { return Ok(None) };
    if json.count("decoder_sparse_step")?.is_some_and(|n| n != 1) {
        return Err(json.unsupported("decoder_sparse_step", "layers without experts between those with"));
    }
    if json.list("mlp_only_layers")?.is_some_and(|list| !list.is_empty()) {
        return Err(json.unsupported("mlp_only_layers", "layers without experts between those with"));
    }
    let shared_ffn_dim = keys.shared_width.map(|key| json.required_count(key)).transpose()?;
    Ok(Some(ExpertConfig {
        n_experts: json.required_count(keys.count)?,
        n_used: json.required_count("num_experts_per_tok")?,
        ffn_dim: json.required_count(keys.width)?,
        is_normalized: keys.is_normalized || json.bool("norm_topk_prob")?.unwrap_or(false),
        scale: 1.0,
        shared_ffn_dim,
        has_shared_gate: shared_ffn_dim.is_some(),
    }))
}
