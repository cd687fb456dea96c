//! Errors of the store and of the configuration.

use std::io;
use std::path::PathBuf;

/// An error of the store or of the configuration. No message contains a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// A file cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    File {
        /// The operation: `read`, `write` and so on.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        error: io::Error,
    },
    /// The key file is not valid.
    #[error("{} has no keys in it: restore it from a copy", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        error: serde_json::Error,
    },
    /// The configuration cannot be parsed.
    #[error("{} is not a configuration", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line number.
        #[source]
        error: toml::de::Error,
    },
    /// A setting of the configuration is invalid.
    #[error("{}, line {line}: {what}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and how to fix it.
        what: String,
    },
    /// A reloaded configuration changes a setting that is fixed when the server starts.
    #[error("{}: `{what}` has changed, which needs a restart of the server: nothing was applied", path.display())]
    NeedsRestart {
        /// The file.
        path: PathBuf,
        /// The setting.
        what: &'static str,
    },
    /// A key with this name exists already.
    #[error("a key named {name:?} already exists: choose another name")]
    SameName {
        /// The name.
        name: String,
    },
    /// There is no key with this name in use.
    #[error("there is no active key named {name:?}")]
    NoSuchKey {
        /// The name.
        name: String,
    },
    /// The name is not valid for a key.
    #[error("{name:?} cannot be the name of a key: use 1 to 64 letters, digits, '-', '_' and '.'")]
    Name {
        /// The name.
        name: String,
    },
    /// The operating system's random number generator failed.
    #[error("the operating system provides no random numbers: {0}")]
    Random(getrandom::Error),
    /// Another server is using the store.
    #[error("{} is in use by another server: give each its own store", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A line of the log was changed after it was written.
    #[error("line {line} of {} {what}: it was changed after it was written", path.display())]
    Broken {
        /// The log.
        path: PathBuf,
        /// The line number, from 1.
        line: u64,
        /// What is wrong with the line.
        what: &'static str,
    },
    /// A prompt cannot be used.
    #[error("{what}")]
    Prompt {
        /// What is wrong, and how to fix it.
        what: String,
    },
    /// The log does not contain the noted head.
    #[error("{} has no line {line} with the hash {hash}: lines were removed, or the log was rewritten", path.display())]
    OtherHead {
        /// The log.
        path: PathBuf,
        /// The line number, from 1.
        line: u64,
        /// The noted hash.
        hash: String,
    },
}

impl GatewayError {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { what, path, error }
    }
}
