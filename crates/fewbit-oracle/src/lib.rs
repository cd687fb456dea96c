//! Checks of fewbit against other implementations: `tests/` is what this crate is for, the library is empty.
//!
//! Tokenizers are compared with Hugging Face's library (`tests/tokenizers.rs`), safetensors files with its crate
//! (`tests/safetensors.rs`).
//!
//! The other implementation of models is candle (`candle_transformers::models::quantized_llama`): the same GGUF file,
//! the same tokens, written independently. It lives in a crate of its own, as a dev-dependency, so that
//! nothing else of the workspace depends on candle. `cargo test --workspace` builds and runs it; a plain
//! `cargo build` or `cargo test` at the root does not, because it is no default member.
#![forbid(unsafe_code)]
