//! An HTTP server for language models with the OpenAI and Anthropic Messages interfaces. Answers come from fewbit's
//! engine or from anything else that implements [`Backend`].
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
//! All requests pass through the same pipeline, whatever their endpoint (`line.rs`):
//!
//! ```text
//! authenticate -> read and validate -> backend -> format the answer
//! ```
//!
//! An endpoint only defines how its request is read and how its answer looks, so no endpoint can bypass the pipeline.
//! If a client disconnects, its generation ends: dropping the connection drops the answer, which drops the generation.
//! No text of a request or an answer is logged.
//!
//! It needs tokio's multi-threaded runtime: preparing a prompt blocks a thread for some milliseconds.
#![forbid(unsafe_code)]

mod admin;
mod backend;
mod batch;
mod endpoints;
mod engine;
mod error;
mod http;
mod job;
mod kept;
mod keys;
mod line;
mod live;
mod local;
mod messages;
mod models;
mod rerank;
mod scripted;
mod server;
mod stats;
mod stream;
mod telemetry;
mod tls;
mod upstream;

pub use admin::Admin;
pub use backend::{
    Alternative, AnsweredBy, Backend, BackendError, BackendErrorKind, Boxed, CallDelta, Caller, Embedded, End, Event,
    Finish, Form, Gate, Generating, Input, Job, ModelInfo, Models, Piece, PromptUsed, Prompts, RenderedPrompt,
    Reranked, Sample, SampleKind, Token, Usage, VoidCall,
};
pub use batch::files::{FileLimits, Files};
pub use batch::{BATCH_ENDPOINTS, BatchLine, BatchLines};
pub use engine::EngineBackend;
pub use error::ServeError;
pub use http::{HttpAnswer, HttpClient, HttpError};
pub use job::NoJob;
pub use keys::{Keys, KeysError};
pub use local::{Local, LocalAnswer};
pub use models::{BuilderSource, ModelSource, ModelState, ServedModel, SourceError};
pub use scripted::{Script, ScriptedBackend};
pub use server::{Bound, Server, check_address};
#[cfg(feature = "otel")]
pub use telemetry::Traced;
pub use tls::{NewCertificate, Tls};
pub use upstream::{UpstreamBackend, UpstreamConfig};

/// The wire types of requests and answers.
pub use fewbit_api as api;
