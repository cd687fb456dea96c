//! OpenTelemetry (feature `otel`): a span for each request and for each answer, and metrics, by the semantic conventions
//! for HTTP and for generative AI.
//!
//! Only OpenTelemetry's API is used here: nothing is recorded until a program installs its providers, as `fewbit serve`
//! does. No text of requests or answers is recorded. A request with a `traceparent` continues the trace of its client,
//! and so does the request to an upstream.

#[cfg(feature = "otel")]
pub use with::Traced;
#[cfg(feature = "otel")]
pub(crate) use with::{RequestSpan, inject};

#[cfg(not(feature = "otel"))]
pub(crate) use without::{RequestSpan, inject};

#[cfg(not(feature = "otel"))]
mod without {
    use axum::http::{HeaderMap, Method};

    /// Nothing: the feature `otel` is off.
    pub(crate) struct RequestSpan;

    impl RequestSpan {
        pub(crate) fn begin(_: &Method, _: &'static str, _: &HeaderMap) -> Self {
            Self
        }

        pub(crate) fn within<F: Future>(&self, future: F) -> F {
            future
        }

        pub(crate) fn end(&self, _: u16) {}
    }

    pub(crate) fn inject(_: &mut HeaderMap) {}
}

#[cfg(feature = "otel")]
mod with {
    use std::fmt;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context as Wakes, Poll};
    use std::time::{Duration, Instant};

    use axum::http::{HeaderMap, Method};
    use fewbit_api::common::Prompt;
    use futures_core::Stream;
    use opentelemetry::metrics::Histogram;
    use opentelemetry::trace::{FutureExt, SpanKind, Status, TraceContextExt, Tracer};
    use opentelemetry::{Array, Context, KeyValue, StringValue, Value as Attribute, global};
    use opentelemetry_http::{HeaderExtractor, HeaderInjector};

    use crate::backend::{
        AnsweredBy, Backend, BackendError, BackendErrorKind, Boxed, Caller, Embedded, Event, Form, Generating, Input,
        Job, Models, Reranked, Usage,
    };

    const SCOPE: &str = "fewbit";

    /// The span of a request.
    pub(crate) struct RequestSpan(Context);

    impl RequestSpan {
        pub(crate) fn begin(method: &Method, path: &'static str, headers: &HeaderMap) -> Self {
            let parent = global::get_text_map_propagator(|propagator| propagator.extract(&HeaderExtractor(headers)));
            let tracer = global::tracer(SCOPE);
            let builder =
                tracer.span_builder(format!("{method} {path}")).with_kind(SpanKind::Server).with_attributes([
                    KeyValue::new("http.request.method", method.as_str().to_owned()),
                    KeyValue::new("http.route", path),
                ]);
            let span = tracer.build_with_context(builder, &parent);
            Self(parent.with_span(span))
        }

        /// Spans that begin while `future` runs are parts of this one.
        pub(crate) fn within<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
            future.with_context(self.0.clone())
        }

        pub(crate) fn end(&self, status: u16) {
            let span = self.0.span();
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
            if status >= 500 {
                span.set_attribute(KeyValue::new("error.type", status.to_string()));
                span.set_status(Status::error(""));
            }
            span.end();
        }
    }

    /// Adds the current trace to the headers of a request to another server.
    pub(crate) fn inject(headers: &mut HeaderMap) {
        global::get_text_map_propagator(|propagator| propagator.inject(&mut HeaderInjector(headers)));
    }

    struct Instruments {
        duration: Histogram<f64>,
        first_token: Histogram<f64>,
        per_token: Histogram<f64>,
        tokens: Histogram<u64>,
    }

    impl Instruments {
        fn new() -> Self {
            // The boundaries that the conventions advise.
            let seconds = |least: f64, n: i32| (0..n).map(|i| least * 2.0_f64.powi(i)).collect::<Vec<_>>();
            let meter = global::meter(SCOPE);
            let histogram = |name, about: &'static str, boundaries| {
                meter.f64_histogram(name).with_unit("s").with_description(about).with_boundaries(boundaries).build()
            };
            Self {
                duration: histogram("gen_ai.server.request.duration", "How long answers take.", seconds(0.01, 14)),
                first_token: histogram(
                    "gen_ai.server.time_to_first_token",
                    "How long the first token of an answer takes.",
                    seconds(0.001, 14),
                ),
                per_token: histogram(
                    "gen_ai.server.time_per_output_token",
                    "How long each token after the first one takes.",
                    seconds(0.001, 12),
                ),
                tokens: meter
                    .u64_histogram("gen_ai.client.token.usage")
                    .with_unit("{token}")
                    .with_description("Tokens of prompts and of answers.")
                    .with_boundaries((0..14).map(|i| 4_f64.powi(i)).collect())
                    .build(),
            }
        }
    }

    /// A backend whose answers are recorded as spans and metrics of OpenTelemetry's global providers.
    pub struct Traced<B> {
        backend: B,
        instruments: Arc<Instruments>,
    }

    impl<B: fmt::Debug> fmt::Debug for Traced<B> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Traced").field("backend", &self.backend).finish_non_exhaustive()
        }
    }

    impl<B> Traced<B> {
        /// Wraps a backend. The global providers have to be installed before.
        pub fn new(backend: B) -> Self {
            Self { backend, instruments: Arc::new(Instruments::new()) }
        }

        fn begin(&self, operation: &'static str, model: &str, more: Vec<KeyValue>) -> Operation {
            let shared = vec![
                KeyValue::new("gen_ai.operation.name", operation),
                KeyValue::new("gen_ai.provider.name", SCOPE),
                KeyValue::new("gen_ai.request.model", model.to_owned()),
            ];
            let tracer = global::tracer(SCOPE);
            let builder = tracer
                .span_builder(format!("{operation} {model}"))
                .with_kind(SpanKind::Internal)
                .with_attributes(shared.iter().cloned().chain(more));
            let parent = Context::current();
            let span = tracer.build_with_context(builder, &parent);
            Operation {
                context: parent.with_span(span),
                instruments: Arc::clone(&self.instruments),
                shared,
                start: Instant::now(),
                first: None,
                used: Usage::default(),
                error: Some("cancelled"),
            }
        }
    }

    /// An answer that is being recorded. Its span ends when this is dropped.
    struct Operation {
        context: Context,
        instruments: Arc<Instruments>,
        shared: Vec<KeyValue>,
        start: Instant,
        /// When the first piece came.
        first: Option<Duration>,
        used: Usage,
        /// What went wrong. An answer that is dropped before its end was cancelled.
        error: Option<&'static str>,
    }

    impl Operation {
        fn answered_by(&mut self, by: Option<&AnsweredBy>) {
            let Some(by) = by else { return };
            let model = KeyValue::new("gen_ai.response.model", by.backend.to_string());
            self.context.span().set_attribute(model.clone());
            self.context.span().set_attribute(KeyValue::new("fewbit.fallback", by.is_fallback));
            self.shared.push(model);
        }

        fn failed(&mut self, error: &BackendError) {
            self.error = Some(name(error.kind));
        }

        fn see(&mut self, event: Option<&Result<Event, BackendError>>) {
            match event {
                Some(Ok(Event::Begin { prompt })) => self.used.prompt = *prompt,
                Some(Ok(Event::Piece(_))) => {
                    self.first.get_or_insert_with(|| self.start.elapsed());
                }
                Some(Ok(Event::End(end))) => {
                    (self.used, self.error) = (end.usage, None);
                    let reasons = vec![StringValue::from(end.finish.as_str())];
                    let reasons = Attribute::Array(Array::String(reasons));
                    self.context.span().set_attribute(KeyValue::new("gen_ai.response.finish_reasons", reasons));
                }
                Some(Err(error)) => self.failed(error),
                None => {}
            }
        }
    }

    impl Drop for Operation {
        fn drop(&mut self) {
            let Self { context, instruments, shared, start, first, used, error } = self;
            let span = context.span();
            let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            span.set_attribute(KeyValue::new("gen_ai.usage.input_tokens", count(used.prompt)));
            span.set_attribute(KeyValue::new("gen_ai.usage.output_tokens", count(used.completion)));
            span.set_attribute(KeyValue::new("gen_ai.usage.cache_read.input_tokens", count(used.cached)));
            for (kind, n) in [("input", used.prompt), ("output", used.completion)] {
                let mut shared = shared.clone();
                shared.push(KeyValue::new("gen_ai.token.type", kind));
                instruments.tokens.record(n as u64, &shared);
            }
            if let Some(error) = error {
                let error = KeyValue::new("error.type", *error);
                span.set_attribute(error.clone());
                span.set_status(Status::error(""));
                shared.push(error);
            }
            let elapsed = start.elapsed();
            instruments.duration.record(elapsed.as_secs_f64(), shared);
            if let Some(first) = first {
                instruments.first_token.record(first.as_secs_f64(), shared);
                if used.completion > 1 {
                    let rest = elapsed.saturating_sub(*first).as_secs_f64();
                    instruments.per_token.record(rest / (used.completion - 1) as f64, shared);
                }
            }
            span.end();
        }
    }

    /// The value of the attribute `error.type`.
    fn name(kind: BackendErrorKind) -> &'static str {
        match kind {
            BackendErrorKind::Invalid => "invalid_request",
            BackendErrorKind::TooLong => "context_length_exceeded",
            BackendErrorKind::UnknownModel => "model_not_found",
            BackendErrorKind::Busy => "queue_full",
            BackendErrorKind::Unavailable => "unavailable",
            BackendErrorKind::NoKey | BackendErrorKind::WrongKey => "unauthorized",
            BackendErrorKind::Forbidden => "not_allowed",
            BackendErrorKind::TooMany { .. } => "rate_limit_exceeded",
            BackendErrorKind::Spent => "insufficient_quota",
            BackendErrorKind::UpstreamBusy { .. } => "upstream_busy",
            BackendErrorKind::Upstream => "upstream_error",
            _ => "internal",
        }
    }

    fn settings(job: &Job) -> Vec<KeyValue> {
        let sampling = &job.sampling;
        let number = |name, value: Option<f64>| value.map(|value| KeyValue::new(name, value));
        let count = |name, value: Option<usize>| {
            value.map(|value| KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX)))
        };
        let form = job.form.as_ref().map(|(form, _)| match form {
            Form::JsonObject | Form::JsonSchema(_) => "json",
            _ => "text",
        });
        [
            count("gen_ai.request.max_tokens", job.max_tokens),
            number("gen_ai.request.temperature", sampling.temperature.map(f64::from)),
            number("gen_ai.request.top_p", sampling.top_p.map(f64::from)),
            form.map(|form| KeyValue::new("gen_ai.output.type", form)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    impl<B: Backend> Backend for Traced<B> {
        fn models(&self) -> &dyn Models {
            self.backend.models()
        }

        fn generate(&self, job: Job) -> Boxed<'_, Result<Generating, BackendError>> {
            let name_of = match job.input {
                Input::Chat { .. } => "chat",
                Input::Text { .. } => "text_completion",
            };
            let mut operation = self.begin(name_of, &job.model, settings(&job));
            let context = operation.context.clone();
            let answering = async move {
                match self.backend.generate(job).await {
                    Ok(answer) => {
                        let (by, n_masked) = (answer.answered_by().cloned(), answer.n_masked());
                        operation.answered_by(by.as_ref());
                        Ok(Generating::new(Recorded { answer, operation: Some(operation) }).by(by).masked(n_masked))
                    }
                    Err(error) => {
                        operation.failed(&error);
                        Err(error)
                    }
                }
            };
            Box::pin(answering.with_context(context))
        }

        fn count(&self, job: Job) -> Boxed<'_, Result<usize, BackendError>> {
            self.backend.count(job)
        }

        fn embed(&self, caller: &Caller, model: &str, texts: Vec<Prompt>) -> Boxed<'_, Result<Embedded, BackendError>> {
            let mut operation = self.begin("embeddings", model, Vec::new());
            let context = operation.context.clone();
            let (caller, model) = (caller.clone(), model.to_owned());
            let embedding = async move {
                let embedded = self.backend.embed(&caller, &model, texts).await;
                match &embedded {
                    Ok(embedded) => {
                        operation.error = None;
                        operation.used.prompt = embedded.prompt_tokens;
                        operation.answered_by(embedded.answered_by.as_ref());
                    }
                    Err(error) => operation.failed(error),
                }
                embedded
            };
            Box::pin(embedding.with_context(context))
        }

        fn rerank(
            &self,
            caller: &Caller,
            model: &str,
            query: String,
            documents: Vec<String>,
        ) -> Boxed<'_, Result<Reranked, BackendError>> {
            let mut operation = self.begin("rerank", model, Vec::new());
            let context = operation.context.clone();
            let (caller, model) = (caller.clone(), model.to_owned());
            let reranking = async move {
                let reranked = self.backend.rerank(&caller, &model, query, documents).await;
                match &reranked {
                    Ok(reranked) => {
                        operation.error = None;
                        operation.used.prompt = reranked.prompt_tokens;
                        operation.answered_by(reranked.answered_by.as_ref());
                    }
                    Err(error) => operation.failed(error),
                }
                reranked
            };
            Box::pin(reranking.with_context(context))
        }
    }

    /// The stream of an answer, recorded as it passes.
    struct Recorded {
        answer: Generating,
        /// `None` once the answer has ended.
        operation: Option<Operation>,
    }

    impl Stream for Recorded {
        type Item = Result<Event, BackendError>;

        fn poll_next(self: Pin<&mut Self>, wakes: &mut Wakes<'_>) -> Poll<Option<Self::Item>> {
            let this = self.get_mut();
            let event = std::task::ready!(Pin::new(&mut this.answer).poll_next(wakes));
            if let Some(operation) = &mut this.operation {
                operation.see(event.as_ref());
            }
            if !matches!(&event, Some(Ok(Event::Begin { .. } | Event::Piece(_)))) {
                this.operation = None;
            }
            Poll::Ready(event)
        }
    }
}
