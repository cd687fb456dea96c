//! One test for each [`FormatError`], made by changing a few bytes of a valid file.
//!
//! The last test compares this file, and its counterpart for safetensors, with the enum, so that every variant has a
//! test.

use fewbit_format::{
    Array, FormatError, FoundInstead, GgufFile, GgufWriter, Limits, Metadata, Value, parse, parse_with,
};
use fewbit_quant::TensorType;

use crate::samples::{counting, full, small, split};

/// Asserts that an expression is an error of the given pattern, and that its message is one plain line.
macro_rules! assert_error {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {{
        let error = $result.expect_err("an error is expected");
        assert!(matches!(&error, $pattern $(if $guard)?), "found {error:?}");
        let message = error.to_string();
        assert!(!message.is_empty() && !message.chars().any(char::is_control), "{message:?}");
        message
    }};
}

/// A file, and the means to change it.
struct Bytes(Vec<u8>);

impl Bytes {
    fn of(mut writer: GgufWriter<'_>) -> Self {
        Self(writer.to_bytes().unwrap())
    }

    /// The end of the only occurrence of `text`.
    fn after(&self, text: &str) -> usize {
        let mut found = self.0.windows(text.len()).enumerate().filter(|(_, window)| *window == text.as_bytes());
        let (at, _) = found.next().expect("the text is in the file");
        assert!(found.next().is_none(), "{text} occurs twice");
        at + text.len()
    }

    /// Overwrites the bytes `skip` bytes after the end of `text`.
    fn patch(mut self, text: &str, skip: usize, new: &[u8]) -> Self {
        let at = self.after(text) + skip;
        self.0[at..at + new.len()].copy_from_slice(new);
        self
    }

    /// Overwrites the length in front of `text`.
    fn patch_length(mut self, text: &str, length: u64) -> Self {
        let at = self.after(text) - text.len() - 8;
        self.0[at..at + 8].copy_from_slice(&length.to_le_bytes());
        self
    }

    /// Overwrites the first occurrence of a text by another of the same length.
    fn rename(self, text: &str, new: &[u8]) -> Self {
        let at = self.after(text) - text.len();
        self.at(at, new)
    }

    /// Overwrites the bytes at a position.
    fn at(mut self, at: usize, new: &[u8]) -> Self {
        self.0[at..at + new.len()].copy_from_slice(new);
        self
    }

    fn parse(&self) -> Result<(), FormatError> {
        parse(&self.0).map(|_| ())
    }
}

/// Where the counts stand.
const TENSOR_COUNT: usize = 8;
const METADATA_COUNT: usize = 16;
// What follows the name in the record of `tensor.a`, which has two dimensions, and in that of `tensor.b`.
const N_DIMS: usize = 0;
const A_COLS: usize = 4;
const A_ROWS: usize = 12;
const A_TYPE: usize = 20;
const B_OFFSET: usize = 16;

#[test]
fn samples_are_valid_before_corruption() {
    Bytes::of(small()).parse().unwrap();
    Bytes::of(full()).parse().unwrap();
}

// Opening a file.

#[test]
fn missing_file() {
    let folder = tempfile::tempdir().unwrap();
    let message = assert_error!(
        GgufFile::open(&folder.path().join("no.gguf")),
        FormatError::NotFound { path } if path.ends_with("no.gguf")
    );
    assert!(message.contains("no.gguf"));
}

#[test]
fn path_is_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    assert_error!(GgufFile::open(folder.path()), FormatError::IsDirectory { .. });
}

#[cfg(unix)]
#[test]
fn path_is_a_device() {
    assert_error!(GgufFile::open("/dev/null".as_ref()), FormatError::NotAFile { .. });
}

#[cfg(unix)]
#[test]
fn path_below_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().join("model.gguf");
    assert_error!(GgufFile::open(&path), FormatError::Io { path: p, .. } if *p == path);
}

#[test]
fn write_error_is_returned() {
    assert_error!(small().write_to(&mut [0; 100].as_mut_slice()), FormatError::Write(_));
}

// The first bytes.

