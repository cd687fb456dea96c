//! The configuration file of a server. All of it is checked when it is read, and errors have the line number.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fewbit_serve::{Backend, FileLimits, UpstreamBackend, UpstreamConfig};
use serde::Deserialize;
use toml::Spanned;

use crate::error::GatewayError;
use crate::gateway::{Price, Prices};
use crate::masking::{Masking, MaskingConfig};
use crate::prompts::PromptStore;
use crate::routes::{Route, Routes};
use crate::size::Size;
use crate::texts::{Keep, Texts};
use crate::tools::{Tools, ToolsConfig};

/// A configuration file with comments, as an example.
pub const EXAMPLE: &str = include_str!("example.toml");

/// How many days texts are kept by default.
const KEEP_DAYS: u32 = 30;

/// The most retries that a route can have.
const MAX_RETRIES: u32 = 5;

/// A parsed configuration file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Where to listen, as `IP:PORT`.
    pub listen: Option<String>,
    /// The certificate for encrypted connections.
    pub tls: Option<TlsConfig>,
    /// The folder of the keys and the audit log. A relative path is relative to the configuration file. Without a store
    /// there are no keys.
    pub store: Option<PathBuf>,
    /// The models to serve.
    #[serde(default)]
    pub models: Vec<ModelConfig>,
    /// How much memory all loaded models may take together.
    pub memory_limit: Option<Size>,
    /// Limits of uploaded files and of batches, which need a store.
    #[serde(default)]
    batches: BatchesConfig,
    /// Other servers that routes can use.
    #[serde(default)]
    upstreams: Vec<Upstream>,
    /// Model names that stand for several targets.
    #[serde(default)]
    routes: Vec<RouteConfig>,
    /// MCP servers, whose tools the gateway runs.
    #[serde(default)]
    pub(crate) tools: ToolsConfig,
    /// Prices by model or route name.
    #[serde(default)]
    prices: BTreeMap<String, Spanned<PriceConfig>>,
    /// The folder of the prompts that requests can name. A relative path is relative to the configuration file.
    prompts: Option<Spanned<PathBuf>>,
    /// What is kept next to the log.
    audit: Option<Spanned<AuditConfig>>,
    /// What is masked before a request leaves this server.
    masking: Option<MaskingConfig>,
    #[serde(skip)]
    source: Source,
}

/// Where the server's certificate is. Relative paths are relative to the configuration file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsConfig {
    /// A PEM file with the certificate, and after it those that it depends on.
    pub certificate: PathBuf,
    /// A PEM file with its private key.
    pub key: PathBuf,
}

/// The path and text of the file, for line numbers in errors.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    pub(crate) fn new(path: impl Into<PathBuf>, text: String) -> Self {
        Self { path: path.into(), text }
    }

    /// An error about this line of the file.
    pub(crate) fn wrong_at(&self, line: usize, what: impl Into<String>) -> GatewayError {
        GatewayError::Setting { path: self.path.clone(), line, what: what.into() }
    }

    /// An error about this part of the file.
    pub(crate) fn wrong(&self, at: Range<usize>, what: impl Into<String>) -> GatewayError {
        let before = self.text.as_bytes().get(..at.start).unwrap_or_default();
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        GatewayError::Setting { path: self.path.clone(), line, what: what.into() }
    }

    /// Reads a key from an environment variable or a file, each with its place in the configuration.
    pub(crate) fn key(
        &self,
        variable: Option<(&str, Range<usize>)>,
        file: Option<(PathBuf, Range<usize>)>,
    ) -> Result<Option<String>, GatewayError> {
        if let Some((path, at)) = file {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| self.wrong(at, format!("cannot read the key in {}: {error}", path.display())))?;
            return Ok(Some(text.trim().to_owned()));
        }
        let Some((variable, at)) = variable else { return Ok(None) };
        let unset =
            |_| self.wrong(at, format!("the environment variable {variable:?} is not set, or not UTF-8: set it"));
        std::env::var(variable).map(|key| Some(key.trim().to_owned())).map_err(unset)
    }
}

/// A model to serve.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ModelConfig {
    /// A name of the registry or the hub, or a path. A relative path is relative to the working folder.
    pub model: String,
    /// Its name in requests. By default the same as with `fewbit serve MODEL`.
    pub name: Option<String>,
    /// When it is loaded.
    #[serde(default)]
    pub load: LoadWhen,
    /// After how many seconds without a request a model that was loaded on demand is unloaded.
    pub unload_after_s: Option<Spanned<u32>>,
    /// How much memory its keys and values may take.
    pub kv_memory: Option<Size>,
}

