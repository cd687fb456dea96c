//! A request inside the engine: its tokens, its cache, and the handling of chosen tokens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fewbit_model::{Chunk, KvCache, LogitsFor, LoraSet};
use fewbit_tokenizer::StreamDecoder;

use super::Core;
use super::cancel::CancelToken;
use super::draft::{Drafter, MAX_DRAFT, Speculation, StepCost};
use super::mailbox::{Event, Sender};
use super::picker::{Picked, Picker};
use super::plan::Pending;
use super::pooler::Pooler;
use super::trace::Trace;
use crate::completion::{FinishReason, Piece, Timings, Usage};
use crate::error::Error;
use crate::session::{Slot, Timeline};
use crate::stop::{SoFar, StopMatcher, StopWhen};

/// A request to the engine.
pub(crate) struct Request {
    /// At least one token; all of them are in the vocabulary.
    pub(crate) prompt: Vec<u32>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) cancel: Option<CancelToken>,
    /// Where the cache comes from and is returned to, if the request belongs to a conversation.
    pub(crate) slot: Option<Arc<Slot>>,
    /// Whether it shares its prefix with other requests, in both directions. Never for embeddings, which need a hidden
    /// state of every token; caches have none.
    pub(crate) shares_prefix: bool,
    pub(crate) loras: LoraSet,
    pub(crate) task: Task,
}

/// What the request is for.
pub(crate) enum Task {
    /// Text that continues the prompt.
    Generate(Box<Generation>),
    /// A vector of the prompt.
    Embed(Pooler),
}

/// The settings and the state of generated text.
pub(crate) struct Generation {
    /// At least 1.
    pub(crate) max_tokens: usize,
    pub(crate) ignore_eos: bool,
    pub(crate) picker: Picker,
    /// Decodes the tokens after the prompt to text.
    pub(crate) decoder: StreamDecoder,
    pub(crate) stops: StopMatcher,
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) stop_when: Option<StopWhen>,
    /// The text emitted so far, if there is a stop condition that reads it.
    pub(crate) text: String,
    /// Control tokens that are shown in the text: those that mark reasoning and calls.
    pub(crate) shown: Vec<u32>,
    pub(crate) speculation: Speculation,
    /// The draft model, with the same vocabulary.
    pub(crate) draft: Option<Arc<Core>>,
}

impl Request {
    /// The most tokens that it generates.
    pub(super) fn max_tokens(&self) -> usize {
        if let Task::Generate(generation) = &self.task { generation.max_tokens } else { 0 }
    }

    /// The fewest positions that it takes.
    pub(super) fn n_positions(&self) -> usize {
        self.prompt.len() + usize::from(matches!(self.task, Task::Generate(_)))
    }
}

impl Generation {
    /// The text that was held back, at the end of the generation. A stop string in it still counts.
    fn flush(&mut self) -> String {
        let mut rest = self.stops.push(&self.decoder.finish());
        if !self.stops.is_stopped() {
            rest += &self.stops.finish();
        }
        rest
    }
}

/// A request in the queue or running.
pub(super) struct Sequence {
    request: Request,
    trace: Trace,
    core: Arc<Core>,
    /// The tokens of the prompt and of the generated text.
    tokens: Vec<u32>,
    pub(super) cache: KvCache,
    out: Sender,
    usage: Usage,
    timings: Timings,
    pub(super) served: u64,
    arrived: Instant,
    /// The time up to which its timings are counted.
    counted: Instant,
    /// Whether the picker has seen the prompt, and the prefix cache was searched for it.
    pub(super) has_begun: bool,
    drafter: Drafter,
    /// The last token and the tokens drafted after it, for the current step; empty without a draft.
    speculated: Vec<u32>,
    /// How many of the drafted tokens are forced by a constraint; they come first.
    n_forced: usize,
    /// How it ended; an error is sent to the reader.
    end: Option<Result<FinishReason, Error>>,
    failed: bool,
}

impl Sequence {
    pub(super) fn new(core: &Arc<Core>, request: Request, trace: Trace, out: Sender) -> Self {
        let now = Instant::now();
        Self {
            tokens: request.prompt.clone(),
            cache: core.decoder.new_cache_with(&request.loras),
            usage: Usage { prompt: request.prompt.len(), ..Usage::default() },
            timings: Timings { load: core.load_time, ..Timings::default() },
            served: 0,
            arrived: now,
            counted: now,
            has_begun: false,
            drafter: match &request.task {
                Task::Generate(generation) => {
                    Drafter::new(generation.speculation, generation.draft.clone(), core.decoder.has_drafts())
                }
                Task::Embed(_) => Drafter::new(Speculation::Off, None, false),
            },
            speculated: Vec::new(),
            n_forced: 0,
            end: None,
            failed: false,
            core: Arc::clone(core),
            request,
            trace,
            out,
        }
    }

