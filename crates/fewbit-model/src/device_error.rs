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
