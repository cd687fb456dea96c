//! Pages of state, which are counted, shared, and copied when one of several holders writes.
//!
//! A page stands for 256 positions of one sequence in all layers: it has a part for each segment of the model.
//! Sequences with the same beginning hold the same pages. Holders are counted by an [`Arc`], so nothing has to be
//! released explicitly, and a page with several holders is never written.

use crate::state::{StatePage, StateStore};
use crate::{KvType, ModelError};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The properties that all pages of a model share, and the number of pages.
pub(crate) struct PageKind {
    /// Distinguishes the caches of different models.
    pub(crate) model: u64,
    pub(crate) ty: KvType,
    /// The window, if every layer of the model has one: older positions are never seen again.
    pub(crate) window: Option<usize>,
    /// One for each segment, in order.
    stores: Vec<Arc<dyn StateStore>>,
    live: Arc<AtomicUsize>,
}

impl PageKind {
    pub(crate) fn new(model: u64, ty: KvType, window: Option<usize>, stores: Vec<Arc<dyn StateStore>>) -> Self {
        Self { model, ty, window, stores, live: Arc::default() }
    }

    /// Number of existing pages of this kind, each counted once however many holders it has.
    pub(crate) fn n_live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Bytes of one page, over all devices.
    pub(crate) fn page_bytes(&self) -> usize {
        self.stores.iter().map(|store| store.page_bytes()).sum()
    }

    /// Bytes that [`save`](Self::save) appends.
    pub(crate) fn saved_bytes(&self) -> usize {
        self.stores.iter().map(|store| store.saved_bytes()).sum()
    }

    /// An empty page.
    pub(crate) fn new_page(&self) -> Result<Page, ModelError> {
        self.page(self.stores.iter().map(|store| store.new_page()))
    }

    /// A new page with the same content.
    pub(crate) fn copy(&self, page: &Page) -> Result<Page, ModelError> {
        let parts = self.stores.iter().zip(&page.inner.parts);
        self.page(parts.map(|(store, part)| store.copy_page(part)))
    }

    /// Appends the content of a page, segment after segment.
    pub(crate) fn save(&self, page: &Page, out: &mut Vec<u8>) -> Result<(), ModelError> {
        let mut parts = self.stores.iter().zip(&page.inner.parts);
        parts.try_for_each(|(store, part)| store.save_page(part, out))
    }

    /// Creates a page from bytes that [`save`](Self::save) wrote; the length must match.
    pub(crate) fn load(&self, mut bytes: &[u8]) -> Result<Page, ModelError> {
        assert_eq!(bytes.len(), self.saved_bytes(), "bytes of a page");
        self.page(self.stores.iter().map(|store| {
            let (own, rest) = bytes.split_at(store.saved_bytes());
            bytes = rest;
            store.load_page(own)
        }))
    }

    fn page(&self, parts: impl Iterator<Item = Result<StatePage, ModelError>>) -> Result<Page, ModelError> {
        let parts = parts.collect::<Result<_, _>>()?;
        self.live.fetch_add(1, Ordering::Relaxed);
        Ok(Page { inner: Arc::new(Inner { parts, live: Arc::clone(&self.live) }) })
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
