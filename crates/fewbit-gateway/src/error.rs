//! What can be wrong with a store.

use std::io;
use std::path::PathBuf;

/// What is wrong with a store, or with what is to be put there. No key is in a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// A file cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The keys cannot be read.
    #[error("{} has no keys in it: restore it from a copy", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: serde_json::Error,
    },
    /// The configuration is wrong.
    #[error("{} is not a configuration", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its line.
        #[source]
        error: toml::de::Error,
    },
    /// The configuration says something that cannot be.
    #[error("{}, line {line}: {what}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what to do.
        what: String,
    },
    /// The configuration of a running server changes what is fixed when it starts.
    #[error("{}: `{what}` has changed, which takes a restart of the server: nothing was applied", path.display())]
    NeedsRestart {
        /// The file.
        path: PathBuf,
        /// The setting.
        what: &'static str,
    },
    /// There is a key of this name.
    #[error("there is a key {name:?} already: revoke it, or take another name")]
    SameName {
        /// The name.
        name: String,
    },
    /// There is none of this name.
    #[error("there is no key {name:?} in use")]
    NoSuchKey {
        /// The name.
        name: String,
    },
    /// The name is none.
    #[error("{name:?} cannot be the name of a key: use 1 to 64 letters, digits, '-', '_' and '.'")]
    Name {
        /// The name.
        name: String,
    },
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers: {0}")]
    Random(getrandom::Error),
    /// Another server writes there.
    #[error("{} is in use by another server: give each its own store", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A line of the log is not what was written.
    #[error("line {line} of {} {what}: it was changed after it was written", path.display())]
    Broken {
        /// The log.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What shows it.
        what: &'static str,
    },
    /// The log does not have a head that was noted.
    #[error("{} has no line {line} with the hash {hash}: lines are missing, or all were written anew", path.display())]
    OtherHead {
        /// The log.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What was noted.
        hash: String,
    },
}

impl GatewayError {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { what, path, error }
    }
}