    /// Starts with the known part of the prompt; at least its last token is computed, because its logits are needed.
    pub(super) fn begin(&mut self, known: KvCache) {
        self.has_begun = true;
        self.cache = known;
        self.usage.cached = self.cache.len();
        self.timings.prefill_tokens = self.pending();
        if let Task::Generate(generation) = &mut self.request.task {
            generation.picker.begin(&self.request.prompt);
        }
    }

    /// All tokens, computed or not.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The tokens that are in the cache.
    pub(super) fn computed(&self) -> &[u32] {
        &self.tokens[..self.cache.len()]
    }

    /// Drafts tokens if the sequence waits for its next token; returns how many tokens it has in the next step.
    /// `n_rows` is the number of rows of the step without drafts.
    pub(super) fn speculate(&mut self, n_rows: usize, cost: &mut StepCost) -> usize {
        self.speculated.clear();
        let Task::Generate(generation) = &mut self.request.task else { return 1 };
        let room = self.core.decoder.config().context_length - self.tokens.len();
        let left = generation.max_tokens.saturating_sub(self.usage.completion + 1).min(room).min(MAX_DRAFT);
        if left == 0 || self.drafter.is_off() {
            return 1;
        }
        let mut forced = generation.picker.forced(&self.trace);
        forced.truncate(left);
        self.n_forced = forced.len();
        let n_tokens = self.tokens.len();
        self.tokens.extend(&forced);
        let (left, n_rows) = (left - self.n_forced, n_rows + self.n_forced);
        let more = match self.drafter.is_own() {
            true => {
                let own = (&self.core.decoder, &mut self.cache);
                let tokens = &self.tokens[own.1.len()..];
                self.drafter.draft_own(own, tokens, left, n_rows, cost)
            }
            false => self.drafter.draft(&self.tokens, left, n_rows, cost),
        };
        self.tokens.truncate(n_tokens);
        if !(forced.is_empty() && more.is_empty()) {
            self.speculated.extend(self.tokens.last());
            self.speculated.extend(forced);
            self.speculated.extend(more);
            self.count_time(0);
        }
        self.speculated.len().max(1)
    }

    /// Bytes that its draft model's cache takes.
    pub(super) fn draft_bytes(&self) -> u64 {
        self.drafter.bytes()
    }

    /// Bytes that its draft model's cache, or its own for drafts of its own model, grows by with the next draft; `None` if
    /// the draft model has no room for it.
    pub(super) fn draft_bytes_to_grow(&self) -> Option<u64> {
        if self.drafter.is_own() {
            let pages = self.cache.pages_to_append(1 + MAX_DRAFT);
            return Some(pages as u64 * self.core.decoder.kv_page_bytes());
        }
        self.drafter.bytes_to_grow(self.tokens.len())
    }

    /// Drops its draft model's cache.
    pub(super) fn forget_draft_cache(&mut self) {
        self.drafter.forget();
    }

    pub(super) fn has_draft(&self) -> bool {
        !self.speculated.is_empty()
    }

    /// Drops the draft, so that the next step runs without it.
    pub(super) fn drop_draft(&mut self) {
        self.speculated.clear();
    }

