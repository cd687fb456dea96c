//! The keys and values of one sequence.

use crate::{ModelConfig, ModelError};
use fewbit_kernels::{AttentionShape, KvPage, KvPageMut, PAGE};
use half::f16;

/// Keys and values of the positions that a sequence has so far, in f16.
///
/// Memory grows by pages of [`PAGE`] positions and shrinks with [`truncate`](Self::truncate).
pub struct KvCache {
    /// Which model it belongs to.
    pub(crate) model: u64,
    pub(crate) shape: AttentionShape,
    n_layers: usize,
    len: usize,
    pages: Vec<Page>,
}

/// [`PAGE`] positions of all layers.
struct Page {
    /// `[n_layers][key_elems]`
    keys: Vec<f16>,
    /// `[n_layers][value_elems]`
    values: Vec<f16>,
}

/// The shape of every attention of a model.
pub(crate) fn attention_shape(config: &ModelConfig) -> AttentionShape {
    AttentionShape {
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
        window: config.sliding_window,
    }
}

/// Bytes of one page.
pub(crate) fn page_bytes(config: &ModelConfig) -> u64 {
    let shape = attention_shape(config);
    2 * config.n_layers as u64 * (shape.key_elems() as u64 + shape.value_elems() as u64)
}

impl KvCache {
    pub(crate) fn new(model: u64, config: &ModelConfig) -> Self {
        Self { model, shape: attention_shape(config), n_layers: config.n_layers, len: 0, pages: Vec::new() }
    }

    /// Positions in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets everything behind the first `len` positions; does nothing if there are no more.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = len;
            self.pages.truncate(len.div_ceil(PAGE));
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> u64 {
        self.pages.iter().map(|p| 2 * (p.keys.len() as u64 + p.values.len() as u64)).sum()
    }

    /// Makes room for `n` more positions.
    pub(crate) fn reserve(&mut self, n: usize) -> Result<(), ModelError> {
        let elems = |per_layer: usize| -> Result<Vec<f16>, ModelError> {
            let n = self.n_layers * per_layer;
            let mut v = Vec::new();
            v.try_reserve_exact(n).map_err(|_| fewbit_kernels::KernelError::OutOfMemory { bytes: 2 * n })?;
            v.resize(n, f16::ZERO);
            Ok(v)
        };
        while self.pages.len() * PAGE < self.len + n {
            let page = Page { keys: elems(self.shape.key_elems())?, values: elems(self.shape.value_elems())? };
            self.pages.push(page);
        }
        Ok(())
    }

    /// Counts `n` positions, whose keys and values have been stored, as part of the sequence.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
        debug_assert!(self.len <= self.pages.len() * PAGE);
    }

    /// One layer, to be read.
    pub(crate) fn layer(&self, layer: usize) -> Vec<KvPage<'_>> {
        let (nk, nv) = (self.shape.key_elems(), self.shape.value_elems());
        self.pages
            .iter()
            .map(|p| KvPage { keys: part(&p.keys, layer, nk), values: part(&p.values, layer, nv) })
            .collect()
    }

    /// One layer, to be written.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> Vec<KvPageMut<'_>> {
        let (nk, nv) = (self.shape.key_elems(), self.shape.value_elems());
        self.pages
            .iter_mut()
            .map(|p| KvPageMut {
                keys: &mut p.keys[layer * nk..(layer + 1) * nk],
                values: &mut p.values[layer * nv..(layer + 1) * nv],
            })
            .collect()
    }
}

fn part(all: &[f16], layer: usize, n: usize) -> &[f16] {
    &all[layer * n..(layer + 1) * n]
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvCache").field("len", &self.len).field("bytes", &self.bytes()).finish()
    }
}
