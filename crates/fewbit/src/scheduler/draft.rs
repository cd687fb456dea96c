//! Speculation: drafts likely next tokens and verifies them in one step.
//!
//! Drafted tokens go through the same forward pass as the last chosen token. The request's own picker then chooses a
//! token at each of their positions, in order, until it chooses something else ([`Sequence::take_logits`]). So the
//! tokens are the same as without speculation, whatever the settings: a draft only decides how many tokens a step
//! gives.
//!
//! Drafts come from a constraint that leaves no choice, from the text itself (*lookup*: what followed the last few
//! tokens the last time they occurred), from a small model with the same vocabulary, or from the layer that the model
//! itself brings for that ([`Decoder::draft`]). Forced tokens are certain, so they are always worth their rows. The length of a draft after them depends on its expected gain and its cost: for
//! each request the share of drafted tokens that were right, kept with a short memory and first guessed from the length
//! of the match; and for the engine the time of a step by its number of rows. Where drafting does not pay, nothing is
//! drafted, except for a try now and then.
//!
//! Expectations may be wrong, above all after a passage that was copied. So drafts also have a budget: whatever it
//! expects, a request can lose only a hundredth of its time to drafts, plus a few tokens of what they have gained.
//!
//! [`Sequence::take_logits`]: super::sequence::Sequence::take_logits

use std::sync::Arc;
use std::time::{Duration, Instant};

use fewbit_model::{Chunk, Decoder, KvCache, LogitsFor, ModelError};

use super::Core;
use crate::sample::largest;

/// Whether and when a generation drafts tokens to verify several in one step. The result is always the same.
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// use fewbit::{Model, Speculation};
///
/// let model = Model::load("llama-3.1-8b-instruct")?;
/// let small = Model::load("llama-3.2-1b-instruct")?; // the same vocabulary
/// let request = model.generate("Why is the sky blue?").templated().draft(&small);
/// let out = request.speculation(Speculation::Always).run()?;
/// println!("{} of {} drafted tokens came", out.usage.accepted, out.usage.drafted);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Speculation {
    /// Never, even if there is a draft model.
    Off,
    /// When it is expected to save time.
    #[default]
    Auto,
    /// Whenever there is something to draft.
    Always,
}

/// The most drafted tokens of one step.
pub(super) const MAX_DRAFT: usize = 16;
/// The fewest tokens that must match an earlier place for a lookup.
const MIN_MATCH: usize = 3;
/// Longer matches count as this long.
const MAX_MATCH: usize = 12;
/// How far back a lookup searches, in tokens.
const LOOKUP: usize = 16 << 10;
/// By which factor a draft must be expected to raise the tokens per second.
const WORTH: f64 = 1.08;
/// The budget of a new request: what drafts may lose, in tokens.
const FIRST_BUDGET: f64 = 0.75;
/// By how much the budget grows with each step.
const BUDGET_PER_STEP: f64 = 0.01;
/// The upper limit of the budget, however much drafts have gained.
const MOST_BUDGET: f64 = 4.0;

/// The time of a step by its number of rows, measured on steps without prompts.
#[derive(Debug, Default)]
pub(super) struct StepCost {
    /// Seconds of a step of `i + 1` rows, smoothed.
    by_rows: [Option<f64>; 32],
    /// Seconds of a step of the draft model.
    draft_s: Option<f64>,
    /// Seconds of a token that the model drafts itself.
    own_s: Option<f64>,
}

impl StepCost {
    pub(super) fn learn(&mut self, n_rows: usize, time: Duration) {
        if let Some(known) = n_rows.checked_sub(1).and_then(|i| self.by_rows.get_mut(i)) {
            smooth(known, time);
        }
    }

    fn learn_draft(&mut self, time: Duration) {
        smooth(&mut self.draft_s, time);
    }

    fn learn_own(&mut self, n_tokens: usize, time: Duration) {
        if let Some(time) = u32::try_from(n_tokens).ok().and_then(|n| time.checked_div(n)) {
            smooth(&mut self.own_s, time);
        }
    }

