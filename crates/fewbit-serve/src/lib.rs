//! Models over HTTP: OpenAI's interface and Anthropic's Messages, served by fewbit's engine or by whatever else implements [`Backend`].
//!
//! ```no_run
//! use fewbit_serve::{EngineBackend, Server};
//!
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! let model = fewbit::Model::load("smollm2-135m-instruct")?;
//! let server = Server::new(EngineBackend::new([("smollm2", model)])?).bind("127.0.0.1:8080").await?;
//! println!("listening on http://{}", server.local_addr());
//! server.run(std::future::pending()).await;
//! # Ok(()) }
//! ```
//!
//! A request walks one line, whatever its endpoint (`line.rs`):
//!
//! ```text
//! authenticate -> read and validate -> backend -> the answer's form
//! ```
//!
//! An endpoint says how its request is read and how its answer looks, and nothing else: none has a way around the line.
//! What a client gave up is ended: the connection holds the answer, the answer holds the generation. No text of a
//! request or an answer is in a log.
//!
//! The runtime must be tokio's with several threads: preparing a prompt takes a thread for some milliseconds.
#![forbid(unsafe_code)]

mod backend;
mod endpoints;
mod engine;
mod error;
mod kept;
mod keys;
mod line;
mod local;
mod messages;
mod scripted;
mod server;
mod stats;
mod stream;

pub use backend::{
    Alternative, Backend, BackendError, BackendErrorKind, Boxed, CallDelta, Caller, Embedded, End, Event, Finish, Form,
    Gate, Generating, Input, Job, ModelInfo, Piece, Sample, SampleKind, Token, Usage, VoidCall,
};
pub use engine::EngineBackend;
pub use error::ServeError;
pub use keys::{Keys, KeysError};
pub use local::{Local, LocalAnswer};
pub use scripted::{Script, ScriptedBackend};
pub use server::{Bound, Server, check_address};

/// Answers of one line: how they are asked for in the interface of OpenAI.
pub use fewbit_api as api;
