//! The safetensors parser, which turns bytes into a checked [`Header`]. It never opens a file.
//!
//! The JSON is read entry by entry, so that duplicate names are found, and memory stays within a small multiple of the
//! header. A tensor's record is accepted only if its bytes lie in the file, directly after those of the previous
//! tensor, and are as many as its shape and type require.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Component, Path};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::{Dtype, Header, TensorInfo};
use crate::error::{FormatError, FoundInstead};
use crate::reader::Cursor;

/// The longest header that the format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The longest index. The largest models have about 100,000 tensors, at about 100 bytes each.
const MAX_INDEX_BYTES: u64 = 100_000_000;
/// The only key that is not the name of a tensor.
const METADATA_KEY: &str = "__metadata__";

/// Parses and checks the header of a whole safetensors file.
pub fn parse(bytes: &[u8]) -> Result<Header, FormatError> {
    if bytes.is_empty() {
        return Err(FormatError::Empty);
    }
    // In files of other formats, the ninth byte is hardly ever a `{`.
    if bytes.get(8).is_some_and(|&first| first != b'{') || bytes.starts_with(b"GGUF") {
        return Err(FormatError::NotSafetensors { found: FoundInstead::guess(bytes) });
    }
    let mut cursor = Cursor::new(bytes, MAX_HEADER_BYTES.saturating_add(8));
    let n_header = cursor.u64("the header length")?;
    let json = cursor.bytes(n_header, "the header")?;
    let Entries { metadata, records } = serde_json::from_slice(json).map_err(FormatError::HeaderJson)?;

    let mut names = HashSet::with_capacity(records.len());
    for (name, _) in &records {
        if !names.insert(name.as_str()) {
            return Err(FormatError::DuplicateTensor { tensor: name.clone() });
        }
    }
    drop(names);
    let data_offset = cursor.position();
    let tensors = records.into_iter().map(|(name, record)| record.check(name, data_offset));
    let mut tensors = tensors.collect::<Result<Vec<_>, _>>()?;
    // Tensors at equal offsets (those without bytes) are sorted by name, so that the order is deterministic.
    tensors.sort_by(|a, b| (a.offset, a.n_bytes, &a.name).cmp(&(b.offset, b.n_bytes, &b.name)));
    check_places(&tensors, data_offset, bytes.len() as u64)?;

    let mut header = Header { tensors, ..Header::default() };
    for (key, value) in metadata.0 {
        if header.metadata.insert(key.clone(), value).is_some() {
            return Err(FormatError::DuplicateKey { key });
        }
    }
    Ok(header)
}

/// Parses an index, which maps tensors to files. Every file name must be plain, without a folder.
pub fn parse_index(bytes: &[u8]) -> Result<BTreeMap<String, String>, FormatError> {
    if bytes.len() as u64 > MAX_INDEX_BYTES {
        return Err(FormatError::HeaderTooLarge { limit: MAX_INDEX_BYTES });
    }
    let index: Index = serde_json::from_slice(bytes).map_err(FormatError::IndexJson)?;
    let mut weight_map = BTreeMap::new();
    for (tensor, shard) in index.weight_map.0 {
        if !is_plain_name(&shard) {
            return Err(FormatError::ShardName { shard });
        }
        if weight_map.insert(tensor.clone(), shard).is_some() {
            return Err(FormatError::DuplicateTensor { tensor });
        }
    }
    Ok(weight_map)
}

/// Whether a name stays in its folder on every system: no separators, no drive, no `..`.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let one = matches!((components.next(), components.next()), (Some(Component::Normal(part)), None) if part == name);
    one && !name.contains(['/', '\\', ':', '\0'])
}

/// Checks that the tensors fill the tensor data from end to end.
fn check_places(tensors: &[TensorInfo], data_offset: u64, file_bytes: u64) -> Result<(), FormatError> {
    let mut end = data_offset;
    let mut before: Option<&TensorInfo> = None;
    for tensor in tensors {
        let TensorInfo { name, offset, n_bytes, .. } = tensor;
        if let Some(first) = before.filter(|_| *offset < end) {
            return Err(FormatError::OverlappingTensors { first: first.name.clone(), second: name.clone() });
        }
        if *offset > end {
            return Err(FormatError::UnusedBytes { offset: end, n_bytes: offset.saturating_sub(end) });
        }
        end = match offset.checked_add(*n_bytes) {
            Some(end) if end <= file_bytes => end,
            _ => {
                let (tensor, offset, n_bytes) = (name.clone(), *offset, *n_bytes);
                return Err(FormatError::TensorOutOfBounds { tensor, offset, n_bytes, file_bytes });
            }
        };
        before = Some(tensor);
    }
    match file_bytes.saturating_sub(end) {
        0 => Ok(()),
        n_bytes => Err(FormatError::UnusedBytes { offset: end, n_bytes }),
    }
}

/// A tensor's record as it is in the header.
#[derive(Deserialize)]
struct Record {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Record {
    fn check(self, name: String, data_offset: u64) -> Result<TensorInfo, FormatError> {
        let Self { dtype, shape, data_offsets: (start, end) } = self;
        let Some(dtype) = Dtype::from_name(&dtype) else {
            return Err(FormatError::UnknownDtype { tensor: name, dtype });
        };
        let Some(found) = end.checked_sub(start) else {
            return Err(FormatError::InvertedOffsets { tensor: name, start, end });
        };
        let n_bits = shape.iter().try_fold(dtype.bits(), |n, &dim| n.checked_mul(dim));
        let (Some(n_bits), Some(offset)) = (n_bits, data_offset.checked_add(start)) else {
            return Err(FormatError::TensorTooLarge { tensor: name, shape });
        };
        if !n_bits.is_multiple_of(8) {
            return Err(FormatError::PartialByte { tensor: name, shape, dtype });
        }
        let expected = n_bits >> 3;
        if expected != found {
            return Err(FormatError::TensorDataSize { tensor: name, expected, found });
        }
        Ok(TensorInfo { name, shape, dtype, shard: 0, offset, n_bytes: found })
    }
}

/// The header's entries in the order of the file, including duplicate names.
struct Entries {
    metadata: Pairs,
    records: Vec<(String, Record)>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entries, M::Error> {
                let mut entries = Entries { metadata: Pairs(Vec::new()), records: Vec::new() };
                while let Some(key) = map.next_key::<String>()? {
                    if key == METADATA_KEY {
                        entries.metadata.0.extend(map.next_value::<Pairs>()?.0);
                    } else {
                        entries.records.push((key, map.next_value()?));
                    }
                }
                Ok(entries)
            }
        }

        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// The index. Its other entry, `metadata`, holds a total size, which the files themselves give more reliably.
#[derive(Deserialize)]
struct Index {
    weight_map: Pairs,
}

/// An object of strings in the order of the file, including duplicate keys.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;

        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Pairs, M::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor)
    }
}
