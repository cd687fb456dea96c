//! Plans which tokens go into the next step.
//!
//! A step takes every sequence that waits for its next token, and prompt tokens within a budget. The budget is a time,
//! converted to tokens by the measured speed of prefill. As long as some request waits for its next token, steps stay
//! short; otherwise, prompts run in chunks of full size. The results do not depend on any of this.
//!
//! Prompts that can be finished within the budget come before all others, shortest first, and with nothing longer next
//! to them. So a short prompt waits at most for the chunk of a long one that is running when it arrives. When such
//! prompts have used a whole budget, the prompt that was served longest ago gets the next one, so long prompts do not
//! starve.

use std::time::Duration;

/// What the planner knows about a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending {
    /// Number of tokens that are not in the cache yet; 1 for a sequence that is decoding.
    pub(super) pending: usize,
    /// The step in which it was last served.
    pub(super) served: u64,
}

/// Plans steps, and keeps the speeds it has measured.
#[derive(Debug, Default)]
pub(super) struct Planner {
    /// Seconds per prompt token, smoothed.
    token_s: Option<f64>,
    /// Tokens that went to short prompts since long ones were left out.
    overtaken: usize,
    steps: u64,
}

/// The target time of a step's prompt tokens while other requests wait for their next token.
const SHARED_STEP: Duration = Duration::from_millis(60);
/// The target time while no request does. It is bounded because others may arrive, and sequences may be cancelled.
/// Longer steps are no faster (`docs/speed.md`).
const OWN_STEP: Duration = Duration::from_millis(250);
/// Smaller chunks would not make a step noticeably shorter.
const MIN_CHUNK: usize = 32;
/// How many times the tokens of the shortest prompt a step has that is its step.
const BESIDE_SHORTEST: usize = 2;

impl Planner {
    /// The number of the step that is being planned.
    pub(super) fn step(&self) -> u64 {
        self.steps
    }

    /// The most prompt tokens of the next step.
    fn budget(&self, somebody_decodes: bool, chunk: usize) -> usize {
        let time = if somebody_decodes { SHARED_STEP } else { OWN_STEP };
        let fits = match self.token_s {
            Some(token_s) => (time.as_secs_f64() / token_s) as usize,
            None if somebody_decodes => 2 * MIN_CHUNK,
            None => 4 * MIN_CHUNK,
        };
        fits.next_multiple_of(16).max(MIN_CHUNK).min(chunk)
    }

    /// For each sequence, how many of its pending tokens go into the next step.
    pub(super) fn plan(&mut self, sequences: &[Pending], chunk: usize) -> Vec<usize> {
        self.steps += 1;
        let mut take: Vec<usize> = sequences.iter().map(|s| usize::from(s.pending == 1)).collect();
        let budget = self.budget(take.contains(&1), chunk);
        let mut prompts: Vec<usize> = (0..sequences.len()).filter(|&i| sequences[i].pending > 1).collect();
        prompts.sort_by_key(|&i| (sequences[i].pending, i));
        let (Some(&shortest), Some(&longest)) = (prompts.first(), prompts.last()) else { return take };
        let may_overtake = budget.saturating_sub(self.overtaken);
        if sequences[shortest].pending <= may_overtake {
            let most = may_overtake.min((BESIDE_SHORTEST * sequences[shortest].pending).max(MIN_CHUNK));
            let mut used = 0;
            for i in prompts {
                let pending = sequences[i].pending;
                if used + pending > most {
                    break;
                }
                take[i] = pending;
                used += pending;
            }
            self.overtaken = if sequences[longest].pending > budget { self.overtaken + used } else { 0 };
        } else {
            self.overtaken = 0;
            prompts.sort_by_key(|&i| (sequences[i].served, i));
            let mut left = budget;
            for i in prompts {
                take[i] = sequences[i].pending.min(left);
                left -= take[i];
            }
        }
        take
    }

