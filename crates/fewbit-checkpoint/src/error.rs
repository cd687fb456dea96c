//! Errors of reading the files of a model.

use crate::hf::HfError;
use fewbit_format::FormatError;
use fewbit_quant::QuantError;

/// The reason why a model's files are invalid or not supported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file itself is damaged.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A Hugging Face folder is incomplete or invalid.
    #[error(transparent)]
    Hf(#[from] HfError),
    /// fewbit does not know the architecture that `general.architecture` names.
    #[error("unknown model architecture {name:?}; this version of fewbit runs: {}", known.join(", "))]
    UnknownArchitecture {
        /// The name in the file.
        name: String,
        /// The supported architectures.
        known: Vec<&'static str>,
    },
    /// The architecture is known, but the file uses a feature that is not implemented.
    #[error("the model needs {feature} ({key} = {value}), which this version of fewbit does not have")]
    UnsupportedFeature {
        /// A description of the feature.
        feature: &'static str,
        /// The metadata key that enables it.
        key: String,
        /// Its value.
        value: String,
    },
    /// A number in the configuration is invalid.
    #[error("the model's {key} is {found}, but must be {expected}; its file is damaged or was converted wrongly")]
    BadConfig {
        /// The metadata key, or the field of the configuration.
        key: String,
        /// The value found.
        found: String,
        /// What is expected.
        expected: String,
    },
    /// A GGUF file of this architecture cannot express the model.
    #[error("a GGUF file of architecture {architecture:?} cannot hold this model: {what} cannot be expressed")]
    NoGgufForm {
        /// The architecture.
        architecture: String,
        /// The part for which there is no key.
        what: &'static str,
    },
    /// A tensor that the architecture needs is missing from the file.
    #[error("tensor {name:?} is missing; the file holds no complete model (a vocabulary-only or partial file?)")]
    MissingTensor {
        /// The tensor's name.
        name: String,
    },
    /// The architecture does not use this tensor. Ignoring it would change the results.
    #[error("tensor {name:?} is not part of a {architecture:?} model as this version of fewbit runs it")]
    UnexpectedTensor {
        /// The tensor's name.
        name: String,
        /// The model's architecture.
        architecture: String,
    },
    /// The shape of a tensor does not match the metadata.
    #[error("tensor {name:?} has shape {found:?}, but the model's configuration makes it {expected:?}")]
    TensorShape {
        /// The tensor's name.
        name: String,
        /// The shape according to the configuration, rows first.
        expected: Vec<u64>,
        /// The shape in the file, rows first.
        found: Vec<u64>,
    },
    /// A tensor's bytes could not be decoded.
    #[error("tensor {name:?} cannot be decoded")]
    Decode {
        /// The tensor's name.
        name: String,
        /// What went wrong.
        source: QuantError,
    },
}