#[test]
fn empty_file() {
    assert_error!(parse(&[]), FormatError::Empty);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.gguf");
    std::fs::write(&path, []).unwrap();
    assert_error!(GgufFile::open(&path), FormatError::Empty);
}

#[test]
fn other_kinds_of_files() {
    let cases: [(&[u8], FoundInstead); 11] = [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", FoundInstead::LfsPointer),
        (b"\n<!DOCTYPE html><html>", FoundInstead::WebPage),
        (b"<HTML>", FoundInstead::WebPage),
        (b"tjgg\x03\0\0\0", FoundInstead::OldGgml),
        (b"lmgg\x03\0\0\0", FoundInstead::OldGgml),
        (b"\x40\0\0\0\0\0\0\0{\"a\":{}}", FoundInstead::Safetensors),
        (b"PK\x03\x04\0\0", FoundInstead::Zip),
        (b"# A readme\n", FoundInstead::Text),
        (b"gr\xc3\xbc\xc3", FoundInstead::Text),
        (b"\x7fELF\x02\x01", FoundInstead::Binary(*b"\x7fELF")),
        (b"\xff\xfe", FoundInstead::Binary([0xff, 0xfe, 0, 0])),
    ];
    for (bytes, expected) in cases {
        let message = assert_error!(parse(bytes), FormatError::NotGguf { found } if *found == expected);
        assert!(message.starts_with("not a GGUF file"));
    }
}

#[test]
fn big_endian() {
    let bytes = Bytes::of(small()).at(4, &3u32.to_be_bytes());
    assert_error!(bytes.parse(), FormatError::BigEndian { version: 3 });
}

#[test]
fn version_1() {
    assert_error!(Bytes::of(small()).at(4, &1u32.to_le_bytes()).parse(), FormatError::Version1);
}

#[test]
fn unknown_version() {
    for version in [0, 4, 70_000] {
        let bytes = Bytes::of(small()).at(4, &u32::to_le_bytes(version));
        assert_error!(bytes.parse(), FormatError::UnknownVersion { version: v } if *v == version);
    }
}

// Sizes and counts.

#[test]
fn cut_inside_the_header() {
    let bytes = Bytes::of(small());
    let end = bytes.after("tensor.b") + 6;
    assert_error!(
        parse(&bytes.0[..end]),
        FormatError::Truncated { what: "a dimension", offset, needed: 8, left: 2 } if *offset == end as u64 - 2
    );
    let mut writer = small();
    writer.set("a key of some length", 1u8);
    let bytes = Bytes::of(writer);
    let end = bytes.after("a key of some");
    assert_error!(
        parse(&bytes.0[..end]),
        FormatError::Truncated { what: "a metadata key", offset, needed: 20, left: 13 } if *offset == end as u64 - 13
    );
    assert_error!(parse(b"GG"), FormatError::Truncated { needed: 4, left: 2, .. });
}

#[test]
fn length_beyond_the_file() {
    for length in [1 << 20, u64::MAX] {
        let bytes = Bytes::of(small()).patch_length("value", length);
        assert_error!(bytes.parse(), FormatError::Truncated { what: "a string", needed, .. } if *needed == length);
    }
}

#[test]
fn more_values_than_bytes() {
    for count in [1 << 20, 1 << 40, u64::MAX] {
        let bytes = Bytes::of(small()).at(METADATA_COUNT, &u64::to_le_bytes(count));
        assert_error!(bytes.parse(), FormatError::CountTooLarge { what: "metadata values", count: c, .. } if *c == count);
    }
}

#[test]
fn more_tensors_than_bytes() {
    for count in [1 << 20, 1 << 40, u64::MAX] {
        let bytes = Bytes::of(small()).at(TENSOR_COUNT, &u64::to_le_bytes(count));
        assert_error!(bytes.parse(), FormatError::CountTooLarge { what: "tensors", count: c, .. } if *c == count);
    }
}

