//! The download of one file: tries the sources in order, writes one `.part` file, checks it, renames it.
//!
//! The registry entry has the size and hash of the file. If it does not, the source is asked for them first, and its
//! answer is recorded next to the file. So a `.part` file begun by one source can be continued by another. If a file
//! that was continued fails its check, it is fetched once more from the beginning before the source is blamed: the
//! damage may have been in the bytes of an earlier process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{Entry, Event, HubError, PartFile, Pin, Progress, space, store};

/// A source to fetch a file from.
pub trait Source {
    /// The kind of source, as in `models.toml`.
    fn name(&self) -> &'static str;

    /// URL or package, for messages and errors.
    fn location(&self) -> String;

    /// Size and hash of the file as the source reports them, and a source that gives exactly that file; `None` if the
    /// source does not know. Called only for files that the registry does not pin.
    fn pin(&self) -> Result<Option<Pinned>, HubError> {
        Ok(None)
    }

    /// Appends the rest of the file to `part`, or starts from the beginning if it cannot continue.
    ///
    /// Returning `Ok` with fewer bytes than expected means that the source ended early.
    fn fetch(&self, part: &mut PartFile<'_>) -> Result<(), HubError>;
}

/// The size and hash that a source reports, and a source of exactly that file.
pub struct Pinned {
    /// A source of these bytes, at a fixed commit if the source has commits.
    pub pin: Pin,
    /// Where these bytes can be had, at a commit where the source knows commits.
    pub source: Box<dyn Source>,
}

/// Fetches the file of `entry` to `path`.
pub(super) fn fetch(
    path: &Path,
    entry: &Entry,
    sources: &[&dyn Source],
    progress: &dyn Progress,
) -> Result<PathBuf, HubError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| HubError::io("create", folder, error))?;
    let _lock = lock(folder, path, progress)?;
    if store::is_complete(path, entry) {
        // Another process fetched it while this one waited for the lock.
        progress.event(&Event::Done { path });
        return Ok(path.to_owned());
    }

    let part_path = part_path(path);
    let mut failures = Vec::new();
    for source in sources {
        let location = source.location();
        tracing::info!(model = %entry.name, source = source.name(), %location, "fetching");
        progress.event(&Event::Trying { source: source.name(), location: &location });
        match fetch_pinned(*source, &location, path, &part_path, entry, progress) {
            Ok(()) => {
                tracing::info!(model = %entry.name, path = %path.display(), "fetched and verified");
                progress.event(&Event::Done { path });
                return Ok(path.to_owned());
            }
            // Other sources would fail in the same way.
            Err(error @ (HubError::Cancelled | HubError::NoSpace { .. })) => return Err(error),
            Err(error) => {
                tracing::warn!(model = %entry.name, source = source.name(), %error, "source failed");
                progress.event(&Event::Failed { source: source.name(), error: &error });
                failures.push((source.name(), error));
            }
        }
    }
    Err(HubError::AllSourcesFailed { name: entry.name.clone(), failures })
}

/// Fetches the file with the pin of the registry, or with the one that the source reports.
fn fetch_pinned(
    source: &dyn Source,
    location: &str,
    path: &Path,
    part_path: &Path,
    entry: &Entry,
    progress: &dyn Progress,
) -> Result<(), HubError> {
    let rename = || fs::rename(part_path, path).map_err(|error| HubError::io("rename to", path, error));
    if let Some(pin) = &entry.pin {
        fetch_from(source, location, part_path, &entry.name, pin, progress)?;
        return rename();
    }
    let Pinned { pin, source } = source.pin()?.ok_or_else(|| HubError::NoPin { location: location.to_owned() })?;
    let location = source.location();
    fetch_from(source.as_ref(), &location, part_path, &entry.name, &pin, progress)?;
    // The record comes first: a file without one counts as missing.
    store::record(path, &pin, &location)?;
    rename()
}

/// Fetches one file from `source` to `path`, and checks it against `pin`.
pub(super) fn fetch_file(path: &Path, pin: &Pin, source: &dyn Source, progress: &dyn Progress) -> Result<(), HubError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| HubError::io("create", folder, error))?;
    let part_path = part_path(path);
    let _lock = lock(folder, path, progress)?;
    let is_here = || fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == pin.bytes);
    if !is_here() {
        let location = source.location();
        progress.event(&Event::Trying { source: source.name(), location: &location });
        fetch_from(source, &location, &part_path, &path.display().to_string(), pin, progress)?;
        fs::rename(&part_path, path).map_err(|error| HubError::io("rename to", path, error))?;
    }
    progress.event(&Event::Done { path });
    Ok(())
}

/// The path of the incomplete file that will become `path`.
pub(super) fn part_path(path: &Path) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

fn fetch_from(
    source: &dyn Source,
    location: &str,
    part_path: &Path,
    name: &str,
    pin: &Pin,
    progress: &dyn Progress,
) -> Result<(), HubError> {
    let mut part = PartFile::open(part_path, pin.bytes, progress)?;
    space::check(part_path.parent().unwrap_or(Path::new(".")), pin.bytes.saturating_sub(part.len()))?;
    let mut continued = !part.is_empty();
    loop {
        if part.len() < pin.bytes {
            source.fetch(&mut part)?;
        }
        if part.len() < pin.bytes {
            return Err(HubError::Incomplete {
                location: location.to_owned(),
                expected_bytes: pin.bytes,
                found_bytes: part.len(),
            });
        }
        let found = part.sha256();
        if found == pin.sha256 {
            return part.sync();
        }
        // Wrong bytes are useless to a later attempt.
        part.restart()?;
        if !std::mem::take(&mut continued) {
            return Err(HubError::Hash { location: location.to_owned(), expected: pin.sha256.clone(), found });
        }
        tracing::warn!(model = name, "what an earlier attempt left is damaged: starting again");
    }
}

/// The lock of a model's folder, held until the file is dropped. The lock file stays: removing it
/// would let a third process lock a new file while a second still waits on the old one.
fn lock(folder: &Path, path: &Path, progress: &dyn Progress) -> Result<File, HubError> {
    let lock_path = folder.join(".lock");
    let file = File::create(&lock_path).map_err(|error| HubError::io("create", &lock_path, error))?;
    let locked = match file.try_lock() {
        Ok(()) => Ok(()),
        Err(fs::TryLockError::WouldBlock) => {
            tracing::info!(path = %path.display(), "waiting for another process that fetches it");
            progress.event(&Event::Waiting { path });
            file.lock()
        }
        Err(fs::TryLockError::Error(error)) => Err(error),
    };
    match locked {
        Ok(()) => Ok(file),
        // Some network file systems have no locks; the check and the rename still hold there.
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(file),
        Err(error) => Err(HubError::io("lock", &lock_path, error)),
    }
}
