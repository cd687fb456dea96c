//! Small valid files for the other tests to read and to damage.

use std::path::{Path, PathBuf};

use fewbit_format::{Array, GgufWriter, Value};
use fewbit_quant::TensorType;

/// A value of every type, under the keys `test.<type>`.
pub(crate) fn values() -> Vec<(&'static str, Value)> {
    vec![
        ("test.u8", 200u8.into()),
        ("test.i8", (-100i8).into()),
        ("test.u16", 60_000u16.into()),
        ("test.i16", (-30_000i16).into()),
        ("test.u32", 4_000_000_000u32.into()),
        ("test.i32", (-2_000_000_000i32).into()),
        ("test.f32", 1.5f32.into()),
        ("test.bool", true.into()),
        ("test.string", "grüße\n".into()),
        ("test.bytes", Value::Bytes([b'a', 0xff].into())),
        ("test.u64", u64::MAX.into()),
        ("test.i64", i64::MIN.into()),
        ("test.f64", f64::MIN_POSITIVE.into()),
        ("test.array.u8", vec![0u8, 255].into()),
        ("test.array.i8", vec![-128i8, 127].into()),
        ("test.array.u16", vec![0u16, 65_535].into()),
        ("test.array.i16", vec![-32_768i16, 32_767].into()),
        ("test.array.u32", vec![0u32, u32::MAX].into()),
        ("test.array.i32", vec![i32::MIN, i32::MAX].into()),
        ("test.array.f32", vec![0.25f32, -0.0, f32::INFINITY].into()),
        ("test.array.bool", vec![true, false].into()),
        ("test.array.string", vec![String::new(), "<s>".to_owned(), "▁the".to_owned()].into()),
        ("test.array.bytes", Array::Bytes(vec![b"ok".as_slice().into(), [0xc3, 0x28].into()]).into()),
        ("test.array.nested", Array::Nested(vec![Array::U8(vec![1]), Array::Nested(vec![])]).into()),
        ("test.array.u64", vec![0u64, u64::MAX].into()),
        ("test.array.i64", vec![i64::MIN, i64::MAX].into()),
        ("test.array.f64", vec![0.1f64].into()),
        ("test.array.empty", Array::String(Vec::new()).into()),
    ]
}

/// A writer with every kind of metadata value and tensors of four types.
pub(crate) fn full() -> GgufWriter<'static> {
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "llama");
    for (key, value) in values() {
        writer.set(key, value);
    }
    writer.tensor("token_embd.weight", &[3, 64], TensorType::Q4_1, counting(3 * 40)).unwrap();
    writer.tensor("norm.weight", &[5], TensorType::F32, counting(20)).unwrap();
    writer.tensor("experts.weight", &[2, 2, 256], TensorType::Q4_K, counting(4 * 144)).unwrap();
    writer.tensor("output.weight", &[1, 2, 1, 3], TensorType::F16, counting(12)).unwrap();
    writer
}

/// A writer with two values and two tensors, whose bytes are easy to find and change.
///
/// Every name occurs once. The tensor `tensor.a` has the shape `[2, 32]`, the type Q8_0 and the offset 0,
/// and `tensor.b` the shape `[7]`, the type F32 and the offset 96.
pub(crate) fn small() -> GgufWriter<'static> {
    let mut writer = GgufWriter::new();
    writer.set("key.one", "value").set("key.two", true);
    writer.tensor("tensor.a", &[2, 32], TensorType::Q8_0, counting(68)).unwrap();
    writer.tensor("tensor.b", &[7], TensorType::F32, counting(28)).unwrap();
    writer
}

/// A model in three files: all metadata is in the first, which has no tensors, as `llama-gguf-split` makes them with
/// `--no-tensor-first-split`.
pub(crate) fn split(folder: &Path) -> [PathBuf; 3] {
    let part = |no: u16| {
        let mut writer = GgufWriter::new();
        writer.set("split.no", no).set("split.count", 3u16).set("split.tensors.count", 3i32);
        writer
    };
    let mut writers = [0, 1, 2].map(part);
    writers[0].set("key.one", "value");
    writers[1].tensor("tensor.a", &[2, 32], TensorType::Q8_0, counting(68)).unwrap();
    writers[2].tensor("tensor.b", &[7], TensorType::F32, counting(28)).unwrap();
    writers[2].tensor("tensor.c", &[3], TensorType::F32, counting(12)).unwrap();
    let paths = [1, 2, 3].map(|part| folder.join(format!("a-model-0000{part}-of-00003.gguf")));
    for (writer, path) in writers.iter_mut().zip(&paths) {
        writer.write_file(path).unwrap();
    }
    paths
}

/// Bytes that differ from their neighbours.
pub(crate) fn counting(n_bytes: usize) -> Vec<u8> {
    (0..n_bytes).map(|i| (i * 7 + 1) as u8).collect()
}
