//! A configuration that can be replaced while the server runs.
//!
//! ```text
//! read the file -> check all of it -> create its upstreams and routes -> replace the routes in use
//! ```
//!
//! If a step before the last one fails, the routes in use stay. Requests in progress finish with the routes that they
//! began with. The listen address, the store and the models are fixed when the server starts: a file that changes them
//! is refused as a whole, so that all settings in use always come from the same file.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use fewbit_serve::api::common::Prompt;
use fewbit_serve::{Backend, BackendError, Boxed, Caller, Embedded, Generating, Job, ModelInfo, Sample};

use crate::config::Config;
use crate::error::GatewayError;
use crate::gateway::Prices;
use crate::routes::Routes;

/// The configuration of a running server.
pub struct Live {
    path: PathBuf,
    config: Config,
    models: Vec<String>,
    local: Option<Arc<dyn Backend>>,
    routes: LiveRoutes,
    /// Held during a reload, so that concurrent reloads cannot overwrite a newer configuration with an older one.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Live {
    /// Creates the routes of this configuration, which was read from `path`, next to the models of `local`. `models`
    /// are their names in requests.
    ///
    /// # Errors
    /// The errors of [`Config::check_models`] and [`Config::backend`].
    pub fn new(
        path: impl Into<PathBuf>,
        config: Config,
        local: Option<Arc<dyn Backend>>,
        models: Vec<String>,
    ) -> Result<Self, GatewayError> {
        let routes = routes(&config, local.clone(), &models)?;
        let routes = LiveRoutes { current: Arc::new(RwLock::new(Arc::new(routes))) };
        Ok(Self { path: path.into(), config, models, local, routes, turn: Mutex::default() })
    }

    /// A backend that always uses the current routes.
    pub fn backend(&self) -> LiveRoutes {
        self.routes.clone()
    }

    /// Reads the file again and replaces the routes. Returns its prices, for
    /// [`Gateway::set_prices`](crate::Gateway::set_prices).
    ///
    /// # Errors
    /// If the file cannot be read, is invalid, or changes a setting that needs a restart. Then nothing is changed.
    pub fn reload(&self) -> Result<Prices, GatewayError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let config = Config::read(&self.path)?;
        let has_changed = [
            ("listen", config.listen != self.config.listen),
            ("store", config.store != self.config.store),
            ("models", config.models != self.config.models),
        ];
        if let Some((what, _)) = has_changed.into_iter().find(|(_, has_changed)| *has_changed) {
            return Err(GatewayError::NeedsRestart { path: self.path.clone(), what });
        }
        let new = Arc::new(routes(&config, self.local.clone(), &self.models)?);
        *self.routes.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(config.prices())
    }
}

fn routes(config: &Config, local: Option<Arc<dyn Backend>>, models: &[String]) -> Result<Routes, GatewayError> {
    config.check_models(&models.iter().map(String::as_str).collect::<Vec<_>>())?;
    config.backend(local)
}

/// A backend that uses the current routes. It is created with [`Live::backend`].
#[derive(Debug, Clone)]
pub struct LiveRoutes {
    current: Arc<RwLock<Arc<Routes>>>,
}

impl LiveRoutes {
    fn current(&self) -> Arc<Routes> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Backend for LiveRoutes {
    fn models(&self, caller: &Caller) -> Vec<ModelInfo> {
        self.current().models(caller)
    }

    fn generate(&self, job: Job) -> Boxed<'_, Result<Generating, BackendError>> {
        let routes = self.current();
        Box::pin(async move { routes.generate(job).await })
    }

    fn count(&self, job: Job) -> Boxed<'_, Result<usize, BackendError>> {
        let routes = self.current();
        Box::pin(async move { routes.count(job).await })
    }

    fn embed(&self, caller: &Caller, model: &str, texts: Vec<Prompt>) -> Boxed<'_, Result<Embedded, BackendError>> {
        let (routes, caller, model) = (self.current(), caller.clone(), model.to_owned());
        Box::pin(async move { routes.embed(&caller, &model, texts).await })
    }

    fn tokenize(
        &self,
        caller: &Caller,
        model: &str,
        text: &str,
        add_special: bool,
        parse: bool,
    ) -> Result<Vec<u32>, BackendError> {
        self.current().tokenize(caller, model, text, add_special, parse)
    }

    fn detokenize(&self, caller: &Caller, model: &str, tokens: &[u32]) -> Result<String, BackendError> {
        self.current().detokenize(caller, model, tokens)
    }

    fn samples(&self) -> Vec<Sample> {
        self.current().samples()
    }
}
