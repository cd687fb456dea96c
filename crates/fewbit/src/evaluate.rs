//! How well a model predicts a text: negative log-likelihoods and perplexity.
//!
//! Perplexity is computed like in llama.cpp's `llama-perplexity`, so that figures are comparable: the text is tokenized
//! as a whole (with a beginning-of-text token if the model adds one) and cut into windows of `ctx` tokens that do not
//! overlap. Each window runs on its own, with its first token replaced by the beginning-of-text token if the model adds
//! one. The first half of a window is context; positions `ctx/2 ..= ctx-2` are scored on the token that follows them.
//! The rest after the last whole window is not used.
//!
//! [`Model::divergence_from`] measures how far the probabilities of one model are from those of another, over the same
//! windows. [`Model::reference`] stores those of a model that several others are compared with, and [`Compare`]
//! measures what quantizing a model to several types costs.
//!
//! Everything runs on the model's engine thread, between the steps of its requests. The keys and values of a window
//! count towards [`kv_memory`](crate::ModelBuilder::kv_memory): the call waits until there is room, and fails with
//! [`ErrorKind::KvMemory`] if there can never be enough.
//!
//! The logits are f32; everything after them (log-softmax, sums) is f64.

mod compare;
mod divergence;

use std::thread;
use std::time::{Duration, Instant};

use fewbit_model::{Chunk, Logits, LogitsFor, LoraSet, ModelError};

pub use self::compare::{Compare, Comparison, Row};
pub use self::divergence::{Divergence, Reference};
pub(crate) use self::divergence::{RowPair, top};
use crate::completion::rate;
use crate::error::{Error, ErrorKind};
use crate::generate::Prompt;
use crate::model::{Model, Reserved};
use crate::sample::TokenLogprob;

/// Number of tokens whose logits are held at once: 64 rows of a vocabulary of 128 Ki tokens take 32 MiB.
const ROWS: usize = 64;

/// With a single window the figure would depend on where the text was cut; llama.cpp requires two as well.
const FEWEST_WINDOWS: usize = 2;

/// Which windows of the text to score.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub struct PerplexityOptions {
    /// Length of a window, in tokens.
    pub ctx: usize,
    /// The most windows to score; `None` scores all.
    pub chunks: Option<usize>,
}

impl Default for PerplexityOptions {
    fn default() -> Self {
        Self { ctx: 512, chunks: None }
    }
}

impl PerplexityOptions {
    /// The length of a window, in tokens (512 by default).
    pub fn ctx(mut self, n_tokens: usize) -> Self {
        self.ctx = n_tokens;
        self
    }

    /// The most windows to score (all by default).
    pub fn chunks(mut self, n: usize) -> Self {
        self.chunks = Some(n);
        self
    }
}

/// A perplexity, over the windows scored so far.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Perplexity {
    /// Negative log-likelihood of each scored token, in nats, in the order of the text.
    pub nll_per_token: Vec<f64>,
    /// Number of windows scored so far.
    pub chunks_done: usize,
    /// Number of windows to score.
    pub chunks: usize,
    /// Number of tokens run through the model.
    pub tokens_run: usize,
    /// Time since the start.
    pub elapsed: Duration,
}

impl Perplexity {
    /// Mean negative log-likelihood per scored token, in nats.
    pub fn nll(&self) -> f64 {
        mean(&self.nll_per_token)
    }

    /// The perplexity: the exponential of [`nll`](Self::nll).
    pub fn ppl(&self) -> f64 {
        self.nll().exp()
    }

    /// The standard error of the perplexity, from the variance of the tokens' log-likelihoods.
    pub fn stderr(&self) -> f64 {
        standard_error(&self.nll_per_token) * self.ppl()
    }

    /// Tokens run through the model per second.
    pub fn tokens_per_second(&self) -> f64 {
        rate(self.tokens_run as u64, self.elapsed)
    }
}

impl Model {
    /// The negative log-likelihood, in nats, of each token but the first, given the tokens before it.
    pub fn score(&self, tokens: &[u32]) -> Result<Vec<f64>, Error> {
        self.check_text(tokens)?;
        let mut nll = Vec::with_capacity(tokens.len().saturating_sub(1));
        self.score_from(tokens, 0, &mut nll)?;
        Ok(nll)
    }

