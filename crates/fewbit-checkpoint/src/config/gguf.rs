//! The configuration of a GGUF file: its metadata, and the few tensors that are constants of the model.
//!
//! What the keys of an architecture mean, and the defaults for missing keys, are in the row of its family (`families`).

use super::rope::yarn_magnitude;
use super::{
    AttentionTemperature, DeltaNetConfig, ExpertConfig, ExpertGroups, Gating, LatentConfig, LayerConfig, LocalHeads,
    MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH, ModelConfig, NormKind, Pooling, Recurrent, RopeConfig, RopeScaling, SharedKv,
    StateSpaceConfig, bad, check_count,
};
use crate::CheckpointError;
use crate::families::{self, Architecture, RecurrentKind};
use crate::names::{self, Part};
use crate::source::decode;
use fewbit_format::{GgufFile, Metadata, Value};

/// Keys under the architecture's prefix that enable a feature which the decoder does not have, a description of it, and
/// the value that disables it. A file with any other value of such a key is an error: ignoring it would give plausible
/// nonsense.
const REFUSED: [(&str, &str, f64); 10] = [
    ("attention.causal", "attention that is not causal", 1.0),
    ("attention.clamp_kqv", "clamped queries, keys and values", 0.0),
    ("attention.max_alibi_bias", "ALiBi position bias", 0.0),
    ("attention.output_scale", "scaled attention outputs", 1.0),
    ("rope.scaling.alpha", "rope scaling by alpha", 0.0),
    ("rope.scaling.yarn_ext_factor", "a YaRN extrapolation factor", 1.0),
    ("use_parallel_residual", "parallel residuals", 0.0),
    ("router_logit_softcapping", "capped router scores", 0.0),
    ("moe_latent_size", "experts whose inputs are projected to a latent", 0.0),
    ("attention.indexer.top_k", "attention to keys that an index chooses", 0.0),
];

/// Keys that only some architectures have, as above.
fn refused_by(arch: &Architecture) -> impl Iterator<Item = (&'static str, &'static str, f64)> {
    let keys = [
        (arch.is_latent, ("attention.key_length_mla", "multi-head latent attention", f64::NAN)),
        (arch.is_latent, ("attention.kv_lora_rank", "multi-head latent attention", f64::NAN)),
        (arch.has_local_heads, ("attention.key_length_swa", "heads of another length in local layers", f64::NAN)),
        (arch.has_local_heads, ("attention.shared_kv_layers", "layers that share keys and values", 0.0)),
        (arch.has_local_heads, ("rope.dimension_count_swa", "other rotated dimensions in local layers", f64::NAN)),
        (arch.has_per_layer_embeddings, ("embedding_length_per_layer_input", "per-layer embeddings", 0.0)),
        (arch.has_groups, ("expert_group_count", "groups of experts", 1.0)),
        (arch.has_dense_lead, ("leading_dense_block_count", "dense layers before those with experts", 0.0)),
        (arch.has_further_layers, ("nextn_predict_layers", "layers that predict further tokens", 0.0)),
    ];
    keys.into_iter().filter(|(is_known, _)| !is_known).map(|(_, key)| key)
}

/// The metadata of one architecture: keys without its prefix, each value checked.
struct Keys<'a> {
    meta: &'a Metadata,
    prefix: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    /// A count.
    fn count(&self, key: &str, max: usize) -> Result<Option<usize>, CheckpointError> {
        let name = self.name(key);
        let Some(value) = self.meta.u64(&name)? else { return Ok(None) };
        let n = usize::try_from(value).unwrap_or(usize::MAX);
        check_count(&name, n, max)?;
        Ok(Some(n))
    }

    fn required(&self, key: &str, max: usize) -> Result<usize, CheckpointError> {
        let missing = || fewbit_format::FormatError::MissingKey { key: self.name(key) };
        self.count(key, max)?.ok_or_else(|| missing().into())
    }

    /// The number of layers, without those that predict further tokens.
    fn layers(&self) -> Result<usize, CheckpointError> {
        let all = self.required("block_count", MAX_LAYERS)?;
        let Some(further) = self.or_none("nextn_predict_layers", MAX_LAYERS)? else { return Ok(all) };
        let key = self.name("nextn_predict_layers");
        all.checked_sub(further)
            .filter(|&n| n > 0)
            .ok_or_else(|| bad(&key, further, format!("fewer than {all} layers")))
    }

    /// A count for which 0 means "none".
    fn or_none(&self, key: &str, max: usize) -> Result<Option<usize>, CheckpointError> {
        match self.meta.u64(&self.name(key))? {
            Some(0) => Ok(None),
            _ => self.count(key, max),
        }
    }

    /// A positive float, or 0 for "none".
    fn positive(&self, key: &str) -> Result<Option<f32>, CheckpointError> {
        let name = self.name(key);
        match self.meta.f32(&name)? {
            Some(x) if !(x.is_finite() && x >= 0.0) => Err(bad(&name, x, "a positive number".to_owned())),
            x => Ok(x.filter(|&x| x > 0.0)),
        }
    }

    /// Returns an error for every key of [`REFUSED`] that enables something.
    fn refuse(&self, arch: &Architecture) -> Result<(), CheckpointError> {
        for (key, feature, harmless) in REFUSED.into_iter().chain(refused_by(arch)) {
            let key = self.name(key);
            let Some(value) = self.meta.get(&key) else { continue };
            let number = match value {
                Value::Bool(b) => Some(f64::from(u8::from(*b))),
                Value::F32(x) => Some(f64::from(*x)),
                Value::F64(x) => Some(*x),
                _ => value.as_integer().map(|n| n as f64),
            };
            // 0 means "not set" unless it is itself a meaningful value.
            let unset = harmless != 0.0 && number == Some(0.0) && !matches!(value, Value::Bool(_));
            if number != Some(harmless) && !unset {
                let value = number.map_or_else(|| value.type_name().to_owned(), |x| x.to_string());
                return Err(CheckpointError::UnsupportedFeature { feature, key, value });
            }
        }
        Ok(())
    }
}