#[test]
fn more_array_elements_than_bytes() {
    let arrays: [Value; 4] = [
        vec![1u8].into(),
        vec![1f64].into(),
        vec!["text".to_owned()].into(),
        Array::Nested(vec![Array::U8(vec![1])]).into(),
    ];
    for array in arrays {
        for count in [1 << 20, 1 << 40, u64::MAX] {
            let mut writer = small();
            writer.set("the.array", array.clone());
            // After the key: the type of the value, the type of the elements, then their number.
            let bytes = Bytes::of(writer).patch("the.array", 8, &u64::to_le_bytes(count));
            assert_error!(bytes.parse(), FormatError::CountTooLarge { count: c, .. } if *c == count);
        }
    }
}

#[test]
fn header_over_the_limit() {
    let bytes = Bytes::of(full());
    let header = parse(&bytes.0).unwrap();
    // The padding after the header does not count.
    let n_bytes = bytes.after("output.weight") as u64 + 4 + 4 * 8 + 4 + 8;
    assert!(n_bytes <= header.data_offset && header.data_offset < n_bytes + 32);
    parse_with(&bytes.0, &Limits { header_bytes: n_bytes, ..Limits::default() }).unwrap();
    for header_bytes in [0, 30, 100, n_bytes - 1] {
        let limits = Limits { header_bytes, ..Limits::default() };
        assert_error!(
            parse_with(&bytes.0, &limits),
            FormatError::HeaderTooLarge { limit } if *limit == header_bytes
        );
    }
}

// Metadata.

#[test]
fn invalid_key_length() {
    for length in [0, 65_536, u64::MAX] {
        let bytes = Bytes::of(small()).patch_length("key.one", length);
        assert_error!(bytes.parse(), FormatError::KeyLength { offset: 32, length: l } if *l == length);
    }
    let mut writer = small();
    writer.set("k".repeat(65_535), 1u8);
    let bytes = Bytes::of(writer);
    bytes.parse().unwrap();
    let mut writer = small();
    writer.set("k".repeat(65_536), 1u8);
    assert_error!(writer.to_bytes(), FormatError::KeyLength { length: 65_536, .. });
}

#[test]
fn key_that_is_not_utf8() {
    let bytes = Bytes::of(small()).rename("key.one", b"key.\xc3\x28e");
    assert_error!(bytes.parse(), FormatError::KeyUtf8 { offset: 32 });
}

#[test]
fn duplicate_key() {
    let bytes = Bytes::of(small()).rename("key.two", b"key.one");
    assert_error!(bytes.parse(), FormatError::DuplicateKey { key } if key == "key.one");
}

#[test]
fn unknown_value_type() {
    for id in [13, u32::MAX] {
        let bytes = Bytes::of(small()).patch("key.one", 0, &u32::to_le_bytes(id));
        assert_error!(bytes.parse(), FormatError::ValueType { key, id: i } if key == "key.one" && *i == id);
        let mut writer = small();
        writer.set("the.array", vec![1u8]);
        let bytes = Bytes::of(writer).patch("the.array", 4, &u32::to_le_bytes(id));
        assert_error!(bytes.parse(), FormatError::ValueType { key, id: i } if key == "the.array" && *i == id);
    }
}

#[test]
fn boolean_that_is_not_0_or_1() {
    let bytes = Bytes::of(small()).patch("key.two", 4, &[2]);
    assert_error!(bytes.parse(), FormatError::InvalidBool { key, value: 2 } if key == "key.two");
    let mut writer = small();
    writer.set("the.array", vec![true, true]);
    let bytes = Bytes::of(writer).patch("the.array", 4 + 4 + 8 + 1, &[255]);
    assert_error!(bytes.parse(), FormatError::InvalidBool { key, value: 255 } if key == "the.array");
}

#[test]
fn string_over_the_limit() {
    let bytes = Bytes::of(small());
    parse_with(&bytes.0, &Limits { string_bytes: 5, ..Limits::default() }).unwrap();
    assert_error!(
        parse_with(&bytes.0, &Limits { string_bytes: 4, ..Limits::default() }),
        FormatError::StringTooLong { key, length: 5, limit: 4 } if key == "key.one"
    );
}

