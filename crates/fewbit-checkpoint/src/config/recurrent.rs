//! Layers with a state of fixed size.

use super::{MAX_STATE_SIDE, MAX_TAPS, bad, check_count};
use crate::CheckpointError;

/// What a layer with a state of fixed size computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Recurrent {
    /// A causal convolution and the gated delta rule.
    DeltaNet(DeltaNetConfig),
    /// A causal convolution and a state space.
    StateSpace(StateSpaceConfig),
    /// A causal convolution over the residual stream, between two gates.
    ShortConvolution {
        /// Number of tokens that it sees.
        n_taps: usize,
    },
}

/// The sizes of a layer with gated delta rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeltaNetConfig {
    /// Number of query and key heads.
    pub n_k_heads: usize,
    /// Number of value heads, a multiple of `n_k_heads`.
    pub n_v_heads: usize,
    /// Elements of a query or key.
    pub k_dim: usize,
    /// Elements of a value.
    pub v_dim: usize,
    /// Number of tokens that the convolution sees.
    pub n_taps: usize,
    /// Whether value head `h` has the key head `h % n_k_heads`; otherwise, as many value heads as share one follow each
    /// other.
    pub is_tiled: bool,
}

impl DeltaNetConfig {
    /// Elements of a token's queries or keys.
    pub fn key_dim(&self) -> usize {
        self.n_k_heads * self.k_dim
    }

    /// Elements of a token's values.
    pub fn value_dim(&self) -> usize {
        self.n_v_heads * self.v_dim
    }

    /// Elements of a token's queries, keys and values.
    pub fn n_channels(&self) -> usize {
        2 * self.key_dim() + self.value_dim()
    }

    /// Value heads that share a key head.
    pub fn heads_per_key(&self) -> usize {
        self.n_v_heads / self.n_k_heads
    }

    /// Of queries, keys, values and gates (`[n_channels]`, then `[value_dim]`) that are mixed, the ones of each key head
    /// together: the place of an element.
    pub fn mixed_row(&self, row: usize) -> usize {
        let (k_dim, keys) = (self.k_dim, self.key_dim());
        let group = self.heads_per_key() * self.v_dim;
        let (head, at) = match row {
            row if row < 2 * keys => (row % keys / k_dim, row / keys * k_dim + row % k_dim),
            row if row < self.n_channels() => ((row - 2 * keys) / group, 2 * k_dim + (row - 2 * keys) % group),
            row => ((row - self.n_channels()) / group, 2 * k_dim + group + (row - self.n_channels()) % group),
        };
        head * (2 * k_dim + 2 * group) + at
    }

    /// The place of the value head with this place among tiled ones, if those that share a key head follow each other.
    pub fn grouped_head(&self, tiled: usize) -> usize {
        tiled % self.n_k_heads * self.heads_per_key() + tiled / self.n_k_heads
    }

    pub(super) fn check(&self) -> Result<(), CheckpointError> {
        check_sides([
            ("recurrent.n_k_heads", self.n_k_heads),
            ("recurrent.n_v_heads", self.n_v_heads),
            ("recurrent.k_dim", self.k_dim),
            ("recurrent.v_dim", self.v_dim),
        ])?;
        if !self.n_v_heads.is_multiple_of(self.n_k_heads) {
            let expected = format!("a multiple of {} key heads", self.n_k_heads);
            return Err(bad("recurrent.n_v_heads", self.n_v_heads, expected));
        }
        check_taps(self.n_taps)
    }
}

/// The sizes of a layer with a state space ("Mamba-2", Dao and Gu, 2024, <https://arxiv.org/abs/2405.21060>).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateSpaceConfig {
    /// Number of groups of heads, which share B and C, and whose outputs have a norm of their own.
    pub n_groups: usize,
    /// Number of heads, a multiple of `n_groups`.
    pub n_heads: usize,
    /// Elements of B and of C.
    pub state_dim: usize,
    /// Elements of a head's value.
    pub head_dim: usize,
    /// Number of tokens that the convolution sees.
    pub n_taps: usize,
}

impl StateSpaceConfig {
    /// Elements of a token's values.
    pub fn value_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Elements of a token's values, B and C, which go through the convolution.
    pub fn n_channels(&self) -> usize {
        self.value_dim() + 2 * self.n_groups * self.state_dim
    }

    /// Rows of the input projection: the gates of the values, the channels, and a time step of each head.
    pub fn n_inputs(&self) -> usize {
        self.value_dim() + self.n_channels() + self.n_heads
    }

    pub(super) fn check(&self) -> Result<(), CheckpointError> {
        check_sides([
            ("recurrent.n_groups", self.n_groups),
            ("recurrent.n_heads", self.n_heads),
            ("recurrent.state_dim", self.state_dim),
            ("recurrent.head_dim", self.head_dim),
        ])?;
        if !self.n_heads.is_multiple_of(self.n_groups) {
            return Err(bad("recurrent.n_heads", self.n_heads, format!("a multiple of {} groups", self.n_groups)));
        }
        check_taps(self.n_taps)
    }
}

fn check_sides(sides: [(&str, usize); 4]) -> Result<(), CheckpointError> {
    sides.into_iter().try_for_each(|(key, n)| check_count(key, n, MAX_STATE_SIDE))
}

pub(super) fn check_taps(n_taps: usize) -> Result<(), CheckpointError> {
    match (2..=MAX_TAPS).contains(&n_taps) {
        true => Ok(()),
        false => Err(bad("recurrent.n_taps", n_taps, format!("between 2 and {MAX_TAPS}"))),
    }
}
