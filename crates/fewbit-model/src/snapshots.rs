//! The states of fixed size that recurrent layers keep for a sequence. Such a state belongs to one position and cannot be
//! cut shorter, so a cache keeps some of them:
//!
//! - at the end of the sequence, where the next step begins;
//! - at the beginning of the last step, with the inputs of its rows if they are few (the log): so drafted tokens that
//!   are rejected can be removed, and the next step computes the state of those that stay again from the log;
//! - at a few page boundaries, more of them near the end, which the prefix tree takes over. A cache that is truncated
//!   further goes back to the last of these.
//!
//! A step never writes to the state that it begins with, so a failed one changes nothing. The states and the log are
//! pages of kinds of their own: counted, shared, and never written while they are shared.

use crate::ModelError;
use crate::pages::{FixedKinds, Page};
use crate::segment::FixedRows;
use fewbit_kernels::PAGE;
use std::ops::Range;

/// Rows of the log: those of two steps with drafts, of which the first is replayed while the second is written.
pub(crate) const LOG_ROWS: usize = 40;

/// How many states at page boundaries a cache keeps.
const MOST_KEPT: usize = 4;

/// States that are not in use, whose memory is kept.
const MOST_FREE: usize = 2;

/// The states that a cache of this many positions usually has in a step: before the step, after it, two whose memory is
/// reused, and those at page boundaries.
pub(crate) fn usual_states(n_positions: usize) -> usize {
    4 + MOST_KEPT.min(n_positions / PAGE)
}

/// A state and its position.
pub(crate) type Snapshot = (usize, Page);

/// The states of one cache.
#[derive(Default)]
pub(crate) struct Snapshots {
    /// In order of their positions.
    states: Vec<Snapshot>,
    /// The inputs of the rows at these positions.
    log: Option<(Range<usize>, Page)>,
    /// Those that the step in progress computes.
    next: Vec<Snapshot>,
    /// Whether it writes the log.
    is_logged: bool,
    free: Vec<Page>,
}

impl Snapshots {
    /// Of known states.
    pub(crate) fn new(states: Vec<Snapshot>, log: Option<(Range<usize>, Page)>) -> Self {
        Self { states, log, ..Self::default() }
    }

    /// All states up to a position.
    pub(crate) fn up_to(&self, len: usize) -> impl Iterator<Item = &Snapshot> {
        self.states.iter().take_while(move |(at, _)| *at <= len)
    }

    /// The last state at or before a position.
    fn base(&self, len: usize) -> Option<&Snapshot> {
        self.up_to(len).last()
    }

    /// The position of the state that a step from `len` on begins with; rows from there are replayed.
    fn base_position(&self, len: usize) -> usize {
        self.base(len).map_or(0, |(at, _)| *at)
    }

    fn is_logged(&self, rows: Range<usize>) -> bool {
        self.log.as_ref().is_some_and(|(log, _)| log.start <= rows.start && rows.end <= log.end)
    }

    /// The last position at or before `len` whose state is known or can be computed from the log.
    pub(crate) fn known(&self, len: usize) -> usize {
        let at = self.base_position(len);
        if self.is_logged(at..len) { len } else { at }
    }

    /// Forgets all states after a position, of which [`known`](Self::known) is true.
    pub(crate) fn truncate(&mut self, len: usize) {
        let n = self.up_to(len).count();
        let removed = self.states.drain(n..).map(|(_, page)| page).collect::<Vec<_>>();
        removed.into_iter().for_each(|page| self.reuse(page));
        if len == 0 {
            *self = Self::default();
        }
    }

    pub(crate) fn fork(&self) -> Self {
        Self::new(self.states.clone(), self.log.clone())
    }

