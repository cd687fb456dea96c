//! The lower-level crates, and model files that are opened but not loaded: for tools, measurements, and models of your
//! own. This module changes more often than the rest of the API.
//!
//! ```
//! # fn main() -> Result<(), fewbit::expert::format::FormatError> {
//! use fewbit::expert::format::GgufWriter;
//!
//! let mut file = GgufWriter::new();
//! file.set("general.name", "nothing");
//! # Ok(()) }
//! ```

pub use fewbit_format as format;
pub use fewbit_model as engine;
pub use fewbit_tokenizer as tokenizer;

pub use crate::device::{DeviceOptions, memory_size};
pub use crate::file::{ModelFile, open, open_tokenizer};

/// The decoder of a loaded model: logits of tokens, its weights, and caches of your own.
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// let model = fewbit::Model::load("smollm2-135m-instruct")?;
/// println!("{} MB of weights", fewbit::expert::decoder(&model).weight_bytes() / 1_000_000);
/// # Ok(()) }
/// ```
pub fn decoder(model: &crate::Model) -> &engine::Decoder {
    model.decoder()
}
