//! What the tensors of a model are called, as a table per source format.

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

/// Whether a tensor of a GGUF file may be there without being a weight of the decoder.
pub(crate) fn is_ignored_in_gguf(name: &str) -> bool {
    GGUF_IGNORED.iter().any(|prefix| name.starts_with(prefix))
}
