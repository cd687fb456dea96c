//! What a model is, as data: one [`ModelConfig`] describes every member of the family.
//!
//! The parts that only some members have are fields with a value that means "not there". A configuration comes
//! from the metadata of a file ([`ModelConfig::from_gguf`]) and is checked by
//! [`ModelConfig::checked`], wherever it comes from.

mod gguf;
mod rope;
mod to_gguf;

pub(crate) use gguf::embedding_scale;
pub(crate) use rope::longrope_magnitude;
pub use rope::{RopeConfig, RopeScaling, yarn_magnitude};
pub use to_gguf::GgufConfig;

use crate::CheckpointError;
use fewbit_quant::GateFunction;

/// Shape and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family's name, as `general.architecture` has it.
    pub architecture: String,
    /// The model's own name, if its file has one.
    pub name: Option<String>,
    /// Width of the residual stream.
    pub dim: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Elements of a head. Not always `dim / n_heads`.
    pub head_dim: usize,
    /// Inner width of the feed-forward part, in layers without experts.
    pub ffn_dim: usize,
    /// Positions that the model was trained for.
    pub context_length: usize,
    /// The epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// The function of the feed-forward part's gate.
    pub gate: GateFunction,
    /// What varies from layer to layer; one entry for each.
    pub layers: Vec<LayerConfig>,
    /// Keys that a query sees at most in local layers, itself included.
    pub sliding_window: Option<usize>,
    /// Position embedding.
    pub rope: RopeConfig,
    /// Position embedding of local layers, where it is another one.
    pub local_rope: Option<RopeConfig>,
    /// Queries and keys have an RMS norm per head, before they are rotated.
    pub has_qk_norm: bool,
    /// The outputs of attention and of the feed-forward part have an RMS norm before they are added.
    pub has_post_norms: bool,
    /// Factor of the attention scores, usually `1 / sqrt(head_dim)`.
    pub attention_scale: f32,
    /// Attention scores become `cap * tanh(score / cap)`.
    pub attention_softcap: Option<f32>,
    /// Queries are scaled by their position.
    pub attention_temperature: Option<AttentionTemperature>,
    /// Routed experts in place of the feed-forward part.
    pub experts: Option<ExpertConfig>,
    /// Factor of the token embeddings.
    pub embedding_scale: f32,
    /// Factor of what attention and the feed-forward part add to the residual stream.
    pub residual_scale: f32,
    /// Factor of the logits.
    pub logit_scale: f32,
    /// Logits become `cap * tanh(logit / cap)`, after they were scaled.
    pub logit_softcap: Option<f32>,
    /// How a text's tokens become one vector, in models that were made for embeddings.
    pub pooling: Option<Pooling>,
}

/// How the hidden states of a text's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the last token, which has seen all others.
    Last,
    /// That of the first token, which a causal model has shown nothing but itself.
    Cls,
}

/// What varies from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// Queries see only the keys inside the sliding window.
    pub is_local: bool,
    /// Queries and keys are rotated by their position.
    pub has_rope: bool,
}

/// A query at `position` is multiplied by `1 + scale * ln(1 + floor(position / length))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionTemperature {
    /// How fast the factor grows.
    pub scale: f64,
    /// Positions after which it grows.
    pub length: usize,
}

impl AttentionTemperature {
    /// The factor at a position.
    pub fn factor(&self, position: usize) -> f32 {
        (1.0 + self.scale * libm::log(1.0 + (position / self.length) as f64)) as f32
    }
}

/// Routed experts: a softmax over one score per expert, of which the `n_used` largest are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertConfig {
    /// Experts of a layer.
    pub n_experts: usize,
    /// Experts that each token goes through.
    pub n_used: usize,
    /// Inner width of an expert.
    pub ffn_dim: usize,
    /// The weights of the experts used are divided by their sum.
    pub is_normalized: bool,
    /// Factor of the weights.
    pub scale: f32,
    /// Inner width of an expert that every token goes through.
    pub shared_ffn_dim: Option<usize>,
    /// The shared expert's output is multiplied by the sigmoid of a score of its own.
    pub has_shared_gate: bool,
}