impl ModelConfig {
    /// Reads and checks the configuration of a GGUF file.
    ///
    /// # Errors
    /// [`CheckpointError::UnknownArchitecture`], [`CheckpointError::UnsupportedFeature`],
    /// [`CheckpointError::BadConfig`], and the errors of the format for keys that are missing or have the wrong type.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, CheckpointError> {
        Self::from_metadata(file.metadata(), &|name, len| constants(file, name, len))
    }

    /// Reads and checks the metadata. `constants` finds a vector of the file by its name and expected length.
    pub(super) fn from_metadata(meta: &Metadata, constants: Constants<'_>) -> Result<Self, CheckpointError> {
        let name = meta.require_str("general.architecture")?;
        let Some(arch) = families::architecture(name) else {
            let known = families::architectures().collect();
            return Err(CheckpointError::UnknownArchitecture { name: name.to_owned(), known });
        };
        let keys = Keys { meta, prefix: name };
        keys.refuse(arch)?;
        let n_layers = keys.layers()?;
        let dim = keys.required("embedding_length", MAX_WIDTH)?;
        let n_heads = keys.required("attention.head_count", MAX_WIDTH)?;
        let latent = if arch.is_latent { Some(latent(&keys)?) } else { None };
        let head_dim = match &latent {
            Some(latent) => latent.kv_rank + latent.rotated_dim,
            None => keys.count("attention.key_length", MAX_WIDTH)?.unwrap_or(dim / n_heads),
        };
        let value_dim = keys.count("attention.value_length", MAX_WIDTH)?.unwrap_or(head_dim);
        if value_dim != head_dim && latent.is_none() {
            let expected = format!("as long as keys, {head_dim}");
            return Err(bad(&keys.name("attention.value_length"), value_dim, expected));
        }
        let context_length = keys.required("context_length", MAX_CONTEXT)?;
        let experts = experts(&keys, arch, constants)?;
        let mixers = if arch.has_one_mixer { Some(feed_forward_lengths(&keys, n_layers)?) } else { None };
        let has_mlp = |layer: usize| mixers.as_ref().is_some_and(|lengths| lengths[layer] > 0);
        let n_shared = if arch.has_local_heads { keys.or_none("attention.shared_kv_layers", n_layers)? } else { None };
        let ffn_dims = match &mixers {
            Some(lengths) => lengths.iter().max().map(|&n| (n.max(1), n.max(1))),
            None => ffn_dims(&keys, n_layers, n_shared)?,
        };
        let (ffn_dim, shared_ffn_dim) = match (ffn_dims, experts) {
            (Some(dims), _) => dims,
            (None, Some(experts)) => (experts.ffn_dim, experts.ffn_dim),
            (None, None) => {
                let n = keys.required("feed_forward_length", MAX_WIDTH)?;
                (n, n)
            }
        };
        let sliding_window = match meta.contains(&keys.name("attention.sliding_window")) {
            true => keys.or_none("attention.sliding_window", usize::MAX)?,
            false => arch.window,
        };
        let is_local = local_layers(&keys, arch, n_layers)?;
        let is_nope = arch.has_nope_switch && meta.bool(&keys.name("rope.scaling.finetuned"))? == Some(false);
        let has_window = sliding_window.is_some();
        let experts_every = match experts {
            Some(_) => keys.or_none("interleave_moe_layer_step", MAX_LAYERS)?.unwrap_or(1),
            None => 1,
        };
        let n_dense = if arch.has_dense_lead { keys.or_none("leading_dense_block_count", MAX_LAYERS)? } else { None };
        let is_recurrent = recurrent_layers(&keys, arch, n_layers)?;
        let layers: Vec<_> = (0..n_layers)
            .map(|i| LayerConfig {
                is_recurrent: is_recurrent[i] && !has_mlp(i),
                has_attention: !has_mlp(i),
                has_feed_forward: mixers.is_none() || has_mlp(i),
                is_local: has_window && is_local[i],
                has_rope: !is_nope
                    && (arch.nope_every == 0 || (i + 1) % arch.nope_every != 0)
                    && !(arch.has_global_nope && has_window && !is_local[i]),
                has_experts: experts.is_some()
                    && match &mixers {
                        Some(_) => has_mlp(i),
                        None => (i + 1) % experts_every == 0 && i >= n_dense.unwrap_or(0),
                    },
            })
            .collect();
        let temperature = temperature(&keys, arch, context_length)?;
        let (n_kv_heads, local_heads) = match arch.has_local_heads {
            true => heads_by_kind(&keys, &layers, n_heads, head_dim)?,
            false => (0, None),
        };
        let width = if arch.scaled_by_width.contains(&n_layers) { dim / n_heads } else { head_dim };
        let width = latent.map_or(width, |latent| latent.query_dim());
        let rope = rope(&keys, constants, arch, head_dim, context_length)?;
        // The multiplier is 0.1 times the `mscale_all_dim` of the original configuration.
        let magnitude = match (&rope.scaling, keys.positive("rope.scaling.yarn_log_multiplier")?) {
            (RopeScaling::Yarn { factor, .. }, Some(m)) if arch.is_latent => {
                yarn_magnitude(*factor, f64::from(m) * 10.0)
            }
            _ => 1.0,
        };
        let local_theta = keys.positive("rope.freq_base_swa")?.map(f64::from);
        let local_dims = match keys.count("rope.dimension_count_swa", MAX_WIDTH)? {
            Some(n) => n,
            None => local_heads.map_or(rope.n_dims, |heads: LocalHeads| heads.head_dim),
        };
        let local_rope = (arch.local_theta.or(local_theta.map(Some)))
            .map(|theta| RopeConfig::new(local_theta.or(theta).unwrap_or(rope.theta), local_dims, rope.style))
            .filter(|_| sliding_window.is_some());
        let config = Self {
            architecture: name.to_owned(),
            // For display only: a value of the wrong type must not keep the model from loading.
            name: meta.str("general.name").ok().flatten().map(str::to_owned),
            dim,
            n_heads,
            n_kv_heads: match arch.recurrent {
                _ if latent.is_some() => 1,
                _ if arch.has_local_heads => n_kv_heads,
                Some(RecurrentKind::ShortConvolution | RecurrentKind::StateSpace) => {
                    kv_heads(&keys)?.into_iter().max().unwrap_or(0)
                }
                _ => keys.count("attention.head_count_kv", MAX_WIDTH)?.unwrap_or(n_heads),
            },
            head_dim,
            local_heads,
            shared_kv: n_shared.map(|n_layers| SharedKv { n_layers, ffn_dim: shared_ffn_dim }),
            per_layer_dim: match arch.has_per_layer_embeddings {
                true => keys.or_none("embedding_length_per_layer_input", MAX_WIDTH)?,
                false => None,
            },
            ffn_dim,
            context_length,
            rms_norm_eps: match arch.norm {
                NormKind::Rms if arch.has_layer_norm_eps && !meta.contains(&keys.name(RMS_EPS)) => {
                    meta.require_f32(&keys.name("attention.layer_norm_epsilon"))?
                }
                NormKind::Rms => meta.require_f32(&keys.name(RMS_EPS))?,
                NormKind::Layer => meta.require_f32(&keys.name("attention.layer_norm_epsilon"))?,
            },
            gate: arch.gate,
            is_gated: arch.is_gated,
            // A temperature for layers without position embedding means nothing in a model without such layers.
            attention_temperature: temperature
                .filter(|t| !t.only_without_rope || layers.iter().any(|layer| !layer.has_rope)),
            mtp: mtp_layer(&keys, arch, constants, (n_layers, dim), experts.is_some())?,
            layers,
            sliding_window,
            has_chunks: arch.has_chunks && has_window,
            rope,
            local_rope,
            has_pre_norms: arch.has_pre_norms,
            norm: arch.norm,
            is_parallel: arch.is_parallel,
            has_qk_norm: arch.has_qk_norm
                && (!arch.has_optional_qk_norm || constants(QK_NORM, head_dim)?.is_some())
                && arch.no_qk_norm.is_none_or(|n| experts.is_none_or(|experts| experts.n_experts != n)),
            qk_norm: arch.qk_norm,
            has_value_norm: arch.has_value_norm,
            has_post_norms: arch.has_post_norms,
            has_layer_scales: arch.has_layer_scales,
            attention_scale: match keys.positive("attention.scale")?.or(arch.attention_scale) {
                Some(scale) => scale,
                None => (magnitude * magnitude / (width as f64).sqrt()) as f32,
            },
            attention_softcap: keys.positive("attn_logit_softcapping")?.or(arch.softcaps.0),
            has_sinks: arch.has_sinks,
            latent,
            has_output_gate: arch.has_output_gate,
            recurrent: recurrent(&keys, arch)?,
            experts,
            embedding_scale: match arch.scales_embeddings {
                true => embedding_scale(dim),
                false => keys.positive("embedding_scale")?.unwrap_or(1.0),
            },
            residual_scale: keys.positive("residual_scale")?.unwrap_or(1.0),
            // For most architectures, the value of this key is a divisor.
            logit_scale: match keys.positive("logit_scale")? {
                Some(scale) if arch.multiplies_logits => scale,
                scale => scale.map_or(1.0, |s| 1.0 / s),
            },
            logit_softcap: keys.positive("final_logit_softcapping")?.or(arch.softcaps.1),
            pooling: match meta.u64(&keys.name("pooling_type"))? {
                Some(1) => Some(Pooling::Mean),
                Some(2) => Some(Pooling::Cls),
                Some(3) => Some(Pooling::Last),
                _ => None,
            },
        };
        config.checked()
    }
}

