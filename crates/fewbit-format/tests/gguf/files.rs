//! Files on disk: mapping, releasing pages, and writing under a name that others are reading.

use std::fs;

use fewbit_format::{FormatError, GgufFile, Metadata};
use fewbit_quant::TensorType;

use crate::samples::{counting, full, small, split};

#[test]
fn mapped_file_has_the_written_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let n_bytes = full().write_file(&path).unwrap();
    let file = GgufFile::open(&path).unwrap();

    assert_eq!(file.file_bytes(), n_bytes);
    assert_eq!(fs::metadata(&path).unwrap().len(), n_bytes);
    assert_eq!(file.path(), Some(path.as_path()));
    assert_eq!(file.version(), 3);
    let names: Vec<_> = file.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["token_embd.weight", "norm.weight", "experts.weight", "output.weight"]);
    let experts = file.tensor("experts.weight").unwrap();
    assert_eq!((experts.shape.as_slice(), experts.ty), (&[2, 2, 256][..], TensorType::Q4_K));
    assert_eq!((experts.n_elems(), experts.n_bytes), (1024, 576));
    assert_eq!(file.tensor_bytes(experts), counting(576));
    assert_eq!(file.tensor_bytes(file.tensor("norm.weight").unwrap()), counting(20));
    assert_eq!(file.tensor("experts"), None);
    assert!(file.tensors().iter().all(|tensor| tensor.offset % 32 == 0));
}

#[test]
fn split_model_opens_from_any_part() {
    let folder = tempfile::tempdir().unwrap();
    let paths = split(folder.path());
    let sizes = paths.each_ref().map(|path| fs::metadata(path).unwrap().len());
    for path in &paths {
        let file = GgufFile::open(path).unwrap();
        assert_eq!(file.metadata().require_str("key.one").unwrap(), "value", "of the first file");
        let names: Vec<_> = file.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["tensor.a", "tensor.b", "tensor.c"]);
        for (name, bytes) in [("tensor.a", counting(68)), ("tensor.b", counting(28)), ("tensor.c", counting(12))] {
            let tensor = file.tensor(name).unwrap();
            file.release(tensor);
            assert_eq!(file.tensor_bytes(tensor), bytes, "{name}");
        }
        assert_eq!(file.file_bytes(), sizes.iter().sum::<u64>());
        assert!(file.parts().flatten().eq(&paths));
        assert_eq!(file.path(), Some(path.as_path()));
    }
}

#[test]
fn released_pages_read_back_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let bytes = counting(1 << 20);
    let mut writer = small();
    writer.tensor("large", &[1 << 20], TensorType::I8, bytes.as_slice()).unwrap();
    writer.write_file(&path).unwrap();

    let file = GgufFile::open(&path).unwrap();
    let large = file.tensor("large").unwrap();
    let (borrowed, small) = (file.tensor_bytes(large), file.tensor("tensor.a").unwrap());
    assert_eq!(borrowed, bytes);
    file.release(large);
    file.release(small);
    assert_eq!(borrowed, bytes);
    assert_eq!(file.tensor_bytes(small), counting(68));

    let file = GgufFile::from_bytes(fs::read(&path).unwrap()).unwrap();
    file.release(file.tensor("large").unwrap());
    assert_eq!(file.tensor_bytes(file.tensor("large").unwrap()), bytes);
    assert_eq!(file.path(), None);
}

#[test]
fn overwriting_a_mapped_file_keeps_the_old_mapping() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    full().write_file(&path).unwrap();
    let old = GgufFile::open(&path).unwrap();
    small().write_file(&path).unwrap();
    let new = GgufFile::open(&path).unwrap();

    assert_eq!(old.tensor_bytes(old.tensor("norm.weight").unwrap()), counting(20));
    assert_eq!(new.tensors().len(), 2);
    assert_eq!(names_in(folder.path()), ["model.gguf"]);
}

#[test]
fn failed_write_leaves_only_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    small().write_file(&path).unwrap();
    let before = fs::read(&path).unwrap();

    let mut writer = small();
    writer.tensor_with("short", &[4], TensorType::F32, |out| out.write_all(&[0; 15])).unwrap();
    assert!(matches!(writer.write_file(&path), Err(FormatError::TensorDataSize { .. })));
    let mut writer = small();
    writer.tensor_with("failing", &[4], TensorType::F32, |_| Err(std::io::Error::other("no more"))).unwrap();
    let error = writer.write_file(&path).unwrap_err();
    assert!(matches!(&error, FormatError::Io { path: p, .. } if *p == path), "{error:?}");

    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(names_in(folder.path()), ["model.gguf"]);
    let error = small().write_file(&folder.path().join("none/model.gguf")).unwrap_err();
    assert!(matches!(error, FormatError::Io { .. }), "{error:?}");
}

#[test]
fn vocabulary_files_may_have_no_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocab.gguf");
    let mut writer = fewbit_format::GgufWriter::new();
    writer.set("tokenizer.ggml.tokens", vec!["<s>".to_owned(), "a".to_owned()]);
    writer.write_file(&path).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert!(file.tensors().is_empty());
    assert_eq!(file.metadata().require_str_array("tokenizer.ggml.tokens").unwrap(), ["<s>", "a"]);

    // Files without tensors may also end right after the metadata.
    let mut bytes = fs::read(&path).unwrap();
    bytes.truncate(bytes.iter().rposition(|&byte| byte == b'a').unwrap() + 1);
    assert!(!bytes.len().is_multiple_of(32));
    GgufFile::from_bytes(bytes).unwrap();
}

#[test]
fn tensor_data_may_be_in_another_order_than_the_records() {
    let mut bytes = small().to_bytes().unwrap();
    let header = fewbit_format::parse(&bytes).unwrap();
    // The offsets are the last eight bytes of the two records: swap them, and move the tensors along.
    let records = |name: &str| bytes.windows(8).position(|window| window == name.as_bytes()).unwrap() + 8;
    let (a, b) = (records("tensor.a") + 4 + 16 + 4, records("tensor.b") + 4 + 8 + 4);
    bytes[a..a + 8].copy_from_slice(&32u64.to_le_bytes());
    bytes[b..b + 8].copy_from_slice(&0u64.to_le_bytes());
    let data = header.data_offset as usize;
    bytes[data..data + 28].copy_from_slice(&counting(28));
    bytes[data + 32..data + 100].copy_from_slice(&counting(68));

    let file = GgufFile::from_bytes(bytes).unwrap();
    assert_eq!(file.tensor_bytes(&file.tensors()[0]), counting(68));
    assert_eq!(file.tensor_bytes(&file.tensors()[1]), counting(28));
}

#[test]
fn gguf_file_is_send_and_sync() {
    fn check<T: Send + Sync + 'static>() {}
    check::<GgufFile>();
    check::<Metadata>();
    check::<FormatError>();
}

fn names_in(folder: &std::path::Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
