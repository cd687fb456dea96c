//! Errors in OpenAI's form and in Anthropic's.

use serde::Serialize;

/// The body of an error response, and of an error event in a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// What is wrong.
    pub error: ErrorObject,
}

/// The body of an error in Anthropic's form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MessagesErrorBody {
    /// `error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What is wrong.
    pub error: MessagesErrorObject,
    /// The id of the request.
    pub request_id: Option<String>,
}

/// An error in Anthropic's form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MessagesErrorObject {
    /// The kind, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// A message for people.
    pub message: String,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorObject {
    /// A message for people.
    pub message: String,
    /// The kind, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The path of the field that is wrong.
    pub param: Option<String>,
    /// A code for programs, such as `model_not_found`.
    pub code: Option<&'static str>,
}
