//! A backend with prepared answers, for tests of clients and of the server itself without a model.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fewbit_api::common::Prompt;
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value};

use crate::backend::{
    Backend, BackendError, BackendErrorKind, Boxed, Caller, Embedded, End, Event, Finish, Generating, Input, Job,
    ModelInfo, Models, Piece, Reranked, Sample, SampleKind, Usage,
};

/// The prepared answer to one job.
#[derive(Debug, Clone, Default)]
pub struct Script {
    refusal: Option<BackendError>,
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
enum Step {
    Wait(Duration),
    Say(Result<Event, BackendError>),
    Panic,
}

impl Script {
    /// Creates an empty script.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a script that fails before the answer begins.
    pub fn refuse(error: BackendError) -> Self {
        Self { refusal: Some(error), steps: Vec::new() }
    }

    /// Creates a script that sends this text, one piece per word, and ends.
    pub fn words(text: &str) -> Self {
        text.split_inclusive(' ').fold(Self::new(), Self::text).end(Finish::Stop)
    }

    /// Adds a piece.
    pub fn piece(mut self, piece: Piece) -> Self {
        self.steps.push(Step::Say(Ok(Event::Piece(piece))));
        self
    }

    /// Adds a piece with this text.
    pub fn text(self, text: &str) -> Self {
        self.piece(Piece { text: text.to_owned(), ..Piece::default() })
    }

    /// Adds a pause.
    pub fn wait(mut self, time: Duration) -> Self {
        self.steps.push(Step::Wait(time));
        self
    }

    /// Adds an error in the stream.
    pub fn fail(mut self, error: BackendError) -> Self {
        self.steps.push(Step::Say(Err(error)));
        self
    }

    /// Adds a panic.
    pub fn panic(mut self) -> Self {
        self.steps.push(Step::Panic);
        self
    }

    /// Adds the end. Its usage has one token for each piece, and one prompt token.
    pub fn end(self, finish: Finish) -> Self {
        self.end_by(finish, None)
    }

    /// Adds the end, caused by this stop text.
    pub fn stop_at(self, stop: &str) -> Self {
        self.end_by(Finish::Stop, Some(stop.to_owned()))
    }

    /// Adds [`Event::Begin`] with this many prompt tokens.
    pub fn begin(mut self, prompt: usize) -> Self {
        self.steps.push(Step::Say(Ok(Event::Begin { prompt })));
        self
    }

    fn end_by(mut self, finish: Finish, stop: Option<String>) -> Self {
        let completion = self.steps.iter().filter(|step| matches!(step, Step::Say(Ok(Event::Piece(_))))).count();
        let usage = Usage { prompt: 1, completion, ..Usage::default() };
        self.steps.push(Step::Say(Ok(Event::End(End { finish, stop, usage }))));
        self
    }
}

/// A backend that answers each job with the next script, and records the jobs.
#[derive(Debug, Clone, Default)]
pub struct ScriptedBackend {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    scripts: Mutex<VecDeque<Script>>,
    /// The script for jobs after all others were used.
    last: Mutex<Option<Script>>,
    jobs: Mutex<Vec<Job>>,
    running: AtomicUsize,
}

/// Counts an answer in progress until it is dropped.
struct Counted(Arc<Shared>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ScriptedBackend {
    /// Creates a backend with one model, `scripted`, and these scripts.
    pub fn new(scripts: impl IntoIterator<Item = Script>) -> Self {
        let backend = Self::default();
        scripts.into_iter().for_each(|script| backend.push(script));
        backend
    }

    /// Adds a script.
    pub fn push(&self, script: Script) {
        self.shared.scripts.lock().unwrap_or_else(PoisonError::into_inner).push_back(script);
    }

    /// Sets the script for jobs after all others were used.
    pub fn then_always(self, script: Script) -> Self {
        *self.shared.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(script);
        self
    }

    /// The jobs that were received.
    pub fn jobs(&self) -> Vec<Job> {
        self.shared.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many answers are in progress.
    pub fn running(&self) -> usize {
        self.shared.running.load(Ordering::SeqCst)
    }
}

impl Models for ScriptedBackend {
    fn list(&self, _: &Caller) -> Vec<ModelInfo> {
        let (id, fingerprint) = ("scripted".to_owned(), "script".to_owned());
        vec![ModelInfo { id, created: 0, context_length: 1024, fingerprint, state: None }]
    }

    fn tokenizer_info<'a>(&'a self, _: &'a Caller, _: &'a str) -> Boxed<'a, Result<Map<String, Value>, BackendError>> {
        Box::pin(async move { Ok(Map::from_iter([("tokenizer_class".to_owned(), "bytes".into())])) })
    }

    /// Each byte is a token.
    fn tokenize<'a>(
        &'a self,
        _: &'a Caller,
        _: &'a str,
        text: &'a str,
        _: bool,
        _: bool,
    ) -> Boxed<'a, Result<Vec<u32>, BackendError>> {
        Box::pin(async move { Ok(text.bytes().map(u32::from).collect()) })
    }

    fn detokenize<'a>(
        &'a self,
        _: &'a Caller,
        _: &'a str,
        tokens: &'a [u32],
    ) -> Boxed<'a, Result<String, BackendError>> {
        Box::pin(async move {
            let byte = |&token: &u32| u8::try_from(token);
            let bytes: Result<Vec<u8>, _> = tokens.iter().map(byte).collect();
            let bytes = bytes.map_err(|error| BackendError::invalid("tokens", error))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        })
    }

    fn samples(&self) -> Vec<Sample> {
        vec![Sample {
            name: "requests_running",
            help: "Requests that are being computed.",
            kind: SampleKind::Gauge,
            model: "scripted".to_owned(),
            value: self.running() as f64,
        }]
    }
}

