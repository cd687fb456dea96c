//! The GGUF parser, which turns bytes into a checked [`Header`]. It never opens a file, so tests and fuzzers can pass
//! it any bytes.
//!
//! Counts and lengths are compared with the remaining bytes before anything is allocated for them, all arithmetic is
//! checked, and slices are taken with `get`. A tensor's record is accepted only if its bytes lie in the file, at a
//! multiple of the alignment, and do not overlap with others.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use fewbit_quant::TensorType;

use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Header, Limits, MAGIC, MAX_DIMS, MAX_KEY_BYTES, TensorInfo};
use crate::error::{FormatError, FoundInstead};
use crate::metadata::{ARRAY_ID, Array, Metadata, RawString, Value};
use crate::reader::Cursor;

/// The minimum size of a metadata entry: key length, one byte of key, value type, one byte of value.
const MIN_METADATA_BYTES: u64 = 8 + 1 + 4 + 1;
/// The minimum size of a tensor's record: name length, one byte of name, number of dimensions, one dimension, type,
/// offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;
/// The minimum size of a string: its length.
const MIN_STRING_BYTES: u64 = 8;
/// The minimum size of an array: its element type and length.
const MIN_ARRAY_BYTES: u64 = 4 + 8;

/// Parses and checks the header of a whole GGUF file.
pub fn parse(bytes: &[u8]) -> Result<Header, FormatError> {
    parse_with(bytes, &Limits::default())
}

/// [`parse`] with other limits.
pub fn parse_with(bytes: &[u8], limits: &Limits) -> Result<Header, FormatError> {
    let header = parse_part(bytes, limits)?;
    match split(&header.metadata)? {
        Some((part, count)) => Err(FormatError::Split { part, count }),
        None => Ok(header),
    }
}

/// The number of this part of a split model (from 1) and the number of parts; `None` for a whole model.
pub(crate) fn split(metadata: &Metadata) -> Result<Option<(u64, u64)>, FormatError> {
    match metadata.u64("split.count")? {
        Some(count) if count > 1 => Ok(Some((metadata.u64("split.no")?.unwrap_or(0).saturating_add(1), count))),
        _ => Ok(None),
    }
}

/// As [`parse_with`], but the file may be a part of a split model.
pub(crate) fn parse_part(bytes: &[u8], limits: &Limits) -> Result<Header, FormatError> {
    let mut cursor = Cursor::new(bytes, limits.header_bytes);
    let version = version(&mut cursor, bytes)?;
    let n_tensors = cursor.u64("the tensor count")?;
    let n_metadata = cursor.count("metadata values", MIN_METADATA_BYTES)?;

    let metadata = metadata(&mut cursor, n_metadata, limits)?;
    let alignment = checked_alignment(&metadata)?;

    let n_tensors = cursor.check_count(n_tensors, "tensors", MIN_TENSOR_BYTES)?;
    let mut tensors = Vec::with_capacity(n_tensors);
    let mut index = HashMap::with_capacity(n_tensors);
    for place in 0..n_tensors {
        let tensor = tensor(&mut cursor, place, limits)?;
        match index.entry(tensor.name.clone()) {
            Entry::Occupied(_) => return Err(FormatError::DuplicateTensor { tensor: tensor.name }),
            Entry::Vacant(entry) => entry.insert(place),
        };
        tensors.push(tensor);
    }

    // Cannot overflow: the header is in memory, and the alignment is at most 2^24.
    let data_offset = cursor.position().checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    place_tensors(&mut tensors, data_offset, alignment, bytes.len() as u64)?;
    Ok(Header { version, alignment, data_offset, metadata, tensors, index })
}

/// Reads magic and version, and recognises files that fewbit cannot read.
fn version(cursor: &mut Cursor<'_>, bytes: &[u8]) -> Result<u32, FormatError> {
    if bytes.is_empty() {
        return Err(FormatError::Empty);
    }
    if !bytes.starts_with(&MAGIC) && !MAGIC.starts_with(bytes) {
        return Err(FormatError::NotGguf { found: FoundInstead::guess(bytes) });
    }
    cursor.bytes(MAGIC.len() as u64, "the magic number")?;
    match cursor.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        1 => Err(FormatError::Version1),
        // Versions are small numbers: if the low half is zero, the bytes are in the other order.
        version if version != 0 && version.trailing_zeros() >= 16 => {
            Err(FormatError::BigEndian { version: version.swap_bytes() })
        }
        version => Err(FormatError::UnknownVersion { version }),
    }
}

fn metadata(cursor: &mut Cursor<'_>, n_values: usize, limits: &Limits) -> Result<Metadata, FormatError> {
    let mut metadata = Metadata::default();
    for _ in 0..n_values {
        let length = cursor.u64("the length of a metadata key")?;
        let offset = cursor.position();
        if length == 0 || length > MAX_KEY_BYTES {
            return Err(FormatError::KeyLength { offset, length });
        }
        let key = cursor.bytes(length, "a metadata key")?;
        let key = std::str::from_utf8(key).map_err(|_| FormatError::KeyUtf8 { offset })?;
        if metadata.contains(key) {
            return Err(FormatError::DuplicateKey { key: key.to_owned() });
        }
        let id = cursor.u32("the type of a metadata value")?;
        let value = Values { cursor, key, limits }.value(id)?;
        metadata.set(key, value);
    }
    Ok(metadata)
}

