//! Wire types of the OpenAI and Anthropic Messages interfaces: requests as clients send them, answers as clients expect
//! them, and the framing of streams. The crate contains no HTTP and no model code, only types for `serde`.
//!
//! Parsing is lenient where clients differ, and strict where a mistake would go unnoticed: optional fields may be
//! `null`, unknown fields are ignored, and a wrong type is an error that tells what was expected. Deserialize requests
//! with something that reports the path of an error (such as the crate `serde_path_to_error`), because error messages
//! do not repeat the name of the field.
//!
//! ```
//! use fewbit_api::chat::ChatRequest;
//!
//! let body = r#"{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stop": null, "n": 2, "x": 1}"#;
//! let request: ChatRequest = serde_json::from_str(body)?;
//! assert_eq!((request.n, request.messages[0].content.as_text()), (Some(2), Some("Hi".to_owned())));
//! # Ok::<(), serde_json::Error>(())
//! ```
//!
//! With the feature `schema`, all types implement `schemars::JsonSchema`.
#![forbid(unsafe_code)]

pub mod admin;
pub mod batches;
pub mod chat;
pub mod common;
pub mod completion;
pub mod embedding;
pub mod error;
pub mod files;
pub mod messages;
pub mod models;
pub mod prompt;
pub mod rerank;
pub mod responses;
#[cfg(feature = "schema")]
mod schema;
pub mod sse;
pub mod tokens;
