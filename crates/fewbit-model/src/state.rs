//! Storage for the state of layers: what a segment keeps for a sequence, in pages of [`KV_PAGE`](crate::KV_PAGE)
//! positions.
//!
//! The host tracks which sequences hold a page ([`KvCache`](crate::KvCache), [`PrefixTree`](crate::PrefixTree)); only
//! the store that created a page knows its content and its memory. Today, layers keep keys and values. Pages could also
//! hold a latent in place of both, or a recurrent state (the one at the page's last position).

use crate::ModelError;
use std::any::Any;

/// The state of one segment for one page. Dropping it frees its memory.
pub type StatePage = Box<dyn Any + Send + Sync>;

/// Creates and copies the pages of one segment, on its device. It should not keep weights alive, because sequences hold
/// it even after the model was dropped.
pub trait StateStore: Send + Sync {
    /// Bytes of the device's memory that one page takes.
    fn page_bytes(&self) -> usize;

    /// Bytes that [`save_page`](Self::save_page) appends.
    fn saved_bytes(&self) -> usize;

    /// An empty page.
    ///
    /// # Errors
    /// If the device has no memory left, or is lost.
    fn new_page(&self) -> Result<StatePage, ModelError>;

    /// A new page with the same content.
    ///
    /// # Errors
    /// As [`new_page`](Self::new_page).
    fn copy_page(&self, page: &StatePage) -> Result<StatePage, ModelError>;

    /// Appends the content of a page, layer by layer, in a format that is the same on every device, so that a saved
    /// sequence can continue with another placement of the layers.
    ///
    /// # Errors
    /// If the device is lost.
    fn save_page(&self, page: &StatePage, out: &mut Vec<u8>) -> Result<(), ModelError>;

    /// Creates a page from the bytes that [`save_page`](Self::save_page) wrote, which have the length that it writes.
    ///
    /// # Errors
    /// As [`new_page`](Self::new_page).
    fn load_page(&self, bytes: &[u8]) -> Result<StatePage, ModelError>;
}
