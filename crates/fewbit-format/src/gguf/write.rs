//! The GGUF writer: writes metadata and tensors to a file that this crate and llama.cpp can read.
//!
//! The header needs only names, shapes and types, so tensor data can be produced while the file is written
//! ([`GgufWriter::tensor_with`]): converting a model needs memory for one tensor, not for all.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use fewbit_quant::TensorType;

use super::parse::{checked_alignment, checked_n_bytes};
use super::{MAGIC, MAX_KEY_BYTES};
use crate::error::FormatError;
use crate::metadata::{Array, Metadata, Value};
use crate::new_file::NewFile;

/// The longest tensor name that llama.cpp reads: its buffer has 64 bytes, including the terminating zero.
const MAX_NAME_BYTES: u64 = 63;

/// Builds a GGUF file.
///
/// ```
/// use fewbit_format::GgufWriter;
/// use fewbit_quant::TensorType;
///
/// let mut writer = GgufWriter::new();
/// writer.set("general.architecture", "llama").set("llama.block_count", 0u32);
/// // Bytes that are at hand, and bytes that are made while the file is written.
/// writer.tensor("output_norm.weight", &[32], TensorType::F32, vec![0; 128])?;
/// writer.tensor_with("token_embd.weight", &[2, 32], TensorType::Q8_0, |out| {
///     out.write_all(&[0; 34])?;
///     out.write_all(&[0; 34])
/// })?;
/// let mut file = Vec::new();
/// let n_bytes = writer.write_to(&mut file)?;
/// assert_eq!(n_bytes, file.len() as u64);
/// # Ok::<(), fewbit_format::FormatError>(())
/// ```
pub struct GgufWriter<'a> {
    version: u32,
    metadata: Metadata,
    tensors: Vec<Tensor<'a>>,
}

struct Tensor<'a> {
    name: String,
    /// Outermost dimension first.
    shape: Vec<u64>,
    ty: TensorType,
    n_bytes: u64,
    data: Data<'a>,
}

/// Writes the bytes of one tensor.
type Source<'a> = dyn FnMut(&mut dyn Write) -> io::Result<()> + 'a;

