//! Models in Hugging Face repositories: a folder with `config.json` and safetensors files.
//!
//! [`HfModel`] presents such a folder as a source of the tensors that the same model has in a GGUF file, so that
//! loading either gives the same bits:
//!
//! - names are those of GGUF (`names.rs`);
//! - queries and keys are permuted for architectures whose GGUF files use interleaved pairs: element `2 i + j` of a
//!   head in GGUF is element `j n / 2 + i` here (`n` elements are rotated);
//! - norms of the Gemma family, which are stored minus 1, get the 1 added;
//! - quantized matrices become blocks of a GGUF type (`ints.rs`, `fp8.rs`);
//! - heads of gated delta rules get the order of GGUF files (`modules.rs`);
//! - tensors that hold the matrices of all experts are split, and turned to a row for each output (`experts.rs`);
//! - matrices that give keys and values from a latent are split, and those of keys turned (`latent.rs`).

mod config;
mod error;
mod experts;
mod fp8;
mod generation;
mod ints;
pub mod json;
mod latent;
mod layers;
mod modules;
mod part;
mod pooling;
mod routing;
mod scheme;

pub use error::HfError;
pub use generation::GenerationDefaults;
pub use part::plain_type;

use crate::source::{WeightSource, decode, n_cols, row_bytes};
use crate::{CheckpointError, ModelConfig, families, names};
use fewbit_format::{FormatError, SafetensorsModel, TensorInfo, safetensors};
use fewbit_quant::{RopeStyle, TensorType, Workers};
use modules::{Order, Stored, Tensors};
use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";

/// The configuration in a `config.json`, without any weights.
#[cfg(test)]
pub(crate) fn config_only(map: &serde_json::Map<String, serde_json::Value>) -> Result<ModelConfig, CheckpointError> {
    config::read(json::Object::new(CONFIG, map)).map(|(config, _)| config)
}

/// Number of rows that a thread converts at a time: rows of quantized matrices share cache lines.
const ROWS_AT_ONCE: usize = 64;

/// An open Hugging Face folder: its configuration, and its tensors under their GGUF names.
pub struct HfModel {
    path: PathBuf,
    files: SafetensorsModel,
    json: serde_json::Map<String, serde_json::Value>,
    config: ModelConfig,
    tensors: Tensors,
}

