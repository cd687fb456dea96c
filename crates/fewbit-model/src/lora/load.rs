//! Loads an adapter: checks its file against the model and splits it by matrix.

use super::{AdapterPart, Inner, Lora, LoraError, LoraTarget, LowRank, Scaled, gguf, peft};
use crate::{ModelConfig, ModelError, available_bytes};
use fewbit_checkpoint::hf::unpermuted;
use fewbit_checkpoint::names::{self, Part};
use fewbit_quant::TensorType;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use xxhash_rust::xxh3::Xxh3;

/// The properties of a model that loading an adapter needs.
pub(crate) struct LoraModel<'a> {
    pub(crate) id: u64,
    pub(crate) config: &'a ModelConfig,
    pub(crate) n_vocab: usize,
    /// `[n_layers]`
    pub(crate) fused: &'a [Fused],
    /// Passes a part to the device that holds its matrix.
    pub(crate) load_part: &'a dyn Fn(&LowRank<'_>) -> Result<AdapterPart, ModelError>,
}

/// Which tensors of a layer hold several matrices, one after another.
#[derive(Clone, Copy)]
pub(crate) struct Fused {
    /// Queries, keys and values are one tensor.
    pub(crate) qkv: bool,
    /// The rows of the gate precede those of the matrix that it is multiplied with.
    pub(crate) gate_up: bool,
    /// There is no matrix of values: what that of keys gives is both.
    pub(crate) lacks_values: bool,
}

/// One tensor of an adapter's file.
pub(super) struct Half<'a> {
    pub(super) name: &'a str,
    /// Rows first.
    pub(super) shape: &'a [u64],
    pub(super) ty: TensorType,
    pub(super) bytes: &'a [u8],
}

/// The tensors of a file for one of the model's tensors.
pub(super) struct Pair<'a> {
    pub(super) part: Part,
    pub(super) layer: usize,
    pub(super) a: Half<'a>,
    pub(super) b: Half<'a>,
    /// alpha / rank, where the shapes must confirm the rank.
    pub(super) scale: f32,
    /// The rank that a configuration specifies.
    pub(super) rank: Option<usize>,
    /// Rows of B are ordered for half-split pairs, but the model's rows for interleaved ones.
    pub(super) is_permuted: bool,
}

/// The file or folder of an adapter, opened.
enum File {
    Gguf(Box<gguf::Adapter>),
    Peft(Box<peft::Adapter>),
}

impl File {
    fn open(path: &Path) -> Result<Self, LoraError> {
        Ok(match path.is_dir() {
            true => Self::Peft(Box::new(peft::Adapter::open(path)?)),
            false => Self::Gguf(Box::new(gguf::Adapter::open(path)?)),
        })
    }

    fn pairs(&self, config: &ModelConfig) -> Result<Vec<Pair<'_>>, LoraError> {
        match self {
            Self::Gguf(file) => file.pairs(config),
            Self::Peft(folder) => folder.pairs(config),
        }
    }

    /// Number of elements of all tensors.
    fn n_elems(&self) -> u64 {
        let count = |shape: &[u64]| shape.iter().fold(1u64, |n, &dim| n.saturating_mul(dim));
        match self {
            Self::Gguf(file) => file.shapes().map(count).fold(0, u64::saturating_add),
            Self::Peft(folder) => folder.shapes().map(count).fold(0, u64::saturating_add),
        }
    }
}

