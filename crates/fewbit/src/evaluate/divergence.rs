//! How far the predictions of one model are from those of another.
//!
//! The logits of the reference model are computed once and kept in an unnamed file in the folder for temporary files: 4
//! bytes for each token of the vocabulary and each scored token, exact, and read in the order in which they were
//! written.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{
    FEWEST_WINDOWS, Perplexity, PerplexityOptions, Rows, mean, negative_log_likelihood, per_row, standard_error,
};
use crate::completion::rate;
use crate::error::{Error, ErrorKind};
use crate::model::Model;

const BUFFER_BYTES: usize = 1 << 20;

/// The logits of a model on a text, for comparing other models with it: made by [`Model::reference`].
#[derive(Debug)]
pub struct Reference {
    windows: Vec<Vec<u32>>,
    ctx: usize,
    n_vocab: usize,
    /// `n_vocab` logits for each scored token, little-endian, in the order of the text.
    logits: File,
    path: PathBuf,
    vocabulary: u64,
    perplexity: Perplexity,
}

impl Reference {
    /// The perplexity of the reference model.
    pub fn perplexity(&self) -> &Perplexity {
        &self.perplexity
    }

    /// Size of the logits on disk, in bytes.
    pub fn n_bytes(&self) -> u64 {
        (self.perplexity.nll_per_token.len() as u64).saturating_mul(4 * self.n_vocab as u64)
    }
}