/// The first layer after the `n_layers` of the model, if it can predict a further token and is in the file.
fn mtp_layer(
    keys: &Keys<'_>,
    arch: &Architecture,
    constants: Constants<'_>,
    (n_layers, dim): (usize, usize),
    has_experts: bool,
) -> Result<Option<LayerConfig>, CheckpointError> {
    if !arch.has_mtp || keys.required("block_count", MAX_LAYERS)? == n_layers {
        return Ok(None);
    }
    let norm = constants(&format!("{}.weight", names::gguf(Part::MtpHiddenNorm, n_layers)), dim)?;
    Ok(norm.map(|_| LayerConfig::mtp(has_experts)))
}

/// The square root of the width, rounded to bf16, in which these models were trained and are run.
pub(crate) fn embedding_scale(dim: usize) -> f32 {
    half::bf16::from_f64((dim as f64).sqrt()).to_f32()
}

/// The key of the epsilon of RMS norms.
const RMS_EPS: &str = "attention.layer_norm_rms_epsilon";

/// The numbers of key and value heads of the layers, or one for all. All that are not 0 must be equal.
fn kv_heads(keys: &Keys<'_>) -> Result<Vec<usize>, CheckpointError> {
    equal_or_none(keys, "attention.head_count_kv", "layers with different numbers of key and value heads")
}

