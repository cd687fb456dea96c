//! Wire types of OpenAI's interface and of Anthropic's Messages: requests as clients send them, answers as they expect
//! them, and the framing of streams. There is no HTTP here and no model, only `serde`.
//!
//! Requests are read leniently where clients differ and strictly where a mistake would go unnoticed: whatever is
//! optional may be `null`, unknown fields are ignored, a wrong type is an error that says what was expected. Read them
//! with something that knows the path to an error (such as the crate `serde_path_to_error`): messages here do not
//! repeat the field's name.
//!
//! ```
//! use fewbit_api::chat::ChatRequest;
//!
//! let body = r#"{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stop": null, "n": 2, "x": 1}"#;
//! let request: ChatRequest = serde_json::from_str(body)?;
//! assert_eq!((request.n, request.messages[0].content.as_text()), (Some(2), Some("Hi".to_owned())));
//! # Ok::<(), serde_json::Error>(())
//! ```
#![forbid(unsafe_code)]

pub mod chat;
pub mod common;
pub mod completion;
pub mod embedding;
pub mod error;
pub mod messages;
pub mod models;
pub mod responses;
pub mod sse;
pub mod tokens;
