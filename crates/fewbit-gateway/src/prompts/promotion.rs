//! Which version of a prompt is used if a request names none: the file `prompts.json` of the store.
//!
//! It contains every promotion and canary since the first, and the state is what they lead to. The log gets a line for
//! each of them, from the server that uses the store or from the command itself. The file is replaced atomically, and
//! changed by one process at a time.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::error::GatewayError;
use crate::now_ms;

const FILE: &str = "prompts.json";
const LOCK: &str = "prompts.lock";

/// What a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// All requests get this version. A canary ends.
    Promote,
    /// Some requests get this version, the others the promoted one. At 0 percent, the canary ends.
    Canary {
        /// How many of a hundred requests.
        percent: u8,
        /// Whether each key always gets the same version.
        by_key: bool,
    },
}

/// A change of which version of a prompt is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Its number, from 1.
    pub n: u64,
    /// When it was made, in milliseconds since 1970.
    pub time_ms: u64,
    /// The prompt.
    pub prompt: String,
    /// The version.
    pub version: u32,
    /// The hash of that version.
    pub sha256: String,
    /// What it does.
    pub action: Action,
    /// The user who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The version that requests get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Promoted {
    pub(super) version: u32,
    pub(super) sha256: String,
}

/// A version that some requests get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Canary {
    pub(super) promoted: Promoted,
    pub(super) percent: u8,
    pub(super) by_key: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    changes: Vec<Change>,
}

/// The changes of a store.
#[derive(Debug)]
pub(super) struct Promotions {
    path: PathBuf,
    pub(super) changes: Vec<Change>,
    stamp: Option<(SystemTime, u64)>,
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

impl Promotions {
    pub(super) fn open(store: &Path) -> Result<Self, GatewayError> {
        let mut this = Self { path: store.join(FILE), changes: Vec::new(), stamp: None };
        this.read()?;
        Ok(this)
    }

    /// Whether the file has changed since it was read.
    pub(super) fn has_changed(&self) -> bool {
        self.stamp != stamp(&self.path)
    }

    fn read(&mut self) -> Result<(), GatewayError> {
        let stamp = stamp(&self.path);
        let failed = || GatewayError::file("read", &self.path);
        self.changes = match fs::read(&self.path) {
            Ok(text) => serde_json::from_slice::<Content>(&text).map_err(|error| failed()(error.into()))?.changes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed()(error)),
        };
        self.stamp = stamp;
        Ok(())
    }

    /// Adds a change. Its number and time are set here.
    pub(super) fn add(&mut self, change: Change) -> Result<Change, GatewayError> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(GatewayError::file("make", folder))?;
        let lock_path = folder.join(LOCK);
        let lock = File::create(&lock_path).map_err(GatewayError::file("open", &lock_path))?;
        lock.lock().map_err(GatewayError::file("lock", &lock_path))?;
        self.read()?;
        let change = Change { n: self.changes.last().map_or(0, |last| last.n) + 1, time_ms: now_ms(), ..change };
        self.changes.push(change.clone());
        let failed = || GatewayError::file("write", &self.path);
        let content = Content { version: 1, changes: self.changes.clone() };
        let mut text = serde_json::to_vec_pretty(&content).map_err(|error| failed()(error.into()))?;
        text.push(b'\n');
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut new = tempfile::NamedTempFile::new_in(folder).map_err(failed())?;
        new.write_all(&text).and_then(|()| new.as_file().sync_all()).map_err(failed())?;
        new.persist(&self.path).map_err(|error| failed()(error.error))?;
        self.stamp = stamp(&self.path);
        Ok(change)
    }

    /// The promoted version of a prompt, and its canary.
    pub(super) fn state(&self, prompt: &str) -> (Option<Promoted>, Option<Canary>) {
        self.changes.iter().filter(|change| change.prompt == prompt).fold((None, None), |(promoted, _), change| {
            let this = Promoted { version: change.version, sha256: change.sha256.clone() };
            match change.action {
                Action::Promote => (Some(this), None),
                Action::Canary { percent: 0, .. } => (promoted, None),
                Action::Canary { percent, by_key } => (promoted, Some(Canary { promoted: this, percent, by_key })),
            }
        })
    }
}
