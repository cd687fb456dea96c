//! What `tracing` is told of a request: a span of it, and in that a span of each of its parts.
//!
//! ```text
//! request                 from its submission to its end, inside the span that the caller is in
//!   queue                 until a step takes it up; again each time that it has to wait for memory
//!   prefill, then decode  until the first token, and from then on
//!   sample, constrain     entered for each token: their busy time is what choosing took
//! ```
//!
//! The engine computes many requests at once, so none of these spans is that of a thread: each request carries its
//! own, and what is begun on the engine's thread goes to the subscriber that the caller had. Where nobody
//! listens, all of them are [`Span::none`]. They carry numbers. Texts are added where
//! [`ModelBuilder::trace_text`](crate::ModelBuilder::trace_text) asks for them.

use tracing::field::{Empty, display};
use tracing::{Span, debug, debug_span, dispatcher, info_span};

use super::Core;
use crate::completion::{FinishReason, Timings, Usage};
use crate::error::{Error, ErrorKind};

/// Spans, and the event at the end, are told apart from other messages by this.
const TARGET: &str = "fewbit::request";

/// Where a request is.
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
    /// Begins the span of a request, and its time in the queue. To be called by the thread that submits it.
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
            prompt = Empty,
            output = Empty,
        );
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

    /// Runs `f` with the subscriber of the request's span; does not where there is none. Spans have to be closed
    /// here too: the usual registry looks for the parents of what closes in the subscriber of the thread.
    fn with_subscriber(&mut self, f: impl FnOnce(&mut Self)) {
        if let Some(dispatch) = self.request.with_subscriber(|(_, dispatch)| dispatch.clone()) {
            dispatcher::with_default(&dispatch, || f(self));
        }
    }

    /// Ends the part that it is in, and begins another.
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

    /// A step takes it up, with so many tokens to compute before the next one can be chosen.
    pub(super) fn take_up(&mut self, cached: usize, tokens: usize) {
        if self.part == Part::Queue {
            self.begin(
                Part::Prefill,
                |parent| debug_span!(target: TARGET, parent: parent, "prefill", cached_tokens = cached, tokens),
            );
        }
    }

    /// A token came.
    pub(super) fn go_on(&mut self) {
        if self.part != Part::Decode {
            self.begin(
                Part::Decode,
                |parent| debug_span!(target: TARGET, parent: parent, "decode", generated_tokens = Empty),
            );
        }
    }

    /// It has to wait, after so many generated tokens.
    pub(super) fn wait(&mut self, generated: usize) {
        self.part_span.record("generated_tokens", generated);
        self.begin(Part::Queue, |parent| debug_span!(target: TARGET, parent: parent, "queue"));
    }

    /// Runs `f`, which chooses a token.
    pub(super) fn sample<R>(&self, f: impl FnOnce() -> R) -> R {
        self.sample.in_scope(f)
    }

    /// Runs `f`, which follows a constraint.
    #[cfg(feature = "constraints")]
    pub(super) fn constrain<R>(&self, f: impl FnOnce() -> R) -> R {
        self.constrain.in_scope(f)
    }

    /// It was refused.
    pub(super) fn refuse(self) {
        self.request.record("end", "refused");
    }

    /// Its end: `tokens` are those of the prompt and what was generated.
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
                // A step that fails says nothing of the text; constraints and samplers may.
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
