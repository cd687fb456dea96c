//! A model as data: one [`ModelConfig`] describes every supported model.
//!
//! Parts that only some models have are fields with a value that means "absent". A configuration comes from the
//! metadata of a file ([`ModelConfig::from_gguf`]) and is checked by [`ModelConfig::checked`], wherever it comes from.

mod gguf;
mod recurrent;
mod rope;
mod to_gguf;

pub(crate) use gguf::embedding_scale;
use recurrent::check_taps;
pub use recurrent::{DeltaNetConfig, Recurrent, StateSpaceConfig};
pub(crate) use rope::longrope_magnitude;
pub use rope::{RopeConfig, RopeScaling, yarn_magnitude};
pub use to_gguf::GgufConfig;

use crate::CheckpointError;
use fewbit_quant::GateFunction;

/// Shape and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The name of the architecture, as in `general.architecture`.
    pub architecture: String,
    /// The name of the model, if its file has one.
    pub name: Option<String>,
    /// Width of the residual stream.
    pub dim: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads; divides `n_heads`. With latent attention, 1.
    pub n_kv_heads: usize,
    /// Number of elements of a head. Not always `dim / n_heads`. With latent attention, those of what is cached of a
    /// position: its latent and its rotated key.
    pub head_dim: usize,
    /// Heads of local layers, if theirs differ.
    pub local_heads: Option<LocalHeads>,
    /// The last layers, if they have no keys and values of their own.
    pub shared_kv: Option<SharedKv>,
    /// Width of what each layer gets of a token's per-layer embedding, in models with such embeddings.
    pub per_layer_dim: Option<usize>,
    /// Inner width of the feed-forward block, in layers without experts.
    pub ffn_dim: usize,
    /// Number of positions that the model was trained for.
    pub context_length: usize,
    /// The epsilon of every norm.
    pub rms_norm_eps: f32,
    /// The activation function of the feed-forward block's gate.
    pub gate: GateFunction,
    /// Whether the feed-forward block has a gate; without one, it is `down(max(up x, 0)^2)`.
    pub is_gated: bool,
    /// The properties that vary from layer to layer; one entry for each layer.
    pub layers: Vec<LayerConfig>,
    /// The layer after the last one, which predicts the token after the next one (multi-token prediction), in models that
    /// have one which can draft tokens.
    pub mtp: Option<LayerConfig>,
    /// Largest number of keys that a query sees in local layers, its own included.
    pub sliding_window: Option<usize>,
    /// Whether the window of local layers does not slide: a query sees the keys from the last multiple of its length.
    pub has_chunks: bool,
    /// Position embedding.
    pub rope: RopeConfig,
    /// Position embedding of local layers, if it differs.
    pub local_rope: Option<RopeConfig>,
    /// Whether attention and the feed-forward block have a norm of their inputs.
    pub has_pre_norms: bool,
    /// The norm of their inputs and of the last hidden states.
    pub norm: NormKind,
    /// Whether attention and the feed-forward block of a layer have the same input, of which there is one norm.
    pub is_parallel: bool,
    /// Whether queries and keys have an RMS norm.
    pub has_qk_norm: bool,
    /// The norm of queries and keys, in models that have one.
    pub qk_norm: QkNorm,
    /// Whether the values of every head have an RMS norm without weights. A global layer of such a model can lack the
    /// matrix of values: then, what the matrix of keys gives is both.
    pub has_value_norm: bool,
    /// Whether the outputs of attention and of the feed-forward block have an RMS norm before they are added.
    pub has_post_norms: bool,
    /// Whether layers can have a factor, which what they leave in the residual stream is multiplied by.
    pub has_layer_scales: bool,
    /// Factor of the attention scores, usually `1 / sqrt(head_dim)`.
    pub attention_scale: f32,
    /// If set, attention scores become `cap * tanh(score / cap)`.
    pub attention_softcap: Option<f32>,
    /// Whether every head has a sink: a score that takes its part of the softmax and adds nothing to the output.
    pub has_sinks: bool,
    /// If set, queries are scaled by their position.
    pub attention_temperature: Option<AttentionTemperature>,
    /// Multi-head latent attention.
    pub latent: Option<LatentConfig>,
    /// Whether every query comes with a gate, whose sigmoid the output of its head is multiplied by.
    pub has_output_gate: bool,
    /// What layers that keep a state of fixed size have instead of attention, in models with such layers.
    pub recurrent: Option<Recurrent>,
    /// Routed experts instead of the feed-forward block.
    pub experts: Option<ExpertConfig>,
    /// Factor of the token embeddings.
    pub embedding_scale: f32,
    /// Factor of the outputs that attention and the feed-forward block add to the residual stream.
    pub residual_scale: f32,
    /// Factor of the logits.
    pub logit_scale: f32,
    /// If set, logits become `cap * tanh(logit / cap)` after they were scaled.
    pub logit_softcap: Option<f32>,
    /// How the tokens of a text become one vector, in embedding models.
    pub pooling: Option<Pooling>,
}