    /// Seconds of a step without rows, and of one row: a line fitted to the measurements.
    fn line(&self) -> Option<(f64, f64)> {
        let known = || (1..).zip(&self.by_rows).filter_map(|(n, s)| Some((f64::from(n), (*s)?)));
        let n = known().count() as f64;
        if n == 0.0 {
            return None;
        }
        let (mean_x, mean_y) = (known().map(|p| p.0).sum::<f64>() / n, known().map(|p| p.1).sum::<f64>() / n);
        let variance: f64 = known().map(|p| (p.0 - mean_x).powi(2)).sum();
        let slope = match variance > 0.0 {
            true => known().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum::<f64>() / variance,
            // As long as only one number of rows was measured, a row is assumed to cost a seventh of a step.
            false => mean_y / (mean_x + 6.0),
        };
        let slope = slope.clamp(0.01 * mean_y, mean_y / mean_x);
        Some((mean_y - slope * mean_x, slope))
    }
}

fn smooth(known: &mut Option<f64>, time: Duration) {
    let time = time.as_secs_f64();
    *known = Some(known.map_or(time, |known| known + 0.2 * (time - known)));
}

/// Drafts tokens for one request.
pub(super) struct Drafter {
    mode: Speculation,
    /// Drafted tokens that were right, and drafts that went wrong; older ones count less.
    hits: f64,
    misses: f64,
    /// What drafts may still lose, in tokens; never negative.
    budget: f64,
    /// How much of the budget the current draft takes.
    price: f64,
    model: Option<Model>,
    /// Whether the model drafts itself.
    is_own: bool,
}

/// A draft model, and its KV cache for this request.
struct Model {
    core: Arc<Core>,
    cache: KvCache,
    /// The tokens in the cache.
    tokens: Vec<u32>,
}

impl Drafter {
    /// With a draft model, or else with the model's own layer if it `has_own`, or else by lookup.
    pub(super) fn new(mode: Speculation, draft: Option<Arc<Core>>, has_own: bool) -> Self {
        let model = draft.map(|core| Model { cache: core.new_cache(), core, tokens: Vec::new() });
        let is_own = has_own && model.is_none();
        Self { mode, hits: 0.0, misses: 0.0, budget: FIRST_BUDGET, price: 0.0, model, is_own }
    }

    /// Whether the model drafts itself, with [`draft_own`](Self::draft_own).
    pub(super) fn is_own(&self) -> bool {
        self.is_own
    }

    pub(super) fn is_off(&self) -> bool {
        self.mode == Speculation::Off
    }

    /// Bytes that the draft model's cache of this request takes.
    pub(super) fn bytes(&self) -> u64 {
        self.model.as_ref().map_or(0, |model| model.cache.bytes())
    }

    /// Drops that cache: it is recomputed for the next draft.
    pub(super) fn forget(&mut self) {
        if let Some(model) = &mut self.model {
            model.cache.clear();
            model.tokens.clear();
        }
    }

    /// The most bytes that the draft model's cache grows by with a draft after `n_tokens` tokens; `None` if its own
    /// limit does not allow them.
    pub(super) fn bytes_to_grow(&self, n_tokens: usize) -> Option<u64> {
        let Some(Model { core, cache, .. }) = &self.model else { return Some(0) };
        let behind = n_tokens.saturating_sub(cache.len()).min(core.limits.prefill_chunk);
        let pages = cache.pages_to_append(behind + MAX_DRAFT);
        let fits = pages == 0 || core.decoder.kv_pages() + pages <= core.kv_pages_limit();
        fits.then(|| pages as u64 * core.decoder.kv_page_bytes())
    }

