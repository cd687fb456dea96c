//! A read-only memory map of a file. This is the only module of this crate with unsafe code.
//!
//! A map allows a model of many gigabytes to be read without a copy and to be shared between processes through the page
//! cache. In return, nobody may change the file while it is mapped, which the compiler cannot check.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};

use memmap2::{Mmap, MmapOptions};

/// A mapped file.
///
/// # If the file changes while it is mapped
///
/// fewbit never writes to a file that it has mapped, and [`GgufWriter::write_file`](crate::GgufWriter::write_file)
/// replaces files by renaming, which leaves the maps of the old file intact. If another program writes to the file
/// anyway, tensors may be read half old, half new: the numbers are then wrong, but every offset stays inside the map,
/// because the header was parsed once and is stored outside the map. If another program makes the file *shorter*,
/// reading the lost pages ends the process with a signal (SIGBUS), as in every program that maps files. Replace model
/// files by renaming, never in place.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: Mmap,
}

impl Mapping {
    /// Maps the first `n_bytes` bytes of a file, which must not be 0.
    pub(crate) fn new(file: &File, n_bytes: usize) -> io::Result<Self> {
        // SAFETY: the precondition is that the mapped bytes do not change while they are borrowed. The map
        // is read-only, so this process cannot change them through it; for other programs it is a
        // requirement on the user, stated above with what happens if it is broken.
        let map = unsafe { MmapOptions::new().len(n_bytes).map(file)? };
        Ok(Self { map })
    }

    /// Tells the operating system that these bytes are not needed for now, so that they stop counting towards the
    /// memory of this process; reading them again fetches them from the file. Errors are ignored, because they do no
    /// harm; on systems without such advice the call does nothing.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if range.start < range.end && range.end <= self.map.len() {
            // SAFETY: `DontNeed` is unchecked because it throws away changes in private memory. This map is
            // a shared, read-only one of a file: it has no changes to lose, and a page dropped while
            // another thread borrows it is read again from the file, with the same bytes.
            let _ = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
