//! What can be wrong with a Hugging Face folder, besides its tensors' shapes and the safetensors files themselves.

use fewbit_format::safetensors::Dtype;
use std::path::{Path, PathBuf};

/// An error of reading a Hugging Face folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HfError {
    /// A file that every model needs is not there.
    #[error(
        "{} is missing, so this is not a complete Hugging Face folder; download all files of the model",
        name(path)
    )]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// The weights are there, but in files of another format.
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
        /// Why.
        source: std::io::Error,
    },
    /// A configuration is far longer than any configuration is.
    #[error("{} has {n_bytes} bytes, and a configuration has at most {limit}", name(path))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        n_bytes: u64,
        /// The most that is read.
        limit: u64,
    },
    /// A configuration is no JSON, or no JSON object.
    #[error("{} is not the JSON that it should be", name(path))]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// A value that the model needs is not in its configuration.
    #[error("{file}: {key:?} is missing")]
    MissingKey {
        /// The file's name.
        file: &'static str,
        /// The key, with those of the objects that it is in before it.
        key: String,
    },
    /// A value is of another type than it should be.
    #[error("{file}: {key:?} is {found}, and should be {expected}")]
    KeyType {
        /// The file's name.
        file: &'static str,
        /// The key, with those of the objects that it is in before it.
        key: String,
        /// What it should be.
        expected: &'static str,
        /// The JSON that stands there, shortened.
        found: String,
    },
    /// The weights are quantized in a way that is not implemented.
    #[error(
        "the weights are quantized by {method} ({what}), which this version of fewbit cannot read; take the original \
         model, or one in GPTQ, AWQ, compressed-tensors or FP8 form"
    )]
    UnsupportedQuantization {
        /// `quant_method`.
        method: String,
        /// What about it is not implemented.
        what: String,
    },
    /// A tensor's elements are of a type that it cannot have.
    #[error("tensor {name:?} is {found}, and should be {expected}")]
    TensorDtype {
        /// The tensor.
        name: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: Dtype,
    },
    /// The parts of a quantized matrix do not fit together.
    #[error("tensor {name:?} has shape {found:?}, and should have {expected:?} to fit the other parts of its matrix")]
    PartShape {
        /// The tensor.
        name: String,
        /// The shape that the other parts ask for.
        expected: Vec<u64>,
        /// Its shape.
        found: Vec<u64>,
    },
    /// A part of a quantized matrix is missing.
    #[error("tensor {name:?} is missing: the matrix cannot be read without it")]
    MissingPart {
        /// The tensor.
        name: String,
    },
    /// Two tensors stand for the same part of the model.
    #[error("tensors {first:?} and {second:?} are the same part of the model")]
    Ambiguous {
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// A column's group in `g_idx` does not exist.
    #[error("tensor {name:?} puts column {column} into group {group}, and there are {n_groups}")]
    GroupIndex {
        /// The tensor.
        name: String,
        /// The column.
        column: usize,
        /// Its group.
        group: i64,
        /// Groups there are.
        n_groups: usize,
    },
    /// A scale is no number, or beyond what 16 bits hold.
    #[error("tensor {name:?} has the scale {value}, which cannot be kept in 16 bits; the file is damaged")]
    Scale {
        /// The tensor.
        name: String,
        /// The scale, or the offset that it leads to.
        value: f32,
    },
}

/// A file's name: the folder is named by whoever opened it.
fn name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()
}
