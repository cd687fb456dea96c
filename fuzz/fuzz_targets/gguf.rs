//! Arbitrary bytes as a GGUF file: the parser returns, and what it accepts keeps its promises.
//!
//! ```text
//! cargo xtask fuzz --seconds 60 gguf
//! ```
#![no_main]

use fewbit_format::{GgufFile, GgufWriter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = GgufFile::from_bytes(bytes.to_vec()) else { return };
    let mut end = 0;
    let mut tensors: Vec<_> = file.tensors().iter().collect();
    tensors.sort_by_key(|tensor| tensor.offset);
    for tensor in tensors {
        assert!(tensor.offset >= end, "{} shares bytes with the tensor before it", tensor.name);
        end = tensor.offset + tensor.n_bytes;
        assert_eq!(file.tensor_bytes(tensor).len() as u64, tensor.n_bytes);
        assert_eq!(file.tensor(&tensor.name), Some(tensor));
    }

    // Whatever was read can be written (unless a name is longer than the writer allows), and is read as the
    // same again.
    let mut writer = GgufWriter::with_metadata(file.metadata().clone());
    for tensor in file.tensors() {
        let bytes = file.tensor_bytes(tensor);
        if writer.tensor(tensor.name.as_str(), &tensor.shape, tensor.ty, bytes).is_err() {
            return;
        }
    }
    let written = writer.to_bytes().expect("what was valid once");
    let again = GgufFile::from_bytes(written).expect("our own file is valid");
    assert_eq!(again.metadata().len(), file.metadata().len());
    assert_eq!(again.tensors().len(), file.tensors().len());
    for (before, after) in file.tensors().iter().zip(again.tensors()) {
        assert_eq!((&before.name, &before.shape, before.ty), (&after.name, &after.shape, after.ty));
        assert_eq!(file.tensor_bytes(before), again.tensor_bytes(after));
    }
});