/// Reads the value of one key.
struct Values<'c, 'a> {
    cursor: &'c mut Cursor<'a>,
    key: &'c str,
    limits: &'c Limits,
}

impl<'a> Values<'_, 'a> {
    fn value(&mut self, id: u32) -> Result<Value, FormatError> {
        let what = "a metadata value";
        Ok(match id {
            0 => Value::U8(u8::from_le_bytes(self.cursor.array(what)?)),
            1 => Value::I8(i8::from_le_bytes(self.cursor.array(what)?)),
            2 => Value::U16(u16::from_le_bytes(self.cursor.array(what)?)),
            3 => Value::I16(i16::from_le_bytes(self.cursor.array(what)?)),
            4 => Value::U32(u32::from_le_bytes(self.cursor.array(what)?)),
            5 => Value::I32(i32::from_le_bytes(self.cursor.array(what)?)),
            6 => Value::F32(f32::from_le_bytes(self.cursor.array(what)?)),
            7 => {
                let [byte] = self.cursor.array(what)?;
                Value::Bool(self.bool(byte)?)
            }
            8 => {
                let raw = self.string()?;
                match std::str::from_utf8(raw) {
                    Ok(text) => Value::String(text.to_owned()),
                    Err(_) => Value::Bytes(raw.into()),
                }
            }
            ARRAY_ID => Value::Array(self.array(1)?),
            10 => Value::U64(u64::from_le_bytes(self.cursor.array(what)?)),
            11 => Value::I64(i64::from_le_bytes(self.cursor.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.cursor.array(what)?)),
            _ => return Err(self.unknown_type(id)),
        })
    }

    /// An array: element type, length, elements. `depth` is 1 for an array that is not inside another one.
    fn array(&mut self, depth: u32) -> Result<Array, FormatError> {
        let limit = self.limits.array_depth;
        if depth > limit {
            return Err(FormatError::ArrayTooDeep { key: self.key.to_owned(), limit });
        }
        let id = self.cursor.u32("the element type of an array")?;
        Ok(match id {
            0 => Array::U8(self.numbers(u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(f32::from_le_bytes)?),
            7 => {
                let bytes = self.numbers(|[byte]| byte)?;
                Array::Bool(bytes.into_iter().map(|byte| self.bool(byte)).collect::<Result<_, _>>()?)
            }
            8 => self.strings()?,
            ARRAY_ID => {
                let n = self.cursor.count("arrays", MIN_ARRAY_BYTES)?;
                let depth = depth.saturating_add(1);
                let mut list = Vec::with_capacity(n);
                for _ in 0..n {
                    list.push(self.array(depth)?);
                }
                Array::Nested(list)
            }
            10 => Array::U64(self.numbers(u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(f64::from_le_bytes)?),
            _ => return Err(self.unknown_type(id)),
        })
    }

    /// The length and elements of an array of numbers of `N` bytes each.
    fn numbers<T, const N: usize>(&mut self, from_bytes: impl Fn([u8; N]) -> T) -> Result<Vec<T>, FormatError> {
        let n = self.cursor.count("array elements", N as u64)? as u64;
        let bytes = self.cursor.bytes(n.saturating_mul(N as u64), "an array")?;
        let (elements, _) = bytes.as_chunks::<N>();
        Ok(elements.iter().map(|&element| from_bytes(element)).collect())
    }

    /// The length and elements of an array of strings.
    fn strings(&mut self) -> Result<Array, FormatError> {
        let n = self.cursor.count("strings", MIN_STRING_BYTES)?;
        let mut texts = Vec::with_capacity(n);
        for _ in 0..n {
            let raw = self.string()?;
            match std::str::from_utf8(raw) {
                Ok(text) => texts.push(text.to_owned()),
                Err(_) => return self.raw_strings(n, texts, raw),
            }
        }
        Ok(Array::String(texts))
    }

    /// Reads the rest of an array of strings after one of them, `raw`, turned out not to be UTF-8.
    fn raw_strings(&mut self, n: usize, texts: Vec<String>, raw: &[u8]) -> Result<Array, FormatError> {
        let mut list: Vec<RawString> = Vec::with_capacity(n);
        list.extend(texts.into_iter().map(|text| text.into_bytes().into_boxed_slice()));
        list.push(raw.into());
        while list.len() < n {
            list.push(self.string()?.into());
        }
        Ok(Array::Bytes(list))
    }

    /// The bytes of a string.
    fn string(&mut self) -> Result<&'a [u8], FormatError> {
        let length = self.cursor.u64("the length of a string")?;
        let limit = self.limits.string_bytes;
        // Read before the limit is checked: a length beyond the end of the file means a damaged file, not a long
        // string.
        let raw = self.cursor.bytes(length, "a string")?;
        if length > limit {
            return Err(FormatError::StringTooLong { key: self.key.to_owned(), length, limit });
        }
        Ok(raw)
    }

    fn bool(&self, byte: u8) -> Result<bool, FormatError> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(FormatError::InvalidBool { key: self.key.to_owned(), value }),
        }
    }

    fn unknown_type(&self, id: u32) -> FormatError {
        FormatError::ValueType { key: self.key.to_owned(), id }
    }
}