/// Key and value heads of local layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalHeads {
    /// Number of key and value heads; divides the number of query heads.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

/// Layers without keys and values of their own: their queries see those of the last layer before them that has some and
/// is local or global as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedKv {
    /// Number of such layers, which are the last ones.
    pub n_layers: usize,
    /// Inner width of their feed-forward block.
    pub ffn_dim: usize,
}

/// Multi-head latent attention (DeepSeek-AI, 2024, <https://arxiv.org/abs/2405.04434>): keys and values of all heads are
/// computed from one latent per position, which is what is cached, next to one rotated key that all heads share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentConfig {
    /// Width of the latent that queries are computed from, if they are.
    pub q_rank: Option<usize>,
    /// Width of the latent of keys and values.
    pub kv_rank: usize,
    /// Elements of a head's queries and keys that are not rotated.
    pub plain_dim: usize,
    /// Elements of a head's queries and of the shared key that are rotated.
    pub rotated_dim: usize,
    /// Elements of a head's values.
    pub value_dim: usize,
}

impl LatentConfig {
    /// The epsilon of the norms of latents. Neither kind of file specifies it.
    pub const NORM_EPS: f32 = 1e-6;

    /// Elements of a head's query.
    pub fn query_dim(&self) -> usize {
        self.plain_dim + self.rotated_dim
    }
}

/// How the hidden states of a text's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pooling {
    /// The mean of all hidden states.
    Mean,
    /// The hidden state of the last token, which has seen all others.
    Last,
    /// The hidden state of the first token, which in a causal model has seen only itself.
    Cls,
}

/// The properties that vary from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// Whether queries see only the keys inside the sliding window.
    pub is_local: bool,
    /// Whether the layer keeps a state of fixed size for a sequence, instead of keys and values.
    pub is_recurrent: bool,
    /// Whether the layer has attention, or a state in its place.
    pub has_attention: bool,
    /// Whether the layer has a feed-forward block.
    pub has_feed_forward: bool,
    /// Whether queries and keys are rotated by their position.
    pub has_rope: bool,
    /// Whether the layer has the experts of a model that has some; otherwise, it has a plain feed-forward block.
    pub has_experts: bool,
}

impl LayerConfig {
    /// A layer that predicts a further token: it sees all positions, and has experts if the model has.
    pub(crate) fn mtp(has_experts: bool) -> Self {
        Self {
            is_local: false,
            is_recurrent: false,
            has_attention: true,
            has_feed_forward: true,
            has_rope: true,
            has_experts,
        }
    }
}

/// A norm of the residual stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NormKind {
    /// Divided by the root of the mean of the squares.
    #[default]
    Rms,
    /// The same after the mean is subtracted, without a bias.
    Layer,
}

/// An RMS norm of queries and keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QkNorm {
    /// Of every head, before it is rotated. All heads share the weights.
    #[default]
    Heads,
    /// Of every head, after it is rotated. All heads share the weights.
    RotatedHeads,
    /// Of every head of rotated layers, without weights. As rotation does not change the mean of the squares, it does
    /// not matter whether it comes before or after it.
    Plain,
    /// Of all heads together, before they are rotated. Every element has its own weight.
    Rows,
}

