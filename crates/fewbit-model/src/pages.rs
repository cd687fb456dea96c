//! Pages of state: counted, shared, copied when one of several holders writes.
//!
//! A page stands for 256 positions of all layers of one sequence: it holds a part from each segment of the model.
//! Sequences that begin alike hold the same pages; the count of holders is that of an [`Arc`], so nothing has to be
//! given back by hand, and a page that is held more than once is never written.

use crate::state::{StatePage, StateStore};
use crate::{KvType, ModelError};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all pages of a model have in common, and how many of them there are.
pub(crate) struct PageKind {
    /// Tells the caches of different models apart.
    pub(crate) model: u64,
    pub(crate) ty: KvType,
    /// The window of a model in which every layer has one: what is older is never seen again.
    pub(crate) window: Option<usize>,
    /// One for each segment, in order.
    stores: Vec<Arc<dyn StateStore>>,
    live: Arc<AtomicUsize>,
}

impl PageKind {
    pub(crate) fn new(model: u64, ty: KvType, window: Option<usize>, stores: Vec<Arc<dyn StateStore>>) -> Self {
        Self { model, ty, window, stores, live: Arc::default() }
    }

    /// Pages of this kind that exist, each counted once however many hold it.
    pub(crate) fn n_live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Bytes of one page, on all devices together.
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

    /// A page of its own with the same content.
    pub(crate) fn copy(&self, page: &Page) -> Result<Page, ModelError> {
        let parts = self.stores.iter().zip(&page.inner.parts);
        self.page(parts.map(|(store, part)| store.copy_page(part)))
    }

    /// Appends the content of a page, segment after segment.
    pub(crate) fn save(&self, page: &Page, out: &mut Vec<u8>) -> Result<(), ModelError> {
        let mut parts = self.stores.iter().zip(&page.inner.parts);
        parts.try_for_each(|(store, part)| store.save_page(part, out))
    }

    /// A page from the bytes that [`save`](Self::save) gave, of which there are as many.
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

/// A page that is held here, and perhaps elsewhere too.
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
    /// Whether somebody else holds it too.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.inner) > 1
    }

    /// What a segment keeps here.
    pub(crate) fn part(&self, segment: usize) -> &StatePage {
        &self.inner.parts[segment]
    }

    /// The same, to be written; `None` if the page is shared.
    pub(crate) fn part_mut(&mut self, segment: usize) -> Option<&mut StatePage> {
        Arc::get_mut(&mut self.inner).map(|inner| &mut inner.parts[segment])
    }
}
