//! Importance matrices: which inputs of a model's matrices are large, on a text.
//!
//! The text is cut into windows as [`perplexity`](Model::perplexity) does it, each is run through the model, and the
//! squares of what enters each matrix are summed up by column. [`quantize_file`](fewbit_model::quantize::quantize_file)
//! weights errors by their means, and so does llama.cpp, which reads the same files.

use fewbit_model::quantize::{Collector, Importance};
use fewbit_model::{Chunk, LogitsFor};

use crate::error::Error;
use crate::evaluate::PerplexityOptions;
use crate::model::Model;

impl Model {
    /// The importance matrix of the model on `text`, whose name is `dataset`. `progress` is told the windows done and
    /// how many there are.
    ///
    /// # Errors
    /// Those of [`perplexity`](Self::perplexity); one window is enough.
    pub fn importance(
        &self,
        text: &str,
        dataset: &str,
        options: &PerplexityOptions,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Importance, Error> {
        let windows = self.windows(text, options, 1)?;
        let mut collector = Collector::new();
        for (i, window) in windows.iter().enumerate() {
            // As for perplexity: on the engine thread, with pages that count.
            let mut sequence = self.inner.reserve(self.loras(), window.len())?;
            for tokens in window.chunks(self.inner.core.limits.prefill_chunk) {
                let (tokens, mut lent) = (tokens.to_vec(), std::mem::take(&mut collector));
                collector = sequence.step(move |decoder, cache| {
                    let chunk = Chunk { cache, tokens: &tokens, logits: LogitsFor::None };
                    decoder.forward_collecting(&mut [chunk], &mut lent)?;
                    Ok(lent)
                })?;
            }
            progress(i + 1, windows.len());
        }
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(collector.finish(dataset, count(windows.len()), count(options.ctx)))
    }
}