/// The inner widths of the feed-forward blocks of all layers; 0 for layers without one.
fn feed_forward_lengths(keys: &Keys<'_>, n_layers: usize) -> Result<Vec<usize>, CheckpointError> {
    let lengths = equal_or_none(keys, "feed_forward_length", "feed-forward blocks of different widths")?;
    check_layers(&keys.name("feed_forward_length"), &lengths, n_layers)?;
    Ok(lengths)
}

/// A number of each layer, or one for all. All that are not 0 must be equal.
fn equal_or_none(keys: &Keys<'_>, key: &str, differing: &'static str) -> Result<Vec<usize>, CheckpointError> {
    let name = keys.name(key);
    let Some(mut list) = list_of(keys, &name)? else { return Ok(vec![keys.required(key, MAX_WIDTH)?]) };
    // Layers that predict further tokens have numbers, too.
    let (n_layers, n_all) = (keys.layers()?, keys.required("block_count", MAX_LAYERS)?);
    if list.len() == n_all {
        list.truncate(n_layers);
    }
    let most = list.iter().max().copied().unwrap_or(0);
    match list.iter().find(|&&n| n != 0 && n != most) {
        Some(&other) => Err(CheckpointError::UnsupportedFeature {
            feature: differing,
            key: name,
            value: format!("{other} and {most}"),
        }),
        None => Ok(list),
    }
}

/// The numbers of a key that has one for each layer, or one for all.
fn per_layer(keys: &Keys<'_>, key: &str, n_layers: usize) -> Result<Option<Vec<usize>>, CheckpointError> {
    let name = keys.name(key);
    let Some(list) = list_of(keys, &name)? else { return Ok(keys.count(key, MAX_WIDTH)?.map(|n| vec![n; n_layers])) };
    check_layers(&name, &list, n_layers)?;
    list.iter().try_for_each(|&n| check_count(&name, n, MAX_WIDTH))?;
    Ok(Some(list))
}

