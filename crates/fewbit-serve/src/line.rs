//! The pipeline that every request passes through: authentication, reading the request, the answer, its formatting.
//!
//! An [`Endpoint`] adds how its request is read and answered. What all endpoints share is here: keys, checks of host
//! and origin, size limits, JSON errors with the path of the wrong field, panics, metrics and logs.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use futures_core::Stream;
use futures_util::{FutureExt, StreamExt};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::Value;

use crate::backend::{AnsweredBy, BackendError, BackendErrorKind, Caller, PromptUsed};
use crate::error::{ApiError, ErrorForm};
use crate::local::OnBehalf;
use crate::server::Shared;
use crate::stats::Running;
use crate::stream::KeepAlive;
use crate::telemetry::RequestSpan;

/// How long a client may take to send the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Up to this many times the size limit, a body that is too large is read and discarded, so that the client receives
/// the error instead of a failed write.
const DISCARDED: usize = 8;

/// The header with the feature that a request is for.
pub(crate) const FEATURE_HEADER: &str = "x-fewbit-feature";

/// The longest name of a feature.
const MAX_FEATURE: usize = 64;

/// What one endpoint adds to the pipeline.
pub(crate) trait Endpoint: 'static {
    /// Its name in metrics, logs and scopes of keys.
    const PATH: &'static str;
    /// Whether it needs no key.
    const IS_OPEN: bool = false;
    /// Whether the request has a body, which is JSON.
    const HAS_BODY: bool = true;
    /// Whose error format it uses.
    const ERRORS: ErrorForm = ErrorForm::OpenAi;

    fn answer(server: &Arc<Shared>, call: Call) -> impl Future<Output = Result<Reply, ApiError>> + Send;
}

/// The parts of a request that all endpoints share.
pub(crate) struct Call {
    /// The body; null if there is none.
    pub(crate) body: Value,
    /// The path.
    pub(crate) path: String,
    /// The part of the address after the question mark.
    pub(crate) query: String,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The body of an endpoint that reads it itself.
    pub(crate) upload: Body,
    /// The sender of the request.
    pub(crate) caller: Caller,
}

impl Call {
    /// A parameter of the address.
    pub(crate) fn query(&self, wanted: &str) -> Option<String> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        let mut values = pairs.filter(|(name, _)| *name == wanted).map(|(_, value)| value);
        values.next().map(|value| crate::endpoints::decoded(&value.replace('+', " ")))
    }

    /// Deserializes the body.
    pub(crate) fn read<T: for<'de> Deserialize<'de>>(&self) -> Result<T, ApiError> {
        serde_path_to_error::deserialize(&self.body).map_err(|error| {
            let path = error.path().to_string();
            let message = error.inner().to_string();
            // A missing field is not part of the path, but is quoted in the message.
            let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
            let param = match (path.as_str(), missing) {
                (".", Some(field)) => field.to_owned(),
                (path, Some(field)) => format!("{path}.{field}"),
                (".", None) => return ApiError::new(StatusCode::BAD_REQUEST, format!("the request: {message}")),
                (path, None) => path.to_owned(),
            };
            let text = format!("`{param}`: {message}");
            ApiError::invalid(param, text)
        })
    }
}

type Pieces = Pin<Box<dyn Stream<Item = std::io::Result<Vec<u8>>> + Send>>;

/// A successful answer to a request.
pub(crate) struct Reply {
    content: Content,
    /// Headers of its own.
    headers: &'static [(&'static str, &'static str)],
    answered_by: Vec<AnsweredBy>,
    prompt: Option<Arc<PromptUsed>>,
}

