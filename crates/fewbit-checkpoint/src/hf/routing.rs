//! `config.json`: experts, and how they are chosen.

use super::json::Object;
use crate::CheckpointError;
use crate::config::{ExpertConfig, ExpertGroups, Gating, bad};
use crate::families::{Class, ExpertKeys};

/// Whether each layer has experts, in a model that has some.
pub(super) fn layers_with_experts(
    json: Object<'_>,
    class: &Class,
    n_layers: usize,
) -> Result<Vec<bool>, CheckpointError> {
    if class.gguf.has_dense_lead {
        if json.count("moe_layer_freq")?.is_some_and(|n| n != 1) {
            return Err(json.unsupported("moe_layer_freq", "layers without experts between those with"));
        }
        let n_dense = match json.strings("mlp_layer_types")? {
            Some(kinds) => {
                let n_dense = kinds.iter().take_while(|kind| **kind == "dense").count();
                if kinds.len() != n_layers || kinds[n_dense..].iter().any(|kind| *kind != "sparse") {
                    let expected = format!("\"dense\" and then \"sparse\", {n_layers} times together");
                    return Err(bad("mlp_layer_types", kinds.join(", "), expected));
                }
                n_dense
            }
            None => json
                .count("first_k_dense_replace")?
                .or(json.count("num_dense_layers")?)
                .or(class.experts.map(|keys| keys.n_dense))
                .unwrap_or(0),
        };
        return Ok((0..n_layers).map(|i| i >= n_dense).collect());
    }
    if let Some(list) = json.list("moe_layers")? {
        let mut has_experts = vec![false; n_layers];
        for layer in list {
            match layer.as_u64().and_then(|layer| has_experts.get_mut(usize::try_from(layer).ok()?)) {
                Some(has_experts) => *has_experts = true,
                None => return Err(bad("moe_layers", layer, format!("numbers below {n_layers}"))),
            }
        }
        return Ok(has_experts);
    }
    let every = json.count("interleave_moe_layer_step")?.unwrap_or(1).max(1);
    Ok((0..n_layers).map(|i| (i + 1) % every == 0).collect())
}

/// The key of the width of what experts see instead of the residual stream.
const LATENT: &str = "moe_latent_size";

pub(super) fn experts(json: Object<'_>, class: &Class) -> Result<Option<ExpertConfig>, CheckpointError> {
    let Some(keys) = class.experts else { return Ok(None) };
    // Granite's dense models have none, and Gemma's say so.
    let is_off = match keys.switch {
        Some(switch) => json.bool(switch)? != Some(true),
        None => class.space.is_some() && json.count(keys.count)? == Some(0),
    };
    if is_off {
        return Ok(None);
    }
    if json.count("decoder_sparse_step")?.is_some_and(|n| n != 1) {
        return Err(json.unsupported("decoder_sparse_step", "layers without experts between those with"));
    }
    if json.list("mlp_only_layers")?.is_some_and(|list| !list.is_empty()) {
        return Err(json.unsupported("mlp_only_layers", "layers without experts between those with"));
    }
    if json.get(LATENT).is_some() {
        return Err(json.unsupported(LATENT, "experts whose inputs are projected to a latent"));
    }
    let ffn_dim = json.required_count(keys.width)?;
    let shared_ffn_dim = match keys.shared_count {
        Some(key) => json.count(key)?.filter(|&n| n > 0).map(|n| n.saturating_mul(ffn_dim)),
        None => keys.shared_width.map(|key| json.required_count(key)).transpose()?,
    };
    Ok(Some(ExpertConfig {
        n_experts: json.required_count(keys.count)?,
        n_used: json.required_count(keys.used)?,
        ffn_dim,
        gating: keys.gating.unwrap_or(class.gguf.gating),
        groups: groups(json, class, &keys)?,
        scales_inputs: class.gguf.scales_expert_inputs,
        is_normalized: json.bool("norm_topk_prob")?.unwrap_or(keys.is_normalized),
        scale: match class.gguf.has_groups || class.gguf.gating == Gating::Sigmoid {
            true => json.f64("routed_scaling_factor")?.unwrap_or(keys.scale) as f32,
            false => 1.0,
        },
        next_to_mlp: class.gguf.experts_next_to_mlp,
        shared_ffn_dim,
        has_shared_gate: class.gguf.has_shared_gate && shared_ffn_dim.is_some(),
    }))
}

/// Groups of experts. The keys that say how experts are chosen must say what the class does.
fn groups(json: Object<'_>, class: &Class, keys: &ExpertKeys) -> Result<Option<ExpertGroups>, CheckpointError> {
    if !class.gguf.has_groups {
        return Ok(None);
    }
    let is_sigmoid = keys.gating.unwrap_or(class.gguf.gating) == Gating::Sigmoid;
    let usual = if is_sigmoid { "sigmoid" } else { "softmax" };
    if json.str("scoring_func")?.is_some_and(|function| function != usual) {
        return Err(json.unsupported("scoring_func", "this way from the scores of experts to their weights"));
    }
    let has_groups = match json.str("topk_method")? {
        None => is_sigmoid || class.gguf.adds_two_per_group,
        Some("noaux_tc") if is_sigmoid => true,
        Some("greedy") if !is_sigmoid => false,
        Some("group_limited_greedy") if !is_sigmoid => true,
        Some(_) => return Err(json.unsupported("topk_method", "another way to choose experts")),
    };
    // DeepSeek's code and Hugging Face's differ.
    if !is_sigmoid && !class.gguf.adds_two_per_group && json.bool("norm_topk_prob")? == Some(true) {
        return Err(json.unsupported("norm_topk_prob", "normalized weights of experts chosen by their softmax"));
    }
    let [n_groups, n_used] = match (json.count("n_group")?, json.count("topk_group")?) {
        (Some(n_groups), Some(n_used)) => [n_groups, n_used],
        _ => keys.groups.unwrap_or([1, 1]),
    };
    let n_best = if is_sigmoid || class.gguf.adds_two_per_group { 2 } else { 1 };
    let groups = ExpertGroups { n_groups, n_used, n_best };
    Ok(Some(groups).filter(|_| has_groups && n_used < n_groups))
}