#[test]
fn arrays_nested_too_deep() {
    let nested = |depth| (1..depth).fold(Array::U8(vec![1]), |array, _| Array::Nested(vec![array]));
    let mut writer = small();
    writer.set("nested", nested(4));
    let bytes = Bytes::of(writer);
    bytes.parse().unwrap();
    assert_error!(
        parse_with(&bytes.0, &Limits { array_depth: 3, ..Limits::default() }),
        FormatError::ArrayTooDeep { key, limit: 3 } if key == "nested"
    );

    let mut writer = small();
    writer.set("nested", nested(5));
    assert_error!(writer.to_bytes(), FormatError::ArrayTooDeep { limit: 4, .. });

    // A megabyte of arrays in arrays must not take a megabyte of stack.
    let mut bytes = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0k\x09\0\0\0".to_vec();
    for _ in 0..100_000 {
        bytes.extend(b"\x09\0\0\0\x01\0\0\0\0\0\0\0");
    }
    assert_error!(parse(&bytes), FormatError::ArrayTooDeep { limit: 4, .. });
}

#[test]
fn invalid_alignment() {
    for alignment in [0, 1, 4, 24, 31, 33, 1 << 25, u32::MAX] {
        let mut writer = small();
        writer.set("general.alignment", 64u32);
        let bytes = Bytes::of(writer).patch("general.alignment", 4, &alignment.to_le_bytes());
        assert_error!(bytes.parse(), FormatError::Alignment { found } if *found == u64::from(alignment));
        assert_error!(
            small().set("general.alignment", alignment).to_bytes(),
            FormatError::Alignment { found } if *found == u64::from(alignment)
        );
    }
    for alignment in [8u32, 16, 64, 4096] {
        Bytes(small().set("general.alignment", alignment).to_bytes().unwrap()).parse().unwrap();
    }
}

#[test]
fn single_part_of_a_split_model() {
    let mut writer = small();
    writer.set("split.no", 1u16).set("split.count", 3u16);
    let message = assert_error!(Bytes::of(writer).parse(), FormatError::Split { part: 2, count: 3 });
    assert!(message.contains("part 2") && message.contains("3 files"));
    let mut writer = small();
    writer.set("split.no", 0u16).set("split.count", 1u16);
    Bytes::of(writer).parse().unwrap();
}

#[test]
fn split_model_with_wrong_or_missing_parts() {
    use std::fs;
    let folder = tempfile::tempdir().unwrap();
    let paths = split(folder.path());
    let open = || GgufFile::open(&paths[0]).map(|_| ());
    open().unwrap();
    let whole = paths.each_ref().map(|path| fs::read(path).unwrap());

    // A part that has another name does not lead to the other parts.
    for name in ["model.gguf", "a-model-00002-of-00003.gguf", "a-model-00001-of-00004.gguf", "-1-of-3.gguf"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, &whole[0]).unwrap();
        assert_error!(GgufFile::open(&path), FormatError::Split { part: 1, count: 3 });
    }
    fs::write(&paths[2], &whole[2][..40]).unwrap();
    let message = assert_error!(open(), FormatError::Part { path, .. } if *path == paths[2]);
    assert!(message.ends_with("-00003-of-00003.gguf"), "{message}");
    fs::write(&paths[2], b"").unwrap();
    assert_error!(open(), FormatError::Part { path, .. } if *path == paths[2]);
    for bytes in [&whole[1], &small().to_bytes().unwrap()] {
        fs::write(&paths[2], bytes).unwrap();
        assert_error!(open(), FormatError::WrongPart { path, part: 3, count: 3 } if *path == paths[2]);
    }
    let mut short = GgufWriter::new();
    short.set("split.no", 2u16).set("split.count", 3u16);
    short.tensor("tensor.b", &[7], TensorType::F32, counting(28)).unwrap();
    short.write_file(&paths[2]).unwrap();
    assert_error!(open(), FormatError::PartTensors { expected: 3, found: 2 });
    short.tensor("tensor.a", &[7], TensorType::F32, counting(28)).unwrap();
    short.write_file(&paths[2]).unwrap();
    let error = open().expect_err("a tensor is there twice");
    assert!(matches!(error, FormatError::Part { .. }), "{error:?}");
    let cause = std::error::Error::source(&error).expect("what is wrong with the part").to_string();
    assert!(cause.contains("tensor.a"), "{cause}");
    fs::remove_file(&paths[1]).unwrap();
    assert_error!(open(), FormatError::MissingShard { path } if *path == paths[1]);
}

