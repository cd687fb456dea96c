//! Names that stand for several models, here and elsewhere: who answers a request, and who does if the first cannot.
//!
//! ```text
//! draw one by weight -> ask it, and again after a pause -> ask the others, in their order -> the last error
//! ```
//!
//! Which one is drawn depends on the request's id, or on the key's name, and on nothing else. Only what another server
//! could do better is asked of another: what is wrong with a request is the client's. When an answer has begun, it is
//! not asked for again. Who failed five times in a row is left alone for 30 seconds, and then asked once.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fewbit_serve::api::common::Prompt;
use fewbit_serve::{
    Backend, BackendError, BackendErrorKind, Boxed, Caller, Embedded, Generating, Job, ModelInfo, Sample, SampleKind,
};
use sha2::{Digest, Sha256};

/// Failures in a row after which somebody is left alone.
const FAILURES: u32 = 5;
/// For so long.
const PAUSE: Duration = Duration::from_secs(30);
/// Before the first repetition; twice as long before each further one.
const BACKOFF: Duration = Duration::from_millis(200);
/// Nobody is waited for longer: then another is asked.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// A name that stands for several models.
#[derive(Debug)]
pub struct Route {
    name: String,
    retries: u32,
    by_key: bool,
    targets: Vec<Target>,
    n_retries: AtomicU64,
    n_fallbacks: AtomicU64,
}

/// Who may answer.
struct Target {
    backend: Arc<dyn Backend>,
    model: String,
    weight: u32,
    breaker: Mutex<Breaker>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("model", &self.model).field("weight", &self.weight).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    closed_until: Option<Instant>,
}

impl Breaker {
    /// Whether to ask now. After a pause one request tries, and the others wait for another pause.
    fn may_ask(&mut self, now: Instant) -> bool {
        match self.closed_until {
            Some(until) if now < until => false,
            Some(_) => {
                self.closed_until = Some(now + PAUSE);
                true
            }
            None => true,
        }
    }

    fn note(&mut self, is_failure: bool, now: Instant) {
        if is_failure {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= FAILURES {
                self.closed_until = Some(now + PAUSE);
            }
        } else {
            *self = Self::default();
        }
    }
}