/// A query at `position` is multiplied by `1 + scale * ln(1 + floor((position + offset) / length))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionTemperature {
    /// How fast the factor grows.
    pub scale: f64,
    /// Number of positions between two steps of the factor.
    pub length: usize,
    /// The number that the first position counts as.
    pub offset: usize,
    /// Whether it applies only to layers without position embedding.
    pub only_without_rope: bool,
}

impl AttentionTemperature {
    /// The factor at a position.
    pub fn factor(&self, position: usize) -> f32 {
        (1.0 + self.scale * libm::log(1.0 + ((position + self.offset) / self.length) as f64)) as f32
    }
}

/// Routed experts: one score per expert, of which the `n_used` largest are used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertConfig {
    /// Number of experts of a layer.
    pub n_experts: usize,
    /// Number of experts that each token goes through.
    pub n_used: usize,
    /// Inner width of an expert.
    pub ffn_dim: usize,
    /// How scores become weights.
    pub gating: Gating,
    /// Groups of experts, of which each token uses only some.
    pub groups: Option<ExpertGroups>,
    /// Whether the inputs of the used experts are multiplied by their weights, instead of their outputs.
    pub scales_inputs: bool,
    /// Whether the weights of the used experts are divided by their sum.
    pub is_normalized: bool,
    /// Factor of the weights.
    pub scale: f32,
    /// Whether layers with experts have a plain feed-forward block too. Both have norms of their own input and output,
    /// the router has one of the residual stream, and every expert has a factor of its weights.
    pub next_to_mlp: bool,
    /// Inner width of the shared expert, which every token goes through, if there is one.
    pub shared_ffn_dim: Option<usize>,
    /// Whether the output of the shared expert is multiplied by the sigmoid of its own score.
    pub has_shared_gate: bool,
}

/// Groups of equally many consecutive experts: a token uses experts of the best groups only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// Number of groups.
    pub n_groups: usize,
    /// Number of groups that each token uses.
    pub n_used: usize,
    /// Number of a group's best experts whose weights are added up to that of the group: 1 or 2.
    pub n_best: usize,
}

/// How the scores of experts become their weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Gating {
    /// The softmax of all scores.
    #[default]
    Softmax,
    /// The sigmoid of each score.
    Sigmoid,
}

/// Larger than the width of any model, and small enough that a product of two such numbers does not overflow.
pub(crate) const MAX_WIDTH: usize = 1 << 24;
/// Larger than the number and size of heads of any layer with a state.
pub(crate) const MAX_STATE_SIDE: usize = 1 << 12;
/// The most tokens that a convolution may see.
pub(crate) const MAX_TAPS: usize = 16;
pub(crate) const MAX_LAYERS: usize = 4096;
pub(crate) const MAX_CONTEXT: usize = 1 << 31;