    /// Its next `n` tokens, for a step. Logits are needed if no tokens are left after these; for an embedding, the
    /// hidden states of all tokens.
    pub(super) fn chunk(&mut self, n: usize) -> Chunk<'_> {
        if !self.speculated.is_empty() {
            return Chunk { cache: &mut self.cache, tokens: &self.speculated, logits: LogitsFor::All };
        }
        let (from, to) = (self.cache.len(), self.cache.len() + n);
        let logits = match self.request.task {
            Task::Embed(_) => LogitsFor::Hidden,
            Task::Generate(_) if to == self.tokens.len() => LogitsFor::Last,
            Task::Generate(_) => LogitsFor::None,
        };
        Chunk { cache: &mut self.cache, tokens: &self.tokens[from..to], logits }
    }

    /// Number of rows of logits that the current step gives for it, once its chunk is in the cache.
    pub(super) fn n_logits(&self) -> usize {
        match self.request.task {
            Task::Embed(_) => 0,
            Task::Generate(_) if !self.speculated.is_empty() => self.speculated.len(),
            Task::Generate(_) => usize::from(self.pending() == 0),
        }
    }

    /// Number of hidden states that the current step gives for it, if it took `n_tokens`.
    pub(super) fn n_hidden(&self, n_tokens: usize) -> usize {
        if matches!(self.request.task, Task::Embed(_)) { n_tokens } else { 0 }
    }

    /// The tokens and the cache that a conversation keeps.
    pub(super) fn into_timeline(mut self) -> Timeline {
        self.tokens.truncate(self.cache.len());
        Timeline { cache: self.cache, tokens: self.tokens }
    }

    pub(super) fn slot(&self) -> Option<&Arc<Slot>> {
        self.request.slot.as_ref()
    }

    pub(super) fn shares_prefix(&self) -> bool {
        self.request.shares_prefix
    }

    /// Number of tokens that are not in the cache yet.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.cache.len()
    }

    pub(super) fn waiting(&self) -> Pending {
        Pending { pending: self.pending(), served: self.served }
    }

    /// Whether a token has been generated.
    pub(super) fn is_decoding(&self) -> bool {
        self.usage.completion > 0
    }

    /// The adapters that it is computed with.
    pub(super) fn loras(&self) -> &LoraSet {
        &self.request.loras
    }

    pub(super) fn arrived(&self) -> Instant {
        self.arrived
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.request.deadline
    }

    pub(super) fn wants_more(&self) -> bool {
        self.out.has_room()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Why it ended; `None` if it has not, or failed.
    pub(super) fn finish_reason(&self) -> Option<FinishReason> {
        self.end.as_ref().and_then(|end| end.as_ref().ok().copied()).filter(|_| !self.failed)
    }

    /// Ends the request if it was cancelled, its reader is gone, or its deadline passed.
    pub(super) fn check_end(&mut self, now: Instant) {
        if self.end.is_some() {
            return;
        }
        if self.out.is_cancelled() || self.request.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
            self.finish(FinishReason::Cancelled);
        } else if self.request.deadline.is_some_and(|deadline| deadline <= now) {
            self.finish(FinishReason::Timeout);
        }
    }

    /// Ends the request, and emits the text that was held back.
    pub(super) fn finish(&mut self, reason: FinishReason) {
        if self.end.is_none() {
            self.end = Some(Ok(reason));
            let text = match &mut self.request.task {
                Task::Generate(generation) => generation.flush(),
                Task::Embed(_) => String::new(),
            };
            self.note_stop();
            let piece = (!text.is_empty()).then(|| Piece { text, ..Piece::default() });
            self.send(piece);
        }
    }

    pub(super) fn fail(&mut self, error: Error) {
        if self.end.is_none() {
            self.end = Some(Err(error));
            self.send(None);
        }
    }

    /// Lets the picker choose from `rows` (`[n][n_vocab]`), which follow the last `n` computed tokens, of which all but
    /// the first were drafted. Continues as long as the picker chooses the drafted tokens.
    pub(super) fn take_logits(&mut self, rows: &mut [f32]) {
        self.usage.drafted += self.speculated.len().saturating_sub(1);
        let n_vocab = self.core.decoder.n_vocab();
        for (i, row) in rows.chunks_exact_mut(n_vocab).enumerate() {
            let Task::Generate(generation) = &mut self.request.task else { return };
            match generation.picker.pick(row, &self.trace) {
                Err(error) => return self.fail(error),
                Ok(picked) => {
                    let is_right = self.speculated.get(i + 1) == Some(&picked.token);
                    self.usage.accepted += usize::from(is_right);
                    self.count_time(1);
                    self.push(picked);
                    if self.end.is_some() || !is_right {
                        return;
                    }
                }
            }
        }
    }

    /// Takes the hidden states `[n][dim]` of the last `n` computed tokens; ends the request with the last token.
    pub(super) fn take_hidden(&mut self, rows: &[f32]) {
        let computed = self.cache.len();
        let Task::Embed(pooler) = &mut self.request.task else { return };
        pooler.push(computed, rows);
        if computed == self.tokens.len() && self.end.is_none() {
            self.end = Some(Ok(FinishReason::EndOfGeneration));
            let vector = pooler.finish();
            self.count_time(0);
            self.send_with(None, Some(vector));
        }
    }

    /// After a step: removes wrongly drafted tokens from the cache. `before` is its usage before the step.
    pub(super) fn settle(&mut self, before: Usage) {
        if !self.speculated.is_empty() {
            let n_drafted = self.speculated.len() - 1 - self.n_forced;
            if let Some(n_right) = (self.usage.accepted - before.accepted).checked_sub(self.n_forced)
                && n_drafted > 0
            {
                self.drafter.learn(n_drafted, n_right);
            }
            self.cache.truncate(self.tokens.len() - 1);
            self.speculated.clear();
        }
    }

    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// Adds a chosen token to the text, and sends the resulting piece.
    fn push(&mut self, picked: Picked) {
        let Picked { token, logprob, is_last } = picked;
        let tokenizer = &self.core.tokenizer;
        let Task::Generate(generation) = &mut self.request.task else { return };
        let times = generation.picker.times();
        (self.timings.sample, self.timings.constrain) = (times.sample, times.constrain);
        // At the end of a constrained text there is no continuation, even with `ignore_eos`.
        if (is_last || !generation.ignore_eos) && tokenizer.is_end_of_generation(token) {
            return self.finish(FinishReason::EndOfGeneration);
        }
        if generation.stop_tokens.contains(&token) {
            return self.finish(FinishReason::StopToken);
        }
        self.tokens.push(token);
        self.usage.completion += 1;
        self.trace.go_on();
        let mut decoded = generation.decoder.push(tokenizer, token);
        if generation.shown.contains(&token) {
            decoded += &generation.decoder.finish();
            decoded += tokenizer.token_text(token).unwrap_or_default();
        }
        let mut text = generation.stops.push(&decoded);
        let is_enough = generation.stop_when.as_ref().is_some_and(|condition| {
            generation.text += &text;
            let tokens = &self.tokens[self.request.prompt.len()..];
            condition.is_enough(&SoFar::new(&generation.text, tokens))
        });
        let end = match () {
            () if is_last => Some(FinishReason::EndOfGeneration),
            () if is_enough => Some(FinishReason::StopCondition),
            () if self.usage.completion >= generation.max_tokens => Some(FinishReason::Length),
            () => None,
        };
        if let Some(end) = end.filter(|_| !generation.stops.is_stopped()) {
            self.end = Some(Ok(end));
            text += &generation.flush();
        }
        self.note_stop();
        let logprobs = logprob.into_iter().collect();
        self.send(Some(Piece { text, token_ids: vec![token], logprobs, ..Piece::default() }));
    }

    /// A stop string takes precedence over all other reasons to end.
    fn note_stop(&mut self) {
        if matches!(&self.request.task, Task::Generate(generation) if generation.stops.is_stopped()) {
            self.end = Some(Ok(FinishReason::StopString));
        }
    }

    fn send(&mut self, piece: Option<Piece>) {
        self.send_with(piece, None);
    }

    fn send_with(&mut self, piece: Option<Piece>, vector: Option<Vec<f32>>) {
        let end = match &mut self.end {
            None => None,
            Some(Ok(reason)) => Some(Ok(*reason)),
            Some(end) => {
                self.failed = true;
                Some(std::mem::replace(end, Ok(FinishReason::Cancelled)))
            }
        };
        if let Some(end) = &end {
            self.trace.end(&self.core, end, &self.usage, &self.timings, &self.tokens);
        }
        let stop = match (&end, &self.request.task) {
            (Some(Ok(FinishReason::StopString)), Task::Generate(generation)) => {
                generation.stops.found().map(str::to_owned)
            }
            _ => None,
        };
        self.out.send(Event { piece, vector, end, stop, usage: self.usage, timings: self.timings });
    }

    /// Called before a step that includes it: the time until then was waiting.
    pub(super) fn start_step(&mut self, now: Instant) {
        self.timings.queue += now.saturating_duration_since(self.counted);
        self.counted = now;
        self.trace.take_up(self.cache.len(), self.pending());
    }

    /// Drops its cache, and waits to be recomputed.
    pub(super) fn give_way(&mut self) {
        self.drop_draft();
        self.drafter.forget();
        self.cache.clear();
        self.trace.wait(self.usage.completion);
    }

    /// Called before a step that leaves it out because its reader lags behind: that time is not counted.
    pub(super) fn skip_time(&mut self, now: Instant) {
        self.counted = now;
    }

    /// Counts the time since the step began, which gave `n_tokens` tokens: as prefill up to the first token, and as
    /// decode after it.
    pub(super) fn count_time(&mut self, n_tokens: usize) {
        let now = Instant::now();
        let time: Duration = now.saturating_duration_since(self.counted);
        self.counted = now;
        if self.is_decoding() {
            self.timings.decode += time;
            self.timings.decode_tokens += n_tokens;
        } else {
            self.timings.prefill += time;
        }
    }

    /// Continues from the cache of another sequence with the same tokens.
    pub(super) fn take_over(&mut self, known: KvCache) {
        let gained = known.len() - self.cache.len();
        self.cache = known;
        if !self.is_decoding() {
            self.usage.cached += gained;
            self.timings.prefill_tokens -= gained;
        }
    }
}
