//! How well a model predicts a text: negative log-likelihoods and perplexity.
//!
//! Perplexity is computed as llama.cpp's `llama-perplexity` does, so that figures compare: the text
//! is tokenized as a whole (with a beginning-of-text token if the model adds one) and cut into
//! windows of `ctx` tokens that do not overlap; each is run on its own, its first token replaced by
//! the beginning-of-text token if the model adds one. A window's first half is context; positions
//! `ctx/2 ..= ctx-2` are scored on the token that follows them. What remains after the last whole
//! window is not used.
//!
//! The logits are f32; everything after them (log-softmax, sums) is f64.

use std::thread;
use std::time::{Duration, Instant};

use fewbit_model::{Logits, LogitsFor};

use crate::error::Error;
use crate::generate::Prompt;
use crate::model::Model;
use crate::sample::TokenLogprob;

/// Tokens whose logits are held at once: 64 rows of a vocabulary of 128 Ki are 32 MiB.
const ROWS: usize = 64;

/// What to score.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PerplexityOptions {
    /// Tokens of a window.
    pub ctx: usize,
    /// Windows to score at most; `None` scores all.
    pub chunks: Option<usize>,
}

impl Default for PerplexityOptions {
    fn default() -> Self {
        Self { ctx: 512, chunks: None }
    }
}

impl PerplexityOptions {
    /// Tokens of a window (512).
    pub fn ctx(mut self, n_tokens: usize) -> Self {
        self.ctx = n_tokens;
        self
    }

    /// Windows to score at most.
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
    /// Windows scored.
    pub chunks_done: usize,
    /// Windows to score.
    pub chunks: usize,
    /// Tokens run through the model.
    pub tokens_run: usize,
    /// Time taken.
    pub elapsed: Duration,
}

impl Perplexity {
    /// Mean negative log-likelihood per scored token, in nats.
    pub fn nll(&self) -> f64 {
        self.nll_per_token.iter().sum::<f64>() / self.nll_per_token.len() as f64
    }

    /// The perplexity: the exponential of [`nll`](Self::nll).
    pub fn ppl(&self) -> f64 {
        self.nll().exp()
    }

    /// The standard error of the perplexity, from the variance of the tokens' log-likelihoods.
    pub fn stderr(&self) -> f64 {
        let n = self.nll_per_token.len() as f64;
        let mean_square = self.nll_per_token.iter().map(|nll| nll * nll).sum::<f64>() / n;
        let variance = mean_square - self.nll() * self.nll();
        if n > 1.0 && variance > 0.0 { (variance / (n - 1.0)).sqrt() * self.ppl() } else { 0.0 }
    }

    /// Tokens run per second.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.tokens_run as f64 / seconds } else { 0.0 }
    }
}

impl Model {
    /// The negative log-likelihood, in nats, of each token but the first, given those before it.
    pub fn score(&self, tokens: &[u32]) -> Result<Vec<f64>, Error> {
        self.check(tokens)?;
        if tokens.len() > self.context_length() {
            return Err(Error::PromptTooLong { prompt_tokens: tokens.len(), context_tokens: self.context_length() });
        }
        let mut nll = Vec::with_capacity(tokens.len().saturating_sub(1));
        self.score_from(tokens, 0, &mut nll)?;
        Ok(nll)
    }

