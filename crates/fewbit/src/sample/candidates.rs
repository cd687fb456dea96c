//! The tokens that are still possible at one position, while the stages of sampling narrow them.
//!
//! A vocabulary has 50 to 150 thousand tokens, and sampling happens once per token: copying and sorting all of them
//! would take a noticeable part of a small model's step. So the candidates begin as the borrowed row of logits, and
//! become a list at the first stage that needs one; after a top-k that list has k elements.
//!
//! The order among candidates is fixed everywhere: larger logit first, then lower id.

use std::cmp::Ordering;

/// One possible token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
}

/// Larger logit first, then lower id. Logits are never NaN here.
pub(super) fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// How many of the best candidates to sort first if a stage needs a prefix of the sorted list.
const FIRST_SORTED: usize = 256;

/// Unnormalized probability, 1 for a logit of `max`.
fn weight(logit: f32, max: f32, inverse_temperature: f64) -> f64 {
    let below = (f64::from(logit) - f64::from(max)) * inverse_temperature;
    // Below exp(-50), a token would be drawn once in 10^21. With a low temperature that is most of the vocabulary, so
    // the calls of exp are saved.
    if below < -50.0 { 0.0 } else { libm::exp(below) }
}

/// The candidates of one position. `list` is reused between positions.
pub(super) struct Candidates<'a> {
    logits: &'a [f32],
    max: f32,
    inverse_temperature: f64,
    list: &'a mut Vec<Candidate>,
    listed: bool,
    sorted: bool,
}

impl<'a> Candidates<'a> {
    /// All tokens; `max` is the largest of `logits`, which holds no NaN.
    pub(super) fn new(logits: &'a [f32], max: f32, list: &'a mut Vec<Candidate>) -> Self {
        list.clear();
        Self { logits, max, inverse_temperature: 1.0, list, listed: false, sorted: false }
    }

    /// The largest logit.
    pub(super) fn max(&self) -> f32 {
        self.max
    }

    /// The factor of the logits before they become probabilities.
    pub(super) fn inverse_temperature(&self) -> f64 {
        self.inverse_temperature
    }

    /// Divides the logits by a temperature from here on; 0 keeps only the most probable candidate.
    pub(super) fn set_temperature(&mut self, temperature: f64) {
        if temperature > 0.0 {
            self.inverse_temperature /= temperature;
        } else {
            self.keep_best(1);
        }
    }

    /// The unnormalized probability of a candidate.
    pub(super) fn weight(&self) -> impl Fn(&Candidate) -> f64 + use<> {
        let (max, inverse_temperature) = (self.max, self.inverse_temperature);
        move |candidate| weight(candidate.logit, max, inverse_temperature)
    }

    /// The sum of all weights.
    pub(super) fn total(&mut self) -> f64 {
        let weight = self.weight();
        self.list().iter().map(weight).sum()
    }

    /// The probabilities, in the order of the list.
    pub(super) fn probabilities(&mut self) -> Vec<f64> {
        let weight = self.weight();
        let mut weights: Vec<f64> = self.list().iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        for weight in &mut weights {
            *weight /= total;
        }
        weights
    }

    /// Replaces the candidates by a part of them, which must not be empty.
    pub(super) fn replace(&mut self, kept: impl IntoIterator<Item = Candidate>) {
        self.listed = true;
        self.list.clear();
        self.list.extend(kept);
        self.list.sort_unstable_by(best_first);
        self.sorted = true;
        self.max = self.list.first().map_or(self.max, |best| best.logit);
    }

    /// The remaining candidates, sorted if a stage needed that, otherwise by id.
    pub(super) fn list(&mut self) -> &mut [Candidate] {
        self.fill(f32::NEG_INFINITY);
        self.list
    }

    fn fill(&mut self, at_least: f32) {
        if !self.listed {
            self.listed = true;
            // A logit of minus infinity means that the token is impossible.
            self.list.extend(
                (0_u32..)
                    .zip(self.logits)
                    .filter(|(_, logit)| **logit >= at_least && **logit > f32::NEG_INFINITY)
                    .map(|(id, &logit)| Candidate { id, logit }),
            );
        }
    }

    /// Keeps the candidates with at least the given logit.
    pub(super) fn keep_from(&mut self, at_least: f64) {
        // Rounds up to f32, so that no smaller logit is kept.
        let rounded = at_least as f32;
        let at_least = if f64::from(rounded) < at_least { rounded.next_up() } else { rounded };
        if self.listed {
            self.list.retain(|candidate| candidate.logit >= at_least);
        } else {
            self.fill(at_least);
        }
    }

