//! The story model of the repository, and the logits of any model.

use fewbit_format::GgufFile;
use fewbit_model::{Chunk, Decoder, KvCache, LogitsFor};

/// The story model with 260K parameters, which is in the repository.
pub(crate) fn stories() -> GgufFile {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/stories260K-f32.gguf");
    GgufFile::open(path.as_ref()).expect("the file is part of the repository")
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