// Tensors.

#[test]
fn invalid_tensor_name_length() {
    for length in [0, 129, u64::MAX] {
        let bytes = Bytes::of(small()).patch_length("tensor.b", length);
        assert_error!(bytes.parse(), FormatError::TensorNameLength { index: 1, length: l, limit: 128 } if *l == length);
    }
    // The writer keeps to what llama.cpp reads.
    let mut writer = GgufWriter::new();
    writer.tensor("n".repeat(63), &[1], TensorType::F32, counting(4)).unwrap();
    Bytes::of(writer).parse().unwrap();
    for length in [0, 64] {
        let mut writer = GgufWriter::new();
        assert_error!(
            writer.tensor("n".repeat(length), &[1], TensorType::F32, counting(4)),
            FormatError::TensorNameLength { index: 0, length: l, limit: 63 } if *l == length as u64
        );
    }
}

#[test]
fn tensor_name_that_is_not_utf8() {
    let bytes = Bytes::of(small()).rename("tensor.b", b"tensor.\xff");
    assert_error!(bytes.parse(), FormatError::TensorNameUtf8 { index: 1 });
}

#[test]
fn duplicate_tensor() {
    let bytes = Bytes::of(small()).rename("tensor.b", b"tensor.a");
    assert_error!(bytes.parse(), FormatError::DuplicateTensor { tensor } if tensor == "tensor.a");
    let mut writer = small();
    assert_error!(
        writer.tensor("tensor.a", &[1], TensorType::F32, counting(4)),
        FormatError::DuplicateTensor { tensor } if tensor == "tensor.a"
    );
}

#[test]
fn invalid_number_of_dimensions() {
    for n_dims in [0, 5, u32::MAX] {
        let bytes = Bytes::of(small()).patch("tensor.a", N_DIMS, &n_dims.to_le_bytes());
        assert_error!(
            bytes.parse(),
            FormatError::DimensionCount { tensor, n_dims: n } if tensor == "tensor.a" && *n == u64::from(n_dims)
        );
    }
    for shape in [&[][..], &[1, 1, 1, 1, 1]] {
        assert_error!(
            small().tensor("new", shape, TensorType::F32, counting(4)),
            FormatError::DimensionCount { n_dims, .. } if *n_dims == shape.len() as u64
        );
    }
}

#[test]
fn zero_dimension() {
    let bytes = Bytes::of(small()).patch("tensor.a", A_ROWS, &0u64.to_le_bytes());
    assert_error!(bytes.parse(), FormatError::ZeroDimension { tensor, shape } if tensor == "tensor.a" && *shape == [0, 32]);
    let bytes = Bytes::of(small()).patch("tensor.a", A_COLS, &0u64.to_le_bytes());
    assert_error!(bytes.parse(), FormatError::ZeroDimension { shape, .. } if *shape == [2, 0]);
}

#[test]
fn unknown_tensor_type() {
    // Q4_2 (removed), Q4_0_4_4 (removed), and two that were never there.
    for id in [4, 31, 1000, u32::MAX] {
        let bytes = Bytes::of(small()).patch("tensor.a", A_TYPE, &id.to_le_bytes());
        let message = assert_error!(
            bytes.parse(),
            FormatError::TensorTypeId { tensor, id: i } if tensor == "tensor.a" && *i == id
        );
        assert!(message.contains("tensor.a") && message.contains(&id.to_string()));
    }
}

#[test]
fn rows_that_are_not_whole_blocks() {
    for n_cols in [16u64, 31, 33, 48] {
        let bytes = Bytes::of(small()).patch("tensor.a", A_COLS, &n_cols.to_le_bytes());
        assert_error!(
            bytes.parse(),
            FormatError::NotWholeBlocks { tensor, ty: TensorType::Q8_0, n_cols: n }
                if tensor == "tensor.a" && *n == n_cols
        );
    }
}

