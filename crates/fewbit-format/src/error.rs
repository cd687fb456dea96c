//! The only error type of this crate, with a variant for each problem that a caller or a user can act on.
//!
//! Every message is one line: the problem, its location, the value found, and a remedy if there is one. Text from a
//! file is printed with `{:?}`, so that it can neither break the line nor send control codes to a terminal.

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
    /// There is no file at this path.
    #[error("{} does not exist: check the path", path.display())]
    NotFound {
        /// The given path.
        path: PathBuf,
    },
    /// The path is a folder.
    #[error("{} is a folder: give the path of a .gguf file in it", path.display())]
    IsDirectory {
        /// The given path.
        path: PathBuf,
    },
    /// The path is a pipe, a socket or a device, which cannot be mapped.
    #[error("{} is not a regular file: copy the model to a file first", path.display())]
    NotAFile {
        /// The given path.
        path: PathBuf,
    },
    /// The operating system refused to open, map or write the file.
    #[error("cannot access {}", path.display())]
    Io {
        /// The given path.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The output given to [`GgufWriter::write_to`](crate::GgufWriter::write_to) failed.
    #[error("cannot write the GGUF file")]
    Write(#[source] io::Error),

    // The first bytes.
    /// The file is empty.
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
        /// The version, with its bytes swapped to the right order.
        version: u32,
    },
    /// GGUF version 1, which had 32-bit lengths; it was in use for two weeks in 2023.
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
        /// Number of bytes that it takes.
        needed: u64,
        /// Number of bytes from there to the end of the file.
        left: u64,
    },
    /// The header gives a count that is too large for the rest of the file.
    #[error("the header promises {count} {what}, but only {left} bytes are left; fetch the file again")]
    CountTooLarge {
        /// What is counted.
        what: &'static str,
        /// The count in the file.
        count: u64,
        /// Number of bytes from there to the end of the file.
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
    /// A metadata key is empty, or longer than the 65535 bytes that the specification allows.
    #[error("the metadata key at byte {offset} is {length} bytes long: 1 to 65535 are allowed")]
    KeyLength {
        /// Where the text of the key begins.
        offset: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// A metadata key is not UTF-8.
    #[error("the metadata key at byte {offset} is not valid UTF-8: the file is damaged")]
    KeyUtf8 {
        /// Where the text of the key begins.
        offset: u64,
    },
    /// Two metadata values have the same key.
    #[error("the metadata key {key:?} occurs twice: the file is damaged, or was made by a faulty tool")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A metadata value has a type that GGUF does not define.
    #[error("metadata {key:?} has the value type {id}, which GGUF does not define: the file is damaged")]
    ValueType {
        /// The key.
        key: String,
        /// The number of the type in the file.
        id: u32,
    },
    /// A boolean is neither 0 nor 1.
    #[error("metadata {key:?} is a boolean with the value {value}: the file is damaged")]
    InvalidBool {
        /// The key.
        key: String,
        /// The byte in the file.
        value: u8,
    },
    /// A string is longer than [`Limits::string_bytes`](crate::Limits::string_bytes).
    #[error("metadata {key:?} holds a string of {length} bytes, more than the limit of {limit}")]
    StringTooLong {
        /// The key.
        key: String,
        /// The string's length in bytes.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// Arrays are nested deeper than [`Limits::array_depth`](crate::Limits::array_depth).
    #[error("metadata {key:?} nests arrays more than {limit} deep")]
    ArrayTooDeep {
        /// The key.
        key: String,
        /// The limit.
        limit: u32,
    },
    /// `general.alignment` is not a power of two from 8 to 16777216.
    #[error("general.alignment is {found}: it must be a power of two from 8 to 16777216")]
    Alignment {
        /// The value in the file.
        found: u64,
    },
    /// The file is one part of a split model, and is alone or does not have the name of a part.
    #[error(
        "this is part {part} of a model split into {count} files: keep them in one folder under their own names, \
         NAME-{part:05}-of-{count:05}.gguf and so on, or join them with `llama-gguf-split --merge`"
    )]
    Split {
        /// The number of this part, from 1.
        part: u64,
        /// Number of parts.
        count: u64,
    },
    /// A file of a split model cannot be read.
    #[error("cannot read the part {}", path.display())]
    Part {
        /// The file.
        path: PathBuf,
        /// The error of that file.
        source: Box<FormatError>,
    },
    /// A file of a split model is not the part that its name says, or belongs to another model.
    #[error("{} is not part {part} of {count} of this model: fetch it again", path.display())]
    WrongPart {
        /// The file.
        path: PathBuf,
        /// The expected part, from 1.
        part: u64,
        /// Number of parts.
        count: u64,
    },
    /// The files of a split model do not hold as many tensors as the first file promises.
    #[error("the model's files hold {found} tensors, but should hold {expected}: fetch them again")]
    PartTensors {
        /// The number in the first file.
        expected: u64,
        /// Number of tensors in all files.
        found: u64,
    },

    // Tensors.
    /// The name of a tensor is empty or too long.
    #[error("the name of tensor {index} is {length} bytes long: 1 to {limit} are allowed")]
    TensorNameLength {
        /// Index of the tensor in the file, from 0.
        index: usize,
        /// The name's length in bytes.
        length: u64,
        /// The longest name allowed.
        limit: u64,
    },
    /// The name of a tensor is not UTF-8.
    #[error("the name of tensor {index} is not valid UTF-8: the file is damaged")]
    TensorNameUtf8 {
        /// Index of the tensor in the file, from 0.
        index: usize,
    },
    /// Two tensors have the same name.
    #[error("the tensor {tensor:?} occurs twice: the file is damaged, or was made by a faulty tool")]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor has no dimensions, or more than four.
    #[error("tensor {tensor:?} has {n_dims} dimensions: 1 to 4 are allowed")]
    DimensionCount {
        /// The tensor's name.
        tensor: String,
        /// The number of dimensions in the file.
        n_dims: u64,
    },
    /// A tensor has no elements.
    #[error("tensor {tensor:?} of shape {shape:?} has no elements")]
    ZeroDimension {
        /// The tensor's name.
        tensor: String,
        /// Its shape, outermost dimension first.
        shape: Vec<u64>,
    },
    /// A tensor has a type that this version of fewbit does not know.
    #[error(
        "tensor {tensor:?} has the type number {id}, which fewbit does not know: \
         choose a file quantized to another type, such as Q4_K_M"
    )]
    TensorTypeId {
        /// The tensor's name.
        tensor: String,
        /// The number of the type in the file.
        id: u32,
    },
    /// A row of a tensor is not a whole number of blocks.
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
    /// The size of a tensor in bytes does not fit into 64 bits.
    #[error("tensor {tensor:?} of shape {shape:?} is too large for any memory: the file is damaged")]
    TensorTooLarge {
        /// The tensor's name.
        tensor: String,
        /// Its shape, outermost dimension first.
        shape: Vec<u64>,
    },
    /// The bytes of a tensor do not begin at a multiple of the alignment.
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
    /// A tensor extends beyond the end of the file, usually because the download is incomplete.
    #[error(
        "the file is cut short: tensor {tensor:?} takes {n_bytes} bytes from byte {offset}, the file has \
         {file_bytes}; fetch the file again"
    )]
    TensorOutOfBounds {
        /// The tensor's name.
        tensor: String,
        /// Where its bytes begin, from the start of the file.
        offset: u64,
        /// Size of the tensor in bytes.
        n_bytes: u64,
        /// Size of the file in bytes.
        file_bytes: u64,
    },
    /// Two tensors overlap.
    #[error("the tensors {first:?} and {second:?} overlap: the file is damaged")]
    OverlappingTensors {
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins inside it.
        second: String,
    },
    /// The data of a tensor does not have the length that its shape and type require (when writing).
    #[error("tensor {tensor:?} needs {expected} bytes for its shape and type, {found} were given")]
    TensorDataSize {
        /// The tensor's name.
        tensor: String,
        /// Number of bytes that shape and type require.
        expected: u64,
        /// Number of bytes given.
        found: u64,
    },

    // Safetensors.
    /// The header of a safetensors file is not the expected JSON.
    #[error("the safetensors header is damaged: fetch the file again")]
    HeaderJson(#[source] serde_json::Error),
    /// A tensor has a type that the safetensors format does not define.
    #[error(
        "tensor {tensor:?} has the type {dtype:?}, which fewbit does not know: look for another file of this model"
    )]
    UnknownDtype {
        /// The tensor's name.
        tensor: String,
        /// The type's name in the file.
        dtype: String,
    },
    /// A tensor of 4-bit or 6-bit elements ends in the middle of a byte.
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
    /// A tensor ends before it begins.
    #[error("tensor {tensor:?} begins at byte {start} of the tensor data and ends at byte {end}: the file is damaged")]
    InvertedOffsets {
        /// The tensor's name.
        tensor: String,
        /// Where it begins, from the start of the tensor data.
        start: u64,
        /// Where it ends.
        end: u64,
    },
    /// Bytes that belong to no tensor, which the format does not allow.
    #[error("{n_bytes} bytes from byte {offset} belong to no tensor: the file is damaged, or carries something else")]
    UnusedBytes {
        /// Where they begin, from the start of the file.
        offset: u64,
        /// Number of such bytes.
        n_bytes: u64,
    },
    /// The folder does not contain a safetensors model.
    #[error(
        "{} has neither model.safetensors nor model.safetensors.index.json: give a .gguf file or a model folder",
        path.display()
    )]
    NoModelInFolder {
        /// The folder.
        path: PathBuf,
    },
    /// `model.safetensors.index.json` is not the expected JSON.
    #[error("the index of the model's files is damaged: fetch it again")]
    IndexJson(#[source] serde_json::Error),
    /// The index names a file that is not a plain file name in its own folder.
    #[error("the index names the file {shard:?}, which is not a plain file name: nothing outside its folder is opened")]
    ShardName {
        /// The name in the index.
        shard: String,
    },
    /// A file that the index names does not exist.
    #[error("{} is missing, but holds a part of the model: fetch it", path.display())]
    MissingShard {
        /// The expected path of the file.
        path: PathBuf,
    },
    /// A file of a model does not hold a tensor that the index assigns to it.
    #[error("the index says that {shard:?} holds the tensor {tensor:?}, but it does not: fetch both again")]
    MissingTensor {
        /// The tensor's name.
        tensor: String,
        /// The file that the index names.
        shard: String,
    },

    // Metadata looked up by name.
    /// A key that the model needs is missing.
    #[error("the file has no metadata {key:?}, which this model needs: it is incomplete or of another kind")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value does not have the expected type.
    #[error("metadata {key:?} is of type {found}, expected {expected}")]
    MetadataType {
        /// The key.
        key: String,
        /// The expected type.
        expected: &'static str,
        /// The type of the value in the file.
        found: &'static str,
    },
    /// A metadata number does not fit the expected type.
    #[error("metadata {key:?} is {found}, out of range for {expected}")]
    MetadataRange {
        /// The key.
        key: String,
        /// The expected type.
        expected: &'static str,
        /// The number in the file.
        found: i128,
    },
    /// A metadata string (or a string in an array) is not UTF-8.
    ///
    /// Such values are kept as bytes ([`Value::Bytes`](crate::Value::Bytes)), so that a stray byte in a description
    /// does not make a model useless. fewbit never guesses the text that was meant.
    #[error("metadata {key:?} holds text that is not valid UTF-8 (string {index} of it): the file is damaged")]
    MetadataUtf8 {
        /// The key.
        key: String,
        /// Index of the string in an array, from 0; 0 for a single string.
        index: usize,
    },
}

impl FormatError {
    /// The file or folder that the message names. `None` for errors about the content of a file, which the caller
    /// opened.
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

/// The kind of file that something which is not the expected format appears to be.
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
    /// Anything else, with its first four bytes (padded with zeros if there are fewer).
    Binary([u8; 4]),
}

impl FoundInstead {
    /// Guesses the kind of a file of the wrong format from its first bytes.
    pub(crate) fn guess(bytes: &[u8]) -> Self {
        let head = bytes.get(..512).unwrap_or(bytes);
        let lower = head.to_ascii_lowercase();
        let trimmed = lower.trim_ascii_start();
        if head.starts_with(b"version https://git-lfs") {
            Self::LfsPointer
        } else if trimmed.starts_with(b"<!doctype") || trimmed.starts_with(b"<html") {
            Self::WebPage
        } else if [b"lmgg", b"fmgg", b"tjgg", b"algg"].iter().any(|magic| head.starts_with(*magic)) {
            // The old magic values are 32-bit numbers, so their letters are in reverse order in the file.
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

/// Whether the bytes are UTF-8 without control codes. A character that is cut off at the end is allowed.
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
