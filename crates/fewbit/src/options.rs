//! The settings that one prompt and a conversation share, and the builder methods for them.

use std::time::{Duration, Instant};

use crate::sample::Sampling;
use crate::scheduler::CancelToken;

/// Settings of a generation.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) sampling: Sampling,
    /// `None`: as far as the context reaches.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stop: Vec<String>,
    pub(crate) ignore_eos: bool,
    pub(crate) deadline: Option<Instant>,
    /// From the start of the generation.
    pub(crate) timeout: Option<Duration>,
    pub(crate) cancel: Option<CancelToken>,
    pub(crate) share_prefix: bool,
}

impl Options {
    pub(crate) fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            max_tokens: None,
            stop: Vec::new(),
            ignore_eos: false,
            deadline: None,
            timeout: None,
            cancel: None,
            share_prefix: true,
        }
    }
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

        /// Ends at this time, with what there is by then and
        /// [`FinishReason::Timeout`](crate::FinishReason::Timeout).
        pub fn deadline(mut self, at: std::time::Instant) -> Self {
            self.options.deadline = Some(at);
            self
        }

        /// Ends so long after its start, the time in the queue included; see [`deadline`](Self::deadline).
        pub fn timeout(mut self, time: std::time::Duration) -> Self {
            self.options.timeout = Some(time);
            self
        }

        /// Lets this token end it from elsewhere.
        pub fn cancel_token(mut self, token: &$crate::CancelToken) -> Self {
            self.options.cancel = Some(token.clone());
            self
        }

        /// Whether prompts that begin alike may be computed once (the default). The result is the same, but how
        /// long it takes tells whether another request began like this one.
        pub fn share_prefix(mut self, yes: bool) -> Self {
            self.options.share_prefix = yes;
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
