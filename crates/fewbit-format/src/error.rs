//! The one error type of this crate: a variant for each thing that a caller, or a person, can act on.
//!
//! Every message is one line: what is wrong, where, what was found, and what to do where that is known.
//! Text that comes from a file is printed with `{:?}`, so that it can neither break the line nor write
//! control codes to a terminal.

use std::io;
use std::path::{Path, PathBuf};

use fewbit_quant::TensorType;
use thiserror::Error;

use crate::safetensors::Dtype;

/// Why a model file could not be opened, read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FormatError {
    // Opening a file.
    /// No file has this path.
    #[error("{} does not exist: check the path", path.display())]
    NotFound {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The path names a folder.
    #[error("{} is a folder: give the path of a .gguf file in it", path.display())]
    IsDirectory {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The path names a pipe, a socket or a device, which cannot be mapped.
    #[error("{} is not a regular file: copy the model to a file first", path.display())]
    NotAFile {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The operating system refused to open, map or write the file.
    #[error("cannot access {}", path.display())]
    Io {
        /// The path that was asked for.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The output given to [`GgufWriter::write_to`](crate::GgufWriter::write_to) failed.
    #[error("cannot write the GGUF file")]
    Write(#[source] io::Error),

    // The first bytes.
    /// The file has no bytes.
    #[error("the file is empty: fetch it again")]
    Empty,
    /// The file does not begin with `GGUF`.
    #[error("not a GGUF file: this is {found}")]
    NotGguf {
        /// What the first bytes look like.
        found: FoundInstead,
    },
    /// The file has no safetensors header.
    #[error("not a safetensors file: this is {found}")]
    NotSafetensors {
        /// What the first bytes look like.
        found: FoundInstead,
    },
    /// A GGUF file for big-endian machines.
    #[error("a big-endian GGUF file (version {version}): convert it to little-endian with gguf_convert_endian.py")]
    BigEndian {
        /// The version, its bytes swapped back.
        version: u32,
    },
    /// GGUF version 1, whose lengths are 32-bit; it was in use for two weeks of 2023.
    #[error("GGUF version 1 is not supported: convert the original model again, or find a newer file of it")]
    Version1,
    /// A version of the format that does not exist yet (or 0).
    #[error("GGUF version {version} is not supported (2 and 3 are): update fewbit, or find a version 3 file")]
    UnknownVersion {
        /// The version in the file.
        version: u32,
    },

    // Sizes and counts.
    /// The file ends inside the header.
    #[error(
        "the file is cut short: {what} at byte {offset} takes {needed} bytes, {left} are left; fetch the file again"
    )]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it begins, from the start of the file.
        offset: u64,
        /// The bytes that it takes.
        needed: u64,
        /// The bytes from there to the end of the file.
        left: u64,
    },
    /// A count that the rest of the file has no room for.
    #[error("the header promises {count} {what}, but only {left} bytes are left; fetch the file again")]
    CountTooLarge {
        /// What is counted.
        what: &'static str,
        /// How many the file says there are.
        count: u64,
        /// The bytes from there to the end of the file.
        left: u64,
    },
    /// Metadata and tensor records take more bytes than [`Limits::header_bytes`](crate::Limits::header_bytes).
    #[error(
        "the header is longer than {limit} bytes: no real model needs that much, so the file is damaged or malicious"
    )]
    HeaderTooLarge {
        /// The limit.
        limit: u64,
    },

    // Metadata.
    /// A metadata key of no bytes, or of more than the specification's 65535.
    #[error("the metadata key at byte {offset} is {length} bytes long: 1 to 65535 are allowed")]
    KeyLength {
        /// Where the key's text begins.
        offset: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// A metadata key that is not UTF-8.
    #[error("the metadata key at byte {offset} is not valid UTF-8: the file is damaged")]
    KeyUtf8 {
        /// Where the key's text begins.
        offset: u64,
    },
    /// Two metadata values with one key.
    #[error("the metadata key {key:?} occurs twice: the file is damaged, or was made by a faulty tool")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A metadata value of a type that GGUF does not have.
    #[error("metadata {key:?} has the value type {id}, which GGUF does not define: the file is damaged")]
    ValueType {
        /// The key.
        key: String,
        /// The type's number in the file.
        id: u32,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("metadata {key:?} is a boolean with the value {value}: the file is damaged")]
    InvalidBool {
        /// The key.
        key: String,
        /// The byte in the file.
        value: u8,
    },
    /// A string longer than [`Limits::string_bytes`](crate::Limits::string_bytes).
    #[error("metadata {key:?} holds a string of {length} bytes, more than the limit of {limit}")]
    StringTooLong {
        /// The key.
        key: String,
        /// The string's length in bytes.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// Arrays inside arrays, deeper than [`Limits::array_depth`](crate::Limits::array_depth).
    #[error("metadata {key:?} nests arrays more than {limit} deep")]
    ArrayTooDeep {
        /// The key.
        key: String,
        /// The limit.
        limit: u32,
    },
    /// `general.alignment` is no power of two from 8 to 16777216.
    #[error("general.alignment is {found}: it must be a power of two from 8 to 16777216")]
    Alignment {
        /// The value in the file.
        found: u64,
    },
    /// One part of a model that was split over several files, alone or under another name than parts have.
    #[error(
        "this is part {part} of a model split into {count} files: keep them in one folder under their own names, \
         NAME-{part:05}-of-{count:05}.gguf and so on, or join them with `llama-gguf-split --merge`"
    )]
    Split {
        /// Which part this is, counted from 1.
        part: u64,
        /// How many there are.
        count: u64,
    },
    /// A file of a split model cannot be read.
    #[error("cannot read the part {}", path.display())]
    Part {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<FormatError>,
    },
    /// A file of a split model is another part than its name says, or of another model.
    #[error("{} is not part {part} of {count} of this model: fetch it again", path.display())]
    WrongPart {
        /// The file.
        path: PathBuf,
        /// Which part it should be, counted from 1.
        part: u64,
        /// How many there are.
        count: u64,
    },
    /// The files of a split model do not hold as many tensors as the first one says.
    #[error("the model's files hold {found} tensors, but should hold {expected}: fetch them again")]
    PartTensors {
        /// The number in the first file.
        expected: u64,
        /// How many there are.
        found: u64,
    },

    // Tensors.
    /// A tensor without a name, or with one that is too long.
    #[error("the name of tensor {index} is {length} bytes long: 1 to {limit} are allowed")]
    TensorNameLength {
        /// The tensor's place in the file, from 0.
        index: usize,
        /// The name's length in bytes.
        length: u64,
        /// The longest name allowed.
        limit: u64,
    },
    /// A tensor name that is not UTF-8.
    #[error("the name of tensor {index} is not valid UTF-8: the file is damaged")]
    TensorNameUtf8 {
        /// The tensor's place in the file, from 0.
        index: usize,
    },
    /// Two tensors with one name.
    #[error("the tensor {tensor:?} occurs twice: the file is damaged, or was made by a faulty tool")]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor without dimensions, or with more than four.
    #[error("tensor {tensor:?} has {n_dims} dimensions: 1 to 4 are allowed")]
    DimensionCount {
        /// The tensor's name.
        tensor: String,
        /// The number of dimensions in the file.
        n_dims: u64,
    },
    /// A tensor without elements.
    #[error("tensor {tensor:?} of shape {shape:?} has no elements")]
    ZeroDimension {
        /// The tensor's name.
        tensor: String,
        /// Its shape, outermost dimension first.
        shape: Vec<u64>,
    },
    /// A tensor of a type that this version of fewbit has never heard of.
    #[error(
        "tensor {tensor:?} has the type number {id}, which fewbit does not know: \
         choose a file quantized to another type, such as Q4_K_M"
    )]
    TensorTypeId {
        /// The tensor's name.
        tensor: String,
        /// The type's number in the file.
        id: u32,
    },
    /// A row that is not a whole number of blocks.
    #[error("tensor {tensor:?} has rows of {n_cols} elements, which is not a whole number of {ty} blocks of {}",
        ty.block_elems())]
    NotWholeBlocks {
        /// The tensor's name.
        tensor: String,
        /// The tensor's type.
        ty: TensorType,
        /// Elements in a row.
        n_cols: u64,
    },
    /// A shape whose size in bytes is no 64-bit number.
    #[error("tensor {tensor:?} of shape {shape:?} is too large for any memory: the file is damaged")]
    TensorTooLarge {
        /// The tensor's name.
        tensor: String,
        /// Its shape, outermost dimension first.
        shape: Vec<u64>,
    },
    /// A tensor whose bytes do not begin at a multiple of the alignment.
    #[error(
        "tensor {tensor:?} begins at byte {offset} of the tensor data, which is not a multiple of the alignment {alignment}"
    )]
    MisalignedTensor {
        /// The tensor's name.
        tensor: String,
        /// Where its bytes begin, from the start of the tensor data.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor that ends after the file does: usually an incomplete download.
    #[error(
        "the file is cut short: tensor {tensor:?} takes {n_bytes} bytes from byte {offset}, the file has \
         {file_bytes}; fetch the file again"
    )]
    TensorOutOfBounds {
        /// The tensor's name.
        tensor: String,
        /// Where its bytes begin, from the start of the file.
        offset: u64,
        /// How many bytes it has.
        n_bytes: u64,
        /// How many bytes the file has.
        file_bytes: u64,
    },
    /// Two tensors that share bytes.
    #[error("the tensors {first:?} and {second:?} overlap: the file is damaged")]
    OverlappingTensors {
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins inside it.
        second: String,
    },
    /// Tensor data of another length than the shape and type ask for (when writing).
    #[error("tensor {tensor:?} needs {expected} bytes for its shape and type, {found} were given")]
    TensorDataSize {
        /// The tensor's name.
        tensor: String,
        /// The bytes that shape and type ask for.
        expected: u64,
        /// The bytes that were given.
        found: u64,
    },

    // Safetensors.
    /// The header of a safetensors file is not the JSON that it should be.
    #[error("the safetensors header is damaged: fetch the file again")]
    HeaderJson(#[source] serde_json::Error),
    /// A tensor of a type that the safetensors format does not have.
    #[error(
        "tensor {tensor:?} has the type {dtype:?}, which fewbit does not know: look for another file of this model"
    )]
    UnknownDtype {
        /// The tensor's name.
        tensor: String,
        /// The type's name in the file.
        dtype: String,
    },
    /// A tensor of elements of 4 or 6 bits that end in the middle of a byte.
    #[error(
        "tensor {tensor:?} of shape {shape:?} and type {dtype} is not a whole number of bytes: the file is damaged"
    )]
    PartialByte {
        /// The tensor's name.
        tensor: String,
        /// Its shape, outermost dimension first.
        shape: Vec<u64>,
        /// The type of its elements.
        dtype: Dtype,
    },
    /// A tensor that ends before it begins.
    #[error("tensor {tensor:?} begins at byte {start} of the tensor data and ends at byte {end}: the file is damaged")]
    InvertedOffsets {
        /// The tensor's name.
        tensor: String,
        /// Where it begins, from the start of the tensor data.
        start: u64,
        /// Where it ends.
        end: u64,
    },
    /// Bytes that belong to no tensor, where the format allows none.
    #[error("{n_bytes} bytes from byte {offset} belong to no tensor: the file is damaged, or carries something else")]
    UnusedBytes {
        /// Where they begin, from the start of the file.
        offset: u64,
        /// How many there are.
        n_bytes: u64,
    },
    /// A folder that has no safetensors model in it.
    #[error(
        "{} has neither model.safetensors nor model.safetensors.index.json: give a .gguf file or a model folder",
        path.display()
    )]
    NoModelInFolder {
        /// The folder.
        path: PathBuf,
    },
    /// `model.safetensors.index.json` is not the JSON that it should be.
    #[error("the index of the model's files is damaged: fetch it again")]
    IndexJson(#[source] serde_json::Error),
    /// The index names a file that is not a plain name in its own folder.
    #[error("the index names the file {shard:?}, which is not a plain file name: nothing outside its folder is opened")]
    ShardName {
        /// The name in the index.
        shard: String,
    },
    /// A file that the index names is not there.
    #[error("{} is missing, which holds a part of the model: fetch it", path.display())]
    MissingShard {
        /// Where it should be.
        path: PathBuf,
    },
    /// A file of a model does not hold a tensor that it should hold.
    #[error("the index says that {shard:?} holds the tensor {tensor:?}, but it does not: fetch both again")]
    MissingTensor {
        /// The tensor's name.
        tensor: String,
        /// The file that the index names.
        shard: String,
    },

    // Metadata looked up by name.
    /// A key that the model needs is not there.
    #[error("the file has no metadata {key:?}, which this model needs: it is incomplete or of another kind")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value of another type than the one that its meaning asks for.
    #[error("metadata {key:?} is of type {found}, expected {expected}")]
    MetadataType {
        /// The key.
        key: String,
        /// The type that was asked for.
        expected: &'static str,
        /// The type of the value in the file.
        found: &'static str,
    },
    /// A metadata number that does not fit the type that its meaning asks for.
    #[error("metadata {key:?} is {found}, out of range for {expected}")]
    MetadataRange {
        /// The key.
        key: String,
        /// The type that was asked for.
        expected: &'static str,
        /// The number in the file.
        found: i128,
    },
    /// A metadata string (or a string in an array) that is not UTF-8.
    ///
    /// Such values are kept as bytes ([`Value::Bytes`](crate::Value::Bytes)), so that a stray byte in a
    /// description does not make a model useless; but they are never repaired by guessing.
    #[error("metadata {key:?} holds text that is not valid UTF-8 (string {index} of it): the file is damaged")]
    MetadataUtf8 {
        /// The key.
        key: String,
        /// Which string of an array, from 0; 0 for a single string.
        index: usize,
    },
}

