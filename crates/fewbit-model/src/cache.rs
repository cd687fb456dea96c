//! The keys and values of one sequence: a table of pages.
//!
//! Memory grows by pages of [`PAGE`] positions. Pages are shared with the sequence that a cache was
//! [forked](KvCache::fork) from, and copied when one of them appends to a page that both hold. Where every
//! layer has a sliding window, pages that no later query can see are given up, one page later than they could
//! be: so a cache can always be [truncated](KvCache::truncate) by some positions without losing what is needed.

use crate::ModelError;
use crate::lora::LoraSet;
use crate::pages::{Element, KvType, Page, PageKind};
use fewbit_kernels::kv::Q8;
use fewbit_kernels::{AttentionSequence, AttentionShape, Engine, PAGE};
use half::f16;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Keys and values of the positions that a sequence has so far.
pub struct KvCache {
    kind: Arc<PageKind>,
    /// The adapters that keys and values were computed with.
    loras: LoraSet,
    len: usize,
    /// Pages that came before `pages` and were given up.
    n_gone: usize,
    /// `pages[i]` holds the positions from `(n_gone + i) * PAGE` on.
    pages: Vec<Page>,
}

impl KvCache {
    pub(crate) fn new(kind: Arc<PageKind>, loras: LoraSet) -> Self {
        Self { kind, loras, len: 0, n_gone: 0, pages: Vec::new() }
    }

    /// The adapters that its sequence is computed with.
    pub fn loras(&self) -> &LoraSet {
        &self.loras
    }

    /// Which model it belongs to.
    pub(crate) fn model(&self) -> u64 {
        self.kind.model
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
    ///
    /// With a sliding window, the positions that the next query would see may be gone: then it forgets
    /// everything. Up to [`PAGE`] positions can always be taken back. Returns the positions that are left.
    pub fn truncate(&mut self, len: usize) -> usize {
        if len < self.len {
            let is_lost = self.n_gone > 0 && self.kind.shape.window.is_some_and(|w| first_seen(len, w) < self.n_gone);
            if is_lost || len == 0 {
                (self.len, self.n_gone) = (0, 0);
                self.pages.clear();
            } else {
                self.len = len;
                self.pages.truncate(len.div_ceil(PAGE) - self.n_gone);
            }
        }
        self.len
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// A second sequence with the same past. Pages are shared until one of the two appends to them.
    pub fn fork(&self) -> Self {
        let pages = self.pages[..self.len.div_ceil(PAGE) - self.n_gone].to_vec();
        let (kind, loras) = (Arc::clone(&self.kind), self.loras.clone());
        Self { kind, loras, len: self.len, n_gone: self.n_gone, pages }
    }

    /// Pages that it holds; those that it shares count in each of their holders.
    pub fn n_pages(&self) -> usize {
        self.pages.len()
    }

    /// Pages that appending `n` positions would add, copies of shared ones included.
    pub fn pages_to_append(&self, n: usize) -> usize {
        if n == 0 {
            return 0;
        }
        let new = (self.len + n).div_ceil(PAGE).saturating_sub(self.n_gone + self.pages.len());
        new + usize::from(self.must_copy())
    }

    /// Bytes of memory that it takes, shared pages included.
    pub fn bytes(&self) -> u64 {
        self.pages.len() as u64 * self.kind.page_bytes() as u64
    }

    /// The type of its elements.
    pub fn kv_type(&self) -> KvType {
        self.kind.ty
    }

    /// Makes room for `n` more positions that nobody else holds, so that appending them takes no more memory.
    ///
    /// # Errors
    /// Out of memory.
    pub fn reserve(&mut self, n: usize) -> Result<(), ModelError> {
        if n > 0 && self.must_copy() {
            let page = &mut self.pages[self.len / PAGE - self.n_gone];
            *page = page.copy(&self.kind)?;
        }
        while (self.n_gone + self.pages.len()) * PAGE < self.len + n {
            self.pages.push(self.kind.new_page()?);
        }
        Ok(())
    }

    /// Whether the page that is appended to is partly filled, and held by somebody else too.
    fn must_copy(&self) -> bool {
        !self.len.is_multiple_of(PAGE) && self.pages[self.len / PAGE - self.n_gone].is_shared()
    }

    /// Counts `n` positions, whose keys and values have been stored, as part of the sequence.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
        if let Some(window) = self.kind.shape.window {
            let keep = first_seen(self.len, window).saturating_sub(1);
            if keep > self.n_gone {
                self.pages.drain(..keep - self.n_gone);
                self.n_gone = keep;
            }
        }
    }

    /// All its pages, if none was given up.
    pub(crate) fn all_pages(&self) -> Option<&[Page]> {
        (self.n_gone == 0).then_some(&self.pages[..self.len.div_ceil(PAGE)])
    }

    /// A cache of `len` positions that `pages` hold, from position 0 on.
    pub(crate) fn from_pages(kind: Arc<PageKind>, loras: LoraSet, pages: Vec<Page>, len: usize) -> Self {
        assert_eq!(pages.len(), len.div_ceil(PAGE), "as many pages as {len} positions need");
        Self { kind, loras, len, n_gone: 0, pages }
    }

    /// Appends its state to `out`, for [`Decoder::restore_cache`](crate::Decoder::restore_cache).
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend((self.n_gone as u64).to_le_bytes());
        self.pages[..self.len.div_ceil(PAGE) - self.n_gone].iter().for_each(|page| page.put(out));
    }

