//! Models of Hugging Face's library, as `golden/transformers_models.py` describes them.

use crate::described::Described;
use crate::golden::values;
use crate::hf::{Folder, Tensor};
use fewbit_format::{GgufFile, Metadata};
use fewbit_model::HfModel;
use fewbit_model::quantize::{FileOptions, Recipe, quantize_folder};
use serde::Deserialize;
use serde_json::Map;
use tempfile::TempDir;

#[derive(Deserialize)]
pub(crate) struct Models {
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<usize>,
    pub(crate) models: Vec<Model>,
}

#[derive(Deserialize)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) config: Map<String, serde_json::Value>,
    /// Name, element type, shape, scale and offset.
    pub(crate) tensors: Vec<(String, String, Vec<u64>, f64, f64)>,
    pub(crate) gguf: Described,
}

impl Model {
    pub(crate) fn folder(&self) -> Folder {
        let tensors = self.tensors.iter().map(|(name, dtype, shape, scale, offset)| {
            let n = shape.iter().product::<u64>() as usize;
            let (dtype, bytes) = match dtype.as_str() {
                "F32" => ("F32", values(name, n, *scale as f32, *offset as f32)),
                _ => {
                    let units = values(name, n, 1.0, 0.0);
                    let units = units.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)));
                    ("U8", units.map(|u| ((u + 1.0) * 128.0 * scale).floor() as u8 + *offset as u8).collect())
                }
            };
            Tensor { name: name.clone(), dtype, shape: shape.clone(), bytes }
        });
        Folder { config: self.config.clone(), tensors: tensors.collect() }
    }

    pub(crate) fn opened(&self) -> (TempDir, HfModel) {
        let to = tempfile::tempdir().expect("a folder");
        self.folder().write(to.path());
        let model = HfModel::open(to.path()).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        (to, model)
    }

    /// The file that fewbit makes.
    pub(crate) fn quantized(&self, recipe: Recipe) -> GgufFile {
        let (to, model) = self.opened();
        let out = to.path().join("out.gguf");
        quantize_folder(&model, &Metadata::default(), &out, &FileOptions::new(recipe), &mut |_, _| {})
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        GgufFile::from_bytes(std::fs::read(&out).expect("written above")).expect("a valid file")
    }

    /// The file that llama.cpp's converter makes: its keys, and the tensors, which are those of `file`.
    pub(crate) fn converted(&self, file: &GgufFile) -> GgufFile {
        let mut w = self.gguf.writer();
        for tensor in file.tensors() {
            let bytes = file.tensor_bytes(tensor).to_vec();
            w.tensor(tensor.name.clone(), &tensor.shape, tensor.ty, bytes).expect("a valid tensor");
        }
        GgufFile::from_bytes(w.to_bytes().expect("a valid file")).expect("a valid file")
    }
}

pub(crate) fn fnv(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01B3));
    format!("{hash:016x}")
}