#[test]
fn shape_beyond_64_bits() {
    let huge = 1u64 << 62;
    // Too many elements, then (for two rows of f64) too many bytes.
    let bytes = Bytes::of(small()).patch("tensor.a", A_ROWS, &huge.to_le_bytes());
    assert_error!(bytes.parse(), FormatError::TensorTooLarge { tensor, shape } if tensor == "tensor.a" && *shape == [huge, 32]);
    assert_error!(
        small().tensor("new", &[2, huge], TensorType::F64, counting(4)),
        FormatError::TensorTooLarge { tensor, .. } if tensor == "new"
    );
    // Each of the two fits, but both together do not.
    let mut writer = GgufWriter::new();
    writer.tensor_with("one", &[u64::MAX - 63], TensorType::I8, |_| Ok(())).unwrap();
    writer.tensor_with("two", &[64], TensorType::I8, |_| Ok(())).unwrap();
    assert_error!(writer.to_bytes(), FormatError::TensorTooLarge { tensor, .. } if tensor == "two");
}

#[test]
fn misaligned_tensor() {
    for offset in [1u64, 95, 100] {
        let bytes = Bytes::of(small()).patch("tensor.b", B_OFFSET, &offset.to_le_bytes());
        assert_error!(
            bytes.parse(),
            FormatError::MisalignedTensor { tensor, offset: o, alignment: 32 } if tensor == "tensor.b" && *o == offset
        );
    }
}

#[test]
fn tensor_beyond_the_file() {
    let whole = Bytes::of(small());
    let header = parse(&whole.0).unwrap();
    let end = (header.data_offset + 96 + 28) as usize;
    // The padding after the last tensor may be missing; its last byte may not.
    parse(&whole.0[..end]).unwrap();
    let message = assert_error!(
        parse(&whole.0[..end - 1]),
        FormatError::TensorOutOfBounds { tensor, offset, n_bytes: 28, file_bytes }
            if tensor == "tensor.b" && *offset == end as u64 - 28 && *file_bytes == end as u64 - 1
    );
    assert!(message.contains("fetch the file again"));

    for offset in [128u64, 1 << 40, u64::MAX - 31] {
        let bytes = Bytes::of(small()).patch("tensor.b", B_OFFSET, &offset.to_le_bytes());
        assert_error!(bytes.parse(), FormatError::TensorOutOfBounds { tensor, .. } if tensor == "tensor.b");
    }
    let bytes = Bytes::of(small()).patch("tensor.a", A_ROWS, &(1u64 << 40).to_le_bytes());
    assert_error!(bytes.parse(), FormatError::TensorOutOfBounds { tensor, .. } if tensor == "tensor.a");
}

#[test]
fn overlapping_tensors() {
    for offset in [0u64, 32, 64] {
        let bytes = Bytes::of(small()).patch("tensor.b", B_OFFSET, &offset.to_le_bytes());
        assert_error!(
            bytes.parse(),
            FormatError::OverlappingTensors { first, second } if first != second
        );
    }
}

#[test]
fn tensor_data_of_wrong_size() {
    for found in [0, 67, 69] {
        assert_error!(
            small().tensor("new", &[2, 32], TensorType::Q8_0, counting(found)),
            FormatError::TensorDataSize { tensor, expected: 68, found: f } if tensor == "new" && *f == found as u64
        );
        let mut writer = small();
        writer.tensor_with("new", &[2, 32], TensorType::Q8_0, |out| out.write_all(&counting(found))).unwrap();
        assert_error!(
            writer.to_bytes(),
            FormatError::TensorDataSize { tensor, expected: 68, found: f } if tensor == "new" && *f == found as u64
        );
    }
}

// Metadata looked up by name.

fn metadata() -> Metadata {
    parse(&Bytes::of(full()).0).unwrap().metadata
}

#[test]
fn missing_key() {
    let metadata = metadata();
    assert_eq!(metadata.str("test.none").unwrap(), None);
    assert_error!(metadata.require_str("test.none"), FormatError::MissingKey { key } if key == "test.none");
    assert_error!(metadata.require_u32("test.none"), FormatError::MissingKey { .. });
    assert_error!(metadata.require_str_array("test.none"), FormatError::MissingKey { .. });
}

