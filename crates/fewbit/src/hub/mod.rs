//! Models by name: the registry, the cache folder, and the download of missing models.
//!
//! A [`Hub`] is a folder and a [`Registry`]. The folder is `FEWBIT_HOME`, or `fewbit` in the platform's cache folder; a
//! model is stored at `models/<name>/<file>` in it. A file gets its final name only after its size and SHA-256 were
//! checked: against the registry, or against what the hub reported for entries that the registry does not pin. So
//! looking a model up is a single `stat`, and nothing has to be hashed again.
//!
//! A model of the Hugging Face Hub is named by its repo ([`RepoName`]): `org/repo`, `org/repo:Q4_K_M`,
//! `hf.co/org/repo/file.gguf`. It is used from the cache of Hugging Face's own tools if it is there; otherwise it is
//! fetched to `hub/` in the folder, which has the same layout. Models of LM Studio and Ollama are found too
//! ([`Hub::found`]).
//!
//! This module needs the feature `hub`. Without it, a model can still be loaded by its name if its file is on this
//! computer. The feature `pypi` adds Python packages as sources; the registry has one for its first model.

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

/// An event while a model is fetched, in the order in which they occur.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Another process holds the lock of this file; waiting until it is done.
    Waiting {
        /// The file that both processes want.
        path: &'a Path,
    },
    /// A source is about to be tried.
    Trying {
        /// The kind of source: `hf` or `pypi`.
        source: &'a str,
        /// Its URL or package.
        location: &'a str,
    },
    /// The number of bytes on disk has changed.
    Progress {
        /// Bytes on disk, including those of an earlier attempt.
        done_bytes: u64,
        /// Size of the whole file, in bytes.
        total_bytes: u64,
    },
    /// A source failed; the next one, if any, is tried.
    Failed {
        /// The kind of source: `hf` or `pypi`.
        source: &'a str,
        /// Why it failed.
        error: &'a HubError,
    },
    /// The file is complete, verified, and under its final name.
    Done {
        /// Path of the file.
        path: &'a Path,
    },
}

/// Receives the events of a download, for example to draw a progress bar.
///
/// Every closure `Fn(&Event<'_>)` implements it.
pub trait Progress {
    /// Called for each event.
    fn event(&self, event: &Event<'_>);

    /// Whether to cancel the download, with [`HubError::Cancelled`]; called now and then. The bytes fetched so far are
    /// kept, and the next attempt continues from there.
    fn is_cancelled(&self) -> bool {
        false
    }
}

impl<F: Fn(&Event<'_>)> Progress for F {
    fn event(&self, event: &Event<'_>) {
        self(event);
    }
}

/// The models known by name, and the folder that stores them.
#[derive(Debug, Clone)]
pub struct Hub {
    home: PathBuf,
    registry: Registry,
    settings: HfSettings,
    places: found::Places,
}

impl Hub {
    /// The hub in `FEWBIT_HOME`, or else in the platform's cache folder.
    ///
    /// # Errors
    /// [`HubError::NoHome`], and those of [`open`](Self::open).
    pub fn from_env() -> Result<Self, HubError> {
        Self::open(store::home_from_env()?)
    }

    /// The hub in the folder `home`: the built-in registry, extended by the entries of `home/models.toml` if that file
    /// exists. The folder need not exist.
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

    /// Replaces the settings for the Hugging Face Hub, which come from the environment by default.
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

    /// The entry with this name.
    ///
    /// # Errors
    /// [`HubError::UnknownModel`], with the known names.
    pub fn find(&self, name: &str) -> Result<&Entry, HubError> {
        self.registry.get(name).ok_or_else(|| HubError::UnknownModel {
            name: name.to_owned(),
            known: self.registry.names().map(str::to_owned).collect(),
        })
    }

    /// The path of the file of `entry`, whether it exists or not.
    pub fn path_of(&self, entry: &Entry) -> PathBuf {
        store::model_path(&self.home, entry)
    }

    /// The path of the file of `entry`; `None` if it is not on this computer.
    pub fn cached(&self, entry: &Entry) -> Option<PathBuf> {
        let path = self.path_of(entry);
        store::is_complete(&path, entry).then_some(path)
    }

    /// Size and hash of the file of `entry`: those of the registry, or those that the hub reported when it was fetched;
    /// `None` if neither is known.
    pub fn pin_of(&self, entry: &Entry) -> Option<Pin> {
        store::pin_of(&self.path_of(entry), entry)
    }

    /// The path of the file of the model `name`, which is fetched if it is missing (feature `hub`).
    ///
    /// # Errors
    /// [`HubError::UnknownModel`] for an unknown name; without the feature, [`HubError::NotCached`] for a missing file.
    pub fn resolve(&self, name: &str, progress: &dyn Progress) -> Result<PathBuf, HubError> {
        let entry = self.find(name)?;
        if let Some(path) = self.cached(entry) {
            return Ok(path);
        }
        self.obtain(entry, progress)
    }

    /// Fetches the model `name` unless it is here already, and returns its path.
    ///
    /// The sources of its entry are tried in order. The bytes go to a `.part` file, which a later attempt continues;
    /// only a file with the right size and SHA-256 gets the final name. Processes that fetch the same model wait for
    /// each other.
    #[cfg(feature = "hub")]
    pub fn pull(&self, name: &str, progress: &dyn Progress) -> Result<PathBuf, HubError> {
        self.resolve(name, progress)
    }

    /// Like [`Hub::pull`], from the given sources instead of those of the entry.
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
