//! The engine thread's loop.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use fewbit_model::{DeviceError, KvCache, Logits, ModelError, PrefixTree};

use super::draft::StepCost;
use super::plan::Planner;
use super::sequence::Sequence;
use super::{Call, Core, DEVICES, Metrics, Shared, as_engine};
use crate::completion::{FinishReason, Usage};
use crate::error::{Error, ErrorKind};
use crate::session::Slot;

/// The fewest tokens that must be saved to copy what another request has computed.
const WORTH_SHARING: usize = 16;

pub(super) struct Engine {
    core: Arc<Core>,
    shared: Arc<Shared>,
    /// In order of arrival; preempted requests come first.
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    /// Calls that wait for room.
    calls: VecDeque<Call>,
    prefixes: PrefixTree,
    /// Conversations, which keep their caches between turns; those idle for longest come first.
    slots: VecDeque<Weak<Slot>>,
    planner: Planner,
    cost: StepCost,
    metrics: Metrics,
}

/// The part of one sequence in a step.
struct Share {
    /// Index in `running`.
    index: usize,
    /// Number of tokens that it appends.
    n_tokens: usize,
}

impl Engine {
    pub(super) fn new(core: Arc<Core>, shared: Arc<Shared>) -> Self {
        let prefixes = core.decoder.new_prefix_tree();
        let (waiting, running, calls, slots, planner, cost, metrics) = Default::default();
        Self { core, shared, waiting, running, calls, prefixes, slots, planner, cost, metrics }
    }

