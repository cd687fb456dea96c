//! The input for quantizing: the tensors of a source in the order and form of GGUF files, and the metadata.

use std::collections::BTreeMap;
use std::path::Path;

use fewbit_format::{GgufFile, Metadata, TensorInfo};
use fewbit_quant::TensorType;

use super::{ModelFacts, QuantizeError};
use fewbit_checkpoint::source::{WeightSource, tensor_bytes};
use fewbit_checkpoint::{CheckpointError, HfModel, names};

/// A model to be quantized.
pub(super) struct Input<'a> {
    pub(super) source: &'a dyn WeightSource,
    pub(super) facts: ModelFacts,
    pub(super) tensors: Vec<Tensor>,
    /// All metadata of the file, except what quantizing adds.
    pub(super) metadata: Metadata,
    /// Whether vectors, and the few matrices that are never quantized, become F32, which every reader of GGUF files
    /// expects.
    pub(super) widens: bool,
}

/// A tensor of the new file.
pub(super) struct Tensor {
    pub(super) name: String,
    /// Rows first.
    pub(super) shape: Vec<u64>,
    pub(super) data: Data,
}

pub(super) enum Data {
    /// Tensors of the source, one after another: the matrices of a layer's experts, or a single one.
    Parts(Vec<TensorInfo>),
    /// A constant of the model.
    Values(Vec<f32>),
}

impl Tensor {
    fn whole(tensor: &TensorInfo) -> Self {
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        Self { name, shape, data: Data::Parts(vec![tensor.clone()]) }
    }

    /// The type before quantizing. If the parts differ, it is the type of the first.
    pub(super) fn ty(&self) -> TensorType {
        match &self.data {
            Data::Parts(parts) => parts.first().map_or(TensorType::F32, |part| part.ty),
            Data::Values(_) => TensorType::F32,
        }
    }

    /// The tensors of the source that it consists of.
    pub(super) fn parts(&self) -> &[TensorInfo] {
        match &self.data {
            Data::Parts(parts) => parts,
            Data::Values(_) => &[],
        }
    }

    pub(super) fn n_elems(&self) -> u64 {
        self.shape.iter().product()
    }
}

impl<'a> Input<'a> {
    /// A GGUF file, with its tensors unchanged.
    pub(super) fn gguf(file: &'a GgufFile) -> Result<Self, QuantizeError> {
        let facts = ModelFacts::from_gguf(file.metadata(), file.tensor("output.weight").is_none())?;
        let mut metadata = file.metadata().clone();
        for key in ["split.no", "split.count", "split.tensors.count"] {
            metadata.remove(key);
        }
        let tensors = file.tensors().iter().map(Tensor::whole).collect();
        Ok(Self { source: file, facts, tensors, metadata, widens: false })
    }

    /// A Hugging Face folder; `about` is GGUF metadata in addition to the configuration.
    pub(super) fn folder(model: &'a HfModel, about: &Metadata) -> Result<Self, QuantizeError> {
        let config = model.config()?;
        let mut gguf = config.to_gguf()?;
        if let Some(embedding) = model.tensor("token_embd.weight") {
            let n_vocab = embedding.shape.first().copied().unwrap_or(0);
            gguf.metadata
                .set(format!("{}.vocab_size", config.architecture), u32::try_from(n_vocab).unwrap_or(u32::MAX));
        }
        for (key, value) in about.iter() {
            gguf.metadata.set(key, value.clone());
        }
        let n_experts = config.experts.map_or(0, |experts| experts.n_experts);
        let mut tensors = joined(model, n_experts)?;
        tensors.extend(gguf.constants.into_iter().map(|(name, values)| Tensor {
            name: name.to_owned(),
            shape: vec![values.len() as u64],
            data: Data::Values(values),
        }));
        tensors.sort_by_cached_key(|tensor| names::order(&tensor.name));
        let facts = ModelFacts::from_config(&config, model.tensor("output.weight").is_none());
        Ok(Self { source: model, facts, tensors, metadata: gguf.metadata, widens: true })
    }

    /// Returns an error if `out` is one of the input files.
    pub(super) fn check_out(&self, read: &[&Path], out: &Path) -> Result<(), QuantizeError> {
        // A file that does not exist yet cannot be an input file.
        let Ok(target) = out.canonicalize() else { return Ok(()) };
        match read.iter().any(|path| path.canonicalize().is_ok_and(|path| path == target)) {
            true => Err(QuantizeError::SameFile { path: out.to_owned() }),
            false => Ok(()),
        }
    }
}

/// The tensors of a folder, with the matrices of a layer's experts joined into one tensor, as in current GGUF files.
fn joined(model: &HfModel, n_experts: usize) -> Result<Vec<Tensor>, CheckpointError> {
    let mut tensors = Vec::new();
    let mut stacks: BTreeMap<String, BTreeMap<usize, &TensorInfo>> = BTreeMap::new();
    for tensor in model.tensors() {
        match names::expert(&tensor.name) {
            Some((name, expert)) => drop(stacks.entry(name).or_default().insert(expert, tensor)),
            None => tensors.push(Tensor::whole(tensor)),
        }
    }
    for (name, stack) in stacks {
        let parts = (0..n_experts).map(|expert| match stack.get(&expert) {
            Some(part) => Ok((*part).clone()),
            None => {
                let missing = name.replace("_exps.", &format!(".{expert}."));
                Err(CheckpointError::MissingTensor { name: model.name_in_file(&missing) })
            }
        });
        let parts: Vec<TensorInfo> = parts.collect::<Result<_, _>>()?;
        if let Some(extra) = stack.range(n_experts..).next() {
            let name = model.name_in_file(&extra.1.name);
            return Err(CheckpointError::UnexpectedTensor { name, architecture: model.config()?.architecture });
        }
        let Some(first) = parts.first() else { continue };
        if let Some(other) = parts.iter().find(|part| part.shape != first.shape) {
            let (expected, found) = (first.shape.clone(), other.shape.clone());
            return Err(CheckpointError::TensorShape { name: model.name_in_file(&other.name), expected, found });
        }
        let shape = [n_experts as u64].into_iter().chain(first.shape.iter().copied()).collect();
        tensors.push(Tensor { name, shape, data: Data::Parts(parts) });
    }
    Ok(tensors)
}

/// Bytes of a tensor in a type; `None` if its rows are not whole blocks.
pub(super) fn n_bytes(tensor: &Tensor, ty: TensorType) -> Option<u64> {
    tensor_bytes(&tensor.shape, ty)
}
