//! Importance matrices: which inputs of a model's weight matrices are large, measured on a text.
//!
//! The text is cut into windows like in [`perplexity`](Model::perplexity). Each window runs through the model, and the
//! squares of the inputs of each matrix are summed by column. [`quantize_file`](fewbit_model::quantize::quantize_file)
//! weights errors by their means; so does llama.cpp, which reads the same files.

use fewbit_model::quantize::{Collector, Importance};
use fewbit_model::{Chunk, LogitsFor};

use crate::error::Error;
use crate::evaluate::PerplexityOptions;
use crate::model::Model;

impl Model {
    /// Computes the importance matrix of the model on `text`. `dataset` is the name of the text, which is stored with
    /// it. `progress` gets the number of windows done and the total.
    ///
    /// # Errors
    /// Those of [`perplexity`](Self::perplexity); one window is enough. Layers on a GPU do not do this: load the model with
    /// [`DeviceName::Cpu`](crate::DeviceName::Cpu).
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
            // As for perplexity, this runs on the engine thread, and its pages count.
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
