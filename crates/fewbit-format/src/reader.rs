//! A cursor over untrusted bytes: every step is checked, and no count is accepted unless enough bytes remain for it.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use crate::error::FormatError;

/// Reads little-endian values from the front of a file.
pub(crate) struct Cursor<'a> {
    /// The whole file.
    file: &'a [u8],
    /// Position of the next byte to read; never beyond the end of the file.
    position: usize,
    /// Total number of bytes that may be read.
    limit: u64,
}

impl<'a> Cursor<'a> {
    /// Creates a cursor that reads at most the first `limit` bytes of a file.
    pub(crate) fn new(file: &'a [u8], limit: u64) -> Self {
        Self { file, position: 0, limit }
    }

    /// Number of bytes read so far.
    pub(crate) fn position(&self) -> u64 {
        self.position as u64
    }

    /// Number of bytes from here to the end of the file.
    fn left(&self) -> u64 {
        self.file.len().saturating_sub(self.position) as u64
    }

    /// Returns an error if reading `n_bytes` would exceed the limit.
    fn check_limit(&self, n_bytes: u64) -> Result<(), FormatError> {
        match self.position().checked_add(n_bytes) {
            Some(end) if end <= self.limit => Ok(()),
            _ => Err(FormatError::HeaderTooLarge { limit: self.limit }),
        }
    }

    /// The next `n_bytes` bytes; `what` names them in the error.
    pub(crate) fn bytes(&mut self, n_bytes: u64, what: &'static str) -> Result<&'a [u8], FormatError> {
        let end = usize::try_from(n_bytes).ok().and_then(|n| self.position.checked_add(n));
        let taken = end.and_then(|end| Some((end, self.file.get(self.position..end)?)));
        let Some((end, bytes)) = taken else {
            let (offset, left) = (self.position(), self.left());
            return Err(FormatError::Truncated { what, offset, needed: n_bytes, left });
        };
        self.check_limit(n_bytes)?;
        self.position = end;
        Ok(bytes)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        // Equal lengths by construction: `bytes` returned exactly N.
        for (to, from) in array.iter_mut().zip(self.bytes(N as u64, what)?) {
            *to = *from;
        }
        Ok(array)
    }

    /// The next four bytes as a number.
    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, FormatError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// The next eight bytes as a number.
    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, FormatError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Reads a count of items that take at least `min_bytes` each; returns an error unless that many bytes remain.
    ///
    /// A caller that allocates by this count therefore allocates no more than a fixed multiple of the file's size.
    pub(crate) fn count(&mut self, what: &'static str, min_bytes: u64) -> Result<usize, FormatError> {
        let count = self.u64(what)?;
        self.check_count(count, what, min_bytes)
    }

    /// The check of [`count`](Self::count), for a count that was read before.
    pub(crate) fn check_count(&self, count: u64, what: &'static str, min_bytes: u64) -> Result<usize, FormatError> {
        let left = self.left();
        match (count.checked_mul(min_bytes), usize::try_from(count)) {
            (Some(n_bytes), Ok(count)) if n_bytes <= left => self.check_limit(n_bytes).map(|()| count),
            _ => Err(FormatError::CountTooLarge { what, count, left }),
        }
    }
}
