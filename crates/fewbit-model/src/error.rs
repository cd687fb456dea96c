//! Why a model could not be loaded or run.

use crate::device_error::DeviceError;
use fewbit_checkpoint::CheckpointError;
use fewbit_kernels::KernelError;
use fewbit_quant::TensorType;

/// An error of loading or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The files of the model are at fault, or not known.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Kernels could not be set up or weights not packed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A tensor's type cannot be computed with.
    #[error(
        "tensor {name:?} is of type {ty}, which this version of fewbit cannot run; convert the model to another type"
    )]
    UnsupportedTensorType {
        /// The tensor's name.
        name: String,
        /// Its type.
        ty: TensorType,
    },
    /// The model does not fit into memory.
    #[error(
        "the model takes {} MiB ({} weights), but only {} MiB of memory are free; close programs or take a smaller file",
        needed_bytes >> 20, weight_type, available_bytes >> 20
    )]
    DoesNotFit {
        /// Bytes that loading would take.
        needed_bytes: u64,
        /// Bytes that the operating system calls available.
        available_bytes: u64,
        /// The most common weight type.
        weight_type: TensorType,
    },
    /// More layers were placed than there are.
    #[error("{placed} layers are placed, but the model has {n_layers}")]
    Placement {
        /// Layers of all parts of the placement.
        placed: usize,
        /// Layers of the model.
        n_layers: usize,
    },
    /// A device cannot do what it should. Nothing else was tried in its place.
    #[error("the device {device} failed")]
    Device {
        /// What it is called.
        device: String,
        /// What is wrong.
        source: DeviceError,
    },
    /// A batch does not fit into the context.
    #[error("{n_tokens} tokens after position {position} do not fit into the context of {context_length}")]
    ContextFull {
        /// Tokens in the cache already.
        position: usize,
        /// Tokens that were to be appended.
        n_tokens: usize,
        /// Positions that the model was made for.
        context_length: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {n_vocab}")]
    TokenId {
        /// The id given.
        id: u32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// An adapter that was loaded for another model.
    #[error("the adapter {} was loaded for another model: load it for this one", path.display())]
    ForeignLora {
        /// The adapter.
        path: std::path::PathBuf,
    },
    /// A scale of an adapter that is no number.
    #[error("the scale of the adapter {} is {scale}, but must be a finite number", path.display())]
    LoraScale {
        /// The adapter.
        path: std::path::PathBuf,
        /// The scale.
        scale: f32,
    },
    /// A cache of another model.
    #[error("the KV cache was made for another model")]
    ForeignCache,
    /// The saved state of a cache is not as long as its positions make it.
    #[error("{n_bytes} bytes are not the keys and values of {len} positions of this model")]
    BadCacheState {
        /// Positions that it should hold.
        len: usize,
        /// Bytes that there are.
        n_bytes: usize,
    },
    /// A kernel panicked: a bug in fewbit. The model stays usable, the caches of the batch do not.
    #[error("internal error in a kernel (please report it): {message}")]
    Internal {
        /// The panic's message.
        message: String,
    },
}
