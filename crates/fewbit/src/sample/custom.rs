//! Sampling by code of the caller's.

use std::fmt;
use std::sync::Arc;

/// A token that is still possible after all stages.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// Its logit, with everything that was added to it.
    pub logit: f32,
    /// Its probability among the choices.
    pub probability: f64,
}

/// What a caller adds to sampling: changes to the logits, the choice itself, or both.
///
/// Each generation has its own. Methods are called once per token, in the order of the text, on a thread of the
/// engine: what they do delays others. An impossible choice or a panic ends its own generation only.
///
/// ```
/// use fewbit::sample::{Choice, CustomSampler};
///
/// /// Every other token is the second best.
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
    /// Changes logits, `[n_vocab]`; `tokens` are the prompt and what was generated so far. Minus infinity makes a
    /// token impossible. Does nothing by default.
    fn adjust(&mut self, tokens: &[u32], logits: &mut [f32]) {
        let _ = (tokens, logits);
    }

    /// Chooses one of what the stages left: with a temperature of 0, that is one token. `None`, the default, leaves
    /// the draw to the sampler.
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
