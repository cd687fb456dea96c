//! Which file a name or path means.

use std::path::{Path, PathBuf};

use crate::error::Error;
#[cfg(feature = "hub")]
use crate::hub::Peek;
use crate::hub::{ChatDefaults, Event, Hub, HubError, Progress, RepoName};

/// A model's file, and what the registry says about chatting with it.
pub(super) struct Located {
    pub(super) path: PathBuf,
    pub(super) defaults: ChatDefaults,
}

/// Finds the file that `name_or_path` means, and fetches it if need be (feature `hub`).
///
/// A file of that path wins; a name of the registry wins over a folder, because folders of models
/// tend to be called like them, and a folder wins over a repo of the hub; what looks like a path is never looked up.
pub(super) fn locate(name_or_path: &str, progress: &dyn Progress) -> Result<Located, Error> {
    let path = PathBuf::from(name_or_path);
    let defaults = ChatDefaults::default();
    if path.is_file() {
        return Ok(Located { path, defaults });
    }
    let repo = RepoName::parse(name_or_path);
    if let (Some(name), false) = (repo, path.exists()) {
        let path = Hub::from_env()?.resolve_repo(&name?, progress)?;
        return Ok(Located { path, defaults });
    }
    if !path.exists()
        && name_or_path.contains(':')
        && let Some(path) = Hub::from_env()?.find_elsewhere(name_or_path)
    {
        return Ok(Located { path: path?, defaults });
    }
    let is_path = name_or_path.contains(['/', '\\']) || path.extension().is_some_and(|ext| ext == "gguf");
    if is_path || name_or_path.is_empty() {
        return if path.exists() { Ok(Located { path, defaults }) } else { Err(Error::NotFound { path }) };
    }
    let hub = Hub::from_env()?;
    match hub.find(name_or_path) {
        Ok(entry) => {
            let defaults = entry.chat.clone();
            Ok(Located { path: hub.resolve(name_or_path, progress)?, defaults })
        }
        Err(HubError::UnknownModel { .. }) if path.exists() => Ok(Located { path, defaults }),
        Err(error) => Err(error.into()),
    }
}

/// What can be opened to see what a model is.
pub(super) enum Headers {
    Here(PathBuf),
    #[cfg(feature = "hub")]
    Elsewhere(Peek),
}

impl Headers {
    /// The file that is meant, or the headers of one that is not here.
    pub(super) fn of(name_or_path: &str) -> Result<Self, Error> {
        #[cfg(feature = "hub")]
        if !Path::new(name_or_path).exists() {
            let hub = Hub::from_env()?;
            match hub.peek(name_or_path) {
                Ok(Some(peek)) => return Ok(Self::Elsewhere(peek)),
                Ok(None) => {}
                // One of the registry may have other sources.
                Err(_) if hub.registry().get(name_or_path).is_some() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self::Here(resolve(name_or_path, &|_: &Event<'_>| {})?))
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Here(path) => path,
            #[cfg(feature = "hub")]
            Self::Elsewhere(peek) => peek.path(),
        }
    }
}

/// The file that `name_or_path` means, as [`Model::load`](crate::Model::load) understands it; fetched if need be.
pub fn resolve(name_or_path: &str, progress: &dyn Progress) -> Result<PathBuf, Error> {
    Ok(locate(name_or_path, progress)?.path)
}
