//! `config.json`: what the layers of a model are, and the sizes of those that keep a state.

use super::config::layer_types;
use super::json::Object;
use crate::CheckpointError;
use crate::config::{DeltaNetConfig, Recurrent, StateSpaceConfig, bad};
use crate::families::{Class, RecurrentKind, SpaceKeys};

/// What a layer begins with.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum LayerKind {
    Attention,
    /// A state of fixed size.
    Recurrent,
    /// Only a feed-forward block.
    FeedForward,
    /// Only experts.
    Experts,
}

impl LayerKind {
    /// Whether there is attention, or a state in its place.
    pub(super) fn has_attention(self) -> bool {
        matches!(self, Self::Attention | Self::Recurrent)
    }
}

/// The class of a model with these layers: with and without experts, some classes have different GGUF files.
pub(super) fn with_layers(class: Class, kinds: &[LayerKind]) -> Class {
    match class.gguf_of_experts {
        Some(gguf) if kinds.contains(&LayerKind::Experts) => Class { gguf, ..class },
        Some(_) => Class { experts: None, ..class },
        None => class,
    }
}

/// What the layers are.
pub(super) fn layer_kinds(json: Object<'_>, class: &Class, n_layers: usize) -> Result<Vec<LayerKind>, CheckpointError> {
    if class.space.is_some() {
        return layers_with_spaces(json, class, n_layers);
    }
    let kind = |is_recurrent| if is_recurrent { LayerKind::Recurrent } else { LayerKind::Attention };
    Ok(recurrent_layers(json, class, n_layers)?.into_iter().map(kind).collect())
}

/// What the layers of a model with state spaces are: a text with a letter for each, or a list of words, which older files
/// have under another key or with other words.
fn layers_with_spaces(json: Object<'_>, class: &Class, n_layers: usize) -> Result<Vec<LayerKind>, CheckpointError> {
    let has_one_mixer = class.gguf.has_one_mixer;
    let pattern = if has_one_mixer { json.str("hybrid_override_pattern")? } else { None };
    let (key, kinds) = match pattern {
        Some(pattern) => {
            let letters = pattern.char_indices().map(|(at, letter)| &pattern[at..at + letter.len_utf8()]);
            ("hybrid_override_pattern", letters.collect())
        }
        None => {
            let key = if json.has("layers_block_type") { "layers_block_type" } else { "layer_types" };
            let kinds = json.strings(key)?;
            (key, json.require(key, kinds)?)
        }
    };
    if kinds.len() != n_layers {
        return Err(bad(key, format!("{} layers", kinds.len()), format!("{n_layers} layers")));
    }
    let kinds = kinds.into_iter().map(|kind| match kind {
        "M" | "mamba" | "linear_attention" => Ok(LayerKind::Recurrent),
        "*" | "attention" | "full_attention" => Ok(LayerKind::Attention),
        "-" | "mlp" if has_one_mixer => Ok(LayerKind::FeedForward),
        "E" | "moe" if class.gguf_of_experts.is_some() => Ok(LayerKind::Experts),
        other => Err(CheckpointError::UnsupportedFeature {
            feature: "another kind of layer",
            key: json.path(key),
            value: other.to_owned(),
        }),
    });
    let kinds: Vec<_> = kinds.collect::<Result<_, CheckpointError>>()?;
    match kinds.contains(&LayerKind::FeedForward) && kinds.contains(&LayerKind::Experts) {
        true => Err(json.unsupported(key, "experts in some layers and plain feed-forward blocks in others")),
        false => Ok(kinds),
    }
}

/// Which layers keep a state of fixed size.
fn recurrent_layers(json: Object<'_>, class: &Class, n_layers: usize) -> Result<Vec<bool>, CheckpointError> {
    if class.gguf.recurrent.is_none() {
        return Ok(vec![false; n_layers]);
    }
    if class.gguf.has_output_gate && json.bool("attn_output_gate")? == Some(false) {
        return Err(json.unsupported("attn_output_gate", "attention without gates"));
    }
    let kind = match class.gguf.recurrent {
        Some(RecurrentKind::ShortConvolution) => "conv",
        _ => "linear_attention",
    };
    if let Some(list) = layer_types(json, n_layers, kind)? {
        return Ok(list);
    }
    if class.gguf.recurrent == Some(RecurrentKind::ShortConvolution) {
        let Some(list) = json.list("full_attn_idxs")? else { return Ok(vec![false; n_layers]) };
        return Ok((0..n_layers as u64).map(|i| !list.iter().any(|layer| layer.as_u64() == Some(i))).collect());
    }
    let every = json.count("full_attention_interval")?.unwrap_or(4).max(1);
    Ok((0..n_layers).map(|i| (i + 1) % every != 0).collect())
}

/// What recurrent layers compute.
pub(super) fn recurrent(json: Object<'_>, class: &Class) -> Result<Option<Recurrent>, CheckpointError> {
    let count = |key: &str, usual: usize| json.count(key).map(|n| n.unwrap_or(usual));
    Ok(match class.gguf.recurrent {
        None => None,
        Some(RecurrentKind::ShortConvolution) => {
            if json.bool("conv_bias")? == Some(true) {
                return Err(json.unsupported("conv_bias", "convolutions with biases"));
            }
            Some(Recurrent::ShortConvolution { n_taps: count("conv_L_cache", 3)? })
        }
        Some(RecurrentKind::StateSpace) => match class.space {
            Some(keys) => Some(Recurrent::StateSpace(state_space(json, keys)?)),
            None => None,
        },
        Some(RecurrentKind::DeltaNet { is_tiled }) => Some(Recurrent::DeltaNet(DeltaNetConfig {
            n_k_heads: count("linear_num_key_heads", 16)?,
            n_v_heads: count("linear_num_value_heads", 32)?,
            k_dim: count("linear_key_head_dim", 128)?,
            v_dim: count("linear_value_head_dim", 128)?,
            n_taps: count("linear_conv_kernel_dim", 4)?,
            is_tiled,
        })),
    })
}

/// The sizes of a state space.
fn state_space(json: Object<'_>, keys: SpaceKeys) -> Result<StateSpaceConfig, CheckpointError> {
    for key in ["mamba_proj_bias", "use_bias"] {
        if json.bool(key)? == Some(true) {
            return Err(json.unsupported(key, "state spaces whose projections have biases"));
        }
    }
    if json.str("mamba_hidden_act")?.is_some_and(|function| function != "silu") {
        return Err(json.unsupported("mamba_hidden_act", "another activation function"));
    }
    // The second number is missing where it is infinite.
    if let Some(limits) = json.list("time_step_limit")?
        && limits.iter().zip([Some(0.0), None]).any(|(limit, usual)| limit.as_f64() != usual)
    {
        return Err(json.unsupported("time_step_limit", "limits of time steps"));
    }
    let count = |(key, usual): (&str, usize)| json.count(key).map(|n| n.unwrap_or(usual));
    let n_heads = count(keys.n_heads)?;
    let head_dim = match json.get(keys.head_dim.0).and_then(serde_json::Value::as_str) {
        Some("auto") => {
            let inner = count(("mamba_expand", 2))?.saturating_mul(json.required_count("hidden_size")?);
            inner.checked_div(n_heads).unwrap_or(0)
        }
        _ => count(keys.head_dim)?,
    };
    let [n_groups, state_dim, n_taps] = [count(keys.n_groups)?, count(keys.state_dim)?, count(keys.n_taps)?];
    Ok(StateSpaceConfig { n_groups, n_heads, state_dim, head_dim, n_taps })
}
