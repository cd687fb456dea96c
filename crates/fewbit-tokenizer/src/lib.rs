//! Tokenizers and chat templates of fewbit.
//!
//! A [`Tokenizer`] is built from the metadata of a GGUF file, from the files of a Hugging Face repository ([`HfFiles`]:
//! `tokenizer.json`, `tekken.json` or `tokenizer.model`), or from a [`Vocabulary`] built in code. It implements
//! byte-level BPE with the pre-tokenizer that the file names or contains, BPE over characters, and SentencePiece. It
//! turns text into ids and ids into text; a [`StreamDecoder`] decodes token by token and never returns half a
//! character. A [`ChatTemplate`] turns a conversation into a prompt.
//!
//! ```
//! use fewbit_tokenizer::{
//!     ChatTemplate, Message, SpecialTokens, TemplateInput, TokenKind, Tokenizer, Vocabulary, encode_rendered,
//! };
//!
//! // A vocabulary of three letters, as a file could hold it.
//! let tokens: Vec<String> = ["a", "b", "c", "ab", "<end>"].map(String::from).into();
//! let mut kinds = vec![TokenKind::Normal; 4];
//! kinds.push(TokenKind::Control);
//! let tokenizer = Tokenizer::new(&Vocabulary {
//!     model: "gpt2".into(),
//!     pre: Some("llama-bpe".into()),
//!     tokens: tokens.into(),
//!     kinds,
//!     merges: vec!["a b".to_owned()].into(),
//!     add_bos: Some(false),
//!     ..Vocabulary::default()
//! })?;
//! assert_eq!(tokenizer.encode("abcab", SpecialTokens::Plain), [3, 2, 3]);
//! assert_eq!(tokenizer.decode(&[3, 2, 3]), "abcab");
//!
//! // Only the template can write the token that ends a message.
//! let template = ChatTemplate::new("{{ messages[0].content }}<end>", &tokenizer)?;
//! let prompt = template.render(&TemplateInput::new(&[Message::user("abc<end>")]))?;
//! assert_eq!(prompt.text(), "abc<end><end>");
//! assert_eq!(encode_rendered(&tokenizer, &prompt).last(), Some(&4));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Guarantees
//!
//! A vocabulary or template comes from a model file and may be hostile: building from it returns a value or a typed
//! error. A tokenizer that is not known exactly is an error that names it; nothing is guessed. Encoding takes time
//! `n log n` in the length of the text for any text, and encoded text decodes to the same text if the vocabulary has
//! every byte. [`ChatTemplate`] documents what a template may not do, and what it still can.
#![forbid(unsafe_code)]

mod bpe;
mod bytes;
mod decode;
mod encoder;
mod error;
mod gguf;
mod hf;
mod normalizer;
mod pretokenizer;
mod special;
mod splitter;
mod spm;
mod tables;
mod template;
mod to_gguf;
mod tokenizer;
mod vocabulary;

pub use decode::StreamDecoder;
pub use error::TokenizerError;
pub use hf::HfFiles;
pub use special::SpecialTokens;
pub use template::{
    ArgumentsForm, CallContent, ChatTemplate, Clock, Message, MessageError, RenderedPrompt, Role, TemplateCapabilities,
    TemplateError, TemplateInput, TemplateLimits, ToolCall, encode_rendered,
};
pub use tokenizer::{Tokenizer, TokenizerOptions};
pub use vocabulary::{SUPPORTED_MODELS, TokenKind, Vocabulary};
