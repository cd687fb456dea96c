//! Pages of state, which are counted, shared, and copied when one of several holders writes.
//!
//! A page stands for 256 positions of one sequence in all layers: it has a part for each segment of the model.
//! Sequences with the same beginning hold the same pages. Holders are counted by an [`Arc`], so nothing has to be
//! released explicitly, and a page with several holders is never written.
//!
//! When layers move to another device, because theirs was lost, the content of all pages is gone: they are stale from
//! then on, and caches that hold them have to be computed again.

use crate::state::{StatePage, StateStore};
use crate::{KvType, ModelError};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The properties that all pages of a model share, and the number of pages.
pub(crate) struct PageKind {
    /// Distinguishes the caches of different models.
    pub(crate) model: u64,
    pub(crate) ty: KvType,
    /// The window, if every layer of the model has one: older positions are never seen again.
    pub(crate) window: Option<usize>,
    /// The kinds of the states of recurrent layers, in models that have some.
    pub(crate) fixed: Option<Box<FixedKinds>>,
    stores: RwLock<Stores>,
    live: Arc<AtomicUsize>,
}

/// The kinds of pages for recurrent layers, whose states have a fixed size: see `snapshots`.
pub(crate) struct FixedKinds {
    /// The states at a position.
    pub(crate) states: PageKind,
    /// The inputs of a few rows.
    pub(crate) logs: PageKind,
}

/// The stores of all segments for states of fixed size, in order.
pub(crate) struct FixedStores {
    pub(crate) states: Vec<Arc<dyn StateStore>>,
    pub(crate) logs: Vec<Arc<dyn StateStore>>,
}

/// Where pages are.
#[derive(Clone)]
struct Stores {
    /// One for each segment, in order.
    of: Arc<[Arc<dyn StateStore>]>,
    /// Counts how often they were replaced. Pages of an earlier generation are stale.
    generation: u64,
}

impl PageKind {
    pub(crate) fn new(model: u64, ty: KvType, window: Option<usize>, stores: Vec<Arc<dyn StateStore>>) -> Self {
        let stores = RwLock::new(Stores { of: stores.into(), generation: 0 });
        Self { model, ty, window, fixed: None, stores, live: Arc::default() }
    }

    /// With states of fixed size.
    pub(crate) fn with_fixed(mut self, stores: Option<FixedStores>) -> Self {
        let kind = |stores| Self::new(self.model, KvType::F32, None, stores);
        self.fixed =
            stores.map(|FixedStores { states, logs }| Box::new(FixedKinds { states: kind(states), logs: kind(logs) }));
        self
    }

    /// The number of pages whose memory so many states and logs take.
    pub(crate) fn pages_of(&self, (n_states, n_logs): (usize, usize)) -> usize {
        let Some(fixed) = &self.fixed else { return 0 };
        let pages = |kind: &Self, n: usize| n * kind.page_bytes().div_ceil(self.page_bytes().max(1));
        pages(&fixed.states, n_states) + pages(&fixed.logs, n_logs)
    }

    /// Their bytes.
    pub(crate) fn fixed_bytes(&self, (n_states, n_logs): (usize, usize)) -> u64 {
        let Some(fixed) = &self.fixed else { return 0 };
        n_states as u64 * fixed.states.page_bytes() as u64 + n_logs as u64 * fixed.logs.page_bytes() as u64
    }

