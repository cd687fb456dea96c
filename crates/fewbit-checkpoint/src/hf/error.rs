//! Errors of Hugging Face folders, apart from tensor shapes and the safetensors files themselves.

use fewbit_format::safetensors::Dtype;
use std::path::{Path, PathBuf};

/// An error of reading a Hugging Face folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HfError {
    /// A required file does not exist.
    #[error(
        "{} is missing, so this is not a complete Hugging Face folder; download all files of the model",
        name(path)
    )]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// The folder has weights, but in files of another format.
    #[error(
        "the weights are in {}, and not in model.safetensors; take a version of the model that has Hugging Face's files",
        name(path)
    )]
    OtherWeights {
        /// The first such file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}", name(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A configuration file is far larger than any real one.
    #[error("{} has {n_bytes} bytes, and a configuration has at most {limit}", name(path))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        n_bytes: u64,
        /// The largest accepted size.
        limit: u64,
    },
    /// A configuration is not JSON, or not a JSON object.
    #[error("{} is not valid JSON of the expected form", name(path))]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// The configuration lacks a value that the model needs.
    #[error("{file}: {key:?} is missing")]
    MissingKey {
        /// The file's name.
        file: &'static str,
        /// The full path of the key, including the objects that contain it.
        key: String,
    },
    /// A value has the wrong type.
    #[error("{file}: {key:?} is {found}, expected {expected}")]
    KeyType {
        /// The file's name.
        file: &'static str,
        /// The full path of the key, including the objects that contain it.
        key: String,
        /// The expected type.
        expected: &'static str,
        /// The JSON value found, shortened.
        found: String,
    },
    /// The weights are quantized with a method or variant that is not implemented.
    #[error(
        "the weights are quantized by {method} ({what}), which this version of fewbit cannot read; take the original \
         model, or one in GPTQ, AWQ, compressed-tensors or FP8 form"
    )]
    UnsupportedQuantization {
        /// `quant_method`.
        method: String,
        /// The unsupported variant.
        what: String,
    },
    /// The elements of a tensor have a type that is not allowed for it.
    #[error("tensor {name:?} is {found}, expected {expected}")]
    TensorDtype {
        /// The tensor.
        name: String,
        /// The expected type.
        expected: &'static str,
        /// The type found.
        found: Dtype,
    },
    /// The shapes of a quantized matrix's tensors do not match.
    #[error("tensor {name:?} has shape {found:?}, expected {expected:?} to match the other parts of its matrix")]
    PartShape {
        /// The tensor.
        name: String,
        /// The shape that the other tensors require.
        expected: Vec<u64>,
        /// Its shape.
        found: Vec<u64>,
    },
    /// A tensor of a quantized matrix is missing.
    #[error("tensor {name:?} is missing: the matrix cannot be read without it")]
    MissingPart {
        /// The tensor.
        name: String,
    },
    /// Two tensors belong to the same part of the model.
    #[error("tensors {first:?} and {second:?} stand for the same part of the model")]
    Ambiguous {
        /// The first tensor.
        first: String,
        /// The second tensor.
        second: String,
    },
    /// The group of a column in `g_idx` does not exist.
    #[error("tensor {name:?} puts column {column} into group {group}, but there are only {n_groups}")]
    GroupIndex {
        /// The tensor.
        name: String,
        /// The column.
        column: usize,
        /// Its group.
        group: i64,
        /// Number of groups.
        n_groups: usize,
    },
    /// A scale is not a number, or outside the range of 16 bits.
    #[error("tensor {name:?} has the scale {value}, which cannot be kept in 16 bits; the file is damaged")]
    Scale {
        /// The tensor.
        name: String,
        /// The scale, or the offset computed from it.
        value: f32,
    },
}

/// The name of a file, without its folder, which the caller knows.
fn name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()
}