/// More than any model has, and small enough that no product of two of them overflows.
pub(crate) const MAX_WIDTH: usize = 1 << 24;
pub(crate) const MAX_LAYERS: usize = 4096;
pub(crate) const MAX_CONTEXT: usize = 1 << 31;

impl ModelConfig {
    /// The configuration, if its numbers fit together.
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
            None if self.layers.iter().any(|l| l.is_local) => {
                return Err(bad("sliding_window", "missing", "there, as some layers are local".to_owned()));
            }
            _ => {}
        }
        self.rope.check(self.head_dim)?;
        if let Some(rope) = &self.local_rope {
            rope.check(self.head_dim)?;
        }
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
        if let Some(t) = self.attention_temperature {
            check_count("attention_temperature.length", t.length, MAX_CONTEXT)?;
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
        }
        Ok(self)
    }

    /// Decoder layers.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Keys that a query sees at most in a layer, itself included.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.layers[layer].is_local)
    }

    /// Keys that a query sees at most in whichever layer sees most; `None` if some layer sees all.
    pub fn widest_window(&self) -> Option<usize> {
        self.sliding_window.filter(|_| self.layers.iter().all(|l| l.is_local))
    }

    /// Whether a layer rotates by the position embedding of local layers.
    pub fn uses_local_rope(&self, layer: usize) -> bool {
        self.layers[layer].is_local && self.local_rope.is_some()
    }

    /// Makes every layer local, with this window, or none.
    ///
    /// Of a model whose layers differ, the local ones stay local and take the new window; without one, they see
    /// all.
    pub fn set_sliding_window(&mut self, window: Option<usize>) {
        let all = self.layers.iter().all(|l| !l.is_local);
        self.sliding_window = window;
        for layer in &mut self.layers {
            layer.is_local = window.is_some() && (all || layer.is_local);
        }
    }

    /// Makes those layers local for which the pattern, repeated, says so. There must be a window for them.
    ///
    /// # Errors
    /// [`CheckpointError::BadConfig`] for a pattern that fits no layers, or without a window.
    pub fn set_local_layers(&mut self, pattern: &[bool]) -> Result<(), CheckpointError> {
        if pattern.is_empty() || pattern.len() > self.layers.len() {
            let expected = format!("between 1 and {} layers", self.layers.len());
            return Err(bad("local_layers", format!("{} layers", pattern.len()), expected));
        }
        if self.sliding_window.is_none() && pattern.contains(&true) {
            return Err(bad("sliding_window", "missing", "there, as some layers are local".to_owned()));
        }
        for (layer, is_local) in self.layers.iter_mut().zip(pattern.iter().cycle()) {
            layer.is_local = *is_local;
        }
        Ok(())
    }
}

/// Experts of a layer; their tokens are counted in tables of this size.
const MAX_EXPERTS: usize = 4096;

/// A number that makes no sense.
pub(crate) fn bad(key: &str, found: impl ToString, expected: String) -> CheckpointError {
    CheckpointError::BadConfig { key: key.to_owned(), found: found.to_string(), expected }
}

/// An error unless a number of things is between 1 and `max`.
fn check_count(key: &str, n: usize, max: usize) -> Result<(), CheckpointError> {
    match (1..=max).contains(&n) {
        true => Ok(()),
        false => Err(bad(key, n, format!("between 1 and {max}"))),
    }
}

/// An error unless a number is finite and above 0.
fn check_positive(key: &str, x: impl Copy + Into<f64> + ToString) -> Result<(), CheckpointError> {
    match x.into().is_finite() && x.into() > 0.0 {
        true => Ok(()),
        false => Err(bad(key, x, "a positive number".to_owned())),
    }
}