    /// How probable each token of a text is, given those before it, and which `n_top` tokens would have been the
    /// most probable in its place. A text is encoded as [`generate`](Self::generate) does it.
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
        self.check(&tokens)?;
        if tokens.len() > self.context_length() {
            return Err(Error::PromptTooLong { prompt_tokens: tokens.len(), context_tokens: self.context_length() });
        }
        let mut result: Vec<_> = tokens.first().map(|&token| TokenLogprob::first(token)).into_iter().collect();
        self.each_row(&tokens, 0, |logits, targets| {
            let rows = targets.iter().enumerate();
            result.extend(rows.map(|(i, &target)| TokenLogprob::new(logits.row(i), target, n_top)));
        })?;
        Ok(result)
    }

    /// The perplexity of the model on `text`; the [module](crate::evaluate) says how. `progress` is
    /// given the result so far after each window.
    pub fn perplexity(
        &self,
        text: &str,
        options: &PerplexityOptions,
        mut progress: impl FnMut(&Perplexity),
    ) -> Result<Perplexity, Error> {
        let ctx = options.ctx;
        if ctx < 4 {
            return Err(Error::WindowTooShort { ctx });
        }
        if ctx > self.context_length() {
            return Err(Error::ContextTooLong { asked: ctx, context_tokens: self.context_length() });
        }
        let tokens = self.encode_raw(text);
        // With a single window the figure depends on where the text was cut; llama.cpp refuses too.
        let needed = ctx.saturating_mul(2);
        if tokens.len() < needed {
            return Err(Error::TooFewTokens { needed, found: tokens.len() });
        }
        let tokenizer = self.tokenizer();
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        let chunks = (tokens.len() / ctx).min(options.chunks.unwrap_or(usize::MAX));
        let mut result = Perplexity { chunks, ..Perplexity::default() };
        let start = Instant::now();
        for window in tokens.chunks_exact(ctx).take(chunks) {
            let mut window = window.to_vec();
            if let Some(bos) = bos {
                window[0] = bos;
            }
            self.score_from(&window, ctx / 2, &mut result.nll_per_token)?;
            result.tokens_run += ctx - 1;
            result.chunks_done += 1;
            result.elapsed = start.elapsed();
            progress(&result);
        }
        Ok(result)
    }

    /// Appends the negative log-likelihoods of `tokens[first + 1..]` to `nll`.
    fn score_from(&self, tokens: &[u32], first: usize, nll: &mut Vec<f64>) -> Result<(), Error> {
        self.each_row(tokens, first, |logits, targets| {
            nll.extend(negative_log_likelihoods(logits, targets, self.n_threads()));
        })
    }

    /// Hands on the logits that predict `tokens[first + 1..]`, some rows at a time, each with the token that came.
    fn each_row(&self, tokens: &[u32], first: usize, mut rows: impl FnMut(&Logits, &[u32])) -> Result<(), Error> {
        // The last token is only predicted, never an input.
        let Some((_, inputs)) = tokens.split_last() else { return Ok(()) };
        let mut cache = self.decoder().new_cache();
        let (context, scored) = inputs.split_at(first.min(inputs.len()));
        for chunk in context.chunks(self.inner.core.limits.prefill_chunk) {
            (cache, _) = self.inner.extend(cache, chunk, LogitsFor::None)?;
        }
        let mut at = context.len();
        for chunk in scored.chunks(ROWS) {
            let logits;
            (cache, logits) = self.inner.extend(cache, chunk, LogitsFor::All)?;
            at += chunk.len();
            rows(&logits, &tokens[at + 1 - chunk.len()..=at]);
        }
        Ok(())
    }

    fn check(&self, tokens: &[u32]) -> Result<(), Error> {
        let n_vocab = self.tokenizer().n_vocab();
        match tokens.iter().find(|&&token| token as usize >= n_vocab) {
            Some(&token) => Err(Error::TokenOutOfRange { token, n_vocab }),
            None => Ok(()),
        }
    }
}

/// One value per row of logits. Rows are independent, so splitting them over threads changes nothing.
fn negative_log_likelihoods(logits: &Logits, targets: &[u32], n_threads: usize) -> Vec<f64> {
    let mut nll = vec![0.0; targets.len()];
    let per_thread = targets.len().div_ceil(n_threads.max(1)).max(1);
    thread::scope(|scope| {
        for (i, (nll, targets)) in nll.chunks_mut(per_thread).zip(targets.chunks(per_thread)).enumerate() {
            scope.spawn(move || {
                for (j, (nll, &target)) in nll.iter_mut().zip(targets).enumerate() {
                    *nll = negative_log_likelihood(logits.row(i * per_thread + j), target as usize);
                }
            });
        }
    });
    nll
}

/// `log(sum(exp(logits))) - logits[target]`, with the largest logit taken out of the sum.
fn negative_log_likelihood(logits: &[f32], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(max)).exp()).sum();
    sum.ln() + f64::from(max) - f64::from(logits[target])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihoods_are_those_of_the_softmax() {
        let logits = [0.25_f64.ln() as f32, 0.5_f64.ln() as f32, 0.25_f64.ln() as f32];
        assert!((negative_log_likelihood(&logits, 1) - 2_f64.ln()).abs() < 1e-7);
        // Large logits neither overflow nor lose the difference.
        let shifted = logits.map(|x| x + 1024.0);
        assert!((negative_log_likelihood(&shifted, 0) - 4_f64.ln()).abs() < 1e-4);
        let hopeless = [0.0, -1000.0];
        assert!((negative_log_likelihood(&hopeless, 1) - 1000.0).abs() < 1e-9);
    }

    #[test]
    fn perplexity_and_its_error_follow_from_the_tokens() {
        let result = Perplexity { nll_per_token: vec![1.0, 3.0], ..Perplexity::default() };
        assert_eq!(result.nll(), 2.0);
        assert_eq!(result.ppl(), 2_f64.exp());
        // Variance 1 over n - 1 = 1.
        assert!((result.stderr() - 2_f64.exp()).abs() < 1e-12);
    }
}
