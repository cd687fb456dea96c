//! Errors of loading adapters.

use crate::ModelError;
use fewbit_checkpoint::hf::HfError;
use fewbit_format::FormatError;
use fewbit_quant::QuantError;
use std::path::PathBuf;

/// An error of loading a LoRA adapter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// The file is damaged, missing, or neither a GGUF nor a safetensors file.
    #[error("{} cannot be read as an adapter", path.display())]
    Format {
        /// The adapter.
        path: PathBuf,
        /// What is wrong.
        source: Box<FormatError>,
    },
    /// The configuration of a PEFT folder is missing or invalid.
    #[error("the configuration of {} cannot be used", path.display())]
    Config {
        /// The adapter.
        path: PathBuf,
        /// What is wrong.
        source: Box<HfError>,
    },
    /// The file is a GGUF file, but not a LoRA adapter.
    #[error("{} is not a LoRA adapter: its {key:?} is {found:?}, expected {expected:?}", path.display())]
    NotAnAdapter {
        /// The file.
        path: PathBuf,
        /// The metadata key that differs.
        key: &'static str,
        /// The expected value.
        expected: &'static str,
        /// The value found.
        found: String,
    },
    /// The adapter was made for another architecture.
    #[error("{} is an adapter for {found:?} models, but the model is a {expected:?}", path.display())]
    Architecture {
        /// The adapter.
        path: PathBuf,
        /// The model's architecture.
        expected: String,
        /// The architecture of the adapter.
        found: String,
    },
    /// The adapter needs more than low-rank parts of matrices.
    #[error("{} has {option} = {value}, which this version of fewbit does not have", path.display())]
    Unsupported {
        /// The adapter.
        path: PathBuf,
        /// The option.
        option: String,
        /// Its value.
        value: String,
    },
    /// A number in the adapter is invalid.
    #[error("{}: {key} is {found}, but must be a finite number", path.display())]
    BadNumber {
        /// The adapter.
        path: PathBuf,
        /// The name of the number.
        key: String,
        /// The value found.
        found: String,
    },
    /// A tensor does not belong to a matrix that adapters can change.
    #[error(
        "{}: tensor {tensor:?} changes nothing that an adapter of a {architecture:?} model can change here (the \
         matrices of attention, the feed-forward part without experts, and the output)", path.display()
    )]
    UnknownTarget {
        /// The adapter.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The model's architecture.
        architecture: String,
    },
    /// One of the two matrices of a low-rank part is missing.
    #[error("{}: tensor {tensor:?} has no counterpart {missing:?}", path.display())]
    MissingHalf {
        /// The adapter.
        path: PathBuf,
        /// The existing tensor.
        tensor: String,
        /// The missing tensor.
        missing: String,
    },
    /// Two tensors belong to the same matrix.
    #[error("{}: tensor {tensor:?} belongs to the same matrix as another tensor", path.display())]
    Twice {
        /// The adapter.
        path: PathBuf,
        /// The second tensor.
        tensor: String,
    },
    /// A tensor does not fit the model's matrix, or the rank.
    #[error("{}: tensor {tensor:?} has shape {found:?}, but the model makes it {expected:?}: is it another model's adapter?", path.display())]
    Shape {
        /// The adapter.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that fits, rows first.
        expected: Vec<u64>,
        /// The shape in the file, rows first.
        found: Vec<u64>,
    },
    /// A tensor's type is not allowed in adapters.
    #[error("{}: tensor {tensor:?} is of type {ty}, which adapters cannot have", path.display())]
    Type {
        /// The adapter.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: String,
    },
    /// A tensor's bytes could not be decoded.
    #[error("{}: tensor {tensor:?} cannot be decoded", path.display())]
    Decode {
        /// The adapter.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What went wrong.
        source: QuantError,
    },
    /// The device of a matrix could not take the part for this matrix.
    #[error("cannot move {} into the folder of models", path.display())]
    Device {
        /// The adapter.
        path: PathBuf,
        /// What went wrong.
        source: Box<ModelError>,
    },
    /// The file has no tensors.
    #[error("the adapter {} has no tensors", path.display())]
    Empty {
        /// The adapter.
        path: PathBuf,
    },
    /// The adapter does not fit into memory.
    #[error("{} needs {} MiB, but only {} MiB of memory are free", path.display(), needed_bytes >> 20, available_bytes >> 20)]
    DoesNotFit {
        /// The adapter.
        path: PathBuf,
        /// Bytes that loading would take.
        needed_bytes: u64,
        /// Bytes that the operating system reports as available.
        available_bytes: u64,
    },
}
