//! What tells a model from others, whatever file it comes from and wherever its layers are.
//!
//! The hash of its configuration, of the type of its cache, and of every tensor: its name, shape and type, and 64 bytes
//! out of each 4096. Sampling makes it free (a fiftieth of a percent of the time of loading), and finds every change
//! that training, quantizing or editing a matrix makes; it is no proof against somebody who looks for two models with
//! the same one. Keys and values that were computed by one version of fewbit must not meet another that computes
//! differently: [`ARITHMETIC`] is part of the hash, and a test holds the bits of small models to it.

use crate::{KvType, ModelConfig};
use fewbit_checkpoint::RopeScaling;
use fewbit_format::TensorInfo;
use std::collections::BTreeMap;
use xxhash_rust::xxh3::Xxh3;

/// Goes up when the same model gives other bits than before.
pub(crate) const ARITHMETIC: u32 = 1;

/// Of each so many bytes of a tensor, the first [`SAMPLE`] are hashed.
const STRIDE: usize = 4096;
const SAMPLE: usize = 64;

/// The hash so far.
pub(crate) struct Fingerprint {
    /// By name, as tensors may come in any order: bytes that were seen, and their hash.
    tensors: BTreeMap<String, (usize, Xxh3)>,
}

impl Fingerprint {
    pub(crate) fn new() -> Self {
        Self { tensors: BTreeMap::new() }
    }

    /// Adds the next bytes of a tensor. However they are cut, the hash is the same.
    pub(crate) fn add(&mut self, tensor: &TensorInfo, bytes: &[u8]) {
        if !self.tensors.contains_key(&tensor.name) {
            self.tensors.insert(tensor.name.clone(), (0, about(tensor)));
        }
        let Some((seen, hasher)) = self.tensors.get_mut(&tensor.name) else { return };
        let (start, end) = (*seen, *seen + bytes.len());
        if end as u64 > tensor.n_bytes {
            // A second time: the embedding, for an output matrix on another device.
            return;
        }
        *seen = end;
        for sample in (start / STRIDE * STRIDE..end).step_by(STRIDE) {
            let (from, to) = (sample.max(start), (sample + SAMPLE).min(end));
            if from < to {
                hasher.update(&bytes[from - start..to - start]);
            }
        }
    }

    pub(crate) fn finish(&self, config: &ModelConfig, kv_type: KvType) -> u128 {
        let mut hasher = Xxh3::new();
        hasher.update(&ARITHMETIC.to_le_bytes());
        hasher.update(kv_type.name().as_bytes());
        hasher.update(of_config(config).as_bytes());
        for (_, tensor) in self.tensors.values() {
            hasher.update(&tensor.digest128().to_le_bytes());
        }
        hasher.digest128()
    }
}

/// The hash of what a tensor is.
fn about(tensor: &TensorInfo) -> Xxh3 {
    let mut hasher = Xxh3::new();
    hasher.update(tensor.name.as_bytes());
    hasher.update(&[0]);
    hasher.update(tensor.ty.to_string().as_bytes());
    tensor.shape.iter().for_each(|dim| hasher.update(&dim.to_le_bytes()));
    hasher
}

/// Everything about a configuration that the keys, values and logits depend on.
fn of_config(config: &ModelConfig) -> String {
    let mut config = config.clone();
    // Names are for people, and how a text becomes one vector comes after the model.
    (config.name, config.pooling) = (None, None);
    config.architecture.clear();
    // How long a sequence may get changes nothing but which divisors LongRoPE takes.
    let is_long = |rope: &crate::RopeConfig| match rope.scaling {
        RopeScaling::LongRope { original_context, .. } => config.context_length > original_context,
        _ => false,
    };
    let long = (is_long(&config.rope), config.local_rope.as_ref().is_some_and(is_long));
    config.context_length = 0;
    format!("{long:?} {config:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewbit_quant::TensorType;

    fn tensor(name: &str) -> TensorInfo {
        TensorInfo { name: name.to_owned(), shape: vec![100, 100], ty: TensorType::F32, offset: 0, n_bytes: 40_000 }
    }

    fn hash(pieces: &[&[u8]]) -> u128 {
        let mut fingerprint = Fingerprint::new();
        pieces.iter().for_each(|bytes| fingerprint.add(&tensor("a"), bytes));
        fingerprint.tensors["a"].1.digest128()
    }

    #[test]
    fn it_does_not_matter_how_a_tensor_is_cut() {
        let bytes: Vec<u8> = (0..40_000u32).map(|i| ((i * i) >> 3) as u8).collect();
        let whole = hash(&[&bytes]);
        for at in [1, 63, 64, 65, 4095, 4096, 4100, 4160, 8192, 39_999] {
            assert_eq!(hash(&[&bytes[..at], &bytes[at..]]), whole, "cut at {at}");
        }
        assert_eq!(hash(&bytes.chunks(37).collect::<Vec<_>>()), whole);
        let mut other = bytes.clone();
        other[4096] ^= 1;
        assert_ne!(hash(&[&other]), whole);
    }
}
