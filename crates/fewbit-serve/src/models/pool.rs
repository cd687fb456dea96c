//! The models of a server, of which not all are in memory.
//!
//! ```text
//! Unloaded --request--> Loading --> Loaded --idle, or its memory is needed--> Unloading --> Unloaded
//!                          |
//!                          +-- failed --> Unloaded; everybody who waited gets the error
//! ```
//!
//! A [`Lease`] counts a request from the moment it asks for a model until its answer ends; a model with leases is not
//! unloaded. However many requests wait for a model, it is loaded once. Loading runs on a thread of its own, which the
//! end of the program does not wait for, and goes on if all who waited disconnect.
//!
//! Before a model is loaded, its memory is reserved. If the limit does not allow that, idle models are unloaded, the
//! one that was used the longest ago first, but none if that would not be enough. A reservation is made at once, but
//! nothing is loaded before the memory of models that are being unloaded is free, so that the memory in use never
//! exceeds the limit.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use fewbit::Model;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::{DeviceShare, ModelSource, ModelState, ModelStatus, ServedModel, What, size};
use crate::backend::{BackendError, BackendErrorKind, ModelInfo, Sample, SampleKind};
use crate::error::ServeError;

/// After how many seconds a request may try again for which there was no memory.
const RETRY_AFTER_S: u32 = 5;

/// Tells the end of a loading or unloading; `None` until then.
type Done = watch::Receiver<Option<Result<(), BackendError>>>;

/// All models of a server. A clone is another handle.
#[derive(Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    slots: Vec<Slot>,
    limit: Option<u64>,
    states: Mutex<Vec<State>>,
    /// Notified whenever a model has been unloaded.
    freed: Condvar,
    /// For timers that are started from other threads.
    runtime: OnceLock<Handle>,
}

/// What is fixed about a model.
struct Slot {
    id: String,
    /// `None` for a model that is loaded for as long as the server runs.
    source: Option<Arc<dyn ModelSource>>,
    unload_after: Option<Duration>,
}

/// What changes about a model.
struct State {
    phase: Phase,
    /// Requests that use the model, or wait for it.
    users: usize,
    /// The memory that it takes or has reserved.
    bytes: u64,
    last_used: Instant,
    /// Whether a timer waits to unload it.
    has_timer: bool,
    /// When it was loaded last, in seconds since 1970.
    created: u64,
    /// 0 before it was loaded for the first time.
    context_length: usize,
    loads: u64,
    unloads: u64,
    failures: u64,
    load_time: Option<Duration>,
    error: Option<String>,
}

enum Phase {
    Unloaded,
    Loading(Done),
    Loaded(Model),
    Unloading(Done),
}

/// Why a model is not unloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unloading {
    /// It is unloaded now.
    Done,
    /// It was not loaded.
    NotLoaded,
    /// So many requests use it.
    InUse(usize),
    /// It is loaded for as long as the server runs.
    Permanent,
}

/// A model in use by a request. Dropping it ends the use.
pub(crate) struct Lease {
    pool: Pool,
    index: usize,
    model: Option<Model>,
}

impl Lease {
    pub(crate) fn model(&self) -> &Model {
        self.model.as_ref().expect("`lease` only returns leases with a model")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The pool's own handle must be the last one, so that nothing is freed here.
        drop(self.model.take());
        let mut states = self.pool.lock();
        let state = &mut states[self.index];
        state.users -= 1;
        state.last_used = Instant::now();
        self.pool.start_timer(&mut states, self.index);
    }
}

