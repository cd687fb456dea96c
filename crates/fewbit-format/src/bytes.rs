//! The bytes of a model file, either mapped or owned.

use std::fs::{self, File};
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

use crate::error::FormatError;
use crate::mmap::Mapping;

#[derive(Debug)]
pub(crate) enum FileBytes {
    Mapped(Mapping),
    Owned(Vec<u8>),
}

impl FileBytes {
    /// Maps a regular file that is not empty.
    pub(crate) fn open(path: &Path) -> Result<Self, FormatError> {
        let io_error = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => FormatError::NotFound { path: path.to_owned() },
            _ => FormatError::Io { path: path.to_owned(), source },
        };
        // The type is checked before the file is opened: opening a pipe would wait for its writer.
        let metadata = fs::metadata(path).map_err(io_error)?;
        if metadata.is_dir() {
            return Err(FormatError::IsDirectory { path: path.to_owned() });
        }
        if !metadata.is_file() {
            return Err(FormatError::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(io_error)?;
        let n_bytes = file.metadata().map_err(io_error)?.len();
        if n_bytes == 0 {
            return Err(FormatError::Empty);
        }
        let n_bytes = usize::try_from(n_bytes).map_err(|_| io_error(io::ErrorKind::FileTooLarge.into()))?;
        Mapping::new(&file, n_bytes).map(Self::Mapped).map_err(io_error)
    }

    /// `n_bytes` bytes from `offset`; `None` if the file does not have them.
    pub(crate) fn slice(&self, offset: u64, n_bytes: u64) -> Option<&[u8]> {
        self.get(range(offset, n_bytes)?)
    }

    /// Returns the pages of these bytes to the operating system, if they are mapped.
    pub(crate) fn release(&self, offset: u64, n_bytes: u64) {
        if let (Self::Mapped(map), Some(range)) = (self, range(offset, n_bytes)) {
            map.release(range);
        }
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

fn range(offset: u64, n_bytes: u64) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(n_bytes).ok()?)?;
    Some(start..end)
}