enum Data<'a> {
    Bytes(Cow<'a, [u8]>),
    Source(Box<Source<'a>>),
}

impl Default for GgufWriter<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> GgufWriter<'a> {
    /// Creates an empty file of version 3.
    pub fn new() -> Self {
        Self { version: 3, metadata: Metadata::default(), tensors: Vec::new() }
    }

    /// Creates a file with the metadata of another one, which [`set`](Self::set) can change.
    pub fn with_metadata(metadata: Metadata) -> Self {
        Self { metadata, ..Self::new() }
    }

    /// Writes version 2 instead of 3; the two versions differ only in this number.
    pub fn version_2(&mut self) -> &mut Self {
        self.version = 2;
        self
    }

    /// Sets a metadata value: replaces the value of an existing key, or adds a new key at the end.
    ///
    /// `general.alignment` sets the alignment of the file.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) -> &mut Self {
        self.metadata.set(key, value);
        self
    }

    /// The metadata so far.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Adds a tensor whose bytes are available now. `shape` has the outermost dimension first.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        shape: &[u64],
        ty: TensorType,
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Result<&mut Self, FormatError> {
        let bytes = bytes.into();
        let tensor = self.new_tensor(name.into(), shape, ty, Data::Bytes(Cow::Borrowed(&[])))?;
        if bytes.len() as u64 != tensor.n_bytes {
            return Err(tensor.wrong_size(bytes.len() as u64));
        }
        self.tensors.push(Tensor { data: Data::Bytes(bytes), ..tensor });
        Ok(self)
    }

    /// Adds a tensor whose bytes are produced while the file is written. `source` is called once per
    /// [`write_to`](Self::write_to), and has to write exactly as many bytes as shape and type require.
    pub fn tensor_with(
        &mut self,
        name: impl Into<String>,
        shape: &[u64],
        ty: TensorType,
        source: impl FnMut(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> Result<&mut Self, FormatError> {
        let tensor = self.new_tensor(name.into(), shape, ty, Data::Source(Box::new(source)))?;
        self.tensors.push(tensor);
        Ok(self)
    }

    fn new_tensor(
        &self,
        name: String,
        shape: &[u64],
        ty: TensorType,
        data: Data<'a>,
    ) -> Result<Tensor<'a>, FormatError> {
        let length = name.len() as u64;
        if length == 0 || length > MAX_NAME_BYTES {
            let index = self.tensors.len();
            return Err(FormatError::TensorNameLength { index, length, limit: MAX_NAME_BYTES });
        }
        if self.tensors.iter().any(|tensor| tensor.name == name) {
            return Err(FormatError::DuplicateTensor { tensor: name });
        }
        let n_bytes = checked_n_bytes(&name, shape, ty)?;
        Ok(Tensor { name, shape: shape.to_vec(), ty, n_bytes, data })
    }

    /// Writes the file and returns its size in bytes.
    pub fn write_to(&mut self, out: &mut impl Write) -> Result<u64, FormatError> {
        let alignment = checked_alignment(&self.metadata)?;
        let header = self.header(alignment)?;
        let mut out = Counted { out, n_bytes: 0 };
        out.write_all(&header).map_err(FormatError::Write)?;
        for tensor in &mut self.tensors {
            out.pad(alignment).map_err(FormatError::Write)?;
            let start = out.n_bytes;
            match &mut tensor.data {
                Data::Bytes(bytes) => out.write_all(bytes),
                Data::Source(source) => source(&mut out),
            }
            .map_err(FormatError::Write)?;
            let written = out.n_bytes - start;
            if written != tensor.n_bytes {
                return Err(tensor.wrong_size(written));
            }
        }
        // llama.cpp expects the last tensor to be padded as well.
        out.pad(alignment).map_err(FormatError::Write)?;
        out.flush().map_err(FormatError::Write)?;
        Ok(out.n_bytes)
    }

    /// Returns the file as bytes.
    pub fn to_bytes(&mut self) -> Result<Vec<u8>, FormatError> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes the file to a path and returns its size in bytes.
    ///
    /// It is written under a temporary name in the same folder and renamed when it is complete. So the path never names
    /// an incomplete file, and a process that has mapped the old file keeps it.
    pub fn write_file(&mut self, path: &Path) -> Result<u64, FormatError> {
        let io_error = |source: io::Error| FormatError::Io { path: path.to_owned(), source };
        let mut file = NewFile::create(path).map_err(io_error)?;
        let n_bytes = self.write_to(&mut file).map_err(|error| match error {
            FormatError::Write(source) => io_error(source),
            other => other,
        })?;
        file.finish().map_err(io_error)?;
        Ok(n_bytes)
    }

    /// The header, without the padding after it.
    fn header(&self, alignment: u64) -> Result<Vec<u8>, FormatError> {
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(self.version.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in self.metadata.iter() {
            let length = key.len() as u64;
            if length == 0 || length > MAX_KEY_BYTES {
                return Err(FormatError::KeyLength { offset: header.len() as u64 + 8, length });
            }
            put_string(&mut header, key.as_bytes());
            put_value(&mut header, key, value)?;
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_string(&mut header, tensor.name.as_bytes());
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for dim in tensor.shape.iter().rev() {
                header.extend(dim.to_le_bytes());
            }
            header.extend(tensor.ty.gguf_id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            let end = offset.checked_add(tensor.n_bytes).and_then(|end| end.checked_next_multiple_of(alignment));
            offset = end.ok_or_else(|| FormatError::TensorTooLarge {
                tensor: tensor.name.clone(),
                shape: tensor.shape.clone(),
            })?;
        }
        Ok(header)
    }
}

impl Tensor<'_> {
    fn wrong_size(&self, found: u64) -> FormatError {
        FormatError::TensorDataSize { tensor: self.name.clone(), expected: self.n_bytes, found }
    }
}

impl std::fmt::Debug for GgufWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tensors: Vec<_> = self.tensors.iter().map(|t| (&t.name, &t.shape, t.ty)).collect();
        f.debug_struct("GgufWriter").field("metadata", &self.metadata).field("tensors", &tensors).finish()
    }
}

