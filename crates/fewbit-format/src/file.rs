//! A GGUF file: its parsed header together with its bytes.
//!
//! A model that was split with `llama-gguf-split` has several files, `NAME-00001-of-00003.gguf` and so on. The metadata
//! is in the first file, and each file has some of the tensors. They are presented as one file, in which the offset of
//! a tensor is what it would be if the files were concatenated.

use std::path::{Path, PathBuf};

use crate::bytes::FileBytes;
use crate::error::FormatError;
use crate::gguf::{Header, Limits, TensorInfo, parse, parse_part, split};
use crate::metadata::Metadata;

/// A validated GGUF file.
///
/// The header is parsed once; tensors are read from the map on request. The file must not be changed in place while it
/// is open (replacing it by renaming another file to its name is fine).
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
    /// The file, or all files of a split model in order.
    parts: Vec<Part>,
    path: Option<PathBuf>,
}

#[derive(Debug)]
struct Part {
    bytes: FileBytes,
    /// Total size of the preceding parts in bytes.
    start: u64,
    path: Option<PathBuf>,
}

impl GgufFile {
    /// Maps a file and parses its header. For a model that is split into several files (`NAME-00001-of-00003.gguf` and
    /// so on), pass the path of any of them.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let bytes = FileBytes::open(path)?;
        let header = parse_part(&bytes, &Limits::default())?;
        if let Some((part, count)) = split(&header.metadata)? {
            let names = PartNames::of(path).filter(|names| (names.part, names.count) == (part, count));
            return Self::open_parts(path, &names.ok_or(FormatError::Split { part, count })?);
        }
        let parts = vec![Part { bytes, start: 0, path: Some(path.to_owned()) }];
        Ok(Self { header, parts, path: Some(path.to_owned()) })
    }

    fn open_parts(opened: &Path, names: &PartNames<'_>) -> Result<Self, FormatError> {
        let mut whole: Option<Header> = None;
        let mut parts: Vec<Part> = Vec::new();
        let mut start = 0u64;
        for part in 1..=names.count {
            let path = opened.with_file_name(names.name(part));
            let wrong = || FormatError::WrongPart { path: path.clone(), part, count: names.count };
            let bytes = FileBytes::open(&path).map_err(|error| match error {
                FormatError::NotFound { path } => FormatError::MissingShard { path },
                FormatError::Empty => FormatError::Part { path: path.clone(), source: Box::new(error) },
                other => other,
            })?;
            let in_part = |error| FormatError::Part { path: path.clone(), source: Box::new(error) };
            let header = parse_part(&bytes, &Limits::default()).map_err(in_part)?;
            if split(&header.metadata).map_err(in_part)? != Some((part, names.count)) {
                return Err(wrong());
            }
            match &mut whole {
                None => whole = Some(header),
                Some(whole) => whole.extend(header, start).map_err(in_part)?,
            }
            let n_bytes = bytes.len() as u64;
            parts.push(Part { bytes, start, path: Some(path) });
            start = start.saturating_add(n_bytes);
        }
        let (part, count) = (names.part, names.count);
        let header = whole.ok_or(FormatError::Split { part, count })?;
        let found = header.tensors().len() as u64;
        match header.metadata.u64("split.tensors.count")? {
            Some(expected) if expected != found => Err(FormatError::PartTensors { expected, found }),
            _ => Ok(Self { header, parts, path: Some(opened.to_owned()) }),
        }
    }

    /// Parses a file in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, FormatError> {
        let header = parse(&bytes)?;
        let parts = vec![Part { bytes: FileBytes::Owned(bytes), start: 0, path: None }];
        Ok(Self { header, parts, path: None })
    }

    /// The part that contains an offset.
    fn part(&self, offset: u64) -> Option<&Part> {
        let after = self.parts.partition_point(|part| part.start <= offset);
        self.parts.get(after.checked_sub(1)?)
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

    /// The tensors, in the order of the file. A vocabulary-only file has none.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.header.tensors()
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensor(name)
    }

    /// The bytes of a tensor of this file, in the layout of its type, row after row.
    ///
    /// # Panics
    ///
    /// If the record does not come from this file and refers to bytes that the file does not have.
    pub fn tensor_bytes(&self, tensor: &TensorInfo) -> &[u8] {
        self.part(tensor.offset)
            .and_then(|part| part.bytes.slice(tensor.offset - part.start, tensor.n_bytes))
            .expect("a tensor of this file lies inside it, as the parser checked")
    }

    /// Tells the operating system that a tensor's bytes are no longer needed, for example after they were copied into
    /// another layout: their pages stop counting towards the memory of this process. They can still be read, and are
    /// then fetched from the file again. Does nothing for a file in memory.
    pub fn release(&self, tensor: &TensorInfo) {
        if let Some(part) = self.part(tensor.offset) {
            part.bytes.release(tensor.offset - part.start, tensor.n_bytes);
        }
    }

    /// The size of the file, or the total size of the files of a split model.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes.len() as u64).sum()
    }

    /// The path of the file, or the paths of all parts of a split model; `None` if the file was given as bytes.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = Option<&Path>> {
        self.parts.iter().map(|part| part.path.as_deref())
    }

    /// The path the file was opened by, or `None` if it was given as bytes.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

/// The names of the files of a split model: `NAME-00002-of-00003.gguf` is the second of three.
struct PartNames<'a> {
    before: &'a str,
    part: u64,
    count: u64,
}

impl<'a> PartNames<'a> {
    /// Parses the name of one of the files.
    fn of(path: &'a Path) -> Option<Self> {
        let number = |digits: &str| match digits.len() >= 5 && digits.bytes().all(|b| b.is_ascii_digit()) {
            true => digits.parse().ok(),
            false => None,
        };
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = name.rsplit_once("-of-")?;
        let (before, part) = rest.rsplit_once('-')?;
        Some(Self { before, part: number(part)?, count: number(count)? })
    }

    fn name(&self, part: u64) -> String {
        format!("{}-{part:05}-of-{:05}.gguf", self.before, self.count)
    }
}
