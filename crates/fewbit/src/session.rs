//! The caller's side of a generation, and what a conversation keeps between two generations.
//!
//! A [`Run`] is one generation: [`Run::next`] submits it at its first call, and then receives the pieces from the
//! engine. A [`Slot`] holds the [`Timeline`] of a conversation (its tokens and their keys and values) while no turn is
//! running.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
#[cfg(feature = "async")]
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fewbit_model::KvCache;

use crate::completion::{Completion, FinishReason, Piece, Timings, Usage};
use crate::error::{Error, ErrorKind};
use crate::model::Model;
use crate::options::Options;
use crate::sample::TokenLogprob;
use crate::scheduler::{Event, Generation, Picker, Receiver, Request, Task};
use crate::stop::StopMatcher;
use crate::tools::Plan;

/// Tokens, and the KV cache that holds them.
pub(crate) struct Timeline {
    pub(crate) cache: KvCache,
    pub(crate) tokens: Vec<u32>,
}

impl Timeline {
    /// The cache, cut to the tokens it has in common with the beginning of `tokens`.
    pub(crate) fn into_prefix(mut self, tokens: &[u32]) -> KvCache {
        let common = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        self.cache.truncate(common);
        self.cache
    }
}

/// Where a conversation keeps its timeline; `None` while the engine has it.
pub(crate) struct Slot {
    timeline: Mutex<Option<Timeline>>,
    returned: Condvar,
}

impl Slot {
    pub(crate) fn new(model: &Model) -> Self {
        let timeline = Timeline { cache: model.new_cache(), tokens: Vec::new() };
        Self { timeline: Mutex::new(Some(timeline)), returned: Condvar::new() }
    }