    fn stores(&self) -> Stores {
        self.stores.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the stores. All pages become stale.
    pub(crate) fn replace_stores(&self, stores: Vec<Arc<dyn StateStore>>, fixed: Option<FixedStores>) {
        if let (Some(kinds), Some(FixedStores { states, logs })) = (&self.fixed, fixed) {
            kinds.states.replace_stores(states, None);
            kinds.logs.replace_stores(logs, None);
        }
        let mut now = self.stores.write().unwrap_or_else(PoisonError::into_inner);
        *now = Stores { of: stores.into(), generation: now.generation + 1 };
    }

    /// Whether the content of a page is gone.
    pub(crate) fn is_stale(&self, page: &Page) -> bool {
        page.inner.generation != self.generation()
    }

    /// How often the stores were replaced.
    pub(crate) fn generation(&self) -> u64 {
        self.stores.read().unwrap_or_else(PoisonError::into_inner).generation
    }

    /// Number of existing pages of this kind, each counted once however many holders it has. States of fixed size count
    /// as the pages that they are as large as.
    pub(crate) fn n_live(&self) -> usize {
        let fixed = self.fixed.as_ref().map_or((0, 0), |fixed| (fixed.states.n_live(), fixed.logs.n_live()));
        self.live.load(Ordering::Relaxed) + self.pages_of(fixed)
    }

    /// Bytes of one page, over all devices.
    pub(crate) fn page_bytes(&self) -> usize {
        self.stores().of.iter().map(|store| store.page_bytes()).sum()
    }

    /// Bytes that [`save`](Self::save) appends.
    pub(crate) fn saved_bytes(&self) -> usize {
        self.stores().of.iter().map(|store| store.saved_bytes()).sum()
    }

    /// An empty page.
    pub(crate) fn new_page(&self) -> Result<Page, ModelError> {
        let stores = self.stores();
        self.page(&stores, stores.of.iter().map(|store| store.new_page()))
    }

    /// A new page with the same content.
    pub(crate) fn copy(&self, page: &Page) -> Result<Page, ModelError> {
        let stores = self.current(page)?;
        let parts = stores.of.iter().zip(&page.inner.parts);
        self.page(&stores, parts.map(|(store, part)| store.copy_page(part)))
    }

    /// Appends the content of a page, segment after segment.
    pub(crate) fn save(&self, page: &Page, out: &mut Vec<u8>) -> Result<(), ModelError> {
        let stores = self.current(page)?;
        let mut parts = stores.of.iter().zip(&page.inner.parts);
        parts.try_for_each(|(store, part)| store.save_page(part, out))
    }

    /// Creates a page from bytes that [`save`](Self::save) wrote; the length must match.
    pub(crate) fn load(&self, mut bytes: &[u8]) -> Result<Page, ModelError> {
        assert_eq!(bytes.len(), self.saved_bytes(), "bytes of a page");
        let stores = self.stores();
        let parts = stores.of.iter().map(|store| {
            let (own, rest) = bytes.split_at(store.saved_bytes());
            bytes = rest;
            store.load_page(own)
        });
        self.page(&stores, parts)
    }

    /// The stores, if this page is not stale.
    fn current(&self, page: &Page) -> Result<Stores, ModelError> {
        Some(self.stores()).filter(|stores| stores.generation == page.inner.generation).ok_or(ModelError::StaleCache)
    }

    fn page(
        &self,
        stores: &Stores,
        parts: impl Iterator<Item = Result<StatePage, ModelError>>,
    ) -> Result<Page, ModelError> {
        let parts = parts.collect::<Result<_, _>>()?;
        self.live.fetch_add(1, Ordering::Relaxed);
        let (generation, live) = (stores.generation, Arc::clone(&self.live));
        Ok(Page { inner: Arc::new(Inner { parts, generation, live }) })
    }
}

/// A page, possibly shared with other holders.
#[derive(Clone)]
pub(crate) struct Page {
    inner: Arc<Inner>,
}

struct Inner {
    /// `[n_segments]`
    parts: Vec<StatePage>,
    /// That of the stores that made it.
    generation: u64,
    live: Arc<AtomicUsize>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Page {
    /// Whether the page has other holders.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.inner) > 1
    }

    /// The part of a segment.
    pub(crate) fn part(&self, segment: usize) -> &StatePage {
        &self.inner.parts[segment]
    }

    /// The part of a segment, for writing; `None` if the page is shared.
    pub(crate) fn part_mut(&mut self, segment: usize) -> Option<&mut StatePage> {
        Arc::get_mut(&mut self.inner).map(|inner| &mut inner.parts[segment])
    }
}
