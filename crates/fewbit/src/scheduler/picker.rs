//! What chooses the tokens of one request: the seam between the engine and sampling.
//!
//! The engine calls [`Picker::begin`] once with the prompt, then [`Picker::pick`] for each position, in order and
//! exactly once: with speculation too, where it stops at the first token that was not drafted. So whatever a
//! picker keeps (random numbers, penalties, the state of a constraint) moves with the tokens and is never
//! rolled back, and drafted tokens can change nothing. It runs on a thread of the engine, beside the pickers of
//! other requests; an error or a panic ends its own request only.

use std::sync::Arc;

use crate::error::Error;
use crate::options::Options;
use crate::sample::{Sampler, TokenLogprob, TokenTexts};

/// Chooses the tokens of one request.
pub(crate) struct Picker {
    sampler: Sampler,
    logprobs: Option<usize>,
    /// The logits as the model gave them, where they are needed after sampling has changed them: `[n_vocab]`.
    unchanged: Vec<f32>,
}

/// A chosen token.
pub(crate) struct Picked {
    pub(crate) token: u32,
    /// If they were asked for.
    pub(crate) logprob: Option<TokenLogprob>,
}

impl Picker {
    /// `texts` are those of the model's tokens.
    pub(crate) fn new(options: &Options, texts: Arc<dyn TokenTexts>) -> Result<Self, Error> {
        let mut sampler = Sampler::with_texts(&options.sampling, texts)?;
        if let Some(custom) = &options.custom {
            sampler.set_custom(custom.make());
        }
        Ok(Self { sampler, logprobs: options.logprobs, unchanged: Vec::new() })
    }

    /// The seed of the random numbers.
    pub(crate) fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    /// The tokens that the request begins with.
    pub(crate) fn begin(&mut self, prompt: &[u32]) {
        self.sampler.begin(prompt);
    }

    /// The token that follows, from the logits `[n_vocab]` after all tokens so far, which are changed on the way.
    pub(crate) fn pick(&mut self, logits: &mut [f32]) -> Result<Picked, Error> {
        if self.logprobs.is_some() {
            self.unchanged.clear();
            self.unchanged.extend_from_slice(logits);
        }
        let token = self.sampler.sample(logits)?;
        let logprob = self.logprobs.map(|n_top| TokenLogprob::new(&self.unchanged, token, n_top));
        Ok(Picked { token, logprob })
    }
}
