//! Model files for fewbit: validating readers of GGUF and safetensors, and a GGUF writer.
//!
//! A GGUF file is a header (named metadata values, then one record per tensor: name, shape, type, offset) followed by
//! the bytes of the tensors. [`parse`] turns the bytes of a file into a [`Header`] and checks everything that a later
//! reader relies on; [`GgufFile`] maps a file and gives access to the bytes of each tensor; [`GgufWriter`] writes a
//! file that the same reader, and llama.cpp, accept. [`SafetensorsModel`] does for folders of Hugging Face models what
//! [`GgufFile`] does for a GGUF file.
//!
//! ```
//! use fewbit_format::{GgufFile, GgufWriter};
//! use fewbit_quant::TensorType;
//!
//! let mut writer = GgufWriter::new();
//! writer.set("general.architecture", "llama");
//! writer.tensor("output_norm.weight", &[2], TensorType::F32, [0u8; 8].as_slice())?;
//! let file = GgufFile::from_bytes(writer.to_bytes()?)?;
//!
//! assert_eq!(file.metadata().require_str("general.architecture")?, "llama");
//! let norm = file.tensor("output_norm.weight").expect("written above");
//! assert_eq!((norm.shape.as_slice(), norm.ty), (&[2][..], TensorType::F32));
//! assert_eq!(file.tensor_bytes(norm), [0u8; 8]);
//! # Ok::<(), fewbit_format::FormatError>(())
//! ```
//!
//! # Guarantees
//!
//! Model files come from untrusted sources. For any bytes, [`parse`] (and [`safetensors::parse`]) returns a header or a
//! [`FormatError`]: it does not panic, its memory is bounded by a small multiple of the header's size (which [`Limits`]
//! caps), and its time is linear in that size, apart from a sort. If it returns a header, every tensor lies inside the
//! file, has exactly the bytes that its shape and type require, and does not overlap with another tensor. The values of
//! the tensors are not checked.
#![deny(unsafe_code)]

mod bytes;
mod error;
mod file;
pub mod gguf;
mod metadata;
mod mmap;
mod new_file;
mod reader;
pub mod safetensors;

pub use error::{FormatError, FoundInstead};
pub use file::GgufFile;
pub use gguf::{GgufWriter, Header, Limits, TensorInfo, parse, parse_with};
pub use metadata::{Array, Metadata, Value};
// For the other crates of this workspace; not part of the public API.
#[doc(hidden)]
pub use new_file::NewFile;
pub use safetensors::SafetensorsModel;