    /// Drafts at most `most` tokens after `tokens`, for a step that has `n_rows` rows without them.
    pub(super) fn draft(&mut self, tokens: &[u32], most: usize, n_rows: usize, cost: &mut StepCost) -> Vec<u32> {
        if self.is_off() || most == 0 {
            return Vec::new();
        }
        self.budget = MOST_BUDGET.min(self.budget + BUDGET_PER_STEP);
        if self.model.is_some() {
            let n = self.length(most, n_rows, cost, cost.draft_s.unwrap_or(0.0), 0.5);
            return if n == 0 { Vec::new() } else { self.ask_model(tokens, n, cost) };
        }
        let Some(Match { from, n_same }) = lookup(tokens) else { return Vec::new() };
        let n = self.length(most, n_rows, cost, 0.0, n_same as f64 / (n_same + MIN_MATCH) as f64);
        // If the text that followed reaches the end of the text, it repeats.
        let period = tokens.len() - from;
        (0..n).map(|i| tokens[from + i % period]).collect()
    }

    /// Drafts at most `most` tokens with the model's own layer after `tokens`, which are not in the cache of the sequence
    /// yet, for a step that has `n_rows` rows without them. If it fails, only the speculation of this request ends.
    pub(super) fn draft_own(
        &mut self,
        (decoder, cache): (&Decoder, &mut KvCache),
        tokens: &[u32],
        most: usize,
        n_rows: usize,
        cost: &mut StepCost,
    ) -> Vec<u32> {
        if self.is_off() || most == 0 {
            return Vec::new();
        }
        self.budget = MOST_BUDGET.min(self.budget + BUDGET_PER_STEP);
        let n = self.length(most, n_rows, cost, cost.own_s.unwrap_or(0.0), 0.5);
        if n == 0 {
            return Vec::new();
        }
        let start = Instant::now();
        match decoder.draft(cache, tokens, n, &mut |logits| largest(logits)) {
            Ok(draft) => {
                if !draft.is_empty() {
                    cost.learn_own(tokens.len() - 1 + draft.len(), start.elapsed());
                }
                draft
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the model's own drafts failed");
                self.mode = Speculation::Off;
                Vec::new()
            }
        }
    }

    /// The length of a draft that promises the most tokens per second. `guess` is the probability that a token is
    /// right, used as long as nothing is known.
    fn length(&mut self, most: usize, n_rows: usize, cost: &StepCost, draft_s: f64, guess: f64) -> usize {
        if self.mode == Speculation::Always {
            return most;
        }
        let Some((step_s, row_s)) = cost.line() else { return 0 };
        let right = (self.hits + 2.0 * guess) / (self.hits + self.misses + 2.0);
        let seconds = |n: usize| step_s + row_s * (n_rows + n) as f64 + draft_s * n as f64;
        let per_second = |n: usize| {
            // right + right^2 + ...: all tokens up to the first one that is wrong.
            let more = right * (1.0 - right.powi(n as i32)) / (1.0 - right);
            (n_rows as f64 + more) / seconds(n)
        };
        let price = |n: usize| (seconds(n) - seconds(0)) * per_second(0);
        let affordable = (1..=most).take_while(|&n| price(n) <= self.budget);
        let best = affordable.max_by(|&a, &b| per_second(a).total_cmp(&per_second(b))).unwrap_or(0);
        if best > 0 && per_second(best) > WORTH * per_second(0) {
            self.price = price(best);
            return best;
        }
        // Nothing is drafted this time; earlier misses count a little less the next time.
        self.misses *= 0.98;
        0
    }

    /// Records how many of the drafted tokens were right.
    pub(super) fn learn(&mut self, n_drafted: usize, n_right: usize) {
        self.hits = 0.9 * self.hits + n_right as f64;
        self.misses = 0.9 * self.misses + f64::from(u8::from(n_right < n_drafted));
        self.budget = MOST_BUDGET.min(self.budget + n_right as f64 - std::mem::take(&mut self.price));
    }

