//! Metrics of requests, and the text for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::backend::{Sample, SampleKind};
use crate::telemetry::RequestSpan;

/// The status for a client that disconnected before its answer was complete.
const CLIENT_CLOSED: u16 = 499;

/// Request counts.
#[derive(Default)]
pub(crate) struct Stats {
    /// Requests that ended, by endpoint and status.
    ended: Mutex<BTreeMap<(&'static str, u16), u64>>,
    in_flight: AtomicU64,
}

/// A request in progress. It is counted and logged when this is dropped.
pub(crate) struct Running {
    stats: Arc<Stats>,
    endpoint: &'static str,
    start: Instant,
    status: u16,
    span: RequestSpan,
}

impl Stats {
    pub(crate) fn begin(self: &Arc<Self>, endpoint: &'static str, span: RequestSpan) -> Running {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Running { stats: Arc::clone(self), endpoint, start: Instant::now(), status: CLIENT_CLOSED, span }
    }

    /// All metrics, in Prometheus's text format 0.0.4.
    pub(crate) fn text(&self, samples: &[Sample]) -> String {
        let mut out = String::new();
        let head = |out: &mut String, name: &str, help: &str, kind: &str| {
            let _ = writeln!(out, "# HELP fewbit_{name} {help}\n# TYPE fewbit_{name} {kind}");
        };
        head(&mut out, "http_requests_total", "Requests that ended, by endpoint and status.", "counter");
        for ((endpoint, status), n) in &*self.ended.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = writeln!(out, "fewbit_http_requests_total{{endpoint=\"{endpoint}\",status=\"{status}\"}} {n}");
        }
        head(&mut out, "http_requests_in_flight", "Requests under way, this one included.", "gauge");
        let _ = writeln!(out, "fewbit_http_requests_in_flight {}", self.in_flight.load(Ordering::Relaxed));
        // The format requires all samples of a metric to be together.
        let mut by_name: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
        samples.iter().for_each(|sample| by_name.entry(sample.name).or_default().push(sample));
        for (name, samples) in by_name {
            for (i, sample) in samples.into_iter().enumerate() {
                if i == 0 {
                    let kind = match sample.kind {
                        SampleKind::Counter => "counter",
                        SampleKind::Gauge => "gauge",
                    };
                    head(&mut out, name, sample.help, kind);
                }
                let model = sample.model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                let _ = writeln!(out, "fewbit_{name}{{model=\"{model}\"}} {}", sample.value);
            }
        }
        out
    }
}

impl Running {
    /// Traces what `future` does as a part of this request.
    pub(crate) fn traced<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        self.span.within(future)
    }

    /// Sets the status that the client gets. Without it, the request counts as disconnected.
    pub(crate) fn ends_with(&mut self, status: u16) {
        self.status = status;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Self { stats, endpoint, start, status, span } = self;
        span.end(*status);
        stats.in_flight.fetch_sub(1, Ordering::Relaxed);
        *stats.ended.lock().unwrap_or_else(PoisonError::into_inner).entry((*endpoint, *status)).or_default() += 1;
        tracing::info!(endpoint, status, elapsed_ms = start.elapsed().as_secs_f64() * 1e3, "request");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_grouped_by_name_and_labels_are_escaped() {
        let sample = |name, model: &str| Sample {
            name,
            help: "Some.",
            kind: SampleKind::Gauge,
            model: model.to_owned(),
            value: 1.5,
        };
        let text = Arc::new(Stats::default()).text(&[sample("a", "x"), sample("b", "x"), sample("a", "y\"\\\n")]);
        let want = "# HELP fewbit_a Some.\n# TYPE fewbit_a gauge\nfewbit_a{model=\"x\"} 1.5\n\
                    fewbit_a{model=\"y\\\"\\\\\\n\"} 1.5\n# HELP fewbit_b Some.\n";
        assert!(text.contains(want), "{text}");
    }
}