    /// Keeps the `k` best candidates, sorted; `k` is not 0.
    pub(super) fn keep_best(&mut self, k: usize) {
        if !self.listed {
            self.listed = true;
            self.scan_best(k);
        } else if k < self.list.len() && !self.sorted {
            self.list.select_nth_unstable_by(k - 1, best_first);
        }
        self.list.truncate(k);
        if !self.sorted {
            self.list.sort_unstable_by(best_first);
            self.sorted = true;
        }
    }

    /// Collects the `k` best candidates in one pass over the logits. Logits that are not above the k-th best so far are
    /// skipped; after the first few thousand tokens these are nearly all. Ids ascend, so a later equal logit has the
    /// higher id and loses.
    fn scan_best(&mut self, k: usize) {
        let room = k.saturating_mul(2).max(64).min(self.logits.len());
        let mut above = f32::NEG_INFINITY;
        for (id, &logit) in (0_u32..).zip(self.logits) {
            if logit > above {
                self.list.push(Candidate { id, logit });
                if self.list.len() > room && k < self.list.len() {
                    let (_, kth, _) = self.list.select_nth_unstable_by(k - 1, best_first);
                    above = kth.logit;
                    self.list.truncate(k);
                }
            }
        }
        if k < self.list.len() {
            self.list.select_nth_unstable_by(k - 1, best_first);
        }
    }

    /// Keeps a prefix of the sorted list, of the length that `enough` returns for the best candidates; `None` asks for
    /// more of them. Sorts only the candidates that are looked at.
    pub(super) fn keep_prefix(&mut self, enough: impl Fn(&[Candidate]) -> Option<usize>) {
        self.fill(f32::NEG_INFINITY);
        let mut n_sorted = if self.sorted { self.list.len() } else { 0 };
        let mut want = FIRST_SORTED;
        loop {
            if n_sorted < self.list.len() {
                want = want.min(self.list.len());
                let rest = &mut self.list[n_sorted..];
                let more = want - n_sorted;
                if more < rest.len() {
                    rest.select_nth_unstable_by(more - 1, best_first);
                }
                rest[..more].sort_unstable_by(best_first);
                n_sorted = want;
                want = want.saturating_mul(8);
            }
            let keep = enough(&self.list[..n_sorted]);
            if keep.is_some() || n_sorted == self.list.len() {
                self.list.truncate(keep.unwrap_or(n_sorted).max(1));
                self.sorted = true;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sorted(logits: &[f32]) -> Vec<Candidate> {
        let mut list: Vec<_> = (0_u32..).zip(logits).map(|(id, &logit)| Candidate { id, logit }).collect();
        list.sort_by(best_first);
        list
    }

    /// Few distinct values, so that ties are everywhere.
    fn logits() -> impl Strategy<Value = Vec<f32>> {
        proptest::collection::vec((-20..20_i8).prop_map(|x| f32::from(x) * 0.5), 1..2000)
    }

    fn max(logits: &[f32]) -> f32 {
        logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    proptest! {
        #[test]
        fn keep_best_equals_a_full_sort(logits in logits(), k in 1..300_usize, twice in 1..300_usize) {
            let mut list = Vec::new();
            let mut candidates = Candidates::new(&logits, max(&logits), &mut list);
            candidates.keep_best(k);
            let mut expected = sorted(&logits);
            expected.truncate(k);
            prop_assert_eq!(&*candidates.list(), &expected[..]);
            candidates.keep_best(twice);
            expected.truncate(twice);
            prop_assert_eq!(&*candidates.list(), &expected[..]);
        }

        #[test]
        fn keep_best_of_a_filtered_list_equals_a_full_sort(logits in logits(), k in 1..300_usize) {
            let mut list = Vec::new();
            let mut candidates = Candidates::new(&logits, max(&logits), &mut list);
            candidates.keep_from(-5.0);
            candidates.keep_best(k);
            let mut expected = sorted(&logits);
            expected.retain(|candidate| candidate.logit >= -5.0);
            expected.truncate(k);
            prop_assert_eq!(&*candidates.list(), &expected[..]);
        }

        #[test]
        fn keep_prefix_equals_a_full_sort(logits in logits(), n in 1..2000_usize) {
            let mut list = Vec::new();
            let mut candidates = Candidates::new(&logits, max(&logits), &mut list);
            candidates.keep_prefix(|best| (best.len() >= n).then_some(n));
            let mut expected = sorted(&logits);
            expected.truncate(n);
            prop_assert_eq!(&*candidates.list(), &expected[..]);
        }
    }
}
