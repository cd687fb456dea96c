//! Position embedding as data; `crate::rope` computes with it.

use super::{MAX_CONTEXT, bad, check_count, check_positive};
use crate::ModelError;
use fewbit_kernels::RopeStyle;

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Elements of a head that are rotated; the rest stay as they are.
    pub n_dims: usize,
    /// Which elements of a head are pairs.
    pub style: RopeStyle,
    /// How frequencies are changed for contexts beyond those of the first training.
    pub scaling: RopeScaling,
    /// Divisors of the frequencies, `[n_dims / 2]`, from a file that has them as a tensor. They come on top of
    /// `scaling`.
    pub divisors: Option<Vec<f32>>,
    /// Factor of the rotated queries and of the rotated keys. For YaRN and LongRoPE that is the attention
    /// factor; [`RopeScaling::default_attention_factor`] has its usual value.
    pub attention_factor: f64,
}

/// How the frequency of each pair is changed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All are divided.
    Linear {
        /// By this.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths are divided, short ones stay, and between the two it is interpolated.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Positions of the first training.
        original_context: usize,
    },
    /// YaRN (Peng et al., 2023, <https://arxiv.org/abs/2309.00071>).
    Yarn {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Positions of the first training.
        original_context: usize,
        /// Pairs that turn more often than this in the original context stay as they are.
        beta_fast: f64,
        /// Pairs that turn less often than this are divided.
        beta_slow: f64,
        /// The ends of the ramp between the two are rounded outwards to whole pairs.
        is_truncated: bool,
    },
    /// LongRoPE (Ding et al., 2024, <https://arxiv.org/abs/2402.13753>): a divisor per pair, of two sets.
    LongRope {
        /// Positions of the first training. A model that is loaded for no more of them takes the short
        /// divisors, else the long ones.
        original_context: usize,
        /// `[n_dims / 2]`
        short: Vec<f32>,
        /// `[n_dims / 2]`
        long: Vec<f32>,
    },
}

impl RopeConfig {
    /// Plain rotation of whole heads.
    pub fn new(theta: f64, n_dims: usize, style: RopeStyle) -> Self {
        Self { theta, n_dims, style, scaling: RopeScaling::None, divisors: None, attention_factor: 1.0 }
    }

    pub(super) fn check(&self, head_dim: usize) -> Result<(), ModelError> {
        if !(self.theta.is_finite() && self.theta >= 1.0) {
            return Err(bad("rope.theta", self.theta, "at least 1".to_owned()));
        }
        if !self.n_dims.is_multiple_of(2) || self.n_dims == 0 || self.n_dims > head_dim {
            return Err(bad("rope.n_dims", self.n_dims, format!("even and between 2 and {head_dim}")));
        }
        check_positive("rope.attention_factor", self.attention_factor)?;
        if let Some(divisors) = &self.divisors {
            self.check_divisors("rope.divisors", divisors)?;
        }
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => check_positive("rope.scaling.factor", *factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                check_positive("rope.scaling.factor", *factor)?;
                check_positive("rope.scaling.low_freq_factor", *low_freq_factor)?;
                if !(high_freq_factor.is_finite() && high_freq_factor > low_freq_factor) {
                    let expected = format!("more than low_freq_factor, {low_freq_factor}");
                    return Err(bad("rope.scaling.high_freq_factor", high_freq_factor, expected));
                }
                check_count("rope.scaling.original_context", *original_context, MAX_CONTEXT)
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, .. } => {
                check_positive("rope.scaling.factor", *factor)?;
                check_positive("rope.scaling.beta_slow", *beta_slow)?;
                check_positive("rope.scaling.beta_fast", *beta_fast)?;
                if self.theta <= 1.0 {
                    return Err(bad("rope.theta", self.theta, "more than 1 for YaRN".to_owned()));
                }
                check_count("rope.scaling.original_context", *original_context, MAX_CONTEXT)
            }
            RopeScaling::LongRope { original_context, short, long } => {
                self.check_divisors("rope.scaling.short", short)?;
                self.check_divisors("rope.scaling.long", long)?;
                check_count("rope.scaling.original_context", *original_context, MAX_CONTEXT)
            }
        }
    }

    fn check_divisors(&self, key: &str, divisors: &[f32]) -> Result<(), ModelError> {
        if divisors.len() != self.n_dims / 2 {
            return Err(bad(key, format!("{} numbers", divisors.len()), format!("{} numbers", self.n_dims / 2)));
        }
        match divisors.iter().find(|d| !(d.is_finite() && **d > 0.0)) {
            Some(d) => Err(bad(key, d, "positive numbers".to_owned())),
            None => Ok(()),
        }
    }
}

impl RopeScaling {
    /// The attention factor of a model that names none: `0.1 ln(factor) + 1` for YaRN,
    /// `sqrt(1 + ln(factor) / ln(original_context))` for LongRoPE, whose factor is that between the contexts.
    pub fn default_attention_factor(&self, context_length: usize) -> f64 {
        match self {
            Self::Yarn { factor, .. } => yarn_magnitude(*factor, 1.0),
            Self::LongRope { original_context, .. } if context_length > *original_context && *original_context > 1 => {
                let original = *original_context as f64;
                libm::sqrt(1.0 + libm::log(context_length as f64 / original) / libm::log(original))
            }
            _ => 1.0,
        }
    }
}

/// `0.1 m ln(factor) + 1` for factors above 1: by how much YaRN scales queries and keys, with `m` of 1. Models
/// that name an `mscale` and an `mscale_all_dim` scale by the ratio of the two magnitudes.
pub fn yarn_magnitude(factor: f64, m: f64) -> f64 {
    if factor > 1.0 { 0.1 * m * libm::log(factor) + 1.0 } else { 1.0 }
}
