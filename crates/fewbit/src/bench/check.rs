//! Whether a model on a GPU computes what the CPU computes.

use fewbit_model::{Chunk, Decoder, KvCache, LogitsFor, ModelError};

use super::figures::BenchError;
use super::model::{Target, extend, tokens};
use crate::evaluate::{RowPair, top};

/// Length of the prompt before the steps that are compared.
const PROMPT: usize = 64;

/// A comparison of the same weights on other devices: both read the same tokens, of which each is the most likely one of the
/// reference.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DeviceCheck {
    /// Number of steps.
    pub n_steps: usize,
    /// Number of steps whose logits are the reference's, bit for bit.
    pub n_same_bits: usize,
    /// Number of steps with the reference's most likely token.
    pub n_same_tokens: usize,
    /// Where another token is the most likely one: how much lower its logit is in the reference, at most.
    pub largest_gap: f32,
    /// Mean KL divergence from the reference's distributions, in nats.
    pub mean_kl: f64,
    /// The largest KL divergence of a step, in nats.
    pub max_kl: f64,
}

impl DeviceCheck {
    /// Runs a prompt and `n_steps` tokens on both.
    ///
    /// # Errors
    /// [`BenchError::TooLong`], [`BenchError::OtherVocabulary`] if the weights are not the same, and those of the models.
    pub fn run(target: &Target<'_>, reference: &Target<'_>, n_steps: usize) -> Result<Self, BenchError> {
        let decoders = [target.decoder(), reference.decoder()];
        let [n_vocab, other] = decoders.map(Decoder::n_vocab);
        if n_vocab != other {
            return Err(BenchError::OtherVocabulary { n_vocab, reference: other });
        }
        let context_tokens = decoders.map(|decoder| decoder.config().context_length).into_iter().min().unwrap_or(0);
        let needed = n_steps.saturating_add(PROMPT);
        if needed > context_tokens {
            return Err(BenchError::TooLong { needed, context_tokens });
        }
        let mut caches = [target, reference].map(|target| target.decoder().new_cache_with(&target.loras));
        let prompt = tokens(decoders[0], PROMPT, 0);
        let (last, before) = prompt.split_last().expect("a prompt");
        for (decoder, cache) in decoders.iter().zip(&mut caches) {
            extend(decoder, cache, before, false)?;
        }
        let mut check = Self { n_steps, n_same_bits: 0, n_same_tokens: 0, largest_gap: 0.0, mean_kl: 0.0, max_kl: 0.0 };
        let mut token = *last;
        for _ in 0..n_steps {
            let [own, of_reference] = &mut caches;
            let (own, of_reference) = (step(decoders[0], own, token)?, step(decoders[1], of_reference, token)?);
            check.n_same_bits += usize::from(own.iter().zip(&of_reference).all(|(a, b)| a.to_bits() == b.to_bits()));
            let [chosen, best] = [&own, &of_reference].map(|logits| top(logits).unwrap_or(0));
            check.n_same_tokens += usize::from(chosen == best);
            check.largest_gap = check.largest_gap.max(of_reference[best] - of_reference[chosen]);
            let kl = RowPair::new(&own, &of_reference, best).kl;
            check.mean_kl += kl / n_steps as f64;
            check.max_kl = check.max_kl.max(kl);
            token = best as u32;
        }
        Ok(check)
    }
}

/// The logits after one token.
fn step(decoder: &Decoder, cache: &mut KvCache, token: u32) -> Result<Vec<f32>, ModelError> {
    let chunk = Chunk { cache, tokens: &[token], logits: LogitsFor::Last };
    Ok(decoder.forward(&mut [chunk])?.values_mut().to_vec())
}