/// Loads an adapter: a GGUF file, or a folder as written by PEFT.
pub(crate) fn load(path: &Path, model: &LoraModel<'_>) -> Result<Lora, LoraError> {
    let file = File::open(path)?;
    let needed_bytes = file.n_elems().saturating_mul(4);
    if let Some(available_bytes) = available_bytes().filter(|&free| needed_bytes > free) {
        return Err(LoraError::DoesNotFit { path: path.to_owned(), needed_bytes, available_bytes });
    }
    let mut loader = Loader { path, model, parts: BTreeMap::new(), hashes: BTreeMap::new() };
    for pair in file.pairs(model.config)? {
        loader.add(&pair)?;
    }
    if loader.parts.is_empty() {
        return Err(LoraError::Empty { path: path.to_owned() });
    }
    let mut fingerprint = Xxh3::new();
    loader.hashes.values().for_each(|hash| fingerprint.update(&hash.to_le_bytes()));
    static NEXT_ID: AtomicU64 = AtomicU64::new(0);
    let inner = Inner {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        model: model.id,
        path: path.to_owned(),
        parts: RwLock::new(Arc::new(loader.parts)),
        fingerprint: fingerprint.digest128(),
    };
    let lora = Lora { inner: Arc::new(inner) };
    let (matrices, bytes) = (lora.n_matrices(), lora.n_bytes());
    tracing::info!(path = %path.display(), matrices, bytes, "loaded a LoRA adapter");
    Ok(lora)
}

/// Bytes that the adapter at `path` takes in memory, computed from its headers.
pub(super) fn estimate(path: &Path) -> Result<u64, LoraError> {
    Ok(File::open(path)?.n_elems().saturating_mul(4))
}

/// Splits pairs and passes the parts to the devices of their matrices.
struct Loader<'a> {
    path: &'a Path,
    model: &'a LoraModel<'a>,
    parts: BTreeMap<(usize, LoraTarget), Scaled>,
    hashes: BTreeMap<(usize, LoraTarget), u128>,
}

