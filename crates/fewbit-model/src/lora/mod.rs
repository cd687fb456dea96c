//! Low-rank adapters (LoRA): what is added to the products of some matrices, without changing these.
//!
//! ```text
//! y = W x [+ bias]                     as without adapters
//! t = A x                              one chain of fused multiply-adds per output, over the inputs in their order
//! y = y + B (s t)                      for one adapter after the other, in the order in which they were loaded;
//!                                      s = (alpha / rank) * the scale that is asked for
//! ```
//! A and B are f32, whatever they are in the file, and x is the input before it is quantized. Each row of a batch
//! has its own adapters: rows are put together by adapter only to read A and B once, so that nothing depends on
//! the batch, and a row without adapters has the bits of a model that knows none.
//!
//! A cache is of one set of adapters ([`LoraSet`]), as it is of one model: its keys and values depend on both.

mod apply;
mod error;
mod gguf;
mod peft;

pub(crate) use apply::{Group, LoraScratch, add_low_rank, groups};
pub use error::LoraError;

use crate::names::{self, Part};
use crate::weights::{FeedForward, Layer};
use crate::{Decoder, ModelConfig, ModelError, available_bytes};
use fewbit_kernels::Matrix;
use fewbit_quant::TensorType;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use xxhash_rust::xxh3::Xxh3;

/// A matrix that an adapter can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Q,
    K,
    V,
    AttnOutput,
    Gate,
    Up,
    Down,
    Output,
}

/// What is added to the products of one matrix.
struct LowRank {
    /// `[rank, inputs]`
    a: Matrix,
    /// `[outputs, rank]`
    b: Matrix,
    /// alpha / rank
    scale: f32,
}

/// An adapter that was loaded for a model. Cheap to clone; its memory is free when the last clone is gone.
#[derive(Clone)]
pub struct Lora {
    inner: Arc<Inner>,
}

struct Inner {
    /// In the order of loading.
    id: u64,
    model: u64,
    path: PathBuf,
    parts: BTreeMap<(usize, Target), LowRank>,
    fingerprint: u128,
}

/// One tensor of an adapter's file.
struct Half<'a> {
    name: &'a str,
    /// Rows first.
    shape: &'a [u64],
    ty: TensorType,
    bytes: &'a [u8],
}

/// What a file has for one of the model's tensors.
struct Pair<'a> {
    part: Part,
    layer: usize,
    a: Half<'a>,
    b: Half<'a>,
    /// alpha / rank, for a rank that the shapes confirm.
    scale: f32,
    /// The rank that a configuration promises.
    rank: Option<usize>,
    /// Rows of B are in the order of half-split pairs, and the model's in that of interleaved ones.
    is_permuted: bool,
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

    /// Elements of all tensors.
    fn n_elems(&self) -> u64 {
        let count = |shape: &[u64]| shape.iter().fold(1u64, |n, &dim| n.saturating_mul(dim));
        match self {
            Self::Gguf(file) => file.shapes().map(count).fold(0, u64::saturating_add),
            Self::Peft(folder) => folder.shapes().map(count).fold(0, u64::saturating_add),
        }
    }
}

impl Lora {
    /// Loads an adapter for a model: a GGUF file, or a folder with `adapter_config.json` and
    /// `adapter_model.safetensors` as PEFT writes it.
    ///
    /// # Errors
    /// [`LoraError`] for a file that is no adapter, is damaged, was made for another model, or asks for something
    /// other than low-rank parts of this model's matrices.
    pub fn load(path: &Path, decoder: &Decoder) -> Result<Self, LoraError> {
        let file = File::open(path)?;
        let needed_bytes = file.n_elems().saturating_mul(4);
        if let Some(available_bytes) = available_bytes().filter(|&free| needed_bytes > free) {
            return Err(LoraError::DoesNotFit { path: path.to_owned(), needed_bytes, available_bytes });
        }
        let mut loader = Loader { path, decoder, parts: BTreeMap::new(), hashes: BTreeMap::new() };
        for pair in file.pairs(decoder.config())? {
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
            model: decoder.id(),
            path: path.to_owned(),
            parts: loader.parts,
            fingerprint: fingerprint.digest128(),
        };
        let lora = Self { inner: Arc::new(inner) };
        tracing::info!(path = %path.display(), matrices = lora.inner.parts.len(), bytes = lora.n_bytes(), "loaded a LoRA adapter");
        Ok(lora)
    }

