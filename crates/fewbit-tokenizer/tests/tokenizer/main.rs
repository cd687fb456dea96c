//! Tests of the tokenizer crate through its public API, as one binary.

mod bpe;
mod capabilities;
mod chat;
mod decode;
mod errors;
mod hf;
mod smollm2;
mod spm;
mod support;
mod templates;
mod to_gguf;