    /// Drafts the most probable tokens of the draft model. It processes at most one prefill chunk in a step. If it
    /// fails, only the speculation of this request ends.
    fn ask_model(&mut self, tokens: &[u32], n: usize, cost: &mut StepCost) -> Vec<u32> {
        let Some(model) = &mut self.model else { return Vec::new() };
        match model.ask(tokens, n, cost) {
            Ok(draft) => draft,
            Err(error) => {
                match model.core.replace_lost(error.into()) {
                    None => self.forget(),
                    Some(error) => {
                        tracing::warn!(error = format!("{error:#}"), "the draft model failed");
                        (self.model, self.mode) = (None, Speculation::Off);
                    }
                }
                Vec::new()
            }
        }
    }
}

impl Model {
    fn ask(&mut self, tokens: &[u32], n: usize, cost: &mut StepCost) -> Result<Vec<u32>, ModelError> {
        let decoder = &self.core.decoder;
        let common = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count().min(tokens.len() - 1);
        let known = self.cache.truncate(common);
        self.tokens.truncate(known);
        let (chunk, context) = (self.core.limits.prefill_chunk, decoder.config().context_length);
        let mut next = &tokens[known..tokens.len().min(known + chunk)];
        let is_behind = known + next.len() < tokens.len();
        let n = n.min(context.saturating_sub(tokens.len()));
        if n == 0 {
            return Ok(Vec::new());
        }
        let mut draft: Vec<u32> = Vec::with_capacity(n);
        let mut token;
        loop {
            let start = Instant::now();
            let logits = if is_behind { LogitsFor::None } else { LogitsFor::Last };
            let logits = decoder.forward(&mut [Chunk { cache: &mut self.cache, tokens: next, logits }])?;
            self.tokens.extend_from_slice(next);
            if is_behind {
                return Ok(Vec::new());
            }
            if next.len() == 1 {
                cost.learn_draft(start.elapsed());
            }
            let best = largest(logits.row(0));
            decoder.recycle(logits);
            // Invalid logits of the draft model do not fail the request, whose own logits decide.
            let Some(best) = best else { return Ok(draft) };
            draft.push(best);
            if draft.len() == n {
                return Ok(draft);
            }
            token = [best];
            next = &token;
        }
    }
}

/// An earlier place where the latest tokens occurred.
#[derive(Debug, PartialEq, Eq)]
struct Match {
    /// Index of the token after them.
    from: usize,
    /// How many tokens match, at most [`MAX_MATCH`].
    n_same: usize,
}

