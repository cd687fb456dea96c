//! The GGUF container.
//!
//! ```text
//! magic "GGUF" | version u32 | tensor count u64 | metadata count u64          (all little-endian)
//! metadata:  key string | value type u32 | value                              (count times)
//! tensors:   name string | dimensions u32 | dimension u64 ... | type u32 | offset u64   (count times)
//! padding to a multiple of the alignment
//! tensor data: each tensor at its offset from here, itself a multiple of the alignment
//! ```
//!
//! A string is its length in bytes as a u64, then its bytes. An array is its element type (u32), its length (u64), then
//! its elements; an element that is an array has its own type and length. The alignment is the metadata value
//! `general.alignment`, or 32. Versions 2 and 3 have this layout; version 1 had 32-bit lengths. See the specification:
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod parse;
mod write;

use std::collections::HashMap;

use fewbit_quant::TensorType;

use crate::error::FormatError;
use crate::metadata::Metadata;

pub use parse::{parse, parse_with};
pub(crate) use parse::{parse_part, split};
pub use write::GgufWriter;

/// The first bytes of every GGUF file.
const MAGIC: [u8; 4] = *b"GGUF";
/// The metadata key of the alignment.
const ALIGNMENT_KEY: &str = "general.alignment";
/// The alignment of a file that does not specify one.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The longest metadata key in bytes, as specified.
const MAX_KEY_BYTES: u64 = 65_535;
/// The most dimensions a tensor can have.
const MAX_DIMS: u32 = 4;

/// The contents of a file's header: everything except the bytes of the tensors.
#[derive(Clone, Debug)]
pub struct Header {
    /// The version of the format, 2 or 3.
    pub version: u32,
    /// Every tensor begins at a multiple of this many bytes from `data_offset`.
    pub alignment: u64,
    /// Where the tensor data begins, in bytes from the start of the file.
    pub data_offset: u64,
    /// The named values.
    pub metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Index of each name in `tensors`.
    index: HashMap<String, usize>,
}

impl Header {
    /// The tensors, in the order of their records in the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Adds the tensors of the next file of a split model, whose bytes begin at `start`.
    pub(crate) fn extend(&mut self, part: Self, start: u64) -> Result<(), FormatError> {
        for mut tensor in part.tensors {
            if self.index.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                return Err(FormatError::DuplicateTensor { tensor: tensor.name });
            }
            tensor.offset = tensor.offset.saturating_add(start);
            self.tensors.push(tensor);
        }
        Ok(())
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).and_then(|&place| self.tensors.get(place))
    }
}

/// One tensor's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// The dimensions, outermost first: `[n_rows, n_cols]` for a matrix. This is the reverse of the order in the file.
    /// The last dimension is contiguous, and a whole number of blocks.
    pub shape: Vec<u64>,
    /// The type of the elements.
    pub ty: TensorType,
    /// Where the bytes begin, from the start of the file. For a model of several files, the offset is that in the
    /// concatenation of the files.
    pub offset: u64,
    /// Number of bytes.
    pub n_bytes: u64,
}

impl TensorInfo {
    /// The number of elements.
    pub fn n_elems(&self) -> u64 {
        // Cannot overflow for a parsed tensor, whose size in bytes was computed with checks; saturates for one that was
        // constructed by hand.
        self.shape.iter().fold(1, |n, &dim| n.saturating_mul(dim))
    }
}

/// Limits on what a file may make its reader allocate. The defaults are several times what real models need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest header, in bytes: metadata and tensor records.
    pub header_bytes: u64,
    /// The longest string value, in bytes. Chat templates take up to about 100 KB; some files hold a whole tokenizer in
    /// one string.
    pub string_bytes: u64,
    /// The longest tensor name, in bytes. The specification and llama.cpp allow 64; files from tools that were built
    /// with a larger limit have up to 128.
    pub tensor_name_bytes: u64,
    /// How deep arrays may be nested; 1 is an array of plain values.
    pub array_depth: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { header_bytes: 256 << 20, string_bytes: 64 << 20, tensor_name_bytes: 128, array_depth: 4 }
    }
}
