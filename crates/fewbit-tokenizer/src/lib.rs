//! Tokenizers and chat templates of fewbit.
#![forbid(unsafe_code)]

mod bpe;
mod bytes;
mod decode;
mod error;
mod gguf;
mod pretokenizer;
mod special;
mod spm;
mod tables;
mod template;
mod tokenizer;
mod vocabulary;

pub use decode::StreamDecoder;
pub use error::TokenizerError;
pub use special::SpecialTokens;
pub use template::{
    ChatTemplate, Clock, Message, RenderedPrompt, TemplateError, TemplateInput, TemplateLimits,
    encode_rendered,
};
pub use tokenizer::{Tokenizer, TokenizerOptions};
pub use vocabulary::{SUPPORTED_MODELS, TokenKind, Vocabulary};