/// The earlier place where the latest tokens occurred: the longest match of at least [`MIN_MATCH`] tokens, and the
/// latest of equally long ones.
fn lookup(tokens: &[u32]) -> Option<Match> {
    let (&last, before) = tokens.split_last()?;
    let mut best: Option<Match> = None;
    for (i, &token) in before.iter().enumerate().rev().take(LOOKUP) {
        if token == last {
            let same = before[..i].iter().rev().zip(before.iter().rev()).take(MAX_MATCH - 1);
            let n_same = 1 + same.take_while(|(a, b)| a == b).count();
            if n_same > best.as_ref().map_or(MIN_MATCH - 1, |best| best.n_same) {
                best = Some(Match { from: i + 1, n_same });
                if n_same == MAX_MATCH {
                    break;
                }
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookup_finds_the_longest_and_latest_match() {
        assert_eq!(lookup(&[]), None);
        assert_eq!(lookup(&[1, 2, 3, 4, 5]), None);
        assert_eq!(lookup(&[1, 2, 9, 1, 2]), None, "two tokens are too few");
        let found = |from, n_same| Some(Match { from, n_same });
        assert_eq!(lookup(&[1, 2, 3, 9, 1, 2, 3]), found(3, 3));
        // The longest wins, and of equals the latest.
        assert_eq!(lookup(&[0, 1, 2, 3, 7, 1, 2, 3, 8, 0, 1, 2, 3]), found(4, 4));
        assert_eq!(lookup(&[1, 2, 3, 7, 1, 2, 3, 8, 0, 1, 2, 3]), found(7, 3));
    }

    #[test]
    fn drafts_continue_a_repetition() {
        let mut drafter = Drafter::new(Speculation::Always, None, false);
        let draft = drafter.draft(&[5, 6, 5, 6, 5, 6], 5, 1, &mut StepCost::default());
        assert_eq!(draft, [5, 6, 5, 6, 5]);
        assert!(Drafter::new(Speculation::Off, None, false).draft(&[5; 9], 5, 1, &mut StepCost::default()).is_empty());
        assert!(drafter.draft(&[5; 9], 0, 1, &mut StepCost::default()).is_empty());
    }

    /// Steps of a millisecond, and a tenth more for each row.
    fn cost() -> StepCost {
        let mut cost = StepCost::default();
        cost.learn(1, Duration::from_micros(1000));
        cost.learn(9, Duration::from_micros(1800));
        cost
    }

    #[test]
    fn drafts_grow_when_accepted_and_stop_when_rejected() {
        let mut cost = cost();
        let text = [5; 40];
        let mut drafter = Drafter::new(Speculation::Auto, None, false);
        let first = drafter.draft(&text, MAX_DRAFT, 1, &mut cost).len();
        assert!(first > 0, "it is tried");
        drafter.learn(first, first);
        drafter.learn(first, first);
        drafter.learn(8, 8);
        assert!(drafter.draft(&text, MAX_DRAFT, 1, &mut cost).len() > first);

        let mut drafter = Drafter::new(Speculation::Auto, None, false);
        let mut rows = 0;
        for _ in 0..200 {
            let n = drafter.draft(&text, MAX_DRAFT, 1, &mut cost).len();
            if n > 0 {
                drafter.learn(n, 0);
            }
            rows += n;
        }
        // Each costs a tenth of a step.
        assert!(rows <= 27, "{rows} rows of 200 steps were for nothing");
    }

    #[test]
    fn few_drafts_are_wasted_after_a_copied_passage() {
        let mut cost = cost();
        let text = [5; 40];
        let mut drafter = Drafter::new(Speculation::Auto, None, false);
        for _ in 0..30 {
            let n = drafter.draft(&text, MAX_DRAFT, 1, &mut cost).len();
            drafter.learn(n, n);
        }
        assert_eq!(drafter.draft(&text, MAX_DRAFT, 1, &mut cost).len(), MAX_DRAFT);
        let mut rows = 0;
        for _ in 0..100 {
            let n = drafter.draft(&text, MAX_DRAFT, 1, &mut cost).len();
            if n > 0 {
                drafter.learn(n, 0);
            }
            rows += n;
        }
        // Four tokens, and one for the steps.
        assert!(rows <= 50, "{rows} rows of 100 steps were for nothing");
        // Where drafts are right again, they are soon as long as before.
        let mut steps = 0;
        while drafter.draft(&text, MAX_DRAFT, 1, &mut cost).len() < MAX_DRAFT {
            let n = drafter.draft(&text, MAX_DRAFT, 1, &mut cost).len();
            if n > 0 {
                drafter.learn(n, n);
            }
            steps += 1;
            assert!(steps < 40, "it is tried again");
        }
    }

    #[test]
    fn longer_matches_give_longer_drafts() {
        let mut cost = cost();
        let first = |n_same: u32, cost: &mut StepCost| {
            let text: Vec<u32> = (0..n_same).chain(100..200).chain(0..n_same).collect();
            Drafter::new(Speculation::Auto, None, false).draft(&text, MAX_DRAFT, 1, cost).len()
        };
        assert!(first(3, &mut cost) > 0);
        assert!(first(12, &mut cost) > first(3, &mut cost));
    }

    #[test]
    fn drafts_are_shorter_in_larger_batches() {
        let mut cost = cost();
        let text = [5; 40];
        let length = |n_rows: usize, cost: &mut StepCost| {
            let mut drafter = Drafter::new(Speculation::Auto, None, false);
            drafter.learn(4, 3);
            drafter.draft(&text, MAX_DRAFT, n_rows, cost).len()
        };
        assert!(length(16, &mut cost) < length(1, &mut cost));
        assert_eq!(length(1, &mut StepCost::default()), 0, "nothing is known of the costs yet");
    }
}
