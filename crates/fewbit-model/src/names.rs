//! What the tensors of a model are called, as a table per source format.

use std::borrow::Cow;

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    TokenEmbedding,
    OutputNorm,
    Output,
    AttnNorm,
    Q,
    K,
    V,
    /// Rows of q, then of k, then of v.
    Qkv,
    QNorm,
    KNorm,
    AttnOutput,
    AttnPostNorm,
    FfnNorm,
    Gate,
    Up,
    Down,
    FfnPostNorm,
    Router,
    /// `[n_experts, ...]`: the matrices of all experts in one tensor.
    ExpertGates,
    ExpertUps,
    ExpertDowns,
    SharedRouter,
    SharedGate,
    SharedUp,
    SharedDown,
}

/// Names in GGUF files: those of layers are behind `blk.N.`, and `.weight` or `.bias` follows.
const GGUF: [(Part, &str); 25] = [
    (Part::TokenEmbedding, "token_embd"),
    (Part::OutputNorm, "output_norm"),
    (Part::Output, "output"),
    (Part::AttnNorm, "blk.{}.attn_norm"),
    (Part::Q, "blk.{}.attn_q"),
    (Part::K, "blk.{}.attn_k"),
    (Part::V, "blk.{}.attn_v"),
    (Part::Qkv, "blk.{}.attn_qkv"),
    (Part::QNorm, "blk.{}.attn_q_norm"),
    (Part::KNorm, "blk.{}.attn_k_norm"),
    (Part::AttnOutput, "blk.{}.attn_output"),
    (Part::AttnPostNorm, "blk.{}.post_attention_norm"),
    (Part::FfnNorm, "blk.{}.ffn_norm"),
    (Part::Gate, "blk.{}.ffn_gate"),
    (Part::Up, "blk.{}.ffn_up"),
    (Part::Down, "blk.{}.ffn_down"),
    (Part::FfnPostNorm, "blk.{}.post_ffw_norm"),
    (Part::Router, "blk.{}.ffn_gate_inp"),
    (Part::ExpertGates, "blk.{}.ffn_gate_exps"),
    (Part::ExpertUps, "blk.{}.ffn_up_exps"),
    (Part::ExpertDowns, "blk.{}.ffn_down_exps"),
    (Part::SharedRouter, "blk.{}.ffn_gate_inp_shexp"),
    (Part::SharedGate, "blk.{}.ffn_gate_shexp"),
    (Part::SharedUp, "blk.{}.ffn_up_shexp"),
    (Part::SharedDown, "blk.{}.ffn_down_shexp"),
];

/// Tensors of GGUF files that are no weights of the decoder: constants that the configuration has, and the
/// vision parts that some files bring along.
const GGUF_IGNORED: [&str; 5] = ["rope_freqs.", "rope_factors_short.", "rope_factors_long.", "v.", "mm."];

/// The name of a part in a GGUF file, without `.weight` or `.bias`. `layer` matters only for parts of layers.
pub(crate) fn gguf(part: Part, layer: usize) -> String {
    let (_, name) = GGUF.iter().find(|(p, _)| *p == part).expect("every part has a name");
    name.replace("{}", &layer.to_string())
}

/// The layer that a tensor in a GGUF file belongs to.
pub(crate) fn layer_of_gguf(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// The part with this name in a GGUF file, which is one of this layer if it is one of a layer.
pub(crate) fn part_of_gguf(name: &str, layer: usize) -> Option<Part> {
    GGUF.iter().map(|(part, _)| *part).find(|&part| gguf(part, layer) == name)
}

/// Whether a tensor of a GGUF file may be there without being a weight of the decoder.
pub(crate) fn is_ignored_in_gguf(name: &str) -> bool {
    GGUF_IGNORED.iter().any(|prefix| name.starts_with(prefix))
}

/// Names of modules in Hugging Face files: those of layers are behind `model.layers.N.`, `.weight` or `.bias`
/// follows. Of two that have one name, which one it is depends on the model: see [`from_hf`].
const HF: [(Part, &str); 25] = [
    (Part::TokenEmbedding, "model.embed_tokens"),
    (Part::OutputNorm, "model.norm"),
    (Part::Output, "lm_head"),
    (Part::AttnNorm, "input_layernorm"),
    (Part::Q, "self_attn.q_proj"),
    (Part::K, "self_attn.k_proj"),
    (Part::V, "self_attn.v_proj"),
    (Part::Qkv, "self_attn.qkv_proj"),
    (Part::QNorm, "self_attn.q_norm"),
    (Part::KNorm, "self_attn.k_norm"),
    (Part::AttnOutput, "self_attn.o_proj"),
    (Part::FfnNorm, "pre_feedforward_layernorm"),
    (Part::FfnPostNorm, "post_feedforward_layernorm"),
    (Part::Gate, "mlp.gate_proj"),
    (Part::Up, "mlp.up_proj"),
    // Rows of the gate, then of the other, as in GGUF files without a gate.
    (Part::Up, "mlp.gate_up_proj"),
    (Part::Down, "mlp.down_proj"),
    (Part::Router, "mlp.gate"),
    // Granite's: of every expert, rows of the gate, then of the other.
    (Part::ExpertUps, "block_sparse_moe.input_linear"),
    (Part::ExpertDowns, "block_sparse_moe.output_linear"),
    (Part::Router, "block_sparse_moe.router.layer"),
    (Part::SharedRouter, "mlp.shared_expert_gate"),
    (Part::SharedGate, "mlp.shared_expert.gate_proj"),
    (Part::SharedUp, "mlp.shared_expert.up_proj"),
    (Part::SharedDown, "mlp.shared_expert.down_proj"),
];

/// Names of the matrices of one expert, behind `mlp.experts.N.` or Mixtral's `block_sparse_moe.experts.N.`.
const HF_EXPERTS: [(Part, &str); 6] = [
    (Part::Gate, "gate_proj"),
    (Part::Up, "up_proj"),
    (Part::Down, "down_proj"),
    (Part::Gate, "w1"),
    (Part::Up, "w3"),
    (Part::Down, "w2"),
];

/// What the files of models that see call the parts that are not about text, there and since `transformers` 4.52.
const HF_IMAGES: [&str; 4] =
    ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];

