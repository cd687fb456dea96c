//! The state that layers keep for one sequence, mainly keys and values: a table of pages. The content of a page, and
//! its device, are up to the segments.
//!
//! Memory grows by pages of [`PAGE`] positions. A cache shares pages with the one that it was [forked](KvCache::fork)
//! from; a page that both hold is copied when one of them appends to it. If every layer has a sliding window, pages
//! that no later query can see are released, one page later than possible: so a cache can always be
//! [truncated](KvCache::truncate) by some positions without losing any that are needed. What recurrent layers keep has a
//! fixed size and is not in these pages: see `snapshots`.

use crate::lora::LoraSet;
use crate::pages::{FixedKinds, Page, PageKind};
use crate::segment::SequenceRows;
use crate::snapshots::{LOG_ROWS, Snapshot, Snapshots};
use crate::{KvType, ModelError};
use fewbit_kernels::PAGE;
use std::ops::Range;
use std::sync::Arc;

/// The keys and values of the positions of a sequence so far.
pub struct KvCache {
    kind: Arc<PageKind>,
    /// The adapters that the keys and values were computed with.
    loras: LoraSet,
    len: usize,
    /// Number of pages before `pages` that were released.
    n_gone: usize,
    /// `pages[i]` holds the positions from `(n_gone + i) * PAGE` on.
    pages: Vec<Page>,
    /// The states of recurrent layers.
    snapshots: Snapshots,
}

impl KvCache {
    pub(crate) fn new(kind: Arc<PageKind>, loras: LoraSet) -> Self {
        Self { kind, loras, len: 0, n_gone: 0, pages: Vec::new(), snapshots: Snapshots::default() }
    }

    /// The adapters that the sequence is computed with.
    pub fn loras(&self) -> &LoraSet {
        &self.loras
    }

    /// The id of the model that the cache belongs to.
    pub(crate) fn model(&self) -> u64 {
        self.kind.model
    }

    /// Number of positions in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the cache has no positions.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Removes all positions after the first `len`; does nothing if there are no more than that.
    ///
    /// With a sliding window, positions that the next query would see may have been released already; then the cache is
    /// cleared. Up to [`PAGE`] positions can always be removed. In a model with recurrent layers, those of the last step
    /// can be removed if they were few, and otherwise some more than asked for: back to the last position whose state is
    /// known. Returns the number of positions left.
    pub fn truncate(&mut self, len: usize) -> usize {
        let len = self.kind.fixed.as_ref().map_or(len, |_| self.snapshots.known(len.min(self.len)));
        if len < self.len {
            let is_lost = self.n_gone > 0 && self.kind.window.is_some_and(|w| first_seen(len, w) < self.n_gone);
            if is_lost || len == 0 {
                (self.len, self.n_gone) = (0, 0);
                self.pages.clear();
            } else {
                self.len = len;
                self.pages.truncate(len.div_ceil(PAGE) - self.n_gone);
            }
            self.snapshots.truncate(self.len);
        }
        self.len
    }

    /// Removes all positions.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Creates a second sequence with the same history. Pages are shared until one of the two appends to them.
    pub fn fork(&self) -> Self {
        let pages = self.pages[..self.len.div_ceil(PAGE) - self.n_gone].to_vec();
        let (kind, loras) = (Arc::clone(&self.kind), self.loras.clone());
        Self { kind, loras, len: self.len, n_gone: self.n_gone, pages, snapshots: self.snapshots.fork() }
    }

    /// Number of pages that the cache holds; a shared page counts in each cache that holds it. The states of recurrent
    /// layers count as the pages that they are as large as.
    pub fn n_pages(&self) -> usize {
        self.pages.len() + self.kind.pages_of(self.snapshots.counts())
    }

    /// Number of pages that appending `n` positions would add, including copies of shared ones.
    pub fn pages_to_append(&self, n: usize) -> usize {
        if n == 0 {
            return 0;
        }
        let new = (self.len + n).div_ceil(PAGE).saturating_sub(self.n_gone + self.pages.len());
        let fixed = self.kind.fixed.as_ref().map_or((0, 0), |_| self.snapshots.to_append(self.len, n));
        new + usize::from(self.must_copy()) + self.kind.pages_of(fixed)
    }

    /// Memory that the cache takes in bytes, including shared pages.
    pub fn bytes(&self) -> u64 {
        self.pages.len() as u64 * self.kind.page_bytes() as u64 + self.kind.fixed_bytes(self.snapshots.counts())
    }

