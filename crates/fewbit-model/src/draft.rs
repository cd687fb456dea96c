//! Drafts of a model by its own layer that predicts a further token: see `cpu::mtp`.

use crate::batch::{Chunk, LogitsFor};
use crate::cache::KvCache;
use crate::decoder::{Buffers, Decoder, caught};
use crate::segment::Step;
use crate::{CheckpointError, ModelConfig, ModelError};

impl Decoder {
    /// Whether it can [draft](Self::draft) tokens: it was loaded with the layer for that.
    pub fn has_drafts(&self) -> bool {
        self.config().mtp.is_some()
    }

    /// Drafts at most `n` tokens after those of the cache and `tokens`, which follow them. `choose` gets the logits of each
    /// drafted token and picks it, or ends the draft. Nothing is appended to the cache; its pages grow by the positions of
    /// `tokens` and of the drafted tokens except the last.
    ///
    /// A draft is empty without the layer for it, for an empty cache, and where the context has no room for it.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn draft(
        &self,
        cache: &mut KvCache,
        tokens: &[u32],
        n: usize,
        choose: &mut dyn FnMut(&[f32]) -> Option<u32>,
    ) -> Result<Vec<u32>, ModelError> {
        let mut buffers = self.buffers();
        let len = cache.len();
        self.check(&Chunk { cache, tokens, logits: LogitsFor::None })?;
        let room = (self.config().context_length - len).saturating_sub(tokens.len());
        let n = n.min(room);
        if len == 0 || tokens.is_empty() || n == 0 || !self.has_drafts() {
            return Ok(Vec::new());
        }
        cache.reserve_drafts(tokens.len() + n - 1)?;
        caught(|| self.draft_reserved(&mut buffers, cache, tokens, n, choose))
    }

    fn draft_reserved(
        &self,
        s: &mut Buffers,
        cache: &mut KvCache,
        tokens: &[u32],
        n: usize,
        choose: &mut dyn FnMut(&[f32]) -> Option<u32>,
    ) -> Result<Vec<u32>, ModelError> {
        let parts = self.parts();
        let (Some(mtp), part) = (&parts.mtp, parts.segments.len()) else { return Ok(Vec::new()) };
        let Some(mut hidden) = cache.last_state().map(|state| mtp.last_hidden(&state, cache.len(), part)) else {
            return Ok(Vec::new());
        };
        let mut draft = Vec::with_capacity(n);
        s.draft_logits.resize(self.n_vocab(), 0.0);
        for i in 0..tokens.len() + n - 1 {
            let token = tokens.get(i).or(draft.last()).copied().unwrap_or_default();
            self.embed_at([(token, cache.len() + i)].into_iter(), s);
            let mut sequence = cache.draft_row(i);
            sequence.enter(part);
            let mut step = Step {
                sequences: vec![sequence],
                global: &s.global,
                local: &s.local,
                temperatures: &s.temperatures,
                per_layer: &[],
                loras: &[],
                collector: None,
            };
            if i + 1 < tokens.len() {
                mtp.draft(&mut step, &s.x, &mut hidden, None)?;
                continue;
            }
            mtp.draft(&mut step, &s.x, &mut hidden, Some(&mut s.draft_logits))?;
            match choose(&s.draft_logits) {
                Some(token) if (token as usize) < self.n_vocab() => draft.push(token),
                _ => break,
            }
        }
        Ok(draft)
    }
}

/// The error of a model without a layer for drafts, or one that has layers on a device.
pub(crate) fn refused(config: &ModelConfig, has_devices: bool) -> Option<ModelError> {
    let (feature, value) = match config.mtp {
        None => ("drafts of a model without a layer of its own for them", "missing"),
        Some(_) if has_devices => ("drafts of a model that is not on the CPU as a whole", "on another device"),
        Some(_) => return None,
    };
    let key = "nextn_predict_layers".to_owned();
    Some(CheckpointError::UnsupportedFeature { feature, key, value: value.to_owned() }.into())
}
