//! Which file a name or path means.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};
#[cfg(feature = "hub")]
use crate::hub::Peek;
use crate::hub::{ChatDefaults, Hub, HubError, Progress, RepoName};

/// A model's file, and what the registry says about chatting with it.
pub(super) struct Located {
    pub(super) path: PathBuf,
    pub(super) defaults: ChatDefaults,
}

/// What a file is wanted for; it decides between the files of a repo of the hub whose name says no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be run as it is: the file that is best for most computers.
    Run,
    /// To be quantized: the original.
    Quantize,
    /// To be added to a model: a LoRA adapter.
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

/// Finds the file that `name_or_path` means, and fetches it if need be (feature `hub`).
///
/// A file of that path wins; a name of the registry wins over a folder, because folders of models
/// tend to be called like them, and a folder wins over a repo of the hub; what looks like a path is never looked up.
pub(super) fn locate(name_or_path: &Path, purpose: Purpose, progress: &dyn Progress) -> Result<Located, Error> {
    let path = name_or_path.to_owned();
    let defaults = ChatDefaults::default();
    if path.is_file() {
        return Ok(Located { path, defaults });
    }
    // What is no text can only be a path.
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
        // The registry has none; whoever opens it says what is wrong with it.
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

/// The file or folder of an adapter: a path, or a repo of the hub. What cannot be a name is a path.
pub(super) fn locate_adapter(name_or_path: &Path, progress: &dyn Progress) -> Result<PathBuf, Error> {
    Ok(locate(name_or_path, Purpose::Adapt, progress)?.path)
}

/// What can be opened to see what a model is.
#[derive(Debug)]
pub(crate) enum Headers {
    Here(PathBuf),
    #[cfg(feature = "hub")]
    Elsewhere(Peek),
}

impl Headers {
    /// The file that is meant, or the headers of one that is not here.
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
                // One of the registry may have other sources.
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

/// The file that `name_or_path` means, as [`Model::load`](crate::Model::load) understands it; fetched if need be.
#[cfg(feature = "hub")]
pub fn resolve(name_or_path: impl AsRef<Path>, progress: &dyn Progress) -> Result<PathBuf, Error> {
    Ok(locate(name_or_path.as_ref(), Purpose::Run, progress)?.path)
}

/// As [`resolve`], for a model that is to be quantized: of a repo of the hub whose name says no more, the folder of
/// safetensors, or else the GGUF file with the most bits.
#[cfg(feature = "hub")]
pub fn resolve_original(name_or_path: impl AsRef<Path>, progress: &dyn Progress) -> Result<PathBuf, Error> {
    Ok(locate(name_or_path.as_ref(), Purpose::Quantize, progress)?.path)
}

/// The file or folder of a LoRA adapter: a path, or a repo of the Hugging Face Hub (`org/repo`, `org/repo:file.gguf`,
/// `org/repo:folder`), which is fetched if need be.
#[cfg(feature = "hub")]
pub fn resolve_adapter(name_or_path: impl AsRef<Path>, progress: &dyn Progress) -> Result<PathBuf, Error> {
    Ok(locate(name_or_path.as_ref(), Purpose::Adapt, progress)?.path)
}