    /// Bytes that the adapter at `path` takes once it is loaded, from its headers.
    ///
    /// # Errors
    /// [`LoraError`] for a file that is no adapter or is damaged.
    pub fn estimate(path: &Path) -> Result<u64, LoraError> {
        Ok(File::open(path)?.n_elems().saturating_mul(4))
    }

    /// Where it came from.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Bytes of its matrices in memory.
    pub fn n_bytes(&self) -> u64 {
        self.inner.parts.values().map(|part| (part.a.n_bytes() + part.b.n_bytes()) as u64).sum()
    }

    /// How many matrices of the model it changes.
    pub fn n_matrices(&self) -> usize {
        self.inner.parts.len()
    }

    /// A hash of all its numbers: equal for equal adapters, from whatever kind of file.
    pub fn fingerprint(&self) -> u128 {
        self.inner.fingerprint
    }

    fn part(&self, layer: usize, target: Target) -> Option<&LowRank> {
        self.inner.parts.get(&(layer, target))
    }
}

impl PartialEq for Lora {
    fn eq(&self, other: &Self) -> bool {
        self.inner.id == other.inner.id
    }
}

impl Eq for Lora {}

impl std::fmt::Debug for Lora {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lora").field("path", &self.inner.path).field("matrices", &self.n_matrices()).finish()
    }
}

/// Adapters of one model, each with a scale, in the order of loading; none twice, and none with scale 0.
#[derive(Clone, Debug, Default)]
pub struct LoraSet {
    loras: Arc<[(Lora, f32)]>,
}

impl LoraSet {
    pub(crate) fn new(model: u64, loras: &[(Lora, f32)]) -> Result<Self, ModelError> {
        let mut set: Vec<(Lora, f32)> = Vec::with_capacity(loras.len());
        for (lora, scale) in loras {
            if lora.inner.model != model {
                return Err(ModelError::ForeignLora { path: lora.inner.path.clone() });
            }
            if !scale.is_finite() {
                return Err(ModelError::LoraScale { path: lora.inner.path.clone(), scale: *scale });
            }
            match set.iter_mut().find(|(known, _)| known == lora) {
                Some((_, known)) => *known = *scale,
                None => set.push((lora.clone(), *scale)),
            }
        }
        set.retain(|(_, scale)| *scale != 0.0);
        set.sort_by_key(|(lora, _)| lora.inner.id);
        Ok(Self { loras: set.into() })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.loras.is_empty()
    }

    /// The adapters and their scales.
    pub fn iter(&self) -> impl Iterator<Item = (&Lora, f32)> {
        self.loras.iter().map(|(lora, scale)| (lora, *scale))
    }

    /// Whether all are of this model.
    pub(crate) fn is_of(&self, model: u64) -> bool {
        self.loras.iter().all(|(lora, _)| lora.inner.model == model)
    }

    /// What tells sets apart, without keeping their adapters.
    pub(crate) fn key(&self) -> LoraKey {
        self.iter().map(|(lora, scale)| (lora.inner.id, scale.to_bits())).collect()
    }
}

impl PartialEq for LoraSet {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&(Lora, f32), &(Lora, f32))| a.0 == b.0 && a.1.to_bits() == b.1.to_bits();
        self.loras.len() == other.loras.len() && self.loras.iter().zip(other.loras.iter()).all(same)
    }
}

impl Eq for LoraSet {}

/// Ids of adapters, which are never used again, and the bits of their scales.
pub(crate) type LoraKey = Vec<(u64, u32)>;

