//! API keys that clients must send.
//!
//! Keys are kept as SHA-256 hashes. The key of a request is hashed and compared with all of them in constant time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::backend::{BackendError, BackendErrorKind, Gate};

/// The minimum length of a key, so that it cannot be guessed.
const MIN_CHARS: usize = 16;

/// The keys that are accepted.
#[derive(Clone)]
pub struct Keys {
    hashes: Vec<[u8; 32]>,
}

/// What is wrong with a list of keys. No message contains a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The file cannot be read.
    #[error("cannot read the keys in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        error: std::io::Error,
    },
    /// A key is too short, or cannot be sent in a header.
    #[error(
        "{what} {line} is not a key: give at least {MIN_CHARS} visible ASCII characters, such as `openssl rand -hex 32` makes"
    )]
    Weak {
        /// What the number counts: `key` or `line`.
        what: &'static str,
        /// The number, from 1.
        line: usize,
    },
    /// There is no key.
    #[error("the file has no key: give at least one, on a line of its own")]
    None,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("n", &self.hashes.len()).finish()
    }
}

impl Keys {
    /// Creates a gate that accepts these keys.
    ///
    /// # Errors
    /// If there is no key, or one is too short or has other characters than visible ASCII.
    pub fn new<K: AsRef<str>>(keys: impl IntoIterator<Item = K>) -> Result<Self, KeysError> {
        Self::from_lines(keys.into_iter().enumerate().map(|(i, key)| (i + 1, key)), "key")
    }

    /// Reads the keys of a file, one per line. Empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// The errors of [`new`](Self::new), and if the file cannot be read.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, KeysError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|error| KeysError::Read { path: path.to_owned(), error })?;
        let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim()));
        Self::from_lines(lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')), "line")
    }

    fn from_lines<K: AsRef<str>>(
        lines: impl Iterator<Item = (usize, K)>,
        what: &'static str,
    ) -> Result<Self, KeysError> {
        let hashes = lines.map(|(line, key)| {
            let key = key.as_ref();
            let is_good = key.len() >= MIN_CHARS && key.bytes().all(|byte| byte.is_ascii_graphic());
            if is_good { Ok(hash(key.as_bytes())) } else { Err(KeysError::Weak { what, line }) }
        });
        let hashes: Vec<_> = hashes.collect::<Result<_, _>>()?;
        if hashes.is_empty() { Err(KeysError::None) } else { Ok(Self { hashes }) }
    }

    /// Whether this is one of the keys.
    fn accept(&self, key: &[u8]) -> bool {
        let shown = hash(key);
        // Always compares with all keys, so that the time does not depend on which one matches.
        self.hashes.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&shown)).into()
    }
}

/// The name of a key is the beginning of its hash.
impl Gate for Keys {
    fn enter(&self, key: Option<&[u8]>, _: &'static str) -> Result<Arc<str>, BackendError> {
        let Some(key) = key else {
            let message = "this server wants a key: send `Authorization: Bearer KEY`";
            return Err(BackendError::new(BackendErrorKind::NoKey, message));
        };
        if !self.accept(key) {
            return Err(BackendError::new(BackendErrorKind::WrongKey, "this server does not know the key"));
        }
        Ok(name_of(&hash(key)).into())
    }

    fn enter_as(&self, name: &str, _: &'static str) -> Result<Arc<str>, BackendError> {
        if self.hashes.iter().any(|hash| name_of(hash) == name) {
            return Ok(name.into());
        }
        Err(BackendError::new(BackendErrorKind::WrongKey, "the key is not in use any more"))
    }
}

/// The beginning of a key's hash.
fn name_of(hash: &[u8; 32]) -> String {
    hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_keys_are_accepted() {
        let keys = Keys::new(["0123456789abcdef", "fedcba9876543210"]).unwrap();
        assert!(keys.accept(b"0123456789abcdef") && keys.accept(b"fedcba9876543210"));
        for wrong in ["", "0123456789abcdeg", "0123456789abcdef ", "0123456789ABCDEF", "0123456789abcdef0"] {
            assert!(!keys.accept(wrong.as_bytes()), "{wrong:?}");
        }
        assert_eq!(format!("{keys:?}"), "Keys { n: 2 }");
    }

    #[test]
    fn key_files_are_parsed_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Keys::from_file(&path).map_err(|error| error.to_string())
        };
        assert!(read("# ours\n\n 0123456789abcdef \r\n").unwrap().accept(b"0123456789abcdef"));
        assert_eq!(read("# nothing\n").unwrap_err(), KeysError::None.to_string());
        let weak = read("0123456789abcdef\nsecret\n").unwrap_err();
        assert!(weak.starts_with("line 2 is not a key") && !weak.contains("secret"), "{weak}");
        assert!(read("0123456789 abcdef\n").is_err());
        assert!(Keys::from_file(folder.path().join("none")).unwrap_err().to_string().contains("cannot read"));
    }
}
