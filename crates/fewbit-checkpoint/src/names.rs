//! The names of a model's tensors, as one table per source format.

use crate::families;
use std::borrow::Cow;

/// The role of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The embedding, with one row per token.
    TokenEmbedding,
    /// The per-layer embedding, with one row per token: what each layer gets, one after another.
    LayerEmbedding,
    /// The projection of the embedding to what each layer gets.
    LayerEmbeddingProjection,
    /// The norm of what the projection gives each layer.
    LayerEmbeddingNorm,
    /// The norm after the last layer.
    OutputNorm,
    /// The output matrix, from hidden states to logits.
    Output,
    /// The norm before attention.
    AttnNorm,
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Rows of q, then of k, then of v.
    Qkv,
    /// The sinks of attention, one for each head.
    AttnSinks,
    /// The norm of the queries.
    QNorm,
    /// The norm of the keys.
    KNorm,
    /// With latent attention: the matrix that gives the latent of the queries.
    QLatent,
    /// The norm of that latent.
    QLatentNorm,
    /// Queries from their latent.
    QFromLatent,
    /// The latent of keys and values, then the shared key.
    KvLatent,
    /// The norm of that latent.
    KvLatentNorm,
    /// Of each head, the rows of its keys and then those of its values, from their latent.
    KvFromLatent,
    /// `[n_heads, kv_rank, plain_dim]`: from a head's queries to what they look for in the latent.
    KFromLatent,
    /// `[n_heads, value_dim, kv_rank]`: a head's values from the latent.
    VFromLatent,
    /// The output projection of attention.
    AttnOutput,
    /// The norm of the output of attention.
    AttnPostNorm,
    /// The norm before the feed-forward block.
    FfnNorm,
    /// The gate of the feed-forward block, or of one expert.
    Gate,
    /// The matrix that the gate is multiplied with; contains the rows of both if there is no separate gate.
    Up,
    /// The output projection of the feed-forward block.
    Down,
    /// The norm of the output of the feed-forward block.
    FfnPostNorm,
    /// The norm of the output of the feed-forward block next to experts.
    MlpPostNorm,
    /// The norm of the input of experts next to a feed-forward block.
    ExpertNorm,
    /// The norm of the output of experts next to a feed-forward block.
    ExpertPostNorm,
    /// The weights of the router's norm of the residual stream; a tensor with `.scale` in place of `.weight`.
    RouterNorm,
    /// `[n_experts]`: factors of the weights of experts; a tensor with `.scale` in place of `.weight`.
    ExpertFactors,
    /// The gate of what a layer gets of the per-layer embedding.
    LayerGate,
    /// The projection of that to the residual stream.
    LayerProjection,
    /// The norm of what it gives.
    LayerPostNorm,
    /// The factor of a layer.
    LayerScale,
    /// The gates of the outputs of a layer with a state.
    AttnGate,
    /// As [`Part::Qkv`] and [`Part::AttnGate`] of a layer with a state, key head by key head; of a state space the gates,
    /// what goes through the convolution, and the time steps.
    SsmIn,
    /// The betas and then the alphas, key head by key head.
    SsmBetaAlpha,
    /// The scores whose sigmoid is how much of a state is replaced.
    SsmBeta,
    /// The scores of how much of a state is kept.
    SsmAlpha,
    /// The convolution before a state.
    SsmConv,
    /// The bias of the alphas or time steps.
    SsmDt,
    /// Minus the exponentials of the decay rates of the heads; a tensor without `.weight`.
    SsmA,
    /// Factors of the values that are added to the outputs of a state space, one for each head; a tensor without
    /// `.weight`.
    SsmD,
    /// The norm of the outputs of a state.
    SsmNorm,
    /// The output projection of a layer with a state.
    SsmOut,
    /// The norm after the last layer, under the name of a norm of the embedding.
    EmbeddingNorm,
    /// The two gates and the values of a layer with a short convolution.
    ConvIn,
    /// The short convolution.
    Conv,
    /// The output projection of a layer with a short convolution.
    ConvOut,
    /// The router, which gives one score per expert.
    Router,
    /// What is added to the weights of experts to choose some of them. It has only a bias.
    ExpertBias,
    /// `[n_experts, ...]`: the matrices of all experts in one tensor.
    ExpertGates,
    /// As `ExpertGates`, for [`Part::Up`].
    ExpertUps,
    /// As `ExpertGates`, for [`Part::Down`].
    ExpertDowns,
    /// Of every expert, the rows of its gate, then those of [`Part::Up`].
    ExpertGateUps,
    /// The router of the shared expert, which gives its score.
    SharedRouter,
    /// The gate of the shared expert.
    SharedGate,
    /// The matrix that the shared gate is multiplied with.
    SharedUp,
    /// The output projection of the shared expert.
    SharedDown,
    /// Of a layer that predicts a further token: the norm of the embedding of the next token.
    MtpEmbeddingNorm,
    /// The norm of the hidden states of the layer before it.
    MtpHiddenNorm,
    /// The projection of both to its input.
    MtpProjection,
    /// The norm of its output, in place of the one after the last layer.
    MtpOutputNorm,
}

