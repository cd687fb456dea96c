//! What measurements give: figures over their repetitions, and why there are none.

use fewbit_model::ModelError;

use crate::error::Error;
use crate::random::RandomError;

/// Why something was not measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// What is to be measured does not fit into the context.
    #[error(
        "{needed} tokens are needed and the context has {context_tokens}: measure shorter prompts, texts or depths"
    )]
    TooLong {
        /// Tokens that the longest combination takes.
        needed: usize,
        /// Tokens of a context.
        context_tokens: usize,
    },
    /// There is nothing between the first token and the last.
    #[error("at least 2 tokens are generated to measure how fast they come, not {n_gen}")]
    TooFew {
        /// Tokens to generate.
        n_gen: usize,
    },
    /// Speculation, which must not change a token, did: a defect of fewbit.
    #[error("speculation changed a token: please report it, with the model and the type of the CPU")]
    SpeculationChangedTokens,
    /// The random weights cannot be made.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The model does not run.
    #[error(transparent)]
    Model(#[from] Error),
}

impl From<ModelError> for BenchError {
    fn from(error: ModelError) -> Self {
        Self::Model(error.into())
    }
}

/// A figure over the repetitions.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// That of some values; `None` of none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let rate = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((rate.median, rate.min, rate.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of(vec![4.0, 1.0]).unwrap().median, 2.5);
        assert!(Spread::of(vec![]).is_none());
    }
}