/// Reads one tensor's record. Its offset is still relative to the start of the tensor data, as in the file.
fn tensor(cursor: &mut Cursor<'_>, index: usize, limits: &Limits) -> Result<TensorInfo, FormatError> {
    let length = cursor.u64("the length of a tensor name")?;
    let limit = limits.tensor_name_bytes;
    if length == 0 || length > limit {
        return Err(FormatError::TensorNameLength { index, length, limit });
    }
    let name = cursor.bytes(length, "a tensor name")?;
    let name = std::str::from_utf8(name).map_err(|_| FormatError::TensorNameUtf8 { index })?.to_owned();

    let n_dims = cursor.u32("the number of dimensions")?;
    if !(1..=MAX_DIMS).contains(&n_dims) {
        return Err(FormatError::DimensionCount { tensor: name, n_dims: n_dims.into() });
    }
    let mut shape = Vec::with_capacity(n_dims as usize);
    for _ in 0..n_dims {
        shape.push(cursor.u64("a dimension")?);
    }
    shape.reverse();

    let id = cursor.u32("a tensor type")?;
    let offset = cursor.u64("a tensor offset")?;
    let Some(ty) = TensorType::from_gguf_id(id) else {
        return Err(FormatError::TensorTypeId { tensor: name, id });
    };
    let n_bytes = checked_n_bytes(&name, &shape, ty)?;
    Ok(TensorInfo { name, shape, ty, offset, n_bytes })
}

/// Converts the tensors' offsets to offsets from the start of the file, and checks that they lie in it without overlap.
fn place_tensors(
    tensors: &mut [TensorInfo],
    data_offset: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<(), FormatError> {
    for tensor in tensors.iter_mut() {
        if !tensor.offset.is_multiple_of(alignment) {
            let (name, offset) = (tensor.name.clone(), tensor.offset);
            return Err(FormatError::MisalignedTensor { tensor: name, offset, alignment });
        }
        let offset = data_offset.saturating_add(tensor.offset);
        if offset.checked_add(tensor.n_bytes).is_none_or(|end| end > file_bytes) {
            let (name, n_bytes) = (tensor.name.clone(), tensor.n_bytes);
            return Err(FormatError::TensorOutOfBounds { tensor: name, offset, n_bytes, file_bytes });
        }
        tensor.offset = offset;
    }

    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    for (first, second) in by_offset.iter().zip(by_offset.iter().skip(1)) {
        // Does not overflow, because the end is known to lie in the file.
        if first.offset.saturating_add(first.n_bytes) > second.offset {
            return Err(FormatError::OverlappingTensors { first: first.name.clone(), second: second.name.clone() });
        }
    }
    Ok(())
}

/// The checks of a tensor's shape that reading and writing share; returns its size in bytes.
pub(super) fn checked_n_bytes(tensor: &str, shape: &[u64], ty: TensorType) -> Result<u64, FormatError> {
    let name = || tensor.to_owned();
    let n_dims = shape.len() as u64;
    let n_cols = match shape.last() {
        Some(&n_cols) if n_dims <= u64::from(MAX_DIMS) => n_cols,
        _ => return Err(FormatError::DimensionCount { tensor: name(), n_dims }),
    };
    if shape.contains(&0) {
        return Err(FormatError::ZeroDimension { tensor: name(), shape: shape.to_vec() });
    }
    let block_elems = ty.block_elems() as u64;
    if !n_cols.is_multiple_of(block_elems) {
        return Err(FormatError::NotWholeBlocks { tensor: name(), ty, n_cols });
    }
    // Both the number of elements and the number of bytes must fit into 64 bits: quantized types have fewer bytes than
    // elements.
    let n_elems = shape.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
    let n_bytes = n_elems
        .and_then(|n| n.checked_div(block_elems))
        .and_then(|n_blocks| n_blocks.checked_mul(ty.block_bytes() as u64));
    n_bytes.ok_or_else(|| FormatError::TensorTooLarge { tensor: name(), shape: shape.to_vec() })
}

/// The checks of an alignment that reading and writing share.
pub(super) fn checked_alignment(metadata: &Metadata) -> Result<u64, FormatError> {
    let alignment = metadata.u64(ALIGNMENT_KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || !(8..=1 << 24).contains(&alignment) {
        return Err(FormatError::Alignment { found: alignment });
    }
    Ok(alignment)
}
