//! The safetensors container, and models made of several such files.
//!
//! ```text
//! header length u64 (little-endian) | header: a JSON object | tensor data
//! header: { "NAME": { "dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12] }, ...,
//!           "__metadata__": { "KEY": "VALUE", ... } }
//! ```
//!
//! Offsets are relative to the start of the tensor data, which the tensors fill from end to end without gaps. A large
//! model is split into several files, and `model.safetensors.index.json` lists which tensor is in which file:
//! `{ "weight_map": { "NAME": "FILE", ... } }`.
//!
//! The header is parsed here and not by the crate `safetensors`, which the tests use to write files and to compare
//! with. This way, each error names its tensor, and duplicate names are rejected.

mod parse;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use fewbit_quant::TensorType;

use crate::bytes::FileBytes;
use crate::error::FormatError;

pub use parse::{parse, parse_index};

/// The name of the only file of a model that is not split.
const SINGLE: &str = "model.safetensors";
/// The name of the file that lists which tensor is in which file.
const INDEX: &str = "model.safetensors.index.json";

/// The contents of a safetensors header.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Header {
    /// The strings under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// The tensors, in the order of their bytes in the file.
    pub tensors: Vec<TensorInfo>,
}

/// One tensor's record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// The name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// The dimensions, outermost first; empty for a scalar. Unlike in GGUF, a dimension may be 0.
    pub shape: Vec<u64>,
    /// The type of the elements.
    pub dtype: Dtype,
    /// The file of the model that holds the bytes: an index into [`SafetensorsModel::shards`].
    pub shard: usize,
    /// Where the bytes begin, from the start of that file.
    pub offset: u64,
    /// Number of bytes.
    pub n_bytes: u64,
}

/// Declares [`Dtype`] with the names and sizes of its types.
macro_rules! dtypes {
    ($($variant:ident, $name:literal, $bits:literal, $tensor_type:expr;)*) => {
        /// The element types of the safetensors format.
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Dtype {
            $($variant,)*
        }

        impl Dtype {
            /// The type with this name, which is in capitals as in the format.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The name in safetensors files.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The bits of one element.
            pub fn bits(self) -> u64 {
                match self {
                    $(Self::$variant => $bits,)*
                }
            }

            /// The corresponding type in GGUF; `None` if there is none.
            pub fn tensor_type(self) -> Option<TensorType> {
                match self {
                    $(Self::$variant => $tensor_type,)*
                }
            }
        }
    };
}

