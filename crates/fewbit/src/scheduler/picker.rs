//! The picker of one request chooses its tokens: the interface between the engine and sampling.
//!
//! The engine calls [`Picker::begin`] once with the prompt, then [`Picker::pick`] for each position, in order and
//! exactly once. This holds with speculation too, which stops at the first token that was not drafted. So the state of
//! a picker (random numbers, penalties, a constraint) advances with the tokens and is never rolled back, and drafted
//! tokens cannot change it. It runs on a thread of the engine, next to the pickers of other requests; an error or a
//! panic ends only its own request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Core;
use super::trace::Trace;
use crate::error::Error;
use crate::options::Options;
use crate::sample::{Sampler, TokenLogprob};
#[cfg(feature = "constraints")]
use crate::tools::Say;
use crate::tools::{Plan, Thinking};

/// Chooses the tokens of one request.
pub(crate) struct Picker {
    sampler: Sampler,
    #[cfg(feature = "constraints")]
    constraint: Option<crate::constraints::Active>,
    /// Suspends the constraint while the model reasons.
    thinking: Option<Thinking>,
    /// Tokens that are possible next although the constraint rules them out.
    #[cfg(feature = "constraints")]
    excepted: Vec<u32>,
    logprobs: Option<usize>,
    /// A copy of the model's logits, `[n_vocab]`, where they are needed after sampling has changed them.
    unchanged: Vec<f32>,
    times: PickTimes,
}

/// A chosen token.
pub(crate) struct Picked {
    pub(crate) token: u32,
    /// Its log probability, if requested.
    pub(crate) logprob: Option<TokenLogprob>,
    /// The constraint lets nothing follow.
    pub(crate) is_last: bool,
}

/// Total time of all picks so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PickTimes {
    pub(crate) sample: Duration,
    pub(crate) constrain: Duration,
}

impl Picker {
    /// Compiles the constraint, if there is one. `core` is the model's; `plan` has the settings of its reasoning, if
    /// any.
    pub(crate) fn new(options: &Options, core: &Core, plan: Option<Plan>, prompt: &[u32]) -> Result<Self, Error> {
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
            thinking: plan.and_then(|plan| Thinking::new(plan, &core.tokenizer, prompt)),
            #[cfg(feature = "constraints")]
            excepted: Vec::new(),
            logprobs: options.data.logprobs,
            unchanged: Vec::new(),
            times: PickTimes::default(),
        })
    }

    /// The seed of the random numbers.
    pub(crate) fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    /// Takes the tokens of the prompt.
    pub(crate) fn begin(&mut self, prompt: &[u32]) {
        self.sampler.begin(prompt);
    }

    /// Chooses the next token from the logits `[n_vocab]` after all tokens so far; may change the logits.
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

    /// The next tokens that it will choose whatever the logits are, as far as they are known.
    #[cfg(feature = "constraints")]
    pub(super) fn forced(&mut self, trace: &Trace) -> Vec<u32> {
        let Some(constraint) = &mut self.constraint else { return Vec::new() };
        if self.thinking.as_ref().is_some_and(|thinking| thinking.say() != Say::Constraint) {
            return Vec::new();
        }
        let start = Instant::now();
        let forced = trace.constrain(|| constraint.forced());
        self.times.constrain += start.elapsed();
        forced
    }

    #[cfg(not(feature = "constraints"))]
    pub(super) fn forced(&mut self, _trace: &Trace) -> Vec<u32> {
        Vec::new()
    }

    /// Total time of all picks so far.
    pub(crate) fn times(&self) -> PickTimes {
        self.times
    }

    #[cfg(feature = "constraints")]
    fn restrict(&mut self, logits: &mut [f32], trace: &Trace) -> Result<(), Error> {
        self.excepted.clear();
        let say = self.thinking.as_ref().map(Thinking::say);
        match (&mut self.thinking, say) {
            (Some(thinking), Some(Say::Free)) => {
                thinking.restrict(logits);
                return Ok(());
            }
            (Some(thinking), Some(Say::Both)) => self.excepted.extend_from_slice(thinking.exceptions()),
            _ => {}
        }
        let Some(constraint) = &mut self.constraint else { return Ok(()) };
        let before: Vec<f32> = self.excepted.iter().map(|&token| logit(logits, token)).collect();
        let start = Instant::now();
        trace.constrain(|| constraint.restrict(logits))?;
        self.times.constrain += start.elapsed();
        let mut before = before.into_iter();
        self.excepted.retain(|&token| {
            let (before, place) = (before.next(), logits.get_mut(token as usize));
            match (before, place) {
                (Some(before), Some(place)) if *place == f32::NEG_INFINITY => {
                    *place = before;
                    true
                }
                _ => false,
            }
        });
        Ok(())
    }

    #[cfg(feature = "constraints")]
    fn accept(&mut self, token: u32, trace: &Trace) -> Result<bool, Error> {
        if let Some(thinking) = &mut self.thinking {
            let is_exception = self.excepted.contains(&token);
            let waits = thinking.say() == Say::Free || is_exception;
            thinking.accept(token, is_exception);
            if waits {
                return Ok(false);
            }
        }
        let Some(constraint) = &mut self.constraint else { return Ok(false) };
        let start = Instant::now();
        let is_last = trace.constrain(|| constraint.accept(token))?;
        self.times.constrain += start.elapsed();
        Ok(is_last)
    }

    #[cfg(not(feature = "constraints"))]
    fn restrict(&mut self, logits: &mut [f32], _trace: &Trace) -> Result<(), Error> {
        if let Some(thinking) = &mut self.thinking {
            thinking.restrict(logits);
        }
        Ok(())
    }

    #[cfg(not(feature = "constraints"))]
    fn accept(&mut self, token: u32, _trace: &Trace) -> Result<bool, Error> {
        if let Some(thinking) = &mut self.thinking {
            thinking.accept(token, false);
        }
        Ok(false)
    }
}

#[cfg(feature = "constraints")]
fn logit(logits: &[f32], token: u32) -> f32 {
    logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY)
}
