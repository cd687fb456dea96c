//! Routes: a model name that stands for several targets, local or on other servers, with weights, retries and
//! fallbacks.
//!
//! ```text
//! choose a target by weight -> call it, retry with backoff -> fall back to the others, in order -> the last error
//! ```
//!
//! The choice is a hash of the request id or of the key's name, so it is reproducible. Only failures that another
//! target or a later attempt could avoid are retried; an invalid request would fail everywhere. Once an answer has
//! begun, it is not requested again. A target that keeps failing is skipped by its [circuit breaker](crate::breaker).

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fewbit_serve::api::common::Prompt;
use fewbit_serve::{
    AnsweredBy, Backend, BackendError, BackendErrorKind, Boxed, Caller, Embedded, Event, Generating, Job, ModelInfo,
    Models, Reranked, Sample, SampleKind,
};
use futures_core::Stream;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::breaker::{Breaker, OPEN_FOR, Permit};
use crate::masking::{Masked, Masking};

/// The delay before the first retry. It doubles with each further retry.
const BACKOFF: Duration = Duration::from_millis(200);
/// If a retry would have to wait longer than this (such as after an upstream's `Retry-After`), the next target is tried
/// instead.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// A model name that stands for several targets.
#[derive(Debug)]
pub struct Route {
    name: String,
    retries: u32,
    by_key: bool,
    targets: Vec<Target>,
    n_retries: AtomicU64,
    n_fallbacks: AtomicU64,
}

/// A model that a route can choose, on this server or another.
struct Target {
    /// Its name in headers and logs.
    name: Arc<str>,
    backend: Arc<dyn Backend>,
    model: String,
    weight: u32,
    /// Whether it is computed on this server.
    is_local: bool,
    breaker: Arc<Breaker>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("name", &self.name).field("weight", &self.weight).finish_non_exhaustive()
    }
}

/// A target's answer, which target it was, and the breaker's permit, to report how the rest of the answer goes.
struct Asked<T> {
    answer: T,
    by: AnsweredBy,
    permit: Permit,
}

impl Route {
    /// Creates a route without targets.
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

    /// Sets how often a target is retried before the next one is tried.
    pub fn retries(mut self, n: u32) -> Self {
        self.retries = n;
        self
    }

    /// Sets whether to choose by the key's name, so that each key always gets the same target, instead of by the
    /// request id.
    pub fn by_key(mut self, by_key: bool) -> Self {
        self.by_key = by_key;
        self
    }

    /// Adds a target on another server: this model of this backend, called `name` in headers and logs. A target with
    /// weight 0 is only used as a fallback.
    pub fn to(
        self,
        name: impl Into<Arc<str>>,
        backend: Arc<dyn Backend>,
        model: impl Into<String>,
        weight: u32,
    ) -> Self {
        self.target(name.into(), backend, model.into(), weight, false)
    }

    /// Adds a target that is computed on this server, as [`Route::to`].
    pub fn to_local(
        self,
        name: impl Into<Arc<str>>,
        backend: Arc<dyn Backend>,
        model: impl Into<String>,
        weight: u32,
    ) -> Self {
        self.target(name.into(), backend, model.into(), weight, true)
    }

    fn target(mut self, name: Arc<str>, backend: Arc<dyn Backend>, model: String, weight: u32, is_local: bool) -> Self {
        self.targets.push(Target { name, backend, model, weight, is_local, breaker: Arc::default() });
        self
    }

    /// The targets in the order in which to try them: the chosen one, then the fallbacks.
    fn order(&self, caller: &Caller) -> Vec<&Target> {
        let total: u64 = self.targets.iter().map(|target| u64::from(target.weight)).sum();
        let who = if self.by_key { caller.key.as_deref().unwrap_or_default() } else { &*caller.request };
        let digest = Sha256::new().chain_update(&self.name).chain_update([0]).chain_update(who).finalize();
        let number = digest.iter().take(8).fold(0_u64, |number, &byte| number << 8 | u64::from(byte));
        let mut place = number.checked_rem(total).unwrap_or(0);
        let chosen = self.targets.iter().position(|target| {
            let is_here = place < u64::from(target.weight);
            place = place.saturating_sub(u64::from(target.weight));
            is_here
        });
        let mut order: Vec<&Target> = self.targets.iter().collect();
        if let Some(chosen) = chosen {
            let first = order.remove(chosen);
            order.insert(0, first);
        }
        order
    }

