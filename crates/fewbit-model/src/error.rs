//! Errors of loading and running a model.

use crate::device_error::DeviceError;
use fewbit_checkpoint::CheckpointError;
use fewbit_kernels::KernelError;
use fewbit_quant::TensorType;

/// An error of loading or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The files of the model are damaged or not supported.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The kernels could not be set up, or weights could not be packed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// fewbit cannot compute with the type of a tensor.
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
        /// Bytes that the operating system reports as available.
        available_bytes: u64,
        /// The most common weight type.
        weight_type: TensorType,
    },
    /// The placement has more layers than the model.
    #[error("{placed} layers are placed, but the model has {n_layers}")]
    Placement {
        /// Number of layers in all parts of the placement.
        placed: usize,
        /// Number of layers of the model.
        n_layers: usize,
    },
    /// A device failed. No other device was tried instead.
    #[error("the device {device} failed")]
    Device {
        /// The name of the device.
        device: String,
        /// The error of the device.
        source: DeviceError,
    },
    /// A batch does not fit into the context.
    #[error("{n_tokens} tokens after position {position} do not fit into the context of {context_length}")]
    ContextFull {
        /// Number of tokens in the cache.
        position: usize,
        /// Number of tokens to append.
        n_tokens: usize,
        /// Number of positions that the model supports.
        context_length: usize,
    },
    /// A token id is outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {n_vocab}")]
    TokenId {
        /// The given id.
        id: u32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// An adapter was loaded for another model.
    #[error("the adapter {} was loaded for another model: load it for this one", path.display())]
    ForeignLora {
        /// The adapter.
        path: std::path::PathBuf,
    },
    /// The scale of an adapter is not a finite number.
    #[error("the scale of the adapter {} is {scale}, but must be a finite number", path.display())]
    LoraScale {
        /// The adapter.
        path: std::path::PathBuf,
        /// The scale.
        scale: f32,
    },
    /// A cache belongs to another model.
    #[error("the KV cache was made for another model")]
    ForeignCache,
    /// A cache was on a device that was lost, and the layers of that device have moved.
    #[error("the KV cache was on a device that was lost: clear it, and compute its tokens again")]
    StaleCache,
    /// The file is not the one that the model was loaded from, so that lost layers cannot be loaded from it again.
    #[error("{tensor:?} is another than when the model was loaded: load the model again")]
    ChangedFile {
        /// The first tensor that differs.
        tensor: String,
    },
    /// An adapter could not be loaded again, for layers that moved to another device.
    #[error("an adapter cannot be loaded again")]
    Adapter(#[source] Box<crate::LoraError>),
    /// The saved state of a cache does not have the length that its number of positions requires.
    #[error("{n_bytes} bytes are not the keys and values of {len} positions of this model")]
    BadCacheState {
        /// Number of positions that it should hold.
        len: usize,
        /// Number of bytes given.
        n_bytes: usize,
    },
    /// A kernel panicked, which is a bug in fewbit. The model remains usable, but the caches of the batch do not.
    #[error("internal error in a kernel (please report it): {message}")]
    Internal {
        /// The panic's message.
        message: String,
    },
}

impl ModelError {
    /// The error of a device, if it is one.
    pub fn device_error(&self) -> Option<&DeviceError> {
        if let Self::Device { source, .. } = self { Some(source) } else { None }
    }

    /// Whether a device was lost, or a cache was on one: [`Decoder::replace_lost`](crate::Decoder::replace_lost) lets
    /// the model go on.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::StaleCache) || matches!(self.device_error(), Some(DeviceError::Lost { .. }))
    }
}