    /// Works until the scheduler is dropped.
    pub(super) fn run(mut self) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.turn())) {
                Ok(true) => {}
                Ok(false) => break,
                Err(payload) => {
                    // A bug in this loop. The requests it was working on are lost; later ones are served.
                    let message = panic_message(payload.as_ref());
                    tracing::error!(message, "the engine panicked");
                    for mut sequence in self.waiting.drain(..).chain(self.running.drain(..)) {
                        sequence.fail(ModelError::Internal { message: message.clone() }.into());
                        self.metrics.count_end(sequence.finish_reason());
                        give_back(sequence);
                    }
                }
            }
        }
        self.waiting.drain(..).chain(self.running.drain(..)).for_each(give_back);
    }

    /// One step, with everything before it; returns `false` when the scheduler was dropped.
    fn turn(&mut self) -> bool {
        {
            let mut inbox = self.shared.lock();
            inbox.poked = false;
            if inbox.closed {
                return false;
            }
            let new =
                inbox.requests.drain(..).map(|(request, trace, out)| Sequence::new(&self.core, request, trace, out));
            self.waiting.extend(new);
            inbox.n_waiting = self.waiting.len();
            self.calls.append(&mut inbox.calls);
        }
        self.reap(Instant::now());
        for _ in 0..self.calls.len() {
            let Some(call) = self.calls.pop_front() else { break };
            if call.n_pages > 0 && !self.has_room_for_guest(call.n_pages) {
                self.calls.push_back(call);
                continue;
            }
            // If it panics, the caller notices that there is no answer.
            let _ = catch_unwind(AssertUnwindSafe(|| (call.run)(&self.core, &mut self.prefixes)));
        }
        // Nothing is admitted meanwhile: new requests could keep a large call waiting forever.
        if !self.calls.iter().any(|call| call.n_pages > 0) {
            self.admit();
        }
        // Admitted requests do not wait any more, so others may enter the queue.
        self.shared.lock().n_waiting = self.waiting.len();
        let before = (self.running.len(), self.waiting.len());
        let parts = self.plan();
        if parts.is_empty() && before != (self.running.len(), self.waiting.len()) {
            // Memory was short and running requests have changed: plan again.
        } else if parts.is_empty() {
            self.publish();
            let deadline = self.waiting.iter().chain(&self.running).filter_map(Sequence::deadline).min();
            self.shared.wait(deadline);
        } else {
            self.step(&parts);
            self.reap(Instant::now());
            self.publish();
        }
        true
    }

    /// Removes requests that have ended, were cancelled, or passed their deadline.
    fn reap(&mut self, now: Instant) {
        for sequence in self.waiting.iter_mut().chain(&mut self.running) {
            sequence.check_end(now);
        }
        let mut ended: Vec<Sequence> = self.running.extract_if(.., |sequence| sequence.has_ended()).collect();
        // Only few requests end in one step, and none in most steps.
        if self.waiting.iter().any(Sequence::has_ended) {
            let (gone, stay) = self.waiting.drain(..).partition(Sequence::has_ended);
            self.waiting = stay;
            ended.extend::<VecDeque<_>>(gone);
        }
        for sequence in ended {
            self.metrics.count_end(sequence.finish_reason());
            if sequence.shares_prefix() && self.core.limits.prefix_pages > 0 {
                self.prefixes.insert(sequence.computed(), &sequence.cache);
            }
            if let Some(slot) = sequence.slot() {
                self.slots.push_back(Arc::downgrade(slot));
            }
            give_back(sequence);
        }
        let over = self.prefixes.n_pages().saturating_sub(self.core.limits.prefix_pages);
        self.prefixes.evict(over);
    }

    /// Whether `wanted` pages can be had without taking any from a running request. To get them, frees the prefix
    /// cache, then the caches of idle conversations, then those of waiting requests, then those of draft models.
    fn evict_for(&mut self, wanted: usize) -> bool {
        let lacking = |engine: &Self| engine.pages_lacking(wanted);
        if wanted == 0 || lacking(self) == 0 {
            return true;
        }
        self.prefixes.evict(lacking(self));
        while lacking(self) > 0
            && let Some(slot) = self.slots.pop_front()
        {
            if let Some(slot) = slot.upgrade() {
                slot.forget();
            }
            self.prefixes.evict(lacking(self));
        }
        let mut last = self.waiting.len();
        while lacking(self) > 0 && last > 0 {
            last -= 1;
            self.waiting[last].cache.clear();
        }
        let mut last = self.running.len();
        while lacking(self) > 0 && last > 0 {
            last -= 1;
            self.running[last].forget_draft_cache();
        }
        lacking(self) == 0
    }

    /// Pages above the limit if there were `wanted` more. The caches of draft models count like pages.
    fn pages_lacking(&self, wanted: usize) -> usize {
        let drafts: u64 = self.running.iter().map(Sequence::draft_bytes).sum();
        let pages = self.core.decoder.kv_pages().saturating_add(self.pages_of(drafts)).saturating_add(wanted);
        pages.saturating_sub(self.core.kv_pages_limit())
    }

    /// Number of pages that hold this many bytes.
    fn pages_of(&self, bytes: u64) -> usize {
        usize::try_from(bytes.div_ceil(self.core.decoder.kv_page_bytes().max(1))).unwrap_or(usize::MAX)
    }

    /// Whether there is memory for the next draft of a running sequence. Only the prefix cache makes room for it.
    fn can_draft(&mut self, index: usize) -> bool {
        match self.running[index].draft_bytes_to_grow() {
            None => false,
            Some(0) => true,
            Some(bytes) => {
                let wanted = self.pages_of(bytes);
                self.prefixes.evict(self.pages_lacking(wanted));
                self.pages_lacking(wanted) == 0
            }
        }
    }

    /// Whether there are `n` running requests, and no other work whose end would make room.
    fn is_alone(&self, n: usize) -> bool {
        self.running.len() == n && self.core.guests.load(Ordering::SeqCst) == 0
    }

    /// Whether there is room for a KV cache of no request. Requests whose readers lag behind make room for it, because
    /// nobody knows when they continue; other requests end at some time.
    fn has_room_for_guest(&mut self, n_pages: usize) -> bool {
        while !self.evict_for(n_pages) {
            let Some(index) = self.running.iter().rposition(|sequence| !sequence.wants_more()) else { return false };
            let mut sequence = self.running.remove(index);
            sequence.give_way();
            self.waiting.push_front(sequence);
            self.metrics.preempted += 1;
        }
        true
    }

    /// Admits waiting requests, as long as there is room.
    fn admit(&mut self) {
        while self.running.len() < self.core.limits.max_running
            && let Some(mut sequence) = self.waiting.pop_front()
        {
            let known = self.known_prefix(&mut sequence);
            let needed = known.pages_to_append(sequence.tokens().len() - known.len());
            if !self.evict_for(needed) && !self.is_alone(0) {
                sequence.cache = known;
                self.waiting.push_front(sequence);
                break;
            }
            self.metrics.cached_tokens += known.len() as u64;
            if sequence.has_begun {
                sequence.cache = known;
            } else {
                sequence.begin(known);
            }
            self.running.push(sequence);
        }
    }

    /// The known part of a sequence's tokens, from its conversation or from earlier requests. At least one token is
    /// left to compute, because its logits are needed.
    fn known_prefix(&mut self, sequence: &mut Sequence) -> KvCache {
        let tokens = &sequence.tokens()[..sequence.tokens().len() - 1];
        let loras = sequence.loras().clone();
        let own = sequence.slot().and_then(|slot| slot.take());
        let own = own
            .filter(|own| *own.cache.loras() == loras && !own.cache.is_stale())
            .map(|timeline| timeline.into_prefix(tokens));
        let shares = sequence.shares_prefix() && self.core.limits.prefix_pages > 0;
        let found = shares.then(|| self.prefixes.find(tokens, &loras));
        let kept = std::mem::replace(&mut sequence.cache, self.core.decoder.new_cache_with(&loras));
        let own = own.filter(|own| own.len() > kept.len()).unwrap_or(kept);
        // A prefix that others hold has to be copied to continue it.
        found.filter(|found| found.len() >= own.len() + WORTH_SHARING).unwrap_or(own)
    }

    /// Whether a running sequence should wait for another one that is computing the same tokens right now. Takes over
    /// the other's pages once it has computed all tokens that they have in common.
    fn shares_with_running(&mut self, index: usize) -> bool {
        let sequence = &self.running[index];
        if sequence.pending() <= WORTH_SHARING || !sequence.shares_prefix() || self.core.limits.prefix_pages == 0 {
            return false;
        }
        let tokens = &sequence.tokens()[..sequence.tokens().len() - 1];
        let known = sequence.cache.len();
        let mut best: Option<(usize, usize)> = None;
        let may_share =
            |i: usize, other: &Sequence| i != index && other.shares_prefix() && other.loras() == sequence.loras();
        for (i, other) in self.running.iter().enumerate().filter(|&(i, other)| may_share(i, other)) {
            let common = other.tokens().iter().zip(tokens).take_while(|(a, b)| a == b).count();
            let is_ahead = (other.cache.len(), std::cmp::Reverse(i)) > (known, std::cmp::Reverse(index));
            if is_ahead && common >= known + WORTH_SHARING && best.is_none_or(|(_, most)| common > most) {
                best = Some((i, common));
            }
        }
        let Some((i, common)) = best else { return false };
        let other = &self.running[i];
        if other.cache.len() < common && other.pending() > 1 {
            return other.wants_more();
        }
        let common = common.min(other.cache.len());
        if common >= known + WORTH_SHARING {
            let mut fork = other.cache.fork();
            // Recurrent layers may know less of it.
            let shared = fork.truncate(common);
            if shared >= known + WORTH_SHARING {
                self.metrics.cached_tokens += (shared - known) as u64;
                self.running[index].take_over(fork);
            }
        }
        false
    }

    /// The sequences and tokens of the next step.
    fn plan(&mut self) -> Vec<Share> {
        let now = Instant::now();
        let mut ready = Vec::with_capacity(self.running.len());
        for index in 0..self.running.len() {
            if !self.running[index].wants_more() {
                self.running[index].skip_time(now);
            } else if !self.shares_with_running(index) {
                ready.push(index);
            }
        }
        let waiting: Vec<_> = ready.iter().map(|&index| self.running[index].waiting()).collect();
        let take = self.planner.plan(&waiting, self.core.limits.prefill_chunk);
        let parts = ready.into_iter().zip(take).filter(|&(_, n)| n > 0);
        let mut parts: Vec<Share> = parts.map(|(index, n_tokens)| Share { index, n_tokens }).collect();
        let n_rows = parts.iter().map(|part| part.n_tokens).sum();
        for part in &mut parts {
            let sequence = &self.running[part.index];
            if sequence.is_decoding() && sequence.pending() == 1 && self.can_draft(part.index) {
                let sequence = &mut self.running[part.index];
                part.n_tokens = as_engine(|| sequence.speculate(n_rows, &mut self.cost));
            }
        }
        self.make_room(parts)
    }

    /// Removes sequences from the plan, the latest first, until there are enough pages for the rest; they lose their
    /// caches. A sequence that is alone and finds no room ends, with its context full.
    fn make_room(&mut self, mut parts: Vec<Share>) -> Vec<Share> {
        loop {
            let needed = parts.iter().map(|p| self.running[p.index].cache.pages_to_append(p.n_tokens)).sum();
            if self.evict_for(needed) {
                return parts;
            }
            let mut had_drafts = false;
            for part in &mut parts {
                let sequence = &mut self.running[part.index];
                had_drafts |= sequence.has_draft();
                if sequence.has_draft() {
                    sequence.drop_draft();
                    part.n_tokens = 1;
                }
            }
            if had_drafts {
                continue;
            }
            if self.is_alone(1) {
                self.running[0].finish(FinishReason::Length);
                self.reap(Instant::now());
                return Vec::new();
            }
            // A request whose reader lags behind loses least.
            let rank = |sequence: &Sequence| (!sequence.wants_more(), sequence.arrived());
            let latest = self.running.iter().enumerate().max_by_key(|(_, sequence)| rank(sequence));
            let Some(index) = latest.map(|(index, _)| index) else { return Vec::new() };
            let mut sequence = self.running.remove(index);
            sequence.give_way();
            self.waiting.push_front(sequence);
            self.metrics.preempted += 1;
            parts.retain(|part| part.index != index);
            for part in parts.iter_mut().filter(|part| part.index > index) {
                part.index -= 1;
            }
        }
    }

    /// Runs one forward pass, and chooses a token for every sequence whose tokens are all computed.
    fn step(&mut self, parts: &[Share]) {
        let start = Instant::now();
        let n_tokens: usize = parts.iter().map(|part| part.n_tokens).sum();
        let _span = tracing::trace_span!("step", requests = parts.len(), tokens = n_tokens).entered();
        for part in parts {
            let sequence = &mut self.running[part.index];
            sequence.start_step(start);
            sequence.served = self.planner.step();
        }
        match self.forward(parts) {
            Ok(mut logits) => {
                self.note(parts, start.elapsed());
                self.choose(parts, &mut logits);
                self.core.decoder.recycle(logits);
            }
            Err(error) => {
                if let Some(error) = self.go_on_after(error) {
                    self.run_one_by_one(parts, error);
                }
            }
        }
        self.metrics.steps += 1;
        self.metrics.last_step = start.elapsed();
        self.metrics.longest_step = self.metrics.longest_step.max(self.metrics.last_step);
        self.metrics.step_time += self.metrics.last_step;
    }

    /// Prepares to run a failed step again, if it failed because a device was lost or has no memory left. Returns the
    /// error if that would not help.
    fn go_on_after(&mut self, error: Error) -> Option<Error> {
        if matches!(error.cause(), Some(DeviceError::OutOfMemory { .. })) {
            return self.make_do(error);
        }
        let error = self.core.replace_lost(error);
        if error.is_none() {
            self.forget_caches();
        }
        error
    }

    /// Makes the pages that there are the limit, because a device has no memory for another one. If they are not what
    /// it lacks memory for, returns the error.
    fn make_do(&mut self, error: Error) -> Option<Error> {
        let n_pages = self.core.decoder.kv_pages();
        if n_pages == 0 || n_pages >= self.core.kv_pages_limit() {
            return Some(error);
        }
        self.core.kv_pages_found.store(n_pages, Ordering::Relaxed);
        let error = format!("{error:#}");
        tracing::warn!(target: DEVICES, error, n_pages, "a device is full: the KV cache stays as large as it is");
        None
    }

    /// Drops all keys and values, because some of them are gone. They are recomputed from the tokens.
    fn forget_caches(&mut self) {
        for mut sequence in self.running.drain(..).rev() {
            sequence.give_way();
            self.waiting.push_front(sequence);
        }
        self.waiting.iter_mut().for_each(|sequence| sequence.cache.clear());
        self.prefixes.clear();
        self.slots.drain(..).filter_map(|slot| slot.upgrade()).for_each(|slot| slot.forget());
    }

    /// Runs the parts of a failed step one by one, to find those that fail.
    fn run_one_by_one(&mut self, parts: &[Share], error: Error) {
        if let [part] = parts {
            return self.running[part.index].fail(error);
        }
        tracing::warn!(%error, "a step failed: its parts are run one by one");
        for part in parts {
            let part = Share { index: part.index, n_tokens: part.n_tokens };
            match self.forward(std::slice::from_ref(&part)) {
                Ok(mut logits) => self.choose(&[part], &mut logits),
                Err(error) => self.running[part.index].fail(error),
            }
        }
    }

    fn forward(&mut self, parts: &[Share]) -> Result<Logits, Error> {
        let n_tokens = n_tokens(parts, self.running.len());
        let mut batch = Vec::with_capacity(parts.len());
        for (sequence, n) in self.running.iter_mut().zip(n_tokens).filter(|&(_, n)| n > 0) {
            batch.push(sequence.chunk(n));
        }
        Ok(self.core.decoder.forward(&mut batch)?)
    }

    /// Counts the work of a step.
    fn note(&mut self, parts: &[Share], time: Duration) {
        let n_tokens: usize = parts.iter().map(|part| part.n_tokens).sum();
        let is_prompt = |part: &&Share| !self.running[part.index].is_decoding();
        let of_prompts: usize = parts.iter().filter(is_prompt).map(|part| part.n_tokens).sum();
        if of_prompts >= 32 && 4 * of_prompts >= 3 * n_tokens {
            self.planner.learn(n_tokens, time);
        } else if of_prompts == 0 {
            self.cost.learn(n_tokens, time);
        }
        self.metrics.prompt_tokens += of_prompts as u64;
    }

    /// Chooses tokens for the sequences whose tokens are all computed, on all threads, and passes hidden states to
    /// embeddings. `logits` has the rows of both, in order.
    fn choose(&mut self, parts: &[Share], logits: &mut Logits) {
        let core = &*self.core;
        let n_tokens = n_tokens(parts, self.running.len());
        let hidden = logits.take_hidden();
        let (mut rows, mut hidden) = (logits.values_mut(), &hidden[..]);
        let mut tasks = Vec::with_capacity(parts.len());
        for (sequence, n_tokens) in self.running.iter_mut().zip(n_tokens).filter(|&(_, n)| n > 0) {
            let n = sequence.n_logits();
            if n == 0 {
                let (own, rest) = hidden.split_at(sequence.n_hidden(n_tokens) * core.decoder.config().dim);
                hidden = rest;
                sequence.take_hidden(own);
                sequence.count_time(0);
                continue;
            }
            let (own, rest) = rows.split_at_mut(n * core.decoder.n_vocab());
            rows = rest;
            let before = sequence.usage();
            tasks.push((Mutex::new((sequence, own)), before));
        }
        let run = |(task, _): &(Mutex<(&mut Sequence, &mut [f32])>, Usage)| {
            let mut task = task.lock().unwrap_or_else(PoisonError::into_inner);
            let (sequence, rows) = &mut *task;
            let result = catch_unwind(AssertUnwindSafe(|| as_engine(|| sequence.take_logits(rows))));
            if let Err(payload) = result {
                sequence.fail(ErrorKind::Panicked { message: panic_message(payload.as_ref()) }.into());
            }
        };
        match &tasks[..] {
            [] => {}
            [task] => run(task),
            tasks => core.decoder.pool().for_chunks(tasks.len(), 1, |range, _| tasks[range].iter().for_each(run)),
        }
        for (task, before) in tasks {
            let (sequence, _) = task.into_inner().unwrap_or_else(PoisonError::into_inner);
            sequence.settle(before);
            // Decoding the text and sending it count towards the time of a token.
            sequence.count_time(0);
            let after = sequence.usage();
            self.metrics.generated_tokens += (after.completion - before.completion) as u64;
            self.metrics.drafted_tokens += (after.drafted - before.drafted) as u64;
            self.metrics.accepted_tokens += (after.accepted - before.accepted) as u64;
        }
    }

    /// Updates the metrics that callers see.
    fn publish(&mut self) {
        self.metrics.running = self.running.len();
        self.metrics.prefix_pages = self.prefixes.n_pages();
        let mut inbox = self.shared.lock();
        inbox.n_waiting = self.waiting.len();
        inbox.metrics = self.metrics;
    }
}

/// The number of tokens of each running sequence in a step.
fn n_tokens(parts: &[Share], n_running: usize) -> Vec<usize> {
    let mut n_tokens = vec![0; n_running];
    parts.iter().for_each(|part| n_tokens[part.index] = part.n_tokens);
    n_tokens
}

/// Gives its cache back to a conversation; drops everything else.
fn give_back(sequence: Sequence) {
    if let Some(slot) = sequence.slot().cloned() {
        slot.put(sequence.into_timeline());
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let message = payload.downcast_ref::<String>().map(String::as_str);
    message.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}