/// Checks that a list has a number for each layer.
fn check_layers(name: &str, list: &[usize], n_layers: usize) -> Result<(), CheckpointError> {
    match list.len() == n_layers {
        true => Ok(()),
        false => Err(bad(name, format!("{} layers", list.len()), format!("{n_layers} layers"))),
    }
}

/// The numbers of a key that has a list, signed or not; those below 0 as 0.
fn list_of(keys: &Keys<'_>, name: &str) -> Result<Option<Vec<usize>>, CheckpointError> {
    let Some(Value::Array(_)) = keys.meta.get(name) else { return Ok(None) };
    Ok(Some(match keys.meta.u32_array(name) {
        Ok(list) => list.unwrap_or_default().iter().map(|&n| n as usize).collect(),
        Err(_) => keys.meta.require_i32_array(name)?.iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect(),
    }))
}

/// The number that those layers have for which `is_one` is true, if there are any. All must have the same.
fn common(
    keys: &Keys<'_>,
    key: &str,
    list: &[usize],
    is_one: impl Fn(usize) -> bool,
) -> Result<Option<usize>, CheckpointError> {
    let mut those = list.iter().enumerate().filter(|(layer, _)| is_one(*layer)).map(|(_, n)| *n);
    let Some(first) = those.next() else { return Ok(None) };
    match those.find(|&n| n != first) {
        None => Ok(Some(first)),
        Some(other) => Err(CheckpointError::UnsupportedFeature {
            feature: "layers of one kind with different sizes",
            key: keys.name(key),
            value: format!("{first} and {other}"),
        }),
    }
}

/// Inner widths of the feed-forward block: of layers with keys and values of their own, and of those without.
fn ffn_dims(
    keys: &Keys<'_>,
    n_layers: usize,
    n_shared: Option<usize>,
) -> Result<Option<(usize, usize)>, CheckpointError> {
    const KEY: &str = "feed_forward_length";
    let Some(list) = per_layer(keys, KEY, n_layers)? else { return Ok(None) };
    let n_own = n_layers.saturating_sub(n_shared.unwrap_or(0));
    let own = common(keys, KEY, &list, |layer| layer < n_own)?;
    let shared = common(keys, KEY, &list, |layer| layer >= n_own)?;
    Ok(own.or(shared).map(|own| (own, shared.unwrap_or(own))))
}

/// The number of key and value heads of global layers, and the heads of local ones if they differ.
fn heads_by_kind(
    keys: &Keys<'_>,
    layers: &[LayerConfig],
    n_heads: usize,
    head_dim: usize,
) -> Result<(usize, Option<LocalHeads>), CheckpointError> {
    const KEY: &str = "attention.head_count_kv";
    let counts = per_layer(keys, KEY, layers.len())?.unwrap_or_else(|| vec![n_heads; layers.len()]);
    let global = common(keys, KEY, &counts, |layer| !layers[layer].is_local)?;
    let local = common(keys, KEY, &counts, |layer| layers[layer].is_local)?;
    let local_dim = keys.count("attention.key_length_swa", MAX_WIDTH)?.unwrap_or(head_dim);
    let value_dim = keys.count("attention.value_length_swa", MAX_WIDTH)?.unwrap_or(local_dim);
    if value_dim != local_dim {
        let expected = format!("as long as keys, {local_dim}");
        return Err(bad(&keys.name("attention.value_length_swa"), value_dim, expected));
    }
    let n_kv_heads = global.or(local).unwrap_or(n_heads);
    let heads = local.map(|n_kv_heads| LocalHeads { n_kv_heads, head_dim: local_dim });
    Ok((n_kv_heads, heads.filter(|heads| *heads != LocalHeads { n_kv_heads, head_dim })))
}

/// Which layers keep a state of fixed size.
fn recurrent_layers(keys: &Keys<'_>, arch: &Architecture, n_layers: usize) -> Result<Vec<bool>, CheckpointError> {
    match arch.recurrent {
        None => return Ok(vec![false; n_layers]),
        Some(RecurrentKind::ShortConvolution | RecurrentKind::StateSpace) => {
            let heads = kv_heads(keys)?;
            return match heads.len() {
                1 => Ok(vec![heads[0] == 0; n_layers]),
                n if n == n_layers => Ok(heads.iter().map(|&n| n == 0).collect()),
                n => {
                    let expected = format!("{n_layers} layers");
                    Err(bad(&keys.name("attention.head_count_kv"), format!("{n} layers"), expected))
                }
            };
        }
        Some(RecurrentKind::DeltaNet { .. }) => {}
    }
    let name = keys.name("attention.recurrent_layers");
    let Some(Value::Array(_)) = keys.meta.get(&name) else {
        let every = keys.count("full_attention_interval", MAX_LAYERS)?.unwrap_or(4);
        return Ok((0..n_layers).map(|i| (i + 1) % every != 0).collect());
    };
    let list = match keys.meta.bool_array(&name) {
        Ok(list) => list.unwrap_or_default().to_vec(),
        Err(_) => keys.meta.require_u32_array(&name)?.iter().map(|&is_recurrent| is_recurrent != 0).collect(),
    };
    match list.get(..n_layers) {
        Some(list) => Ok(list.to_vec()),
        None => Err(bad(&name, format!("{} layers", list.len()), format!("{n_layers} layers"))),
    }
}

