//! Results of measurements: figures over the repetitions, and the errors.

use fewbit_model::ModelError;

use crate::error::Error;
use crate::random::RandomError;

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A combination does not fit into the context.
    #[error(
        "{needed} tokens are needed and the context has {context_tokens}: measure shorter prompts, texts or depths"
    )]
    TooLong {
        /// Number of tokens that the longest combination takes.
        needed: usize,
        /// Length of the context, in tokens.
        context_tokens: usize,
    },
    /// Models that are compared have other vocabularies, so they are not the same model.
    #[error("{n_vocab} tokens in the vocabulary, but {reference} in that of the reference: compare the same model")]
    OtherVocabulary {
        /// Size of the vocabulary.
        n_vocab: usize,
        /// Size of the reference's.
        reference: usize,
    },
    /// Too few tokens to measure the time between the first and the last.
    #[error("the speed of decoding is measured over at least 2 tokens, not {n_gen}")]
    TooFew {
        /// Number of tokens to generate.
        n_gen: usize,
    },
    /// Speculation changed a token, which it must not: a bug in fewbit.
    #[error("speculation changed a token: please report it, with the model and the type of the CPU")]
    SpeculationChangedTokens,
    /// The random weights cannot be made.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] Error),
}

impl From<ModelError> for BenchError {
    fn from(error: ModelError) -> Self {
        Self::Model(error.into())
    }
}

/// A figure measured several times.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl Spread {
    /// The spread of some values; `None` if there are none.
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
    fn spread_has_median_minimum_and_maximum() {
        let rate = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((rate.median, rate.min, rate.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of(vec![4.0, 1.0]).unwrap().median, 2.5);
        assert!(Spread::of(vec![]).is_none());
    }
}