impl ModelConfig {
    /// Returns the configuration if its numbers are consistent.
    ///
    /// # Errors
    /// [`CheckpointError::BadConfig`], with the name of the field.
    pub fn checked(self) -> Result<Self, CheckpointError> {
        check_count("dim", self.dim, MAX_WIDTH)?;
        check_count("n_heads", self.n_heads, MAX_WIDTH)?;
        check_count("n_kv_heads", self.n_kv_heads, MAX_WIDTH)?;
        check_count("head_dim", self.head_dim, MAX_WIDTH)?;
        check_count("n_heads * head_dim", self.n_heads.saturating_mul(self.head_dim), MAX_WIDTH)?;
        check_count("ffn_dim", self.ffn_dim, MAX_WIDTH)?;
        check_count("layers", self.layers.len(), MAX_LAYERS)?;
        check_count("context_length", self.context_length, MAX_CONTEXT)?;
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(bad("n_kv_heads", self.n_kv_heads, format!("a divisor of {} heads", self.n_heads)));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(bad("rms_norm_eps", self.rms_norm_eps, "a small positive number".to_owned()));
        }
        match self.sliding_window {
            Some(0) => return Err(bad("sliding_window", 0, "at least 1".to_owned())),
            None if self.layers.iter().any(|l| l.is_local) && !self.has_fixed_kinds() => {
                return Err(bad("sliding_window", "missing", "there, as some layers are local".to_owned()));
            }
            _ => {}
        }
        if self.has_qk_norm && self.qk_norm == QkNorm::Plain && self.rope.attention_factor != 1.0 {
            return Err(bad(
                "rope.attention_factor",
                self.rope.attention_factor,
                "1, as queries are normalized".into(),
            ));
        }
        self.rope.check(self.head_dim)?;
        if let Some(rope) = &self.local_rope {
            rope.check(self.local_heads.map_or(self.head_dim, |heads| heads.head_dim))?;
        }
        self.check_kinds_of_layers()?;
        let factors = [
            ("attention_scale", Some(self.attention_scale)),
            ("embedding_scale", Some(self.embedding_scale)),
            ("residual_scale", Some(self.residual_scale)),
            ("logit_scale", Some(self.logit_scale)),
            ("attention_softcap", self.attention_softcap),
            ("logit_softcap", self.logit_softcap),
            ("experts.scale", self.experts.map(|e| e.scale)),
        ];
        for (key, factor) in factors {
            if let Some(factor) = factor {
                check_positive(key, factor)?;
            }
        }
        match self.recurrent {
            Some(Recurrent::DeltaNet(delta)) => delta.check()?,
            Some(Recurrent::StateSpace(space)) => space.check()?,
            Some(Recurrent::ShortConvolution { n_taps }) => check_taps(n_taps)?,
            None if self.layers.iter().any(|layer| layer.is_recurrent) => {
                return Err(bad("recurrent", "missing", "there, as some layers are recurrent".to_owned()));
            }
            None => {}
        }
        if !(0..self.n_layers()).any(|layer| self.has_keys_values(layer)) {
            return Err(bad("layers", "only ones without keys and values", "at least one with attention".to_owned()));
        }
        if let Some(t) = self.attention_temperature {
            check_count("attention_temperature.length", t.length, MAX_CONTEXT)?;
            if t.offset > MAX_CONTEXT {
                return Err(bad("attention_temperature.offset", t.offset, format!("at most {MAX_CONTEXT}")));
            }
            if !t.scale.is_finite() {
                return Err(bad("attention_temperature.scale", t.scale, "a finite number".to_owned()));
            }
        }
        if let Some(e) = self.experts {
            check_count("experts.n_experts", e.n_experts, MAX_EXPERTS)?;
            check_count("experts.n_used", e.n_used, e.n_experts)?;
            check_count("experts.ffn_dim", e.ffn_dim, MAX_WIDTH)?;
            if let Some(n) = e.shared_ffn_dim {
                check_count("experts.shared_ffn_dim", n, MAX_WIDTH)?;
            }
            if let Some(groups) = e.groups {
                check_groups(&e, groups)?;
            }
        }
        if let Some(latent) = &self.latent {
            self.check_latent(latent)?;
        }
        if self.mtp.is_some() && (self.latent.is_some() || self.layers.iter().any(|layer| layer.is_local)) {
            return Err(bad("mtp", "there", "absent, with latent attention or local layers".to_owned()));
        }
        Ok(self)
    }

    /// Local layers with other heads, layers that share keys and values, per-layer embeddings.
    fn check_kinds_of_layers(&self) -> Result<(), CheckpointError> {
        if let Some(heads) = self.local_heads {
            check_count("local_heads.n_kv_heads", heads.n_kv_heads, MAX_WIDTH)?;
            check_count("local_heads.head_dim", heads.head_dim, MAX_WIDTH)?;
            check_count("n_heads * local_heads.head_dim", self.n_heads.saturating_mul(heads.head_dim), MAX_WIDTH)?;
            if !self.n_heads.is_multiple_of(heads.n_kv_heads) {
                let expected = format!("a divisor of {} heads", self.n_heads);
                return Err(bad("local_heads.n_kv_heads", heads.n_kv_heads, expected));
            }
            if self.local_rope.is_none() && self.layers.iter().any(|layer| layer.is_local) {
                return Err(bad("local_rope", "missing", "there, as local layers have other heads".to_owned()));
            }
        }
        if self.has_fixed_kinds() {
            let other = [
                (self.latent.is_some(), "latent attention"),
                (self.recurrent.is_some(), "recurrent layers"),
                (self.has_output_gate, "gated attention"),
                (self.has_qk_norm && self.qk_norm != QkNorm::Heads, "this norm of queries and keys"),
            ];
            if let Some((_, what)) = other.into_iter().find(|(is_there, _)| *is_there) {
                let expected = "absent, with local heads, shared keys or norms of values".to_owned();
                return Err(bad("layers", what, expected));
            }
        }
        if let Some(shared) = self.shared_kv {
            check_count("shared_kv.n_layers", shared.n_layers, self.layers.len())?;
            check_count("shared_kv.ffn_dim", shared.ffn_dim, MAX_WIDTH)?;
            if let Some(layer) = (0..self.layers.len()).find(|&layer| self.source_of_kv(layer).is_none()) {
                let expected = "after a layer of its kind with keys and values".to_owned();
                return Err(bad("shared_kv.n_layers", format!("layer {layer}"), expected));
            }
        }
        if let Some(n) = self.per_layer_dim {
            check_count("per_layer_dim", n, MAX_WIDTH)?;
            check_count("per_layer_dim * layers", n.saturating_mul(self.layers.len()), MAX_WIDTH)?;
        }
        Ok(())
    }

    fn check_latent(&self, latent: &LatentConfig) -> Result<(), CheckpointError> {
        check_count("latent.q_rank", latent.q_rank.unwrap_or(1), MAX_WIDTH)?;
        check_count("latent.kv_rank", latent.kv_rank, MAX_WIDTH)?;
        check_count("latent.plain_dim", latent.plain_dim, MAX_WIDTH)?;
        check_count("latent.rotated_dim", latent.rotated_dim, MAX_WIDTH)?;
        check_count("latent.value_dim", latent.value_dim, MAX_WIDTH)?;
        let widest = latent.query_dim().max(latent.value_dim);
        check_count("n_heads * (latent dimensions)", self.n_heads.saturating_mul(widest), MAX_WIDTH)?;
        let (head_dim, n_dims) = (latent.kv_rank + latent.rotated_dim, latent.rotated_dim);
        if (self.n_kv_heads, self.head_dim, self.rope.n_dims) != (1, head_dim, n_dims) {
            let found = format!("{}, {}, {}", self.n_kv_heads, self.head_dim, self.rope.n_dims);
            return Err(bad("n_kv_heads, head_dim, rope.n_dims", found, format!("1, {head_dim}, {n_dims}")));
        }
        Ok(())
    }

    /// Elements of a head of a layer.
    pub fn head_dim_of(&self, layer: usize) -> usize {
        self.local_heads.filter(|_| self.layers[layer].is_local).map_or(self.head_dim, |heads| heads.head_dim)
    }

    /// Elements of the largest heads of all layers.
    pub fn widest_head_dim(&self) -> usize {
        self.local_heads.map_or(0, |heads| heads.head_dim).max(self.head_dim)
    }

    /// Number of key and value heads of a layer, or of the layer whose keys and values it sees.
    pub fn n_kv_heads_of(&self, layer: usize) -> usize {
        self.local_heads.filter(|_| self.layers[layer].is_local).map_or(self.n_kv_heads, |heads| heads.n_kv_heads)
    }

    /// Inner width of the plain feed-forward block of a layer.
    pub fn ffn_dim_of(&self, layer: usize) -> usize {
        self.shared_kv.filter(|_| self.shares_kv(layer)).map_or(self.ffn_dim, |shared| shared.ffn_dim)
    }

    /// Whether a layer has no keys and values of its own.
    pub fn shares_kv(&self, layer: usize) -> bool {
        self.shared_kv.is_some_and(|shared| layer + shared.n_layers >= self.layers.len())
    }

    /// The layer whose keys and values the queries of a layer see: usually the layer itself.
    pub fn kv_layer(&self, layer: usize) -> usize {
        self.source_of_kv(layer).unwrap_or(layer)
    }

    fn source_of_kv(&self, layer: usize) -> Option<usize> {
        if !self.shares_kv(layer) {
            return Some(layer);
        }
        let is_same = |&other: &usize| self.layers[other].is_local == self.layers[layer].is_local;
        (0..layer).rev().filter(|&other| !self.shares_kv(other)).find(is_same)
    }

    /// Factor of what a layer gets of a token's row of the per-layer embedding, in models with such embeddings.
    pub fn per_layer_scale(&self) -> f32 {
        embedding_scale(self.per_layer_dim.unwrap_or(1))
    }

    /// Whether a layer can lack the matrix of values.
    pub fn can_lack_values(&self, layer: usize) -> bool {
        self.has_value_norm && !self.layers[layer].is_local
    }

    /// Elements that a head adds to the input of the output projection.
    pub fn value_dim(&self) -> usize {
        self.latent.map_or(self.head_dim, |latent| latent.value_dim)
    }

    /// Number of decoder layers.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// The sizes of the layers with gated delta rule, in a model with such layers.
    pub fn delta_net(&self) -> Option<&DeltaNetConfig> {
        match &self.recurrent {
            Some(Recurrent::DeltaNet(delta)) => Some(delta),
            Some(Recurrent::StateSpace(_) | Recurrent::ShortConvolution { .. }) | None => None,
        }
    }

    /// Whether a layer keeps keys and values.
    pub fn has_keys_values(&self, layer: usize) -> bool {
        self.layers[layer].has_attention && !self.layers[layer].is_recurrent && !self.shares_kv(layer)
    }

    /// What a layer has instead of attention, if it keeps a state of fixed size.
    pub fn recurrent_of(&self, layer: usize) -> Option<Recurrent> {
        self.recurrent.filter(|_| self.layers[layer].is_recurrent)
    }

    /// The configuration in which the layer that predicts a further token is the last one, if there is one.
    pub fn with_mtp(&self) -> Option<Self> {
        let mut config = self.clone();
        config.layers.push(config.mtp.take()?);
        Some(config)
    }

    /// Whether a tensor of a GGUF file is left out: it belongs to layers after the last one, which predict further
    /// tokens and are not used, or to the keys and values of a layer that sees those of another one.
    pub fn leaves_out(&self, tensor: &str) -> bool {
        crate::names::layer_of_gguf(tensor).is_some_and(|layer| {
            let is_unused = layer < self.n_layers() && self.shares_kv(layer) && crate::names::is_kv_in_gguf(tensor);
            is_unused || self.leaves_out_layer(layer) || self.is_copy(layer, tensor)
        })
    }

    /// The same for a layer.
    pub(crate) fn leaves_out_layer(&self, layer: usize) -> bool {
        let has_more = crate::families::architecture(&self.architecture).is_some_and(|arch| arch.has_further_layers);
        has_more && layer >= self.n_layers() + usize::from(self.mtp.is_some())
    }

    /// Whether a tensor is the copy of the embedding or of the output matrix in a layer that predicts a further token.
    pub(crate) fn is_copy(&self, layer: usize, tensor: &str) -> bool {
        layer >= self.n_layers() && crate::names::is_copy_in_further_layer(tensor)
    }

    /// Largest number of keys that a query sees in a layer, its own included; `None` if it sees all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.layers[layer].is_local)
    }

    /// The widest window of all layers, beyond which keys are never seen again; `None` if some layer sees all keys, or
    /// if positions must be counted from the first, as chunks are.
    pub fn widest_window(&self) -> Option<usize> {
        self.sliding_window.filter(|_| !self.has_chunks && self.layers.iter().all(|l| l.is_local))
    }

    /// The experts of a layer, if it has some.
    pub fn experts_of(&self, layer: usize) -> Option<ExpertConfig> {
        self.experts.filter(|_| self.layers[layer].has_experts)
    }

    /// The norm of the queries and keys of a layer, if it has one.
    pub fn qk_norm_of(&self, layer: usize) -> Option<QkNorm> {
        let is_without = self.qk_norm == QkNorm::Plain && !self.layers[layer].has_rope;
        (self.has_qk_norm && !is_without).then_some(self.qk_norm)
    }

    /// Whether the queries of a layer are scaled by their position.
    pub fn has_temperature(&self, layer: usize) -> bool {
        self.attention_temperature.is_some_and(|t| !(t.only_without_rope && self.layers[layer].has_rope))
    }

    /// The first part of this model that devices other than the CPU do not compute, in words.
    pub fn only_on_cpu(&self) -> Option<&'static str> {
        [
            (self.latent.is_some(), "multi-head latent attention"),
            (self.layers.iter().any(|layer| layer.is_recurrent), "layers with a state instead of attention"),
            (self.has_output_gate, "gated attention"),
            (self.is_parallel && !self.has_pre_norms, "attention next to a feed-forward block, both without norms"),
        ]
        .into_iter()
        .find(|(is_there, _)| *is_there)
        .map(|(_, what)| what)
    }

    /// Whether a layer uses the position embedding of local layers.
    pub fn uses_local_rope(&self, layer: usize) -> bool {
        self.layers[layer].is_local && self.local_rope.is_some()
    }

    /// Whether the matrices of a layer depend on whether it is local.
    fn has_fixed_kinds(&self) -> bool {
        self.local_heads.is_some() || self.shared_kv.is_some() || self.has_value_norm
    }

    /// Makes every layer local with this window, or none.
    ///
    /// If the layers of the model differ, the local ones stay local and get the new window; without a window, they see
    /// all keys. Where matrices depend on which layers are local, these stay so.
    pub fn set_sliding_window(&mut self, window: Option<usize>) {
        let all = self.layers.iter().all(|l| !l.is_local);
        self.sliding_window = window;
        if self.has_fixed_kinds() {
            return;
        }
        for layer in &mut self.layers {
            layer.is_local = window.is_some() && (all || layer.is_local);
        }
    }

    /// Makes those layers local for which the pattern, repeated, is true. The model must have a window.
    ///
    /// # Errors
    /// [`CheckpointError::BadConfig`] for a pattern that does not fit the layers, or without a window.
    pub fn set_local_layers(&mut self, pattern: &[bool]) -> Result<(), CheckpointError> {
        if pattern.is_empty() || pattern.len() > self.layers.len() {
            let expected = format!("between 1 and {} layers", self.layers.len());
            return Err(bad("local_layers", format!("{} layers", pattern.len()), expected));
        }
        if self.sliding_window.is_none() && pattern.contains(&true) {
            return Err(bad("sliding_window", "missing", "there, as some layers are local".to_owned()));
        }
        let is_other = |(layer, is_local): (&LayerConfig, &bool)| layer.is_local != *is_local;
        if self.has_fixed_kinds() && self.layers.iter().zip(pattern.iter().cycle()).any(is_other) {
            let expected = "those of the file, as their matrices differ from those of others".to_owned();
            return Err(bad("local_layers", "other layers", expected));
        }
        for (layer, is_local) in self.layers.iter_mut().zip(pattern.iter().cycle()) {
            layer.is_local = *is_local;
        }
        Ok(())
    }
}

