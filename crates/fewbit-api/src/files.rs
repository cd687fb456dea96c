//! `/v1/files`: files that batches read and write.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A stored file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FileObject {
    /// Its id.
    pub id: String,
    /// `file`.
    pub object: Cow<'static, str>,
    /// Its size.
    pub bytes: u64,
    /// When it was stored, in seconds since 1970.
    pub created_at: u64,
    /// The name that the client gave.
    pub filename: String,
    /// `batch` for the input of a batch, `batch_output` for what a batch wrote.
    pub purpose: Cow<'static, str>,
    /// `processed`.
    pub status: Cow<'static, str>,
}

/// A part of a list, in the form that OpenAI's clients page through.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Page<T> {
    /// `list`.
    pub object: &'static str,
    /// The items.
    pub data: Vec<T>,
    /// The id of the first item.
    pub first_id: Option<String>,
    /// The id of the last item, after which the next page begins.
    pub last_id: Option<String>,
    /// Whether there are more after these.
    pub has_more: bool,
}