/// When a model is loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LoadWhen {
    /// When the server starts.
    #[default]
    Start,
    /// At its first request.
    OnDemand,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchesConfig {
    file_limit: Option<Size>,
    key_limit: Option<Size>,
    total_limit: Option<Size>,
    lines: Option<u64>,
    jobs: Option<Spanned<usize>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct AuditConfig {
    keep_text: Option<Keep>,
    keep_days: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Upstream {
    name: Spanned<String>,
    url: Spanned<String>,
    key_env: Option<Spanned<String>>,
    key_file: Option<Spanned<PathBuf>>,
    connect_timeout_s: Option<Spanned<u32>>,
    timeout_s: Option<Spanned<u32>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteConfig {
    name: Spanned<String>,
    #[serde(default)]
    retries: Option<Spanned<u32>>,
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
    upstream: Option<Spanned<String>>,
    model: Spanned<String>,
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
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// If the file cannot be read, or something in it is wrong. The error has the line number.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, GatewayError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(GatewayError::file("read", path))?;
        Self::parse(path, text)
    }

    fn parse(path: &Path, text: String) -> Result<Self, GatewayError> {
        let mut config: Self =
            toml::from_str(&text).map_err(|error| GatewayError::Config { path: path.to_owned(), error })?;
        config.source = Source { path: path.to_owned(), text };
        config.check()?;
        let folder = path.parent().unwrap_or(Path::new(""));
        if let Some(store) = &mut config.store {
            *store = folder.join(&*store);
        }
        if let Some(tls) = &mut config.tls {
            (tls.certificate, tls.key) = (folder.join(&tls.certificate), folder.join(&tls.key));
        }
        if let Some(prompts) = &mut config.prompts {
            *prompts.as_mut() = folder.join(prompts.get_ref());
        }
        for key_file in config.upstreams.iter_mut().filter_map(|upstream| upstream.key_file.as_mut()) {
            *key_file.as_mut() = folder.join(key_file.get_ref());
        }
        Ok(config)
    }

    /// Checks what can be checked without knowing the models.
    fn check(&self) -> Result<(), GatewayError> {
        let wrong = |at: Range<usize>, what: String| Err(self.source.wrong(at, what));
        for (name, price) in &self.prices {
            let of = price.get_ref();
            if [of.input, of.output, of.cached_input.unwrap_or(0.0)].iter().any(|n| !n.is_finite() || *n < 0.0) {
                return wrong(price.span(), format!("a price of {name:?} is not an amount: give 0 or more"));
            }
        }
        self.tools.check(&self.source, self.store.is_some())?;
        if let Some(zero) = self.batches.jobs.as_ref().filter(|jobs| *jobs.get_ref() == 0) {
            return wrong(zero.span(), "`jobs` is 0: give at least 1".to_owned());
        }
        for model in &self.models {
            let Some(seconds) = &model.unload_after_s else { continue };
            if model.load == LoadWhen::Start {
                let what = "`unload_after_s` is for models that are loaded on demand: add `load = \"on_demand\"`";
                return wrong(seconds.span(), what.to_owned());
            }
            if *seconds.get_ref() == 0 {
                return wrong(seconds.span(), "`unload_after_s` is 0: give at least 1, or leave it out".to_owned());
            }
        }
        self.masking()?;
        if let (Some(prompts), None) = (&self.prompts, &self.store) {
            return wrong(prompts.span(), "`prompts` needs a `store`, where promotions are: add one".to_owned());
        }
        if let (Some(audit), None) = (&self.audit, &self.store) {
            return wrong(audit.span(), "`audit` needs a `store`, where the log is: add one".to_owned());
        }
        if let Some(audit) = self.audit.as_ref().filter(|audit| audit.get_ref().keep_days == Some(0)) {
            return wrong(audit.span(), "`keep_days` is 0: give at least 1, or leave `keep_text` out".to_owned());
        }
        for (i, upstream) in self.upstreams.iter().enumerate() {
            let name = &upstream.name;
            if self.upstreams.iter().take(i).any(|other| other.name.get_ref() == name.get_ref()) {
                return wrong(
                    name.span(),
                    format!("two upstreams are called {:?}: rename one of them", name.get_ref()),
                );
            }
            if let (Some(_), Some(file)) = (&upstream.key_env, &upstream.key_file) {
                let what =
                    format!("the upstream {:?} has `key_env` and `key_file`: leave one of them out", name.get_ref());
                return wrong(file.span(), what);
            }
            let timeouts = [&upstream.timeout_s, &upstream.connect_timeout_s];
            if let Some(zero) = timeouts.into_iter().flatten().find(|timeout| *timeout.get_ref() == 0) {
                let what = format!("the upstream {:?} has a timeout of 0 seconds: give at least 1", name.get_ref());
                return wrong(zero.span(), what);
            }
        }
        for (i, route) in self.routes.iter().enumerate() {
            let name = &route.name;
            if self.routes.iter().take(i).any(|other| other.name.get_ref() == name.get_ref()) {
                return wrong(name.span(), format!("two routes are called {:?}: rename one of them", name.get_ref()));
            }
            if route.to.is_empty() {
                return wrong(name.span(), format!("the route {:?} has no target: give it a `to`", name.get_ref()));
            }
            if let Some(retries) = route.retries.as_ref().filter(|retries| *retries.get_ref() > MAX_RETRIES) {
                let what = format!(
                    "the route {:?} has {} retries: give {MAX_RETRIES} at most",
                    name.get_ref(),
                    retries.get_ref()
                );
                return wrong(retries.span(), what);
            }
            for upstream in route.to.iter().filter_map(|target| target.upstream.as_ref()) {
                if !self.upstreams.iter().any(|known| known.name.get_ref() == upstream.get_ref()) {
                    let what = format!(
                        "the route {:?} has a target on the upstream {:?}, which does not exist: add it to `upstreams`",
                        name.get_ref(),
                        upstream.get_ref()
                    );
                    return wrong(upstream.span(), what);
                }
            }
        }
        Ok(())
    }

    /// Checks what depends on the local models. `models` are their names in requests.
    ///
    /// # Errors
    /// If a route or a price names a model that does not exist, or a route has the name of a model. The error has the
    /// line number.
    pub fn check_models(&self, models: &[impl AsRef<str>]) -> Result<(), GatewayError> {
        let is_model = |name: &str| models.iter().any(|known| known.as_ref() == name);
        for route in &self.routes {
            let name = route.name.get_ref();
            if is_model(name) {
                let what = format!("a route and a model are called {name:?}: rename one of them");
                return Err(self.source.wrong(route.name.span(), what));
            }
            let local = route.to.iter().filter(|target| target.upstream.is_none()).map(|target| &target.model);
            if let Some(model) = local.into_iter().find(|model| !is_model(model.get_ref())) {
                let what = format!(
                    "the route {name:?} has the target {:?}, which is not one of the models: add it to `models`, or \
                     name its `upstream`",
                    model.get_ref()
                );
                return Err(self.source.wrong(model.span(), what));
            }
        }
        let is_route = |name: &str| self.routes.iter().any(|route| route.name.get_ref() == name);
        match self.prices.iter().find(|(name, _)| !is_model(name) && !is_route(name)) {
            None => Ok(()),
            Some((name, price)) => {
                let what = format!("there is a price for {name:?}, which is not one of the models and routes");
                Err(self.source.wrong(price.span(), what))
            }
        }
    }

    /// The limits of uploaded files and of batches.
    pub fn file_limits(&self) -> FileLimits {
        let mut limits = FileLimits::default();
        let of = &self.batches;
        let bytes = |size: Option<Size>, default: u64| size.map_or(default, |size| size.0);
        limits.file_bytes = bytes(of.file_limit, limits.file_bytes);
        limits.key_bytes = bytes(of.key_limit, limits.key_bytes);
        limits.total_bytes = bytes(of.total_limit, limits.total_bytes);
        limits.lines = of.lines.unwrap_or(limits.lines);
        limits.jobs = of.jobs.as_ref().map_or(limits.jobs, |jobs| *jobs.get_ref());
        limits
    }

    /// Whether the configuration has routes.
    pub fn has_routes(&self) -> bool {
        !self.routes.is_empty()
    }

    /// Creates a backend with the routes and the local models. Reads the keys of the upstreams.
    ///
    /// # Errors
    /// If the key of an upstream cannot be read, or its address is not a valid URL. The error has the line number.
    pub fn backend(&self, local: Option<Arc<dyn Backend>>) -> Result<Routes, GatewayError> {
        let targets = || self.routes.iter().flat_map(|route| &route.to);
        let mut upstreams: Vec<(&str, Arc<dyn Backend>)> = Vec::new();
        for upstream in &self.upstreams {
            let name = upstream.name.get_ref().as_str();
            let is_of_it = |of: &&TargetConfig| of.upstream.as_ref().is_some_and(|upstream| upstream.get_ref() == name);
            let models = targets().filter(is_of_it).map(|target| target.model.get_ref());
            let mut config = UpstreamConfig::new(upstream.url.get_ref(), models);
            let variable = upstream.key_env.as_ref().map(|name| (name.get_ref().as_str(), name.span()));
            let file = upstream.key_file.as_ref().map(|path| (path.get_ref().clone(), path.span()));
            config.key = self.source.key(variable, file)?;
            let seconds = |of: &Spanned<u32>| Duration::from_secs((*of.get_ref()).into());
            config.timeout = upstream.timeout_s.as_ref().map_or(config.timeout, seconds);
            config.connect_timeout = upstream.connect_timeout_s.as_ref().map_or(config.connect_timeout, seconds);
            let wrong = |error| self.source.wrong(upstream.url.span(), format!("the upstream {name:?}: {error}"));
            upstreams.push((name, Arc::new(UpstreamBackend::new(config).map_err(wrong)?)));
        }
        let route = |route: &RouteConfig| {
            let retries = route.retries.as_ref().map_or(0, |retries| *retries.get_ref());
            let empty = Route::new(route.name.get_ref()).retries(retries).by_key(route.draw_by == DrawBy::Key);
            route.to.iter().fold(empty, |made, target| {
                let model = target.model.get_ref();
                let (place, backend) = match &target.upstream {
                    Some(name) => {
                        let name = name.get_ref().as_str();
                        (name, upstreams.iter().find(|(known, _)| *known == name).map(|(_, backend)| backend))
                    }
                    None => ("local", local.as_ref()),
                };
                let add = if target.upstream.is_some() { Route::to } else { Route::to_local };
                match backend {
                    Some(backend) => add(made, format!("{place}/{model}"), Arc::clone(backend), model, target.weight),
                    None => made,
                }
            })
        };
        let routes = self.routes.iter().map(route).collect();
        let others = upstreams.into_iter().map(|(_, backend)| backend).collect();
        Ok(Routes::masked(local.clone(), others, routes, self.masking()?))
    }

    /// Reads the prompts that requests can name, if the configuration names a folder of them.
    ///
    /// # Errors
    /// If one of them cannot be read or is wrong. The error has its file and line.
    pub fn prompts(&self) -> Result<Option<PromptStore>, GatewayError> {
        match (&self.prompts, &self.store) {
            (Some(folder), Some(store)) => PromptStore::open(folder.get_ref(), store).map(Some),
            _ => Ok(None),
        }
    }

    /// What keeps the texts of requests and answers, if the configuration asks for it.
    pub(crate) fn texts(&self) -> Result<Option<Texts>, GatewayError> {
        let audit = self.audit.as_ref().map(Spanned::get_ref);
        let (Some(store), Some(audit)) = (&self.store, audit) else { return Ok(None) };
        let Some(keep) = audit.keep_text else { return Ok(None) };
        let masking = match self.masking()? {
            Some(masking) => masking,
            // Without `[masking]`, what is known is masked.
            None => MaskingConfig::default().build().map_err(|(at, what)| self.source.wrong(at, what))?,
        };
        Ok(Some(Texts::new(store, keep, audit.keep_days.unwrap_or(KEEP_DAYS), masking)))
    }

    /// Creates a backend with only the local models, masked as the configuration says.
    ///
    /// # Errors
    /// If the configuration of the masking is wrong. The error has the line number.
    pub fn local_backend(&self, local: Option<Arc<dyn Backend>>) -> Result<Routes, GatewayError> {
        Ok(Routes::masked(local, Vec::new(), Vec::new(), self.masking()?))
    }

    fn masking(&self) -> Result<Option<Masking>, GatewayError> {
        let built = self.masking.as_ref().map(MaskingConfig::build).transpose();
        built.map_err(|(at, what)| self.source.wrong(at, what))
    }

    /// The tools of the MCP servers. Reads the keys of those; nothing is started yet.
    ///
    /// # Errors
    /// If a key cannot be read, or the address of a server is not a valid URL. The error has the line number.
    pub fn tools(&self) -> Result<Tools, GatewayError> {
        self.tools.tools(&self.source, self.source.path.parent().unwrap_or(Path::new("")))
    }

    /// The prices by model or route name.
    pub fn prices(&self) -> Prices {
        let price = |of: &PriceConfig| Price {
            input: of.input,
            cached_input: of.cached_input.unwrap_or(of.input),
            output: of.output,
        };
        self.prices.iter().map(|(name, of)| (name.clone(), price(of.get_ref()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, GatewayError> {
        Config::parse(Path::new("c.toml"), text.to_owned())
    }

    #[test]
    fn example_config_is_valid() {
        let config = parse(EXAMPLE).unwrap();
        assert_eq!(
            (config.listen.as_deref(), config.store.as_deref()),
            (Some("127.0.0.1:8080"), Some(Path::new("store")))
        );
        assert_eq!(config.models[0].model, "smollm2-135m-instruct");
        assert_eq!(config.prices()["small"], Price { input: 0.1, cached_input: 0.01, output: 0.4 });
        // The parts of the example that are commented out are valid as well.
        let routes: String = EXAMPLE.split_inclusive('\n').skip_while(|line| *line != "# [[upstreams]]\n").collect();
        let routes: String = routes
            .lines()
            .filter(|line| line.contains(['=', '[']))
            .fold(String::new(), |text, line| text + line.trim_start_matches("# ") + "\n");
        let config = parse(&format!("store = \"store\"\n{routes}")).unwrap();
        assert!(config.has_routes());
        config.check_models(&["small"]).unwrap();
    }

    fn chain(error: &dyn std::error::Error) -> String {
        error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", chain(source)))
    }

    #[test]
    fn errors_name_the_line() {
        let error = |text: &str| chain(&parse(text).unwrap_err());
        assert!(error("listen = \"x\"\nstor = \"y\"").contains("line 2"), "{}", error("listen = \"x\"\nstor = \"y\""));
        assert!(error("[[models]]\nname = \"x\"").contains("missing field `model`"));
        let to = |to: &str| error(&format!("[[routes]]\nname = \"r\"\nto = [{to}]"));
        assert_eq!(to(""), "c.toml, line 2: the route \"r\" has no target: give it a `to`");
        let unknown = to("{ model = \"m\", upstream = \"u\" }");
        assert!(
            unknown.starts_with("c.toml, line 3: ") && unknown.contains("\"u\", which does not exist"),
            "{unknown}"
        );
        assert!(to("{ model = \"m\", wait = 1 }").contains("line 3"));
        let many = error("[[routes]]\nname = \"r\"\nto = [{ model = \"m\" }]\nretries = 6");
        assert!(many.starts_with("c.toml, line 4: ") && many.contains("give 5 at most"), "{many}");
        let upstream = "[[upstreams]]\nname = \"u\"\nurl = \"http://x\"\n";
        let both = error(&format!("{upstream}key_env = \"A\"\nkey_file = \"b\""));
        assert!(both.starts_with("c.toml, line 5: ") && both.contains("leave one of them out"), "{both}");
        let twice = error(&format!("{upstream}\n{upstream}"));
        assert!(twice.starts_with("c.toml, line 6: ") && twice.contains("two upstreams"), "{twice}");
        assert!(error(&format!("{upstream}timeout_s = 0")).starts_with("c.toml, line 4: "));
        assert!(
            error("[prices.m]\ninput = -1\noutput = 1")
                .starts_with("c.toml, line 1: a price of \"m\" is not an amount")
        );
        let masking = error("[masking]\nkinds = [\n\"mail\"]");
        assert!(masking.starts_with("c.toml, line 3: \"mail\" is no kind of text to mask"), "{masking}");
        // Errors that depend on the local models.
        let config = parse("[[routes]]\nname = \"r\"\nto = [\n{ model = \"m\" },\n{ model = \"n\" }]\n[prices.r]\ninput = 1\noutput = 1")
            .unwrap();
        config.check_models(&["m", "n"]).unwrap();
        let error = |config: &Config, models: &[&str]| config.check_models(models).unwrap_err().to_string();
        assert!(error(&config, &["m"]).starts_with("c.toml, line 5: the route \"r\" has the target \"n\""));
        assert!(error(&config, &["m", "n", "r"]).starts_with("c.toml, line 2: a route and a model"));
        let config = parse("\n[prices.p]\ninput = 1\noutput = 1").unwrap();
        assert!(error(&config, &[]).starts_with("c.toml, line 2: there is a price for \"p\""));
        // Errors that are found when the upstreams are created.
        let error = |more: &str| parse(&format!("{upstream}{more}")).unwrap().backend(None).unwrap_err().to_string();
        assert!(error("key_env = \"FEWBIT_NO_SUCH_VARIABLE\"").starts_with("c.toml, line 4: the environment variable"));
        assert!(error("key_file = \"none-here\"").starts_with("c.toml, line 4: cannot read the key in none-here"));
        let config = parse(&upstream.replace("http://", "ftp://")).unwrap();
        let shown = config.backend(None).unwrap_err().to_string();
        assert!(shown.starts_with("c.toml, line 3: the upstream \"u\"") && shown.contains("not a URL"), "{shown}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        std::fs::write(&path, "store = \"s\"").unwrap();
        assert_eq!(Config::read(&path).unwrap().store, Some(folder.path().join("s")));
        std::fs::write(&path, "store = 3").unwrap();
        assert!(Config::read(&path).unwrap_err().to_string().contains("c.toml"));
    }
}
