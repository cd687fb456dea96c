//! Why a model's files could not be read as a model.

use crate::hf::HfError;
use fewbit_format::FormatError;
use fewbit_quant::QuantError;

/// What is wrong with a model's files, or not known of them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file itself is at fault.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A Hugging Face folder is incomplete, or not as it should be.
    #[error(transparent)]
    Hf(#[from] HfError),
    /// `general.architecture` names a family that fewbit does not know.
    #[error("unknown model architecture {name:?}; this version of fewbit runs: {}", known.join(", "))]
    UnknownArchitecture {
        /// The name in the file.
        name: String,
        /// Those that would work.
        known: Vec<&'static str>,
    },
    /// The architecture is known, but the file uses a part of it that is not implemented.
    #[error("the model needs {feature} ({key} = {value}), which this version of fewbit does not have")]
    UnsupportedFeature {
        /// What is missing, in words.
        feature: &'static str,
        /// The metadata key that asks for it.
        key: String,
        /// Its value.
        value: String,
    },
    /// A number of the configuration makes no sense.
    #[error("the model's {key} is {found}, but must be {expected}; its file is damaged or was converted wrongly")]
    BadConfig {
        /// The metadata key, or the field of the configuration.
        key: String,
        /// The value found.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A GGUF file of this architecture cannot say what the model is.
    #[error("a GGUF file of architecture {architecture:?} cannot hold this model: {what} cannot be expressed")]
    NoGgufForm {
        /// The architecture.
        architecture: String,
        /// What there is no key for.
        what: &'static str,
    },
    /// A tensor that the architecture needs is not in the file.
    #[error("tensor {name:?} is missing; the file holds no complete model (a vocabulary-only or partial file?)")]
    MissingTensor {
        /// The tensor's name.
        name: String,
    },
    /// A tensor that the architecture has no place for: leaving it out would give other results.
    #[error("tensor {name:?} is not part of a {architecture:?} model as this version of fewbit runs it")]
    UnexpectedTensor {
        /// The tensor's name.
        name: String,
        /// The model's architecture.
        architecture: String,
    },
    /// A tensor's shape disagrees with the metadata.
    #[error("tensor {name:?} has shape {found:?}, but the model's configuration makes it {expected:?}")]
    TensorShape {
        /// The tensor's name.
        name: String,
        /// The shape that the configuration gives, rows first.
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