/// Names in GGUF files: those of layers begin with `blk.N.`; all end with `.weight` or `.bias`, except those of
/// [`is_whole_name`].
const GGUF: [(Part, &str); 67] = [
    (Part::TokenEmbedding, "token_embd"),
    (Part::LayerEmbedding, "per_layer_token_embd"),
    (Part::LayerEmbeddingProjection, "per_layer_model_proj"),
    (Part::LayerEmbeddingNorm, "per_layer_proj_norm"),
    (Part::OutputNorm, "output_norm"),
    (Part::Output, "output"),
    (Part::AttnNorm, "blk.{}.attn_norm"),
    (Part::Q, "blk.{}.attn_q"),
    (Part::K, "blk.{}.attn_k"),
    (Part::V, "blk.{}.attn_v"),
    (Part::Qkv, "blk.{}.attn_qkv"),
    (Part::AttnSinks, "blk.{}.attn_sinks"),
    (Part::QNorm, "blk.{}.attn_q_norm"),
    (Part::KNorm, "blk.{}.attn_k_norm"),
    (Part::QLatent, "blk.{}.attn_q_a"),
    (Part::QLatentNorm, "blk.{}.attn_q_a_norm"),
    (Part::QFromLatent, "blk.{}.attn_q_b"),
    (Part::KvLatent, "blk.{}.attn_kv_a_mqa"),
    (Part::KvLatentNorm, "blk.{}.attn_kv_a_norm"),
    (Part::KvFromLatent, "blk.{}.attn_kv_b"),
    (Part::KFromLatent, "blk.{}.attn_k_b"),
    (Part::VFromLatent, "blk.{}.attn_v_b"),
    (Part::AttnOutput, "blk.{}.attn_output"),
    (Part::AttnPostNorm, "blk.{}.post_attention_norm"),
    (Part::AttnGate, "blk.{}.attn_gate"),
    (Part::SsmIn, "blk.{}.ssm_in"),
    (Part::SsmBetaAlpha, "blk.{}.ssm_ba"),
    (Part::SsmBeta, "blk.{}.ssm_beta"),
    (Part::SsmAlpha, "blk.{}.ssm_alpha"),
    (Part::SsmConv, "blk.{}.ssm_conv1d"),
    (Part::SsmDt, "blk.{}.ssm_dt"),
    (Part::SsmA, "blk.{}.ssm_a"),
    (Part::SsmD, "blk.{}.ssm_d"),
    (Part::SsmNorm, "blk.{}.ssm_norm"),
    (Part::SsmOut, "blk.{}.ssm_out"),
    (Part::EmbeddingNorm, "token_embd_norm"),
    (Part::ConvIn, "blk.{}.shortconv.in_proj"),
    (Part::Conv, "blk.{}.shortconv.conv"),
    (Part::ConvOut, "blk.{}.shortconv.out_proj"),
    (Part::FfnNorm, "blk.{}.ffn_norm"),
    (Part::Gate, "blk.{}.ffn_gate"),
    (Part::Up, "blk.{}.ffn_up"),
    (Part::Down, "blk.{}.ffn_down"),
    (Part::FfnPostNorm, "blk.{}.post_ffw_norm"),
    (Part::MlpPostNorm, "blk.{}.post_ffw_norm_1"),
    (Part::ExpertNorm, "blk.{}.pre_ffw_norm_2"),
    (Part::ExpertPostNorm, "blk.{}.post_ffw_norm_2"),
    (Part::RouterNorm, "blk.{}.ffn_gate_inp.scale"),
    (Part::ExpertFactors, "blk.{}.ffn_down_exps.scale"),
    (Part::LayerGate, "blk.{}.inp_gate"),
    (Part::LayerProjection, "blk.{}.proj"),
    (Part::LayerPostNorm, "blk.{}.post_norm"),
    (Part::LayerScale, "blk.{}.layer_output_scale"),
    (Part::Router, "blk.{}.ffn_gate_inp"),
    (Part::ExpertBias, "blk.{}.exp_probs_b"),
    (Part::ExpertGates, "blk.{}.ffn_gate_exps"),
    (Part::ExpertUps, "blk.{}.ffn_up_exps"),
    (Part::ExpertDowns, "blk.{}.ffn_down_exps"),
    (Part::ExpertGateUps, "blk.{}.ffn_gate_up_exps"),
    (Part::SharedRouter, "blk.{}.ffn_gate_inp_shexp"),
    (Part::SharedGate, "blk.{}.ffn_gate_shexp"),
    (Part::SharedUp, "blk.{}.ffn_up_shexp"),
    (Part::SharedDown, "blk.{}.ffn_down_shexp"),
    (Part::MtpProjection, "blk.{}.nextn.eh_proj"),
    (Part::MtpEmbeddingNorm, "blk.{}.nextn.enorm"),
    (Part::MtpHiddenNorm, "blk.{}.nextn.hnorm"),
    (Part::MtpOutputNorm, "blk.{}.nextn.shared_head_norm"),
];

