//! The cache folder: where it is, and what a complete file in it looks like.
//!
//! ```text
//! $FEWBIT_HOME/                 or <platform cache>/fewbit
//!   models.toml                 the user's own registry entries, optional
//!   models/<name>/<file>        complete and verified
//!   models/<name>/<file>.part   being fetched, or interrupted
//!   models/<name>/.lock         held by the process that fetches
//! ```

use std::env;
use std::path::{Path, PathBuf};

use super::{Entry, HubError};

/// `FEWBIT_HOME`, or `fewbit` in the cache folder of the platform.
pub(super) fn home_from_env() -> Result<PathBuf, HubError> {
    if let Some(home) = non_empty("FEWBIT_HOME") {
        return Ok(home);
    }
    platform_cache().map(|cache| cache.join("fewbit")).ok_or(HubError::NoHome)
}

/// The folder for caches of the current user: a handful of lines instead of a dependency of every
/// build.
fn platform_cache() -> Option<PathBuf> {
    if cfg!(windows) {
        non_empty("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        env::home_dir().map(|home| home.join("Library/Caches"))
    } else {
        // The XDG specification says to ignore a relative path.
        non_empty("XDG_CACHE_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| env::home_dir().map(|home| home.join(".cache")))
    }
}

fn non_empty(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

pub(super) fn model_path(home: &Path, entry: &Entry) -> PathBuf {
    home.join("models").join(&entry.name).join(&entry.file)
}

/// Whether the file under its final name is the one of the registry. Its hash was checked before it
/// got that name; the size catches a registry that has moved on, or a file cut by a full disk.
pub(super) fn is_complete(path: &Path, entry: &Entry) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == entry.bytes)
}
