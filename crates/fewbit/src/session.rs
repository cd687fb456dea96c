//! One timeline of tokens and its KV cache, and the loop that extends it.
//!
//! A [`Session`] is what outlives a generation: a conversation keeps one over all its turns. A [`Run`]
//! is one generation on it, advanced by [`Run::step`]: prefill what the cache lacks, then one token
//! per step. Nothing happens between steps, so a run that is not stepped any more is cancelled, and
//! the session holds exactly the tokens that were computed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fewbit_model::{KvCache, LogitsFor};
use fewbit_tokenizer::StreamDecoder;

use crate::completion::{Completion, FinishReason, Piece, Timings, Usage};
use crate::error::Error;
use crate::model::Inner;
use crate::options::Options;
use crate::sample::Sampler;
use crate::stop::StopMatcher;

/// A KV cache and the tokens that are in it.
pub(crate) struct Session {
    cache: KvCache,
    tokens: Vec<u32>,
    sampler: Sampler,
}

impl Session {
    pub(crate) fn new(model: &Inner, options: &Options) -> Result<Self, Error> {
        Ok(Self { cache: model.new_cache(), tokens: Vec::new(), sampler: Sampler::new(&options.sampling)? })
    }

    /// How many tokens are in the cache.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Keeps what the cache has in common with `prompt`, but for at least one token of it, whose
    /// logits are needed. Returns how many tokens are kept.
    fn keep_common(&mut self, prompt: &[u32]) -> usize {
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let keep = common.min(prompt.len().saturating_sub(1));
        self.cache.truncate(keep);
        self.tokens.truncate(keep);
        keep
    }

    /// Extends the timeline by `tokens`. After a failure it is as it was before.
    fn extend(
        &mut self,
        model: &Inner,
        tokens: &[u32],
        want: LogitsFor,
        queue: &mut Duration,
    ) -> Result<fewbit_model::Logits, Error> {
        let logits = model.step(&mut self.cache, tokens, want, queue).inspect_err(|_| {
            self.cache.truncate(self.tokens.len());
        })?;
        self.tokens.extend_from_slice(tokens);
        Ok(logits)
    }
}

/// One generation.
pub(crate) struct Run {
    prompt: Vec<u32>,
    /// The last sampled token, which the cache does not have yet.
    pending: Option<u32>,
    max_tokens: usize,
    ignore_eos: bool,
    decoder: StreamDecoder,
    stops: StopMatcher,
    text: String,
    tokens: Vec<u32>,
    finish: Option<FinishReason>,
    usage: Usage,
    timings: Timings,
    seed: u64,
}

impl Run {
    /// Prepares a generation; computes nothing yet.
    pub(crate) fn new(
        model: &Inner,
        session: &mut Session,
        prompt: Vec<u32>,
        options: &Options,
    ) -> Result<Self, Error> {
        let n_vocab = model.tokenizer.n_vocab();
        if let Some(&token) = prompt.iter().find(|&&token| token as usize >= n_vocab) {
            return Err(Error::TokenOutOfRange { token, n_vocab });
        }
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let context_tokens = model.context_length();
        let room = context_tokens.saturating_sub(prompt.len());
        if room == 0 {
            return Err(Error::PromptTooLong { prompt_tokens: prompt.len(), context_tokens });
        }
        let max_tokens = options.max_tokens.unwrap_or(room).min(room);
        let usage = Usage { prompt: prompt.len(), cached: session.keep_common(&prompt), completion: 0 };
        let decoder = model.tokenizer.decoder_after(&prompt);
        Ok(Self {
            prompt,
            pending: None,
            max_tokens,
            ignore_eos: options.ignore_eos,
            decoder,
            stops: StopMatcher::new(&options.stop),
            text: String::new(),
            tokens: Vec::new(),
            finish: (max_tokens == 0).then_some(FinishReason::Length),
            usage,
            timings: Timings { load: model.load_time, ..Timings::default() },
            seed: session.sampler.seed(),
        })
    }