    /// The log probability of each token of a text, given the tokens before it, with the `n_top` most probable tokens
    /// at its position. The text is tokenized like a prompt of [`generate`](Self::generate).
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// for token in model.logprobs("The capital of France is Paris", 3)? {
    ///     println!("{:?} {:?}", model.tokenizer().token_text(token.token), token.logprob);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn logprobs(&self, text: impl Into<Prompt>, n_top: usize) -> Result<Vec<TokenLogprob>, Error> {
        let tokens = match text.into() {
            Prompt::Text(text) => self.encode_raw(&text),
            Prompt::Tokens(tokens) => tokens,
        };
        self.logprobs_with(self.loras(), &tokens, n_top)
    }

    /// Like [`logprobs`](Self::logprobs), for tokens and with these adapters.
    pub(crate) fn logprobs_with(
        &self,
        loras: &LoraSet,
        tokens: &[u32],
        n_top: usize,
    ) -> Result<Vec<TokenLogprob>, Error> {
        self.check_text(tokens)?;
        let mut result: Vec<_> = tokens.first().map(|&token| TokenLogprob::first(token)).into_iter().collect();
        self.each_row(loras, tokens, 0, |logits, targets| {
            let rows = targets.iter().enumerate();
            result.extend(rows.map(|(i, &target)| TokenLogprob::new(logits.row(i), target, n_top)));
        })?;
        Ok(result)
    }

    /// The perplexity of the model on `text`; the [module](crate::evaluate) documents how it is computed. `progress`
    /// gets the result so far after each window.
    pub fn perplexity(
        &self,
        text: &str,
        options: &PerplexityOptions,
        mut progress: impl FnMut(&Perplexity),
    ) -> Result<Perplexity, Error> {
        let windows = self.windows(text, options, FEWEST_WINDOWS)?;
        let mut result = Perplexity { chunks: windows.len(), ..Perplexity::default() };
        let start = Instant::now();
        for window in &windows {
            self.score_from(window, options.ctx / 2, &mut result.nll_per_token)?;
            result.tokens_run += options.ctx - 1;
            result.chunks_done += 1;
            result.elapsed = start.elapsed();
            progress(&result);
        }
        Ok(result)
    }

    /// Appends the negative log-likelihoods of `tokens[first + 1..]` to `nll`.
    fn score_from(&self, tokens: &[u32], first: usize, nll: &mut Vec<f64>) -> Result<(), Error> {
        self.each_row(self.loras(), tokens, first, |logits, targets| {
            let nll_of = |row, target| negative_log_likelihood(logits.row(row), target);
            nll.extend(per_row(targets, self.n_threads(), nll_of));
        })
    }

    /// Calls `f` with the logits that predict `tokens[first + 1..]`, some rows at a time, and the tokens that follow.
    fn each_row(
        &self,
        loras: &LoraSet,
        tokens: &[u32],
        first: usize,
        mut rows: impl FnMut(&Logits, &[u32]),
    ) -> Result<(), Error> {
        let mut all = Rows::new(self, loras, tokens, first)?;
        while let Some((logits, targets)) = all.next()? {
            rows(&logits, targets);
        }
        Ok(())
    }

    /// The windows of a text, which must have at least `n_min` of them.
    pub(crate) fn windows(
        &self,
        text: &str,
        options: &PerplexityOptions,
        n_min: usize,
    ) -> Result<Vec<Vec<u32>>, Error> {
        let ctx = options.ctx;
        if ctx < 4 {
            return Err(ErrorKind::TooShort { found: ctx, needed: 4 }.into());
        }
        if ctx > self.context_length() {
            return Err(ErrorKind::ContextTooLong { asked: ctx, context_tokens: self.context_length() }.into());
        }
        let tokens = self.encode_raw(text);
        let needed = ctx.saturating_mul(n_min);
        if tokens.len() < needed {
            return Err(ErrorKind::TooShort { needed, found: tokens.len() }.into());
        }
        let bos = self.tokenizer().bos().filter(|_| self.tokenizer().add_bos());
        let windows = tokens.chunks_exact(ctx).take(options.chunks.unwrap_or(usize::MAX));
        Ok(windows
            .map(|window| bos.into_iter().chain(window[usize::from(bos.is_some())..].iter().copied()).collect())
            .collect())
    }

    /// Returns an error for a text that cannot be scored as a whole.
    fn check_text(&self, tokens: &[u32]) -> Result<(), Error> {
        self.check_tokens(tokens)?;
        let (tokens, context_tokens) = (tokens.len(), self.context_length());
        if tokens > context_tokens {
            return Err(ErrorKind::TooLong { index: None, tokens, context_tokens }.into());
        }
        Ok(())
    }
}

/// The standard error of the mean, from the variance of the values.
fn standard_error(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = mean(values);
    let variance = values.iter().map(|value| value * value).sum::<f64>() / n - mean * mean;
    if n > 1.0 && variance > 0.0 { (variance / (n - 1.0)).sqrt() } else { 0.0 }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Computes the logits that predict the tokens after `first`, some rows at a time.
struct Rows<'t> {
    model: Model,
    loras: LoraSet,
    tokens: &'t [u32],
    sequence: Reserved,
    /// Number of tokens that have been run.
    at: usize,
}

