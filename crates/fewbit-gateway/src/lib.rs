//! Access control for the server: API keys with scopes and quotas, usage and cost accounting, a tamper-evident audit
//! log.
//!
//! All data is in one folder, the store:
//!
//! ```text
//! store/
//!   keys.json     the keys (as hashes), with the scopes and limits of each
//!   prompts.json  which versions of prompts were promoted
//!   audit.jsonl   one line for each answer, chained by hashes; usage is computed from it
//!   audit.lock    locked by the server that writes to the store
//!   texts/        texts of requests and answers, if the configuration asks to keep them
//! ```
//!
//! A [`Gateway`] wraps any backend and is also the server's gate, so that no endpoint can bypass it. It fails closed:
//! requests that cannot be checked or logged are refused.
//!
//! ```no_run
//! use fewbit_gateway::{Gateway, Prices};
//! use fewbit_serve::{ScriptedBackend, Server};
//!
//! let gateway = Gateway::open("store", Prices::default(), ScriptedBackend::default())?;
//! let server = Server::new(gateway.backend()).gate(gateway);
//! # Ok::<(), fewbit_gateway::GatewayError>(())
//! ```
#![forbid(unsafe_code)]

mod admin;
mod audit;
mod breaker;
mod config;
mod error;
mod gateway;
mod keys;
mod limits;
mod live;
mod masking;
mod output;
mod prompts;
mod replay;
mod routes;
mod size;
mod texts;
mod tools;
mod usage;

pub use audit::{Audit, Entry, Head, Outcome, Permission, ToolStep, ToolUse, log_changes, verify};
pub use config::{Config, EXAMPLE, LoadWhen, ModelConfig, TlsConfig};
pub use error::GatewayError;
pub use gateway::{Gateway, Guarded, Price, Prices, Settings};
pub use keys::{Key, KeyStore, NewKey};
pub use live::Live;
pub use output::{Answer, AnswerCall};
pub use prompts::{Action, Change, PromptState, PromptStore, PromptVersion, role_name};
pub use replay::{NoReplay, Which, answer_again, chosen, given_request, kept_request, local_model};
pub use routes::{Route, Routes};
pub use size::Size;
pub use tools::{Tools, WithTools};
pub use usage::{By, Row, date, date_time, usage};

use std::time::SystemTime;

/// The current time in milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
