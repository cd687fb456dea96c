//! Rotary position embedding (Su et al., 2021, <https://arxiv.org/abs/2104.09864>) as data.
//!
//! Pair `i` of a head is rotated by `position * f_i` radians, where
//!
//! ```text
//! f_i = theta^(-2i / n) changed by the scaling / divisor_i
//! linear:    f / factor
//! llama3:    f / factor for wavelengths above original / low, f below original / high, and between them
//!            f ((1 - s) / factor + s) with s = (original / wavelength - low) / (high - low)
//! yarn:      f (1 - r) + f / factor * r with r = clamp((i - first) / (last - first), 0, 1), where first and last
//!            are the pairs that turn beta_fast and beta_slow times in the original context
//! longrope:  f / short_i or f / long_i
//! ```
//! and `n` is the number of rotated elements.

use super::{MAX_CONTEXT, bad, check_count, check_positive};
use crate::CheckpointError;
use fewbit_quant::RopeStyle;
use std::f64::consts::PI;

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Elements of a head that are rotated; the rest stay as they are.
    pub n_dims: usize,
    /// Which elements of a head form pairs.
    pub style: RopeStyle,
    /// How frequencies are changed for contexts longer than that of pre-training.
    pub scaling: RopeScaling,
    /// Divisors of the frequencies, `[n_dims / 2]`, from a file that has them as a tensor. They apply in addition to
    /// `scaling`.
    pub divisors: Option<Vec<f32>>,
    /// Factor of the rotated queries and of the rotated keys. For YaRN and LongRoPE, this is the attention factor;
    /// [`RopeScaling::default_attention_factor`] gives its usual value.
    pub attention_factor: f64,
}

/// How the frequency of each pair is changed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Unchanged.
    None,
    /// All frequencies are divided.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths are divided, short ones are unchanged, and those in between are interpolated.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_context: usize,
    },
    /// YaRN (Peng et al., 2023, <https://arxiv.org/abs/2309.00071>).
    Yarn {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Context length of pre-training.
        original_context: usize,
        /// Pairs that turn more often than this in the original context are unchanged.
        beta_fast: f64,
        /// Pairs that turn less often than this are divided.
        beta_slow: f64,
        /// Whether the ends of the ramp between the two are rounded outwards to whole pairs.
        is_truncated: bool,
    },
    /// LongRoPE (Ding et al., 2024, <https://arxiv.org/abs/2402.13753>): a divisor per pair, from one of two sets.
    LongRope {
        /// Context length of pre-training. A model that is loaded for at most this many positions uses the short
        /// divisors, otherwise the long ones.
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

    pub(super) fn check(&self, head_dim: usize) -> Result<(), CheckpointError> {
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

    /// Radians per position of each pair, `[n_dims / 2]`, in a model that is loaded for `context_length` positions,
    /// which selects one of the two sets of LongRoPE's divisors.
    pub fn frequencies(&self, context_length: usize) -> Vec<f64> {
        let n = self.n_dims as f64;
        let frequency = |i: usize| {
            let plain = libm::pow(self.theta, -((2 * i) as f64) / n);
            let scaled = match &self.scaling {
                RopeScaling::None => plain,
                RopeScaling::Linear { factor } => plain / factor,
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                    // Number of turns of the pair in the original context.
                    let turns = *original_context as f64 * plain / (2.0 * PI);
                    let s = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let s = s.clamp(0.0, 1.0);
                    plain * ((1.0 - s) / factor + s)
                }
                RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, is_truncated } => {
                    let pair = |turns: f64| {
                        n / 2.0 * libm::log(*original_context as f64 / (turns * 2.0 * PI)) / libm::log(self.theta)
                    };
                    let (first, last) = (pair(*beta_fast), pair(*beta_slow));
                    let (first, last) = if *is_truncated { (first.floor(), last.ceil()) } else { (first, last) };
                    let (first, last) = (first.max(0.0), last.min(n - 1.0));
                    let r = (i as f64 - first) / (last - first).max(0.001);
                    let r = r.clamp(0.0, 1.0);
                    plain * (1.0 - r) + plain / factor * r
                }
                RopeScaling::LongRope { original_context, short, long } => {
                    let divisors = if context_length > *original_context { long } else { short };
                    plain / f64::from(divisors[i])
                }
            };
            scaled / self.divisors.as_ref().map_or(1.0, |d| f64::from(d[i]))
        };
        (0..self.n_dims / 2).map(frequency).collect()
    }

    fn check_divisors(&self, key: &str, divisors: &[f32]) -> Result<(), CheckpointError> {
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
    /// The attention factor of a model that does not specify one: `0.1 ln(factor) + 1` for YaRN,
    /// `sqrt(1 + ln(factor) / ln(original_context))` for LongRoPE, where `factor` is the ratio of the two context
    /// lengths.
    pub fn default_attention_factor(&self, context_length: usize) -> f64 {
        match self {
            Self::Yarn { factor, .. } => yarn_magnitude(*factor, 1.0),
            Self::LongRope { original_context, .. } => {
                longrope_magnitude(context_length as f64 / (*original_context).max(1) as f64, *original_context)
            }
            _ => 1.0,
        }
    }
}

/// `sqrt(1 + ln(factor) / ln(original_context))` for factors above 1.
pub(crate) fn longrope_magnitude(factor: f64, original_context: usize) -> f64 {
    match factor > 1.0 && original_context > 1 {
        true => libm::sqrt(1.0 + libm::log(factor) / libm::log(original_context as f64)),
        false => 1.0,
    }
}

/// `0.1 m ln(factor) + 1` for factors above 1: the factor by which YaRN scales queries and keys, with `m` of 1. Models
/// that specify `mscale` and `mscale_all_dim` scale by the ratio of the two magnitudes.
pub fn yarn_magnitude(factor: f64, m: f64) -> f64 {
    if factor > 1.0 { 0.1 * m * libm::log(factor) + 1.0 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Llama 3.1 as in its `config.json`; GGUF files have the same as a tensor of divisors. The values are from Hugging
    /// Face's formula in float64.
    #[test]
    fn llama3_scaling_matches_hugging_face() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let rope = RopeConfig { scaling, ..RopeConfig::new(500_000.0, 128, RopeStyle::HalfSplit) };
        let got = rope.frequencies(131_072);
        let plain = RopeConfig::new(500_000.0, 128, RopeStyle::HalfSplit).frequencies(131_072);
        for (pair, want) in [
            (0, 1.0),
            (28, 0.003_211_445_994_752_591),
            (29, 0.002_166_570_763_503_359),
            (30, 0.001_371_893_567_761_138_1),
            (33, 0.000_312_693_750_384_065_17),
            (34, 0.000_178_507_812_767_964),
            (35, 9.556_212_353_964_683e-5),
            (63, 3.068_925_988_914_511e-7),
        ] {
            assert!((got[pair] / want - 1.0f64).abs() < 1e-12, "pair {pair}: {} instead of {want}", got[pair]);
        }
        assert!((plain[63] / got[63] - 8.0).abs() < 1e-12 && plain[28] == got[28]);
    }
}
