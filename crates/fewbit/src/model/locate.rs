//! Finds the file that a name or path means.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};
#[cfg(feature = "hub")]
use crate::hub::Peek;
use crate::hub::{ChatDefaults, Hub, HubError, Progress, RepoName};

/// A model's file, and the registry's recommended settings for chats with it.
pub(super) struct Located {
    pub(super) path: PathBuf,
    pub(super) defaults: ChatDefaults,
}

/// What a file is needed for; it decides which file of a hub repo is used if the name does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To run it unchanged: the file that is best for most computers.
    Run,
    /// To quantize it: the original weights.
    Quantize,
    /// To apply it to a model: a LoRA adapter.
    Adapt,
}

impl Purpose {
    fn of_repo(self, name: RepoName) -> RepoName {
        match self {
            Self::Run => name,
            Self::Quantize => name.original(),
            Self::Adapt => name.adapter(),
        }
    }
}

/// Finds the file that `name_or_path` means, and fetches it if necessary (feature `hub`).
///
/// In order of precedence: a file at that path, a name of the registry, a folder at that path, a repo of the hub. The
/// registry comes before folders because folders of models tend to have the same names. Anything that looks like a path
/// is never looked up in the registry.
pub(super) fn locate(name_or_path: &Path, purpose: Purpose, progress: &dyn Progress) -> Result<Located, Error> {
    let path = name_or_path.to_owned();
    let defaults = ChatDefaults::default();
    if path.is_file() {
        return Ok(Located { path, defaults });
    }
    // A name that is not valid UTF-8 can only be a path.
    let Some(name_or_path) = name_or_path.to_str() else {
        return if path.exists() || purpose == Purpose::Adapt {
            Ok(Located { path, defaults })
        } else {
            Err(ErrorKind::NotFound { path }.into())
        };
    };
    let repo = RepoName::parse(name_or_path);
    if let (Some(name), false) = (repo, path.exists()) {
        let path = Hub::from_env()?.resolve_repo(&purpose.of_repo(name?), progress)?;
        return Ok(Located { path, defaults });
    }
    if !path.exists()
        && name_or_path.contains(':')
        && let Some(path) = Hub::from_env()?.find_elsewhere(name_or_path)
    {
        return Ok(Located { path: path?, defaults });
    }
    let is_path = name_or_path.contains(['/', '\\']) || path.extension().is_some_and(|ext| ext == "gguf");
    if purpose == Purpose::Adapt {
        // The registry has no adapters; opening the path reports what is wrong with it.
        return Ok(Located { path, defaults });
    }
    if is_path || name_or_path.is_empty() {
        return if path.exists() { Ok(Located { path, defaults }) } else { Err(ErrorKind::NotFound { path }.into()) };
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

/// The file or folder of an adapter: a path, or a repo of the hub. Anything that cannot be a repo name is a path.
pub(super) fn locate_adapter(name_or_path: &Path, progress: &dyn Progress) -> Result<PathBuf, Error> {
    Ok(locate(name_or_path, Purpose::Adapt, progress)?.path)
}

/// Files that can be opened to see what a model is: on this computer, or the headers of remote ones.
#[derive(Debug)]
pub(crate) enum Headers {
    Here(PathBuf),
    #[cfg(feature = "hub")]
    Elsewhere(Peek),
}

impl Headers {
    /// The local file that the name means, or the headers of a remote one.
    pub(super) fn of(name_or_path: &Path, purpose: Purpose, progress: &dyn Progress) -> Result<Self, Error> {
        #[cfg(feature = "hub")]
        if !name_or_path.exists()
            && let Some(name_or_path) = name_or_path.to_str()
        {
            let hub = Hub::from_env()?;
            let peek = match RepoName::parse(name_or_path) {
                Some(name) => hub.peek_repo(&purpose.of_repo(name?)),
                None => hub.peek(name_or_path),
            };
            match peek {
                Ok(Some(peek)) => return Ok(Self::Elsewhere(peek)),
                Ok(None) => {}
                // A model of the registry may have other sources.
                Err(_) if hub.registry().get(name_or_path).is_some() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self::Here(locate(name_or_path, purpose, progress)?.path))
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Here(path) => path,
            #[cfg(feature = "hub")]
            Self::Elsewhere(peek) => peek.path(),
        }
    }

    #[cfg(feature = "hub")]
    pub(crate) fn peek(&self) -> Option<&Peek> {
        match self {
            Self::Here(_) => None,
            Self::Elsewhere(peek) => Some(peek),
        }
    }
}

/// The file that `name_or_path` means to [`Model::load`](crate::Model::load); fetched if necessary.
#[cfg(feature = "hub")]
pub fn resolve(name_or_path: impl AsRef<Path>, progress: &dyn Progress) -> Result<PathBuf, Error> {
    Ok(locate(name_or_path.as_ref(), Purpose::Run, progress)?.path)
}

/// Like [`resolve`], for a model that is to be quantized: for a hub repo named without a file, its folder of
/// safetensors, or else its GGUF file with the most bits per weight.
#[cfg(feature = "hub")]
pub fn resolve_original(name_or_path: impl AsRef<Path>, progress: &dyn Progress) -> Result<PathBuf, Error> {
    Ok(locate(name_or_path.as_ref(), Purpose::Quantize, progress)?.path)
}

/// The file or folder of a LoRA adapter: a path, or a repo of the Hugging Face Hub (`org/repo`, `org/repo:file.gguf`,
/// `org/repo:folder`), which is fetched if necessary.
#[cfg(feature = "hub")]
pub fn resolve_adapter(name_or_path: impl AsRef<Path>, progress: &dyn Progress) -> Result<PathBuf, Error> {
    Ok(locate(name_or_path.as_ref(), Purpose::Adapt, progress)?.path)
}
