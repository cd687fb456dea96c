//! Errors, as clients of the OpenAI interface read them.

use serde::Serialize;

/// The body of an answer that is an error, and of an error in a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: ErrorObject,
}

/// The same in Anthropic's form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MessagesErrorBody {
    /// `error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What is wrong.
    pub error: MessagesErrorObject,
    /// Tells requests apart.
    pub request_id: Option<String>,
}

/// What is wrong, in Anthropic's form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MessagesErrorObject {
    /// The kind, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// For people.
    pub message: String,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorObject {
    /// For people.
    pub message: String,
    /// The kind, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Which field of the request.
    pub param: Option<String>,
    /// For programs, such as `model_not_found`.
    pub code: Option<&'static str>,
}
