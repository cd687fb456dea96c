//! The tiny models of `golden/models.json`, one for every part that a configuration can have, and their float64
//! logits. `golden/reference.py` made both.

use crate::random::Random;
use fewbit_format::{GgufFile, GgufWriter, Value};
use fewbit_quant::TensorType;
use serde::Deserialize;
use std::collections::BTreeMap;

/// One model, as the script describes it.
#[derive(Deserialize)]
pub(crate) struct GoldenModel {
    pub(crate) name: String,
    pub(crate) options: Options,
    /// Its sliding window, or 0.
    pub(crate) window: usize,
    pub(crate) metadata: BTreeMap<String, (String, serde_json::Value)>,
    /// Name, shape (rows first), scale, offset.
    tensors: Vec<(String, Vec<u64>, f64, f64)>,
    n_tokens: usize,
    /// Tokens whose logits the script wrote.
    pub(crate) positions: Vec<usize>,
    /// The first tokens of the text that all models share.
    #[serde(skip)]
    pub(crate) tokens: Vec<u32>,
    /// `[positions, n_vocab]`
    #[serde(skip)]
    pub(crate) logits: Vec<f32>,
}

/// How the model is loaded.
#[derive(Deserialize)]
pub(crate) struct Options {
    pub(crate) context_length: Option<usize>,
}

#[derive(Deserialize)]
struct Models {
    tokens: Vec<u32>,
    models: Vec<GoldenModel>,
}

pub(crate) const N_VOCAB: usize = 61;

/// All of them.
pub(crate) fn golden_models() -> Vec<GoldenModel> {
    let models: Models = serde_json::from_str(include_str!("../golden/models.json")).expect("valid JSON");
    let bytes = include_bytes!("../golden/models.f32").as_chunks::<4>().0;
    let mut logits = bytes.iter().map(|b| f32::from_le_bytes(*b));
    let fill = |mut model: GoldenModel| {
        model.tokens = models.tokens[..model.n_tokens].to_vec();
        model.logits = logits.by_ref().take(model.positions.len() * N_VOCAB).collect();
        model
    };
    models.models.into_iter().map(fill).collect()
}

impl GoldenModel {
    /// The model as a file with the script's f32 weights.
    pub(crate) fn file(&self) -> GgufFile {
        self.build(|name, shape, scale, offset| (TensorType::F32, values(name, n_elems(shape), scale, offset)))
    }

    /// The model with random quantized weights in all its matrices, of two types in turn.
    pub(crate) fn quantized(&self, types: [TensorType; 2]) -> GgufFile {
        let (mut random, mut i) = (Random(7), 0);
        self.build(|name, shape, scale, offset| {
            i += 1;
            let (ty, n) = (types[i % 2], n_elems(shape));
            match shape.len() > 1 && shape[shape.len() - 1].is_multiple_of(32) {
                true => (ty, random.blocks(ty, n)),
                false => (TensorType::F32, values(name, n, scale, offset)),
            }
        })
    }

    fn build(&self, mut bytes: impl FnMut(&str, &[u64], f32, f32) -> (TensorType, Vec<u8>)) -> GgufFile {
        let mut w = self.writer();
        for (name, shape, scale, offset) in &self.tensors {
            let (ty, bytes) = bytes(name, shape, *scale as f32, *offset as f32);
            w.tensor(name.clone(), shape, ty, bytes).expect("a valid tensor");
        }
        GgufFile::from_bytes(w.to_bytes().expect("a valid file")).expect("a valid file")
    }

    /// A writer that has the metadata.
    pub(crate) fn writer(&self) -> GgufWriter<'static> {
        let mut w = GgufWriter::new();
        for (key, (kind, value)) in &self.metadata {
            let value = match (kind.as_str(), value) {
                ("string", value) => Value::from(value.as_str().expect("text")),
                ("u32", value) => Value::from(value.as_u64().expect("an integer") as u32),
                ("f32", value) => Value::from(value.as_f64().expect("a number") as f32),
                (_, value) => Value::from(
                    value.as_array().expect("a list").iter().map(|b| b.as_bool().expect("a bool")).collect::<Vec<_>>(),
                ),
            };
            w.set(key.clone(), value);
        }
        w
    }
}

fn n_elems(shape: &[u64]) -> usize {
    shape.iter().product::<u64>() as usize
}

/// The values that `values` of the script makes.
pub(crate) fn values(name: &str, n: usize, scale: f32, offset: f32) -> Vec<u8> {
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    (1..=n as u64)
        .flat_map(|i| {
            let z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            let unit = (((z ^ z >> 31) >> 40) as i64 - (1 << 23)) as f32 / (1 << 23) as f32;
            (unit * scale + offset).to_le_bytes()
        })
        .collect()
}
