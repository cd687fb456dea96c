//! Errors of devices.

/// The reason why a device failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The device does not exist or cannot be used.
    #[error("{why}")]
    Unavailable {
        /// The reason, and what to do.
        why: String,
    },
    /// The device has too little memory.
    #[error("it needs {} MiB more, but {}: place fewer layers on it, or take a smaller file or context",
        needed_bytes.div_ceil(1 << 20),
        free_bytes.map_or("has too little left".to_owned(), |free| format!("has {} MiB", free >> 20)))]
    OutOfMemory {
        /// Bytes requested.
        needed_bytes: u64,
        /// Bytes that were free, if the device reports it.
        free_bytes: Option<u64>,
    },
    /// What is placed on the device does not fit into its memory, by an estimate: nothing was loaded.
    #[error("what is placed on it takes {} MiB, but {} MiB of its memory are free: {}",
        needed_bytes.div_ceil(1 << 20), free_bytes >> 20, advice(*fitting_layers))]
    DoesNotFit {
        /// Bytes that the layers, the head, keys and values and the buffers of a step take.
        needed_bytes: u64,
        /// Bytes that are free, or that may be used.
        free_bytes: u64,
        /// How many layers would fit, counted from the last one, with the head.
        fitting_layers: usize,
    },
    /// The device stopped working: its driver was reset, or it was unplugged. A loaded [model](crate::Decoder) goes on
    /// on the CPU; this error says why it could not.
    #[error("it was lost ({why}): load the model again, on this device or another")]
    Lost {
        /// The driver's message.
        why: String,
    },
    /// The device does not implement an operation.
    #[error("it cannot run {what}; compute that on the CPU")]
    Unsupported {
        /// A description of the operation.
        what: String,
    },
}

/// What to do if this number of layers fits.
fn advice(fitting_layers: usize) -> String {
    match fitting_layers {
        0 => "not even one layer fits; compute on the CPU, or take a smaller file or context".to_owned(),
        n => format!("place at most {n} layers there (--gpu-layers {n}), or take a smaller file or context"),
    }
}
