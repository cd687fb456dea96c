//! Exports spans and metrics of `serve` by OTLP, if OpenTelemetry's environment variables name a collector (feature
//! `otel`).

use std::env;

use anyhow::Context;
use opentelemetry::global;
use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;

/// Any of these names a collector.
const ENDPOINTS: [&str; 3] =
    ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"];

/// What exports. Whatever is left is sent when this is dropped.
pub(crate) struct Telemetry {
    spans: SdkTracerProvider,
    metrics: SdkMeterProvider,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        // A collector that is away must not keep the program from ending: each waits for some seconds at most.
        let _ = self.spans.shutdown();
        let _ = self.metrics.shutdown();
    }
}

/// Starts to export, if there is a collector. Call it before tokio's runtime begins, because its HTTP client blocks.
pub(crate) fn start() -> anyhow::Result<Option<Telemetry>> {
    let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_disabled = env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
    if is_disabled || !ENDPOINTS.into_iter().any(is_set) {
        return Ok(None);
    }
    let mut resource = Resource::builder();
    if !is_set("OTEL_SERVICE_NAME") {
        resource = resource.with_service_name("fewbit");
    }
    let resource = resource.build();
    let exporter = SpanExporter::builder().with_http().build().context("cannot export traces")?;
    let spans = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.clone()).build();
    let exporter = MetricExporter::builder().with_http().build().context("cannot export metrics")?;
    let metrics = SdkMeterProvider::builder().with_periodic_exporter(exporter).with_resource(resource).build();
    global::set_text_map_propagator(TraceContextPropagator::new());
    global::set_tracer_provider(spans.clone());
    global::set_meter_provider(metrics.clone());
    Ok(Some(Telemetry { spans, metrics }))
}