enum Content {
    /// A body, with its content type.
    Bytes(Bytes, &'static str),
    /// The content of a file, with its length and content type.
    File(Pieces, u64, &'static str),
    /// Server-sent events.
    Events(Pin<Box<dyn Stream<Item = String> + Send>>),
}

impl Reply {
    pub(crate) fn json(value: &impl serde::Serialize) -> Result<Self, ApiError> {
        let bytes = serde_json::to_vec(value).map_err(|_| ApiError::internal())?;
        Ok(Self::bytes(bytes, "application/json"))
    }

    /// A body with this content type.
    pub(crate) fn bytes(bytes: impl Into<Bytes>, kind: &'static str) -> Self {
        Content::Bytes(bytes.into(), kind).into()
    }

    /// The content of a file, of this length.
    pub(crate) fn file(
        pieces: impl Stream<Item = std::io::Result<Vec<u8>>> + Send + 'static,
        length: u64,
        kind: &'static str,
    ) -> Self {
        Content::File(Box::pin(pieces), length, kind).into()
    }

    pub(crate) fn events(events: Pin<Box<dyn Stream<Item = String> + Send>>) -> Self {
        Content::Events(events).into()
    }

    /// Sets further headers.
    pub(crate) fn headers(self, headers: &'static [(&'static str, &'static str)]) -> Self {
        Self { headers, ..self }
    }

    /// Sets which prompt the request named, for the headers.
    pub(crate) fn prompt(mut self, prompt: Option<Arc<PromptUsed>>) -> Self {
        self.prompt = prompt;
        self
    }

    /// Sets which targets of a route answered, for the headers.
    pub(crate) fn by(mut self, answered_by: Vec<AnsweredBy>) -> Self {
        self.answered_by = answered_by;
        self
    }
}

impl From<Content> for Reply {
    fn from(content: Content) -> Self {
        Self { content, headers: &[], answered_by: Vec::new(), prompt: None }
    }
}

/// Handles a request for an endpoint.
pub(crate) async fn line<E: Endpoint>(State(server): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let span = RequestSpan::begin(request.method(), E::PATH, request.headers());
    let mut running = server.stats.begin(E::PATH, span);
    let id = crate::server::random_id("req_");
    // A panic only fails this request.
    let mut caller = Caller { request: id.as_str().into(), endpoint: E::PATH, ..Caller::default() };
    let walked = AssertUnwindSafe(running.traced(walk::<E>(&server, request, &mut caller))).catch_unwind().await;
    let reply = walked.unwrap_or_else(|_| {
        tracing::error!(endpoint = E::PATH, "a request panicked");
        Err(ApiError::internal())
    });
    let mut response = match reply {
        Ok(reply) => {
            if !matches!(reply.content, Content::Events(_) | Content::File(..)) {
                running.ends_with(200);
            }
            form(reply, running, server.keep_alive)
        }
        Err(error) => {
            running.ends_with(error.status.as_u16());
            error.into_response(E::ERRORS, &id)
        }
    };
    if let Ok(id) = HeaderValue::from_str(&id) {
        // Anthropic's clients read the header `request-id`.
        response.headers_mut().insert("x-request-id", id.clone());
        response.headers_mut().insert("request-id", id);
    }
    response
}

async fn walk<E: Endpoint>(
    server: &Arc<Shared>,
    request: Request<Body>,
    caller: &mut Caller,
) -> Result<Reply, ApiError> {
    let (parts, body) = request.into_parts();
    refuse_other_sites(server, &parts.headers)?;
    if !E::IS_OPEN {
        match parts.extensions.get::<OnBehalf>() {
            Some(OnBehalf(key)) => enter_as(server, key.as_deref(), caller)?,
            None => authenticate(server, &parts.headers, caller)?,
        }
    }
    if server.is_draining() && !E::IS_OPEN {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is about to stop: try again later");
        return Err(ApiError { retry_after_s: Some(1), ..error });
    }
    let (body, upload) = if E::HAS_BODY {
        (parse(&collect(server, &parts.headers, body).await?)?, Body::empty())
    } else {
        (Value::Null, body)
    };
    caller.feature = feature_of(&parts.headers, &body)?;
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let (path, caller) = (parts.uri.path().to_owned(), caller.clone());
    E::answer(server, Call { body, path, query, headers: parts.headers, upload, caller }).await
}

/// Refuses requests from web pages of other sites, which is needed even without keys: both cross-origin requests
/// (recognized by `Origin`) and DNS rebinding, where a site's own name points to this machine (recognized by `Host`).
fn refuse_other_sites(server: &Shared, headers: &HeaderMap) -> Result<(), ApiError> {
    let refuse = |what: &str| Err(ApiError::new(StatusCode::FORBIDDEN, what));
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if let Some(origin) = headers.get(header::ORIGIN) {
        let own = [format!("http://{host}"), format!("https://{host}")];
        if !own.iter().any(|own| own.as_bytes() == origin.as_bytes()) {
            return refuse("this server does not answer pages of other sites: ask it from a program");
        }
    }
    if server.gate.is_none() && !host.is_empty() {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next(),
            None => host.split(':').next(),
        };
        let name = name.unwrap_or_default();
        if name != "localhost" && name.parse::<std::net::IpAddr>().is_err() {
            return refuse("without keys, this server answers only under `localhost` or an address, not another name");
        }
    }
    Ok(())
}

fn authenticate(server: &Shared, headers: &HeaderMap, caller: &mut Caller) -> Result<(), ApiError> {
    let Some(gate) = &server.gate else { return Ok(()) };
    let bearer = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let bearer = bearer.and_then(|value| {
        let (scheme, key) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
    });
    let key = bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes));
    caller.key = Some(gate.enter(key, caller.endpoint)?);
    Ok(())
}