    async fn ask<'a, T>(
        &'a self,
        caller: &Caller,
        ask: impl Fn(&'a Target) -> Boxed<'a, Result<T, BackendError>>,
    ) -> Result<Asked<T>, BackendError> {
        let mut last = None;
        for (place, target) in self.order(caller).into_iter().enumerate() {
            for attempt in 0..=self.retries {
                let Some(permit) = target.breaker.permit(Instant::now()) else { break };
                let error = match ask(target).await {
                    Ok(answer) => {
                        let is_fallback = place > 0;
                        self.n_fallbacks.fetch_add(is_fallback.into(), Ordering::Relaxed);
                        let by = AnsweredBy { backend: Arc::clone(&target.name), is_fallback };
                        return Ok(Asked { answer, by, permit });
                    }
                    Err(error) if is_temporary(error.kind) => error,
                    Err(error) => return Err(error),
                };
                permit.failed();
                tracing::warn!(route = self.name, target = &*target.name, %error, attempt, "a target failed");
                let asked_for = match error.kind {
                    BackendErrorKind::UpstreamBusy { retry_after_s }
                    | BackendErrorKind::NotLoaded { retry_after_s } => Duration::from_secs(retry_after_s.into()),
                    _ => Duration::ZERO,
                };
                last = Some(error);
                let wait = BACKOFF.saturating_mul(1 << attempt.min(10)).max(asked_for);
                if attempt == self.retries || wait > MAX_WAIT || target.breaker.is_open() {
                    break;
                }
                self.n_retries.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(wait).await;
            }
        }
        Err(last.unwrap_or_else(|| {
            let retry_after_s = u32::try_from(OPEN_FOR.as_secs()).unwrap_or(u32::MAX);
            let message = format!("all targets of the route {:?} failed a short time ago: try again later", self.name);
            BackendError::new(BackendErrorKind::UpstreamBusy { retry_after_s }, message)
        }))
    }

    fn info(&self) -> ModelInfo {
        ModelInfo { id: self.name.clone(), created: 0, context_length: 0, fingerprint: "route".to_owned(), state: None }
    }

    fn samples(&self) -> [Sample; 3] {
        let open = self.targets.iter().filter(|target| target.breaker.is_open()).count();
        let sample = |name, help, kind, value| Sample { name, help, kind, model: self.name.clone(), value };
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed) as f64;
        let (counter, gauge) = (SampleKind::Counter, SampleKind::Gauge);
        [
            sample("route_retries_total", "Retries of a route's targets.", counter, count(&self.n_retries)),
            sample("route_fallbacks_total", "Answers of a fallback.", counter, count(&self.n_fallbacks)),
            sample("route_open_breakers", "Targets that are skipped after failures.", gauge, open as f64),
        ]
    }
}

/// A stream of an answer that reports to the circuit breaker how it ends.
struct Watched {
    answer: Generating,
    permit: Option<Permit>,
}

impl Stream for Watched {
    type Item = Result<Event, BackendError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = std::task::ready!(Pin::new(&mut self.answer).poll_next(context));
        let settle = match &event {
            Some(Ok(Event::End(_))) => Permit::succeeded,
            Some(Err(error)) if !is_temporary(error.kind) => drop,
            Some(Err(_)) | None => Permit::failed,
            Some(Ok(_)) => return Poll::Ready(event),
        };
        self.permit.take().map(settle);
        Poll::Ready(event)
    }
}

