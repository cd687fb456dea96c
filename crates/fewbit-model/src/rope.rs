//! The angles of rotary position embedding (Su et al., 2021, <https://arxiv.org/abs/2104.09864>).
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
//! and `n` is the number of rotated elements. RopeAngles are computed in f64 with the pure-Rust `libm`, so that they
//! are the same on every platform, and rounded to f32 as cosine and sine, times the attention factor.

use crate::config::{ModelConfig, RopeConfig, RopeScaling};
use std::f64::consts::PI;

/// The frequencies of a model's layers.
pub(crate) struct Rope {
    global: Frequencies,
    local: Option<Frequencies>,
}

/// Cosines and sines of some positions, `[n_positions, n_dims / 2]` each: the host's, so that they are the same on every
/// device.
#[derive(Debug, Default)]
pub struct RopeAngles {
    /// Cosines, times the attention factor.
    pub cos: Vec<f32>,
    /// Sines, times the attention factor.
    pub sin: Vec<f32>,
}

struct Frequencies {
    /// `[n_dims / 2]`, radians per position.
    frequencies: Vec<f64>,
    magnitude: f64,
}

impl Rope {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let frequencies = |rope: &RopeConfig| Frequencies {
            frequencies: frequencies(rope, config.context_length),
            magnitude: rope.attention_factor,
        };
        Self { global: frequencies(&config.rope), local: config.local_rope.as_ref().map(frequencies) }
    }

    /// Appends the angles of a position, for layers that see everything and for local ones.
    pub(crate) fn angles(&self, position: usize, global: &mut RopeAngles, local: &mut RopeAngles) {
        self.global.angles(position, global);
        if let Some(frequencies) = &self.local {
            frequencies.angles(position, local);
        }
    }
}

impl RopeAngles {
    pub(crate) fn clear(&mut self) {
        self.cos.clear();
        self.sin.clear();
    }
}

impl Frequencies {
    fn angles(&self, position: usize, out: &mut RopeAngles) {
        for frequency in &self.frequencies {
            let (s, c) = libm::sincos(position as f64 * frequency);
            out.cos.push((c * self.magnitude) as f32);
            out.sin.push((s * self.magnitude) as f32);
        }
    }
}

/// Radians per position of each pair.
pub(crate) fn frequencies(rope: &RopeConfig, context_length: usize) -> Vec<f64> {
    let n = rope.n_dims as f64;
    let frequency = |i: usize| {
        let plain = libm::pow(rope.theta, -((2 * i) as f64) / n);
        let scaled = match &rope.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                // How often the pair turns in the original context.
                let turns = *original_context as f64 * plain / (2.0 * PI);
                let s = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let s = s.clamp(0.0, 1.0);
                plain * ((1.0 - s) / factor + s)
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, is_truncated } => {
                let pair = |turns: f64| {
                    n / 2.0 * libm::log(*original_context as f64 / (turns * 2.0 * PI)) / libm::log(rope.theta)
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
        scaled / rope.divisors.as_ref().map_or(1.0, |d| f64::from(d[i]))
    };
    (0..rope.n_dims / 2).map(frequency).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewbit_kernels::RopeStyle;

    /// Llama 3.1 as its `config.json` has it; GGUF files have the same as a tensor of divisors. Values of Hugging
    /// Face's formula in float64.
    #[test]
    fn llama3_scaling_is_that_of_hugging_face() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let rope = RopeConfig { scaling, ..RopeConfig::new(500_000.0, 128, RopeStyle::HalfSplit) };
        let got = frequencies(&rope, 131_072);
        let plain = frequencies(&RopeConfig::new(500_000.0, 128, RopeStyle::HalfSplit), 131_072);
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