/// What recurrent layers compute.
fn recurrent(keys: &Keys<'_>, arch: &Architecture) -> Result<Option<Recurrent>, CheckpointError> {
    let required = |key: &str| keys.required(key, MAX_WIDTH);
    Ok(match arch.recurrent {
        None => None,
        Some(RecurrentKind::ShortConvolution) => {
            Some(Recurrent::ShortConvolution { n_taps: required("shortconv.l_cache")? })
        }
        Some(RecurrentKind::StateSpace) => {
            let (n_heads, head_dim) = state_heads(keys)?;
            Some(Recurrent::StateSpace(StateSpaceConfig {
                n_groups: required("ssm.group_count")?,
                n_heads,
                state_dim: required("ssm.state_size")?,
                head_dim,
                n_taps: required("ssm.conv_kernel")?,
            }))
        }
        Some(RecurrentKind::DeltaNet { is_tiled }) => {
            let (n_v_heads, v_dim) = state_heads(keys)?;
            Some(Recurrent::DeltaNet(DeltaNetConfig {
                n_k_heads: required("ssm.group_count")?,
                n_v_heads,
                k_dim: required("ssm.state_size")?,
                v_dim,
                n_taps: required("ssm.conv_kernel")?,
                is_tiled,
            }))
        }
    })
}

/// The number of heads that have a state, and the elements of a value of each.
fn state_heads(keys: &Keys<'_>) -> Result<(usize, usize), CheckpointError> {
    let n_heads = keys.required("ssm.time_step_rank", MAX_WIDTH)?;
    let inner = keys.required("ssm.inner_size", MAX_WIDTH)?;
    match inner.is_multiple_of(n_heads) {
        true => Ok((n_heads, inner / n_heads)),
        false => Err(bad(&keys.name("ssm.inner_size"), inner, format!("a multiple of {n_heads} heads"))),
    }
}

/// Which layers see only the window, for a model that has one.
fn local_layers(keys: &Keys<'_>, arch: &Architecture, n_layers: usize) -> Result<Vec<bool>, CheckpointError> {
    let name = keys.name("attention.sliding_window_pattern");
    let every = |period: usize| (0..n_layers).map(|i| period == 0 || i % period < period - 1).collect();
    let list: Vec<bool> = match keys.meta.get(&name) {
        None => every(arch.global_every),
        Some(Value::Array(_)) => match keys.meta.bool_array(&name) {
            Ok(list) => list.unwrap_or_default().to_vec(),
            Err(_) => keys.meta.require_u32_array(&name)?.iter().map(|&is_local| is_local != 0).collect(),
        },
        Some(_) => every(keys.or_none("attention.sliding_window_pattern", MAX_LAYERS)?.unwrap_or(0)),
    };
    if list.len() != n_layers {
        return Err(bad(&name, format!("{} layers", list.len()), format!("{n_layers} layers")));
    }
    Ok(list)
}