impl Pool {
    pub(crate) fn new(models: Vec<ServedModel>, limit: Option<u64>) -> Result<Self, ServeError> {
        let (mut slots, mut states): (Vec<Slot>, Vec<State>) = (Vec::new(), Vec::new());
        for ServedModel { id, what, unload_after } in models {
            if slots.iter().any(|known| known.id == id) {
                return Err(ServeError::SameName { id });
            }
            let (source, model) = match what {
                What::OnDemand(source) => (Some(source), None),
                What::Loaded(model) => (None, Some(model)),
            };
            slots.push(Slot { id, source, unload_after });
            states.push(State::new(model));
        }
        if slots.is_empty() {
            return Err(ServeError::NoModel);
        }
        let bytes = states.iter().fold(0_u64, |sum, state| sum.saturating_add(state.bytes));
        if let Some(limit) = limit.filter(|limit| bytes > *limit) {
            return Err(ServeError::MemoryLimit { needed: size(bytes), limit: size(limit) });
        }
        let (states, freed, runtime) = (Mutex::new(states), Condvar::new(), OnceLock::new());
        Ok(Self { shared: Arc::new(Shared { slots, limit, states, freed, runtime }) })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<State>> {
        self.shared.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self, id: &str) -> Result<usize, BackendError> {
        let unknown = || BackendError::new(BackendErrorKind::UnknownModel, format!("there is no model {id:?} here"));
        self.shared.slots.iter().position(|slot| slot.id == id).ok_or_else(unknown)
    }

    /// A model for a request. Loads it if needed.
    pub(crate) async fn lease(&self, id: &str) -> Result<Lease, BackendError> {
        let index = self.index(id)?;
        let _ = self.shared.runtime.set(Handle::current());
        self.lock()[index].users += 1;
        let mut lease = Lease { pool: self.clone(), index, model: None };
        loop {
            let mut done = {
                let mut states = self.lock();
                match &states[index].phase {
                    Phase::Loaded(model) => {
                        lease.model = Some(model.clone());
                        return Ok(lease);
                    }
                    Phase::Loading(done) | Phase::Unloading(done) => done.clone(),
                    Phase::Unloaded => self.begin_load(&mut states, index),
                }
            };
            match done.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(error))) => return Err(error.clone()),
                Ok(_) => {}
                Err(_) => return Err(failed_to_load(id)),
            }
        }
    }

    fn begin_load(&self, states: &mut [State], index: usize) -> Done {
        let (tell, done) = watch::channel(None);
        states[index].phase = Phase::Loading(done.clone());
        let this = self.clone();
        let thread = std::thread::Builder::new().name("fewbit-load".to_owned());
        if let Err(error) = thread.spawn(move || this.load(index, &tell)) {
            tracing::error!(%error, model = self.shared.slots[index].id, "cannot start a thread that loads");
            // `tell` is gone with the closure, so those who wait are told of a failure.
            states[index].phase = Phase::Unloaded;
        }
        done
    }

    /// Loads a model and tells those who wait for it.
    fn load(&self, index: usize, tell: &watch::Sender<Option<Result<(), BackendError>>>) {
        let id = &self.shared.slots[index].id;
        let start = Instant::now();
        let loaded = catch_unwind(AssertUnwindSafe(|| self.try_load(index)));
        let loaded = loaded.unwrap_or_else(|_| Err((failed_to_load(id), "loading panicked".to_owned())));
        let told = {
            let mut states = self.lock();
            let state = &mut states[index];
            match loaded {
                Ok(model) => {
                    let load_time = start.elapsed();
                    let (loads, unloads, failures) = (state.loads + 1, state.unloads, state.failures);
                    let (users, has_timer) = (state.users, state.has_timer);
                    let fresh = State::new(Some(model));
                    tracing::info!(model = id, bytes = fresh.bytes, ?load_time, "loaded a model");
                    let load_time = Some(load_time);
                    *state = State { loads, unloads, failures, users, has_timer, load_time, ..fresh };
                    // Nobody may be waiting any more.
                    self.start_timer(&mut states, index);
                    Ok(())
                }
                Err((error, why)) => {
                    tracing::error!(model = id, error = why, "cannot load a model");
                    (state.phase, state.bytes, state.error) = (Phase::Unloaded, 0, Some(why));
                    state.failures += 1;
                    Err(error)
                }
            }
        };
        let _ = tell.send(Some(told));
    }

    /// Loads a model. The error has a text for the request, and one for the operator.
    fn try_load(&self, index: usize) -> Result<Model, (BackendError, String)> {
        let slot = &self.shared.slots[index];
        let Some(source) = &slot.source else {
            return Err((failed_to_load(&slot.id), "there is no source".to_owned()));
        };
        let failed = |error: super::SourceError| (failed_to_load(&slot.id), with_causes(&*error));
        let bytes = source.needed_bytes().map_err(failed)?;
        self.make_room(index, bytes).map_err(|error| (error.clone(), error.message))?;
        source.load().map_err(failed)
    }

    /// Reserves memory for a model. Unloads idle ones if needed.
    fn make_room(&self, index: usize, bytes: u64) -> Result<(), BackendError> {
        let slots = &self.shared.slots;
        let victims = {
            let mut states = self.lock();
            let victims = match self.shared.limit {
                Some(limit) => victims(slots, &states, index, bytes, limit)?,
                None => Vec::new(),
            };
            states[index].bytes = bytes;
            let victims: Vec<_> =
                victims.into_iter().filter_map(|victim| states[victim].begin_unload(victim)).collect();
            victims
        };
        for victim in victims {
            self.finish_unload(victim);
        }
        let mut states = self.lock();
        while states.iter().any(|state| matches!(state.phase, Phase::Unloading(_))) {
            states = self.shared.freed.wait(states).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Frees the memory of a model.
    fn finish_unload(&self, Victim { index, model, tell }: Victim) {
        drop(model);
        let mut states = self.lock();
        states[index].phase = Phase::Unloaded;
        states[index].unloads += 1;
        self.shared.freed.notify_all();
        drop(states);
        let _ = tell.send(Some(Ok(())));
        tracing::info!(model = self.shared.slots[index].id, "unloaded a model");
    }

    /// Starts the timer that unloads an idle model, if it needs one.
    fn start_timer(&self, states: &mut [State], index: usize) {
        let (Some(after), Some(runtime)) = (self.shared.slots[index].unload_after, self.shared.runtime.get()) else {
            return;
        };
        let state = &mut states[index];
        if !state.is_idle() || state.has_timer || self.shared.slots[index].source.is_none() {
            return;
        }
        state.has_timer = true;
        let weak = Arc::downgrade(&self.shared);
        runtime.spawn(async move {
            let mut wait = after;
            loop {
                tokio::time::sleep(wait).await;
                match when_idle(&weak, index, after) {
                    Some(more) => wait = more,
                    None => return,
                }
            }
        });
    }

    /// Loads a model for nobody in particular.
    pub(crate) async fn preload(&self, id: &str) -> Result<(), BackendError> {
        self.lease(id).await.map(drop)
    }

    /// Unloads a model that nobody uses. Blocks until its memory is free.
    pub(crate) fn unload(&self, id: &str) -> Result<Unloading, BackendError> {
        let index = self.index(id)?;
        let victim = {
            let mut states = self.lock();
            let state = &mut states[index];
            match state.phase {
                _ if self.shared.slots[index].source.is_none() => return Ok(Unloading::Permanent),
                Phase::Unloaded | Phase::Unloading(_) => return Ok(Unloading::NotLoaded),
                Phase::Loading(_) => return Ok(Unloading::InUse(state.users.max(1))),
                Phase::Loaded(_) if state.users > 0 => return Ok(Unloading::InUse(state.users)),
                Phase::Loaded(_) => state.begin_unload(index),
            }
        };
        victim.into_iter().for_each(|victim| self.finish_unload(victim));
        Ok(Unloading::Done)
    }

    pub(crate) fn infos(&self) -> Vec<ModelInfo> {
        let states = self.lock();
        let info = |(slot, state): (&Slot, &State)| ModelInfo {
            id: slot.id.clone(),
            created: state.created,
            context_length: state.context_length,
            fingerprint: format!("fewbit-{}", env!("CARGO_PKG_VERSION")),
            state: Some(state.phase.state()),
        };
        self.shared.slots.iter().zip(states.iter()).map(info).collect()
    }

    /// The models that are loaded.
    pub(crate) fn loaded(&self) -> Vec<(String, Model)> {
        let states = self.lock();
        let of = |(slot, state): (&Slot, &State)| match &state.phase {
            Phase::Loaded(model) => Some((slot.id.clone(), model.clone())),
            _ => None,
        };
        self.shared.slots.iter().zip(states.iter()).filter_map(of).collect()
    }

    pub(crate) fn limit(&self) -> Option<u64> {
        self.shared.limit
    }

    pub(crate) fn statuses(&self) -> Vec<ModelStatus> {
        let states = self.lock();
        let status = |(slot, state): (&Slot, &State)| {
            let model = match &state.phase {
                Phase::Loaded(model) => Some(model),
                _ => None,
            };
            let kv = model.map(|model| {
                let metrics = model.metrics();
                let bytes = |pages: usize| (pages as u64).saturating_mul(metrics.kv_page_bytes);
                (bytes(metrics.kv_pages), bytes(metrics.kv_pages_limit))
            });
            ModelStatus {
                id: slot.id.clone(),
                object: "model",
                state: state.phase.state(),
                on_demand: slot.source.is_some(),
                context_length: state.context_length,
                memory_bytes: state.bytes,
                kv_bytes: kv.map(|(used, _)| used),
                kv_limit_bytes: kv.map(|(_, limit)| limit),
                isa: model.map(|model| model.isa().name()),
                threads: model.map(Model::n_threads),
                devices: model.map(DeviceShare::of).unwrap_or_default(),
                requests: state.users,
                idle_s: state.is_idle().then(|| state.last_used.elapsed().as_secs_f64()),
                unload_after_s: slot.unload_after.as_ref().map(Duration::as_secs_f64),
                loads: state.loads,
                unloads: state.unloads,
                failures: state.failures,
                load_s: state.load_time.as_ref().map(Duration::as_secs_f64),
                error: state.error.clone(),
            }
        };
        self.shared.slots.iter().zip(states.iter()).map(status).collect()
    }

    pub(crate) fn samples(&self) -> Vec<Sample> {
        use SampleKind::{Counter, Gauge};
        let mut all = Vec::new();
        for status in self.statuses() {
            let rows: [(&'static str, &'static str, SampleKind, f64); 5] = [
                ("model_loaded", "1 if the model is in memory.", Gauge, f64::from(status.state == ModelState::Loaded)),
                (
                    "model_memory_bytes",
                    "Bytes that the model may take: its weights, keys and values.",
                    Gauge,
                    status.memory_bytes as f64,
                ),
                ("model_loads_total", "Times that the model was loaded on demand.", Counter, status.loads as f64),
                ("model_unloads_total", "Times that the model was unloaded.", Counter, status.unloads as f64),
                ("model_load_failures_total", "Times that loading failed.", Counter, status.failures as f64),
            ];
            let sample = |(name, help, kind, value)| Sample { name, help, kind, model: status.id.clone(), value };
            all.extend(rows.map(sample));
        }
        if let Some(limit) = self.shared.limit {
            let (name, help) = ("models_memory_limit_bytes", "Bytes that all models may take together.");
            all.push(Sample { name, help, kind: Gauge, model: String::new(), value: limit as f64 });
        }
        all
    }
}

/// A model that is being unloaded.
struct Victim {
    index: usize,
    model: Model,
    tell: watch::Sender<Option<Result<(), BackendError>>>,
}

impl State {
    fn new(model: Option<Model>) -> Self {
        let bytes = model.as_ref().map_or(0, |model| {
            let metrics = model.metrics();
            let kv = (metrics.kv_pages_limit as u64).saturating_mul(metrics.kv_page_bytes);
            metrics.weight_bytes.saturating_add(kv)
        });
        Self {
            users: 0,
            bytes,
            last_used: Instant::now(),
            has_timer: false,
            created: std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs()),
            context_length: model.as_ref().map_or(0, Model::context_length),
            loads: 0,
            unloads: 0,
            failures: 0,
            load_time: None,
            error: None,
            phase: model.map_or(Phase::Unloaded, Phase::Loaded),
        }
    }

    fn is_idle(&self) -> bool {
        self.users == 0 && matches!(self.phase, Phase::Loaded(_))
    }

    /// Takes the model out, whose memory counts as free from here on.
    fn begin_unload(&mut self, index: usize) -> Option<Victim> {
        if !self.is_idle() {
            return None;
        }
        let (tell, done) = watch::channel(None);
        let Phase::Loaded(model) = std::mem::replace(&mut self.phase, Phase::Unloading(done)) else { return None };
        self.bytes = 0;
        Some(Victim { index, model, tell })
    }
}

