//! `/v1/batches`: many requests in a file, answered in a file.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A request to answer the requests in a file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct BatchRequest {
    /// The file, of purpose `batch`.
    pub input_file_id: String,
    /// The endpoint that all its lines ask.
    pub endpoint: String,
    /// `24h`.
    pub completion_window: String,
    /// Texts that the client gets back, such as names of its own.
    pub metadata: Option<BTreeMap<String, String>>,
    /// The seed of requests that have none; 0 by default. Not part of OpenAI's interface.
    pub seed: Option<i64>,
}

/// A batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Batch {
    /// Its id.
    pub id: String,
    /// `batch`.
    pub object: Cow<'static, str>,
    /// The endpoint that all its lines ask.
    pub endpoint: String,
    /// What is wrong with the file, if it was not begun.
    pub errors: Option<BatchErrors>,
    /// The file with the requests.
    pub input_file_id: String,
    /// `24h`.
    pub completion_window: String,
    /// How far it is.
    pub status: BatchStatus,
    /// The file with the answers; null if there are none (yet).
    pub output_file_id: Option<String>,
    /// The file with the lines that failed; null if there are none (yet).
    pub error_file_id: Option<String>,
    /// When it was created, in seconds since 1970, as all times here.
    pub created_at: u64,
    /// When its first line was asked.
    pub in_progress_at: Option<u64>,
    /// Until when it is answered.
    pub expires_at: Option<u64>,
    /// When its last line was answered.
    pub finalizing_at: Option<u64>,
    /// When its files were ready.
    pub completed_at: Option<u64>,
    /// When it failed.
    pub failed_at: Option<u64>,
    /// When its time was over.
    pub expired_at: Option<u64>,
    /// When it was asked to end.
    pub cancelling_at: Option<u64>,
    /// When it ended because it was asked to.
    pub cancelled_at: Option<u64>,
    /// How many lines it has.
    pub request_counts: RequestCounts,
    /// The texts that the client gave.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// How far a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BatchStatus {
    /// Its file is being checked.
    Validating,
    /// Its file is wrong, or its key was revoked.
    Failed,
    /// Its lines are being answered.
    InProgress,
    /// Its files are being written.
    Finalizing,
    /// All lines are answered.
    Completed,
    /// Its time was over.
    Expired,
    /// It is about to end because it was asked to.
    Cancelling,
    /// It ended because it was asked to.
    Cancelled,
}

/// How many lines a batch has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RequestCounts {
    /// All of them.
    pub total: u64,
    /// Those with an answer.
    pub completed: u64,
    /// Those that failed.
    pub failed: u64,
}

/// What is wrong with the file of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BatchErrors {
    /// `list`.
    pub object: Cow<'static, str>,
    /// The first mistakes.
    pub data: Vec<BatchError>,
}

/// A mistake in the file of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BatchError {
    /// What kind of mistake it is.
    pub code: Cow<'static, str>,
    /// What is wrong.
    pub message: String,
    /// The field.
    pub param: Option<String>,
    /// The line, from 1; null if it is about no line.
    pub line: Option<u64>,
}