/// Position embedding of the global layers.
fn rope(
    keys: &Keys<'_>,
    constants: Constants<'_>,
    arch: &Architecture,
    head_dim: usize,
    context_length: usize,
) -> Result<RopeConfig, CheckpointError> {
    let theta = keys.positive("rope.freq_base")?.map_or(10_000.0, f64::from);
    let n_dims = keys.count("rope.dimension_count", MAX_WIDTH)?.unwrap_or(head_dim);
    let mut rope = RopeConfig::new(theta, n_dims, arch.rope_style);
    // Files from before `rope.scaling.*` use the key `rope.scale_linear` for the linear factor.
    let factor = keys.positive("rope.scaling.factor")?.or(keys.positive("rope.scale_linear")?).map_or(1.0, f64::from);
    let original = keys.count("rope.scaling.original_context_length", MAX_CONTEXT)?;
    let original_context = original.unwrap_or(context_length);
    let kind_key = keys.name("rope.scaling.type");
    let kind = keys.meta.str(&kind_key)?;
    let factors = |name: &str| constants(name, n_dims / 2);
    let (short, long) = (factors(ROPE_SHORT)?, factors(ROPE_LONG)?);
    rope.divisors = factors(ROPE_DIVISORS)?;
    rope.scaling = match (kind, short, long) {
        (Some("yarn"), None, None) => RopeScaling::Yarn {
            factor,
            original_context,
            beta_fast: keys.positive("rope.scaling.yarn_beta_fast")?.map_or(32.0, f64::from),
            beta_slow: keys.positive("rope.scaling.yarn_beta_slow")?.map_or(1.0, f64::from),
            is_truncated: arch.truncates_yarn,
        },
        // Files of Phi-3 have the divisors without naming the kind of scaling.
        (None | Some("longrope" | "linear" | "none"), Some(short), Some(long)) => {
            RopeScaling::LongRope { original_context, short, long }
        }
        (None | Some("linear"), None, None) if factor != 1.0 => RopeScaling::Linear { factor },
        (None | Some("linear" | "none"), None, None) => RopeScaling::None,
        (kind, ..) => {
            return Err(CheckpointError::UnsupportedFeature {
                feature: "this kind of rope scaling, or tensors that it needs",
                key: kind_key,
                value: kind.unwrap_or("missing").to_owned(),
            });
        }
    };
    let usual = match rope.scaling {
        // The multiplier is the `mscale_all_dim` of the original configuration, whose `mscale` is 1.
        RopeScaling::Yarn { factor, .. } => match keys.positive("rope.scaling.yarn_log_multiplier")? {
            // There, it says how scores are scaled.
            Some(_) if arch.is_latent => 1.0,
            Some(m) => yarn_magnitude(factor, 1.0) / yarn_magnitude(factor, f64::from(m)),
            None => rope.scaling.default_attention_factor(context_length),
        },
        _ => rope.scaling.default_attention_factor(context_length),
    };
    let named = keys.positive("rope.scaling.attn_factor")?.map(f64::from);
    rope.attention_factor = match (&rope.scaling, named, keys.positive("rope.scaling.yarn_attn_factor")?) {
        (RopeScaling::Yarn { .. }, named, Some(factor)) => f64::from(factor) * named.unwrap_or(1.0),
        (RopeScaling::Yarn { .. }, named, None) => usual * named.unwrap_or(1.0),
        (_, named, _) => named.unwrap_or(usual),
    };
    Ok(rope)
}

/// Tensors that are constants of the model: divisors of the rotary frequencies.
pub(super) const ROPE_DIVISORS: &str = "rope_freqs.weight";
pub(super) const ROPE_SHORT: &str = "rope_factors_short.weight";
pub(super) const ROPE_LONG: &str = "rope_factors_long.weight";

/// The norm of queries, which not all files of some architectures have.
pub(super) const QK_NORM: &str = "blk.0.attn_q_norm.weight";

/// Finds such a tensor by its name and expected length.
pub(super) type Constants<'a> = &'a dyn Fn(&str, usize) -> Result<Option<Vec<f32>>, CheckpointError>;

/// A small tensor of the file that is a constant of the model.
fn constants(file: &GgufFile, name: &str, len: usize) -> Result<Option<Vec<f32>>, CheckpointError> {
    let Some(tensor) = file.tensor(name) else { return Ok(None) };
    let expected = vec![len as u64];
    if tensor.shape != expected {
        return Err(CheckpointError::TensorShape { name: name.to_owned(), expected, found: tensor.shape.clone() });
    }
    decode(name, tensor.ty, file.tensor_bytes(tensor), len).map(Some)
}

/// The dimensions of latent attention. In older files, the lengths of keys and values are those of heads; in newer ones,
/// those of what is cached.
fn latent(keys: &Keys<'_>) -> Result<LatentConfig, CheckpointError> {
    let length = |newer: &str, older: &str| match keys.count(newer, MAX_WIDTH)? {
        Some(n) => Ok(n),
        None => keys.required(older, MAX_WIDTH),
    };
    let rotated_dim = keys.required("rope.dimension_count", MAX_WIDTH)?;
    let query_dim = length("attention.key_length_mla", "attention.key_length")?;
    if query_dim <= rotated_dim {
        let expected = format!("more than {rotated_dim} rotated elements");
        return Err(bad(&keys.name("attention.key_length_mla"), query_dim, expected));
    }
    Ok(LatentConfig {
        q_rank: keys.or_none("attention.q_lora_rank", MAX_WIDTH)?,
        kv_rank: keys.required("attention.kv_lora_rank", MAX_WIDTH)?,
        plain_dim: query_dim - rotated_dim,
        rotated_dim,
        value_dim: length("attention.value_length_mla", "attention.value_length")?,
    })
}

fn temperature(
    keys: &Keys<'_>,
    arch: &Architecture,
    context_length: usize,
) -> Result<Option<AttentionTemperature>, CheckpointError> {
    let usual = arch.temperature;
    let is_named = keys.meta.contains(&keys.name("attention.temperature_scale"));
    let scale = match keys.positive("attention.temperature_scale")? {
        Some(scale) => f64::from(scale),
        None => match usual.filter(|_| !is_named) {
            Some(usual) => usual.scale,
            None => return Ok(None),
        },
    };
    let length = match (keys.count("attention.temperature_length", MAX_CONTEXT)?, usual) {
        (Some(length), _) => length,
        (None, Some(usual)) => usual.length,
        (None, None) => keys.count("rope.scaling.original_context_length", MAX_CONTEXT)?.unwrap_or(context_length),
    };
    let (offset, only_without_rope) = usual.map_or((0, false), |usual| (usual.offset, usual.only_without_rope));
    Ok(Some(AttentionTemperature { scale, length, offset, only_without_rope }))
}

