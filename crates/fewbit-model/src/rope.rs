//! The angles of rotary position embedding (Su et al., 2021, <https://arxiv.org/abs/2104.09864>).
//!
//! Pair `i` of a head is rotated by `position / factor / f_i * theta^(-2i / n)` radians, where `n` is the
//! number of rotated elements, `factor` the linear scaling and `f_i` the divisors of `rope_freqs.weight`
//! (Llama 3.1 and later; the scaling is baked into them). Angles are computed in f64 with the pure-Rust
//! `libm`, so that they are the same on every platform, and rounded to f32 as cosine and sine.

use crate::ModelConfig;

/// Frequencies of a model.
pub(crate) struct Rope {
    /// `[rope_dims / 2]`, radians per position.
    frequencies: Vec<f64>,
}

impl Rope {
    pub(crate) fn new(config: &ModelConfig, factors: Option<&[f32]>) -> Self {
        let n = config.rope_dims;
        let frequency = |i: usize| {
            let divisor = factors.map_or(1.0, |f| f64::from(f[i]));
            libm::pow(config.rope_theta, -((2 * i) as f64) / n as f64) / config.rope_linear_factor / divisor
        };
        Self { frequencies: (0..n / 2).map(frequency).collect() }
    }

    /// Appends cosines and sines of a position, `[rope_dims / 2]` each.
    pub(crate) fn angles(&self, position: usize, cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        for frequency in &self.frequencies {
            let (s, c) = libm::sincos(position as f64 * frequency);
            cos.push(c as f32);
            sin.push(s as f32);
        }
    }
}