/// Packs pairs.
struct Loader<'a> {
    path: &'a Path,
    decoder: &'a Decoder,
    parts: BTreeMap<(usize, Target), LowRank>,
    hashes: BTreeMap<(usize, Target), u128>,
}

impl Loader<'_> {
    fn add(&mut self, pair: &Pair<'_>) -> Result<(), LoraError> {
        let decoder = self.decoder;
        // The targets of a tensor, each with its rows; the tensor's columns.
        let found = match pair.part {
            Part::Output => {
                let m = &decoder.weights.output.weight;
                Some((vec![(Target::Output, m.n_rows())], m.n_cols()))
            }
            part => decoder.weights.layers.get(pair.layer).and_then(|layer| targets(part, layer)),
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
            let rows = |i: usize| crate::hf::unpermuted(decoder.config(), i) * promised;
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
            let pack = |n_rows, n_cols, bytes: &[u8]| {
                decoder.engine().pack(TensorType::F32, n_rows, n_cols, bytes).map_err(|source| self.kernel(source))
            };
            let part =
                LowRank { a: pack(promised, n_cols, &a_bytes)?, b: pack(n, promised, &b_bytes)?, scale: pair.scale };
            self.hashes.insert((pair.layer, target), hash.digest128());
            if self.parts.insert((pair.layer, target), part).is_some() {
                return Err(LoraError::Twice { path: self.path.to_owned(), tensor: pair.a.name.to_owned() });
            }
        }
        Ok(())
    }

    fn unknown(&self, tensor: &str) -> LoraError {
        let architecture = self.decoder.config().architecture.clone();
        LoraError::UnknownTarget { path: self.path.to_owned(), tensor: tensor.to_owned(), architecture }
    }

    fn kernel(&self, source: fewbit_kernels::KernelError) -> LoraError {
        LoraError::Kernel { path: self.path.to_owned(), source }
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

    /// The numbers of a tensor whose shape was checked.
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

/// The targets that a tensor of a layer is made of, each with its rows, in order; and the tensor's columns.
fn targets(part: Part, layer: &Layer) -> Option<(Vec<(Target, usize)>, usize)> {
    let is_fused = layer.qkv_parts == [Part::Qkv];
    let (q, k, v) = (&layer.q.weight, &layer.k.weight, &layer.v.weight);
    let one = |target, m: &Matrix| Some((vec![(target, m.n_rows())], m.n_cols()));
    match part {
        Part::Q if !is_fused => return one(Target::Q, q),
        Part::K if !is_fused => return one(Target::K, k),
        Part::V if !is_fused => return one(Target::V, v),
        Part::Qkv if is_fused => {
            let all = vec![(Target::Q, q.n_rows()), (Target::K, k.n_rows()), (Target::V, v.n_rows())];
            return Some((all, q.n_cols()));
        }
        Part::AttnOutput => return one(Target::AttnOutput, &layer.attn_output.weight),
        _ => {}
    }
    let FeedForward::Dense(mlp) = &layer.ffn else { return None };
    let is_fused = mlp.input_parts == [Part::Up];
    let (gate, up) = (&mlp.gate.weight, &mlp.up.weight);
    match part {
        Part::Gate if !is_fused => one(Target::Gate, gate),
        Part::Up if is_fused => Some((vec![(Target::Gate, gate.n_rows()), (Target::Up, up.n_rows())], gate.n_cols())),
        Part::Up => one(Target::Up, up),
        Part::Down => one(Target::Down, &mlp.down.weight),
        _ => None,
    }
}

/// The part and the layer that a GGUF name (without `.weight`) stands for.
fn from_gguf(name: &str) -> Option<(Part, usize)> {
    let layer = match name.strip_prefix("blk.") {
        Some(rest) => rest.split_once('.')?.0.parse().ok()?,
        None => 0,
    };
    names::part_of_gguf(name, layer).map(|part| (part, layer))
}
