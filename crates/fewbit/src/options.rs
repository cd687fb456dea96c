//! The settings that one prompt and a conversation share, and the builder methods for them.

use crate::sample::Sampling;

/// Settings of a generation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) sampling: Sampling,
    /// `None`: as far as the context reaches.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stop: Vec<String>,
    pub(crate) ignore_eos: bool,
}

/// Writes the setters of [`Options`] for a builder with a field `options`.
macro_rules! option_setters {
    () => {
        /// Ends after so many tokens. Without it, a generation goes on until the model ends it or the
        /// context is full.
        pub fn max_tokens(mut self, n: usize) -> Self {
            self.options.max_tokens = Some(n);
            self
        }

        /// See [`Sampling::temperature`](crate::Sampling::temperature); 0 is greedy.
        pub fn temperature(mut self, temperature: f32) -> Self {
            self.options.sampling.temperature = temperature;
            self
        }

        /// See [`Sampling::top_k`](crate::Sampling::top_k); 0 turns it off.
        pub fn top_k(mut self, k: usize) -> Self {
            self.options.sampling.top_k = k;
            self
        }

        /// See [`Sampling::top_p`](crate::Sampling::top_p); 1 turns it off.
        pub fn top_p(mut self, p: f32) -> Self {
            self.options.sampling.top_p = p;
            self
        }

        /// See [`Sampling::min_p`](crate::Sampling::min_p); 0 turns it off.
        pub fn min_p(mut self, p: f32) -> Self {
            self.options.sampling.min_p = p;
            self
        }

        /// Makes the random numbers repeat. Without a seed each generation draws one, and
        /// [`Completion::seed`](crate::Completion::seed) tells which.
        pub fn seed(mut self, seed: u64) -> Self {
            self.options.sampling.seed = Some(seed);
            self
        }

        /// All sampling settings at once.
        pub fn sampling(mut self, sampling: crate::Sampling) -> Self {
            self.options.sampling = sampling;
            self
        }

        /// Ends where this text would come; it may span tokens, and no part of it is emitted. Can be
        /// called several times.
        pub fn stop(mut self, text: impl Into<String>) -> Self {
            self.options.stop.push(text.into());
            self
        }

        /// Goes on after a token that ends a text, to the limit of tokens: for measurements.
        pub fn ignore_eos(mut self, yes: bool) -> Self {
            self.options.ignore_eos = yes;
            self
        }
    };
}

pub(crate) use option_setters;
