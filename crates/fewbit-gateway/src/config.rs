//! The file that says what a server serves: read whole, checked whole.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::GatewayError;
use crate::gateway::{Price, Prices};

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
        Ok(config)
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
        assert!(error("[prices.m]\ninput = -1\noutput = 1").contains("no amount"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        std::fs::write(&path, "store = \"s\"").unwrap();
        assert_eq!(Config::read(&path).unwrap().store, Some(folder.path().join("s")));
        std::fs::write(&path, "store = 3").unwrap();
        assert!(Config::read(&path).unwrap_err().to_string().contains("c.toml"));
    }
}
