//! Choosing the next token from a row of logits.
//!
//! First the logits are changed:
//!
//! 1. A constraint, if there is one, makes tokens impossible.
//! 2. `logit_bias` is added, and `banned` tokens become impossible.
//! 3. `penalties` act on tokens that occurred lately: repetition, then frequency and presence.
//! 4. `dry` acts on tokens that would continue a repetition of an earlier sequence.
//! 5. A [custom sampler](CustomSampler) changes the logits in any way.
//!
//! Greedy sampling (a temperature of 0) then chooses the token with the largest logit. Otherwise the candidates are
//! narrowed by stages, in the order of [`Sampling::order`]; each acts on the candidates that the stage before kept:
//!
//! 1. `top_n_sigma`: keeps tokens at most n standard deviations below the largest logit (0: off).
//! 2. `top_k`: keeps the k tokens with the largest logits (0: off).
//! 3. `typical_p`: keeps the tokens with the surprise nearest to the entropy, until they have probability p (1: off).
//! 4. `top_p`: keeps the smallest set of most probable tokens whose probabilities sum to at least p (1: off).
//! 5. `min_p`: keeps tokens at least `min_p` times as probable as the most probable one (0: off).
//! 6. `xtc`: with some probability, removes all top choices but the least probable of them.
//! 7. `temperature`: divides the logits by the temperature, or by a `dynamic_temperature`.
//!
//! One of the remaining candidates is drawn. `mirostat`, if it is set, replaces all stages but the temperature.
//!
//! Because tokens are cut off before the temperature applies, a high temperature reorders plausible tokens and does not
//! let implausible ones in. It is also the order of llama.cpp, so settings carry over.
//!
//! Equal logits are ordered by token id, lowest first. Probabilities are computed in f64 with one fixed implementation
//! of `exp`, and random numbers come from one fixed generator: the same logits, settings and seed give the same token
//! on every machine.

mod candidates;
mod custom;
mod history;
mod logprobs;
mod rng;
mod settings;
mod stages;

use std::sync::Arc;

use candidates::{Candidate, Candidates};
use history::History;
use rng::Rng;
use stages::{MirostatState, Step};

pub(crate) use custom::CustomFactory;
pub use custom::{Choice, CustomSampler};
pub use history::TokenTexts;
pub use logprobs::{Alternative, TokenLogprob};
pub use settings::{DEFAULT_ORDER, Dry, DynamicTemperature, Mirostat, Penalties, Sampling, SamplingError, Stage, Xtc};

/// Chooses tokens from logits: holds the prepared settings, and all state that changes from token to token.
pub struct Sampler {
    steps: Vec<Step>,
    mirostat: Option<MirostatState>,
    greedy: bool,
    /// Added to logits; bans are minus infinity.
    bias: Vec<(u32, f32)>,
    history: History,
    custom: Option<Box<dyn CustomSampler>>,
    rng: Rng,
    seed: u64,
    list: Vec<Candidate>,
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler").field("seed", &self.seed).field("steps", &self.steps).finish_non_exhaustive()
    }
}

impl Sampler {
    /// Prepares the given settings. Without the texts of tokens, DRY has no sequence breakers.
    ///
    /// # Errors
    /// [`SamplingError`] for a setting that is out of range.
    pub fn new(sampling: &Sampling) -> Result<Self, SamplingError> {
        Self::build(sampling, None)
    }

    /// Like [`new`](Self::new), with the texts of the vocabulary's tokens.
    pub fn with_texts(sampling: &Sampling, texts: Arc<dyn TokenTexts>) -> Result<Self, SamplingError> {
        Self::build(sampling, Some(texts))
    }

    fn build(sampling: &Sampling, texts: Option<Arc<dyn TokenTexts>>) -> Result<Self, SamplingError> {
        sampling.validate()?;
        let stages = match sampling.mirostat {
            Some(_) => &[Stage::Temperature][..],
            None => &sampling.order,
        };
        let seed = sampling.seed.unwrap_or_else(rng::fresh_seed);
        let bans = sampling.banned.iter().map(|&token| (token, f32::NEG_INFINITY));
        Ok(Self {
            steps: stages.iter().filter_map(|&stage| Step::of(stage, sampling)).collect(),
            mirostat: sampling.mirostat.map(MirostatState::new),
            greedy: sampling.is_greedy(),
            bias: sampling.logit_bias.iter().copied().chain(bans).collect(),
            history: History::new(&sampling.penalties, &sampling.dry, texts),
            custom: None,
            rng: Rng::new(seed),
            seed,
            list: Vec::new(),
        })
    }

    /// Adds a custom sampler.
    pub fn with_custom(mut self, custom: impl CustomSampler + 'static) -> Self {
        self.custom = Some(Box::new(custom));
        self
    }

    pub(crate) fn set_custom(&mut self, custom: Box<dyn CustomSampler>) {
        self.custom = Some(custom);
    }

