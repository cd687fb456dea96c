//! A model file: its parsed header together with its bytes, mapped or owned.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::FormatError;
use crate::gguf::{Header, TensorInfo, parse};
use crate::metadata::Metadata;
use crate::mmap::Mapping;

/// A GGUF file that has been read and found valid.
///
/// The header is parsed once; tensors are read from the map when they are asked for. The file must not be
/// changed in place while it is open (replacing it by renaming another over it is fine).
///
/// ```no_run
/// use std::path::Path;
///
/// let file = fewbit_format::GgufFile::open(Path::new("model.gguf"))?;
/// for tensor in file.tensors() {
///     println!("{} {:?} {}", tensor.name, tensor.shape, tensor.ty);
/// }
/// # Ok::<(), fewbit_format::FormatError>(())
/// ```
#[derive(Debug)]
pub struct GgufFile {
    header: Header,
    bytes: Bytes,
    path: Option<PathBuf>,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mapping),
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl GgufFile {
    /// Maps a file and parses its header.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let io_error = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => FormatError::NotFound { path: path.to_owned() },
            _ => FormatError::Io { path: path.to_owned(), source },
        };
        // Looked at before it is opened: opening a pipe waits for its writer.
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
        let map = Mapping::new(&file, n_bytes).map_err(io_error)?;
        let header = parse(&map)?;
        Ok(Self { header, bytes: Bytes::Mapped(map), path: Some(path.to_owned()) })
    }

    /// Parses a file that is in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, FormatError> {
        let header = parse(&bytes)?;
        Ok(Self { header, bytes: Bytes::Owned(bytes), path: None })
    }

    /// The GGUF version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// The whole header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The named values at the front of the file.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// The tensors, in the file's order. A file that holds only a vocabulary has none.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.header.tensors()
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensor(name)
    }

    /// The bytes of a tensor of this file: exactly those, in its type's layout, row after row.
    ///
    /// # Panics
    ///
    /// If the record does not come from this file and asks for bytes that it does not have.
    pub fn tensor_bytes(&self, tensor: &TensorInfo) -> &[u8] {
        self.range(tensor)
            .and_then(|range| self.bytes.get(range))
            .expect("a tensor of this file lies inside it, as the parser checked")
    }

    /// Tells the operating system that a tensor's bytes are no longer needed, after they were copied into
    /// another layout: their pages stop counting against this process. They can still be read, and come
    /// from the file again. Does nothing for a file in memory.
    pub fn release(&self, tensor: &TensorInfo) {
        if let (Bytes::Mapped(map), Some(range)) = (&self.bytes, self.range(tensor)) {
            map.release(range);
        }
    }

    /// The size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The path the file was opened by, or `None` if it was given as bytes.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    fn range(&self, tensor: &TensorInfo) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(tensor.offset).ok()?;
        let end = start.checked_add(usize::try_from(tensor.n_bytes).ok()?)?;
        Some(start..end)
    }
}
