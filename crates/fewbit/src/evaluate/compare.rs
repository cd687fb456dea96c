//! What quantizing a model costs and saves, for several types.

use fewbit_model::quantize::Recipe;
use fewbit_tokenizer::SpecialTokens;

use super::{Divergence, PerplexityOptions};
use crate::error::Error;
use crate::file::open;
use crate::generate::Prompt;
use crate::model::Model;

/// Number of tokens that are generated to measure the speed of decoding.
const DECODED: usize = 32;

/// Loads the model with the weights quantized.
type Load<'a> = Box<dyn Fn(Recipe) -> Result<Model, Error> + 'a>;
/// Gets the name of the model that is measured, the number of windows done, and the total.
type Progress<'a> = Box<dyn FnMut(&str, usize, usize) + 'a>;

/// Compares a model with itself, quantized to several types in memory: size, speed, perplexity, KL divergence. The
/// original stays in memory, with one quantized model at a time next to it; its logits are computed once.
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// use fewbit::{Model, evaluate::{Compare, PerplexityOptions}, quantize::Recipe};
///
/// let model = Model::load("SmolLM2-1.7B/")?;
/// let text = std::fs::read_to_string("my-texts.txt").expect("a text");
/// let types = [Recipe::Q8_0, Recipe::Q5_K_M, Recipe::Q4_K_M];
/// let found = Compare::new(&model, types).windows(PerplexityOptions::default().chunks(20)).run(&text)?;
/// for row in &found.rows {
///     println!("{}: {} bytes, KL {:.5} ± {:.5}", row.name(), row.weight_bytes, row.kl, row.kl_stderr);
/// }
/// # Ok(()) }
/// ```
#[must_use = "nothing is measured before `run`"]
pub struct Compare<'a> {
    original: &'a Model,
    types: Vec<Recipe>,
    windows: PerplexityOptions,
    load: Load<'a>,
    progress: Progress<'a>,
}

impl std::fmt::Debug for Compare<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compare").field("types", &self.types).field("windows", &self.windows).finish_non_exhaustive()
    }
}

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Comparison {
    /// The original, then each type in the order given.
    pub rows: Vec<Row>,
    /// Number of windows scored.
    pub windows: usize,
    /// Number of tokens scored.
    pub tokens_scored: usize,
}

/// One model of a [`Comparison`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// The recipe of the quantized model; `None` for the original.
    pub recipe: Option<Recipe>,
    /// Size of its weights in memory, in bytes.
    pub weight_bytes: u64,
    /// Bits per weight, on average.
    pub bits_per_weight: f64,
    /// Its perplexity.
    pub perplexity: f64,
    /// The standard error of the perplexity.
    pub perplexity_stderr: f64,
    /// The logarithm of the ratio of its perplexity to the original's, in nats per token.
    pub ln_ppl_ratio: f64,
    /// The standard error of that logarithm, from the differences token by token.
    pub ln_ppl_ratio_stderr: f64,
    /// Mean KL divergence from the original, in nats.
    pub kl: f64,
    /// The standard error of the mean.
    pub kl_stderr: f64,
    /// The fraction of tokens for which it and the original have the same most probable token, from 0 to 1.
    pub top1: f64,
    /// The standard error of that fraction.
    pub top1_stderr: f64,
    /// Prompt tokens per second (prefill).
    pub prefill_tokens_per_s: f64,
    /// Generated tokens per second (decode).
    pub decode_tokens_per_s: f64,
}

impl Row {
    /// `original`, or the name of the recipe.
    pub fn name(&self) -> &'static str {
        self.recipe.map_or("original", Recipe::name)
    }
}

