//! What a model is and how much memory it takes, from the headers of its files. Nothing is loaded; of a model on a hub
//! that is not on this computer, only the headers are fetched.

use std::collections::BTreeMap;
use std::path::Path;

use fewbit_format::TensorInfo;
use fewbit_model::{DeviceEstimate, Isa, LoadOptions, MemoryEstimate, ModelError, Quantized, estimate};

use crate::device::{DeviceOptions, estimates};
use crate::error::Error;
use crate::file::{ModelFile, open};
#[cfg(feature = "hub")]
use crate::hub::Peek;
use crate::model::Headers;

/// A model as its headers describe it: made by [`ModelBuilder::inspect`](crate::ModelBuilder::inspect).
pub struct Inspection {
    file: ModelFile,
    headers: Headers,
    load: LoadOptions,
    devices: DeviceOptions,
    isa: Isa,
    lora_bytes: u64,
    tensors: Vec<TensorInfo>,
}

impl std::fmt::Debug for Inspection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inspection").field("path", &self.path()).finish_non_exhaustive()
    }
}

/// The tensors of one element type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TypeUse {
    /// Number of tensors.
    pub tensors: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// Number of weights in them.
    pub weights: u64,
}

impl Inspection {
    pub(crate) fn new(
        headers: Headers,
        load: &LoadOptions,
        devices: &DeviceOptions,
        lora_bytes: u64,
    ) -> Result<Self, Error> {
        let file = open(headers.path())?;
        let path = || headers.path().to_owned();
        let isa = load.isa.map_or_else(Isa::from_env, Ok);
        let isa = isa.map_err(|error| Error::file(&path(), error))?;
        let tensors = match load.quantize {
            Some(recipe) => {
                let quantized = Quantized::new(file.weights(), recipe);
                let quantized = quantized.map_err(|error| Error::file(&path(), error))?;
                fewbit_model::WeightSource::tensors(&quantized).to_vec()
            }
            None => file.weights().tensors().to_vec(),
        };
        let (load, devices) = (load.clone(), devices.clone());
        Ok(Self { file, headers, load, devices, isa, lora_bytes, tensors })
    }

    /// The path that was opened. For a remote model, its files have the headers and no weights.
    pub fn path(&self) -> &Path {
        self.headers.path()
    }

    /// What was fetched to inspect a remote model; `None` for a local one.
    #[cfg(feature = "hub")]
    pub fn remote(&self) -> Option<&Peek> {
        self.headers.peek()
    }

    /// The opened file or folder: metadata and configuration. Do not read the weights of a remote model: they are
    /// missing.
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// The tensors, as they would be in memory: with their new types if they are to be quantized.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The number and size of the tensors of each element type, by the name of the type.
    pub fn types(&self) -> BTreeMap<&'static str, TypeUse> {
        let mut types: BTreeMap<&'static str, TypeUse> = BTreeMap::new();
        for tensor in &self.tensors {
            let of_type = types.entry(tensor.ty.name()).or_default();
            of_type.tensors += 1;
            of_type.bytes = of_type.bytes.saturating_add(tensor.n_bytes);
            of_type.weights = of_type.weights.saturating_add(tensor.n_elems());
        }
        types
    }

    /// The total number of weights.
    pub fn n_weights(&self) -> u64 {
        self.tensors.iter().fold(0, |n, tensor| n.saturating_add(tensor.n_elems()))
    }

    /// Average number of bits per weight.
    pub fn bits_per_weight(&self) -> f64 {
        let n_bytes = self.tensors.iter().fold(0, |n: u64, tensor| n.saturating_add(tensor.n_bytes));
        if self.n_weights() == 0 { 0.0 } else { n_bytes as f64 * 8.0 / self.n_weights() as f64 }
    }

    /// The context length that the model was trained with, in tokens. Known even for architectures that cannot be run.
    pub fn context_length(&self) -> Option<usize> {
        let Some(file) = self.file.gguf() else {
            return self.file.weights().config().ok().map(|config| config.context_length);
        };
        let architecture = file.metadata().str("general.architecture").ok().flatten()?;
        let length = file.metadata().u64(&format!("{architecture}.context_length")).ok().flatten()?;
        usize::try_from(length).ok()
    }

    /// The memory that the model takes with one context of `n_ctx` tokens.
    ///
    /// # Errors
    /// If the model cannot be run.
    pub fn memory(&self, n_ctx: usize) -> Result<MemoryEstimate, Error> {
        let source = self.file.weights();
        let of = |source: &dyn fewbit_model::WeightSource| {
            estimate(source, self.isa, n_ctx, self.load.kv_type, self.load.mtp)
        };
        let mut memory = match self.load.quantize {
            Some(recipe) => of(&Quantized::new(source, recipe).map_err(ModelError::from)?)?,
            None => of(source)?,
        };
        memory.lora_bytes = self.lora_bytes;
        Ok(memory)
    }

    /// The memory that the model takes on each device other than the CPU, for the device that was asked for: where its
    /// layers would be, and what is free there. Empty if all is on the CPU. There is room for one context of `n_ctx`
    /// tokens, by default as when the model is loaded: of the length that was set, or of at most 4096.
    ///
    /// # Errors
    /// If the model cannot be run, or the device cannot be used.
    pub fn devices(&self, n_ctx: Option<usize>) -> Result<Vec<DeviceEstimate>, Error> {
        let load = n_ctx.map_or_else(|| self.load.clone(), |n_ctx| self.load.clone().context_length(n_ctx));
        let placement = self.devices.place(self.file.weights(), &load)?;
        Ok(placement.estimate(&estimates(self.file.weights(), &load)?)?)
    }

    /// The instruction set that it would use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}