    /// Makes one token; `None` when the generation has ended.
    pub(crate) fn step(&mut self, model: &Inner, session: &mut Session) -> Option<Result<Piece, Error>> {
        if self.finish.is_some() {
            return None;
        }
        let result = self.advance(model, session);
        if result.is_err() {
            self.finish = Some(FinishReason::Cancelled);
        }
        result.transpose()
    }

    fn advance(&mut self, model: &Inner, session: &mut Session) -> Result<Option<Piece>, Error> {
        let token = match self.pending.take() {
            None => {
                let row = self.prefill(model, session)?;
                session.sampler.sample(row.row(0))?
            }
            Some(last) => {
                let start = Instant::now();
                let mut queue = Duration::ZERO;
                let row = session.extend(model, &[last], LogitsFor::Last, &mut queue)?;
                let token = session.sampler.sample(row.row(0))?;
                self.timings.queue += queue;
                self.timings.decode += start.elapsed().saturating_sub(queue);
                self.timings.decode_tokens += 1;
                token
            }
        };
        if !self.ignore_eos && model.tokenizer.is_end_of_generation(token) {
            self.finish = Some(FinishReason::EndOfGeneration);
            let rest = self.flush();
            return Ok((!rest.is_empty()).then(|| Piece { text: rest, token_ids: Vec::new() }));
        }
        self.tokens.push(token);
        self.usage.completion += 1;
        self.pending = Some(token);

        let decoded = self.decoder.push(&model.tokenizer, token);
        let mut text = self.stops.push(&decoded);
        if self.stops.is_stopped() {
            self.finish = Some(FinishReason::StopString);
        }
        self.text += &text;
        if self.finish.is_none() && self.tokens.len() >= self.max_tokens {
            self.finish = Some(FinishReason::Length);
            text += &self.flush();
        }
        Ok(Some(Piece { text, token_ids: vec![token] }))
    }

    /// Runs what the cache lacks of the prompt, in chunks; the logits are those of its last token.
    fn prefill(&mut self, model: &Inner, session: &mut Session) -> Result<fewbit_model::Logits, Error> {
        let start = Instant::now();
        let mut queue = Duration::ZERO;
        let from = session.len();
        let mut chunks: VecDeque<&[u32]> = self.prompt[from..].chunks(model.prefill_chunk).collect();
        let last = chunks.pop_back().ok_or(Error::EmptyPrompt)?;
        for chunk in chunks {
            session.extend(model, chunk, LogitsFor::None, &mut queue)?;
        }
        let row = session.extend(model, last, LogitsFor::Last, &mut queue)?;
        self.timings.queue += queue;
        self.timings.prefill += start.elapsed().saturating_sub(queue);
        self.timings.prefill_tokens += self.prompt.len() - from;
        Ok(row)
    }

    /// The text that was held back, now that nothing follows it.
    fn flush(&mut self) -> String {
        let mut rest = self.stops.push(&self.decoder.finish());
        if self.stops.is_stopped() {
            self.finish = Some(FinishReason::StopString);
        } else {
            rest += &self.stops.finish();
        }
        self.text += &rest;
        rest
    }

    /// The text so far.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
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

    /// The generation as far as it went.
    pub(crate) fn completion(&mut self) -> Completion {
        Completion {
            text: std::mem::take(&mut self.text),
            tokens: std::mem::take(&mut self.tokens),
            prompt_tokens: std::mem::take(&mut self.prompt),
            finish_reason: self.finish.unwrap_or(FinishReason::Cancelled),
            usage: self.usage,
            timings: self.timings,
            seed: self.seed,
        }
    }
}

/// What a stream tells of its `run` while it goes on: the same for a generation and a turn of a conversation.
macro_rules! run_accessors {
    () => {
        /// The text so far.
        pub fn text(&self) -> &str {
            self.run.text()
        }

        /// Why it ended, if it has.
        pub fn finish_reason(&self) -> Option<$crate::FinishReason> {
            self.run.finish_reason()
        }

        /// Tokens so far.
        pub fn usage(&self) -> $crate::Usage {
            self.run.usage()
        }

        /// Times so far.
        pub fn timings(&self) -> $crate::Timings {
            self.run.timings()
        }
    };
}

pub(crate) use run_accessors;
