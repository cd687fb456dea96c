//! The angles of rotary position embedding. [`RopeConfig::frequencies`] gives the rotation per position of each pair of
//! a head. Angles are computed in f64 with the pure-Rust `libm`, so that they are the same on every platform; their
//! cosine and sine, times the attention factor, are rounded to f32.

use fewbit_checkpoint::{ModelConfig, RopeConfig};

/// The frequencies of a model's layers.
pub(crate) struct Rope {
    global: Frequencies,
    local: Option<Frequencies>,
}

/// Cosines and sines of some positions, `[n_positions, n_dims / 2]` each. The host computes them, so that they are the
/// same on every device.
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
            frequencies: rope.frequencies(config.context_length),
            magnitude: rope.attention_factor,
        };
        Self { global: frequencies(&config.rope), local: config.local_rope.as_ref().map(frequencies) }
    }

    /// Appends the angles of a position, for global layers and for local ones.
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