/// Tensors of GGUF files that are not weights of the decoder: constants that the configuration holds, and the vision
/// parts that some files contain.
const GGUF_IGNORED: [&str; 5] = ["rope_freqs.", "rope_factors_short.", "rope_factors_long.", "v.", "mm."];

/// Whether the name of a part is that of its tensor, without `.weight`.
pub fn is_whole_name(part: Part) -> bool {
    matches!(part, Part::SsmA | Part::SsmD | Part::RouterNorm | Part::ExpertFactors)
}

/// The name of a part in a GGUF file, without `.weight` or `.bias`. `layer` is used only for parts of layers.
pub fn gguf(part: Part, layer: usize) -> String {
    let (_, name) = GGUF.iter().find(|(p, _)| *p == part).expect("every part has a name");
    name.replace("{}", &layer.to_string())
}

/// The layer that a tensor in a GGUF file belongs to.
pub fn layer_of_gguf(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Whether a tensor in a GGUF file belongs to the feed-forward part of a layer.
pub fn is_feed_forward_in_gguf(name: &str) -> bool {
    let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or("", |(_, part)| part);
    const FIRST: [&str; 8] = [
        "ffn_",
        "post_ffw_norm",
        "pre_ffw_norm",
        "exp_probs_b",
        "inp_gate.",
        "proj.",
        "post_norm.",
        "layer_output_scale.",
    ];
    FIRST.iter().any(|first| part.starts_with(first))
}

/// Whether a tensor in a GGUF file, or by its [plain](plain_hf) name one in a Hugging Face file, is the copy of the
/// embedding or of the output matrix that some files have in a layer that predicts a further token.
pub fn is_copy_in_further_layer(name: &str) -> bool {
    const COPIES: [&str; 4] = ["nextn.embed_tokens", "nextn.shared_head_head", "embed_tokens", "shared_head.head"];
    let layer = name.strip_prefix("blk.").or(name.strip_prefix("model.layers."));
    let part = layer.and_then(|rest| rest.split_once('.')).map_or("", |(_, part)| part);
    COPIES.contains(&part.strip_suffix(".weight").unwrap_or(part))
}

/// Whether a tensor in a GGUF file gives a layer its keys or values.
pub fn is_kv_in_gguf(name: &str) -> bool {
    let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or("", |(_, part)| part);
    ["attn_k.", "attn_v.", "attn_k_norm."].iter().any(|first| part.starts_with(first))
}

/// Whether a tensor in a GGUF file belongs to the embeddings, which are looked up on the host.
pub fn is_embedding_in_gguf(name: &str) -> bool {
    const NAMES: [&str; 4] = [
        "token_embd.weight",
        "per_layer_token_embd.weight",
        "per_layer_model_proj.weight",
        "per_layer_proj_norm.weight",
    ];
    NAMES.contains(&name)
}

/// The part with this name in a GGUF file; a part of a layer must belong to this `layer`.
pub fn part_of_gguf(name: &str, layer: usize) -> Option<Part> {
    GGUF.iter().map(|(part, _)| *part).find(|&part| gguf(part, layer) == name)
}

/// Whether a GGUF file may contain this tensor although it is not a weight of the decoder.
pub fn is_ignored_in_gguf(name: &str) -> bool {
    GGUF_IGNORED.iter().any(|prefix| name.starts_with(prefix))
}

/// Names of modules in Hugging Face files that all families share: those of layers begin with `model.layers.N.`; all
/// end with `.weight` or `.bias`.
const HF: [(Part, &str); 21] = [
    (Part::TokenEmbedding, "model.embed_tokens"),
    (Part::LayerEmbedding, "model.embed_tokens_per_layer"),
    (Part::LayerEmbeddingProjection, "model.per_layer_model_projection"),
    (Part::LayerEmbeddingNorm, "model.per_layer_projection_norm"),
    (Part::OutputNorm, "model.norm"),
    (Part::Output, "lm_head"),
    (Part::AttnNorm, "input_layernorm"),
    (Part::Q, "self_attn.q_proj"),
    (Part::K, "self_attn.k_proj"),
    (Part::V, "self_attn.v_proj"),
    (Part::QNorm, "self_attn.q_norm"),
    (Part::KNorm, "self_attn.k_norm"),
    (Part::AttnOutput, "self_attn.o_proj"),
    (Part::Gate, "mlp.gate_proj"),
    (Part::Up, "mlp.up_proj"),
    (Part::Down, "mlp.down_proj"),
    (Part::FfnNorm, AFTER_ATTENTION),
    (Part::MtpProjection, "eh_proj"),
    (Part::MtpEmbeddingNorm, "enorm"),
    (Part::MtpHiddenNorm, "hnorm"),
    (Part::MtpOutputNorm, "shared_head.norm"),
];

/// Number of entries of [`HF`] that belong to no layer.
const OUTSIDE_LAYERS: usize = 6;

/// The norm after attention in most models that have one there; in other models, the norm before the feed-forward block.
const AFTER_ATTENTION: &str = "post_attention_layernorm";

/// Names of the vision and audio parts in the files of models with such parts, before and since `transformers` 4.52.
const HF_IMAGES: [&str; 14] = [
    "visual.",
    "model.visual.",
    "vision_tower.",
    "vision_model.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.vision_model.",
    "model.multi_modal_projector.",
    "audio_tower.",
    "embed_vision.",
    "embed_audio.",
    "model.audio_tower.",
    "model.embed_vision.",
    "model.embed_audio.",
];

/// Modules next to the layers that predict further tokens, in files that number these on their own; and their names in
/// files that do not.
const MTP_OUTSIDE: [(&str, &str); 4] = [
    ("fc", "eh_proj"),
    ("pre_fc_norm_embedding", "enorm"),
    ("pre_fc_norm_hidden", "hnorm"),
    ("norm", "shared_head.norm"),
];

/// A module's name as in files that contain only a decoder and its output: without the prefix of vision models, and
/// with the prefix that bare decoders lack. `None` for vision parts. Layers that predict further tokens, which some files
/// number on their own, come after the `n_layers` of the model; without that number, they are left out, too.
pub fn plain_hf(module: &str, is_wrapped: bool, n_layers: Option<usize>) -> Option<Cow<'_, str>> {
    if let Some(inner) = module.strip_prefix("mtp.").or(module.strip_prefix("model.mtp.")) {
        let n_layers = n_layers?;
        let further = match inner.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
            Some((i, part)) => i.parse().ok().and_then(|i| Some((n_layers.checked_add(i)?, part))),
            None => MTP_OUTSIDE.iter().find(|(name, _)| *name == inner).map(|(_, part)| (n_layers, *part)),
        };
        let (layer, part) = further.unwrap_or((usize::MAX, inner));
        return Some(format!("model.layers.{layer}.{part}").into());
    }
    if is_wrapped {
        if HF_IMAGES.iter().any(|prefix| format!("{module}.").starts_with(prefix)) {
            return None;
        }
        // `model.` comes before or after this prefix.
        let text = module.strip_prefix("language_model.").or(module.strip_prefix("model.language_model."));
        if let Some(rest) = text {
            let is_whole = rest.starts_with("model.") || rest == "lm_head";
            return Some(if is_whole { rest.into() } else { format!("model.{rest}").into() });
        }
    }
    // Nemotron-H has other names outside its layers, and at first another one for the decoder.
    let (inner, is_backbone) = match module.strip_prefix("backbone.") {
        Some(inner) => (inner, true),
        None => (module.strip_prefix("model.").unwrap_or(module), false),
    };
    match inner {
        "embeddings" => return Some("model.embed_tokens".into()),
        "norm_f" => return Some("model.norm".into()),
        _ if is_backbone => return Some(format!("model.{inner}").into()),
        _ => {}
    }
    let is_outside = |(_, known): &(Part, &str)| known.strip_prefix("model.") == Some(module);
    let is_bare = HF[..OUTSIDE_LAYERS].iter().any(is_outside) || module.starts_with("layers.");
    Some(if is_bare { format!("model.{module}").into() } else { module.into() })
}

