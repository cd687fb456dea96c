//! A backend that forwards requests to another server with the OpenAI interface. Every field of an answer is checked
//! before it is relayed.
//!
//! ```text
//! connect (timeout) -> status -> first line of the stream (timeout) -> pieces (timeout between two) -> finish_reason
//! ```
//!
//! Answers are always requested as streams. A failure before the first line is an error of
//! [`generate`](Backend::generate), so that a route can fall back to another target; a later failure is an error of the
//! stream. An answer that must have a form (JSON, a schema, a tool call) is buffered and validated as a whole before
//! any of it is sent. If the server reports no usage, tokens are estimated and marked as estimates. Redirects are not
//! followed, and no key, request text or answer text is logged.

mod events;
mod request;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use fewbit_api::common::Prompt;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::backend::{
    Backend, BackendError, BackendErrorKind, Boxed, Caller, Embedded, Event, Generating, Job, ModelInfo, Models,
    Sample, SampleKind, estimated_tokens,
};
use crate::error::ServeError;
use crate::http::{self, Connections};
use crate::job::prompt_json;
use crate::telemetry;
use events::Events;

/// The size limit, in bytes, of a body that is read as a whole: an error, embeddings, an answer that is not streamed.
const WHOLE_LIMIT: usize = 64 << 20;
/// How many characters of an upstream's error message are passed on.
const SHOWN: usize = 500;

/// Address, key and timeouts of another server.
#[derive(Clone)]
#[non_exhaustive]
pub struct UpstreamConfig {
    /// The base URL, to which `/chat/completions` and so on is appended, such as `https://HOST/v1`.
    pub url: String,
    /// The key to send.
    pub key: Option<String>,
    /// How long connecting may take. The default is 5 seconds.
    pub connect_timeout: Duration,
    /// How long it may be silent before the first line of an answer, and between two pieces. The default is 60 seconds.
    pub timeout: Duration,
    /// Its models that requests can name.
    pub models: Vec<String>,
}

impl UpstreamConfig {
    /// Creates a configuration for a server with these models.
    pub fn new<M: Into<String>>(url: impl Into<String>, models: impl IntoIterator<Item = M>) -> Self {
        Self {
            url: url.into(),
            key: None,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(60),
            models: models.into_iter().map(Into::into).collect(),
        }
    }
}

impl fmt::Debug for UpstreamConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamConfig").field("url", &self.url).field("models", &self.models).finish_non_exhaustive()
    }
}

/// Another server with the OpenAI interface.
#[derive(Clone)]
pub struct UpstreamBackend {
    shared: Arc<Shared>,
}

struct Shared {
    client: Connections,
    config: UpstreamConfig,
    key: Option<HeaderValue>,
    requests: AtomicU64,
    failures: AtomicU64,
    without_usage: AtomicU64,
}

impl fmt::Debug for UpstreamBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamBackend").field("config", &self.shared.config).finish()
    }
}

