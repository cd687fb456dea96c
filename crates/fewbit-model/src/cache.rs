//! The keys and values of one sequence.

use crate::{ModelConfig, ModelError};
use fewbit_kernels::{AttentionSequence, AttentionShape, Engine, KernelError, KvElement, KvPage, KvPageMut, PAGE};
use half::f16;
use std::ops::Range;

/// The element type of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvType {
    /// Half precision: 2 bytes.
    F16,
    /// Full precision: 4 bytes.
    F32,
}

impl KvType {
    /// Bytes of an element.
    pub fn n_bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// The name that the command line takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Keys and values of the positions that a sequence has so far.
///
/// Memory grows by pages of [`PAGE`] positions and shrinks with [`truncate`](Self::truncate).
pub struct KvCache {
    /// Which model it belongs to.
    pub(crate) model: u64,
    len: usize,
    pages: Pages,
}

enum Pages {
    F16(PagesOf<f16>),
    F32(PagesOf<f32>),
}

/// Pages of [`PAGE`] positions in all layers.
struct PagesOf<T> {
    shape: AttentionShape,
    n_layers: usize,
    pages: Vec<Page<T>>,
}

struct Page<T> {
    /// `[n_layers][key_elems]`
    keys: Vec<T>,
    /// `[n_layers][value_elems]`
    values: Vec<T>,
}

/// Calls a method of whichever pages there are.
macro_rules! each {
    ($pages:expr, $p:ident => $body:expr) => {
        match $pages {
            Pages::F16($p) => $body,
            Pages::F32($p) => $body,
        }
    };
}

/// The shape of every attention of a model.
fn attention_shape(config: &ModelConfig) -> AttentionShape {
    AttentionShape {
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
        window: config.sliding_window,
    }
}

/// Bytes of one page.
pub(crate) fn page_bytes(config: &ModelConfig, ty: KvType) -> u64 {
    let shape = attention_shape(config);
    (ty.n_bytes() * config.n_layers) as u64 * (shape.key_elems() + shape.value_elems()) as u64
}

impl KvCache {
    pub(crate) fn new(model: u64, config: &ModelConfig, ty: KvType) -> Self {
        let (shape, n_layers) = (attention_shape(config), config.n_layers);
        let pages = match ty {
            KvType::F16 => Pages::F16(PagesOf { shape, n_layers, pages: Vec::new() }),
            KvType::F32 => Pages::F32(PagesOf { shape, n_layers, pages: Vec::new() }),
        };
        Self { model, len: 0, pages }
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
            each!(&mut self.pages, p => p.pages.truncate(len.div_ceil(PAGE)));
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> u64 {
        let n_elems: usize =
            each!(&self.pages, p => p.pages.iter().map(|page| page.keys.len() + page.values.len()).sum());
        (n_elems * self.kv_type().n_bytes()) as u64
    }

    /// The type of its elements.
    pub fn kv_type(&self) -> KvType {
        match self.pages {
            Pages::F16(_) => KvType::F16,
            Pages::F32(_) => KvType::F32,
        }
    }

    /// Makes room for `n` more positions.
    pub(crate) fn reserve(&mut self, n: usize) -> Result<(), ModelError> {
        let len = self.len + n;
        each!(&mut self.pages, p => p.reserve(len))
    }

    /// Counts `n` positions, whose keys and values have been stored, as part of the sequence.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }
}

/// What one sequence of a batch does in one layer: appends rows of `k` and `v`, then attends with rows of `q`.
pub(crate) struct LayerStep<'a> {
    pub(crate) layer: usize,
    /// `[tokens of the batch, n_heads * head_dim]`
    pub(crate) q: &'a [f32],
    /// `[tokens of the batch, n_kv_heads * head_dim]`
    pub(crate) k: &'a [f32],
    /// `[tokens of the batch, n_kv_heads * head_dim]`
    pub(crate) v: &'a [f32],
}

/// Appends keys and values to every sequence's cache and writes the attention of all queries to `out`.
/// `rows` names each sequence's tokens in the batch. The caches are of one model, so of one type.
pub(crate) fn append_and_attend(
    engine: &Engine,
    caches: &mut [(&mut KvCache, Range<usize>)],
    step: &LayerStep<'_>,
    out: &mut [f32],
) {
    let (mut half, mut full) = (Vec::new(), Vec::new());
    for (cache, rows) in caches.iter_mut() {
        let position = cache.len;
        match &mut cache.pages {
            Pages::F16(pages) => half.push((pages, position, rows.clone())),
            Pages::F32(pages) => full.push((pages, position, rows.clone())),
        }
    }
    if full.is_empty() {
        of_type(engine, &mut half, step, out);
    } else {
        assert!(half.is_empty(), "caches of one model have one type");
        of_type(engine, &mut full, step, out);
    }
}

fn of_type<T: KvElement>(
    engine: &Engine,
    caches: &mut [(&mut PagesOf<T>, usize, Range<usize>)],
    step: &LayerStep<'_>,
    out: &mut [f32],
) {
    let Some(shape) = caches.first().map(|(pages, ..)| pages.shape) else { return };
    let kv_dim = shape.n_kv_heads * shape.head_dim;
    for (pages, position, rows) in caches.iter_mut() {
        let rows = rows.start * kv_dim..rows.end * kv_dim;
        let mut pages = pages.layer_mut(step.layer);
        engine.store_kv(&shape, &mut pages, *position, &step.k[rows.clone()], &step.v[rows]);
    }
    let sequences: Vec<_> = caches
        .iter()
        .map(|(pages, position, rows)| AttentionSequence {
            first_position: *position,
            n_tokens: rows.len(),
            pages: pages.layer(step.layer),
        })
        .collect();
    engine.attention(&shape, &sequences, step.q, out);
}

impl<T: KvElement> PagesOf<T> {
    fn reserve(&mut self, len: usize) -> Result<(), ModelError> {
        let elems = |per_layer: usize| -> Result<Vec<T>, ModelError> {
            let n = self.n_layers * per_layer;
            let mut v = Vec::new();
            v.try_reserve_exact(n).map_err(|_| KernelError::OutOfMemory { bytes: n * size_of::<T>() })?;
            v.resize(n, T::default());
            Ok(v)
        };
        while self.pages.len() * PAGE < len {
            let page = Page { keys: elems(self.shape.key_elems())?, values: elems(self.shape.value_elems())? };
            self.pages.push(page);
        }
        Ok(())
    }

    /// One layer, to be read.
    fn layer(&self, layer: usize) -> Vec<KvPage<'_, T>> {
        let (keys, values) = self.parts(layer);
        self.pages.iter().map(|p| KvPage { keys: &p.keys[keys.clone()], values: &p.values[values.clone()] }).collect()
    }

    /// One layer, to be written.
    fn layer_mut(&mut self, layer: usize) -> Vec<KvPageMut<'_, T>> {
        let (keys, values) = self.parts(layer);
        self.pages
            .iter_mut()
            .map(|p| KvPageMut { keys: &mut p.keys[keys.clone()], values: &mut p.values[values.clone()] })
            .collect()
    }

    /// Where a layer's keys and values lie in a page.
    fn parts(&self, layer: usize) -> (Range<usize>, Range<usize>) {
        let (nk, nv) = (self.shape.key_elems(), self.shape.value_elems());
        (layer * nk..(layer + 1) * nk, layer * nv..(layer + 1) * nv)
    }
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut s = f.debug_struct("KvCache");
        s.field("len", &self.len).field("type", &self.kv_type()).field("bytes", &self.bytes()).finish()
    }
}
