//! The cache folder: its path, its layout, and when a file in it is complete.
//!
//! ```text
//! $FEWBIT_HOME/                 or <platform cache>/fewbit
//!   models.toml                 the user's own registry entries, optional
//!   models/<name>/<file>        complete and verified
//!   models/<name>/<file>.part   being fetched, or interrupted
//!   models/<name>/<file>.pin.toml  what the hub said the file is, where the registry does not
//!   models/<name>/.lock         held by the process that fetches
//! ```

use std::env;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use serde::Deserialize;

use super::registry::Pin;
use super::{Entry, HubError};

/// `FEWBIT_HOME`, or `fewbit` in the cache folder of the platform.
pub(super) fn home_from_env() -> Result<PathBuf, HubError> {
    if let Some(home) = non_empty("FEWBIT_HOME") {
        return Ok(home);
    }
    let folders = etcetera::base_strategy::choose_native_strategy().map_err(|_| HubError::NoHome)?;
    Ok(folders.cache_dir().join("fewbit"))
}

fn non_empty(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

pub(super) fn model_path(home: &Path, entry: &Entry) -> PathBuf {
    home.join("models").join(&entry.name).join(&entry.file)
}

/// The path of the record next to a model, with what the hub reported about it; see [`Recorded`].
fn record_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".pin.toml");
    path.with_file_name(name)
}

/// The size and hash that a file was checked against, if the registry does not pin it.
#[derive(Debug, Deserialize)]
struct Recorded {
    bytes: u64,
    sha256: String,
    /// Where it came from, for users to read.
    #[serde(rename = "source")]
    _source: String,
}

/// Records what the hub reported about the file at `path`.
#[cfg(feature = "hub")]
pub(super) fn record(path: &Path, pin: &Pin, source: &str) -> Result<(), HubError> {
    let record_path = record_path(path);
    // Written by hand: the registry's TOML parser has no writer, and only one of these texts needs escapes.
    let source = source.replace(['\\', '"'], "?");
    let text = format!("bytes = {}\nsha256 = \"{}\"\nsource = \"{source}\"\n", pin.bytes, pin.sha256);
    std::fs::write(&record_path, text).map_err(|error| HubError::io("write", &record_path, error))
}

/// The expected size and hash of the file of `entry` at `path`: those of the registry, or those the hub reported when
/// it was fetched.
pub(super) fn pin_of(path: &Path, entry: &Entry) -> Option<Pin> {
    if entry.pin.is_some() {
        return entry.pin.clone();
    }
    let text = std::fs::read_to_string(record_path(path)).ok()?;
    let recorded: Recorded = toml::from_str(&text).ok()?;
    Pin::new(recorded.bytes, &recorded.sha256).ok()
}

/// Whether the file under its final name is the one of the registry. Its hash was checked before it got that name; the
/// size shows whether the registry has changed since, or a full disk has cut the file.
pub(super) fn is_complete(path: &Path, entry: &Entry) -> bool {
    pin_of(path, entry)
        .is_some_and(|pin| std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == pin.bytes))
}