#[test]
fn value_of_wrong_type() {
    let metadata = metadata();
    assert_error!(
        metadata.u32("test.f32"),
        FormatError::MetadataType { key, expected: "u32", found: "f32" } if key == "test.f32"
    );
    assert_error!(metadata.f32("test.u32"), FormatError::MetadataType { expected: "f32", found: "u32", .. });
    assert_error!(metadata.bool("test.u8"), FormatError::MetadataType { expected: "bool", found: "u8", .. });
    assert_error!(metadata.str("test.array.string"), FormatError::MetadataType { found: "array of strings", .. });
    assert_error!(metadata.str_array("test.string"), FormatError::MetadataType { found: "string", .. });
    assert_error!(metadata.i32_array("test.array.f32"), FormatError::MetadataType { found: "array of f32", .. });
    assert_error!(metadata.u32_array("test.u32"), FormatError::MetadataType { found: "u32", .. });
    assert_error!(metadata.f32_array("test.array.f64"), FormatError::MetadataType { found: "array of f64", .. });
    assert_error!(metadata.bool_array("test.array.u8"), FormatError::MetadataType { found: "array of u8", .. });
}

#[test]
fn number_out_of_range() {
    let metadata = metadata();
    assert_error!(
        metadata.u32("test.i8"),
        FormatError::MetadataRange { key, expected: "u32", found: -100 } if key == "test.i8"
    );
    assert_error!(metadata.u32("test.u64"), FormatError::MetadataRange { found: 0xffff_ffff_ffff_ffff, .. });
    assert_error!(metadata.u64("test.i64"), FormatError::MetadataRange { expected: "u64", .. });
    assert_error!(metadata.i64("test.u64"), FormatError::MetadataRange { expected: "i64", .. });
    assert_error!(
        metadata.i32_array("test.array.u32"),
        FormatError::MetadataRange { expected: "array of i32", found: 0xffff_ffff, .. }
    );
    assert_error!(metadata.u32_array("test.array.i8"), FormatError::MetadataRange { found: -128, .. });
}

#[test]
fn text_that_is_not_utf8() {
    let metadata = metadata();
    assert_error!(
        metadata.str("test.bytes"),
        FormatError::MetadataUtf8 { key, index: 0 } if key == "test.bytes"
    );
    assert_error!(
        metadata.str_array("test.array.bytes"),
        FormatError::MetadataUtf8 { key, index: 1 } if key == "test.array.bytes"
    );
    // As a damaged file has it: one token of a vocabulary loses its last byte.
    let bytes = Bytes::of(full()).rename("▁the", b"\xe2\x96\x81th\xc3");
    let metadata = parse(&bytes.0).unwrap().metadata;
    assert_error!(metadata.str_array("test.array.string"), FormatError::MetadataUtf8 { index: 2, .. });
    let Some(Value::Array(Array::Bytes(list))) = metadata.get("test.array.string") else { panic!() };
    assert_eq!(list[1].as_ref(), b"<s>");
    assert_eq!(list[2].as_ref(), b"\xe2\x96\x81th\xc3");
}

#[test]
fn every_error_variant_has_a_test() {
    let source = include_str!("../../src/error.rs");
    let tests = concat!(include_str!("corrupt.rs"), include_str!("../safetensors.rs"));
    let (_, body) = source.split_once("pub enum FormatError {").unwrap();
    let (body, _) = body.split_once("\n}\n").unwrap();
    let is_variant = |line: &&str| line.starts_with("    ") && line[4..].starts_with(|c: char| c.is_ascii_uppercase());
    let names = body
        .lines()
        .filter(is_variant)
        .map(|line| line.trim().split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap());
    let mut n = 0;
    for name in names {
        let tested = ["", " {", "(_)", ")", ","].iter().any(|end| tests.contains(&format!("FormatError::{name}{end}")));
        assert!(tested, "no test for FormatError::{name}");
        n += 1;
    }
    assert!(n > 45, "found only {n} variants: has the enum moved?");
}