    /// Records the time of a step whose work was mostly `n_tokens` prompt tokens.
    pub(super) fn learn(&mut self, n_tokens: usize, time: Duration) {
        let token_s = time.as_secs_f64() / n_tokens.max(1) as f64;
        self.token_s = Some(match self.token_s {
            Some(known) => known + 0.3 * (token_s - known),
            None => token_s,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(pending: &[usize]) -> Vec<Pending> {
        pending.iter().map(|&pending| Pending { pending, served: 0 }).collect()
    }

    fn planner(tokens_per_s: f64) -> Planner {
        Planner { token_s: Some(1.0 / tokens_per_s), ..Planner::default() }
    }

    #[test]
    fn decoding_sequences_are_in_every_step() {
        let mut planner = planner(1000.0);
        for _ in 0..3 {
            let take = planner.plan(&waiting(&[1, 4000, 1, 10]), 512);
            assert_eq!((take[0], take[2]), (1, 1));
            assert!(take[1] + take[3] <= 64, "{take:?}");
        }
    }

    #[test]
    fn single_prompt_gets_a_whole_chunk() {
        assert_eq!(planner(3000.0).plan(&waiting(&[4000]), 512), [512]);
        // A slow model's chunks are smaller, so that others get in.
        assert_eq!(planner(400.0).plan(&waiting(&[4000]), 512), [112]);
        assert_eq!(planner(1.0).plan(&waiting(&[4000]), 512), [MIN_CHUNK]);
        assert_eq!(planner(1500.0).plan(&waiting(&[4000]), 7), [7]);
    }

    #[test]
    fn short_prompts_overtake_without_starving_long_ones() {
        let mut planner = planner(1000.0);
        let mut long = Pending { pending: 10_000, served: 0 };
        let mut served = 0;
        for _ in 0..10 {
            // There are always short ones.
            let take = planner.plan(&[long, Pending { pending: 200, served: 0 }], 512);
            long.pending -= take[0];
            served += usize::from(take[0] > 0);
            assert!(take[0] == 0 || take[0] >= 250, "all or nothing: {take:?}");
        }
        assert_eq!(served, 5);
    }

    #[test]
    fn long_prompts_take_turns() {
        let mut planner = planner(1000.0);
        let mut sequences = waiting(&[5000, 5000, 5000]);
        let mut order = Vec::new();
        for _ in 0..6 {
            let take = planner.plan(&sequences, 512);
            let i = take.iter().position(|&n| n > 0).expect("somebody is served");
            sequences[i] = Pending { pending: sequences[i].pending - take[i], served: planner.step() };
            order.push(i);
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn prompts_of_similar_length_are_batched() {
        assert_eq!(planner(1000.0).plan(&waiting(&[100, 50, 45]), 512), [0, 0, 45]);
        assert_eq!(planner(1000.0).plan(&waiting(&[100, 45, 45]), 512), [0, 45, 45]);
        assert_eq!(planner(1000.0).plan(&waiting(&[10, 12, 9, 11]), 512), [10, 0, 9, 11]);
        assert_eq!(planner(1000.0).plan(&[], 512), [0; 0]);
    }

    #[test]
    fn short_prompts_do_not_wait_for_the_rest_of_long_ones() {
        // 256 would fit as well, and would make it wait for twice as long.
        assert_eq!(planner(1000.0).plan(&waiting(&[256, 2]), 512), [0, 2]);
        // Each of several short ones is served before the next chunk of the long one.
        let mut planner = planner(1000.0);
        assert_eq!(planner.plan(&waiting(&[9000, 150, 60]), 512), [0, 0, 60]);
        assert_eq!(planner.plan(&waiting(&[9000, 150]), 512), [0, 150]);
        assert_eq!(planner.plan(&waiting(&[9000, 100]), 512), [256, 0], "they have had a budget");
        assert_eq!(planner.plan(&waiting(&[9000, 100]), 512), [0, 100]);
    }
}
