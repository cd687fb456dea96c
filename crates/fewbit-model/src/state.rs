//! Where the state of layers lies: what a segment keeps of a sequence, in pages of [`KV_PAGE`](crate::KV_PAGE)
//! positions.
//!
//! The host knows which page is whose ([`KvCache`](crate::KvCache), [`PrefixTree`](crate::PrefixTree)); what is in a
//! page, and in whose memory, only the store knows that made it. Keys and values are what layers keep today. A latent
//! that stands for both, or a recurrent state of which a page holds the one at its last position, would be other
//! contents of the same pages.

use crate::ModelError;
use std::any::Any;

/// What one segment keeps for one page of one or more sequences. Dropping it gives its memory back.
pub type StatePage = Box<dyn Any + Send + Sync>;

/// Makes and copies the pages of one segment, on its device. It outlives neither its device nor, as far as it can, its
/// memory: sequences keep it when the model is gone, so it should not keep weights alive.
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

    /// A page of its own with the same content.
    ///
    /// # Errors
    /// As [`new_page`](Self::new_page).
    fn copy_page(&self, page: &StatePage) -> Result<StatePage, ModelError>;

    /// Appends the content of a page, layer after layer, in the form that is the same on every device: so that a saved
    /// sequence can go on where the layers are placed differently.
    ///
    /// # Errors
    /// If the device is lost.
    fn save_page(&self, page: &StatePage, out: &mut Vec<u8>) -> Result<(), ModelError>;

    /// A page with the content that [`save_page`](Self::save_page) gave, which has its length.
    ///
    /// # Errors
    /// As [`new_page`](Self::new_page).
    fn load_page(&self, bytes: &[u8]) -> Result<StatePage, ModelError>;
}