impl<'t> Rows<'t> {
    /// Runs `tokens[..first]`, so that the logits that predict `tokens[first + 1..]` come next.
    fn new(model: &Model, loras: &LoraSet, tokens: &'t [u32], first: usize) -> Result<Self, Error> {
        // The last token is only predicted, never an input.
        let first = first.min(tokens.len().saturating_sub(1));
        let (model, loras) = (model.clone(), loras.clone());
        let sequence = computed(&model, &loras, tokens, first)?;
        Ok(Self { model, loras, tokens, sequence, at: first })
    }

    /// The next rows, with the tokens that follow.
    fn next(&mut self) -> Result<Option<(Logits, &'t [u32])>, Error> {
        let end = (self.at + ROWS).min(self.tokens.len().saturating_sub(1));
        if end <= self.at {
            return Ok(None);
        }
        let logits = loop {
            match forward(&mut self.sequence, &self.tokens[self.at..end], LogitsFor::All) {
                Err(error) if is_stale(&error) => {
                    self.sequence = computed(&self.model, &self.loras, self.tokens, self.at)?;
                }
                result => break result?,
            }
        };
        let targets = &self.tokens[self.at + 1..=end];
        self.at = end;
        Ok(Some((logits, targets)))
    }
}

/// A sequence of which `tokens[..n]` are computed, with room for the others. If a device is lost meanwhile, that begins
/// again, on the CPU.
fn computed(model: &Model, loras: &LoraSet, tokens: &[u32], n: usize) -> Result<Reserved, Error> {
    loop {
        let mut sequence = model.inner.reserve(loras, tokens.len().saturating_sub(1))?;
        let mut chunks = tokens[..n].chunks(model.inner.core.limits.prefill_chunk);
        match chunks.try_for_each(|chunk| forward(&mut sequence, chunk, LogitsFor::None).map(drop)) {
            Ok(()) => return Ok(sequence),
            Err(error) if is_stale(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_stale(error: &Error) -> bool {
    matches!(error.cause(), Some(ModelError::StaleCache))
}

/// Runs tokens at the end of a sequence, on the engine thread.
fn forward(sequence: &mut Reserved, tokens: &[u32], logits: LogitsFor) -> Result<Logits, Error> {
    let tokens = tokens.to_vec();
    sequence.step(move |decoder, cache| decoder.forward(&mut [Chunk { cache, tokens: &tokens, logits }]))
}

/// `result_of` the index of each row and the token that came. Rows are independent, so that threads share them changes
/// nothing.
fn per_row<R: Copy + Default + Send>(
    targets: &[u32],
    n_threads: usize,
    result_of: impl Fn(usize, usize) -> R + Sync,
) -> Vec<R> {
    let mut results = vec![R::default(); targets.len()];
    let per_thread = targets.len().div_ceil(n_threads.max(1)).max(1);
    let result_of = &result_of;
    thread::scope(|scope| {
        for (i, (results, targets)) in results.chunks_mut(per_thread).zip(targets.chunks(per_thread)).enumerate() {
            scope.spawn(move || {
                for (j, (result, &target)) in results.iter_mut().zip(targets).enumerate() {
                    *result = result_of(i * per_thread + j, target as usize);
                }
            });
        }
    });
    results
}

/// `log(sum(exp(logits))) - logits[target]`, with the largest logit factored out of the sum.
fn negative_log_likelihood(logits: &[f32], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(max)).exp()).sum();
    sum.ln() + f64::from(max) - f64::from(logits[target])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihoods_follow_the_softmax() {
        let logits = [0.25_f64.ln() as f32, 0.5_f64.ln() as f32, 0.25_f64.ln() as f32];
        assert!((negative_log_likelihood(&logits, 1) - 2_f64.ln()).abs() < 1e-7);
        // Large logits neither overflow nor lose the difference.
        let shifted = logits.map(|x| x + 1024.0);
        assert!((negative_log_likelihood(&shifted, 0) - 4_f64.ln()).abs() < 1e-4);
        let hopeless = [0.0, -1000.0];
        assert!((negative_log_likelihood(&hopeless, 1) - 1000.0).abs() < 1e-9);
    }

    #[test]
    fn perplexity_and_stderr_are_computed_from_the_tokens() {
        let result = Perplexity { nll_per_token: vec![1.0, 3.0], ..Perplexity::default() };
        assert_eq!(result.nll(), 2.0);
        assert_eq!(result.ppl(), 2_f64.exp());
        // Variance 1 over n - 1 = 1.
        assert!((result.stderr() - 2_f64.exp()).abs() < 1e-12);
    }
}