impl FormatError {
    /// The file or folder that the message names. Of the others, the caller knows which file they are about.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::NotFound { path }
            | Self::IsDirectory { path }
            | Self::NotAFile { path }
            | Self::Io { path, .. }
            | Self::NoModelInFolder { path }
            | Self::MissingShard { path }
            | Self::Part { path, .. }
            | Self::WrongPart { path, .. } => Some(path),
            _ => None,
        }
    }
}

/// What a file that is not GGUF looks like from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FoundInstead {
    /// A Git LFS pointer: the repository was cloned without its large files.
    LfsPointer,
    /// A web page, such as a login or error page saved in place of the file.
    WebPage,
    /// A text file.
    Text,
    /// One of the formats before GGUF (GGML, GGMF, GGJT).
    OldGgml,
    /// A safetensors file.
    Safetensors,
    /// A zip archive, such as a PyTorch checkpoint.
    Zip,
    /// A GGUF file.
    Gguf,
    /// Something else; its first four bytes (fewer are filled up with zeros).
    Binary([u8; 4]),
}

impl FoundInstead {
    /// Guesses from the first bytes of a file that is not what it should be.
    pub(crate) fn guess(bytes: &[u8]) -> Self {
        let head = bytes.get(..512).unwrap_or(bytes);
        let lower = head.to_ascii_lowercase();
        let trimmed = lower.trim_ascii_start();
        if head.starts_with(b"version https://git-lfs") {
            Self::LfsPointer
        } else if trimmed.starts_with(b"<!doctype") || trimmed.starts_with(b"<html") {
            Self::WebPage
        } else if [b"lmgg", b"fmgg", b"tjgg", b"algg"].iter().any(|magic| head.starts_with(*magic)) {
            // The old magics are 32-bit numbers, so that their letters stand in reverse in the file.
            Self::OldGgml
        } else if head.starts_with(b"GGUF") {
            Self::Gguf
        } else if head.starts_with(b"PK\x03\x04") {
            Self::Zip
        } else if head.get(8..10) == Some(b"{\"") {
            // Eight bytes of header length, then a JSON object.
            Self::Safetensors
        } else if is_text(head) {
            Self::Text
        } else {
            let mut first = [0; 4];
            for (to, from) in first.iter_mut().zip(head) {
                *to = *from;
            }
            Self::Binary(first)
        }
    }
}

/// Whether the bytes are UTF-8 (a character cut at the end allowed) without control codes.
fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_some() => return false,
        Err(error) => {
            head.get(..error.valid_up_to()).and_then(|valid| std::str::from_utf8(valid).ok()).unwrap_or_default()
        }
    };
    !text.is_empty() && text.chars().all(|c| !c.is_control() || c.is_ascii_whitespace())
}

impl std::fmt::Display for FoundInstead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LfsPointer => f.write_str("a Git LFS pointer; fetch the file itself with `git lfs pull`"),
            Self::WebPage => f.write_str("a web page; the download link leads to a page, not to the file"),
            Self::Text => f.write_str("a text file; give the model file itself"),
            Self::OldGgml => f.write_str("a GGML file from before GGUF; convert the original model again"),
            Self::Safetensors => f.write_str("a safetensors file; give its folder, or a .gguf file of this model"),
            Self::Zip => f.write_str("a zip archive or a PyTorch checkpoint; give a .gguf file of this model"),
            Self::Gguf => f.write_str("a GGUF file; give its path, not that of a safetensors model"),
            Self::Binary(first) => {
                write!(f, "a file that begins with \"{}\"; give the model file itself", first.escape_ascii())
            }
        }
    }
}