impl HfModel {
    /// Opens a folder: reads its configuration and the headers of its files, and checks that they match.
    ///
    /// # Errors
    /// [`CheckpointError::Hf`] and [`CheckpointError::Format`] for files that are missing or damaged,
    /// [`CheckpointError::UnknownArchitecture`], [`CheckpointError::UnsupportedFeature`] and
    /// [`CheckpointError::BadConfig`] for configurations, and the errors for tensors that are missing or have the wrong
    /// shape.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let config_path = path.join(CONFIG);
        let map = json::read(&config_path)?.ok_or(HfError::MissingFile { path: config_path })?;
        let object = json::Object::new(CONFIG, &map);
        let (mut config, extras) = config::read(object)?;
        config.pooling = pooling::read(path)?;
        // GPTQ's first tools wrote a separate file.
        let own = match object.has("quantization_config") {
            true => None,
            false => json::read(&path.join("quantize_config.json"))?,
        };
        let scheme = match &own {
            Some(own) => scheme::Scheme::read_gptq(json::Object::new("quantize_config.json", own))?,
            None => scheme::Scheme::read(object.object("quantization_config", "quantization_config.")?)?,
        };
        let files = SafetensorsModel::open(path).map_err(|error| match error {
            FormatError::NoModelInFolder { .. } => no_weights(path).into(),
            error => CheckpointError::Format(error),
        })?;
        if !modules::has_mtp(&files, &config, &extras) {
            config.mtp = None;
        }
        let tensors = modules::read(&files, &config, &extras, scheme)?;
        let model = Self { path: path.to_owned(), files, json: map, config, tensors };
        model.check(&extras)?;
        Ok(model)
    }

    /// Returns an error unless the tensors match the configuration.
    fn check(&self, extras: &config::Extras) -> Result<(), CheckpointError> {
        let missing = |name: &str| CheckpointError::MissingTensor { name: self.name_in_file(name) };
        let embedding = self.tensor("token_embd.weight").ok_or_else(|| missing("token_embd.weight"))?;
        if let Some(n_vocab) = extras.n_vocab {
            let expected = vec![n_vocab as u64, self.config.dim as u64];
            if embedding.shape != expected {
                let name = self.name_in_file(&embedding.name);
                return Err(CheckpointError::TensorShape { name, expected, found: embedding.shape.clone() });
            }
        }
        if !extras.tied && self.tensor("output.weight").is_none() {
            return Err(missing("output.weight"));
        }
        if !extras.lacks_values {
            let needs = |&i: &usize| self.config.can_lack_values(i) && !self.config.shares_kv(i);
            for i in (0..self.config.n_layers()).filter(needs) {
                let name = format!("blk.{i}.attn_v.weight");
                self.tensor(&name).ok_or_else(|| missing(&name))?;
            }
        }
        if extras.has_qkv_bias {
            for i in (0..self.config.n_layers()).filter(|&i| self.config.has_keys_values(i)) {
                for part in ["q", "k", "v"] {
                    let name = format!("blk.{i}.attn_{part}.bias");
                    self.tensor(&name).ok_or_else(|| missing(&name))?;
                }
            }
        }
        Ok(())
    }

    /// Some rows, of `unit` bytes each, of what a tensor is stored as; in a vector whose elements are permuted, some
    /// elements.
    fn units(
        &self,
        workers: &dyn Workers,
        stored: &Stored,
        order: Order,
        unit: usize,
        units: Range<usize>,
    ) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let source = |row: usize| order.source(&self.config, row);
        let first = units.start;
        let whole = |out: &mut Vec<u8>| out.resize(units.len() * unit, 0);
        let mut out = Vec::new();
        match stored {
            Stored::Plain(plain) => {
                let bytes = self.files.tensor_bytes(plain);
                if order == Order::Same {
                    return Ok(Cow::Borrowed(&bytes[units.start * unit..units.end * unit]));
                }
                whole(&mut out);
                workers.fill_rows(&mut out, unit, ROWS_AT_ONCE, &|rows, out| {
                    for (row, out) in rows.zip(out.chunks_exact_mut(unit)) {
                        let at = source(first + row) * unit;
                        out.copy_from_slice(&bytes[at..at + unit]);
                    }
                });
            }
            Stored::MinusOne { tensor: plain, ty } => {
                let n = units.len() * unit / TensorType::F32.block_bytes();
                let values = decode(&plain.name, *ty, self.files.tensor_bytes(plain), n)?;
                out.extend(values.into_iter().flat_map(|v| (v + 1.0).to_le_bytes()));
            }
            Stored::Log { tensor: plain, ty } => {
                let bytes = self.files.tensor_bytes(plain);
                let elems = [units.start, units.end].map(|at| at * unit / TensorType::F32.block_bytes());
                let values = decode(&plain.name, *ty, bytes, bytes.len() / ty.block_bytes())?;
                // In f64 with the pure-Rust `libm`, so that it is the same on every platform.
                let negated = |i: usize| -libm::exp(f64::from(values[source(i)])) as f32;
                out.extend((elems[0]..elems[1]).flat_map(|i| negated(i).to_le_bytes()));
            }
            Stored::Fp8(fp8) => {
                let (codes, scales) = (self.files.tensor_bytes(&fp8.weight), fp8.scales(&self.files)?);
                whole(&mut out);
                workers.fill_rows(&mut out, unit, ROWS_AT_ONCE, &|rows, out| {
                    for (row, out) in rows.zip(out.chunks_exact_mut(unit)) {
                        fp8.write_row(codes, &scales, source(first + row), out);
                    }
                });
            }
            Stored::Columns(columns) => {
                let n_rows = units.len() * unit / columns.row_bytes();
                let first = first * unit / columns.row_bytes();
                let bytes = self.files.tensor_bytes(&columns.tensor);
                whole(&mut out);
                debug_assert_eq!(n_rows * columns.row_bytes(), out.len(), "whole rows");
                workers.fill_rows(&mut out, columns.row_bytes(), ROWS_AT_ONCE, &|rows, out| {
                    columns.write_rows(bytes, first + rows.start..first + rows.end, out);
                });
            }
            Stored::Mxfp4(mxfp4) => {
                let [blocks, scales] = [&mxfp4.blocks, &mxfp4.scales].map(|tensor| self.files.tensor_bytes(tensor));
                whole(&mut out);
                workers.fill_rows(&mut out, unit, ROWS_AT_ONCE, &|rows, out| {
                    for (row, out) in rows.zip(out.chunks_exact_mut(unit)) {
                        mxfp4.write_row(blocks, scales, source(first + row), out);
                    }
                });
            }
            Stored::Turned(turned) => {
                let rows =
                    |rows: Range<usize>| self.units(workers, &turned.stored, Order::Same, turned.row_bytes(), rows);
                turned.write_rows(units, &rows, &mut out)?;
            }
            Stored::Ints(ints) => {
                let data = ints.data(&self.files)?;
                whole(&mut out);
                workers.fill_rows(&mut out, unit, ROWS_AT_ONCE, &|rows, out| {
                    let rows: Vec<usize> = rows.map(|row| source(first + row)).collect();
                    ints.write_rows(&data, &rows, out);
                });
            }
        }
        if order == Order::TiledColumns {
            workers.fill_rows(&mut out, unit, ROWS_AT_ONCE, &|_, out| {
                out.chunks_exact_mut(unit).for_each(|row| self.tile_columns(row));
            });
        }
        Ok(Cow::Owned(out))
    }

    /// Puts the value heads of a row of a matrix, which fill it, into tiled order.
    fn tile_columns(&self, row: &mut [u8]) {
        let Some(delta) = self.config.delta_net() else { return };
        let (grouped, head_bytes) = (row.to_vec(), row.len() / delta.n_v_heads);
        for (head, tiled) in row.chunks_exact_mut(head_bytes).enumerate() {
            let from = delta.grouped_head(head) * head_bytes;
            tiled.copy_from_slice(&grouped[from..from + head_bytes]);
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The contents of `config.json`.
    pub fn config_json(&self) -> &serde_json::Map<String, serde_json::Value> {
        &self.json
    }

    /// The safetensors files.
    pub fn files(&self) -> &SafetensorsModel {
        &self.files
    }

    /// The sampling settings that `generation_config.json` recommends.
    ///
    /// # Errors
    /// [`HfError`] if there is such a file but it cannot be read.
    pub fn generation_defaults(&self) -> Result<GenerationDefaults, HfError> {
        GenerationDefaults::read(&self.path)
    }
}

impl WeightSource for HfModel {
    fn config(&self) -> Result<ModelConfig, CheckpointError> {
        Ok(self.config.clone())
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.tensors.all()
    }

    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|(info, _)| info)
    }

    fn rows(
        &self,
        workers: &dyn Workers,
        tensor: &TensorInfo,
        rows: Range<usize>,
    ) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let (_, entry) = self.tensors.get(&tensor.name).expect("a tensor of this source");
        // In a vector, the elements are permuted.
        let is_vector = tensor.shape.len() < 2;
        let (unit, units) = match is_vector && entry.order != Order::Same {
            true => (tensor.ty.block_bytes(), 0..n_cols(tensor)),
            false => (row_bytes(tensor), rows),
        };
        self.units(workers, &entry.stored, entry.order, unit, units)
    }

    fn release(&self, tensor: &TensorInfo) {
        if let Some((_, entry)) = self.tensors.get(&tensor.name) {
            entry.stored.tensors().into_iter().for_each(|part| self.files.release(part));
        }
    }

    fn name_in_file(&self, name: &str) -> String {
        if let Some((_, entry)) = self.tensors.get(name) {
            return entry.stored.tensors().first().map_or_else(|| name.to_owned(), |tensor| tensor.name.clone());
        }
        let architecture = &self.config.architecture;
        let known = name
            .rsplit_once('.')
            .and_then(|(module, leaf)| names::to_hf(module, architecture).map(|module| format!("{module}.{leaf}")));
        names::to_hf(name, architecture).or(known).unwrap_or_else(|| name.to_owned())
    }
}

