//! What a subscriber of `tracing` and a reader of the metrics learn about requests: all numbers, but no text unless it
//! is enabled.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fewbit::sample::CustomSampler;
use fewbit::{Constraint, Error, ErrorKind, FinishReason, Metrics, Model};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::with_default;
use tracing::{Event, Level, Subscriber, info_span};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

use crate::load;

/// A span as it was when it closed.
#[derive(Debug, Clone, Default)]
struct Span {
    name: String,
    parent: String,
    fields: BTreeMap<String, String>,
    entered: usize,
}

impl Visit for Span {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

impl Span {
    fn number(&self, field: &str) -> usize {
        self.fields.get(field).unwrap_or_else(|| panic!("no {field} in {self:?}")).parse().unwrap()
    }
}

/// Keeps the spans in the order in which they close, and the messages of events.
#[derive(Clone, Default)]
struct Capture {
    spans: Arc<Mutex<Vec<Span>>>,
    events: Arc<Mutex<Vec<Span>>>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Capture {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let parent = span.parent().map(|parent| parent.name().to_owned()).unwrap_or_default();
        let mut new = Span { name: span.name().to_owned(), parent, ..Span::default() };
        attributes.record(&mut new);
        span.extensions_mut().insert(new);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        values.record(context.span(id).unwrap().extensions_mut().get_mut::<Span>().unwrap());
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        context.span(id).unwrap().extensions_mut().get_mut::<Span>().unwrap().entered += 1;
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let parent = context.event_span(event).map(|span| span.name().to_owned()).unwrap_or_default();
        let mut new = Span { name: "event".to_owned(), parent, ..Span::default() };
        event.record(&mut new);
        self.events.lock().unwrap().push(new);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let span = context.span(&id).unwrap().extensions_mut().remove::<Span>().unwrap();
        self.spans.lock().unwrap().push(span);
    }
}

impl Capture {
    fn take(&self) -> Vec<Span> {
        std::mem::take(&mut *self.spans.lock().unwrap())
    }
}

/// What the usual subscriber writes.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Written {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// A model of its own, so that its counts are those of one test.
fn one_at_a_time(trace_text: bool) -> Model {
    load(|b| b.max_running(1).max_waiting(1).trace_text(trace_text))
}

/// Allows only one subscriber at a time: while one is added or removed, `tracing` may use the interest that it cached
/// for the other.
fn only_one() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `f` with a subscriber that records everything, and also writes it as text.
fn watched(capture: &Capture, f: impl FnOnce()) -> String {
    use tracing_subscriber::fmt::format::FmtSpan;
    let _only_one = only_one();
    let written = Written::default();
    let text = tracing_subscriber::fmt::layer().with_writer(written.clone()).with_span_events(FmtSpan::FULL);
    with_default(Registry::default().with(capture.clone()).with(text), f);
    String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn request_span_has_a_child_span_for_each_phase() {
    let (model, capture) = (one_at_a_time(false), Capture::default());
    let prompt = "Once upon a time, there was a little girl named Lily. She loved to play with her friends.";
    let request = || model.generate(prompt).temperature(0.0).max_tokens(12).ignore_eos(true);
    // The engine's thread has no subscriber: the events of a request go to the subscriber of its caller.
    let mut out = None;
    watched(&capture, || info_span!("mine").in_scope(|| out = Some(request().run().unwrap())));
    let (out, spans) = (out.unwrap(), capture.take());
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["queue", "prefill", "decode", "sample", "constrain", "request", "mine"]);
    let [queue, prefill, decode, sample, constrain, request_span, _] = &spans[..] else { unreachable!() };
    assert!([queue, prefill, decode, sample, constrain].iter().all(|span| span.parent == "request"));
    assert_eq!(request_span.parent, "mine");
    assert_eq!(request_span.number("prompt_tokens"), out.usage.prompt);
    assert_eq!(request_span.number("max_tokens"), 12);
    assert_eq!((request_span.number("generated_tokens"), request_span.number("cached_tokens")), (12, 0));
    assert_eq!(request_span.fields["end"], "\"length\"");
    assert_eq!(prefill.number("tokens"), out.usage.prompt);
    assert_eq!((decode.number("generated_tokens"), sample.number("tokens")), (12, 12));
    assert_eq!((sample.entered, constrain.entered), (12, 0));
    let events = capture.events.lock().unwrap().clone();
    let ended: Vec<_> = events.iter().filter(|event| event.fields.contains_key("prefill")).collect();
    assert_eq!((ended.len(), ended[0].parent.as_str()), (1, "request"));

    // Cached tokens are reported as such, and a constraint has its own span.
    watched(&capture, || drop(request().constraint(Constraint::regex("[a-z ]{3}")).run().unwrap()));
    let spans = capture.take();
    let span = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    assert_eq!(span("prefill").number("tokens") + span("prefill").number("cached_tokens"), out.usage.prompt);
    assert!(span("request").number("cached_tokens") > 0);
    assert!(span("constrain").entered > span("sample").entered);
    assert_eq!(span("request").fields["end"], "\"stop\"");
    // Without a subscriber, nothing arrives.
    request().run().unwrap();
    assert!(capture.take().is_empty());
}

#[test]
fn text_is_not_traced_unless_enabled() {
    struct Fails;
    impl CustomSampler for Fails {
        fn adjust(&mut self, _: &[u32], _: &mut [f32]) {
            panic!("the word was Lily");
        }
    }
    let ask = |model: &Model, output: &mut String| {
        let prompt = "Once upon a time, there was a girl named Lily. She";
        let greedy = || model.generate(prompt).temperature(0.0).max_tokens(30);
        *output = greedy().stop("zzz").constraint(Constraint::regex("[A-Za-z .,]+")).run().unwrap().text;
        let mut chat = model.chat().system("You are Lily.").temperature(0.0).max_tokens(30).start().unwrap();
        chat.send("Where is Lily?").unwrap();
        assert!(matches!(
            greedy().custom_sampler(|| Fails).run().map_err(fewbit::Error::into_kind),
            Err(ErrorKind::Panicked { .. })
        ));
        assert!(greedy().constraint(Constraint::regex("(")).run().is_err());
        drop(greedy().stream().unwrap().next());
        model.logprobs("Lily", 1).unwrap();
    };
    let (model, capture, mut output) = (one_at_a_time(false), Capture::default(), String::new());
    let text = watched(&capture, || ask(&model, &mut output));
    assert!(output.len() > 20, "{output}");
    let mut all = text;
    write!(all, "{:?}{:?}", capture.take(), capture.events.lock().unwrap()).unwrap();
    assert!(all.contains("generated_tokens") && all.contains("request ended"), "{all}");
    let words = output.split([' ', '.', ',']).filter(|word| word.len() > 4);
    for word in words.chain(["Lily", "Once", "zzz", "A-Z"]) {
        assert!(!all.contains(word), "{word:?} is in {all}");
    }

    // Asked for, both are there; so is what a sampler panicked with.
    let model = one_at_a_time(true);
    watched(&capture, || ask(&model, &mut output));
    let spans = capture.take();
    let requests: Vec<_> = spans.iter().filter(|span| span.name == "request").collect();
    assert!(requests[0].fields["prompt"].contains("named Lily"), "{requests:?}");
    assert_eq!(requests[0].fields["output"], format!("{output:?}"));
    assert!(requests.iter().any(|span| span.fields.get("error").is_some_and(|error| error.contains("was Lily"))));
}

#[test]
fn subscribers_with_fewer_levels_get_fewer_spans() {
    let at = |level: Level| {
        let _only_one = only_one();
        let (model, capture) = (one_at_a_time(false), Capture::default());
        let filter = tracing_subscriber::filter::LevelFilter::from_level(level);
        let subscriber = Registry::default().with(capture.clone()).with(filter);
        with_default(subscriber, || drop(model.generate("Once").max_tokens(3).run().unwrap()));
        capture.take().into_iter().map(|span| span.name).collect::<Vec<_>>()
    };
    assert_eq!(at(Level::INFO), ["request"]);
    assert!(at(Level::ERROR).is_empty());
}

#[test]
fn metrics_count_every_outcome() {
    let model = one_at_a_time(false);
    let start = model.metrics();
    assert_eq!((start.kv_pages, start.steps, start.ended), (0, 0, 0));
    assert!(start.weight_bytes > 100_000 && start.kv_pages_free() > 0 && start.kv_page_bytes > 0);
    let request = || model.generate("Once upon a time").temperature(0.0).max_tokens(5).ignore_eos(true);
    assert_eq!(request().run().unwrap().finish_reason, FinishReason::Length);
    assert_eq!(
        request().constraint(Constraint::choice([" there"])).run().unwrap().finish_reason,
        FinishReason::EndOfGeneration
    );
    assert_eq!(request().timeout(std::time::Duration::ZERO).run().unwrap().finish_reason, FinishReason::Timeout);
    // It ended while it was waiting, and its place is free a moment later.
    while model.metrics().waiting > 0 {
        std::thread::yield_now();
    }
    struct Fails;
    impl CustomSampler for Fails {
        fn adjust(&mut self, _: &[u32], logits: &mut [f32]) {
            logits.fill(f32::NAN);
        }
    }
    request().custom_sampler(|| Fails).run().unwrap_err();
    // One request runs, one waits, a third is rejected; then the first two go away.
    let mut streams: Vec<_> = (0..3).map(|_| request().max_tokens(200).stream().unwrap()).collect();
    streams[0].next().unwrap().unwrap();
    std::thread::scope(|scope| {
        let mut waiting = streams.remove(1);
        let thread = scope.spawn(move || drop(waiting.next()));
        while model.metrics().waiting == 0 {
            std::thread::yield_now();
        }
        assert!(matches!(streams[1].next().unwrap().map_err(Error::into_kind), Err(ErrorKind::QueueFull { .. })));
        streams.clear();
        thread.join().unwrap();
    });
    let until = |done: &dyn Fn(&Metrics) -> bool| loop {
        let metrics = model.metrics();
        if done(&metrics) {
            return metrics;
        }
        std::thread::yield_now();
    };
    let now = until(&|metrics| metrics.ended == 6);
    let outcomes = now.outcomes;
    assert_eq!((outcomes.length, outcomes.stop, outcomes.timeout), (1, 1, 1), "{outcomes:?}");
    assert_eq!((outcomes.failed, outcomes.cancelled, outcomes.refused), (1, 2, 1), "{outcomes:?}");
    assert!(now.longest_step >= now.last_step && now.step_time >= now.longest_step && !now.last_step.is_zero());
    assert!(now.generated_per_second() > 0.0);
    assert_eq!(now.kv_bytes(), now.kv_pages as u64 * now.kv_page_bytes);

    request().run().unwrap();
    let new = until(&|metrics| metrics.ended == 7).since(&now);
    assert_eq!((new.ended, new.outcomes.length, new.outcomes.stop, new.generated_tokens), (1, 1, 0, 5));
    assert_eq!(
        (new.prompt_tokens + new.cached_tokens, new.weight_bytes),
        (request().run().unwrap().usage.prompt as u64, now.weight_bytes)
    );
    assert_eq!(Metrics::default().generated_per_second(), 0.0);
}