    /// The seed in use: the one that was set, or the one that was drawn.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Starts a new text: clears the history of tokens that penalties look at, and adds the tokens of the prompt to it.
    /// The random numbers continue.
    pub fn begin(&mut self, prompt: &[u32]) {
        self.history.clear();
        for &token in prompt {
            self.history.push(token);
        }
    }

    /// Chooses a token from `logits`, `[n_vocab]`, and adds it to the history. Changes the logits in place.
    ///
    /// # Errors
    /// [`SamplingError`] if a biased or banned token is not in the vocabulary, if logits are NaN or plus infinity, if
    /// no token is possible, or if the custom sampler chooses a token that is not a candidate.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32, SamplingError> {
        self.change(logits)?;
        let best = most_probable(logits)?;
        let token = if self.greedy && self.custom.is_none() { best.id } else { self.narrow_and_draw(logits, best)? };
        self.history.push(token);
        Ok(token)
    }

    fn change(&mut self, logits: &mut [f32]) -> Result<(), SamplingError> {
        let n_vocab = logits.len();
        for &(token, bias) in &self.bias {
            let logit = logits.get_mut(token as usize).ok_or(SamplingError::UnknownToken { token, n_vocab })?;
            // A logit of minus infinity stays so, whatever is added; NaN is detected later.
            *logit += bias;
        }
        if self.history.is_active() {
            self.history.apply(logits);
        }
        if let Some(custom) = &mut self.custom {
            custom.adjust(self.history.tokens(), logits);
        }
        Ok(())
    }

    fn narrow_and_draw(&mut self, logits: &[f32], best: Candidate) -> Result<u32, SamplingError> {
        let mut candidates = Candidates::new(logits, best.logit, &mut self.list);
        if self.greedy {
            candidates.keep_best(1);
        } else {
            for step in &self.steps {
                step.apply(&mut candidates, &mut self.rng);
            }
            if let Some(mirostat) = &self.mirostat {
                mirostat.narrow(&mut candidates);
            }
        }
        if let Some(custom) = &mut self.custom {
            let probabilities = candidates.probabilities();
            let choices: Vec<Choice> = candidates
                .list()
                .iter()
                .zip(probabilities)
                .map(|(c, probability)| Choice { token: c.id, logit: c.logit, probability })
                .collect();
            if let Some(token) = custom.choose(&choices) {
                let chosen = choices.iter().find(|choice| choice.token == token);
                let chosen = chosen.ok_or(SamplingError::NotACandidate { token })?;
                if let Some(mirostat) = &mut self.mirostat {
                    mirostat.learn(chosen.probability);
                }
                return Ok(token);
            }
        }
        let weight = candidates.weight();
        let total = candidates.total();
        let list = candidates.list();
        let mut left = self.rng.next_f64() * total;
        let drawn = list.iter().find(|candidate| {
            left -= weight(candidate);
            left < 0.0
        });
        // Rounding can leave a tiny rest in `left`; the most probable candidate is drawn then.
        let drawn = match drawn.or_else(|| list.iter().min_by(|a, b| candidates::best_first(a, b))) {
            Some(&drawn) => drawn,
            None => best,
        };
        if let Some(mirostat) = &mut self.mirostat {
            mirostat.learn(weight(&drawn) / total);
        }
        Ok(drawn.id)
    }
}

/// Number of logits that are compared together, in vector registers, before any of them is looked at alone.
const STRETCH: usize = 512;

/// Whether any of the logits is above `limit` or NaN.
fn may_exceed(logits: &[f32], limit: f32) -> bool {
    let (lanes, rest) = logits.as_chunks::<16>();
    let mut found = [false; 16];
    for lane in lanes {
        found.iter_mut().zip(lane).for_each(|(found, &logit)| *found |= logit > limit || logit.is_nan());
    }
    found.contains(&true) || rest.iter().any(|&logit| logit > limit || logit.is_nan())
}

/// The token with the largest logit, the first one if several are equal; `None` for invalid logits.
pub(crate) fn largest(logits: &[f32]) -> Option<u32> {
    most_probable(logits).ok().map(|best| best.id)
}

/// The token with the largest logit, the first one if several are equal.
fn most_probable(logits: &[f32]) -> Result<Candidate, SamplingError> {
    let mut best = Candidate { id: 0, logit: f32::NEG_INFINITY };
    for (first, stretch) in (0_u32..).step_by(STRETCH).zip(logits.chunks(STRETCH)) {
        if !may_exceed(stretch, best.logit) {
            continue;
        }
        for (id, &logit) in (first..).zip(stretch) {
            if logit <= best.logit {
                continue;
            }
            if logit.is_nan() || logit == f32::INFINITY {
                return Err(SamplingError::NotFinite { token: id, value: logit });
            }
            best = Candidate { id, logit };
        }
    }
    if best.logit == f32::NEG_INFINITY {
        return Err(SamplingError::NoCandidate { n_tokens: logits.len() });
    }
    Ok(best)
}

#[cfg(test)]
mod tests;
