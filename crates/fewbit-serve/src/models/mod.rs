//! Models that are loaded at their first request, and unloaded again when they are idle or another model needs their
//! memory.
//!
//! A [`ServedModel`] is either loaded already, and then stays loaded, or has a [`ModelSource`] that loads it on demand.
//! The [pool](pool) decides when that happens.

mod pool;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fewbit::{Model, ModelBuilder};
use serde::Serialize;

pub(crate) use self::pool::{Lease, Pool, Unloading};

/// The error of a [`ModelSource`].
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Loads a model when it is needed. Its functions may block: they are called on a thread of their own.
pub trait ModelSource: Send + Sync + 'static {
    /// How much memory the model will take, in bytes. It is called before each loading.
    ///
    /// # Errors
    /// If this cannot be found out, such as when a file is missing. The model is not loaded then.
    fn needed_bytes(&self) -> Result<u64, SourceError>;

    /// Loads the model.
    ///
    /// # Errors
    /// Why it cannot be loaded. The next request tries again.
    fn load(&self) -> Result<Model, SourceError>;
}

/// A model of the registry, a hub or a file, with these settings.
#[derive(Debug, Clone)]
pub struct BuilderSource {
    builder: ModelBuilder,
    model: PathBuf,
    kv_memory: Option<u64>,
}

impl BuilderSource {
    /// Creates a source for a model, by its name in the registry or its path.
    pub fn new(builder: ModelBuilder, model: impl Into<PathBuf>) -> Self {
        Self { builder, model: model.into(), kv_memory: None }
    }

    /// Sets how many bytes the model's keys and values may take. By default that is half of the memory that is free when
    /// the model is loaded, which is too much if several models share a memory limit.
    pub fn kv_memory(mut self, bytes: u64) -> Self {
        self.builder = self.builder.kv_memory(bytes);
        self.kv_memory = Some(bytes);
        self
    }
}

impl ModelSource for BuilderSource {
    fn needed_bytes(&self) -> Result<u64, SourceError> {
        let mut estimate = self.builder.memory_estimate(&self.model)?;
        estimate.kv_bytes = self.kv_memory.unwrap_or(estimate.kv_bytes);
        Ok(estimate.total_bytes())
    }

    fn load(&self) -> Result<Model, SourceError> {
        Ok(self.builder.clone().load(&self.model)?)
    }
}

/// A model to serve.
#[derive(Clone)]
pub struct ServedModel {
    id: String,
    what: What,
    unload_after: Option<Duration>,
}

#[derive(Clone)]
enum What {
    Loaded(Model),
    OnDemand(Arc<dyn ModelSource>),
}

impl std::fmt::Debug for ServedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedModel")
            .field("id", &self.id)
            .field("unload_after", &self.unload_after)
            .finish_non_exhaustive()
    }
}

impl ServedModel {
    /// A model that is loaded, and stays so. `id` is its name in requests.
    pub fn loaded(id: impl Into<String>, model: Model) -> Self {
        Self { id: id.into(), what: What::Loaded(model), unload_after: None }
    }

    /// A model that is loaded at its first request.
    pub fn on_demand(id: impl Into<String>, source: impl ModelSource) -> Self {
        Self { id: id.into(), what: What::OnDemand(Arc::new(source)), unload_after: None }
    }

    /// Unloads a model that was loaded on demand when there was no request for it for this long. By default it is only
    /// unloaded if another model needs its memory.
    pub fn unload_after(mut self, time: Duration) -> Self {
        self.unload_after = Some(time);
        self
    }
}

/// Whether a model is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ModelState {
    /// It is ready.
    Loaded,
    /// It is being loaded.
    Loading,
    /// It is not in memory; a request for it loads it.
    Unloaded,
    /// Its memory is being freed.
    Unloading,
}

impl ModelState {
    /// Its name in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Loading => "loading",
            Self::Unloaded => "unloaded",
            Self::Unloading => "unloading",
        }
    }
}

/// A model of the pool, as `GET /admin/models` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ModelStatus {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) state: ModelState,
    /// Whether it is loaded at its first request; else it is loaded for as long as the server runs.
    pub(crate) on_demand: bool,
    /// How many tokens a prompt and its answer can have together; 0 before it was loaded for the first time.
    pub(crate) context_length: usize,
    /// The memory that it takes or has reserved.
    pub(crate) memory_bytes: u64,
    /// What of that is in use for keys and values, and may be; `None` if it is not loaded.
    pub(crate) kv_bytes: Option<u64>,
    pub(crate) kv_limit_bytes: Option<u64>,
    /// The instruction set and the threads of the CPU's part; `None` if it is not loaded.
    pub(crate) isa: Option<&'static str>,
    pub(crate) threads: Option<usize>,
    /// The devices that its parts are on, in the order of its layers; empty if it is not loaded.
    pub(crate) devices: Vec<DeviceShare>,
    /// Requests that use it, or wait for it.
    pub(crate) requests: usize,
    /// For how long there was no request; `None` while there is one, or if it is not loaded.
    pub(crate) idle_s: Option<f64>,
    pub(crate) unload_after_s: Option<f64>,
    pub(crate) loads: u64,
    pub(crate) unloads: u64,
    pub(crate) failures: u64,
    /// How long the last loading took.
    pub(crate) load_s: Option<f64>,
    /// Why the last loading failed; `None` if it succeeded.
    pub(crate) error: Option<String>,
}

/// What of a model is on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct DeviceShare {
    /// Its name, such as `cpu (avx2)`.
    pub(crate) device: String,
    pub(crate) is_cpu: bool,
    /// How many of the layers.
    pub(crate) layers: usize,
    pub(crate) weight_bytes: u64,
}

impl DeviceShare {
    fn of(model: &Model) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for part in model.placement() {
            let layers = part.part.n_layers();
            match all.iter_mut().find(|share| share.device == part.device) {
                Some(share) => {
                    share.layers += layers;
                    share.weight_bytes = share.weight_bytes.saturating_add(part.weight_bytes);
                }
                None => all.push(Self {
                    device: part.device.clone(),
                    is_cpu: part.is_host,
                    layers,
                    weight_bytes: part.weight_bytes,
                }),
            }
        }
        all
    }
}

/// A number of bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}