/// An output that counts its bytes.
struct Counted<'w, W> {
    out: &'w mut W,
    n_bytes: u64,
}

impl<W: Write> Counted<'_, W> {
    /// Writes zeros up to the next multiple of the alignment.
    fn pad(&mut self, alignment: u64) -> io::Result<()> {
        let n_zeros = self.n_bytes.next_multiple_of(alignment) - self.n_bytes;
        io::copy(&mut io::Read::take(io::repeat(0), n_zeros), self)?;
        Ok(())
    }
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.n_bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn put_string(header: &mut Vec<u8>, bytes: &[u8]) {
    header.extend((bytes.len() as u64).to_le_bytes());
    header.extend(bytes);
}

/// A value, preceded by its type.
fn put_value(header: &mut Vec<u8>, key: &str, value: &Value) -> Result<(), FormatError> {
    header.extend(value.gguf_id().to_le_bytes());
    match value {
        Value::U8(v) => header.extend(v.to_le_bytes()),
        Value::I8(v) => header.extend(v.to_le_bytes()),
        Value::U16(v) => header.extend(v.to_le_bytes()),
        Value::I16(v) => header.extend(v.to_le_bytes()),
        Value::U32(v) => header.extend(v.to_le_bytes()),
        Value::I32(v) => header.extend(v.to_le_bytes()),
        Value::F32(v) => header.extend(v.to_le_bytes()),
        Value::Bool(v) => header.push(u8::from(*v)),
        Value::String(text) => put_string(header, text.as_bytes()),
        Value::Bytes(raw) => put_string(header, raw),
        Value::Array(array) => put_array(header, key, array, 1)?,
        Value::U64(v) => header.extend(v.to_le_bytes()),
        Value::I64(v) => header.extend(v.to_le_bytes()),
        Value::F64(v) => header.extend(v.to_le_bytes()),
    }
    Ok(())
}

/// An array: element type, length, elements.
fn put_array(header: &mut Vec<u8>, key: &str, array: &Array, depth: u32) -> Result<(), FormatError> {
    let limit = super::Limits::default().array_depth;
    if depth > limit {
        return Err(FormatError::ArrayTooDeep { key: key.to_owned(), limit });
    }
    header.extend(array.element_gguf_id().to_le_bytes());
    header.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(list) => header.extend(list),
        Array::I8(list) => header.extend(list.iter().flat_map(|v| v.to_le_bytes())),
        Array::U16(list) => header.extend(list.iter().flat_map(|v| v.to_le_bytes())),
        Array::I16(list) => header.extend(list.iter().flat_map(|v| v.to_le_bytes())),
        Array::U32(list) => header.extend(list.iter().flat_map(|v| v.to_le_bytes())),
        Array::I32(list) => header.extend(list.iter().flat_map(|v| v.to_le_bytes())),
        Array::F32(list) => header.extend(list.iter().flat_map(|v| v.to_le_bytes())),
        Array::Bool(list) => header.extend(list.iter().map(|&v| u8::from(v))),
        Array::String(list) => list.iter().for_each(|text| put_string(header, text.as_bytes())),
        Array::Bytes(list) => list.iter().for_each(|raw| put_string(header, raw)),
        Array::Nested(list) => {
            for inner in list {
                put_array(header, key, inner, depth + 1)?;
            }
        }
        Array::U64(list) => header.extend(list.iter().flat_map(|v| v.to_le_bytes())),
        Array::I64(list) => header.extend(list.iter().flat_map(|v| v.to_le_bytes())),
        Array::F64(list) => header.extend(list.iter().flat_map(|v| v.to_le_bytes())),
    }
    Ok(())
}
