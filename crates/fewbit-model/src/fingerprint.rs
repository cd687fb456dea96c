//! A hash that identifies a model, whatever file it comes from and wherever its layers are.
//!
//! It covers the configuration, the type of the cache, and of every tensor the name, shape and type and 64 bytes out of
//! every 4096. Sampling makes it practically free (a fiftieth of a percent of the loading time), and it still detects
//! every change that training, quantizing or editing a matrix makes. It is not secure against somebody who searches for
//! two models with the same hash. Keys and values computed by one version of fewbit must not be used by another one
//! that computes differently: [`ARITHMETIC`] is part of the hash, and a test checks the bits of small models against
//! it.

use crate::{KvType, ModelConfig};
use fewbit_checkpoint::RopeScaling;
use fewbit_format::TensorInfo;
use std::collections::BTreeMap;
use xxhash_rust::xxh3::Xxh3;

/// Must be raised when the same model gives other bits than before.
pub(crate) const ARITHMETIC: u32 = 1;

/// The first [`SAMPLE`] bytes out of this many bytes of a tensor are hashed.
const STRIDE: usize = 4096;
const SAMPLE: usize = 64;

/// Hashes of tensors, by name.
pub(crate) type TensorHashes = BTreeMap<String, u128>;

/// The hash so far.
pub(crate) struct Fingerprint {
    /// By name, because tensors may come in any order: number of bytes seen so far, and their hash.
    tensors: BTreeMap<String, (usize, Xxh3)>,
}

impl Fingerprint {
    pub(crate) fn new() -> Self {
        Self { tensors: BTreeMap::new() }
    }

    /// Adds the next bytes of a tensor. The hash does not depend on how they are split.
    pub(crate) fn add(&mut self, tensor: &TensorInfo, bytes: &[u8]) {
        if !self.tensors.contains_key(&tensor.name) {
            self.tensors.insert(tensor.name.clone(), (0, about(tensor)));
        }
        let Some((seen, hasher)) = self.tensors.get_mut(&tensor.name) else { return };
        let (start, end) = (*seen, *seen + bytes.len());
        if end as u64 > tensor.n_bytes {
            // This is the second time: the embedding, read again for an output matrix on another device.
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

    /// The hashes of the tensors, by name.
    pub(crate) fn tensors(&self) -> TensorHashes {
        self.tensors.iter().map(|(name, (_, hasher))| (name.clone(), hasher.digest128())).collect()
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

/// The hash of a tensor's name, shape and type.
fn about(tensor: &TensorInfo) -> Xxh3 {
    let mut hasher = Xxh3::new();
    hasher.update(tensor.name.as_bytes());
    hasher.update(&[0]);
    hasher.update(tensor.ty.to_string().as_bytes());
    tensor.shape.iter().for_each(|dim| hasher.update(&dim.to_le_bytes()));
    hasher
}

/// All fields of a configuration that keys, values and logits depend on.
fn of_config(config: &ModelConfig) -> String {
    let mut config = config.clone();
    // Names are for humans, and pooling happens after the model.
    (config.name, config.pooling) = (None, None);
    config.architecture.clear();
    // The length of the context only selects the divisors of LongRoPE.
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
    fn hash_does_not_depend_on_how_bytes_are_split() {
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
