//! The tensors of layers with a state of fixed size.

use super::weights::Linear;
use fewbit_checkpoint::names::Part;
use fewbit_checkpoint::{DeltaNetConfig, StateSpaceConfig};
use fewbit_kernels::{ActivationKinds, Matrix};

/// A layer with a short convolution, with its norm.
#[non_exhaustive]
pub struct ShortConv {
    /// `[dim]`
    pub norm: Option<Vec<f32>>,
    /// `[3 * dim, dim]`: the gate before the convolution, the one after it, and the values.
    pub inputs: Matrix,
    /// `[n_taps, dim]`
    pub convolution: Vec<f32>,
    /// Number of taps.
    pub n_taps: usize,
    /// `[dim, dim]`
    pub output: Linear,
    pub(super) input: ActivationKinds,
}

/// A layer with the gated delta rule, with its norm.
#[non_exhaustive]
pub struct DeltaNet {
    /// The sizes.
    pub config: DeltaNetConfig,
    /// `[dim]`
    pub norm: Option<Vec<f32>>,
    /// Queries, keys, values, and the gates of the output.
    pub inputs: DeltaInputs,
    /// The scores of the gates of the state.
    pub gates: DeltaGates,
    pub(super) input_parts: &'static [Part],
    /// `[n_taps, n_channels]`
    pub convolution: Vec<f32>,
    /// `[n_v_heads]`: the bias of the alphas.
    pub dt: Vec<f32>,
    /// `[n_v_heads]`: factors of the logarithms of the decays.
    pub decay: Vec<f32>,
    /// `[v_dim]`
    pub out_norm: Vec<f32>,
    /// `[dim, value_dim]`
    pub output: Linear,
    /// How the input is quantized: to two planes for the scores, which go into exponentials.
    pub(super) input: ActivationKinds,
}

/// A layer with a state space, with its norm.
#[non_exhaustive]
pub struct StateSpace {
    /// The sizes.
    pub config: StateSpaceConfig,
    /// `[dim]`
    pub norm: Option<Vec<f32>>,
    /// `[value_dim, dim]`: the gates of the outputs. This and the next two are one tensor.
    pub z: Matrix,
    /// `[n_channels, dim]`: values, B and C.
    pub channels: Matrix,
    /// `[n_heads, dim]`
    pub time_steps: Matrix,
    /// `[n_taps, n_channels]`
    pub convolution: Vec<f32>,
    /// `[n_channels]`
    pub convolution_bias: Option<Vec<f32>>,
    /// `[n_heads]`: the bias of the time steps.
    pub dt: Vec<f32>,
    /// `[n_heads]`: factors of the logarithms of the decays.
    pub decay: Vec<f32>,
    /// `[n_heads]`: factors of the values that are added to the outputs.
    pub d: Vec<f32>,
    /// `[value_dim]`
    pub out_norm: Vec<f32>,
    /// `[dim, value_dim]`
    pub output: Linear,
    /// How the input is quantized: to two planes for the time steps, which go into exponentials.
    pub(super) input: ActivationKinds,
}

impl StateSpace {
    pub(super) fn matrices(&self) -> [&Matrix; 4] {
        [&self.z, &self.channels, &self.time_steps, &self.output.weight]
    }
}

/// The matrices of queries, keys, values and gates of outputs.
#[non_exhaustive]
pub enum DeltaInputs {
    /// `[n_channels, dim]` and `[value_dim, dim]`.
    Apart {
        /// Queries, keys, values.
        qkv: Matrix,
        /// Gates.
        z: Matrix,
    },
    /// `[n_channels + value_dim, dim]`, in the order of key heads.
    Mixed(Matrix),
}

/// The matrices of the scores of a state's gates.
#[non_exhaustive]
pub enum DeltaGates {
    /// `[n_v_heads, dim]` each.
    Apart {
        /// How much of a state is replaced.
        beta: Matrix,
        /// How much of it is kept.
        alpha: Matrix,
    },
    /// `[2 * n_v_heads, dim]`: for each key head the betas of its value heads, then the alphas.
    Mixed(Matrix),
}

impl DeltaNet {
    pub(super) fn matrices(&self) -> Vec<&Matrix> {
        let mut all = match &self.inputs {
            DeltaInputs::Apart { qkv, z } => vec![qkv, z],
            DeltaInputs::Mixed(all) => vec![all],
        };
        match &self.gates {
            DeltaGates::Apart { beta, alpha } => all.extend([beta, alpha]),
            DeltaGates::Mixed(both) => all.push(both),
        }
        all.push(&self.output.weight);
        all
    }
}