/// Checks a key that has created a batch, before a request of the batch.
fn enter_as(server: &Shared, key: Option<&str>, caller: &mut Caller) -> Result<(), ApiError> {
    let Some(gate) = &server.gate else { return Ok(()) };
    let Some(key) = key else {
        return Err(BackendError::new(
            BackendErrorKind::WrongKey,
            "the server has keys now, and this request has none",
        )
        .into());
    };
    caller.key = Some(gate.enter_as(key, caller.endpoint)?);
    Ok(())
}

async fn collect(server: &Shared, headers: &HeaderMap, mut body: Body) -> Result<Vec<u8>, ApiError> {
    let limit = server.body_limit;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<usize>().ok());
    let read = async {
        let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(limit).min(1 << 16));
        let mut n_read = 0_usize;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "the body broke off"))?;
            let Ok(data) = frame.into_data() else { continue };
            n_read = n_read.saturating_add(data.len());
            if n_read > limit.saturating_mul(DISCARDED) {
                break;
            }
            if n_read <= limit {
                bytes.extend_from_slice(&data);
            } else {
                bytes = Vec::new();
            }
        }
        if n_read > limit {
            let message = format!("the body has more than {limit} bytes: send less at once");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        Ok(bytes)
    };
    let timed_out = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
    tokio::time::timeout(BODY_TIMEOUT, read).await.map_err(timed_out)?
}

fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    // Its error messages contain positions, but no text of the request.
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")))?;
    if !value.is_object() {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "the body is JSON, but not an object"));
    }
    Ok(value)
}

/// The feature that a request is for: `metadata.feature` of its body, or else the header. It ends up in the log, so it must
/// be a name, which has no room for a text.
fn feature_of(headers: &HeaderMap, body: &Value) -> Result<Option<Arc<str>>, ApiError> {
    let (feature, param) = match (body.pointer("/metadata/feature"), headers.get(FEATURE_HEADER)) {
        (Some(feature), _) if !feature.is_null() => (feature.as_str(), "metadata.feature"),
        (_, Some(feature)) => (feature.to_str().ok(), FEATURE_HEADER),
        _ => return Ok(None),
    };
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/');
    match feature.filter(|name| (1..=MAX_FEATURE).contains(&name.len()) && name.chars().all(is_allowed)) {
        Some(name) => Ok(Some(name.into())),
        None => {
            let message = format!(
                "`{param}` is not the name of a feature: use 1 to {MAX_FEATURE} letters, digits, '-', '_', '.', ':' and '/'"
            );
            Err(ApiError::invalid(param, message))
        }
    }
}

fn form(reply: Reply, mut running: Running, keep_alive: Duration) -> Response<Body> {
    let mut length = None;
    let (body, kind) = match reply.content {
        Content::Bytes(bytes, kind) => (Body::from(bytes), kind),
        Content::File(pieces, n, kind) => {
            length = Some(n);
            let end = futures_util::stream::once(async move {
                running.ends_with(200);
                drop(running);
                Ok(Vec::new())
            });
            let pieces = pieces.chain(end).filter(|piece| {
                let keep = !piece.as_ref().is_ok_and(Vec::is_empty);
                async move { keep }
            });
            (Body::from_stream(pieces), kind)
        }
        Content::Events(events) => {
            // The stream owns `running`: if the client disconnects, it is dropped before the status is set, and counts
            // as such.
            let end = futures_util::stream::once(async move {
                running.ends_with(200);
                drop(running);
                String::new()
            });
            let events = KeepAlive::new(events, keep_alive).chain(end).filter(|text| {
                let keep = !text.is_empty();
                async move { keep }
            });
            let frames = events.map(|text| Ok::<_, std::convert::Infallible>(Bytes::from(text)));
            (Body::from_stream(frames), "text/event-stream; charset=utf-8")
        }
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in reply.headers {
        headers.insert(*name, HeaderValue::from_static(value));
    }
    if let Some(prompt) = reply.prompt
        && let (Ok(id), Ok(sha256)) = (HeaderValue::from_str(&prompt.id), HeaderValue::from_str(&prompt.sha256))
    {
        headers.insert("x-fewbit-prompt", id);
        headers.insert("x-fewbit-prompt-sha256", sha256);
    }
    // A request for several answers may have been answered by several targets.
    let mut names: Vec<&str> = reply.answered_by.iter().map(|by| &*by.backend).collect();
    names.sort_unstable();
    names.dedup();
    if let (false, Ok(names)) = (names.is_empty(), HeaderValue::from_str(&names.join(", "))) {
        let is_fallback = reply.answered_by.iter().any(|by| by.is_fallback);
        headers.insert("x-fewbit-backend", names);
        headers.insert("x-fewbit-fallback", HeaderValue::from_static(if is_fallback { "true" } else { "false" }));
    }
    response
}