    /// The type of its elements.
    pub fn kv_type(&self) -> KvType {
        self.kind.ty
    }

    /// Makes room for `n` more positions in pages that no other cache holds, so that appending them takes no more
    /// memory.
    ///
    /// # Errors
    /// Out of memory; [`ModelError::StaleCache`].
    pub fn reserve(&mut self, n: usize) -> Result<(), ModelError> {
        self.refresh()?;
        if let Some(fixed) = &self.kind.fixed {
            self.snapshots.reserve(fixed, self.len, n)?;
        }
        self.reserve_pages(n)
    }

    /// Drops stale pages that hold nothing.
    fn refresh(&mut self) -> Result<(), ModelError> {
        if self.has_stale_pages() {
            if !self.is_empty() {
                return Err(ModelError::StaleCache);
            }
            self.pages.clear();
            self.snapshots.truncate(0);
        }
        Ok(())
    }

    fn reserve_pages(&mut self, n: usize) -> Result<(), ModelError> {
        if n > 0 && self.must_copy() {
            let page = &mut self.pages[self.len / PAGE - self.n_gone];
            *page = self.kind.copy(page)?;
        }
        while (self.n_gone + self.pages.len()) * PAGE < self.len + n {
            self.pages.push(self.kind.new_page()?);
        }
        Ok(())
    }

    /// Whether its positions were on a device that was lost, so that it has to be [cleared](Self::clear) and computed
    /// again.
    pub fn is_stale(&self) -> bool {
        !self.is_empty() && self.has_stale_pages()
    }

    /// All its pages are of one generation, because none is added to stale ones.
    fn has_stale_pages(&self) -> bool {
        self.pages.first().is_some_and(|page| self.kind.is_stale(page))
    }

    /// Whether the page that the next position goes to is partly filled and also held elsewhere.
    fn must_copy(&self) -> bool {
        !self.len.is_multiple_of(PAGE) && self.pages[self.len / PAGE - self.n_gone].is_shared()
    }

    /// Adds `n` positions, whose keys and values have been stored, to the sequence.
    pub(crate) fn advance(&mut self, n: usize) {
        if self.kind.fixed.is_some() {
            self.snapshots.advance(self.len, n);
        }
        self.len += n;
        if let Some(window) = self.kind.window {
            let keep = first_seen(self.len, window).saturating_sub(1);
            if keep > self.n_gone {
                self.pages.drain(..keep - self.n_gone);
                self.n_gone = keep;
            }
        }
    }

    /// All pages, if none was released.
    pub(crate) fn all_pages(&self) -> Option<&[Page]> {
        (self.n_gone == 0).then_some(&self.pages[..self.len.div_ceil(PAGE)])
    }

