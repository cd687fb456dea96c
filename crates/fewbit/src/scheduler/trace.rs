//! The `tracing` spans of a request: one for the whole request, and inside it one for each of its phases.
//!
//! ```text
//! request                 from its submission to its end, inside the span that the caller is in
//!   queue                 until a step takes it up; again each time that it has to wait for memory
//!   prefill, then decode  until the first token, and from then on
//!   sample, constrain     entered for each token: their busy time is what choosing took
//! ```
//!
//! The engine runs many requests at once, so none of these spans belongs to a thread: each request carries its own, and
//! spans begun on the engine's thread go to the subscriber that the caller had. Without a subscriber, all of them are
//! [`Span::none`]. They contain numbers and the names of devices; texts are added if
//! [`ModelBuilder::trace_text`](crate::ModelBuilder::trace_text) is set.

use tracing::field::{Empty, display};
use tracing::{Span, debug, debug_span, dispatcher, info_span};

use super::Core;
use crate::completion::{FinishReason, Timings, Usage};
use crate::error::{Error, ErrorKind};

/// The target of the spans, and of the event at the end.
const TARGET: &str = "fewbit::request";

/// The devices that a model is on when a request begins: `cpu (avx2)`, `cpu (avx2): 12 layers, vulkan:0 (..): 18 layers`.
fn devices(core: &Core) -> String {
    let placed = core.decoder.placed();
    let mut layers: Vec<(&str, usize)> = Vec::new();
    for part in &placed {
        let n = part.part.n_layers();
        if n == 0 {
            continue;
        }
        match layers.iter_mut().find(|(device, _)| *device == part.device) {
            Some((_, known)) => *known += n,
            None => layers.push((&part.device, n)),
        }
    }
    match &layers[..] {
        [(device, _)] => (*device).to_owned(),
        layers => layers.iter().map(|(device, n)| format!("{device}: {n} layers")).collect::<Vec<_>>().join(", "),
    }
}

/// The phase that a request is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Queue,
    Prefill,
    Decode,
}

/// The spans of one request.
pub(crate) struct Trace {
    request: Span,
    part: Part,
    part_span: Span,
    sample: Span,
    constrain: Span,
}

impl Trace {
    /// Begins the span of a request, and its time in the queue. Call it on the thread that submits the request.
    pub(super) fn new(core: &Core, id: u64, prompt: &[u32], max_tokens: usize) -> Self {
        let request = info_span!(
            target: TARGET,
            "request",
            id,
            prompt_tokens = prompt.len(),
            max_tokens,
            cached_tokens = Empty,
            generated_tokens = Empty,
            drafted_tokens = Empty,
            accepted_tokens = Empty,
            end = Empty,
            error = Empty,
            devices = Empty,
            prompt = Empty,
            output = Empty,
        );
        if !request.is_disabled() {
            request.record("devices", devices(core));
        }
        if core.trace_text && !request.is_disabled() {
            request.record("prompt", core.tokenizer.decode_with_special(prompt));
        }
        let [part_span, sample, constrain] = [Span::none(), Span::none(), Span::none()];
        let mut trace = Self { request, part: Part::Queue, part_span, sample, constrain };
        if !trace.request.is_disabled() {
            trace.sample = debug_span!(target: TARGET, parent: &trace.request, "sample", tokens = Empty);
            trace.constrain = debug_span!(target: TARGET, parent: &trace.request, "constrain", tokens = Empty);
        }
        trace.begin(Part::Queue, |parent| debug_span!(target: TARGET, parent: parent, "queue"));
        trace
    }

    /// Runs `f` with the subscriber of the request's span, or not at all without one. Spans have to be closed here too:
    /// the usual registry looks for the parents of a closing span in the subscriber of the thread.
    fn with_subscriber(&mut self, f: impl FnOnce(&mut Self)) {
        if let Some(dispatch) = self.request.with_subscriber(|(_, dispatch)| dispatch.clone()) {
            dispatcher::with_default(&dispatch, || f(self));
        }
    }

