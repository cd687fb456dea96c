//! A constraint that is applied to one text.

use llguidance::Matcher;
use llguidance::api::StopReason;

use super::ConstraintError;

/// A compiled constraint, and its state after the text so far.
pub(crate) struct Active {
    matcher: Matcher,
}

impl Active {
    /// `kind` is the name of the constraint in errors.
    pub(super) fn new(mut matcher: Matcher, kind: &'static str) -> Result<Self, ConstraintError> {
        if let Some(error) = matcher.get_error() {
            return Err(super::invalid(kind, &error));
        }
        // Checks before anything is computed that there is a valid first token.
        matcher.compute_mask_or_eos().map_err(|error| {
            let reason = error.to_string();
            match matcher.stop_reason() {
                StopReason::LexerTooComplex | StopReason::ParserTooComplex => {
                    ConstraintError::TooLarge { kind, reason }
                }
                _ => ConstraintError::Unsatisfiable { kind, reason },
            }
        })?;
        Ok(Self { matcher })
    }

    /// Rules out the tokens in `logits`, `[n_vocab]`, that cannot come next.
    pub(crate) fn restrict(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(too_complex)?;
        let words = mask.as_slice();
        for (word, logits) in words.iter().zip(logits.chunks_mut(32)) {
            match *word {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                word => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
        // The model may have more logits than the vocabulary has tokens.
        let n_vocab = mask.len().min(words.len() * 32);
        if let Some(beyond) = logits.get_mut(n_vocab..) {
            beyond.fill(f32::NEG_INFINITY);
        }
        Ok(())
    }

    /// The next tokens for which the constraint leaves no choice, as far as it can tell. Finding them is a part of
    /// [`restrict`](Self::restrict), which does not repeat it.
    pub(crate) fn forced(&mut self) -> Vec<u32> {
        self.matcher.compute_ff_tokens()
    }

    /// Adds the chosen token to the text; returns whether the text is complete and nothing can follow it.
    pub(crate) fn accept(&mut self, token: u32) -> Result<bool, ConstraintError> {
        self.matcher.consume_token(token).map_err(too_complex)?;
        Ok(self.matcher.is_stopped())
    }
}

fn too_complex(error: impl std::fmt::Display) -> ConstraintError {
    ConstraintError::TooComplex { reason: error.to_string().lines().next().unwrap_or_default().to_owned() }
}