impl UpstreamBackend {
    /// Creates a backend that forwards to this server. Nothing is sent yet.
    ///
    /// # Errors
    /// If the address is not an HTTP URL, or the key cannot be a header.
    pub fn new(mut config: UpstreamConfig) -> Result<Self, ServeError> {
        config.url.truncate(config.url.trim_end_matches('/').len());
        let wrong = |what| ServeError::Upstream { url: config.url.clone(), what };
        let uri: Uri =
            config.url.parse().map_err(|_| wrong("is not a URL of a server: give one such as https://HOST/v1"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() || uri.query().is_some() {
            return Err(wrong("is not a URL of a server: give one such as https://HOST/v1"));
        }
        let key = config.key.take().map(|key| {
            let mut value = HeaderValue::try_from(format!("Bearer {key}"))?;
            value.set_sensitive(true);
            Ok::<_, axum::http::header::InvalidHeaderValue>(value)
        });
        let key =
            key.transpose().map_err(|_| wrong("has a key with characters that a header cannot hold: check the key"))?;
        let client = http::connections(config.connect_timeout);
        let [requests, failures, without_usage] = [const { AtomicU64::new(0) }; 3];
        let shared = Shared { client, config, key, requests, failures, without_usage };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn check(&self, model: &str) -> Result<(), BackendError> {
        if self.shared.config.models.iter().any(|known| known == model) {
            return Ok(());
        }
        Err(BackendError::new(BackendErrorKind::UnknownModel, format!("there is no model {model:?} here")))
    }

    fn no_tokens(model: &str) -> BackendError {
        let message = format!("{model:?} runs on another server, whose tokenizer is not known here");
        BackendError::invalid("model", message)
    }
}

pub(super) fn failed(what: impl fmt::Display) -> BackendError {
    BackendError::new(BackendErrorKind::Upstream, format!("the upstream {what}"))
}

impl Shared {
    /// Sends a request. Returns the response if its status is 200, and an error otherwise.
    async fn ask(&self, path: &str, body: &Value) -> Result<Response<Incoming>, BackendError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let answered = self.post(path, body).await;
        if answered.as_ref().is_err_and(|error| error.kind != BackendErrorKind::Invalid) {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        answered
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Response<Incoming>, BackendError> {
        let mut request = Request::post(format!("{}{path}", self.config.url))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|_| failed("has a URL that no request can have"))?;
        if let Some(key) = &self.key {
            request.headers_mut().insert(header::AUTHORIZATION, key.clone());
        }
        telemetry::inject(request.headers_mut());
        let response = tokio::time::timeout(self.config.timeout, self.client.request(request)).await;
        let response = response.map_err(|_| self.silent())?.map_err(|error| {
            failed(if error.is_connect() { "cannot be reached" } else { "closed the connection before its answer" })
        })?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    fn silent(&self) -> BackendError {
        failed(format_args!("said nothing for {:?}", self.config.timeout))
    }

    async fn refusal(&self, response: Response<Incoming>) -> BackendError {
        let status = response.status();
        let retry_after =
            response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        match status {
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::PAYLOAD_TOO_LARGE => {
                let body = self.whole(response).await.unwrap_or_default();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let text = body.pointer("/error/message").and_then(Value::as_str).unwrap_or("it does not say why");
                let param = body.pointer("/error/param").and_then(Value::as_str).map(str::to_owned);
                let is_long = body.pointer("/error/code").and_then(Value::as_str) == Some("context_length_exceeded");
                let kind = if is_long { BackendErrorKind::TooLong } else { BackendErrorKind::Invalid };
                let text: String = text.chars().take(SHOWN).collect();
                BackendError { kind, message: format!("the upstream refused the request: {text}"), param }
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let kind = BackendErrorKind::UpstreamBusy { retry_after_s: retry_after.unwrap_or(1) };
                BackendError::new(kind, "the upstream takes no more requests now: try again later")
            }
            // The key is the operator's, and the text of the error may contain it.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => failed("refused the key of this server"),
            StatusCode::NOT_FOUND => failed("does not have this model, or this endpoint"),
            other => failed(format_args!("answered with status {}", other.as_u16())),
        }
    }

    /// Reads the whole body, within the limits of size and time.
    async fn whole(&self, response: Response<Incoming>) -> Result<Vec<u8>, BackendError> {
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        let read = async {
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.map_err(|_| events::broken_off())?.into_data() else { continue };
                if bytes.len() + data.len() > WHOLE_LIMIT {
                    return Err(failed("sent more than 64 MiB in one piece"));
                }
                bytes.extend_from_slice(&data);
            }
            Ok(bytes)
        };
        tokio::time::timeout(self.config.timeout, read).await.map_err(|_| self.silent())?
    }
}

impl Models for UpstreamBackend {
    fn list(&self, _: &Caller) -> Vec<ModelInfo> {
        let info = |id: &String| ModelInfo {
            id: id.clone(),
            created: 0,
            context_length: 0,
            fingerprint: "upstream".to_owned(),
            state: None,
        };
        self.shared.config.models.iter().map(info).collect()
    }

    fn tokenize<'a>(
        &'a self,
        _: &'a Caller,
        model: &'a str,
        _: &'a str,
        _: bool,
        _: bool,
    ) -> Boxed<'a, Result<Vec<u32>, BackendError>> {
        Box::pin(async move { Err(Self::no_tokens(model)) })
    }

    fn detokenize<'a>(
        &'a self,
        _: &'a Caller,
        model: &'a str,
        _: &'a [u32],
    ) -> Boxed<'a, Result<String, BackendError>> {
        Box::pin(async move { Err(Self::no_tokens(model)) })
    }

    fn samples(&self) -> Vec<Sample> {
        let sample = |name, help, value: &AtomicU64| Sample {
            name,
            help,
            kind: SampleKind::Counter,
            model: self.shared.config.models.join(","),
            value: value.load(Ordering::Relaxed) as f64,
        };
        let Shared { requests, failures, without_usage, .. } = &*self.shared;
        vec![
            sample(
                "upstream_answers_without_usage_total",
                "Answers whose tokens are estimated, because the upstream did not say.",
                without_usage,
            ),
            sample("upstream_failures_total", "Requests that an upstream did not answer as it should.", failures),
            sample("upstream_requests_total", "Requests to an upstream.", requests),
        ]
    }
}

