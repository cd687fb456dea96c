//! Writing and reading again gives the same, for arbitrary metadata and tensors; also tests the typed getters.

use std::borrow::Cow;

use fewbit_format::{Array, GgufFile, GgufWriter, Metadata, Value, parse};
use fewbit_quant::TensorType;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::samples::{full, values};

/// Arrays of every type, nested up to the limit.
fn array() -> impl Strategy<Value = Array> {
    let flat = prop_oneof![
        vec(any::<u8>(), 0..20).prop_map(Array::U8),
        vec(any::<i8>(), 0..20).prop_map(Array::I8),
        vec(any::<u16>(), 0..20).prop_map(Array::U16),
        vec(any::<i16>(), 0..20).prop_map(Array::I16),
        vec(any::<u32>(), 0..20).prop_map(Array::U32),
        vec(any::<i32>(), 0..20).prop_map(Array::I32),
        vec(any::<f32>(), 0..20).prop_map(Array::F32),
        vec(any::<bool>(), 0..20).prop_map(Array::Bool),
        vec(any::<String>(), 0..20).prop_map(Array::String),
        vec(any::<u64>(), 0..20).prop_map(Array::U64),
        vec(any::<i64>(), 0..20).prop_map(Array::I64),
        vec(any::<f64>(), 0..20).prop_map(Array::F64),
    ];
    flat.prop_recursive(3, 20, 4, |inner| vec(inner, 0..4).prop_map(Array::Nested))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        any::<String>().prop_map(Value::String),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
        array().prop_map(Value::Array),
    ]
}

#[derive(Clone, Debug)]
struct Tensor {
    shape: Vec<u64>,
    ty: TensorType,
    bytes: Vec<u8>,
}

