//! The test models of `fewbit-model`, and helpers to compare their results.

#[path = "../../../fewbit-model/tests/support/described.rs"]
#[allow(dead_code)]
pub(crate) mod described;

#[path = "../../../fewbit-model/tests/support/golden.rs"]
#[allow(dead_code)]
pub(crate) mod golden;

#[allow(dead_code)]
pub(crate) mod families;

use fewbit_format::{GgufFile, GgufWriter};
use fewbit_model::{Chunk, Decoder, KvCache, LoadOptions, LogitsFor};
use fewbit_quant::TensorType;
use golden::{GoldenModel, values};
use std::path::{Path, PathBuf};

/// The options to load a test model with, on one thread.
pub(crate) fn options(model: &GoldenModel) -> LoadOptions {
    let mut options = LoadOptions::new().threads(1);
    options.context_length = model.options.context_length;
    options
}

/// The logits of `tokens`, which are appended to the cache in chunks of `size`: `[tokens, n_vocab]`.
pub(crate) fn logits(decoder: &Decoder, cache: &mut KvCache, tokens: &[u32], size: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for tokens in tokens.chunks(size) {
        let chunk = Chunk { cache, tokens, logits: LogitsFor::All };
        all.extend_from_slice(decoder.forward(&mut [chunk]).expect("runs").values_mut());
    }
    all
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Writes an adapter of rank 3 for these matrices of the layers 0 and 1.
#[allow(dead_code)]
pub(crate) fn adapter(folder: &Path, file: &GgufFile, names: &[&str]) -> PathBuf {
    let mut w = GgufWriter::new();
    w.set("general.architecture", "llama");
    w.set("general.type", "adapter");
    w.set("adapter.type", "lora");
    w.set("adapter.lora.alpha", 6.0f32);
    for name in names {
        let shape = &file.tensors().iter().find(|t| t.name == *name).expect("a matrix of the model").shape;
        for (half, shape) in [("lora_a", [3, shape[1]]), ("lora_b", [shape[0], 3])] {
            let name = format!("{name}.{half}");
            let bytes = values(&name, (shape[0] * shape[1]) as usize, 0.2, 0.0);
            w.tensor(name, &shape, TensorType::F32, bytes).expect("a valid tensor");
        }
    }
    let path = folder.join("adapter.gguf");
    w.write_file(&path).expect("writable");
    path
}
