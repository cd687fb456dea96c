//! The file being fetched: appended to, hashed on the way, and continued after an interruption.
//!
//! The hash is computed while the bytes are written. A file left by an earlier process is read once to bring the hash
//! up to date. Its contents need not be trusted: if they are wrong, the final check fails and the file is discarded.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Event, HubError, Progress};

const CHUNK_BYTES: usize = 1 << 17;
/// Reporting every chunk would be the slowest part of a fast copy.
const REPORT_BYTES: u64 = 1 << 20;

/// A file under construction, handed to [`Source::fetch`](super::Source::fetch).
pub struct PartFile<'a> {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    len: u64,
    expected_bytes: u64,
    reported: u64,
    progress: &'a dyn Progress,
}

impl<'a> PartFile<'a> {
    /// Opens the file, and continues what an earlier attempt left in it.
    pub(super) fn open(path: &Path, expected_bytes: u64, progress: &'a dyn Progress) -> Result<Self, HubError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| HubError::io("create", path, error))?;
        let mut part =
            Self { path: path.to_owned(), file, hasher: Sha256::new(), len: 0, expected_bytes, reported: 0, progress };
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let n = part.file.read(&mut buffer).map_err(|error| HubError::io("read", path, error))?;
            if n == 0 {
                break;
            }
            part.hasher.update(&buffer[..n]);
            part.len += n as u64;
            if part.len > expected_bytes {
                part.restart()?;
                break;
            }
        }
        Ok(part)
    }

    /// Number of bytes in the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file has no bytes yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Size of the complete file, in bytes, as the registry or the source reports it.
    pub fn expected_bytes(&self) -> u64 {
        self.expected_bytes
    }

    /// The path that is written to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Discards all bytes, because the source cannot continue from the middle.
    pub fn restart(&mut self) -> Result<(), HubError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)).map(drop))
            .map_err(|error| HubError::io("truncate", &self.path, error))?;
        self.hasher = Sha256::new();
        self.len = 0;
        self.reported = 0;
        Ok(())
    }

    /// Appends all bytes of `reader`. More than the expected size is an error, and stops the copy there; `location` and
    /// `read_error` describe the source in errors.
    pub fn append(
        &mut self,
        reader: &mut dyn Read,
        location: &str,
        read_error: &dyn Fn(std::io::Error) -> HubError,
    ) -> Result<(), HubError> {
        let mut buffer = vec![0; CHUNK_BYTES];
        self.report(true);
        loop {
            if self.progress.is_cancelled() {
                return Err(HubError::Cancelled);
            }
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.report(true);
                    return Err(read_error(error));
                }
            };
            let found_bytes = self.len + n as u64;
            if found_bytes > self.expected_bytes {
                self.restart()?;
                return Err(HubError::Size {
                    location: location.to_owned(),
                    expected_bytes: self.expected_bytes,
                    found_bytes,
                });
            }
            self.file.write_all(&buffer[..n]).map_err(|error| HubError::io("write", &self.path, error))?;
            self.hasher.update(&buffer[..n]);
            self.len = found_bytes;
            self.report(false);
        }
        self.report(true);
        Ok(())
    }

    /// Whether the download was cancelled.
    #[cfg(feature = "pypi")]
    pub(super) fn is_cancelled(&self) -> bool {
        self.progress.is_cancelled()
    }

    fn report(&mut self, now: bool) {
        if now || self.len - self.reported >= REPORT_BYTES {
            self.reported = self.len;
            self.progress.event(&Event::Progress { done_bytes: self.len, total_bytes: self.expected_bytes });
        }
    }

    /// SHA-256 of the bytes so far, in lower-case hexadecimal.
    pub(super) fn sha256(&self) -> String {
        let digest = self.hasher.clone().finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Makes sure that the bytes are on disk before the file gets its final name.
    pub(super) fn sync(&self) -> Result<(), HubError> {
        self.file.sync_all().map_err(|error| HubError::io("write", &self.path, error))
    }
}
