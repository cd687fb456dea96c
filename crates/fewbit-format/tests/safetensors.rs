//! One test for each [`FormatError`] that safetensors files can cause and GGUF files cannot, and for the
//! shared ones as far as they come about in another way.

use std::fs;
use std::path::Path;

use fewbit_format::safetensors::{Dtype, parse, parse_index};
use fewbit_format::{FormatError, FoundInstead, SafetensorsModel};

/// Asserts that an expression is an error of the given pattern, and that its message is one plain line.
macro_rules! assert_error {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {{
        let error = $result.expect_err("an error is expected");
        assert!(matches!(&error, $pattern $(if $guard)?), "found {error:?}");
        let message = error.to_string();
        assert!(!message.is_empty() && !message.chars().any(char::is_control), "{message:?}");
    }};
}

/// A file with this header and so many bytes of tensor data.
fn file(header: &str, n_data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..n_data).map(|i| i as u8));
    bytes
}

/// One entry of a header.
fn entry(name: &str, dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

/// A header of these entries.
fn header(entries: &[String]) -> String {
    format!("{{{}}}", entries.join(","))
}

/// A file with one tensor.
fn one(dtype: &str, shape: &str, start: u64, end: u64, n_data: usize) -> Vec<u8> {
    file(&header(&[entry("t", dtype, shape, start, end)]), n_data)
}

#[test]
fn samples_are_valid_before_corruption() {
    assert_eq!(parse(&file("{}", 0)).unwrap().tensors.len(), 0);
    assert_eq!(parse(&one("F32", "[2,3]", 0, 24, 24)).unwrap().tensors[0].n_bytes, 24);
    assert_eq!(parse(&one("F4", "[2,3]", 0, 3, 3)).unwrap().tensors[0].n_bytes, 3);
    // A single number, and no number.
    assert_eq!(parse(&one("BF16", "[]", 0, 2, 2)).unwrap().tensors[0].n_bytes, 2);
    assert_eq!(parse(&one("BF16", "[0,3]", 0, 0, 0)).unwrap().tensors[0].n_bytes, 0);
}

#[test]
fn empty_file() {
    assert_error!(parse(&[]), FormatError::Empty);
}

#[test]
fn other_kinds_of_files() {
    let cases: [(&[u8], FoundInstead); 5] = [
        (b"GGUF\x03\0\0\0{\"", FoundInstead::Gguf),
        (b"version https://git-lfs.github.com/spec/v1\n", FoundInstead::LfsPointer),
        (b"PK\x03\x04\0\0\0\0\0", FoundInstead::Zip),
        (b"<!DOCTYPE html>", FoundInstead::WebPage),
        (b"\x02\0\0\0\0\0\0\0[]", FoundInstead::Binary([2, 0, 0, 0])),
    ];
    for (bytes, expected) in cases {
        assert_error!(parse(bytes), FormatError::NotSafetensors { found } if *found == expected);
    }
}

#[test]
fn cut_inside_the_header() {
    let bytes = one("F32", "[2]", 0, 8, 8);
    let n_header = bytes.len() - 16;
    assert_error!(parse(&bytes[..7]), FormatError::Truncated { needed: 8, left: 7, .. });
    assert_error!(
        parse(&bytes[..8 + n_header - 1]),
        FormatError::Truncated { what: "the header", offset: 8, needed, left }
            if *needed == n_header as u64 && *left == n_header as u64 - 1
    );
    let mut bytes = bytes;
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_error!(parse(&bytes), FormatError::Truncated { needed: u64::MAX, .. });
}

#[test]
fn header_over_the_limit() {
    let mut bytes = file("{", 100_000_001);
    bytes[..8].copy_from_slice(&100_000_001u64.to_le_bytes());
    assert_error!(parse(&bytes), FormatError::HeaderTooLarge { .. });
    assert_error!(parse_index(&bytes), FormatError::HeaderTooLarge { limit: 100_000_000 });
}

#[test]
fn invalid_header_json() {
    let deep = format!("{{\"t\":{}", "[".repeat(100_000));
    let cases = [
        "{",
        "{]",
        "{}}",
        "{\"t\":1}",
        "{\"t\":{}}",
        "{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}",
        "{\"t\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}",
        "{\"t\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}",
        "{\"t\":{\"dtype\":\"F32\",\"shape\":[18446744073709551616],\"data_offsets\":[0,4]}}",
        "{\"t\":{\"dtype\":\"F32\",\"shape\":\"1\\n\",\"data_offsets\":[0,4]}}",
        "{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}",
        "{\"t\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
        "{\"__metadata__\":{\"a\":1}}",
        "{\"\\ud800\":1}",
        deep.as_str(),
    ];
    for json in cases {
        assert_error!(parse(&file(json, 4)), FormatError::HeaderJson(_));
    }
    let mut bytes = one("F32", "[1]", 0, 4, 4);
    bytes[10] = 0xff;
    assert_error!(parse(&bytes), FormatError::HeaderJson(_));
}

#[test]
fn duplicate_names() {
    let header_of_two = header(&[entry("t", "U8", "[4]", 0, 4), entry("t", "U8", "[4]", 4, 8)]);
    assert_error!(parse(&file(&header_of_two, 8)), FormatError::DuplicateTensor { tensor } if tensor == "t");
    for json in [
        r#"{"__metadata__":{"format":"pt","format":"np"}}"#,
        r#"{"__metadata__":{"format":"pt"},"__metadata__":{"format":"np"}}"#,
    ] {
        assert_error!(parse(&file(json, 0)), FormatError::DuplicateKey { key } if key == "format");
    }
}

#[test]
fn unknown_dtype() {
    for name in ["F31", "f32", "", "Q4_0\\n"] {
        let expected = name.replace("\\n", "\n");
        assert_error!(
            parse(&one(name, "[1]", 0, 4, 4)),
            FormatError::UnknownDtype { tensor, dtype } if tensor == "t" && *dtype == expected
        );
    }
}

#[test]
fn elements_that_end_inside_a_byte() {
    for (dtype, shape, n) in [("F4", "[3]", 2), ("F6_E2M3", "[1,5]", 4)] {
        assert_error!(
            parse(&one(dtype, shape, 0, n, n as usize)),
            FormatError::PartialByte { tensor, dtype: Dtype::F4 | Dtype::F6_E2M3, .. } if tensor == "t"
        );
    }
}

#[test]
fn inverted_offsets() {
    assert_error!(
        parse(&one("U8", "[4]", 8, 4, 8)),
        FormatError::InvertedOffsets { tensor, start: 8, end: 4 } if tensor == "t"
    );
}

#[test]
fn size_that_does_not_match_shape_and_type() {
    for (shape, end) in [("[2,3]", 23), ("[2,3]", 25), ("[6]", 0), ("[]", 8), ("[0]", 4)] {
        assert_error!(
            parse(&one("F32", shape, 0, end, end as usize)),
            FormatError::TensorDataSize { tensor, found, .. } if tensor == "t" && *found == end
        );
    }
}

#[test]
fn sizes_beyond_64_bits() {
    for shape in ["[4294967296,4294967296]", "[2305843009213693952]", "[18446744073709551615,18446744073709551615]"] {
        assert_error!(parse(&one("F64", shape, 0, 8, 8)), FormatError::TensorTooLarge { tensor, .. } if tensor == "t");
    }
    assert_error!(
        parse(&one("U8", "[0]", u64::MAX, u64::MAX, 0)),
        FormatError::TensorTooLarge { tensor, .. } if tensor == "t"
    );
}

/// Tensors that follow each other up to 2^64 - 8: the header's length added to that is no 64-bit number.
#[test]
fn offsets_that_overflow() {
    let size = (1u64 << 61) - 1;
    let record = |i: u64| entry(&format!("t{i}"), "U8", &format!("[{size}]"), i * size, (i + 1) * size);
    let text = header(&(0..8).map(record).collect::<Vec<_>>());
    assert_error!(parse(&file(&text, 4)), FormatError::TensorOutOfBounds { tensor, .. } if tensor == "t0");
}

#[test]
fn overlapping_tensors() {
    for (start, end) in [(0, 4), (2, 6), (3, 7)] {
        let text = header(&[entry("a", "U8", "[4]", 0, 4), entry("b", "U8", "[4]", start, end)]);
        assert_error!(
            parse(&file(&text, 8)),
            FormatError::OverlappingTensors { first, second } if first == "a" && second == "b"
        );
    }
}

#[test]
fn bytes_outside_of_tensors() {
    // In front, between two, and after.
    let text = header(&[entry("a", "U8", "[4]", 2, 6)]);
    let data = 8 + text.len() as u64;
    assert_error!(parse(&file(&text, 6)), FormatError::UnusedBytes { offset, n_bytes: 2 } if *offset == data);
    let text = header(&[entry("b", "U8", "[2]", 7, 9), entry("a", "U8", "[4]", 0, 4)]);
    let data = 8 + text.len() as u64;
    assert_error!(parse(&file(&text, 9)), FormatError::UnusedBytes { offset, n_bytes: 3 } if *offset == data + 4);
    let bytes = one("U8", "[4]", 0, 4, 5);
    let end = bytes.len() as u64 - 1;
    assert_error!(parse(&bytes), FormatError::UnusedBytes { offset, n_bytes: 1 } if *offset == end);
}

#[test]
fn tensor_beyond_the_file() {
    let bytes = one("U8", "[4]", 0, 4, 3);
    assert_error!(
        parse(&bytes),
        FormatError::TensorOutOfBounds { tensor, n_bytes: 4, file_bytes, .. }
            if tensor == "t" && *file_bytes == bytes.len() as u64
    );
}

// Folders and indices.

/// A folder with two files and an index.
fn folder(index: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let first = file(&header(&[entry("a", "U8", "[4]", 0, 4)]), 4);
    let second = file(&header(&[entry("b", "U8", "[2]", 0, 2), entry("c", "U8", "[1]", 2, 3)]), 3);
    fs::write(folder.path().join("1.safetensors"), first).unwrap();
    fs::write(folder.path().join("2.safetensors"), second).unwrap();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    folder
}

fn open(folder: &tempfile::TempDir) -> Result<SafetensorsModel, FormatError> {
    SafetensorsModel::open(folder.path())
}

#[test]
fn index_is_valid_before_corruption() {
    let folder = folder(r#"{"metadata":{"total_size":7},"weight_map":{"c":"2.safetensors","a":"1.safetensors"}}"#);
    let model = open(&folder).unwrap();
    let names: Vec<_> = model.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor.shard)).collect();
    // The index forgot `b`; its file has it all the same.
    assert_eq!(names, [("a", 0), ("b", 1), ("c", 1)]);
    assert_eq!(model.tensor_bytes(model.tensor("c").unwrap()), [2]);
}