fn tensor() -> impl Strategy<Value = Tensor> {
    let types: Vec<_> = TensorType::all().collect();
    (prop::sample::select(types), vec(1..4u64, 0..4), 1..3u64, any::<u8>()).prop_map(
        |(ty, mut shape, n_blocks, fill)| {
            let n_bytes = shape.iter().product::<u64>() * n_blocks * ty.block_bytes() as u64;
            shape.push(n_blocks * ty.block_elems() as u64);
            Tensor { shape, ty, bytes: (0..n_bytes).map(|i| fill.wrapping_add(i as u8)).collect() }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn written_files_read_back_the_same(
        values in prop::collection::btree_map("[a-z.]{1,12}", value(), 0..8),
        tensors in prop::collection::btree_map("[a-z.0-9]{1,63}", tensor(), 0..6),
        alignment in prop::sample::select(vec![None, Some(8u32), Some(32), Some(128)]),
        version_2: bool,
    ) {
        let mut writer = GgufWriter::new();
        if version_2 {
            writer.version_2();
        }
        for (key, value) in &values {
            writer.set(key.as_str(), value.clone());
        }
        if let Some(alignment) = alignment {
            writer.set("general.alignment", alignment);
        }
        for (name, tensor) in &tensors {
            writer.tensor(name.as_str(), &tensor.shape, tensor.ty, tensor.bytes.as_slice()).unwrap();
        }
        let bytes = writer.to_bytes().unwrap();
        let file = GgufFile::from_bytes(bytes.clone()).unwrap();

        prop_assert_eq!(file.version(), if version_2 { 2 } else { 3 });
        for (key, value) in &values {
            // As text, so that a NaN equals itself.
            prop_assert_eq!(format!("{:?}", file.metadata().get(key)), format!("{:?}", Some(value)));
        }
        prop_assert_eq!(file.metadata().len(), values.len() + usize::from(alignment.is_some()));
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for (name, tensor) in &tensors {
            let info = file.tensor(name).unwrap();
            prop_assert_eq!((&info.shape, info.ty), (&tensor.shape, tensor.ty));
            prop_assert_eq!(file.tensor_bytes(info), tensor.bytes.as_slice());
            prop_assert!((info.offset - file.header().data_offset).is_multiple_of(alignment.unwrap_or(32).into()));
        }

        // Written once more from what was read, every byte is the same, NaNs and their bits included.
        let mut again = GgufWriter::with_metadata(file.metadata().clone());
        if version_2 {
            again.version_2();
        }
        for info in file.tensors() {
            again.tensor_with(info.name.as_str(), &info.shape, info.ty, |out| out.write_all(file.tensor_bytes(info))).unwrap();
        }
        prop_assert_eq!(again.to_bytes().unwrap(), bytes);
    }
}

#[test]
fn every_value_type_is_read_back() {
    let header = parse(&full().to_bytes().unwrap()).unwrap();
    for (key, value) in values() {
        assert_eq!(header.metadata.get(key), Some(&value), "{key}");
    }
    // In the order in which they were set.
    let keys = header.metadata.iter().map(|(key, _)| key);
    assert!(keys.skip(1).eq(values().iter().map(|(key, _)| *key)));
}

/// The bytes of a file, written down by hand from the specification.
#[test]
fn byte_layout_matches_the_specification() {
    let mut writer = GgufWriter::new();
    writer.set("k", vec![7u16]).tensor("t", &[2, 1], TensorType::F16, vec![1, 2, 3, 4]).unwrap();
    #[rustfmt::skip]
    let expected: Vec<u8> = [
        b"GGUF".as_slice(), &[3, 0, 0, 0],
        &[1, 0, 0, 0, 0, 0, 0, 0], // tensors
        &[1, 0, 0, 0, 0, 0, 0, 0], // metadata values
        &[1, 0, 0, 0, 0, 0, 0, 0], b"k", &[9, 0, 0, 0], // an array
        &[2, 0, 0, 0], &[1, 0, 0, 0, 0, 0, 0, 0], &[7, 0], // of one u16
        &[1, 0, 0, 0, 0, 0, 0, 0], b"t", &[2, 0, 0, 0], // two dimensions, innermost first
        &[1, 0, 0, 0, 0, 0, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0], &[0, 0, 0, 0, 0, 0, 0, 0], // F16 at offset 0
        &[0; 4], // padding from byte 92 to byte 96
        &[1, 2, 3, 4], &[0; 28],
    ]
    .concat();
    assert_eq!(writer.to_bytes().unwrap(), expected);
}

#[test]
fn integers_of_any_width_convert() {
    let header = parse(&full().to_bytes().unwrap()).unwrap();
    let metadata = header.metadata;
    assert_eq!(metadata.u32("test.u8").unwrap(), Some(200));
    assert_eq!(metadata.u64("test.u16").unwrap(), Some(60_000));
    assert_eq!(metadata.require_u32("test.u32").unwrap(), 4_000_000_000);
    assert_eq!(metadata.i64("test.i8").unwrap(), Some(-100));
    assert_eq!(metadata.i64("test.i64").unwrap(), Some(i64::MIN));
    assert_eq!(metadata.u64("test.u64").unwrap(), Some(u64::MAX));
    assert_eq!(metadata.f32("test.f32").unwrap(), Some(1.5));
    assert_eq!(metadata.f32("test.f64").unwrap(), Some(0.0));
    assert!(metadata.require_bool("test.bool").unwrap());
    assert_eq!(metadata.str("test.string").unwrap(), Some("grüße\n"));

    assert_eq!(metadata.require_i32_array("test.array.i16").unwrap(), [-32_768, 32_767].as_slice());
    assert!(matches!(metadata.require_i32_array("test.array.i32").unwrap(), Cow::Borrowed([i32::MIN, i32::MAX])));
    assert_eq!(metadata.require_u32_array("test.array.u16").unwrap(), [0, 65_535].as_slice());
    assert!(matches!(metadata.require_u32_array("test.array.u32").unwrap(), Cow::Borrowed([0, u32::MAX])));
    assert_eq!(metadata.require_bool_array("test.array.bool").unwrap(), [true, false]);
    assert_eq!(metadata.require_f32_array("test.array.f32").unwrap(), [0.25, 0.0, f32::INFINITY]);
    assert_eq!(metadata.require_str_array("test.array.string").unwrap(), ["", "<s>", "▁the"]);
}

#[test]
fn set_replaces_and_remove_keeps_the_order() {
    let mut metadata = Metadata::default();
    metadata.set("a", 1u32);
    metadata.set("b", 2u32);
    metadata.set("c", 3u32);
    metadata.set("a", "one");
    assert_eq!(metadata.remove("b"), Some(Value::U32(2)));
    assert_eq!(metadata.remove("b"), None);
    assert_eq!(metadata.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!((metadata.str("a").unwrap(), metadata.u32("c").unwrap()), (Some("one"), Some(3)));
    assert!(!metadata.contains("b") && metadata.len() == 2 && !metadata.is_empty());
}
