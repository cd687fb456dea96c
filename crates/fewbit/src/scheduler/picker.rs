//! What chooses the tokens of one request: the seam between the engine and sampling.
//!
//! The engine calls [`Picker::begin`] once with the prompt, then [`Picker::pick`] for each position, in order and
//! exactly once: with speculation too, where it stops at the first token that was not drafted. So whatever a
//! picker keeps (random numbers, penalties, the state of a constraint) moves with the tokens and is never
//! rolled back, and drafted tokens can change nothing. It runs on a thread of the engine, beside the pickers of
//! other requests; an error or a panic ends its own request only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Core;
use super::trace::Trace;
use crate::error::Error;
use crate::options::Options;
use crate::sample::{Sampler, TokenLogprob};

/// Chooses the tokens of one request.
pub(crate) struct Picker {
    sampler: Sampler,
    #[cfg(feature = "constraints")]
    constraint: Option<crate::constraints::Active>,
    logprobs: Option<usize>,
    /// The logits as the model gave them, where they are needed after sampling has changed them: `[n_vocab]`.
    unchanged: Vec<f32>,
    times: PickTimes,
}

/// A chosen token.
pub(crate) struct Picked {
    pub(crate) token: u32,
    /// If they were asked for.
    pub(crate) logprob: Option<TokenLogprob>,
    /// A constraint lets nothing follow.
    pub(crate) is_last: bool,
}

/// Where the time of all picks so far went.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PickTimes {
    pub(crate) sample: Duration,
    pub(crate) constrain: Duration,
}

impl Picker {
    /// Compiles the constraint, if there is one; `core` is the model's.
    pub(crate) fn new(options: &Options, core: &Core) -> Result<Self, Error> {
        let mut sampler = Sampler::with_texts(&options.sampling(), Arc::clone(&core.tokenizer) as _)?;
        if let Some(custom) = &options.custom {
            sampler.set_custom(custom.make());
        }
        Ok(Self {
            sampler,
            #[cfg(feature = "constraints")]
            constraint: match &options.data.constraint {
                Some(constraint) => Some(core.constraints.start(&core.tokenizer, constraint)?),
                None => None,
            },
            logprobs: options.data.logprobs,
            unchanged: Vec::new(),
            times: PickTimes::default(),
        })
    }

    /// The seed of the random numbers.
    pub(crate) fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    /// The tokens that the request begins with.
    pub(crate) fn begin(&mut self, prompt: &[u32]) {
        self.sampler.begin(prompt);
    }

    /// The token that follows, from the logits `[n_vocab]` after all tokens so far; they may be changed.
    pub(super) fn pick(&mut self, logits: &mut [f32], trace: &Trace) -> Result<Picked, Error> {
        if self.logprobs.is_some() {
            self.unchanged.clear();
            self.unchanged.extend_from_slice(logits);
        }
        self.restrict(logits, trace)?;
        let start = Instant::now();
        let (token, logprob) = trace.sample(|| {
            let token = self.sampler.sample(logits)?;
            let logprob = self.logprobs.map(|n_top| TokenLogprob::new(&self.unchanged, token, n_top));
            Ok::<_, Error>((token, logprob))
        })?;
        self.times.sample += start.elapsed();
        Ok(Picked { token, logprob, is_last: self.accept(token, trace)? })
    }

    /// Tokens that it will choose whatever the logits are, from the next one on, as far as that is known.
    #[cfg(feature = "constraints")]
    pub(super) fn forced(&mut self, trace: &Trace) -> Vec<u32> {
        let Some(constraint) = &mut self.constraint else { return Vec::new() };
        let start = Instant::now();
        let forced = trace.constrain(|| constraint.forced());
        self.times.constrain += start.elapsed();
        forced
    }

    #[cfg(not(feature = "constraints"))]
    pub(super) fn forced(&mut self, _trace: &Trace) -> Vec<u32> {
        Vec::new()
    }

    /// Where the time went so far.
    pub(crate) fn times(&self) -> PickTimes {
        self.times
    }

    #[cfg(feature = "constraints")]
    fn restrict(&mut self, logits: &mut [f32], trace: &Trace) -> Result<(), Error> {
        if let Some(constraint) = &mut self.constraint {
            let start = Instant::now();
            trace.constrain(|| constraint.restrict(logits))?;
            self.times.constrain += start.elapsed();
        }
        Ok(())
    }

    #[cfg(feature = "constraints")]
    fn accept(&mut self, token: u32, trace: &Trace) -> Result<bool, Error> {
        let Some(constraint) = &mut self.constraint else { return Ok(false) };
        let start = Instant::now();
        let is_last = trace.constrain(|| constraint.accept(token))?;
        self.times.constrain += start.elapsed();
        Ok(is_last)
    }

    #[cfg(not(feature = "constraints"))]
    fn restrict(&mut self, _logits: &mut [f32], _trace: &Trace) -> Result<(), Error> {
        Ok(())
    }

    #[cfg(not(feature = "constraints"))]
    fn accept(&mut self, _token: u32, _trace: &Trace) -> Result<bool, Error> {
        Ok(false)
    }
}