/// Largest number of experts of a layer; tables of this size count their tokens.
const MAX_EXPERTS: usize = 4096;

/// The error for an invalid number.
pub(crate) fn bad(key: &str, found: impl ToString, expected: String) -> CheckpointError {
    CheckpointError::BadConfig { key: key.to_owned(), found: found.to_string(), expected }
}

/// Returns an error unless a count is between 1 and `max`.
fn check_count(key: &str, n: usize, max: usize) -> Result<(), CheckpointError> {
    match (1..=max).contains(&n) {
        true => Ok(()),
        false => Err(bad(key, n, format!("between 1 and {max}"))),
    }
}

/// Returns an error unless tokens find enough experts in the groups that they use.
fn check_groups(e: &ExpertConfig, groups: ExpertGroups) -> Result<(), CheckpointError> {
    check_count("experts.groups.n_groups", groups.n_groups, e.n_experts)?;
    check_count("experts.groups.n_used", groups.n_used, groups.n_groups)?;
    let size = e.n_experts / groups.n_groups;
    if !e.n_experts.is_multiple_of(groups.n_groups) || size * groups.n_used < e.n_used || size < groups.n_best {
        let expected = format!("a divisor of {} experts, with enough in the groups used", e.n_experts);
        return Err(bad("experts.groups.n_groups", groups.n_groups, expected));
    }
    Ok(())
}

/// Returns an error unless a number is finite and above 0.
fn check_positive(key: &str, x: impl Copy + Into<f64> + ToString) -> Result<(), CheckpointError> {
    match x.into().is_finite() && x.into() > 0.0 {
        true => Ok(()),
        false => Err(bad(key, x, "a positive number".to_owned())),
    }
}