impl<'a> Compare<'a> {
    /// Compares `original` with itself quantized to each of `types`.
    pub fn new(original: &'a Model, types: impl Into<Vec<Recipe>>) -> Self {
        let load = |recipe| {
            let builder = Model::builder().threads(original.n_threads()).context_length(original.context_length());
            builder.quantize(recipe).load_file(original.path())
        };
        Self {
            original,
            types: types.into(),
            windows: PerplexityOptions::default(),
            load: Box::new(load),
            progress: Box::new(|_, _, _| {}),
        }
    }

    /// The windows that the text is cut into. Default: all, of 512 tokens.
    pub fn windows(mut self, windows: PerplexityOptions) -> Self {
        self.windows = windows;
        self
    }

    /// How to load the quantized model. Default: quantizes the original's file, with the same threads and context. For
    /// other settings, or for files that were quantized before.
    pub fn load_with(mut self, load: impl Fn(Recipe) -> Result<Model, Error> + 'a) -> Self {
        self.load = Box::new(load);
        self
    }

    /// Sets a callback that gets the name of the model that is measured (`original`, or the type), the number of
    /// windows done, and the total.
    pub fn on_progress(mut self, progress: impl FnMut(&str, usize, usize) + 'a) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Runs the comparison on `text`.
    ///
    /// # Errors
    /// Those of [`Model::reference`], of [`Model::divergence`] and of loading.
    pub fn run(self, text: &str) -> Result<Comparison, Error> {
        let Self { original, types, windows, load, mut progress } = self;
        let file = open(original.path())?;
        let n_weights = file.weights().tensors().iter().fold(0u64, |n, t| n.saturating_add(t.n_elems()));
        drop(file);
        let row = |recipe, model: &Model, found: &Divergence| {
            let (prefill, decode) = speeds(model, text, windows.ctx)?;
            let weight_bytes = model.decoder().weight_bytes();
            Ok::<_, Error>(Row {
                recipe,
                weight_bytes,
                bits_per_weight: 8.0 * weight_bytes as f64 / n_weights.max(1) as f64,
                perplexity: found.perplexity(),
                perplexity_stderr: found.perplexity_stderr(),
                ln_ppl_ratio: found.ln_perplexity_ratio(),
                ln_ppl_ratio_stderr: found.ln_perplexity_ratio_stderr(),
                kl: found.mean_kl(),
                kl_stderr: found.mean_kl_stderr(),
                top1: found.top1_agreement(),
                top1_stderr: found.top1_agreement_stderr(),
                prefill_tokens_per_s: prefill,
                decode_tokens_per_s: decode,
            })
        };
        let reference =
            original.reference(text, &windows, |so_far| progress("original", so_far.chunks_done, so_far.chunks))?;
        let measured = reference.perplexity();
        let itself = Divergence {
            nll_per_token: measured.nll_per_token.clone(),
            reference_nll_per_token: measured.nll_per_token.clone(),
            kl_per_token: vec![0.0; measured.nll_per_token.len()],
            same_top: measured.nll_per_token.len(),
            chunks: measured.chunks,
            tokens_run: measured.tokens_run,
            elapsed: measured.elapsed,
        };
        let mut rows = vec![row(None, original, &itself)?];
        for recipe in types {
            let model = load(recipe)?;
            let found = model.divergence(&reference, |done, n| progress(recipe.name(), done, n))?;
            rows.push(row(Some(recipe), &model, &found)?);
        }
        Ok(Comparison { rows, windows: measured.chunks_done, tokens_scored: measured.nll_per_token.len() })
    }
}

/// Tokens per second of prefill and decode: a window of the text, and some tokens that continue it.
fn speeds(model: &Model, text: &str, ctx: usize) -> Result<(f64, f64), Error> {
    let mut tokens = model.tokenizer().encode(text, SpecialTokens::Plain);
    tokens.truncate(ctx.min(model.context_length().saturating_sub(DECODED)).max(1));
    let out = model.generate(Prompt::Tokens(tokens)).temperature(0.0).max_tokens(DECODED).run()?;
    Ok((out.timings.prefill_tokens_per_second(), out.timings.decode_tokens_per_second()))
}
