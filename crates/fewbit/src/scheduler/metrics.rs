//! Counters of an engine: see [`Model::metrics`](crate::Model::metrics).

use std::time::Duration;

use crate::completion::{FinishReason, rate};

/// What an engine is doing now, and what it has done since the model was loaded.
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
    /// Requests that are running.
    pub running: usize,
    /// Requests that are waiting in the queue.
    pub waiting: usize,
    /// Requests that ended, for whatever reason.
    pub ended: u64,
    /// Ended requests by reason, and requests that were refused.
    pub outcomes: Outcomes,
    /// Pages of KV cache in use, those of the prefix cache included. A shared page counts once.
    pub kv_pages: usize,
    /// The most pages there may be: [`ModelBuilder::kv_memory`](crate::ModelBuilder::kv_memory), or as many as a GPU had
    /// memory for.
    pub kv_pages_limit: usize,
    /// How many of `kv_pages` are in the prefix cache. They are freed when requests need them.
    pub prefix_pages: usize,
    /// Size of a page, in bytes.
    pub kv_page_bytes: u64,
    /// Size of the weights in memory, in bytes.
    pub weight_bytes: u64,
    /// How many of `weight_bytes` are on GPUs: see [`Model::placement`](crate::Model::placement).
    pub gpu_weight_bytes: u64,
    /// Number of forward passes.
    pub steps: u64,
    /// Total time of all steps, sampling included.
    pub step_time: Duration,
    /// Time of the latest step.
    pub last_step: Duration,
    /// Time of the longest step.
    pub longest_step: Duration,
    /// Prompt tokens computed.
    pub prompt_tokens: u64,
    /// Prompt tokens that were in the KV cache already.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Tokens that were drafted: see [`Speculation`](crate::Speculation).
    pub drafted_tokens: u64,
    /// Drafted tokens that were accepted.
    pub accepted_tokens: u64,
    /// How many times a request lost its KV cache because memory was short, and had to be recomputed.
    pub preempted: u64,
    /// How many times a device was lost, so that what was on it moved to the CPU.
    pub devices_lost: u64,
}

/// Ended requests by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcomes {
    /// Complete: ended by the model or by a stop condition.
    pub stop: u64,
    /// Ended because the token limit, the context or the memory was used up.
    pub length: u64,
    /// Ended by their deadline.
    pub timeout: u64,
    /// Cancelled, or their streams dropped.
    pub cancelled: u64,
    /// Ended by an error.
    pub failed: u64,
    /// Refused because the queue was full. They never ran and do not count as ended.
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
    /// Counts a request that ended; `None` stands for an error.
    pub(super) fn count_end(&mut self, end: Option<FinishReason>) {
        self.ended += 1;
        self.outcomes.count(end);
    }

    /// Size of the KV cache in use, in bytes.
    pub fn kv_bytes(&self) -> u64 {
        (self.kv_pages as u64).saturating_mul(self.kv_page_bytes)
    }

    /// Pages that can still be allocated before requests have to wait, or the prefix cache has to shrink.
    pub fn kv_pages_free(&self) -> usize {
        self.kv_pages_limit.saturating_sub(self.kv_pages)
    }

    /// The change since an earlier snapshot: counts and sums are differences, all other fields have their current
    /// value.
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
            devices_lost: self.devices_lost.saturating_sub(earlier.devices_lost),
            ..*self
        }
    }

    /// Generated tokens of all requests per second of step time, prefill included; 0 if nothing was computed.
    pub fn generated_per_second(&self) -> f64 {
        rate(self.generated_tokens, self.step_time)
    }
}