    /// Ends the current phase, and begins another.
    fn begin(&mut self, part: Part, make: impl FnOnce(&Span) -> Span) {
        self.part = part;
        self.with_subscriber(|trace| {
            trace.part_span = Span::none();
            trace.part_span = make(&trace.request);
        });
    }

    fn close(&mut self) {
        self.with_subscriber(|trace| {
            for span in [&mut trace.part_span, &mut trace.sample, &mut trace.constrain, &mut trace.request] {
                *span = Span::none();
            }
        });
    }

    /// Called when a step includes the request, with `tokens` tokens to compute before the next one can be chosen.
    pub(super) fn take_up(&mut self, cached: usize, tokens: usize) {
        if self.part == Part::Queue {
            self.begin(
                Part::Prefill,
                |parent| debug_span!(target: TARGET, parent: parent, "prefill", cached_tokens = cached, tokens),
            );
        }
    }

    /// Called when a token was generated.
    pub(super) fn go_on(&mut self) {
        if self.part != Part::Decode {
            self.begin(
                Part::Decode,
                |parent| debug_span!(target: TARGET, parent: parent, "decode", generated_tokens = Empty),
            );
        }
    }

    /// Called when the request has to wait, after `generated` generated tokens.
    pub(super) fn wait(&mut self, generated: usize) {
        self.part_span.record("generated_tokens", generated);
        self.begin(Part::Queue, |parent| debug_span!(target: TARGET, parent: parent, "queue"));
    }

    /// Runs `f`, which chooses a token, in the span `sample`.
    pub(super) fn sample<R>(&self, f: impl FnOnce() -> R) -> R {
        self.sample.in_scope(f)
    }

    /// Runs `f`, which applies a constraint, in the span `constrain`.
    #[cfg(feature = "constraints")]
    pub(super) fn constrain<R>(&self, f: impl FnOnce() -> R) -> R {
        self.constrain.in_scope(f)
    }

    /// Ends the span of a request that was refused.
    pub(super) fn refuse(self) {
        self.request.record("end", "refused");
    }

    /// Ends the span of the request; `tokens` are those of the prompt and of the generated text.
    pub(super) fn end(
        &mut self,
        core: &Core,
        end: &Result<FinishReason, Error>,
        usage: &Usage,
        times: &Timings,
        tokens: &[u32],
    ) {
        self.with_subscriber(|trace| {
            trace.part_span.record("generated_tokens", usage.completion);
            trace.sample.record("tokens", usage.completion);
            trace.constrain.record("tokens", usage.completion);
            let request = &trace.request;
            request.record("cached_tokens", usage.cached);
            request.record("generated_tokens", usage.completion);
            request.record("drafted_tokens", usage.drafted);
            request.record("accepted_tokens", usage.accepted);
            request.record("end", end.as_ref().map_or("error", |reason| reason.as_str()));
            match end {
                // The error of a failed step contains no text of the request; those of constraints and samplers may.
                Err(error) if core.trace_text || matches!(error.kind(), ErrorKind::Model) => {
                    request.record("error", display(format_args!("{error:#}")));
                }
                _ => {}
            }
            if core.trace_text {
                let (prompt, output) = tokens.split_at(usage.prompt.min(tokens.len()));
                let mut decoder = core.tokenizer.decoder_after(prompt);
                let mut text: String = output.iter().map(|&token| decoder.push(&core.tokenizer, token)).collect();
                text += &decoder.finish();
                request.record("output", text);
            }
            debug!(
                target: TARGET,
                parent: request,
                queue = ?times.queue,
                prefill = ?times.prefill,
                decode = ?times.decode,
                sample = ?times.sample,
                constrain = ?times.constrain,
                "request ended"
            );
        });
        self.close();
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.close();
    }
}
