//! The file that says what a server serves: read whole, checked whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fewbit_serve::{Backend, UpstreamBackend, UpstreamConfig};
use serde::Deserialize;

use crate::error::GatewayError;
use crate::gateway::{Price, Prices};
use crate::routes::{Route, Routes};

/// A commented example.
pub const EXAMPLE: &str = include_str!("example.toml");

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Where to listen, as `IP:PORT`.
    pub listen: Option<String>,
    /// The folder of keys and log; a relative path begins at the file. Without it there are no keys.
    pub store: Option<PathBuf>,
    /// What to serve.
    #[serde(default)]
    pub models: Vec<ModelConfig>,
    /// Other servers.
    #[serde(default)]
    upstreams: Vec<Upstream>,
    /// Names that stand for several models.
    #[serde(default)]
    routes: Vec<RouteConfig>,
    /// What models cost.
    #[serde(default)]
    prices: std::collections::BTreeMap<String, PriceConfig>,
}

/// A model to serve.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ModelConfig {
    /// A name of the registry or the hub, or a path, which begins at the working folder.
    pub model: String,
    /// What requests call it: as `fewbit serve MODEL` would have it, if nothing is said.
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Upstream {
    name: String,
    url: String,
    key_env: Option<String>,
    key_file: Option<PathBuf>,
    connect_timeout_s: Option<u32>,
    timeout_s: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteConfig {
    name: String,
    #[serde(default)]
    retries: u32,
    #[serde(default)]
    draw_by: DrawBy,
    to: Vec<TargetConfig>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DrawBy {
    #[default]
    Request,
    Key,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetConfig {
    upstream: Option<String>,
    model: String,
    #[serde(default = "one")]
    weight: u32,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct PriceConfig {
    input: f64,
    cached_input: Option<f64>,
    output: f64,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// If it cannot be read, or something in it is wrong: with its line.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, GatewayError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(GatewayError::file("read", path))?;
        let mut config = Self::parse(&text).map_err(|error| GatewayError::Config { path: path.to_owned(), error })?;
        if let Some(store) = &mut config.store {
            *store = path.parent().unwrap_or(Path::new("")).join(&*store);
        }
        for key_file in config.upstreams.iter_mut().filter_map(|upstream| upstream.key_file.as_mut()) {
            *key_file = path.parent().unwrap_or(Path::new("")).join(&*key_file);
        }
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let config: Self = toml::from_str(text)?;
        for (name, price) in &config.prices {
            let all = [price.input, price.output, price.cached_input.unwrap_or(0.0)];
            if all.iter().any(|price| !price.is_finite() || *price < 0.0) {
                return Err(serde::de::Error::custom(format!("a price of {name:?} is no amount: give 0 or more")));
            }
        }
        config.check_routes().map_err(serde::de::Error::custom)?;
        Ok(config)
    }

    fn check_routes(&self) -> Result<(), String> {
        for (i, upstream) in self.upstreams.iter().enumerate() {
            let name = &upstream.name;
            if self.upstreams.iter().take(i).any(|other| other.name == *name) {
                return Err(format!("two upstreams are called {name:?}: rename one of them"));
            }
            if upstream.key_env.is_some() && upstream.key_file.is_some() {
                return Err(format!("the upstream {name:?} has `key_env` and `key_file`: leave one of them out"));
            }
            if [upstream.timeout_s, upstream.connect_timeout_s].contains(&Some(0)) {
                return Err(format!("the upstream {name:?} has a timeout of 0 seconds: give at least 1"));
            }
        }
        for (i, route) in self.routes.iter().enumerate() {
            let name = &route.name;
            if self.routes.iter().take(i).any(|other| other.name == *name) {
                return Err(format!("two routes are called {name:?}: rename one of them"));
            }
            if route.to.is_empty() {
                return Err(format!("the route {name:?} leads nowhere: give it a `to`"));
            }
            if route.retries > 5 {
                return Err(format!("the route {name:?} has {} retries: give 5 at most", route.retries));
            }
            for upstream in route.to.iter().filter_map(|target| target.upstream.as_ref()) {
                if !self.upstreams.iter().any(|known| known.name == *upstream) {
                    return Err(format!("the route {name:?} leads to the upstream {upstream:?}, which is not there"));
                }
            }
        }
        Ok(())
    }

    /// The names of the routes.
    pub fn route_names(&self) -> impl Iterator<Item = &str> {
        self.routes.iter().map(|route| route.name.as_str())
    }

    /// The models of this process to which routes lead.
    pub fn routed_models(&self) -> impl Iterator<Item = &str> {
        let targets = self.routes.iter().flat_map(|route| &route.to);
        targets.filter(|target| target.upstream.is_none()).map(|target| target.model.as_str())
    }

    /// What the routes say, next to the models of this process. Keys of upstreams are read now.
    ///
    /// # Errors
    /// If a key is not where the file says, or an upstream's address is none.
    pub fn backend(&self, local: Option<Arc<dyn Backend>>) -> Result<Routes, GatewayError> {
        let targets = || self.routes.iter().flat_map(|route| &route.to);
        let mut upstreams: Vec<(&str, Arc<dyn Backend>)> = Vec::new();
        for upstream in &self.upstreams {
            let name = upstream.name.as_str();
            let of_it = targets().filter(|target| target.upstream.as_deref() == Some(name));
            let mut config = UpstreamConfig::new(&upstream.url, of_it.map(|target| &target.model));
            config.key = upstream.key()?;
            if let Some(seconds) = upstream.timeout_s {
                config.timeout = Duration::from_secs(seconds.into());
            }
            if let Some(seconds) = upstream.connect_timeout_s {
                config.connect_timeout = Duration::from_secs(seconds.into());
            }
            let wrong = |error| GatewayError::Upstream { name: name.to_owned(), error };
            upstreams.push((name, Arc::new(UpstreamBackend::new(config).map_err(wrong)?)));
        }
        let route = |route: &RouteConfig| {
            let empty = Route::new(&route.name).retries(route.retries).by_key(route.draw_by == DrawBy::Key);
            route.to.iter().fold(empty, |made, target| {
                let backend = match &target.upstream {
                    Some(name) => upstreams.iter().find(|(known, _)| known == name).map(|(_, backend)| backend),
                    None => local.as_ref(),
                };
                match backend {
                    Some(backend) => made.to(Arc::clone(backend), &target.model, target.weight),
                    None => made,
                }
            })
        };
        let routes = self.routes.iter().map(route).collect();
        Ok(Routes::new(local.clone(), upstreams.into_iter().map(|(_, backend)| backend).collect(), routes))
    }

    /// What models cost.
    pub fn prices(&self) -> Prices {
        let price = |of: &PriceConfig| Price {
            input: of.input,
            cached_input: of.cached_input.unwrap_or(of.input),
            output: of.output,
        };
        self.prices.iter().map(|(name, of)| (name.clone(), price(of))).collect()
    }
}

impl Upstream {
    fn key(&self) -> Result<Option<String>, GatewayError> {
        if let Some(path) = &self.key_file {
            let text = std::fs::read_to_string(path).map_err(GatewayError::file("read", path))?;
            return Ok(Some(text.trim().to_owned()));
        }
        let Some(variable) = &self.key_env else { return Ok(None) };
        let unset = |_| GatewayError::NoVariable { name: self.name.clone(), variable: variable.clone() };
        std::env::var(variable).map(|key| Some(key.trim().to_owned())).map_err(unset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_right() {
        let config = Config::parse(EXAMPLE).unwrap();
        assert_eq!(
            (config.listen.as_deref(), config.store.as_deref()),
            (Some("127.0.0.1:8080"), Some(Path::new("store")))
        );
        assert_eq!(config.models[0].model, "smollm2-135m-instruct");
        assert_eq!(config.prices()["small"], Price { input: 0.1, cached_input: 0.01, output: 0.4 });
    }

    #[test]
    fn what_is_wrong_has_its_line() {
        let error = |text: &str| Config::parse(text).unwrap_err().to_string();
        assert!(error("listen = \"x\"\nstor = \"y\"").contains("line 2"), "{}", error("listen = \"x\"\nstor = \"y\""));
        assert!(error("[[models]]\nname = \"x\"").contains("missing field `model`"));
        let to = |to: &str| error(&format!("[[routes]]\nname = \"r\"\nto = [{to}]"));
        assert!(to("").contains("\"r\" leads nowhere"));
        assert!(to("{ model = \"m\", upstream = \"u\" }").contains("the upstream \"u\", which is not there"));
        assert!(to("{ model = \"m\", wait = 1 }").contains("line 3"));
        let both = "[[upstreams]]\nname = \"u\"\nurl = \"http://x\"\nkey_env = \"A\"\nkey_file = \"b\"";
        assert!(error(both).contains("leave one of them out"));
        assert!(error("[prices.m]\ninput = -1\noutput = 1").contains("no amount"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        std::fs::write(&path, "store = \"s\"").unwrap();
        assert_eq!(Config::read(&path).unwrap().store, Some(folder.path().join("s")));
        std::fs::write(&path, "store = 3").unwrap();
        assert!(Config::read(&path).unwrap_err().to_string().contains("c.toml"));
    }
}