    /// A slot that continues from this timeline.
    pub(crate) fn from(timeline: Timeline) -> Self {
        Self { timeline: Mutex::new(Some(timeline)), returned: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Timeline>> {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the timeline out, for the engine.
    pub(crate) fn take(&self) -> Option<Timeline> {
        self.lock().take()
    }

    /// Puts the timeline back.
    pub(crate) fn put(&self, timeline: Timeline) {
        *self.lock() = Some(timeline);
        self.returned.notify_all();
    }

    /// Empties the cache, if the timeline is here; it will be recomputed.
    pub(crate) fn forget(&self) {
        if let Some(timeline) = &mut *self.lock() {
            timeline.cache.clear();
            timeline.tokens.clear();
        }
    }

    /// Gives access to the timeline; waits until the engine has returned it, which takes at most a step after a turn.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Timeline) -> R) -> R {
        let mut timeline = self.lock();
        loop {
            if let Some(timeline) = &mut *timeline {
                return f(timeline);
            }
            timeline = self.returned.wait(timeline).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// One generation.
pub(crate) struct Run {
    model: Model,
    state: State,
    /// Whether the caller waits only for the end.
    is_quiet: bool,
    timeout: Option<Duration>,
    prompt: Vec<u32>,
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    finish: Option<FinishReason>,
    stop: Option<String>,
    usage: Usage,
    timings: Timings,
    seed: u64,
}

enum State {
    Ready(Box<Request>),
    Running(Receiver),
    Ended,
}

impl Run {
    /// Prepares a generation without computing anything. `plan` has the settings of reasoning, if any.
    pub(crate) fn new(
        model: &Model,
        prompt: Vec<u32>,
        options: &Options,
        slot: Option<Arc<Slot>>,
        plan: Option<Plan>,
    ) -> Result<Self, Error> {
        model.check_tokens(&prompt)?;
        model.check_tokens(&options.data.stop_tokens)?;
        if prompt.is_empty() {
            return Err(ErrorKind::Empty { index: None }.into());
        }
        let context_tokens = model.context_length();
        let room = context_tokens.saturating_sub(prompt.len());
        if room == 0 {
            return Err(ErrorKind::TooLong { index: None, tokens: prompt.len(), context_tokens }.into());
        }
        let max_tokens = options.data.max_tokens.unwrap_or(room).min(room);
        let picker = Picker::new(options, &model.inner.core, plan, &prompt)?;
        let seed = picker.seed();
        let generation = Generation {
            max_tokens,
            ignore_eos: options.data.ignore_eos.unwrap_or(false),
            picker,
            decoder: model.tokenizer().decoder_after(&prompt),
            stops: StopMatcher::new(&options.data.stop),
            stop_tokens: options.data.stop_tokens.clone(),
            stop_when: options.stop_when.clone(),
            text: String::new(),
            shown: options.shown.clone(),
            speculation: options.data.speculation.unwrap_or_default(),
            draft: options.draft.as_ref().map(|draft| draft.drafts_for(model)).transpose()?,
        };
        let request = Request {
            prompt: prompt.clone(),
            deadline: options.deadline,
            cancel: options.cancel.clone(),
            slot,
            shares_prefix: options.data.share_prefix.unwrap_or(true),
            loras: model.decoder().lora_set(&options.loras)?,
            task: Task::Generate(Box::new(generation)),
        };
        Ok(Self {
            model: model.clone(),
            state: if max_tokens == 0 { State::Ended } else { State::Ready(Box::new(request)) },
            is_quiet: false,
            timeout: options.data.timeout,
            usage: Usage { prompt: prompt.len(), ..Usage::default() },
            timings: Timings { load: model.load_time(), ..Timings::default() },
            prompt,
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            finish: (max_tokens == 0).then_some(FinishReason::Length),
            stop: None,
            seed,
        })
    }

    /// Declares, before the start, that nobody reads the pieces as they come.
    pub(crate) fn wait_for_end(&mut self) {
        self.is_quiet = true;
    }

    /// The next piece; `None` when the generation has ended.
    pub(crate) fn next(&mut self) -> Option<Result<Piece, Error>> {
        if let Err(error) = self.start() {
            return Some(Err(error));
        }
        let State::Running(receiver) = &self.state else { return None };
        let event = receiver.recv();
        self.take(event)
    }

    /// Like [`next`](Self::next), without blocking.
    #[cfg(feature = "async")]
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, Error>>> {
        if let Err(error) = self.start() {
            return Poll::Ready(Some(Err(error)));
        }
        let State::Running(receiver) = &self.state else { return Poll::Ready(None) };
        receiver.poll_recv(context).map(|event| self.take(event))
    }

    /// Submits the request, unless that was done already.
    pub(crate) fn start(&mut self) -> Result<(), Error> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Ready(mut request) => {
                let timeout = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
                request.deadline = [request.deadline, timeout].into_iter().flatten().min();
                let submitted = self.model.inner.scheduler.submit(*request, self.is_quiet).map_err(|refused| refused.0);
                self.state = State::Running(submitted.inspect_err(|_| self.finish = Some(FinishReason::Cancelled))?);
            }
            state => self.state = state,
        }
        Ok(())
    }

    /// Handles an event, which has a piece or is the end.
    fn take(&mut self, event: Event) -> Option<Result<Piece, Error>> {
        let Event { piece, vector: _, end, stop, usage, timings } = event;
        if end.is_some() {
            self.state = State::Ended;
            self.stop = stop;
        }
        match end {
            None => {}
            Some(Ok(reason)) => self.finish = Some(reason),
            Some(Err(error)) => {
                self.finish = Some(FinishReason::Cancelled);
                return Some(Err(error));
            }
        }
        (self.usage, self.timings) = (usage, timings);
        let piece = piece?;
        self.text += &piece.text;
        self.tokens.extend(&piece.token_ids);
        self.logprobs.extend_from_slice(&piece.logprobs);
        Some(Ok(piece))
    }

    /// Ends the generation here, as complete.
    pub(crate) fn stop(&mut self) {
        self.state = State::Ended;
        self.finish = Some(FinishReason::EndOfGeneration);
    }

    /// The text so far.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    pub(crate) fn stop_string(&self) -> Option<&str> {
        self.stop.as_deref()
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    pub(crate) fn timings(&self) -> Timings {
        self.timings
    }

    pub(crate) fn prompt_tokens(&self) -> &[u32] {
        &self.prompt
    }

    /// The generation so far.
    pub(crate) fn completion(&mut self) -> Completion {
        Completion {
            text: std::mem::take(&mut self.text),
            tool_calls: Vec::new(),
            malformed_calls: Vec::new(),
            reasoning: String::new(),
            tokens: std::mem::take(&mut self.tokens),
            logprobs: std::mem::take(&mut self.logprobs),
            prompt_logprobs: Vec::new(),
            prompt_tokens: std::mem::take(&mut self.prompt),
            finish_reason: self.finish.unwrap_or(FinishReason::Cancelled),
            usage: self.usage,
            timings: self.timings,
            seed: self.seed,
        }
    }
}
