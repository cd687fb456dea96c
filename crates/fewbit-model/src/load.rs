//! Options for loading a model, including the placement of its layers.

use crate::draft::refused;
use crate::placed::merged;
use crate::quantize::Recipe;
use crate::segment::Device;
use crate::{DeviceError, DeviceEstimate, KvType, LayerPart, ModelConfig, ModelError, ModelPart, PartEstimates};
use fewbit_kernels::{Cpu, Isa, ThreadPool};
use std::ops::Range;
use std::sync::Arc;

/// Positions that devices have room for at least, unless a context length is set.
const PLANNED_CONTEXT: usize = 4096;

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
    /// Load the layer that predicts the token after the next one, for [drafts](crate::Decoder::draft).
    pub mtp: bool,
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
    /// The experts of this many layers, from the first on, are on the CPU.
    cpu_experts: usize,
}

/// Layers or halves of them, and their device if it is not the CPU.
#[derive(Clone)]
pub(crate) struct Placed<'a> {
    pub(crate) layers: Range<usize>,
    pub(crate) part: LayerPart,
    pub(crate) device: Option<&'a dyn Device>,
}

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

    /// All devices other than the CPU, each once.
    pub(crate) fn devices(&self) -> Vec<Arc<dyn Device>> {
        let mut devices: Vec<Arc<dyn Device>> = Vec::new();
        for device in self.parts.iter().filter_map(|(_, device)| device.as_ref()).chain(&self.head) {
            if !devices.iter().any(|known| known.name() == device.name()) {
                devices.push(Arc::clone(device));
            }
        }
        devices
    }

    /// The memory that the parts of a model take on each device other than the CPU, and what is free there.
    ///
    /// # Errors
    /// [`ModelError::Placement`].
    pub fn estimate(&self, parts: &PartEstimates) -> Result<Vec<DeviceEstimate>, ModelError> {
        let placed = self.segments(parts.layers.len(), parts.has_experts())?;
        let of = |device: Arc<dyn Device>| {
            let name = device.name();
            let is_on = |other: Option<&dyn Device>| other.is_some_and(|other| other.name() == name);
            let segments: Vec<_> = placed.iter().filter(|placed| is_on(placed.device)).collect();
            let has_head = is_on(self.head_device());
            let without = |placed: &Placed<'_>| if placed.part.has_feed_forward() { 0 } else { placed.layers.end };
            let scratch =
                parts.on_device(0..0, has_head, 0) + if segments.is_empty() { 0 } else { parts.scratch_bytes() };
            let of = |placed: &&Placed<'_>| parts.of_layers(placed.layers.clone(), without(placed));
            let needed_bytes = segments.iter().map(of).fold(scratch, u64::saturating_add);
            let parts = segments.iter().map(|placed| ModelPart::of_layers(placed.layers.clone(), placed.part));
            let parts = parts.chain(has_head.then_some(ModelPart::Head)).collect();
            DeviceEstimate { device: name, parts: merged(parts), needed_bytes, memory: device.memory() }
        };
        Ok(self.devices().into_iter().map(of).collect())
    }

    /// Returns an error if what is placed on a device does not fit into its memory, by an estimate.
    pub(crate) fn check_fits(&self, parts: &PartEstimates) -> Result<(), ModelError> {
        for DeviceEstimate { device, needed_bytes, memory, .. } in self.estimate(parts)? {
            if let Some(free_bytes) = memory.available_bytes().filter(|&free| needed_bytes > free) {
                let fitting_layers = parts.fitting(free_bytes, self.cpu_experts);
                let source = DeviceError::DoesNotFit { needed_bytes, free_bytes, fitting_layers };
                return Err(ModelError::Device { device, source });
            }
        }
        Ok(())
    }

    /// Keeps the experts of the first `n` layers of the model on the CPU, also of layers that are on a device: their whole
    /// feed-forward parts, with the router. Without effect in models without experts.
    pub fn cpu_experts(mut self, n: usize) -> Self {
        self.cpu_experts = n;
        self
    }

    /// The device of the head, if it is not the CPU.
    pub(crate) fn head_device(&self) -> Option<&dyn Device> {
        self.head.as_deref()
    }

    /// The segments of a model of `n_layers`, each with its device, or none for the CPU.
    pub(crate) fn segments(&self, n_layers: usize, has_experts: bool) -> Result<Vec<Placed<'_>>, ModelError> {
        let placed = self.parts.iter().fold(0usize, |n, (part, _)| n.saturating_add(*part));
        if placed > n_layers {
            return Err(ModelError::Placement { placed, n_layers });
        }
        let rest = (placed < n_layers).then_some((n_layers - placed, None));
        let parts = self.parts.iter().map(|(n, device)| (*n, device.as_deref())).chain(rest);
        let (mut end, mut segments) = (0, Vec::new());
        for (n, device) in parts {
            let mut layers = end..end + n;
            end += n;
            if device.is_some() && has_experts {
                for layer in layers.start..layers.end.min(self.cpu_experts) {
                    let layers = layer..layer + 1;
                    segments.push(Placed { layers: layers.clone(), part: LayerPart::Attention, device });
                    segments.push(Placed { layers, part: LayerPart::FeedForward, device: None });
                }
                layers.start = layers.end.min(self.cpu_experts).max(layers.start);
            }
            if !layers.is_empty() {
                segments.push(Placed { layers, part: LayerPart::Whole, device });
            }
        }
        Ok(segments)
    }
}

impl std::fmt::Debug for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |device: &Option<Arc<dyn Device>>| device.as_ref().map_or("cpu".to_owned(), |device| device.name());
        let parts: Vec<_> = self.parts.iter().map(|(n, device)| (*n, name(device))).collect();
        let mut out = f.debug_struct("Placement");
        out.field("parts", &parts).field("head", &name(&self.head)).field("cpu_experts", &self.cpu_experts).finish()
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
        match self.mtp {
            true => refused(&config, !self.placement.devices().is_empty()).map_or(Ok(()), Err)?,
            false => config.mtp = None,
        }
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

    /// Positions of a sequence for which there should be room on a device: those of the context, if that was set, or
    /// else at most 4096.
    pub fn planned_context(&self, config: &ModelConfig) -> usize {
        self.context_length.unwrap_or(PLANNED_CONTEXT).min(config.context_length)
    }

    /// Sets [`quantize`](Self::quantize).
    pub fn quantize(mut self, recipe: Recipe) -> Self {
        self.quantize = Some(recipe);
        self
    }

    /// Sets [`mtp`](Self::mtp).
    pub fn mtp(mut self, is_loaded: bool) -> Self {
        self.mtp = is_loaded;
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
