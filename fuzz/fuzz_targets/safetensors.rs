//! Arbitrary bytes as a safetensors file, and as the index of a model of several files.
//!
//! See `gguf.rs` for how to run it.
#![no_main]

use fewbit_format::SafetensorsModel;
use fewbit_format::safetensors::parse_index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(weight_map) = parse_index(bytes) {
        for shard in weight_map.values() {
            assert!(!shard.contains(['/', '\\']) && shard != "..", "{shard} leads out of its folder");
        }
    }
    let Ok(model) = SafetensorsModel::from_bytes(bytes.to_vec()) else { return };
    let mut n_data = 0;
    for tensor in model.tensors() {
        assert_eq!(model.tensor_bytes(tensor).len() as u64, tensor.n_bytes);
        assert_eq!(model.tensor(&tensor.name), Some(tensor));
        n_data += tensor.n_bytes;
    }
    // No gap and no overlap: header length, header and tensors are the whole file.
    let n_header = u64::from_le_bytes(bytes[..8].try_into().expect("a valid file is longer"));
    assert_eq!(8 + n_header + n_data, model.file_bytes());
});
