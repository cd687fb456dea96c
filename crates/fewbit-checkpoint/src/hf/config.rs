//! `config.json`: the meaning of its keys. Defaults for missing keys are in the row of the class's family (`families`).
//!
//! The defaults are those of the configuration class in Hugging Face's `transformers`, because files leave out values
//! that equal the default.

use super::HfError;
use super::json::Object;
use super::layers::{LayerKind, layer_kinds, recurrent, with_layers};
use super::routing::{experts, layers_with_experts};
use crate::CheckpointError;
use crate::config::{
    AttentionTemperature, LatentConfig, LayerConfig, LocalHeads, MAX_WIDTH, ModelConfig, NormKind, RopeConfig,
    RopeScaling, SharedKv, bad, embedding_scale, longrope_magnitude, yarn_magnitude,
};
use crate::families::{self, Class, ExpertLayout, RecurrentKind, Temperatures, Windows};
use fewbit_quant::GateFunction;

/// The information in `config.json` that is not part of a [`ModelConfig`].
pub(super) struct Extras {
    pub(super) n_vocab: Option<usize>,
    /// Whether output and embedding are one matrix.
    pub(super) tied: bool,
    /// Q, k and v must have biases.
    pub(super) has_qkv_bias: bool,
    /// Whether global layers lack the matrix of values, in models where they can.
    pub(super) lacks_values: bool,
    /// Whether the weights of norms are stored minus 1.
    pub(super) norms_from_one: bool,
    /// Whether the tensors are those of a vision model.
    pub(super) is_wrapped: bool,
    /// How the matrices of a layer's experts lie in a tensor that holds all of them.
    pub(super) expert_layout: ExpertLayout,
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
    refuse(json, &class)?;
    let dim = json.required_count("hidden_size")?;
    let n_heads = json.count("num_attention_heads")?.or(class.n_heads);
    let n_heads = json.require("num_attention_heads", n_heads)?;
    let n_layers = match json.count("num_hidden_layers")? {
        None if class.gguf.has_one_mixer => json.strings("layers_block_type")?.map(|kinds| kinds.len()),
        n => n,
    };
    let n_layers = json.require("num_hidden_layers", n_layers)?;
    if n_heads == 0 || n_layers > crate::config::MAX_LAYERS {
        return Err(bad("num_attention_heads, num_hidden_layers", format!("{n_heads}, {n_layers}"), "sensible".into()));
    }
    let kinds = layer_kinds(json, &class, n_layers)?;
    let class = with_layers(class, &kinds);
    let latent = class.latent.map(|usual| latent(json, usual)).transpose()?;
    let head_dim = match &latent {
        Some(latent) => latent.kv_rank.saturating_add(latent.rotated_dim),
        None => json.count("head_dim")?.or(class.head_dim).unwrap_or(dim / n_heads),
    };
    let n_kv_heads = match json.has("num_key_value_heads") {
        _ if latent.is_some() => Some(1),
        true => json.count("num_key_value_heads")?,
        false => class.n_kv_heads,
    };
    let n_kv_heads = n_kv_heads.unwrap_or(n_heads);
    // Command R was trained for more positions than `max_position_embeddings` says.
    let trained = if class.gguf.norm == NormKind::Layer { json.count("model_max_length")? } else { None };
    let max_positions = trained.or(json.count("max_position_embeddings")?).unwrap_or(class.context_length);
    let (sliding_window, is_local) = windows(json, &class, n_layers)?;
    let has_rope = rotated(json, &class, n_layers, sliding_window.map(|_| &is_local[..]))?;
    // What the file says of heads is about local layers, if global ones have others.
    let local = LocalHeads { n_kv_heads, head_dim };
    let heads = match class.gguf.has_local_heads {
        true => global_heads(json, &is_local, local)?,
        false => local,
    };
    let LocalHeads { n_kv_heads, head_dim } = heads;
    let has_local_heads = heads != local && sliding_window.is_some();
    let local_heads = Some(local).filter(|_| has_local_heads);
    let scales = json.f64("query_pre_attn_scalar")?.filter(|_| class.is_gemma).or(class.scaled_by);
    let scales = scales.unwrap_or(latent.map_or(head_dim, |latent| latent.query_dim()) as f64);
    // `null` means no cap; only a missing key means the default.
    let softcap = |key: &str, default: Option<f64>| match json.has(key) && class.is_gemma {
        true => json.f64(key),
        false => Ok(default),
    };
    let multiplier = |key: &str| match class.gguf.has_multipliers {
        true => json.f64(key).map(|factor| factor.unwrap_or(1.0)),
        false => Ok(1.0),
    };
    let (rope, local_rope, context_length) =
        ropes(json, &class, [head_dim, local.head_dim], latent.as_ref(), max_positions)?;
    // DeepSeek's models scale scores by the square of YaRN's magnitude.
    let magnitude = if latent.is_some() { yarn_of_scores(json)? } else { 1.0 };
    let attention_temperature =
        temperature(json, &class)?.filter(|t| !t.only_without_rope || has_rope.contains(&false));
    let experts = experts(json, &class)?;
    let has_experts = match experts {
        Some(_) if class.gguf.has_one_mixer => kinds.iter().map(|&kind| kind == LayerKind::Experts).collect(),
        Some(_) => layers_with_experts(json, &class, n_layers)?,
        None => vec![false; n_layers],
    };
    let ffn_dim = match (ffn_width(json, &class)?, &experts) {
        // Of Granite's, it is that of the shared expert.
        (Some(_), Some(experts)) if class.space.is_some() => experts.ffn_dim,
        (Some(n), _) => n,
        (None, Some(experts)) if !has_experts.contains(&false) => experts.ffn_dim,
        _ => json.required_count(class.ffn_width)?,
    };
    let config = ModelConfig {
        architecture: class.gguf.name.to_owned(),
        // For display only: a value of the wrong type must not keep the model from loading.
        name: json.str("_name_or_path").ok().flatten().filter(|name| !name.is_empty()).map(str::to_owned),
        dim,
        n_heads,
        n_kv_heads,
        head_dim,
        local_heads,
        shared_kv: shared_kv(json, &class, ffn_dim)?,
        per_layer_dim: match json.has("hidden_size_per_layer_input") && class.gguf.has_per_layer_embeddings {
            true => json.count("hidden_size_per_layer_input")?.filter(|&n| n > 0),
            false => class.per_layer_dim,
        },
        ffn_dim,
        context_length,
        rms_norm_eps: json.f64(class.eps)?.unwrap_or(class.rms_norm_eps) as f32,
        gate: gate(json, &class)?,
        is_gated: class.gguf.is_gated,
        layers: (0..n_layers)
            .map(|i| LayerConfig {
                is_recurrent: kinds[i] == LayerKind::Recurrent,
                has_attention: kinds[i].has_attention(),
                has_feed_forward: !class.gguf.has_one_mixer || !kinds[i].has_attention(),
                is_local: is_local[i] && sliding_window.is_some(),
                has_rope: has_rope[i],
                has_experts: has_experts[i],
            })
            .collect(),
        mtp: match class.gguf.has_mtp && may_have_mtp(json)? {
            true => Some(LayerConfig::mtp(experts.is_some())),
            false => None,
        },
        sliding_window,
        has_chunks: class.gguf.has_chunks && sliding_window.is_some(),
        rope,
        local_rope: local_rope.filter(|_| sliding_window.is_some()),
        has_pre_norms: class.gguf.has_pre_norms,
        norm: class.gguf.norm,
        is_parallel: class.gguf.is_parallel,
        has_qk_norm: class.gguf.has_qk_norm && json.bool("use_qk_norm")?.unwrap_or(!class.gguf.has_optional_qk_norm),
        qk_norm: class.gguf.qk_norm,
        has_sinks: class.gguf.has_sinks,
        has_output_gate: class.gguf.has_output_gate,
        recurrent: recurrent(json, &class)?,
        has_value_norm: class.gguf.has_value_norm,
        has_post_norms: class.gguf.has_post_norms,
        has_layer_scales: class.gguf.has_layer_scales,
        attention_scale: match class.gguf.attention_scale {
            Some(scale) => scale,
            None if class.gguf.has_multipliers => multiplier("attention_multiplier")? as f32,
            None => (magnitude * magnitude / scales.sqrt()) as f32,
        },
        attention_softcap: softcap("attn_logit_softcapping", class.softcaps.0)?.map(|x| x as f32),
        attention_temperature,
        latent,
        experts,
        embedding_scale: match class.is_gemma {
            true => embedding_scale(dim),
            false => multiplier("embedding_multiplier")? as f32,
        },
        residual_scale: multiplier("residual_multiplier")? as f32,
        logit_scale: match class.gguf.multiplies_logits {
            true => json.f64("logit_scale")?.unwrap_or(0.0625) as f32,
            false => (1.0 / multiplier("logits_scaling")?) as f32,
        },
        logit_softcap: softcap("final_logit_softcapping", class.softcaps.1)?.map(|x| x as f32),
        pooling: None,
    };
    let extras = Extras {
        n_vocab: json.count("vocab_size")?,
        tied: is_headless
            || match json.bool("tie_word_embeddings")?.or(json.bool("tie_embedding")?) {
                Some(tied) => tied,
                None => whole.bool("tie_word_embeddings")?.unwrap_or(class.tied),
            },
        has_qkv_bias: latent.is_none() && (class.has_qkv_bias || json.bool("attention_bias")? == Some(true)),
        lacks_values: class.gguf.has_value_norm && json.bool("attention_k_eq_v")? == Some(true),
        norms_from_one: class.norms_from_one,
        is_wrapped: wrapped.is_some(),
        expert_layout: class.experts.map_or(ExpertLayout::Rows, |keys| keys.layout),
    };
    Ok((config.checked()?, extras))
}