impl Target {
    fn breaker<T>(&self, with: impl FnOnce(&mut Breaker) -> T) -> T {
        with(&mut self.breaker.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Route {
    /// A name that stands for nothing yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            retries: 0,
            by_key: false,
            targets: Vec::new(),
            n_retries: AtomicU64::new(0),
            n_fallbacks: AtomicU64::new(0),
        }
    }

    /// How often each is asked again.
    pub fn retries(mut self, n: u32) -> Self {
        self.retries = n;
        self
    }

    /// Draws by the key's name, so that each key always gets the same one, and not by the request's id.
    pub fn by_key(mut self, by_key: bool) -> Self {
        self.by_key = by_key;
        self
    }

    /// One more that may answer. With a weight of 0 it does only if those before it cannot.
    pub fn to(mut self, backend: Arc<dyn Backend>, model: impl Into<String>, weight: u32) -> Self {
        self.targets.push(Target { backend, model: model.into(), weight, breaker: Mutex::default() });
        self
    }

    /// Who is asked, in this order.
    fn order(&self, caller: &Caller) -> Vec<&Target> {
        let total: u64 = self.targets.iter().map(|target| u64::from(target.weight)).sum();
        let who = if self.by_key { caller.key.as_deref().unwrap_or_default() } else { &*caller.request };
        let digest = Sha256::new().chain_update(&self.name).chain_update([0]).chain_update(who).finalize();
        let number = digest.iter().take(8).fold(0_u64, |number, &byte| number << 8 | u64::from(byte));
        let mut place = number.checked_rem(total).unwrap_or(0);
        let drawn = self.targets.iter().position(|target| {
            let is_here = place < u64::from(target.weight);
            place = place.saturating_sub(u64::from(target.weight));
            is_here
        });
        let mut order: Vec<&Target> = self.targets.iter().collect();
        if let Some(drawn) = drawn {
            let first = order.remove(drawn);
            order.insert(0, first);
        }
        order
    }

    async fn ask<'a, T>(
        &'a self,
        caller: &Caller,
        ask: impl Fn(&'a Target) -> Boxed<'a, Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let mut last = None;
        for (place, target) in self.order(caller).into_iter().enumerate() {
            if !target.breaker(|breaker| breaker.may_ask(Instant::now())) {
                continue;
            }
            for attempt in 0..=self.retries {
                let answered = ask(target).await;
                let failure = answered.as_ref().err().filter(|error| can_help(error.kind));
                target.breaker(|breaker| breaker.note(failure.is_some(), Instant::now()));
                let Some(error) = failure.cloned() else {
                    if answered.is_ok() && place > 0 {
                        self.n_fallbacks.fetch_add(1, Ordering::Relaxed);
                    }
                    return answered;
                };
                tracing::warn!(route = self.name, model = target.model, %error, attempt, "a route's model failed");
                let asked_for = match error.kind {
                    BackendErrorKind::UpstreamBusy { retry_after_s } => Duration::from_secs(retry_after_s.into()),
                    _ => Duration::ZERO,
                };
                last = Some(error);
                let wait = BACKOFF.saturating_mul(1 << attempt.min(10)).max(asked_for);
                if attempt == self.retries || wait > MAX_WAIT {
                    break;
                }
                self.n_retries.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(wait).await;
            }
        }
        Err(last.unwrap_or_else(|| {
            let kind = BackendErrorKind::UpstreamBusy { retry_after_s: 30 };
            BackendError::new(kind, format!("all that {:?} stands for failed lately: try again later", self.name))
        }))
    }

    fn info(&self) -> ModelInfo {
        ModelInfo { id: self.name.clone(), created: 0, context_length: 0, fingerprint: "route".to_owned() }
    }

    fn samples(&self) -> [Sample; 3] {
        let now = Instant::now();
        let is_paused = |target: &&Target| target.breaker(|breaker| breaker.closed_until.is_some_and(|at| at > now));
        let paused = self.targets.iter().filter(is_paused).count();
        let sample = |name, help, kind, value| Sample { name, help, kind, model: self.name.clone(), value };
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed) as f64;
        [
            sample("route_retries_total", "Repetitions.", SampleKind::Counter, count(&self.n_retries)),
            sample(
                "route_fallbacks_total",
                "Answers of another than was drawn.",
                SampleKind::Counter,
                count(&self.n_fallbacks),
            ),
            sample("route_paused", "How many are left alone after failures.", SampleKind::Gauge, paused as f64),
        ]
    }
}

/// Whether another server, or another time, could help.
fn can_help(kind: BackendErrorKind) -> bool {
    matches!(
        kind,
        BackendErrorKind::Upstream
            | BackendErrorKind::UpstreamBusy { .. }
            | BackendErrorKind::Busy
            | BackendErrorKind::Unavailable
            | BackendErrorKind::Internal
    )
}

/// Routes, and the models of this process under their own names.
pub struct Routes {
    local: Option<Arc<dyn Backend>>,
    others: Vec<Arc<dyn Backend>>,
    routes: Vec<Route>,
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes").field("routes", &self.routes).finish_non_exhaustive()
    }
}

impl Routes {
    /// These routes, next to the models of `local`; `others` are counted as well.
    pub fn new(local: Option<Arc<dyn Backend>>, others: Vec<Arc<dyn Backend>>, routes: Vec<Route>) -> Self {
        Self { local, others, routes }
    }

    fn route(&self, name: &str) -> Option<&Route> {
        self.routes.iter().find(|route| route.name == name)
    }

    fn local(&self, model: &str) -> Result<&dyn Backend, BackendError> {
        let unknown = || BackendError::new(BackendErrorKind::UnknownModel, format!("there is no model {model:?} here"));
        self.local.as_deref().ok_or_else(unknown)
    }

