//! Custom samplers: sampling by code of the caller.

use std::fmt;
use std::sync::Arc;

/// A candidate that is still possible after all stages.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// Its logit, after all changes.
    pub logit: f32,
    /// Its probability among the candidates.
    pub probability: f64,
}

/// A custom sampler: changes the logits, makes the choice, or both.
///
/// Each generation has its own instance. The methods are called once per token, in the order of the text, on a thread
/// of the engine, so slow code in them delays other requests. An invalid choice or a panic ends only its own
/// generation.
///
/// ```
/// use fewbit::sample::{Choice, CustomSampler};
///
/// /// Chooses the second best token every other time.
/// struct Contrarian(bool);
///
/// impl CustomSampler for Contrarian {
///     fn choose(&mut self, choices: &[Choice]) -> Option<u32> {
///         self.0 = !self.0;
///         let mut sorted: Vec<_> = choices.iter().collect();
///         sorted.sort_by(|a, b| b.probability.total_cmp(&a.probability));
///         sorted.get(usize::from(self.0)).or(sorted.first()).map(|choice| choice.token)
///     }
/// }
/// # let mut sampler = fewbit::Sampler::new(&fewbit::Sampling::plain()).unwrap().with_custom(Contrarian(false));
/// # assert_eq!(sampler.sample(&mut [1.0, 3.0, 2.0]), Ok(2));
/// # assert_eq!(sampler.sample(&mut [1.0, 3.0, 2.0]), Ok(1));
/// ```
pub trait CustomSampler: Send {
    /// Changes the logits, `[n_vocab]`, in place. `tokens` are those of the prompt and of the text so far. Minus
    /// infinity rules a token out. Does nothing by default.
    fn adjust(&mut self, tokens: &[u32], logits: &mut [f32]) {
        let _ = (tokens, logits);
    }

    /// Chooses one of the candidates that the stages kept; with a temperature of 0 there is only one. `None`, the
    /// default, lets the sampler draw one.
    fn choose(&mut self, choices: &[Choice]) -> Option<u32> {
        let _ = choices;
        None
    }
}

/// Makes a [`CustomSampler`] for each generation.
#[derive(Clone)]
pub(crate) struct CustomFactory(Arc<dyn Fn() -> Box<dyn CustomSampler> + Send + Sync>);

impl CustomFactory {
    pub(crate) fn new<S: CustomSampler + 'static>(make: impl Fn() -> S + Send + Sync + 'static) -> Self {
        Self(Arc::new(move || Box::new(make())))
    }

    pub(crate) fn make(&self) -> Box<dyn CustomSampler> {
        (self.0)()
    }
}

impl fmt::Debug for CustomFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomFactory")
    }
}
