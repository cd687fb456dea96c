//! Why a device could not do what was asked of it.

/// Why a device could not do what was asked of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// It is not there, or cannot be used.
    #[error("{why}")]
    Unavailable {
        /// Why, and what to do.
        why: String,
    },
    /// It has too little memory.
    #[error("it needs {} MiB more, but {}: place fewer layers on it, or take a smaller file or context",
        needed_bytes.div_ceil(1 << 20),
        free_bytes.map_or("has too little left".to_owned(), |free| format!("has {} MiB", free >> 20)))]
    OutOfMemory {
        /// Bytes that were asked for.
        needed_bytes: u64,
        /// Bytes that it had left, if it says so.
        free_bytes: Option<u64>,
    },
    /// It worked, and no longer does: its driver was reset, or it was unplugged.
    #[error("it was lost ({why}): load the model again, on this device or another")]
    Lost {
        /// What its driver says.
        why: String,
    },
    /// There is no code for it on this device.
    #[error("it cannot run {what}; compute that on the CPU")]
    Unsupported {
        /// What, in words.
        what: String,
    },
}
