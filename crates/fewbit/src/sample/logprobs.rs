//! Log probabilities of the model itself: over all tokens, before any sampling setting applies.

use super::candidates::Candidates;

/// A token that the model could have generated instead.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Alternative {
    /// The token.
    pub token: u32,
    /// The natural logarithm of its probability.
    pub logprob: f32,
}

/// The probability that the model gave to a token of the text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// The natural logarithm of its probability; `None` for the first token of a text, which nothing precedes.
    pub logprob: Option<f32>,
    /// The most probable tokens at this position, best first: as many as requested. May include the token itself.
    pub top: Vec<Alternative>,
}

impl TokenLogprob {
    /// For a token that nothing precedes.
    pub(crate) fn first(token: u32) -> Self {
        Self { token, logprob: None, top: Vec::new() }
    }

    /// For the token that came after `logits`, `[n_vocab]`, of which none is NaN.
    pub(crate) fn new(logits: &[f32], token: u32, n_top: usize) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut list = Vec::new();
        let mut candidates = Candidates::new(logits, max, &mut list);
        let log_total = libm::log(candidates.total());
        let of = |logit: f32| (f64::from(logit) - f64::from(max) - log_total) as f32;
        let logprob = logits.get(token as usize).map(|&logit| of(logit));
        let mut top = Vec::new();
        if n_top > 0 {
            candidates.keep_best(n_top);
            top = candidates.list().iter().map(|c| Alternative { token: c.id, logprob: of(c.logit) }).collect();
        }
        Self { token, logprob, top }
    }
}