dtypes! {
    BOOL, "BOOL", 8, None;
    F4, "F4", 4, None;
    F6_E2M3, "F6_E2M3", 6, None;
    F6_E3M2, "F6_E3M2", 6, None;
    U8, "U8", 8, None;
    I8, "I8", 8, Some(TensorType::I8);
    F8_E5M2, "F8_E5M2", 8, None;
    F8_E4M3, "F8_E4M3", 8, None;
    F8_E8M0, "F8_E8M0", 8, None;
    F8_E4M3FNUZ, "F8_E4M3FNUZ", 8, None;
    F8_E5M2FNUZ, "F8_E5M2FNUZ", 8, None;
    I16, "I16", 16, Some(TensorType::I16);
    U16, "U16", 16, None;
    F16, "F16", 16, Some(TensorType::F16);
    BF16, "BF16", 16, Some(TensorType::BF16);
    I32, "I32", 32, Some(TensorType::I32);
    U32, "U32", 32, None;
    F32, "F32", 32, Some(TensorType::F32);
    C64, "C64", 64, None;
    F64, "F64", 64, Some(TensorType::F64);
    I64, "I64", 64, Some(TensorType::I64);
    U64, "U64", 64, None;
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// The tensors of a safetensors model, which is one file or several.
///
/// As with [`GgufFile`](crate::GgufFile), headers are parsed once, and the files must not be changed in place
/// while they are open.
///
/// ```no_run
/// use std::path::Path;
///
/// let model = fewbit_format::SafetensorsModel::open(Path::new("SmolLM2-135M-Instruct"))?;
/// let norm = model.tensor("model.norm.weight").expect("every Llama has one");
/// println!("{:?} {}: {} bytes", norm.shape, norm.dtype, model.tensor_bytes(norm).len());
/// # Ok::<(), fewbit_format::FormatError>(())
/// ```
#[derive(Debug)]
pub struct SafetensorsModel {
    shards: Vec<Shard>,
    metadata: BTreeMap<String, String>,
    tensors: Vec<TensorInfo>,
    /// Index of each name in `tensors`.
    index: HashMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    bytes: FileBytes,
    path: Option<PathBuf>,
}

impl SafetensorsModel {
    /// Opens a model: its folder, its `model.safetensors.index.json`, or a single `.safetensors` file.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let path = if path.is_dir() {
            let candidates = [path.join(INDEX), path.join(SINGLE)];
            let found = candidates.into_iter().find(|candidate| candidate.exists());
            found.ok_or_else(|| FormatError::NoModelInFolder { path: path.to_owned() })?
        } else {
            path.to_owned()
        };
        if path.extension().is_some_and(|extension| extension == "json") {
            return Self::open_index(&path);
        }
        let mut model = Self::empty();
        model.add(FileBytes::open(&path)?, Some(path))?;
        Ok(model)
    }

    /// Parses a single file in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, FormatError> {
        let mut model = Self::empty();
        model.add(FileBytes::Owned(bytes), None)?;
        Ok(model)
    }

    fn open_index(path: &Path) -> Result<Self, FormatError> {
        let weight_map = parse_index(&FileBytes::open(path)?)?;
        let mut model = Self::empty();
        let names: BTreeSet<_> = weight_map.values().collect();
        let mut places = HashMap::new();
        for (place, name) in names.into_iter().enumerate() {
            let shard = path.with_file_name(name);
            let bytes = FileBytes::open(&shard).map_err(|error| match error {
                FormatError::NotFound { path } => FormatError::MissingShard { path },
                other => other,
            })?;
            model.add(bytes, Some(shard))?;
            places.insert(name.as_str(), place);
        }
        for (name, shard) in &weight_map {
            if model.tensor(name).map(|tensor| tensor.shard) != places.get(shard.as_str()).copied() {
                return Err(FormatError::MissingTensor { tensor: name.clone(), shard: shard.clone() });
            }
        }
        Ok(model)
    }

    fn empty() -> Self {
        Self { shards: Vec::new(), metadata: BTreeMap::new(), tensors: Vec::new(), index: HashMap::new() }
    }

    /// Adds the tensors of one more file.
    fn add(&mut self, bytes: FileBytes, path: Option<PathBuf>) -> Result<(), FormatError> {
        let header = parse(&bytes)?;
        let shard = self.shards.len();
        self.shards.push(Shard { bytes, path });
        self.metadata.extend(header.metadata);
        for tensor in header.tensors {
            if self.index.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                return Err(FormatError::DuplicateTensor { tensor: tensor.name });
            }
            self.tensors.push(TensorInfo { shard, ..tensor });
        }
        Ok(())
    }

    /// The strings under `__metadata__`. For several files, their entries are merged, and the last file wins.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensors, file by file in the order of the file names, and in the order of their bytes within each file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).and_then(|&place| self.tensors.get(place))
    }

    /// The paths of the files; `None` for one that was given as bytes.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = Option<&Path>> {
        self.shards.iter().map(|shard| shard.path.as_deref())
    }

    /// The size of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes.len() as u64).sum()
    }

    /// The bytes of a tensor of this model, little-endian, row after row.
    ///
    /// # Panics
    ///
    /// If the record does not come from this model and refers to bytes that the model does not have.
    pub fn tensor_bytes(&self, tensor: &TensorInfo) -> &[u8] {
        self.shards
            .get(tensor.shard)
            .and_then(|shard| shard.bytes.slice(tensor.offset, tensor.n_bytes))
            .expect("a tensor of this model lies inside its file, as the parser checked")
    }

    /// Tells the operating system that a tensor's bytes are no longer needed, for example after they were copied into
    /// another layout: their pages stop counting towards the memory of this process. They can still be read.
    pub fn release(&self, tensor: &TensorInfo) {
        if let Some(shard) = self.shards.get(tensor.shard) {
            shard.bytes.release(tensor.offset, tensor.n_bytes);
        }
    }
}
