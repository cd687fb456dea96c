//! Errors, as clients of the OpenAI interface read them.

use serde::Serialize;

/// The body of an answer that is an error, and of an error in a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: ErrorObject,
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