impl Backend for UpstreamBackend {
    fn models(&self) -> &dyn Models {
        self
    }

    fn generate(&self, job: Job) -> Boxed<'_, Result<Generating, BackendError>> {
        Box::pin(async move {
            self.check(&job.model)?;
            let (path, body) = request::of(&job)?;
            let response = self.shared.ask(path, &body).await?;
            let kind = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
            let timeout = self.shared.config.timeout;
            let estimated_prompt = job.estimated_prompt_tokens();
            let mut events = if kind.starts_with(b"text/event-stream") {
                Events::streamed(response.into_body(), timeout, estimated_prompt)
            } else if kind.starts_with(b"application/json") {
                Events::whole(&self.shared.whole(response).await?, estimated_prompt)?
            } else {
                return Err(failed("answered with neither JSON nor a stream"));
            };
            let begun = events.begin().await;
            if let Err(error) = begun {
                self.shared.failures.fetch_add(1, Ordering::Relaxed);
                return Err(error);
            }
            let shared = Arc::clone(&self.shared);
            let events = stream::unfold((events, shared), |(mut events, shared)| async move {
                let event = events.next().await?;
                match &event {
                    Err(_) => _ = shared.failures.fetch_add(1, Ordering::Relaxed),
                    Ok(Event::End(end)) if end.usage.is_estimated => {
                        shared.without_usage.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(_) => {}
                }
                Some((event, (events, shared)))
            });
            if !request::is_held_back(&job) {
                return Ok(Generating::new(events));
            }
            let events: Vec<_> = events.collect().await;
            let events = events.into_iter().collect::<Result<Vec<_>, _>>()?;
            request::check(&job, &events)?;
            Ok(Generating::new(stream::iter(events.into_iter().map(Ok))))
        })
    }

    fn count(&self, job: Job) -> Boxed<'_, Result<usize, BackendError>> {
        Box::pin(async move { Err(Self::no_tokens(&job.model)) })
    }

    fn embed(&self, _: &Caller, model: &str, texts: Vec<Prompt>) -> Boxed<'_, Result<Embedded, BackendError>> {
        let model = model.to_owned();
        Box::pin(async move {
            self.check(&model)?;
            let n = texts.len();
            let estimated_prompt = texts.iter().map(estimated_tokens).sum();
            let input: Vec<Value> = texts.iter().map(prompt_json).collect();
            let body = json!({ "model": model, "input": input, "encoding_format": "float" });
            let response = self.shared.ask("/embeddings", &body).await?;
            let bytes = self.shared.whole(response).await?;
            let embedded = events::embedded(&bytes, n, estimated_prompt)?;
            if embedded.is_estimated {
                self.shared.without_usage.fetch_add(1, Ordering::Relaxed);
            }
            Ok(embedded)
        })
    }
}