    /// Number of states and of logs that it holds.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.states.len() + self.next.len() + self.free.len(), usize::from(self.log.is_some()))
    }

    fn reuse(&mut self, page: Page) {
        if !page.is_shared() && self.free.len() < MOST_FREE {
            self.free.push(page);
        }
    }

    /// The positions whose states a step of `n` rows from `len` on computes.
    fn targets(&self, len: usize, n: usize) -> Vec<usize> {
        let replayed = (self.base_position(len) < len).then_some(len);
        let boundaries = (len / PAGE + 1..).map(|i| i * PAGE).take_while(|&at| at < len + n);
        let n_boundaries = boundaries.clone().count();
        replayed.into_iter().chain(boundaries.skip(n_boundaries.saturating_sub(2))).chain([len + n]).collect()
    }

    /// Whether such a step writes the log, and whether it needs one for replaying.
    fn logs(&self, len: usize, n: usize) -> (bool, bool) {
        let n_replayed = len - self.base_position(len);
        (n > 1 && n_replayed + n <= LOG_ROWS, n_replayed > 0)
    }

    /// Number of states and of logs that such a step takes memory for.
    pub(crate) fn to_append(&self, len: usize, n: usize) -> (usize, usize) {
        if n == 0 {
            return (0, 0);
        }
        let n_free = self.free.len() + self.next.len();
        let is_free = self.log.as_ref().is_some_and(|(_, page)| !page.is_shared());
        (self.targets(len, n).len().saturating_sub(n_free), usize::from(self.logs(len, n).0 && !is_free))
    }

    /// Makes room for a step of `n` rows from `len` on.
    pub(crate) fn reserve(&mut self, kinds: &FixedKinds, len: usize, n: usize) -> Result<(), ModelError> {
        // Those of a step that failed.
        self.free.extend(self.next.drain(..).map(|(_, page)| page));
        if n == 0 {
            return Ok(());
        }
        for at in self.targets(len, n) {
            let page = match self.free.pop() {
                Some(page) => page,
                None => kinds.states.new_page()?,
            };
            self.next.push((at, page));
        }
        let (writes, replays) = self.logs(len, n);
        self.is_logged = writes;
        if writes {
            self.log = Some(match self.log.take() {
                Some((rows, page)) if !page.is_shared() => (rows, page),
                Some((rows, page)) if replays => {
                    let copy = kinds.logs.copy(&page);
                    // Without memory for a copy, nothing has changed.
                    self.log = Some((rows.clone(), page));
                    (rows, copy?)
                }
                _ => (len..len, kinds.logs.new_page()?),
            });
        }
        Ok(())
    }

    /// What the layers get for a step that was reserved.
    pub(crate) fn rows(&mut self, len: usize) -> FixedRows<'_> {
        let at = self.base_position(len);
        let n = self.states.iter().take_while(|(at, _)| *at <= len).count();
        let base = self.states[..n].last().map(|(_, page)| page);
        let to = self.next.iter_mut().map(|(to, page)| (*to - at, page)).collect();
        let log = self.log.as_mut().map(|(_, page)| page);
        FixedRows::new(base, len - at, log, self.is_logged, to)
    }

    /// Takes over the states of a step of `n` rows from `len` on.
    pub(crate) fn advance(&mut self, len: usize, n: usize) {
        if n == 0 {
            return;
        }
        self.states.append(&mut self.next);
        if let Some((rows, _)) = &mut self.log {
            *rows = if self.is_logged { len..len + n } else { len + n..len + n };
        }
        let end = len + n;
        let mut boundaries: Vec<usize> = self.states.iter().map(|(at, _)| *at).filter(|at| at % PAGE == 0).collect();
        while boundaries.len() > MOST_KEPT {
            // The one whose neighbours are closest, compared with how far back it is.
            let gap = |i: usize| {
                let before = if i == 0 { 0 } else { boundaries[i - 1] };
                (boundaries[i + 1] - before) as f64 / (end - boundaries[i] + PAGE) as f64
            };
            let least = (0..boundaries.len() - 1).min_by(|&a, &b| gap(a).total_cmp(&gap(b))).unwrap_or(0);
            boundaries.remove(least);
        }
        let is_kept = |at: usize| at == len || at == end || boundaries.contains(&at);
        let (kept, gone): (Vec<_>, Vec<_>) = self.states.drain(..).partition(|(at, _)| is_kept(*at));
        self.states = kept;
        gone.into_iter().for_each(|(_, page)| self.reuse(page));
    }

    /// The state that a step from `len` on begins with, and the log if that has to be replayed.
    pub(crate) fn last(&self, len: usize) -> (Option<&Snapshot>, Option<&Page>) {
        let base = self.base(len);
        let is_exact = base.map_or(0, |(at, _)| *at) == len;
        (base, self.log.as_ref().filter(|_| !is_exact).map(|(_, page)| page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_at_boundaries_get_rarer_towards_the_beginning() {
        let of = |positions: &[usize]| Snapshots::new(Vec::new(), None).targets(positions[0], positions[1]);
        assert_eq!(of(&[0, 1]), [1]);
        assert_eq!(of(&[0, PAGE]), [PAGE], "the end is one");
        assert_eq!(of(&[0, 5 * PAGE + 3]), [4 * PAGE, 5 * PAGE, 5 * PAGE + 3]);
    }
}
