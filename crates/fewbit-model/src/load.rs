//! Options for loading a model, including the placement of its layers.

use crate::quantize::Recipe;
use crate::segment::Device;
use crate::{KvType, ModelConfig, ModelError};
use fewbit_kernels::{Cpu, Isa, ThreadPool};
use std::ops::Range;
use std::sync::Arc;

/// Options for loading a model.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Number of threads; by default `FEWBIT_THREADS`, otherwise all that the process may use.
    pub threads: Option<usize>,
    /// Instruction set; by default `FEWBIT_ISA`, otherwise the fastest that the CPU has.
    pub isa: Option<Isa>,
    /// Element type of the KV caches; by default f32 for models with f32 weights, otherwise f16.
    pub kv_type: Option<KvType>,
    /// Replaces the sliding window of the file; `Some(None)` lets every query see everything.
    pub sliding_window: Option<Option<usize>>,
    /// Replaces the file's list of layers that have the window. A list shorter than the number of layers repeats.
    pub local_layers: Option<Vec<bool>>,
    /// Maximum number of positions that will be used, if fewer than the model supports. Models with LongRoPE choose
    /// their divisors by it.
    pub context_length: Option<usize>,
    /// Quantize the weights as they are read, so that only the quantized weights are ever in memory as a whole.
    pub quantize: Option<Recipe>,
    /// The placement of the layers; by default, all are on the CPU.
    pub placement: Placement,
    /// Called with the bytes read so far and the total number of bytes, as tensors are read.
    pub progress: Option<Arc<dyn Fn(u64, u64) + Send + Sync>>,
}

/// The placement of a model's layers, from the first on. Layers that no part covers are on the CPU of the
/// [`LoadOptions`]. The logits are the same for every placement on devices that compute the same bits.
#[derive(Clone, Default)]
pub struct Placement {
    /// Numbers of layers, each with a device, or with none for the CPU.
    parts: Vec<(usize, Option<Arc<dyn Device>>)>,
    head: Option<Arc<dyn Device>>,
}

/// Layers, and their device if it is not the CPU.
pub(crate) type Placed<'a> = (Range<usize>, Option<&'a dyn Device>);

impl Placement {
    /// Creates the placement of everything on the CPU, in one segment.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts the next `n_layers` on the CPU, as a segment.
    pub fn cpu(mut self, n_layers: usize) -> Self {
        self.parts.push((n_layers, None));
        self
    }

    /// Puts the next `n_layers` on a device, as a segment.
    pub fn device(mut self, n_layers: usize, device: Arc<dyn Device>) -> Self {
        self.parts.push((n_layers, Some(device)));
        self
    }

    /// Puts the head (the norm and the output matrix after the last layer) on a device.
    pub fn head(mut self, device: Arc<dyn Device>) -> Self {
        self.head = Some(device);
        self
    }

    /// The device of the head, if it is not the CPU.
    pub(crate) fn head_device(&self) -> Option<&dyn Device> {
        self.head.as_deref()
    }

    /// The segments of a model of `n_layers`, each with its device, or none for the CPU.
    pub(crate) fn segments(&self, n_layers: usize) -> Result<Vec<Placed<'_>>, ModelError> {
        let placed = self.parts.iter().fold(0usize, |n, (part, _)| n.saturating_add(*part));
        if placed > n_layers {
            return Err(ModelError::Placement { placed, n_layers });
        }
        let rest = (placed < n_layers).then_some((n_layers - placed, None));
        let parts = self.parts.iter().map(|(n, device)| (*n, device.as_deref())).chain(rest);
        let mut end = 0;
        let ranges = parts.map(|(n, device)| {
            end += n;
            (end - n..end, device)
        });
        Ok(ranges.filter(|(layers, _)| !layers.is_empty()).collect())
    }
}

impl std::fmt::Debug for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |device: &Option<Arc<dyn Device>>| device.as_ref().map_or("cpu".to_owned(), |device| device.name());
        let parts: Vec<_> = self.parts.iter().map(|(n, device)| (*n, name(device))).collect();
        f.debug_struct("Placement").field("parts", &parts).field("head", &name(&self.head)).finish()
    }
}

impl LoadOptions {
    /// Creates the default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`threads`](Self::threads).
    pub fn threads(mut self, n: usize) -> Self {
        self.threads = Some(n);
        self
    }

    /// Sets [`isa`](Self::isa).
    pub fn isa(mut self, isa: Isa) -> Self {
        self.isa = Some(isa);
        self
    }

    /// Sets [`kv_type`](Self::kv_type).
    pub fn kv_type(mut self, ty: KvType) -> Self {
        self.kv_type = Some(ty);
        self
    }

    /// Sets [`sliding_window`](Self::sliding_window): for Mistral 7B v0.1 and other models with a window that their
    /// GGUF files do not mention. If layers differ, it changes those that have a window.
    pub fn sliding_window(mut self, window: Option<usize>) -> Self {
        self.sliding_window = Some(window);
        self
    }

    /// Sets [`local_layers`](Self::local_layers): for Ministral and other models that alternate layers with a window
    /// and layers that see everything, if their GGUF files do not mention it.
    pub fn local_layers(mut self, pattern: impl Into<Vec<bool>>) -> Self {
        self.local_layers = Some(pattern.into());
        self
    }

    /// Sets [`context_length`](Self::context_length).
    pub fn context_length(mut self, n: usize) -> Self {
        self.context_length = Some(n);
        self
    }

    /// Applies the options to the configuration.
    pub(crate) fn configure(&self, mut config: ModelConfig) -> Result<ModelConfig, ModelError> {
        if let Some(window) = self.sliding_window {
            config.set_sliding_window(window);
        }
        if let Some(pattern) = &self.local_layers {
            config.set_local_layers(pattern)?;
        }
        if let Some(n) = self.context_length {
            config.context_length = config.context_length.min(n.max(1));
        }
        Ok(config.checked()?)
    }

    /// Sets [`quantize`](Self::quantize).
    pub fn quantize(mut self, recipe: Recipe) -> Self {
        self.quantize = Some(recipe);
        self
    }

    /// Sets [`placement`](Self::placement).
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Sets [`progress`](Self::progress).
    pub fn progress(mut self, f: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(f));
        self
    }
}

/// Creates the thread pool with the instruction set that the options and the environment select.
pub(crate) fn host_cpu(isa: Option<Isa>, threads: Option<usize>) -> Result<Cpu, ModelError> {
    let isa = match isa {
        Some(isa) => isa.require()?,
        None => Isa::from_env()?,
    };
    let threads = threads.filter(|&n| n > 0).unwrap_or_else(|| {
        let from_env = std::env::var("FEWBIT_THREADS").ok().and_then(|n| n.parse().ok()).filter(|&n: &usize| n > 0);
        from_env.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
    });
    // More threads than any machine has would only exhaust the operating system.
    Ok(Cpu::new(isa, threads.min(ThreadPool::MAX_THREADS))?)
}
