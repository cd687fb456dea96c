//! Decodes tokens to text, one at a time.
//!
//! A token is a run of bytes, and a character may begin in one token and end in the next, so the decoder holds back
//! bytes that could still become a character. Bytes that no longer can become U+FFFD, so that the pieces together are
//! exactly what [`String::from_utf8_lossy`] makes of all bytes together.

use crate::tokenizer::Tokenizer;

/// The state of a text that is decoded token by token.
///
/// ```
/// # use fewbit_tokenizer::{Tokenizer, Vocabulary};
/// # let tokens: Vec<String> = ["Ã", "©"].map(String::from).into();
/// # let tokenizer = Tokenizer::new(&Vocabulary {
/// #     model: "gpt2".into(), pre: Some("gpt-2".into()), tokens: tokens.into(), ..Default::default()
/// # }).unwrap();
/// let mut decoder = tokenizer.decoder();
/// let pieces = [0, 1].map(|id| decoder.push(&tokenizer, id));
/// assert_eq!(pieces, ["", "é"]);
/// assert_eq!(decoder.finish(), "");
/// ```
#[derive(Debug, Clone, Default)]
pub struct StreamDecoder {
    /// Bytes that may still become a character: at most three between calls.
    pending: Vec<u8>,
    /// Whether to drop one leading space, which the encoder would have added.
    drop_space: bool,
    show_special: bool,
}

impl StreamDecoder {
    pub(crate) fn new(drop_space: bool, show_special: bool) -> Self {
        Self { pending: Vec::new(), drop_space, show_special }
    }

    /// Takes the next token and returns the text that is now complete, which is often empty.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        let mut text = String::new();
        self.push_to(tokenizer, id, &mut text);
        text
    }

    /// As [`push`](Self::push), appending to `text`.
    pub fn push_to(&mut self, tokenizer: &Tokenizer, id: u32, text: &mut String) {
        let mut bytes = if self.show_special { tokenizer.raw_bytes(id) } else { tokenizer.token_bytes(id) };
        if bytes.is_empty() {
            return;
        }
        if std::mem::take(&mut self.drop_space) {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        if self.pending.is_empty()
            && let Ok(whole) = std::str::from_utf8(bytes)
        {
            text.push_str(whole);
            return;
        }
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            text.push_str(std::str::from_utf8(valid).unwrap_or_default());
            rest = after;
            match error.error_len() {
                Some(n_bytes) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = rest.get(n_bytes..).unwrap_or_default();
                }
                None => break,
            }
        }
        let n_done = self.pending.len() - rest.len();
        self.pending.drain(..n_done);
    }

    /// Whether the decoder holds back the beginning of a character.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Ends the text: returns U+FFFD if it ends inside a character, otherwise an empty string.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}
