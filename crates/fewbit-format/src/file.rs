//! A GGUF file: its parsed header together with its bytes.

use std::path::{Path, PathBuf};

use crate::bytes::FileBytes;
use crate::error::FormatError;
use crate::gguf::{Header, TensorInfo, parse};
use crate::metadata::Metadata;

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
    bytes: FileBytes,
    path: Option<PathBuf>,
}

impl GgufFile {
    /// Maps a file and parses its header.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let bytes = FileBytes::open(path)?;
        let header = parse(&bytes)?;
        Ok(Self { header, bytes, path: Some(path.to_owned()) })
    }

    /// Parses a file that is in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, FormatError> {
        let header = parse(&bytes)?;
        Ok(Self { header, bytes: FileBytes::Owned(bytes), path: None })
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
        self.bytes
            .slice(tensor.offset, tensor.n_bytes)
            .expect("a tensor of this file lies inside it, as the parser checked")
    }

    /// Tells the operating system that a tensor's bytes are no longer needed, after they were copied into
    /// another layout: their pages stop counting against this process. They can still be read, and come
    /// from the file again. Does nothing for a file in memory.
    pub fn release(&self, tensor: &TensorInfo) {
        self.bytes.release(tensor.offset, tensor.n_bytes);
    }

    /// The size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The path the file was opened by, or `None` if it was given as bytes.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}