/// Names of weight files of other tools: PyTorch, and Mistral's own releases.
const OTHER_WEIGHTS: [&str; 5] = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "consolidated.safetensors",
    "consolidated.safetensors.index.json",
    "consolidated.00.pth",
];

/// The error of a folder without `model.safetensors`.
fn no_weights(folder: &Path) -> HfError {
    match OTHER_WEIGHTS.iter().map(|name| folder.join(name)).find(|path| path.exists()) {
        Some(path) => HfError::OtherWeights { path },
        None => HfError::MissingFile { path: folder.join("model.safetensors") },
    }
}

/// Whether GGUF files of this model store queries and keys in another order.
pub fn permutes(config: &ModelConfig) -> bool {
    config.rope.style == RopeStyle::Interleaved && !families::has_same_pairs(&config.architecture)
}

/// Position in the files of a row of q or k (or of an element of a bias) of such a model.
pub fn unpermuted(config: &ModelConfig, row: usize) -> usize {
    let (head_dim, n) = (config.head_dim, config.rope.n_dims);
    let (head, e) = (row / head_dim, row % head_dim);
    if e < n { head * head_dim + e % 2 * (n / 2) + e / 2 } else { row }
}

impl std::fmt::Debug for HfModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HfModel").field("path", &self.path).field("config", &self.config).finish_non_exhaustive()
    }
}

/// A tensor of a safetensors header.
type FileTensor = safetensors::TensorInfo;