/// The norm before the feed-forward block, under its name in the GGUF files of an architecture: some have it under that
/// of the norm after attention.
pub fn ffn_norm(architecture: &str) -> Part {
    families::architecture(architecture).map_or(Part::FfnNorm, |architecture| architecture.ffn_norm)
}

/// The layer that a module in a Hugging Face file belongs to, by its [plain](plain_hf) name.
pub fn layer_of_hf(module: &str) -> Option<usize> {
    module.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// The norm after the last layer, under its name in the GGUF files of an architecture.
pub fn output_norm(architecture: &str) -> Part {
    families::architecture(architecture).map_or(Part::OutputNorm, |architecture| architecture.output_norm)
}

/// The module and the last part of a tensor's name in a Hugging Face file. Parameters that belong to no module of their
/// own count as one: `experts.down_proj` has a `weight`, `experts.down_proj_bias` is its `bias`, and
/// `experts.down_proj_scale_inv` its `weight_scale_inv`.
pub fn split_hf(name: &str) -> (&str, &str) {
    let (module, leaf) = name.rsplit_once('.').unwrap_or(("", name));
    let is_of_router = ["scale", "per_expert_scale"].contains(&leaf) && module.ends_with(".router");
    if ["sinks", "A_log", "D", "layer_scalar"].contains(&leaf) || leaf.ends_with("_proj") || is_of_router {
        return (name, "weight");
    }
    if leaf == "expert_bias" {
        return (name, "bias");
    }
    for (end, part) in [("_scale_inv", "weight_scale_inv"), ("_activation_scale", "activation_scale")] {
        if leaf.strip_suffix(end).is_some_and(|of| of.ends_with("_proj")) {
            return (&name[..name.len() - end.len()], part);
        }
    }
    match leaf.rsplit_once('_') {
        Some(("dt", "bias")) => (&name[..name.len() - "_bias".len()], "bias"),
        Some((of, "bias" | "blocks" | "scales")) if of.ends_with("_proj") => {
            let end = name.len() - leaf.len() + of.len();
            (&name[..end], &leaf[of.len() + 1..])
        }
        _ => (module, leaf),
    }
}

/// The GGUF name (without `.weight` or `.bias`) and the part of a module in a Hugging Face file of an architecture. Some
/// use the same name for the norm after attention as others for the norm before the feed-forward block.
pub fn from_hf(module: &str, architecture: &str) -> Option<(Part, String)> {
    let find = |table: &[(Part, &str)], name: &str| table.iter().find(|(_, n)| *n == name).map(|(part, _)| *part);
    let Some(rest) = module.strip_prefix("model.layers.") else {
        let part = match module {
            "model.embedding_norm" => output_norm(architecture),
            _ => find(&HF[..OUTSIDE_LAYERS], module)?,
        };
        return Some((part, gguf(part, 0)));
    };
    let (layer, name) = rest.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    if let Some((part, expert)) = families::expert(name) {
        return Some((part, format!("{}.{expert}", gguf(part, layer))));
    }
    let part = match name {
        AFTER_ATTENTION => families::architecture(architecture).map_or(Part::FfnNorm, |arch| arch.after_attention),
        name => find(&HF[OUTSIDE_LAYERS..], name)
            .or_else(|| families::modules_of(architecture).find(|(_, n)| *n == name).map(|(part, _)| part))?,
    };
    Some((part, gguf(part, layer)))
}

/// The name of the part with this GGUF name (without `.weight` or `.bias`) in the Hugging Face files of an
/// architecture, for messages about missing tensors.
pub fn to_hf(name: &str, architecture: &str) -> Option<String> {
    let candidates = HF.iter().copied().chain(families::modules_of(architecture)).map(|(_, name)| name);
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
    let mut modules = candidates.map(|module| match layer {
        Some(layer) => format!("model.layers.{layer}.{module}"),
        None => module.to_owned(),
    });
    modules.find(|module| from_hf(module, architecture).is_some_and(|(_, found)| found == name))
}

/// The sort key of a tensor in a GGUF file that is written here: tensors outside layers first, then layer by layer in
/// the order of the table.
pub fn order(name: &str) -> (usize, usize, String) {
    let (layer, part) = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => (layer.parse::<usize>().map_or(usize::MAX, |layer| layer.saturating_add(1)), part),
        None => (0, name),
    };
    let module = part.rsplit_once('.').map_or(part, |(module, _)| module);
    let place = GGUF.iter().position(|(_, known)| known.trim_start_matches("blk.{}.") == module);
    (layer, place.unwrap_or(GGUF.len()), name.to_owned())
}

/// The tensor of all experts that contains this tensor of one expert, and the number of the expert.
pub fn expert(name: &str) -> Option<(String, usize)> {
    let (module, leaf) = name.rsplit_once('.')?;
    let (module, expert) = module.rsplit_once('.')?;
    let is_part = ["ffn_gate", "ffn_up", "ffn_down"].iter().any(|part| module.ends_with(part));
    Some((format!("{module}_exps.{leaf}"), expert.parse().ok()?)).filter(|_| is_part)
}
