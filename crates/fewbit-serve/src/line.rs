//! The line that every request walks: who asks, what is asked, the answer, its form.
//!
//! [`Endpoint`] is what one endpoint adds: how its request is read, and what is done. What comes before and after is
//! here, once: keys, hosts and origins, sizes, JSON with the path to what is wrong in it, panics, counting, the log.

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

use crate::backend::Caller;
use crate::error::{ApiError, ErrorForm};
use crate::server::Shared;
use crate::stats::Running;
use crate::stream::KeepAlive;

/// A client has this long to send a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Of a body that is too large, so many times the limit is read and thrown away, so that the client gets to read the
/// answer instead of failing to write.
const DISCARDED: usize = 8;

/// What one endpoint adds to the line.
pub(crate) trait Endpoint: 'static {
    /// What it is called in counts and logs.
    const PATH: &'static str;
    /// Whether it asks for no key.
    const IS_OPEN: bool = false;
    /// Whether the request has a body, which is JSON.
    const HAS_BODY: bool = true;
    /// Whose form its errors have.
    const ERRORS: ErrorForm = ErrorForm::OpenAi;

    fn answer(server: &Arc<Shared>, call: Call) -> impl Future<Output = Result<Reply, ApiError>> + Send;
}

/// A request, as far as all have it.
pub(crate) struct Call {
    /// Null if there is none.
    pub(crate) body: Value,
    /// The path.
    pub(crate) path: String,
    /// Who asks.
    pub(crate) caller: Caller,
}

impl Call {
    /// The body as a type.
    pub(crate) fn read<T: for<'de> Deserialize<'de>>(&self) -> Result<T, ApiError> {
        serde_path_to_error::deserialize(&self.body).map_err(|error| {
            let path = error.path().to_string();
            let message = error.inner().to_string();
            // What is missing is not on the path, but in quotes in the message.
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

/// What the client gets.
pub(crate) enum Reply {
    /// JSON.
    Json(Vec<u8>),
    /// Text, with its type.
    Text(String, &'static str),
    /// Server-sent events.
    Events(Pin<Box<dyn Stream<Item = String> + Send>>),
}

impl Reply {
    pub(crate) fn json(value: &impl serde::Serialize) -> Result<Self, ApiError> {
        serde_json::to_vec(value).map(Self::Json).map_err(|_| ApiError::internal())
    }
}

/// The line.
pub(crate) async fn line<E: Endpoint>(State(server): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let mut running = server.stats.begin(E::PATH);
    let id = crate::server::random_id("req_");
    // A panic is this request's alone.
    let mut caller = Caller { key: None, request: id.as_str().into(), endpoint: E::PATH };
    let walked = AssertUnwindSafe(walk::<E>(&server, request, &mut caller)).catch_unwind().await;
    let reply = walked.unwrap_or_else(|_| {
        tracing::error!(endpoint = E::PATH, "a request panicked");
        Err(ApiError::internal())
    });
    let mut response = match reply {
        Ok(reply) => {
            if !matches!(reply, Reply::Events(_)) {
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
        // Anthropic's clients read the second.
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
        authenticate(server, &parts.headers, caller)?;
    }
    if server.is_draining() && !E::IS_OPEN {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is about to stop: try again later");
        return Err(ApiError { retry_after_s: Some(1), ..error });
    }
    let body = if E::HAS_BODY { parse(&collect(server, &parts.headers, body).await?)? } else { Value::Null };
    E::answer(server, Call { body, path: parts.uri.path().to_owned(), caller: caller.clone() }).await
}

/// Pages of other sites have no business here, even where there are no keys: neither by a request of their own (which
/// has an `Origin`), nor under a name that they let point to this machine (which is the `Host`).
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
    // Its messages tell places, never texts.
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")))?;
    if !value.is_object() {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "the body is JSON, but not an object"));
    }
    Ok(value)
}

fn form(reply: Reply, mut running: Running, keep_alive: Duration) -> Response<Body> {
    let (body, kind) = match reply {
        Reply::Json(bytes) => (Body::from(bytes), "application/json"),
        Reply::Text(text, kind) => (Body::from(text), kind),
        Reply::Events(events) => {
            // Held by the stream: a client that goes away drops it before it is told how it ended.
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
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
