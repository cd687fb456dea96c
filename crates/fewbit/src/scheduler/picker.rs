//! What chooses the tokens of one request: the seam between the engine and sampling.
//!
//! The engine calls [`Picker::begin`] once with the prompt, then [`Picker::pick`] for each position, in order and
//! exactly once: with speculation too, where it stops at the first token that was not drafted. So whatever a
//! picker keeps (random numbers, penalties, the state of a constraint) moves with the tokens and is never
//! rolled back, and drafted tokens can change nothing. It runs on a thread of the engine, beside the pickers of
//! other requests; an error or a panic ends its own request only.

use crate::error::Error;
use crate::options::Options;
use crate::sample::Sampler;

/// Chooses the tokens of one request.
pub(crate) struct Picker {
    sampler: Sampler,
}

/// A chosen token.
pub(crate) struct Picked {
    pub(crate) token: u32,
}

impl Picker {
    pub(crate) fn new(options: &Options) -> Result<Self, Error> {
        Ok(Self { sampler: Sampler::new(&options.sampling)? })
    }

    /// The seed of the random numbers.
    pub(crate) fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    /// The tokens that the request begins with.
    pub(crate) fn begin(&mut self, _prompt: &[u32]) {}

    /// The token that follows, from the logits `[n_vocab]` after all tokens so far; they may be changed.
    pub(crate) fn pick(&mut self, logits: &mut [f32]) -> Result<Picked, Error> {
        Ok(Picked { token: self.sampler.sample(logits)? })
    }
}