impl Model {
    /// Runs the model over `text` and stores its logits, for [`divergence`](Self::divergence) of models with the same
    /// vocabulary. Windows and scored tokens are those of [`perplexity`](Self::perplexity); `progress` gets the
    /// perplexity so far.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// use fewbit::{Model, evaluate::PerplexityOptions, quantize::Recipe};
    ///
    /// let (text, options) = (std::fs::read_to_string("wiki.txt").unwrap(), PerplexityOptions::default().chunks(20));
    /// let reference = Model::load("model-f16.gguf")?.reference(&text, &options, |_| {})?;
    /// for recipe in [Recipe::Q8_0, Recipe::Q4_K_M] {
    ///     let found = Model::builder().quantize(recipe).load("model-f16.gguf")?.divergence(&reference, |_, _| {})?;
    ///     println!("{}: {:.5} ± {:.5} nats", recipe.name(), found.mean_kl(), found.mean_kl_stderr());
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::System`](crate::ErrorKind::System) if the disk is full, and those of `perplexity`.
    pub fn reference(
        &self,
        text: &str,
        options: &PerplexityOptions,
        mut progress: impl FnMut(&Perplexity),
    ) -> Result<Reference, Error> {
        let windows = self.windows(text, options, FEWEST_WINDOWS)?;
        let first = options.ctx / 2;
        let n_rows = windows.len().saturating_mul(options.ctx - 1 - first) as u64;
        let needed_bytes = n_rows.saturating_mul(4 * self.decoder().n_vocab() as u64);
        let scratch = |error| cannot_keep(needed_bytes, error);
        let file = tempfile::tempfile().map_err(scratch)?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, &file);
        let mut perplexity = Perplexity { chunks: windows.len(), ..Perplexity::default() };
        let start = Instant::now();
        for window in &windows {
            let mut rows = Rows::new(self, self.loras(), window, first)?;
            while let Some((logits, targets)) = rows.next()? {
                let nll_of = |row, target| negative_log_likelihood(logits.row(row), target);
                perplexity.nll_per_token.extend(per_row(targets, self.n_threads(), nll_of));
                for row in 0..targets.len() {
                    logits.row(row).iter().try_for_each(|x| out.write_all(&x.to_le_bytes())).map_err(scratch)?;
                }
            }
            perplexity.tokens_run += options.ctx - 1;
            perplexity.chunks_done += 1;
            perplexity.elapsed = start.elapsed();
            progress(&perplexity);
        }
        out.flush().map_err(scratch)?;
        drop(out);
        Ok(Reference {
            windows,
            ctx: options.ctx,
            n_vocab: self.decoder().n_vocab(),
            logits: file,
            path: self.path().to_owned(),
            vocabulary: self.vocabulary(),
            perplexity,
        })
    }

    /// Measures how far this model's predictions are from those of `reference`, usually the model that this one was
    /// quantized from. `progress` gets the number of windows done and the total.
    ///
    /// # Errors
    /// [`OtherVocabulary`](crate::ErrorKind::OtherVocabulary), [`System`](crate::ErrorKind::System), and those of
    /// [`perplexity`](Self::perplexity).
    pub fn divergence(
        &self,
        reference: &Reference,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Divergence, Error> {
        let n_vocab = self.decoder().n_vocab();
        if self.vocabulary() != reference.vocabulary || n_vocab != reference.n_vocab {
            let (model, other) = (self.path().to_owned(), reference.path.clone());
            return Err(ErrorKind::OtherVocabulary { model, other }.into());
        }
        if reference.ctx > self.context_length() {
            let (asked, context_tokens) = (reference.ctx, self.context_length());
            return Err(ErrorKind::ContextTooLong { asked, context_tokens }.into());
        }
        let scratch = |error| cannot_keep(reference.n_bytes(), error);
        let mut kept = BufReader::with_capacity(BUFFER_BYTES, &reference.logits);
        kept.rewind().map_err(scratch)?;
        let n_windows = reference.windows.len();
        let mut result = Divergence { chunks: n_windows, ..Divergence::default() };
        let mut expected = Vec::new();
        for (i, window) in reference.windows.iter().enumerate() {
            let start = Instant::now();
            let mut rows = Rows::new(self, self.loras(), window, reference.ctx / 2)?;
            result.elapsed += start.elapsed();
            loop {
                let start = Instant::now();
                let next = rows.next()?;
                result.elapsed += start.elapsed();
                let Some((logits, targets)) = next else { break };
                read_floats(&mut kept, targets.len() * n_vocab, &mut expected).map_err(scratch)?;
                let expected_row = |row: usize| &expected[row * n_vocab..][..n_vocab];
                let compare = |row, target| RowPair::new(logits.row(row), expected_row(row), target);
                for row in per_row(targets, self.n_threads(), compare) {
                    result.nll_per_token.push(row.nll);
                    result.reference_nll_per_token.push(row.reference_nll);
                    result.kl_per_token.push(row.kl);
                    result.same_top += usize::from(row.same_top);
                }
            }
            result.tokens_run += reference.ctx - 1;
            progress(i + 1, n_windows);
        }
        Ok(result)
    }

    /// Like [`divergence`](Self::divergence), from a [`reference`](Self::reference) that is used only once. `progress`
    /// gets the number of windows done and the total, of both models together.
    ///
    /// # Errors
    /// Those of [`reference`](Self::reference) and [`divergence`](Self::divergence).
    pub fn divergence_from(
        &self,
        reference: &Model,
        text: &str,
        options: &PerplexityOptions,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Divergence, Error> {
        if self.vocabulary() != reference.vocabulary() {
            let (model, other) = (self.path().to_owned(), reference.path().to_owned());
            return Err(ErrorKind::OtherVocabulary { model, other }.into());
        }
        let kept = reference.reference(text, options, |so_far| progress(so_far.chunks_done, 2 * so_far.chunks))?;
        self.divergence(&kept, |done, n| progress(n + done, 2 * n))
    }
}

/// Reads `n` floats.
fn read_floats(from: &mut impl Read, n: usize, floats: &mut Vec<f32>) -> io::Result<()> {
    let mut bytes = vec![0; 4 * n];
    from.read_exact(&mut bytes)?;
    floats.clear();
    floats.extend(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)));
    Ok(())
}

/// How far the predictions of one model are from those of another, token by token in the order of the text.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Divergence {
    /// Negative log-likelihood of each scored token by the model, in nats.
    pub nll_per_token: Vec<f64>,
    /// Negative log-likelihood of each scored token by the reference, in nats.
    pub reference_nll_per_token: Vec<f64>,
    /// KL divergence of the model's probabilities from those of the reference, in nats.
    pub kl_per_token: Vec<f64>,
    /// Number of tokens for which both models have the same most probable token.
    pub same_top: usize,
    /// Number of windows scored.
    pub chunks: usize,
    /// Number of tokens run through the model.
    pub tokens_run: usize,
    /// Time that the model took.
    pub elapsed: Duration,
}

impl Divergence {
    /// The model's perplexity.
    pub fn perplexity(&self) -> f64 {
        mean(&self.nll_per_token).exp()
    }

    /// The standard error of [`perplexity`](Self::perplexity).
    pub fn perplexity_stderr(&self) -> f64 {
        standard_error(&self.nll_per_token) * self.perplexity()
    }

    /// The logarithm of the model's perplexity over that of the reference: what quantizing costs in nats per token.
    pub fn ln_perplexity_ratio(&self) -> f64 {
        mean(&self.nll_per_token) - mean(&self.reference_nll_per_token)
    }

    /// The standard error of [`ln_perplexity_ratio`](Self::ln_perplexity_ratio), from the differences token by token:
    /// both read the same text, so it is far smaller than those of the two perplexities.
    pub fn ln_perplexity_ratio_stderr(&self) -> f64 {
        let pairs = self.nll_per_token.iter().zip(&self.reference_nll_per_token);
        standard_error(&pairs.map(|(own, reference)| own - reference).collect::<Vec<_>>())
    }

    /// The perplexity of the reference.
    pub fn reference_perplexity(&self) -> f64 {
        mean(&self.reference_nll_per_token).exp()
    }

    /// Mean KL divergence, in nats.
    pub fn mean_kl(&self) -> f64 {
        mean(&self.kl_per_token)
    }

    /// The standard error of [`mean_kl`](Self::mean_kl).
    pub fn mean_kl_stderr(&self) -> f64 {
        standard_error(&self.kl_per_token)
    }

    /// The standard error of [`top1_agreement`](Self::top1_agreement).
    pub fn top1_agreement_stderr(&self) -> f64 {
        let p = self.top1_agreement();
        (p * (1.0 - p) / self.kl_per_token.len().saturating_sub(1).max(1) as f64).sqrt()
    }

    /// The fraction of tokens for which both models have the same most probable token, from 0 to 1.
    pub fn top1_agreement(&self) -> f64 {
        self.same_top as f64 / self.kl_per_token.len().max(1) as f64
    }

    /// Tokens run per second.
    pub fn tokens_per_second(&self) -> f64 {
        rate(self.tokens_run as u64, self.elapsed)
    }
}

/// The comparison of two rows of logits.
#[derive(Clone, Copy, Default)]
pub(crate) struct RowPair {
    nll: f64,
    reference_nll: f64,
    /// KL divergence of the first from the second, in nats.
    pub(crate) kl: f64,
    same_top: bool,
}

impl RowPair {
    /// Compares two rows, whose text goes on with `target`.
    pub(crate) fn new(own: &[f32], reference: &[f32], target: usize) -> Self {
        let log_sum = |logits: &[f32]| negative_log_likelihood(logits, target) + f64::from(logits[target]);
        let (own_sum, reference_sum) = (log_sum(own), log_sum(reference));
        let kl = own.iter().zip(reference).map(|(&own, &reference)| {
            let (own, reference) = (f64::from(own) - own_sum, f64::from(reference) - reference_sum);
            // Logits of minus infinity contribute nothing.
            if reference == f64::NEG_INFINITY { 0.0 } else { reference.exp() * (reference - own) }
        });
        Self {
            nll: own_sum - f64::from(own[target]),
            reference_nll: reference_sum - f64::from(reference[target]),
            kl: kl.sum::<f64>().max(0.0),
            same_top: top(own) == top(reference),
        }
    }
}

/// Index of the largest logit, the first one if several are equal.
pub(crate) fn top(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best })
}

/// The file for what is computed once and read often cannot be written or read.
fn cannot_keep(needed_bytes: u64, error: std::io::Error) -> Error {
    let folder = std::env::temp_dir();
    let action = format!(
        "keep {needed_bytes} bytes in {} while models are compared (give fewer windows, or another folder by TMPDIR)",
        folder.display()
    );
    Error::system(action, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_computed_from_the_softmaxes() {
        let ln = |p: [f64; 3]| p.map(|p| p.ln() as f32);
        let (own, reference) = (ln([0.25, 0.5, 0.25]), ln([0.5, 0.25, 0.25]));
        let pair = RowPair::new(&own, &reference, 1);
        // 0.5 ln 2 + 0.25 ln 0.5
        assert!((pair.kl - 0.25 * 2_f64.ln()).abs() < 1e-6, "{}", pair.kl);
        assert!((pair.nll - 2_f64.ln()).abs() < 1e-6 && (pair.reference_nll - 4_f64.ln()).abs() < 1e-6);
        assert!(!pair.same_top);
        let same = RowPair::new(&own, &own.map(|x| x + 3.0), 0);
        assert!(same.kl < 1e-6 && same.same_top);
    }

    #[test]
    fn standard_errors_are_computed_from_the_tokens() {
        let found = Divergence {
            nll_per_token: vec![2.0, 4.0],
            reference_nll_per_token: vec![1.0, 3.0],
            kl_per_token: vec![0.0, 0.2],
            same_top: 1,
            ..Divergence::default()
        };
        // A variance of 1 over n - 1 = 1; both models differ by the same at each token.
        assert!((found.perplexity_stderr() - 3_f64.exp()).abs() < 1e-9);
        assert_eq!((found.ln_perplexity_ratio(), found.ln_perplexity_ratio_stderr()), (1.0, 0.0));
        assert!((found.mean_kl_stderr() - 0.1).abs() < 1e-12);
        assert_eq!((found.top1_agreement(), found.top1_agreement_stderr()), (0.5, 0.5));
    }
}