/// Whether the files may have a layer that predicts a further token: not all configurations say how many there are.
fn may_have_mtp(json: Object<'_>) -> Result<bool, CheckpointError> {
    const KEYS: [&str; 3] = ["num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers"];
    let counts: Vec<_> = KEYS.into_iter().map(|key| json.count(key)).collect::<Result<_, _>>()?;
    Ok(counts.into_iter().flatten().max() != Some(0))
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
fn refuse(json: Object<'_>, class: &Class) -> Result<(), CheckpointError> {
    const SEES_AHEAD: &str = "attention that is not causal";
    if class.gguf.norm == NormKind::Layer {
        if json.bool("use_qk_norm")? == Some(true) {
            return Err(json.unsupported("use_qk_norm", "layer norms of queries and keys"));
        }
        if json.f64("rotary_pct")?.is_some_and(|part| part != 1.0) {
            return Err(json.unsupported("rotary_pct", "heads that are rotated in part"));
        }
    }
    // Images may see ahead; there are none.
    let is_of_images = json.get("use_bidirectional_attention").is_some_and(|kind| kind == "vision");
    let is_off = |on: &serde_json::Value| on.is_null() || *on == false;
    if json.get("use_bidirectional_attention").is_some_and(|on| !is_off(on)) && !is_of_images {
        return Err(json.unsupported("use_bidirectional_attention", SEES_AHEAD));
    }
    if json.bool("is_causal")? == Some(false) {
        return Err(json.unsupported("is_causal", SEES_AHEAD));
    }
    Ok(())
}

/// The heads of global layers, where those of local ones are as given.
fn global_heads(json: Object<'_>, is_local: &[bool], local: LocalHeads) -> Result<LocalHeads, CheckpointError> {
    const LIST: &str = "per_layer_config";
    let Some(list) = json.object(LIST, "per_layer_config.")? else {
        let n_kv_heads = match json.bool("attention_k_eq_v")? {
            Some(true) => json.count("num_global_key_value_heads")?.unwrap_or(local.n_kv_heads),
            _ => local.n_kv_heads,
        };
        return Ok(LocalHeads { n_kv_heads, head_dim: json.count("global_head_dim")?.unwrap_or(512) });
    };
    let mut global = None;
    for (layer, &is_local) in is_local.iter().enumerate() {
        let own = list.object(&layer.to_string(), "per_layer_config.N.")?;
        let count = |key: &str| own.map(|own| own.count(key)).transpose().map(Option::flatten);
        let heads = LocalHeads {
            n_kv_heads: count("num_key_value_heads")?.unwrap_or(local.n_kv_heads),
            head_dim: count("head_dim")?.unwrap_or(local.head_dim),
        };
        let other = own.and_then(|own| own.keys().find(|key| !["num_key_value_heads", "head_dim"].contains(key)));
        let expected = if is_local { local } else { *global.get_or_insert(heads) };
        if other.is_some() || heads != expected {
            return Err(json.unsupported(LIST, "layers of one kind with different sizes"));
        }
    }
    Ok(global.unwrap_or(local))
}

/// The last layers, if they have no keys and values of their own.
fn shared_kv(json: Object<'_>, class: &Class, ffn_dim: usize) -> Result<Option<SharedKv>, CheckpointError> {
    if !class.gguf.has_local_heads {
        return Ok(None);
    }
    let Some(n_layers) = json.count("num_kv_shared_layers")?.filter(|&n| n > 0) else { return Ok(None) };
    let is_wide = json.bool("use_double_wide_mlp")? == Some(true);
    Ok(Some(SharedKv { n_layers, ffn_dim: if is_wide { ffn_dim.saturating_mul(2) } else { ffn_dim } }))
}

/// The dimensions of latent attention.
fn latent(json: Object<'_>, usual: LatentConfig) -> Result<LatentConfig, CheckpointError> {
    if json.bool("rope_interleave")? == Some(false) {
        return Err(json.unsupported("rope_interleave", "heads whose rotated pairs are not next to each other"));
    }
    let count = |key: &str, usual: usize| json.count(key).map(|n| n.unwrap_or(usual));
    let latent = LatentConfig {
        // `null` means that queries have no latent; only a missing key means the default.
        q_rank: match json.has("q_lora_rank") {
            true => json.count("q_lora_rank")?,
            false => usual.q_rank,
        },
        kv_rank: count("kv_lora_rank", usual.kv_rank)?,
        plain_dim: count("qk_nope_head_dim", usual.plain_dim)?,
        rotated_dim: count("qk_rope_head_dim", usual.rotated_dim)?,
        value_dim: count("v_head_dim", usual.value_dim)?,
    };
    let all = [latent.kv_rank, latent.plain_dim, latent.rotated_dim, latent.value_dim];
    match all.into_iter().find(|n| !(1..=crate::config::MAX_WIDTH).contains(n)) {
        Some(n) => Err(bad("kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim", n, "sensible".into())),
        None => Ok(latent),
    }
}

/// The magnitude whose square scores are scaled by.
fn yarn_of_scores(json: Object<'_>) -> Result<f64, CheckpointError> {
    let old = json.object("rope_scaling", "rope_scaling.")?.filter(|old| !old.is_empty());
    let Some(own) = old.or(json.object("rope_parameters", "rope_parameters.")?) else { return Ok(1.0) };
    let key = if own.get("rope_type").is_some() { "rope_type" } else { "type" };
    match (own.str(key)?, own.f64("mscale_all_dim")?) {
        (None | Some("default"), _) | (_, None | Some(0.0)) => Ok(1.0),
        (_, Some(m)) => Ok(yarn_magnitude(own.f64("factor")?.unwrap_or(1.0), m)),
    }
}

/// The inner width of layers without experts, if the file specifies it.
fn ffn_width(json: Object<'_>, class: &Class) -> Result<Option<usize>, CheckpointError> {
    if class.gguf.recurrent != Some(RecurrentKind::ShortConvolution) {
        return Ok(json.count(class.ffn_width)?);
    }
    let Some(width) = json.count("block_ff_dim")?.or(json.count(class.ffn_width)?) else { return Ok(None) };
    if class.experts.is_some() || json.bool("block_auto_adjust_ff_dim")? == Some(false) {
        return Ok(Some(width));
    }
    let multiple = json.count("block_multiple_of")?.unwrap_or(256).max(1);
    // As computed in training, which rounds down before and after the factor.
    let factor = json.f64("block_ffn_dim_multiplier")?.unwrap_or(1.0);
    let width = (factor * (2 * width / 3) as f64) as usize;
    Ok(Some(width.div_ceil(multiple).saturating_mul(multiple)))
}

/// How queries are scaled by their position.
fn temperature(json: Object<'_>, class: &Class) -> Result<Option<AttentionTemperature>, CheckpointError> {
    match class.temperatures {
        Temperatures::None => return Ok(None),
        Temperatures::Mistral => {}
        Temperatures::Llama4 => {
            // The first files have a number here.
            let is_off = json.get("attn_temperature_tuning").is_some_and(|on| *on == false || *on == 0);
            let usual = class.gguf.temperature.filter(|_| !is_off);
            let (scale, length) = (json.f64("attn_scale")?, json.count("floor_scale")?);
            return Ok(usual.map(|usual| AttentionTemperature {
                scale: scale.map_or(usual.scale, rounded),
                length: length.unwrap_or(usual.length),
                ..usual
            }));
        }
    }
    let rope = json.object("rope_parameters", "rope_parameters.")?;
    let rope = json.require("rope_parameters", rope)?;
    let scale = rope.f64("llama_4_scaling_beta")?;
    let scale = rope.require("llama_4_scaling_beta", scale)?;
    let length = rope.required_count("original_max_position_embeddings")?;
    Ok(Some(AttentionTemperature { scale: rounded(scale), length, offset: 0, only_without_rope: false }))
}

/// Rounded to f32, as in a GGUF file.
fn rounded(x: f64) -> f64 {
    f64::from(x as f32)
}

fn gate(json: Object<'_>, class: &Class) -> Result<GateFunction, CheckpointError> {
    if !class.gguf.is_gated {
        return match json.str("mlp_hidden_act")? {
            None | Some("relu2") => Ok(class.gguf.gate),
            Some(_) => Err(json.unsupported("mlp_hidden_act", "another activation function")),
        };
    }
    // Gemma's first files have `hidden_act: gelu` but mean `hidden_activation` or, without it, the tanh form.
    if class.is_gemma {
        return match json.str("hidden_activation")? {
            None | Some("gelu_pytorch_tanh") => Ok(GateFunction::GeluTanh),
            Some(_) => Err(json.unsupported("hidden_activation", "another activation function")),
        };
    }
    if class.gguf.gate == GateFunction::ClampedSilu {
        const OTHER: &str = "a clamped SwiGLU with other constants";
        for (key, usual) in [("swiglu_limit", GateFunction::CLAMP), ("swiglu_alpha", GateFunction::CLAMPED_ALPHA)] {
            if json.f64(key)?.is_some_and(|x| x as f32 != usual) {
                return Err(json.unsupported(key, OTHER));
            }
        }
        return match json.str("hidden_act")? {
            None | Some("silu" | "swish") => Ok(GateFunction::ClampedSilu),
            Some(_) => Err(json.unsupported("hidden_act", "another activation function")),
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
    let key = if class.windows == Windows::Chunks { "attention_chunk_size" } else { "sliding_window" };
    let window = match json.has(key) {
        true => json.count(key)?,
        false => class.window,
    };
    let every = |period: usize| (0..n_layers).map(|i| period == 0 || (i + 1) % period != 0).collect::<Vec<_>>();
    let listed = match class.windows {
        Windows::None => None,
        Windows::Chunks => layer_types(json, n_layers, "chunked_attention")?,
        _ => layer_types(json, n_layers, "sliding_attention")?,
    };
    let (window, is_local) = match (class.windows, listed) {
        (Windows::None, _) => (None, every(1)),
        (Windows::Switched, _) if json.bool("use_sliding_window")? != Some(true) => (None, every(1)),
        (_, Some(list)) => (window, list),
        (Windows::All, None) => (window, every(0)),
        (Windows::Chunks, None) => (window, rotated(json, class, n_layers, None)?),
        (Windows::Pattern(period) | Windows::EndsGlobal(period), None) => {
            // Some files have a text like `LLLG`, one letter for each layer of a period.
            let named = match json.get("sliding_window_pattern").and_then(serde_json::Value::as_str) {
                Some(text) if text.strip_suffix('G').is_some_and(|rest| rest.bytes().all(|kind| kind == b'L')) => {
                    Some(text.len())
                }
                Some(_) => return Err(json.unsupported("sliding_window_pattern", "another pattern of local layers")),
                None => json.count("sliding_window_pattern")?.or(json.count("_sliding_window_pattern")?),
            };
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
    let mut is_local = is_local;
    if let (Windows::EndsGlobal(_), Some(last)) = (class.windows, is_local.last_mut()) {
        *last = false;
    }
    Ok((window.filter(|_| is_local.contains(&true)), is_local))
}

/// `layer_types`: whether each layer is local, which is to say of the kind `local`.
pub(super) fn layer_types(
    json: Object<'_>,
    n_layers: usize,
    local: &str,
) -> Result<Option<Vec<bool>>, CheckpointError> {
    let Some(list) = json.strings("layer_types")? else { return Ok(None) };
    if list.len() != n_layers {
        return Err(bad("layer_types", format!("{} layers", list.len()), format!("{n_layers} layers")));
    }
    let is_local = list.into_iter().map(|kind| match kind {
        kind if kind == local => Ok(true),
        "full_attention" => Ok(false),
        other => Err(CheckpointError::UnsupportedFeature {
            feature: "another kind of attention",
            key: json.path("layer_types"),
            value: other.to_owned(),
        }),
    });
    is_local.collect::<Result<_, _>>().map(Some)
}

/// Whether each layer has a position embedding. `is_local` is there if the model has a window.
fn rotated(
    json: Object<'_>,
    class: &Class,
    n_layers: usize,
    is_local: Option<&[bool]>,
) -> Result<Vec<bool>, CheckpointError> {
    if class.space.is_some() {
        return Ok(vec![json.str("position_embedding_type")? == Some("rope"); n_layers]);
    }
    if class.nope_every == 0 {
        if class.gguf.has_global_nope
            && let Some(is_local) = is_local
        {
            return Ok(is_local.to_vec());
        }
        return Ok(vec![true; n_layers]);
    }
    // An empty list means that the default applies.
    if let Some(list) = json.list("no_rope_layers")?.filter(|list| !list.is_empty()) {
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
    [head_dim, local_dim]: [usize; 2],
    latent: Option<&LatentConfig>,
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
    let is_proportional = class.has_proportional_rope
        && match global {
            Some(own) => own.str("rope_type")? == Some(PROPORTIONAL),
            None => true,
        };
    let fraction = match global.map(|own| own.f64("partial_rotary_factor")).transpose()?.flatten() {
        Some(fraction) => fraction,
        None if is_proportional && global.is_some() => 1.0,
        None => json.f64("partial_rotary_factor")?.unwrap_or(class.rope_fraction),
    };
    if fraction != 1.0 && !class.has_partial_rope && !is_proportional && latent.is_none() {
        let own = global.filter(|own| own.get("partial_rotary_factor").is_some()).unwrap_or(json);
        return Err(own.unsupported("partial_rotary_factor", "heads that are rotated in part"));
    }
    let n_dims = match latent {
        Some(latent) => latent.rotated_dim,
        None if is_proportional => head_dim,
        None => (head_dim as f64 * fraction) as usize,
    };
    let mut rope = RopeConfig::new(theta(global, "rope_theta", class.rope_theta)?, n_dims, class.gguf.rope_style);
    if is_proportional {
        rope.divisors = proportional(head_dim, fraction)?;
    }
    let mut context_length = max_positions;
    let alpha = match global.filter(|_| class.has_ntk_alpha) {
        Some(own) => own.f64("alpha")?.filter(|&alpha| alpha != 0.0),
        None => None,
    };
    if let Some(alpha) = alpha {
        if n_dims <= 2 || !(alpha.is_finite() && alpha > 0.0) {
            return Err(bad(
                "rope_scaling.alpha",
                alpha,
                "a positive number, for heads of more than 2 elements".into(),
            ));
        }
        // Rounded as in a file.
        rope.theta = rounded(rope.theta * libm::pow(alpha, n_dims as f64 / (n_dims - 2) as f64));
    }
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
            let n_dims = if class.gguf.has_local_heads { local_dim } else { n_dims };
            let mut rope = RopeConfig::new(theta, n_dims, class.gguf.rope_style);
            if let Some(own) = own {
                if own.str("rope_type")? == Some(PROPORTIONAL) {
                    return Err(own.unsupported("rope_type", "another kind of rope scaling"));
                }
                (rope.scaling, rope.attention_factor) = rope_scaling(json, own, class, max_positions)?;
            }
            Some(rope)
        }
    };
    Ok((rope, local_rope, context_length))
}

/// The rotation of a part of the pairs whose frequencies are those of whole heads.
const PROPORTIONAL: &str = "proportional";

/// Divisors of the frequencies of a proportional rotation: the pairs after this fraction do not turn, for which GGUF files
/// have a large number.
fn proportional(head_dim: usize, fraction: f64) -> Result<Option<Vec<f32>>, CheckpointError> {
    const STILL: f32 = 1e30;
    if head_dim > MAX_WIDTH || !(0.0..=1.0).contains(&fraction) {
        let found = format!("{fraction} of {head_dim} elements");
        return Err(bad("partial_rotary_factor", found, "a part of a head".to_owned()));
    }
    let (n_pairs, n_rotated) = (head_dim / 2, (head_dim as f64 * fraction / 2.0) as usize);
    let divisors = (0..n_pairs).map(|pair| if pair < n_rotated { 1.0 } else { STILL });
    Ok((n_rotated < n_pairs).then(|| divisors.collect()))
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
        PROPORTIONAL if class.has_proportional_rope => match own.f64("factor")? {
            Some(factor) if factor != 1.0 => RopeScaling::Linear { factor },
            _ => RopeScaling::None,
        },
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