    /// Who answers what is not retried: the first of a route.
    fn first<'a>(&'a self, model: &'a str) -> Result<(&'a dyn Backend, &'a str), BackendError> {
        match self.route(model).and_then(|route| route.targets.first()) {
            Some(target) => Ok((&*target.backend, &target.model)),
            None => Ok((self.local(model)?, model)),
        }
    }
}

impl Backend for Routes {
    fn models(&self, caller: &Caller) -> Vec<ModelInfo> {
        let local = self.local.iter().flat_map(|local| local.models(caller));
        local.chain(self.routes.iter().map(Route::info)).collect()
    }

    fn generate(&self, job: Job) -> Boxed<'_, Result<Generating, BackendError>> {
        Box::pin(async move {
            let Some(route) = self.route(&job.model) else { return self.local(&job.model)?.generate(job).await };
            let ask = |target: &Target| Job { model: target.model.clone(), ..job.clone() };
            route.ask(&job.caller, |target| target.backend.generate(ask(target))).await
        })
    }

    fn count(&self, mut job: Job) -> Boxed<'_, Result<usize, BackendError>> {
        Box::pin(async move {
            let name = std::mem::take(&mut job.model);
            let (backend, model) = self.first(&name)?;
            model.clone_into(&mut job.model);
            backend.count(job).await
        })
    }

    fn embed(&self, caller: &Caller, model: &str, texts: Vec<Prompt>) -> Boxed<'_, Result<Embedded, BackendError>> {
        let (caller, model) = (caller.clone(), model.to_owned());
        Box::pin(async move {
            let Some(route) = self.route(&model) else {
                return self.local(&model)?.embed(&caller, &model, texts).await;
            };
            route.ask(&caller, |target| target.backend.embed(&caller, &target.model, texts.clone())).await
        })
    }

    fn tokenize(
        &self,
        caller: &Caller,
        model: &str,
        text: &str,
        add_special: bool,
        parse: bool,
    ) -> Result<Vec<u32>, BackendError> {
        let (backend, model) = self.first(model)?;
        backend.tokenize(caller, model, text, add_special, parse)
    }

    fn detokenize(&self, caller: &Caller, model: &str, tokens: &[u32]) -> Result<String, BackendError> {
        let (backend, model) = self.first(model)?;
        backend.detokenize(caller, model, tokens)
    }

    fn samples(&self) -> Vec<Sample> {
        let backends = self.local.iter().chain(&self.others);
        let of_backends = backends.flat_map(|backend| backend.samples());
        of_backends.chain(self.routes.iter().flat_map(Route::samples)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_failed_is_left_alone_and_then_asked_once() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURES {
            assert!(breaker.may_ask(start));
            breaker.note(true, start);
        }
        assert!(!breaker.may_ask(start + PAUSE / 2));
        assert!(breaker.may_ask(start + PAUSE));
        assert!(!breaker.may_ask(start + PAUSE));
        breaker.note(false, start + PAUSE);
        assert!(breaker.may_ask(start + PAUSE));
    }

    #[test]
    fn who_is_drawn_depends_on_the_weights_and_the_request() {
        let backend: Arc<dyn Backend> = Arc::new(fewbit_serve::ScriptedBackend::default());
        let route =
            Route::new("r").to(Arc::clone(&backend), "a", 3).to(Arc::clone(&backend), "b", 1).to(backend, "c", 0);
        let first = |i: u32| {
            let caller = Caller { request: format!("req_{i}").into(), ..Caller::default() };
            route.order(&caller)[0].model.clone()
        };
        let n = |model: &str| (0..4000).filter(|&i| first(i) == model).count();
        assert!((2800..3200).contains(&n("a")), "{}", n("a"));
        assert_eq!((n("a") + n("b"), n("c")), (4000, 0));
        assert_eq!(first(7), first(7));
    }
}
