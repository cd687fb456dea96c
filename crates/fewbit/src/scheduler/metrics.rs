//! What can be counted of an engine: see [`Model::metrics`](crate::Model::metrics).

use std::time::Duration;

use crate::completion::{FinishReason, rate};

/// What an engine is doing, and has done since the model was loaded.
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// let model = fewbit::Model::load("smollm2-135m-instruct")?;
/// let before = model.metrics();
/// model.generate("Once upon a time").max_tokens(64).run()?;
/// let now = model.metrics();
/// println!("{} running, {} waiting, {} MiB of KV cache", now.running, now.waiting, now.kv_bytes() >> 20);
/// println!("{:.0} tokens/s since then", now.since(&before).generated_per_second());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Requests that are being computed.
    pub running: usize,
    /// Requests that wait to be.
    pub waiting: usize,
    /// Requests that ended, in whatever way.
    pub ended: u64,
    /// The same by how they ended, and requests that were refused.
    pub outcomes: Outcomes,
    /// Pages of keys and values that exist, those of known prefixes included. A shared page counts once.
    pub kv_pages: usize,
    /// Pages that there may be: [`ModelBuilder::kv_memory`](crate::ModelBuilder::kv_memory).
    pub kv_pages_limit: usize,
    /// Of `kv_pages`, pages that known prefixes hold. They are given up when others need them.
    pub prefix_pages: usize,
    /// Bytes of a page.
    pub kv_page_bytes: u64,
    /// Bytes of the weights in memory.
    pub weight_bytes: u64,
    /// Forward passes.
    pub steps: u64,
    /// How long they took together, the choice of tokens included.
    pub step_time: Duration,
    /// How long the latest took.
    pub last_step: Duration,
    /// How long the longest took.
    pub longest_step: Duration,
    /// Prompt tokens computed.
    pub prompt_tokens: u64,
    /// Prompt tokens that were known already.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Tokens that were computed because they were expected.
    pub drafted_tokens: u64,
    /// Of these, tokens that came.
    pub accepted_tokens: u64,
    /// Times that a request gave up its cache for want of memory, to be computed again.
    pub preempted: u64,
}

/// Requests by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcomes {
    /// Complete: by the model, or by a stop string.
    pub stop: u64,
    /// Cut by a limit of tokens or memory.
    pub length: u64,
    /// Over their deadline.
    pub timeout: u64,
    /// Cancelled, or their streams dropped.
    pub cancelled: u64,
    /// Ended by an error.
    pub failed: u64,
    /// Never begun, because too many were waiting. They did not end, and are not among those that did.
    pub refused: u64,
}

impl Outcomes {
    fn count(&mut self, end: Option<FinishReason>) {
        *match end {
            Some(
                FinishReason::EndOfGeneration
                | FinishReason::ToolCalls
                | FinishReason::StopString
                | FinishReason::StopToken
                | FinishReason::StopCondition,
            ) => &mut self.stop,
            Some(FinishReason::Length) => &mut self.length,
            Some(FinishReason::Timeout) => &mut self.timeout,
            Some(FinishReason::Cancelled) => &mut self.cancelled,
            None => &mut self.failed,
        } += 1;
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            stop: self.stop.saturating_sub(earlier.stop),
            length: self.length.saturating_sub(earlier.length),
            timeout: self.timeout.saturating_sub(earlier.timeout),
            cancelled: self.cancelled.saturating_sub(earlier.cancelled),
            failed: self.failed.saturating_sub(earlier.failed),
            refused: self.refused.saturating_sub(earlier.refused),
        }
    }
}

impl Metrics {
    /// Counts a request that ended; `None` is an error.
    pub(super) fn count_end(&mut self, end: Option<FinishReason>) {
        self.ended += 1;
        self.outcomes.count(end);
    }

    /// Bytes of keys and values that exist.
    pub fn kv_bytes(&self) -> u64 {
        (self.kv_pages as u64).saturating_mul(self.kv_page_bytes)
    }

    /// Pages that can still be made before requests have to wait, or known prefixes to go.
    pub fn kv_pages_free(&self) -> usize {
        self.kv_pages_limit.saturating_sub(self.kv_pages)
    }

    /// What was added since an earlier look: counts and sums are differences, everything else is as it is now.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            ended: self.ended.saturating_sub(earlier.ended),
            outcomes: self.outcomes.since(&earlier.outcomes),
            steps: self.steps.saturating_sub(earlier.steps),
            step_time: self.step_time.saturating_sub(earlier.step_time),
            prompt_tokens: self.prompt_tokens.saturating_sub(earlier.prompt_tokens),
            cached_tokens: self.cached_tokens.saturating_sub(earlier.cached_tokens),
            generated_tokens: self.generated_tokens.saturating_sub(earlier.generated_tokens),
            drafted_tokens: self.drafted_tokens.saturating_sub(earlier.drafted_tokens),
            accepted_tokens: self.accepted_tokens.saturating_sub(earlier.accepted_tokens),
            preempted: self.preempted.saturating_sub(earlier.preempted),
            ..*self
        }
    }

    /// Generated tokens of all requests per second of computing, prompts included; 0 if nothing was computed.
    pub fn generated_per_second(&self) -> f64 {
        rate(self.generated_tokens, self.step_time)
    }
}