/// Whether another target or a later attempt could succeed.
fn is_temporary(kind: BackendErrorKind) -> bool {
    matches!(
        kind,
        BackendErrorKind::Upstream
            | BackendErrorKind::UpstreamBusy { .. }
            | BackendErrorKind::Busy
            | BackendErrorKind::Unavailable
            | BackendErrorKind::Internal
            | BackendErrorKind::NotLoaded { .. }
            | BackendErrorKind::TooLarge
            | BackendErrorKind::LoadFailed
    )
}

/// A backend with routes, and with the local models under their own names. A clone is another handle to the same routes.
#[derive(Clone)]
pub struct Routes {
    table: Arc<RwLock<Arc<Table>>>,
}

/// What one configuration defines. A request keeps the table that it began with.
struct Table {
    local: Option<Arc<dyn Backend>>,
    others: Vec<Arc<dyn Backend>>,
    routes: Vec<Route>,
    masking: Option<Masking>,
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes").field("routes", &self.table().routes).finish_non_exhaustive()
    }
}

impl Routes {
    /// Creates a backend with these routes and the models of `local`. Its metrics include those of `others`.
    pub fn new(local: Option<Arc<dyn Backend>>, others: Vec<Arc<dyn Backend>>, routes: Vec<Route>) -> Self {
        Self::masked(local, others, routes, None)
    }

    /// Like [`Routes::new`], with what is masked before a target gets it.
    pub(crate) fn masked(
        local: Option<Arc<dyn Backend>>,
        others: Vec<Arc<dyn Backend>>,
        routes: Vec<Route>,
        masking: Option<Masking>,
    ) -> Self {
        Self { table: Arc::new(RwLock::new(Arc::new(Table { local, others, routes, masking }))) }
    }

    /// Takes over the routes of `new`, for all handles. Requests in progress finish with the old ones.
    pub(crate) fn replace(&self, new: &Self) {
        let table = new.table();
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    /// The answer of a model of this server, masked as for a request that named `requested`.
    pub(crate) async fn generate_locally(&self, job: Job, requested: &str) -> Result<Generating, BackendError> {
        let table = self.table();
        let backend = table.local(&job.model)?;
        let masked = Masked { backend, masking: table.masking.as_ref(), model: requested, is_local: true };
        masked.generate(job).await
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Table {
    fn route(&self, name: &str) -> Option<&Route> {
        self.routes.iter().find(|route| route.name == name)
    }

    fn local(&self, model: &str) -> Result<&dyn Backend, BackendError> {
        let unknown = || BackendError::new(BackendErrorKind::UnknownModel, format!("there is no model {model:?} here"));
        self.local.as_deref().ok_or_else(unknown)
    }

    /// The backend and model for calls that are neither retried nor balanced: for a route, those of its first target.
    fn first<'a>(&'a self, model: &'a str) -> Result<(Masked<'a>, &'a str), BackendError> {
        match self.route(model).and_then(|route| route.targets.first()) {
            Some(target) => Ok((self.target(model, target), &target.model)),
            None => Ok((self.own(model)?, model)),
        }
    }

    /// A target of the route `model`, which gets its requests masked.
    fn target<'a>(&'a self, model: &'a str, target: &'a Target) -> Masked<'a> {
        let masking = self.masking.as_ref();
        Masked { backend: &*target.backend, masking, model, is_local: target.is_local }
    }

    /// The local models, which get their requests masked if the configuration says so.
    fn own<'a>(&'a self, model: &'a str) -> Result<Masked<'a>, BackendError> {
        Ok(Masked { backend: self.local(model)?, masking: self.masking.as_ref(), model, is_local: true })
    }
}

impl Models for Routes {
    fn list(&self, caller: &Caller) -> Vec<ModelInfo> {
        let table = self.table();
        let local = table.local.iter().flat_map(|local| local.models().list(caller));
        local.chain(table.routes.iter().map(Route::info)).collect()
    }