impl Phase {
    fn state(&self) -> ModelState {
        match self {
            Self::Unloaded => ModelState::Unloaded,
            Self::Loading(_) => ModelState::Loading,
            Self::Loaded(_) => ModelState::Loaded,
            Self::Unloading(_) => ModelState::Unloading,
        }
    }
}

/// The models to unload so that `bytes` more fit into the limit, in that order.
fn victims(slots: &[Slot], states: &[State], index: usize, bytes: u64, limit: u64) -> Result<Vec<usize>, BackendError> {
    let id = &slots[index].id;
    let sum = |of: &dyn Fn(usize) -> bool| {
        (0..slots.len()).filter(|&i| i != index && of(i)).fold(0_u64, |sum, i| sum.saturating_add(states[i].bytes))
    };
    let permanent = sum(&|i| slots[i].source.is_none());
    if permanent.saturating_add(bytes) > limit {
        let message = format!(
            "the model {id:?} needs {}, and the models of this server may take {} together, of which {} are taken for \
             as long as it runs: it can never be loaded here",
            size(bytes),
            size(limit),
            size(permanent)
        );
        return Err(BackendError::new(BackendErrorKind::TooLarge, message));
    }
    let mut used = sum(&|_| true);
    let mut idle: Vec<usize> = (0..slots.len()).filter(|&i| slots[i].source.is_some() && states[i].is_idle()).collect();
    idle.sort_by_key(|&i| states[i].last_used);
    let mut chosen = Vec::new();
    let mut idle = idle.into_iter();
    while used.saturating_add(bytes) > limit {
        let Some(next) = idle.next() else {
            let message = format!(
                "the model {id:?} needs {}, and of the {} for models {} are in use: try again later",
                size(bytes),
                size(limit),
                size(used)
            );
            return Err(BackendError::new(BackendErrorKind::NotLoaded { retry_after_s: RETRY_AFTER_S }, message));
        };
        used = used.saturating_sub(states[next].bytes);
        chosen.push(next);
    }
    Ok(chosen)
}

/// Unloads a model that was idle for long enough. Returns how long to wait until it can be; `None` if the timer ends.
fn when_idle(shared: &Weak<Shared>, index: usize, after: Duration) -> Option<Duration> {
    let pool = Pool { shared: shared.upgrade()? };
    let mut states = pool.lock();
    let state = &mut states[index];
    let idle = state.last_used.elapsed();
    if state.is_idle() && idle < after {
        return Some(after.saturating_sub(idle));
    }
    // A model in use gets a new timer when its last request ends.
    state.has_timer = false;
    let victim = state.begin_unload(index)?;
    drop(states);
    tokio::task::block_in_place(|| pool.finish_unload(victim));
    None
}

/// The cause may contain file names, so clients do not get it: it is logged, and shown by `/admin/models`.
fn failed_to_load(id: &str) -> BackendError {
    BackendError::new(
        BackendErrorKind::LoadFailed,
        format!("the model {id:?} cannot be loaded: see the log of the server"),
    )
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