    /// The states of recurrent layers.
    pub(crate) fn states(&self) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.up_to(self.len)
    }

    /// Creates a cache of `len` positions that `pages` hold, from position 0 on. In a model with recurrent layers, there
    /// is a state at `len`.
    pub(crate) fn from_pages(
        kind: Arc<PageKind>,
        loras: LoraSet,
        pages: Vec<Page>,
        states: Vec<Snapshot>,
        len: usize,
    ) -> Self {
        assert_eq!(pages.len(), len.div_ceil(PAGE), "as many pages as {len} positions need");
        Self { kind, loras, len, n_gone: 0, pages, snapshots: Snapshots::new(states, None) }
    }

    /// The rows of the sequence in a batch, and its pages, for the segments of the model.
    pub(crate) fn rows(&mut self, rows: Range<usize>) -> SequenceRows<'_> {
        let fixed = self.kind.fixed.is_some().then(|| self.snapshots.rows(self.len));
        SequenceRows::new(rows, self.len, self.n_gone, &mut self.pages, fixed)
    }

    /// Makes room in pages for drafts of `n` positions after the last one, which are not appended.
    pub(crate) fn reserve_drafts(&mut self, n: usize) -> Result<(), ModelError> {
        self.refresh()?;
        self.reserve_pages(n)
    }

    /// The row of a draft, `i` positions after the last one.
    pub(crate) fn draft_row(&mut self, i: usize) -> SequenceRows<'_> {
        SequenceRows::new(0..1, self.len + i, self.n_gone, &mut self.pages, None)
    }

    /// The state at the end of the cache; or if that is not known, the log that has the inputs of its last rows.
    pub(crate) fn last_state(&self) -> Option<LastState<'_>> {
        match self.snapshots.last(self.len) {
            (Some((at, state)), _) if *at == self.len => Some(LastState::Known(state)),
            (_, log) => log.map(LastState::Logged),
        }
    }

    /// Appends the state of the cache to `out`, for [`Decoder::restore_cache`](crate::Decoder::restore_cache). The
    /// bytes do not depend on the placement of the layers.
    ///
    /// # Errors
    /// If a device fails; [`ModelError::StaleCache`].
    pub fn serialize(&self, out: &mut Vec<u8>) -> Result<(), ModelError> {
        out.extend((self.n_gone as u64).to_le_bytes());
        let mut pages = self.pages[..self.len.div_ceil(PAGE) - self.n_gone].iter();
        pages.try_for_each(|page| self.kind.save(page, out))?;
        if let Some(fixed) = self.kind.fixed.as_ref().filter(|_| self.len > 0) {
            let (state, log) = self.snapshots.last(self.len);
            out.extend((state.map_or(0, |(at, _)| *at) as u64).to_le_bytes());
            state.map_or(Ok(()), |(_, state)| fixed.states.save(state, out))?;
            log.map_or(Ok(()), |log| fixed.logs.save(log, out))?;
        }
        Ok(())
    }

    /// Reads what [`serialize`](Self::serialize) wrote for a cache of `len` positions.
    pub(crate) fn deserialize(
        kind: &Arc<PageKind>,
        loras: LoraSet,
        len: usize,
        bytes: &[u8],
    ) -> Result<Self, ModelError> {
        let bad = || ModelError::BadCacheState { len, n_bytes: bytes.len() };
        let (n_gone, pages) = bytes.split_first_chunk().ok_or_else(bad)?;
        let n_gone = usize::try_from(u64::from_le_bytes(*n_gone)).map_err(|_| bad())?;
        let most_gone = kind.window.map_or(0, |w| first_seen(len, w).saturating_sub(1));
        let n_pages = len.div_ceil(PAGE).checked_sub(n_gone).filter(|_| n_gone <= most_gone).ok_or_else(bad)?;
        let n_bytes = n_pages.checked_mul(kind.saved_bytes()).filter(|&n| n <= pages.len()).ok_or_else(bad)?;
        let (pages, fixed) = pages.split_at(n_bytes);
        let snapshots = match &kind.fixed {
            Some(kinds) if len > 0 => snapshots_of(kinds, len, fixed)?.ok_or_else(bad)?,
            _ if fixed.is_empty() => Snapshots::default(),
            _ => return Err(bad()),
        };
        let pages = pages.chunks_exact(kind.saved_bytes().max(1)).map(|bytes| kind.load(bytes));
        Ok(Self { kind: Arc::clone(kind), loras, len, n_gone, pages: pages.collect::<Result<_, _>>()?, snapshots })
    }
}

/// What there is of the states of fixed size at the end of a cache.
pub(crate) enum LastState<'a> {
    Known(&'a Page),
    Logged(&'a Page),
}

/// The states of a cache of `len` positions from saved bytes; `None` if they are not such bytes.
fn snapshots_of(kinds: &FixedKinds, len: usize, bytes: &[u8]) -> Result<Option<Snapshots>, ModelError> {
    let Some((at, bytes)) = bytes.split_first_chunk() else { return Ok(None) };
    let at = usize::try_from(u64::from_le_bytes(*at)).unwrap_or(usize::MAX);
    // Before the first position, the state is zero and not saved; at the end, no log is needed.
    let n_state = if at > 0 { kinds.states.saved_bytes() } else { 0 };
    let n_log = if at < len { kinds.logs.saved_bytes() } else { 0 };
    let parts = bytes.split_at_checked(n_state).filter(|(_, log)| log.len() == n_log);
    let Some((state, log)) = parts.filter(|_| at <= len && len - at <= LOG_ROWS) else { return Ok(None) };
    let states = if at > 0 { vec![(at, kinds.states.load(state)?)] } else { Vec::new() };
    let log = if at < len { Some((at..len, kinds.logs.load(log)?)) } else { None };
    Ok(Some(Snapshots::new(states, log)))
}

/// Index of the first page that queries from position `len` on can see.
fn first_seen(len: usize, window: usize) -> usize {
    len.saturating_add(1).saturating_sub(window) / PAGE
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut s = f.debug_struct("KvCache");
        s.field("len", &self.len).field("type", &self.kv_type()).field("bytes", &self.bytes()).finish()
    }
}
