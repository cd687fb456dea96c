//! Errors: those of starting the server, and those that clients get, in OpenAI's or Anthropic's form.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use fewbit_api::error::{ErrorBody, ErrorObject, MessagesErrorBody, MessagesErrorObject};

use crate::backend::{BackendError, BackendErrorKind};

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address to listen on is invalid.
    #[error("{address:?} is not an address to listen on: give IP:PORT, such as 127.0.0.1:8080")]
    Address {
        /// The address as it was given.
        address: String,
    },
    /// The server would be reachable from other machines without keys.
    #[error(
        "{address} can be reached from other machines, and there are no keys: give some, or \
         listen on 127.0.0.1"
    )]
    Open {
        /// The address.
        address: SocketAddr,
    },
    /// Listening on the address failed.
    #[error("cannot listen on {address}: stop what listens there, or give another port (0 takes a free one)")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        error: std::io::Error,
    },
    /// The certificate of the server, or its key, cannot be used.
    #[error("{} {what}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Two models have the same name.
    #[error("two models are called {id:?}: requests could mean either; rename one of the files")]
    SameName {
        /// The name.
        id: String,
    },
    /// The configuration of an upstream is invalid.
    #[error("the upstream {url:?} {what}")]
    Upstream {
        /// The upstream's address.
        url: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The models that are loaded at the start do not fit into the memory limit.
    #[error("the models take {needed}, but may take {limit} together: load some on demand, or raise the limit")]
    MemoryLimit {
        /// What they take.
        needed: String,
        /// The limit.
        limit: String,
    },
    /// The folder of files cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    Files {
        /// The operation: `read`, `open` and so on.
        what: &'static str,
        /// The file or folder.
        path: std::path::PathBuf,
        /// The cause.
        #[source]
        error: std::io::Error,
    },
    /// Another server uses the folder of files.
    #[error("{} is in use by another server: give each its own", path.display())]
    FilesInUse {
        /// The folder.
        path: std::path::PathBuf,
    },
    /// There is no model to serve.
    #[error("there is no model to serve: give at least one")]
    NoModel,
}

/// Whose error format an endpoint uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorForm {
    OpenAi,
    Anthropic,
}

/// An error as clients get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
    pub(crate) retry_after_s: Option<u32>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after_s: None }
    }

    /// An error about an invalid field.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    pub(crate) fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(crate) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed on this request; it goes on with others")
    }

    pub(crate) fn body(&self) -> ErrorBody {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "service_unavailable_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let Self { message, param, code, .. } = self.clone();
        ErrorBody { error: ErrorObject { message, kind, param, code } }
    }

    /// The error body in Anthropic's form.
    pub(crate) fn messages_body(&self, request_id: Option<&str>) -> MessagesErrorBody {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            status if status.is_server_error() => "api_error",
            _ => "invalid_request_error",
        };
        let error = MessagesErrorObject { kind, message: self.message.clone() };
        MessagesErrorBody { kind: "error", error, request_id: request_id.map(str::to_owned) }
    }

    pub(crate) fn into_response(self, form: ErrorForm, request_id: &str) -> Response<Body> {
        let body = match form {
            ErrorForm::OpenAi => serde_json::to_vec(&self.body()),
            ErrorForm::Anthropic => serde_json::to_vec(&self.messages_body(Some(request_id))),
        };
        let body = body.unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// The status of cancelled requests. Official clients do not try again after it.
fn cancelled() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
}

impl From<BackendError> for ApiError {
    fn from(error: BackendError) -> Self {
        let BackendError { kind, message, param } = error;
        let (status, code, retry_after_s) = match kind {
            BackendErrorKind::Invalid => (StatusCode::BAD_REQUEST, None, None),
            BackendErrorKind::TooLong => (StatusCode::BAD_REQUEST, Some("context_length_exceeded"), None),
            BackendErrorKind::UnknownModel => (StatusCode::NOT_FOUND, Some("model_not_found"), None),
            BackendErrorKind::Busy => (StatusCode::TOO_MANY_REQUESTS, Some("queue_full"), Some(1)),
            BackendErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, None, Some(1)),
            BackendErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, None, None),
            BackendErrorKind::NotLoaded { retry_after_s } => {
                (StatusCode::SERVICE_UNAVAILABLE, Some("model_not_loaded"), Some(retry_after_s))
            }
            BackendErrorKind::TooLarge => (StatusCode::SERVICE_UNAVAILABLE, Some("model_too_large"), None),
            BackendErrorKind::LoadFailed => (StatusCode::INTERNAL_SERVER_ERROR, Some("model_load_failed"), None),
            BackendErrorKind::NoKey => (StatusCode::UNAUTHORIZED, Some("missing_api_key"), None),
            BackendErrorKind::WrongKey => (StatusCode::UNAUTHORIZED, Some("invalid_api_key"), None),
            BackendErrorKind::Forbidden => (StatusCode::FORBIDDEN, Some("not_allowed"), None),
            BackendErrorKind::TooMany { retry_after_s } => {
                (StatusCode::TOO_MANY_REQUESTS, Some("rate_limit_exceeded"), Some(retry_after_s))
            }
            BackendErrorKind::Spent => (StatusCode::TOO_MANY_REQUESTS, Some("insufficient_quota"), None),
            BackendErrorKind::UpstreamBusy { retry_after_s } => {
                (StatusCode::SERVICE_UNAVAILABLE, Some("upstream_busy"), Some(retry_after_s))
            }
            BackendErrorKind::Cancelled => (cancelled(), Some("cancelled"), None),
            BackendErrorKind::Upstream => (StatusCode::BAD_GATEWAY, Some("upstream_error"), None),
        };
        Self { status, message, param, code, retry_after_s }
    }
}
