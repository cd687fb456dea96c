//! `POST /v1/embeddings`.

use serde::{Deserialize, Serialize};

use crate::common::Prompts;

/// A request for embeddings.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct EmbeddingRequest {
    /// The model; may be left out if there is only one.
    pub model: Option<String>,
    /// The texts, as texts or token ids.
    pub input: Prompts,
    /// How the vectors are encoded.
    pub encoding_format: Option<EncodingFormat>,
    /// The requested length of the vectors.
    pub dimensions: Option<u32>,
}

/// How vectors are encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// The bytes of f32 numbers, little-endian, in base64.
    Base64,
}

/// The answer to a request for embeddings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EmbeddingResponse {
    /// `list`.
    pub object: &'static str,
    /// One for each text.
    pub data: Vec<Embedding>,
    /// The model.
    pub model: String,
    /// The tokens of the request.
    pub usage: EmbeddingUsage,
}

/// The embedding of one text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Embedding {
    /// `embedding`.
    pub object: &'static str,
    /// The index of the text.
    pub index: usize,
    /// The vector.
    pub embedding: Vector,
}

/// A vector in its encoding.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Vector {
    /// A list of numbers.
    Float(Vec<f32>),
    /// The bytes of f32 numbers, little-endian, in base64.
    Base64(String),
}

impl Vector {
    /// Encodes a vector.
    pub fn new(vector: Vec<f32>, format: EncodingFormat) -> Self {
        match format {
            EncodingFormat::Float => Self::Float(vector),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Self::Base64(base64(&bytes))
            }
        }
    }
}

/// The tokens of a request for embeddings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EmbeddingUsage {
    /// Tokens of all texts.
    pub prompt_tokens: usize,
    /// The same number again.
    pub total_tokens: usize,
}

/// Encodes bytes as base64 (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= group.len() { digit.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_rfc_4648() {
        // Section 10.
        let vectors =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (bytes, text) in vectors {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
        // Python: base64.b64encode(struct.pack("<2f", 1.0, -2.5))
        assert_eq!(Vector::new(vec![1.0, -2.5], EncodingFormat::Base64), Vector::Base64("AACAPwAAIMA=".into()));
    }
}
