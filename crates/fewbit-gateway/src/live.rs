//! A configuration that can be replaced while the server runs.
//!
//! ```text
//! read the file -> check all of it -> create its upstreams and routes -> replace the routes in use
//! ```
//!
//! If a step before the last one fails, the routes in use stay. Requests in progress finish with the routes that they
//! began with. The listen address, the certificate's files, the store, the models and the tools are fixed when the
//! server starts: a file that changes them is refused as a whole, so that all settings in use always come from the same
//! file.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use fewbit_serve::Backend;

use crate::config::Config;
use crate::error::GatewayError;
use crate::gateway::Settings;
use crate::routes::Routes;

/// The configuration of a running server.
pub struct Live {
    path: PathBuf,
    config: Config,
    models: Vec<String>,
    local: Option<Arc<dyn Backend>>,
    routes: Routes,
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
        Ok(Self { path: path.into(), config, models, local, routes, turn: Mutex::default() })
    }

    /// A backend that always uses the current routes.
    pub fn backend(&self) -> Routes {
        self.routes.clone()
    }

    /// Reads the file again and replaces the routes. `apply` gets its other settings, for
    /// [`Gateway::apply`](crate::Gateway::apply), before another reload can begin.
    ///
    /// # Errors
    /// If the file cannot be read, is invalid, or changes a setting that needs a restart. Then nothing is changed.
    pub fn reload(&self, apply: impl FnOnce(Settings)) -> Result<(), GatewayError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let config = Config::read(&self.path)?;
        let has_changed = [
            ("listen", config.listen != self.config.listen),
            ("store", config.store != self.config.store),
            ("tls", config.tls != self.config.tls),
            ("models", config.models != self.config.models),
            ("tools", config.tools != self.config.tools),
            ("batches", config.file_limits() != self.config.file_limits()),
            ("memory_limit", config.memory_limit != self.config.memory_limit),
        ];
        if let Some((what, _)) = has_changed.into_iter().find(|(_, has_changed)| *has_changed) {
            return Err(GatewayError::NeedsRestart { path: self.path.clone(), what });
        }
        let routes = routes(&config, self.local.clone(), &self.models)?;
        let settings = Settings::of(&config)?;
        self.routes.replace(&routes);
        apply(settings);
        Ok(())
    }
}

fn routes(config: &Config, local: Option<Arc<dyn Backend>>, models: &[String]) -> Result<Routes, GatewayError> {
    config.check_models(models)?;
    config.backend(local)
}