impl Backend for ScriptedBackend {
    fn models(&self) -> &dyn Models {
        self
    }

    fn generate(&self, job: Job) -> Boxed<'_, Result<Generating, BackendError>> {
        self.shared.jobs.lock().unwrap_or_else(PoisonError::into_inner).push(job);
        let script = self.shared.scripts.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let script = script.or_else(|| self.shared.last.lock().unwrap_or_else(PoisonError::into_inner).clone());
        Box::pin(async move {
            let none = || BackendError::new(BackendErrorKind::Internal, "there is no script left");
            let script = script.ok_or_else(none)?;
            if let Some(error) = script.refusal {
                return Err(error);
            }
            self.shared.running.fetch_add(1, Ordering::SeqCst);
            let counted = Counted(Arc::clone(&self.shared));
            let events = stream::iter(script.steps).filter_map(move |step| {
                let _ = &counted;
                async move {
                    match step {
                        Step::Wait(time) => {
                            tokio::time::sleep(time).await;
                            None
                        }
                        Step::Say(event) => Some(event),
                        Step::Panic => panic!("the script says so"),
                    }
                }
            });
            Ok(Generating::new(events))
        })
    }

    /// Counts a message as one token.
    fn count(&self, job: Job) -> Boxed<'_, Result<usize, BackendError>> {
        let n = match &job.input {
            Input::Chat { messages, .. } => messages.len(),
            _ => 1,
        };
        Box::pin(async move { Ok(n) })
    }

    /// The vector of a text consists of its length and its negative length.
    fn embed(&self, _: &Caller, _: &str, texts: Vec<Prompt>) -> Boxed<'_, Result<Embedded, BackendError>> {
        let length = |prompt: &Prompt| match prompt {
            Prompt::Text(text) => text.len() as f32,
            Prompt::Tokens(tokens) => tokens.len() as f32,
            _ => 0.0,
        };
        let vectors = texts.iter().map(|prompt| vec![length(prompt), -length(prompt)]).collect();
        Box::pin(async move { Ok(Embedded::new(vectors, texts.len())) })
    }

    /// The relevance of a document is its length.
    fn rerank(
        &self,
        _: &Caller,
        _: &str,
        _: String,
        documents: Vec<String>,
    ) -> Boxed<'_, Result<Reranked, BackendError>> {
        let scores = documents.iter().map(|document| document.len() as f32).collect();
        Box::pin(async move { Ok(Reranked::new(scores, documents.len())) })
    }
}
