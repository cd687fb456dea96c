//! The input and output of a step: chunks of sequences, and logits.

use crate::KvCache;

/// The tokens of a chunk for which logits are computed, or a request for hidden states instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFor {
    /// No token: the chunk only fills the cache.
    None,
    /// The last token.
    Last,
    /// The last `n` tokens (all, if there are fewer).
    LastN(usize),
    /// Every token.
    All,
    /// No logits, but the hidden state of every token after the last norm: see [`Logits::take_hidden`].
    Hidden,
}

impl LogitsFor {
    pub(crate) fn rows(self, n_tokens: usize) -> usize {
        match self {
            Self::None | Self::Hidden => 0,
            Self::Last => 1,
            Self::LastN(n) => n.min(n_tokens),
            Self::All => n_tokens,
        }
    }
}

/// Tokens to append to one sequence.
#[derive(Debug)]
pub struct Chunk<'a> {
    /// The cache of the sequence.
    pub cache: &'a mut KvCache,
    /// The tokens, at least one.
    pub tokens: &'a [u32],
    /// The logits to compute.
    pub logits: LogitsFor,
}

/// Rows of logits, in the order of the batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logits {
    n_vocab: usize,
    /// `[n_rows, n_vocab]`
    pub(crate) values: Vec<f32>,
    /// `[n_tokens, dim]`
    pub(crate) hidden: Vec<f32>,
}

impl Logits {
    /// Resizes to `n_rows` rows, whose values have to be overwritten.
    pub(crate) fn resize(&mut self, n_vocab: usize, n_rows: usize) {
        self.n_vocab = n_vocab;
        self.values.resize(n_rows * n_vocab, 0.0);
        self.hidden.clear();
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.values.len() / self.n_vocab.max(1)
    }

    /// One row: `[n_vocab]`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.n_vocab..(i + 1) * self.n_vocab]
    }

    /// The hidden states of the chunks that request them ([`LogitsFor::Hidden`]), in the order of the batch:
    /// `[n_tokens, dim]`.
    pub fn take_hidden(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.hidden)
    }

    /// All rows, one after another, for modification.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}