    /// Reads what [`put`](Self::put) wrote for a cache of `len` positions.
    pub(crate) fn take(kind: &Arc<PageKind>, loras: LoraSet, len: usize, bytes: &[u8]) -> Result<Self, ModelError> {
        let bad = || ModelError::BadCacheState { len, n_bytes: bytes.len() };
        let (n_gone, pages) = bytes.split_first_chunk().ok_or_else(bad)?;
        let n_gone = usize::try_from(u64::from_le_bytes(*n_gone)).map_err(|_| bad())?;
        let most_gone = kind.shape.window.map_or(0, |w| first_seen(len, w).saturating_sub(1));
        let n_pages = len.div_ceil(PAGE).checked_sub(n_gone).filter(|_| n_gone <= most_gone).ok_or_else(bad)?;
        if n_pages.checked_mul(kind.page_bytes()) != Some(pages.len()) {
            return Err(bad());
        }
        let pages = pages.chunks_exact(kind.page_bytes().max(1)).map(|bytes| Page::take(kind, bytes));
        Ok(Self { kind: Arc::clone(kind), loras, len, n_gone, pages: pages.collect::<Result<_, _>>()? })
    }
}

/// The first page that a query at position `len` and those behind it see.
fn first_seen(len: usize, window: usize) -> usize {
    len.saturating_add(1).saturating_sub(window) / PAGE
}

/// So many sequences are stored by several threads, if each has fewer new positions than this.
const MANY: usize = 4;

/// What one sequence of a batch does in one layer: appends rows of `k` and `v`, then attends with rows of `q`.
pub(crate) struct LayerStep<'a> {
    pub(crate) layer: usize,
    pub(crate) shape: AttentionShape,
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
    match caches.first().map(|(cache, _)| cache.kind.ty) {
        None => {}
        Some(KvType::F16) => of_type::<f16>(engine, caches, step, out),
        Some(KvType::F32) => of_type::<f32>(engine, caches, step, out),
        Some(KvType::Q8_0) => of_type::<Q8>(engine, caches, step, out),
    }
}

fn of_type<T: Element>(
    engine: &Engine,
    caches: &mut [(&mut KvCache, Range<usize>)],
    step: &LayerStep<'_>,
    out: &mut [f32],
) {
    let Some(kind) = caches.first().map(|(cache, _)| Arc::clone(&cache.kind)) else { return };
    let shape = &step.shape;
    let kv_dim = shape.n_kv_heads * shape.head_dim;
    let store = |cache: &mut KvCache, rows: &Range<usize>| {
        // Only the pages that are written, which are this sequence's own: positions count from the first.
        let first = cache.len / PAGE - cache.n_gone;
        let mut pages: Vec<_> = cache.pages[first..]
            .iter_mut()
            .map(|page| T::of_mut(page).expect("reserved, so not shared").layer_mut(&kind, step.layer))
            .collect();
        let rows = rows.start * kv_dim..rows.end * kv_dim;
        engine.store_kv(shape, &mut pages, cache.len % PAGE, &step.k[rows.clone()], &step.v[rows]);
    };
    if caches.len() >= MANY && caches.iter().all(|(_, rows)| rows.len() < MANY) {
        let caches: Vec<_> = caches.iter_mut().map(Mutex::new).collect();
        engine.pool().for_chunks(caches.len(), caches.len().div_ceil(2 * engine.pool().n_threads()), |range, _| {
            for cache in &caches[range] {
                let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
                let (cache, rows) = &mut **cache;
                store(cache, rows);
            }
        });
    } else {
        // A sequence with many new positions is shared between the threads by itself.
        caches.iter_mut().for_each(|(cache, rows)| store(cache, rows));
    }
    // What attention does depends on where positions lie relative to the ends of pages, and on differences of
    // positions: counting from the first page that is left gives the same bits.
    let sequences: Vec<_> = caches
        .iter()
        .map(|(cache, rows)| AttentionSequence {
            first_position: cache.len - cache.n_gone * PAGE,
            n_tokens: rows.len(),
            pages: (cache.pages.iter())
                .map(|page| T::of(page).expect("one type for all caches of a model").layer(&kind, step.layer))
                .collect(),
        })
        .collect();
    engine.attention(shape, &sequences, step.q, out);
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut s = f.debug_struct("KvCache");
        s.field("len", &self.len).field("type", &self.kv_type()).field("bytes", &self.bytes()).finish()
    }
}