/// How scores become weights: llama.cpp's numbers of its gating functions.
fn gating(
    keys: &Keys<'_>,
    arch: &Architecture,
    constants: Constants<'_>,
    n_experts: usize,
) -> Result<Gating, CheckpointError> {
    let key = keys.name("expert_gating_func");
    match keys.meta.u64(&key)? {
        // DeepSeek 2, which has no such key, has no biases of the experts either; files of other models may lack the
        // key, but have biases.
        None | Some(0) if arch.is_latent => {
            let first = keys.or_none("leading_dense_block_count", MAX_LAYERS)?.unwrap_or(0);
            let bias = constants(&format!("blk.{first}.exp_probs_b.bias"), n_experts)?;
            Ok(if bias.is_some() { Gating::Sigmoid } else { arch.gating })
        }
        None | Some(0) => Ok(arch.gating),
        // The softmax of the chosen ones is that of all, divided by the sum of the chosen ones.
        Some(1) => Ok(Gating::Softmax),
        Some(3) if arch.normalizes_experts => Ok(Gating::Softmax),
        Some(2) if arch.gating == Gating::Sigmoid || arch.has_groups => Ok(Gating::Sigmoid),
        Some(other) => {
            let feature = "this way from the scores of experts to their weights";
            Err(CheckpointError::UnsupportedFeature { feature, key, value: other.to_string() })
        }
    }
}

/// Groups of experts. Older files do not have them: they follow from the number of experts.
fn groups(
    keys: &Keys<'_>,
    arch: &Architecture,
    gating: Gating,
    n_experts: usize,
) -> Result<Option<ExpertGroups>, CheckpointError> {
    let usual = arch.groups.iter().find(|(n, _)| *n == n_experts).map(|(_, groups)| *groups);
    let count = keys.or_none("expert_group_count", MAX_WIDTH)?;
    let named = match (count, keys.or_none("expert_group_used_count", MAX_WIDTH)?) {
        _ if !arch.has_groups => None,
        (Some(n_groups), n_used) => Some([n_groups, n_used.unwrap_or(1)]),
        (None, _) => usual,
    };
    let n_best = if gating == Gating::Sigmoid || arch.adds_two_per_group { 2 } else { 1 };
    // A single group, or all of them, is no restriction.
    let groups = named.filter(|[n_groups, n_used]| n_used < n_groups);
    Ok(groups.map(|[n_groups, n_used]| ExpertGroups { n_groups, n_used, n_best }))
}

fn experts(
    keys: &Keys<'_>,
    arch: &Architecture,
    constants: Constants<'_>,
) -> Result<Option<ExpertConfig>, CheckpointError> {
    let n_experts = keys.or_none("expert_count", MAX_WIDTH)?;
    let gating = gating(keys, arch, constants, n_experts.unwrap_or(0))?;
    let Some(n_experts) = n_experts else { return Ok(None) };
    let ffn_dim = match keys.or_none("expert_feed_forward_length", MAX_WIDTH)? {
        Some(n) => n,
        None => keys.required("feed_forward_length", MAX_WIDTH)?,
    };
    let n_shared = if arch.counts_shared_experts { keys.or_none("expert_shared_count", MAX_WIDTH)? } else { None };
    let shared_ffn_dim = match keys.or_none("expert_shared_feed_forward_length", MAX_WIDTH)? {
        None if n_shared.is_some() => n_shared.map(|n| n.saturating_mul(ffn_dim)),
        None if arch.has_shared_gate => Some(keys.required("feed_forward_length", MAX_WIDTH)?),
        None if arch.has_shared_expert => Some(ffn_dim),
        n => n,
    };
    Ok(Some(ExpertConfig {
        n_experts,
        n_used: keys.required("expert_used_count", MAX_WIDTH)?,
        ffn_dim,
        gating,
        groups: groups(keys, arch, gating, n_experts)?,
        scales_inputs: arch.scales_expert_inputs,
        is_normalized: keys.meta.bool(&keys.name("expert_weights_norm"))?.unwrap_or(arch.normalizes_experts),
        scale: keys.positive("expert_weights_scale")?.unwrap_or(1.0),
        next_to_mlp: arch.experts_next_to_mlp,
        shared_ffn_dim,
        has_shared_gate: arch.has_shared_gate,
    }))
}