#[test]
fn folder_without_a_model() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pytorch_model.bin"), "x").unwrap();
    assert_error!(open(&folder), FormatError::NoModelInFolder { path } if *path == folder.path());
}

#[test]
fn missing_file() {
    let path = Path::new("no/such/model.safetensors");
    assert_error!(SafetensorsModel::open(path), FormatError::NotFound { path: p } if *p == path);
}

#[test]
fn invalid_index_json() {
    for json in ["", "[]", "{}", r#"{"weight_map":[]}"#, r#"{"weight_map":{"a":1}}"#, "{\"weight_map\":{}", "\u{1}"] {
        assert_error!(parse_index(json.as_bytes()), FormatError::IndexJson(_));
    }
}

#[test]
fn index_with_paths_outside_its_folder() {
    let names =
        ["", ".", "..", "../x", "/etc/passwd", "sub/x", "sub/../x", "x/", "./x", "..\\\\x", "C:x", "\\\\\\\\host\\\\x"];
    for name in names {
        let index = format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#);
        assert_error!(parse_index(index.as_bytes()), FormatError::ShardName { .. });
    }
    assert_error!(parse_index(br#"{"weight_map":{"a":"x\u0000y"}}"#), FormatError::ShardName { .. });
    parse_index(br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"..x"}}"#).unwrap();
}

#[test]
fn index_with_a_duplicate_tensor() {
    let index = br#"{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}"#;
    assert_error!(parse_index(index), FormatError::DuplicateTensor { tensor } if tensor == "a");
}

#[test]
fn missing_shard() {
    let folder = folder(r#"{"weight_map":{"a":"1.safetensors","b":"3.safetensors"}}"#);
    assert_error!(open(&folder), FormatError::MissingShard { path } if path.ends_with("3.safetensors"));
}

#[test]
fn tensor_missing_from_its_shard() {
    for index in [
        r#"{"weight_map":{"a":"1.safetensors","d":"2.safetensors"}}"#,
        r#"{"weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors"}}"#,
    ] {
        assert_error!(open(&folder(index)), FormatError::MissingTensor { tensor, .. } if tensor == "d" || tensor == "b");
    }
}

#[test]
fn tensor_in_two_shards() {
    let folder = folder(r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#);
    fs::copy(folder.path().join("1.safetensors"), folder.path().join("2.safetensors")).unwrap();
    assert_error!(open(&folder), FormatError::DuplicateTensor { tensor } if tensor == "a");
}
