//! A constraint as it is followed through one text.

use llguidance::Matcher;
use llguidance::api::StopReason;

use super::ConstraintError;

/// A compiled constraint, and how far its text has come.
pub(crate) struct Active {
    matcher: Matcher,
}

impl Active {
    /// `kind` is what the constraint is called in errors.
    pub(super) fn new(mut matcher: Matcher, kind: &'static str) -> Result<Self, ConstraintError> {
        if let Some(error) = matcher.get_error() {
            return Err(super::invalid(kind, &error));
        }
        // Before anything is computed it is known whether there is any way to go.
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

    /// Makes impossible, in `logits` `[n_vocab]`, what cannot come next.
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
        // What the vocabulary does not have, the model may have logits for.
        let n_vocab = mask.len().min(words.len() * 32);
        if let Some(beyond) = logits.get_mut(n_vocab..) {
            beyond.fill(f32::NEG_INFINITY);
        }
        Ok(())
    }

    /// Tokens of which the constraint leaves no choice, from the next one on, as far as it can tell. Finding them is
    /// a part of [`restrict`](Self::restrict), which does not repeat it.
    pub(crate) fn forced(&mut self) -> Vec<u32> {
        self.matcher.compute_ff_tokens()
    }

    /// Takes the token that came. Whether the text is complete with it, and nothing can follow.
    pub(crate) fn accept(&mut self, token: u32) -> Result<bool, ConstraintError> {
        self.matcher.consume_token(token).map_err(too_complex)?;
        Ok(self.matcher.is_stopped())
    }
}

fn too_complex(error: impl std::fmt::Display) -> ConstraintError {
    ConstraintError::TooComplex { reason: error.to_string().lines().next().unwrap_or_default().to_owned() }
}