impl Loader<'_> {
    fn add(&mut self, pair: &Pair<'_>) -> Result<(), LoraError> {
        let model = self.model;
        let found = match pair.part {
            Part::Output => Some((vec![(LoraTarget::Output, model.n_vocab)], model.config.dim)),
            part => (model.fused.get(pair.layer)).and_then(|&fused| targets(part, pair.layer, fused, model.config)),
        };
        let Some((targets, n_cols)) = found else { return Err(self.unknown(pair.a.name)) };
        let n_rows: usize = targets.iter().map(|(_, n)| n).sum();
        let rank = match *pair.a.shape {
            [rank, _] => usize::try_from(rank).ok().filter(|&rank| rank > 0),
            _ => None,
        };
        let promised = pair.rank.or(rank).unwrap_or(1);
        self.check_shape(&pair.a, [promised, n_cols])?;
        self.check_shape(&pair.b, [n_rows, promised])?;
        let (a, mut b) = (self.values(&pair.a)?, self.values(&pair.b)?);
        if pair.is_permuted {
            let rows = |i: usize| unpermuted(model.config, i) * promised;
            b = (0..n_rows).flat_map(|i| b[rows(i)..rows(i) + promised].to_vec()).collect();
        }
        let mut first = 0;
        for (target, n) in targets {
            let b = &b[first * promised..(first + n) * promised];
            first += n;
            let mut hash = Xxh3::new();
            hash.update(&[target as u8]);
            hash.update(&(pair.layer as u64).to_le_bytes());
            hash.update(&pair.scale.to_bits().to_le_bytes());
            let (a_bytes, b_bytes) = (to_bytes(&a), to_bytes(b));
            hash.update(&a_bytes);
            hash.update(&b_bytes);
            let (rank, layer) = (promised, pair.layer);
            let part = (model.load_part)(&LowRank { layer, target, n_rows: n, n_cols, rank, a: &a, b })
                .map_err(|source| LoraError::Device { path: self.path.to_owned(), source: Box::new(source) })?;
            let part = Scaled { part, scale: pair.scale };
            self.hashes.insert((pair.layer, target), hash.digest128());
            if self.parts.insert((pair.layer, target), part).is_some() {
                return Err(LoraError::Twice { path: self.path.to_owned(), tensor: pair.a.name.to_owned() });
            }
        }
        Ok(())
    }

    fn unknown(&self, tensor: &str) -> LoraError {
        let architecture = self.model.config.architecture.clone();
        LoraError::UnknownTarget { path: self.path.to_owned(), tensor: tensor.to_owned(), architecture }
    }

    fn check_shape(&self, half: &Half<'_>, expected: [usize; 2]) -> Result<(), LoraError> {
        let expected = expected.map(|n| n as u64);
        if half.shape != expected {
            return Err(LoraError::Shape {
                path: self.path.to_owned(),
                tensor: half.name.to_owned(),
                expected: expected.to_vec(),
                found: half.shape.to_vec(),
            });
        }
        Ok(())
    }

    /// The values of a tensor whose shape was checked.
    fn values(&self, half: &Half<'_>) -> Result<Vec<f32>, LoraError> {
        let n = half.shape.iter().product::<u64>() as usize;
        let mut out = vec![0.0; n];
        fewbit_quant::decode(half.ty, half.bytes, &mut out).map_err(|source| LoraError::Decode {
            path: self.path.to_owned(),
            tensor: half.name.to_owned(),
            source,
        })?;
        Ok(out)
    }
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The targets that a tensor of a layer consists of, each with its number of rows, in order; and the number of columns.
fn targets(part: Part, layer: usize, fused: Fused, c: &ModelConfig) -> Option<(Vec<(LoraTarget, usize)>, usize)> {
    let head_dim = c.head_dim_of(layer);
    let (q_dim, kv_dim, ffn_dim) = (c.n_heads * head_dim, c.n_kv_heads_of(layer) * head_dim, c.ffn_dim_of(layer));
    if let Some(latent) = &c.latent {
        // Of latent attention, those matrices that products go through as they are in files.
        match part {
            Part::Q if latent.q_rank.is_none() => {
                return Some((vec![(LoraTarget::Q, c.n_heads * latent.query_dim())], c.dim));
            }
            Part::Q | Part::K | Part::V | Part::Qkv => return None,
            Part::AttnOutput => {
                return Some((vec![(LoraTarget::AttnOutput, c.dim)], c.n_heads * latent.value_dim));
            }
            _ => {}
        }
    }
    let query_rows = if c.has_output_gate { 2 * q_dim } else { q_dim };
    let one = |target, n_rows, n_cols| Some((vec![(target, n_rows)], n_cols));
    let is_feed_forward = matches!(part, Part::Gate | Part::Up | Part::Down);
    let is_there = match is_feed_forward {
        true => c.layers[layer].has_feed_forward && (c.is_gated || part != Part::Gate),
        false => c.layers[layer].has_attention && !c.layers[layer].is_recurrent,
    };
    if !is_there {
        return None;
    }
    match part {
        Part::K | Part::V | Part::Qkv if c.shares_kv(layer) => return None,
        Part::V if fused.lacks_values => return None,
        Part::Q if !fused.qkv => return one(LoraTarget::Q, query_rows, c.dim),
        Part::K if !fused.qkv => return one(LoraTarget::K, kv_dim, c.dim),
        Part::V if !fused.qkv => return one(LoraTarget::V, kv_dim, c.dim),
        Part::Qkv if fused.qkv => {
            return Some((vec![(LoraTarget::Q, query_rows), (LoraTarget::K, kv_dim), (LoraTarget::V, kv_dim)], c.dim));
        }
        Part::AttnOutput => return one(LoraTarget::AttnOutput, c.dim, q_dim),
        _ => {}
    }
    if c.experts.is_some_and(|experts| !experts.next_to_mlp) {
        return None;
    }
    match part {
        Part::Gate if !fused.gate_up => one(LoraTarget::Gate, ffn_dim, c.dim),
        Part::Up if fused.gate_up => Some((vec![(LoraTarget::Gate, ffn_dim), (LoraTarget::Up, ffn_dim)], c.dim)),
        Part::Up => one(LoraTarget::Up, ffn_dim, c.dim),
        Part::Down => one(LoraTarget::Down, c.dim, ffn_dim),
        _ => None,
    }
}

/// The part and the layer that a GGUF name (without `.weight`) refers to.
pub(super) fn from_gguf(name: &str) -> Option<(Part, usize)> {
    let layer = match name.strip_prefix("blk.") {
        Some(rest) => rest.split_once('.')?.0.parse().ok()?,
        None => 0,
    };
    names::part_of_gguf(name, layer).map(|part| (part, layer))
}