    fn tokenizer_info<'a>(
        &'a self,
        caller: &'a Caller,
        model: &'a str,
    ) -> Boxed<'a, Result<Map<String, Value>, BackendError>> {
        let table = self.table();
        Box::pin(async move {
            let (target, model) = table.first(model)?;
            target.backend.models().tokenizer_info(caller, model).await
        })
    }

    fn tokenize<'a>(
        &'a self,
        caller: &'a Caller,
        model: &'a str,
        text: &'a str,
        add_special: bool,
        parse: bool,
    ) -> Boxed<'a, Result<Vec<u32>, BackendError>> {
        let table = self.table();
        Box::pin(async move {
            let (backend, model) = table.first(model)?;
            backend.tokenize(caller, model, text, add_special, parse).await
        })
    }

    fn detokenize<'a>(
        &'a self,
        caller: &'a Caller,
        model: &'a str,
        tokens: &'a [u32],
    ) -> Boxed<'a, Result<String, BackendError>> {
        let table = self.table();
        Box::pin(async move {
            let (target, model) = table.first(model)?;
            target.backend.models().detokenize(caller, model, tokens).await
        })
    }

    fn samples(&self) -> Vec<Sample> {
        let table = self.table();
        let backends = table.local.iter().chain(&table.others);
        let of_backends = backends.flat_map(|backend| backend.models().samples());
        of_backends.chain(table.routes.iter().flat_map(Route::samples)).collect()
    }
}

impl Backend for Routes {
    fn models(&self) -> &dyn Models {
        self
    }

    fn generate(&self, job: Job) -> Boxed<'_, Result<Generating, BackendError>> {
        let table = self.table();
        Box::pin(async move {
            let name = job.model.clone();
            let Some(route) = table.route(&name) else { return table.own(&name)?.generate(job).await };
            let ask = |target: &Target| Job { model: target.model.clone(), ..job.clone() };
            let asked = route.ask(&job.caller, |target| Box::pin(table.target(&name, target).generate(ask(target))));
            let Asked { answer, by, permit } = asked.await?;
            let n_masked = answer.n_masked();
            Ok(Generating::new(Watched { answer, permit: Some(permit) }).by(by).masked(n_masked))
        })
    }

    fn count(&self, mut job: Job) -> Boxed<'_, Result<usize, BackendError>> {
        let table = self.table();
        Box::pin(async move {
            let name = std::mem::take(&mut job.model);
            let (backend, model) = table.first(&name)?;
            model.clone_into(&mut job.model);
            backend.count(job).await
        })
    }

    fn embed(&self, caller: &Caller, model: &str, texts: Vec<Prompt>) -> Boxed<'_, Result<Embedded, BackendError>> {
        let (table, caller, model) = (self.table(), caller.clone(), model.to_owned());
        Box::pin(async move {
            let Some(route) = table.route(&model) else {
                return table.own(&model)?.embed(&caller, &model, texts).await;
            };
            let asked = route.ask(&caller, |target| {
                Box::pin(table.target(&model, target).embed(&caller, &target.model, texts.clone()))
            });
            let Asked { answer, by, permit } = asked.await?;
            permit.succeeded();
            Ok(Embedded { answered_by: Some(by), ..answer })
        })
    }

    fn rerank(
        &self,
        caller: &Caller,
        model: &str,
        query: String,
        documents: Vec<String>,
    ) -> Boxed<'_, Result<Reranked, BackendError>> {
        let (table, caller, model) = (self.table(), caller.clone(), model.to_owned());
        Box::pin(async move {
            let Some(route) = table.route(&model) else {
                return table.own(&model)?.rerank(&caller, &model, query, documents).await;
            };
            let asked = route.ask(&caller, |target| {
                let to = table.target(&model, target);
                Box::pin(to.rerank(&caller, &target.model, query.clone(), documents.clone()))
            });
            let Asked { answer, by, permit } = asked.await?;
            permit.succeeded();
            Ok(Reranked { answered_by: Some(by), ..answer })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_order_depends_on_weights_and_request_id() {
        let backend: Arc<dyn Backend> = Arc::new(fewbit_serve::ScriptedBackend::default());
        let to = |route: Route, name: &str, weight| route.to(name, Arc::clone(&backend), name, weight);
        let route = to(to(to(Route::new("r"), "a", 3), "b", 1), "c", 0);
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