/// A module's name as files with nothing but a decoder and its output have it: without the prefix that models which
/// see put before it, and with the one that bare decoders lack. `None` for what is not about text.
pub(crate) fn plain_hf(module: &str, is_wrapped: bool) -> Option<Cow<'_, str>> {
    if is_wrapped {
        if HF_IMAGES.iter().any(|prefix| format!("{module}.").starts_with(prefix)) {
            return None;
        }
        // `model.` is within the prefix or around it.
        let text = module.strip_prefix("language_model.").or(module.strip_prefix("model.language_model."));
        if let Some(rest) = text {
            let is_whole = rest.starts_with("model.") || rest == "lm_head";
            return Some(if is_whole { rest.into() } else { format!("model.{rest}").into() });
        }
    }
    let is_bare = ["embed_tokens", "norm"].contains(&module) || module.starts_with("layers.");
    Some(if is_bare { format!("model.{module}").into() } else { module.into() })
}

/// The GGUF name (without `.weight` or `.bias`) and the part of a module in a Hugging Face file. Models with norms
/// behind their parts call the one behind attention as others call that before the feed-forward part.
pub(crate) fn from_hf(module: &str, has_post_norms: bool) -> Option<(Part, String)> {
    let find = |table: &[(Part, &str)], name: &str| table.iter().find(|(_, n)| *n == name).map(|(part, _)| *part);
    let Some(rest) = module.strip_prefix("model.layers.") else {
        let part = find(&HF[..3], module)?;
        return Some((part, gguf(part, 0)));
    };
    let (layer, name) = rest.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let expert = name.strip_prefix("mlp.experts.").or(name.strip_prefix("block_sparse_moe.experts."));
    if let Some((expert, name)) = expert.and_then(|rest| rest.split_once('.')) {
        let (part, expert) = (find(&HF_EXPERTS, name)?, expert.parse::<usize>().ok()?);
        return Some((part, format!("{}.{expert}", gguf(part, layer))));
    }
    let part = match name {
        "post_attention_layernorm" if has_post_norms => Part::AttnPostNorm,
        "post_attention_layernorm" => Part::FfnNorm,
        "block_sparse_moe.gate" => Part::Router,
        name => find(&HF[3..], name)?,
    };
    Some((part, gguf(part, layer)))
}

/// What a part of this GGUF name (without `.weight` or `.bias`) is called in Hugging Face files, for messages
/// about tensors that are missing.
pub(crate) fn to_hf(name: &str, has_post_norms: bool) -> Option<String> {
    let candidates = HF.iter().map(|(_, name)| *name).chain(["post_attention_layernorm"]);
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
    let mut modules = candidates.map(|module| match layer {
        Some(layer) => format!("model.layers.{layer}.{module}"),
        None => module.to_owned(),
    });
    modules.find(|module| from_hf(module, has_post_norms).is_some_and(|(_, found)| found == name))
}

/// Where a tensor stands in a GGUF file that is written here: what belongs to no layer first, then layer by layer in
/// the order of the table.
pub(crate) fn order(name: &str) -> (usize, usize, String) {
    let (layer, part) = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => (layer.parse::<usize>().map_or(usize::MAX, |layer| layer.saturating_add(1)), part),
        None => (0, name),
    };
    let module = part.rsplit_once('.').map_or(part, |(module, _)| module);
    let place = GGUF.iter().position(|(_, known)| known.trim_start_matches("blk.{}.") == module);
    (layer, place.unwrap_or(GGUF.len()), name.to_owned())
}

/// The tensor of all experts that a tensor of one expert becomes a part of, and which expert's it is.
pub(crate) fn expert(name: &str) -> Option<(String, usize)> {
    let (module, leaf) = name.rsplit_once('.')?;
    let (module, expert) = module.rsplit_once('.')?;
    let is_part = ["ffn_gate", "ffn_up", "ffn_down"].iter().any(|part| module.ends_with(part));
    Some((format!("{module}_exps.{leaf}"), expert.parse().ok()?)).filter(|_| is_part)
}
