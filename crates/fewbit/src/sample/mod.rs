//! Choosing the next token from a row of logits.
//!
//! The stages, in order; each works on what the one before left:
//!
//! 1. `top_k`: the k tokens with the largest logits (0: off).
//! 2. `top_p`: of these, the smallest set of most probable tokens whose probabilities sum to at least
//!    p (1: off).
//! 3. `min_p`: of these, the tokens at least `min_p` times as probable as the most probable one
//!    (0: off).
//! 4. `temperature`: logits are divided by it, and one token is drawn. 0 takes the most probable
//!    token instead (*greedy*), whatever the other settings.
//!
//! Truncating before the temperature means that a high temperature reorders plausible tokens and
//! does not let implausible ones in. It is also the order of llama.cpp, so settings carry over.
//!
//! Equal logits are ordered by id, lowest first. Probabilities are computed in f64 by one fixed
//! implementation of `exp`, and the random numbers by one fixed generator: the same logits,
//! settings and seed give the same token everywhere.

mod candidates;
mod rng;

use candidates::{Candidate, Candidates};
use rng::Rng;

/// How the next token is chosen. The [module](self) says in which order the settings act.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// Divides the logits: below 1 sharper, above 1 flatter, 0 greedy. Default 0.8.
    pub temperature: f32,
    /// Keeps the k most probable tokens; 0 keeps all. Default 40.
    pub top_k: usize,
    /// Keeps the most probable tokens that together have this probability; 1 keeps all. Default 0.95.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the most probable; 0 keeps all. Default 0.05.
    pub min_p: f32,
    /// Seed of the random numbers; `None` (the default) takes a new one each time.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, seed: None }
    }
}

impl Sampling {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether every setting is in its range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        // Written so that NaN fails each of them.
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(SamplingError::Temperature(self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(SamplingError::TopP(self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(SamplingError::MinP(self.min_p));
        }
        Ok(())
    }
}

/// Settings out of range, or logits that nothing can be drawn from.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// The temperature is negative or not a finite number.
    #[error("temperature is {0}: give 0 (greedy) or a positive number")]
    Temperature(f32),
    /// `top_p` is not in its range.
    #[error("top_p is {0}: give a number above 0 and at most 1 (1 turns it off)")]
    TopP(f32),
    /// `min_p` is not in its range.
    #[error("min_p is {0}: give a number from 0 (off) to 1")]
    MinP(f32),
    /// The model computed NaN or plus infinity.
    #[error("the logit of token {token} is {value}: the model file is damaged, or its arithmetic overflows")]
    NotFinite {
        /// The token.
        token: u32,
        /// Its logit.
        value: f32,
    },
    /// No token is possible: there are no logits, or all are minus infinity.
    #[error("no token is possible: all {n_tokens} logits are minus infinity")]
    NoCandidate {
        /// How many logits there were.
        n_tokens: usize,
    },
}

/// One step that narrows the candidates.
trait Stage: Send {
    fn apply(&mut self, candidates: &mut Candidates<'_>);
}

struct TopK(usize);

impl Stage for TopK {
    fn apply(&mut self, candidates: &mut Candidates<'_>) {
        candidates.keep_best(self.0);
    }
}

struct TopP(f32);

impl Stage for TopP {
    fn apply(&mut self, candidates: &mut Candidates<'_>) {
        let max = candidates.max();
        let total: f64 = candidates.list().iter().map(|c| weight(c, max, 1.0)).sum();
        let enough = f64::from(self.0) * total;
        candidates.keep_prefix(|best| {
            let mut sum = 0.0;
            best.iter()
                .position(|candidate| {
                    sum += weight(candidate, max, 1.0);
                    sum >= enough
                })
                .map(|last| last + 1)
        });
    }
}

struct MinP(f32);

impl Stage for MinP {
    fn apply(&mut self, candidates: &mut Candidates<'_>) {
        // p >= min_p * p_max, taken to logarithms.
        let at_least = f64::from(candidates.max()) + libm::log(f64::from(self.0));
        candidates.keep_from(at_least as f32);
    }
}

/// Unnormalized probability, 1 for the largest logit.
fn weight(candidate: &Candidate, max: f32, inverse_temperature: f64) -> f64 {
    let below = (f64::from(candidate.logit) - f64::from(max)) * inverse_temperature;
    // Below exp(-50) a token would be drawn once in 10^21; most of a vocabulary is there when the
    // temperature is low, and need not cost an exp each.
    if below < -50.0 { 0.0 } else { libm::exp(below) }
}

/// Draws tokens from logits: the settings, prepared, and the state of the random numbers.
pub struct Sampler {
    stages: Vec<Box<dyn Stage>>,
    /// `None` is greedy.
    inverse_temperature: Option<f64>,
    rng: Rng,
    seed: u64,
    list: Vec<Candidate>,
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler").field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl Sampler {
    /// Prepares the given settings.
    pub fn new(sampling: &Sampling) -> Result<Self, SamplingError> {
        sampling.validate()?;
        let mut stages: Vec<Box<dyn Stage>> = Vec::new();
        if sampling.top_k > 0 {
            stages.push(Box::new(TopK(sampling.top_k)));
        }
        if sampling.top_p < 1.0 {
            stages.push(Box::new(TopP(sampling.top_p)));
        }
        if sampling.min_p > 0.0 {
            stages.push(Box::new(MinP(sampling.min_p)));
        }
        let seed = sampling.seed.unwrap_or_else(rng::fresh_seed);
        Ok(Self {
            stages,
            inverse_temperature: (sampling.temperature > 0.0).then(|| 1.0 / f64::from(sampling.temperature)),
            rng: Rng::new(seed),
            seed,
            list: Vec::new(),
        })
    }

    /// The seed in use: the one given, or the one that was drawn.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Chooses a token from `logits`, `[n_vocab]`.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SamplingError> {
        let best = most_probable(logits)?;
        let Some(inverse_temperature) = self.inverse_temperature else {
            return Ok(best.id);
        };
        let mut candidates = Candidates::new(logits, best.logit, &mut self.list);
        for stage in &mut self.stages {
            stage.apply(&mut candidates);
        }
        let list = candidates.list();
        let weight = |candidate: &Candidate| weight(candidate, best.logit, inverse_temperature);
        let total: f64 = list.iter().map(weight).sum();
        let mut left = self.rng.next_f64() * total;
        for candidate in &*list {
            left -= weight(candidate);
            if left < 0.0 {
                return Ok(candidate.id);
            }
        }
        // Rounding can leave a last crumb of `left`; it belongs to no token in particular.
        Ok(best.id)
    }
}

/// The largest logit, the first of equals.
fn most_probable(logits: &[f32]) -> Result<Candidate, SamplingError> {
    let mut best = Candidate { id: 0, logit: f32::NEG_INFINITY };
    for (id, &logit) in (0_u32..).zip(logits) {
        // Nearly every token takes this branch, and only this one.
        if logit <= best.logit {
            continue;
        }
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(SamplingError::NotFinite { token: id, value: logit });
        }
        best = Candidate { id, logit };
    }
    if best.logit == f32::NEG_INFINITY {
        return Err(SamplingError::NoCandidate { n_tokens: logits.len() });
    }
    Ok(best)
}

#[cfg(test)]
mod tests;
