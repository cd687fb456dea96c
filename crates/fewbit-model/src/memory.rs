//! Estimates of the memory that a model will take, before anything is allocated.

use crate::cpu::{fixed_bytes, layer_page_bytes, page_bytes};
use crate::{KvType, ModelConfig, ModelError, Recurrent};
use fewbit_checkpoint::{WeightSource, names};
use fewbit_format::TensorInfo;
use fewbit_kernels::{Isa, Matrix, PAGE};
use fewbit_quant::TensorType;

/// Memory that a loaded model and one sequence take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryEstimate {
    /// Packed weights.
    pub weight_bytes: u64,
    /// The KV cache of `n_ctx` positions, and the states of recurrent layers.
    pub kv_bytes: u64,
    /// Adapters.
    pub lora_bytes: u64,
    /// Buffers of one forward pass over a prefill chunk of 512 tokens.
    pub scratch_bytes: u64,
}

impl MemoryEstimate {
    /// The sum of all parts.
    pub fn total_bytes(&self) -> u64 {
        let all = [self.weight_bytes, self.kv_bytes, self.lora_bytes, self.scratch_bytes];
        all.into_iter().fold(0, u64::saturating_add)
    }
}

/// Estimates the memory for loading `source` for `isa` with a context of `n_ctx` positions. `kv_type` is as in
/// [`LoadOptions`](crate::LoadOptions::kv_type), and `mtp` as in [`LoadOptions::mtp`](crate::LoadOptions::mtp).
///
/// # Errors
/// As [`WeightSource::config`].
pub fn estimate(
    source: &dyn WeightSource,
    isa: Isa,
    n_ctx: usize,
    kv_type: Option<KvType>,
    mtp: bool,
) -> Result<MemoryEstimate, ModelError> {
    let mut config = source.config()?;
    config.mtp = config.mtp.filter(|_| mtp);
    let pages = n_ctx.div_ceil(PAGE) as u64;
    Ok(MemoryEstimate {
        weight_bytes: packed_bytes(source, isa, |name| !config.leaves_out(name)).0,
        kv_bytes: pages
            .saturating_mul(page_bytes(&config, kv_type.unwrap_or(default_kv_type(source))))
            .saturating_add(fixed_bytes(&config, n_ctx)),
        lora_bytes: 0,
        scratch_bytes: scratch_bytes(&config),
    })
}

/// The memory of a device, as its driver reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceMemory {
    /// Bytes that this process can still allocate; `None` if the driver does not report it.
    pub free_bytes: Option<u64>,
    /// All bytes.
    pub total_bytes: Option<u64>,
}

impl DeviceMemory {
    /// Some memory of a device.
    pub fn new(free_bytes: Option<u64>, total_bytes: Option<u64>) -> Self {
        Self { free_bytes, total_bytes }
    }

    /// What may be used: what is free, or all of it if only that is known.
    pub fn available_bytes(&self) -> Option<u64> {
        self.free_bytes.or(self.total_bytes)
    }
}

/// The memory that each part of a model takes on a device, from the headers of its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartEstimates {
    /// For each layer.
    pub layers: Vec<LayerEstimate>,
    /// The norm and the output matrix, including a copy of the embedding if it is tied to that.
    pub head_bytes: u64,
    /// Positions of a sequence for which there should be room.
    pub n_ctx: usize,
    /// The last layer at which the layers on a device can begin: the first of those whose keys and values later layers
    /// share, which must lie with them.
    last_start: usize,
    /// Buffers of a prefill chunk.
    scratch_bytes: u64,
    /// Buffers of the head: logits of some tokens.
    logit_bytes: u64,
}

/// The memory that one layer takes on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerEstimate {
    /// All its weights.
    pub weight_bytes: u64,
    /// How many of them are in a feed-forward part with experts.
    pub expert_bytes: u64,
    /// Its share of one page of a KV cache.
    pub page_bytes: u64,
}

/// Rows of logits that the head of a device computes at once, in estimates.
const LOGIT_ROWS: u64 = 64;

impl PartEstimates {
    /// Estimates the parts of `source`, with room for a sequence of `n_ctx` positions. `kv_type` is as in
    /// [`LoadOptions`](crate::LoadOptions::kv_type).
    ///
    /// # Errors
    /// As [`WeightSource::config`].
    pub fn of(source: &dyn WeightSource, n_ctx: usize, kv_type: Option<KvType>) -> Result<Self, ModelError> {
        let config = source.config()?;
        let kv_type = kv_type.unwrap_or(default_kv_type(source));
        let page_bytes = (0..config.n_layers()).map(|layer| layer_page_bytes(&config, kv_type, layer));
        let mut layers: Vec<_> =
            page_bytes.map(|page_bytes| LayerEstimate { page_bytes, ..Default::default() }).collect();
        let output = if source.tensor("output.weight").is_some() { "output.weight" } else { "token_embd.weight" };
        let (mut head_bytes, mut n_vocab) = (0u64, 0);
        for tensor in source.tensors() {
            // Devices have weights in the CPU's panels, and vectors in f32.
            let bytes = tensor_bytes(tensor, Isa::Portable).unwrap_or(tensor.n_elems().saturating_mul(4));
            match names::layer_of_gguf(&tensor.name) {
                Some(i) if i < layers.len() => {
                    layers[i].weight_bytes = layers[i].weight_bytes.saturating_add(bytes);
                    if config.experts.is_some() && names::is_feed_forward_in_gguf(&tensor.name) {
                        layers[i].expert_bytes = layers[i].expert_bytes.saturating_add(bytes);
                    }
                }
                None if tensor.name == output || tensor.name.starts_with("output") => {
                    head_bytes = head_bytes.saturating_add(bytes);
                    n_vocab = n_vocab.max(tensor.shape.first().copied().unwrap_or(0));
                }
                _ => {}
            }
        }
        let logit_bytes = n_vocab.saturating_mul(4 * LOGIT_ROWS);
        let n = config.n_layers();
        let last_start = (0..n).filter(|&layer| config.shares_kv(layer)).map(|layer| config.kv_layer(layer)).min();
        let (last_start, scratch_bytes) = (last_start.unwrap_or(n), scratch_bytes(&config));
        Ok(Self { layers, head_bytes, n_ctx, last_start, scratch_bytes, logit_bytes })
    }

    /// Whether layers have experts.
    pub(crate) fn has_experts(&self) -> bool {
        self.layers.iter().any(|layer| layer.expert_bytes > 0)
    }

    /// Bytes that these layers, and the head if `has_head`, take on a device. The experts of the first `cpu_experts`
    /// layers of the model are not there.
    pub fn on_device(&self, layers: std::ops::Range<usize>, has_head: bool, cpu_experts: usize) -> u64 {
        let scratch = if layers.is_empty() { 0 } else { self.scratch_bytes };
        let head = if has_head { self.head_bytes.saturating_add(self.logit_bytes) } else { 0 };
        self.of_layers(layers, cpu_experts).saturating_add(scratch).saturating_add(head)
    }

    /// The same without the buffers of a step.
    pub(crate) fn of_layers(&self, layers: std::ops::Range<usize>, cpu_experts: usize) -> u64 {
        // Slots for pages grow by doubling, and both sizes are there while they are copied.
        let pages = (self.n_ctx.div_ceil(PAGE).max(1) as u64).next_power_of_two() * 3 / 2;
        let of = |layer: usize| {
            let estimate = self.layers.get(layer).copied().unwrap_or_default();
            let experts = if layer < cpu_experts { estimate.expert_bytes } else { 0 };
            (estimate.weight_bytes - experts).saturating_add(estimate.page_bytes.saturating_mul(pages))
        };
        layers.map(of).fold(0, u64::saturating_add)
    }

    pub(crate) fn scratch_bytes(&self) -> u64 {
        self.scratch_bytes
    }

    /// The most layers, counted from the last one, that fit into this many bytes of a device together with the head, and
    /// that can be cut off from those before them.
    pub fn fitting(&self, bytes: u64, cpu_experts: usize) -> usize {
        let n = self.layers.len();
        let fitting = (1..=n).take_while(|&fit| self.on_device(n - fit..n, true, cpu_experts) <= bytes);
        fitting.filter(|fit| n - fit <= self.last_start).last().unwrap_or(0)
    }
}

/// Bytes of the buffers of one prefill chunk of 512 tokens.
fn scratch_bytes(config: &ModelConfig) -> u64 {
    // Per token: residual stream and its norm, q, k, v, attention output, hidden layer; floats and, for the
    // inputs of products, their quantized forms.
    let ffn = match config.experts {
        Some(e) if e.next_to_mlp => e.n_used * (2 * e.ffn_dim + 2 * config.dim) + 2 * config.ffn_dim + config.dim,
        Some(e) => e.n_used * (2 * e.ffn_dim + 2 * config.dim) + e.shared_ffn_dim.unwrap_or(0),
        None => 2 * config.shared_kv.map_or(0, |shared| shared.ffn_dim).max(config.ffn_dim),
    };
    let per_layer = config.per_layer_dim.map_or(0, |n| (config.n_layers() + 2) * n);
    // With latent attention, also queries before and values after the latent, and both in the form of products.
    let latent = config.latent.map_or(0, |latent| {
        2 * config.n_heads * (latent.query_dim() + latent.kv_rank + latent.value_dim) + latent.q_rank.unwrap_or(0)
    });
    // Of a layer with a state, the inputs and outputs of its convolution, gates, and outputs.
    let state = match config.recurrent {
        Some(Recurrent::DeltaNet(delta)) => 3 * delta.n_channels() + 3 * delta.value_dim(),
        Some(Recurrent::StateSpace(space)) => space.n_inputs() + 3 * space.n_channels() + 2 * space.value_dim(),
        _ => 0,
    };
    // Of the layer for drafts, embeddings and last hidden states, their norms, both together, and its input.
    let mtp = if config.mtp.is_some() { 8 * config.dim } else { 0 };
    let widths =
        4 * config.dim + mtp + 3 * config.n_heads * config.widest_head_dim() + latent + ffn + per_layer + state;
    512 * 5 * widths as u64
}

/// The cache is never less precise than the weights require: f32 for f32 weights, otherwise f16.
pub(crate) fn default_kv_type(source: &dyn WeightSource) -> KvType {
    match source.tensors().iter().all(|t| t.ty == TensorType::F32) {
        true => KvType::F32,
        false => KvType::F16,
    }
}

/// Returns an error if, according to the operating system, the tensors that go to host memory do not fit.
pub(crate) fn check_fits(
    source: &dyn WeightSource,
    isa: Isa,
    is_here: impl Fn(&str) -> bool,
) -> Result<(), ModelError> {
    let (needed_bytes, weight_type) = packed_bytes(source, isa, is_here);
    match available_bytes() {
        Some(available_bytes) if needed_bytes > available_bytes => {
            Err(ModelError::DoesNotFit { needed_bytes, available_bytes, weight_type })
        }
        _ => Ok(()),
    }
}

/// Memory that is available without swapping, on Linux, macOS, Windows and FreeBSD; `None` if the operating system does
/// not report it. In a container (cgroup), it is at most what the container may still use.
pub fn available_bytes() -> Option<u64> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory_specifics(sysinfo::MemoryRefreshKind::nothing().with_ram());
    let available = system.available_memory();
    // `CGroupLimits::free_memory` counts the file cache as used, which is large in a container that has just written or
    // read a model. The kernel can reclaim it, so only the memory of programs counts here.
    let in_container = system.cgroup_limits().map(|limits| limits.total_memory.saturating_sub(limits.rss));
    // An unknown system reports 0.
    (system.total_memory() > 0).then(|| available.min(in_container.unwrap_or(u64::MAX)))
}

/// Bytes that the matrices of a source for which `is_here` is true take when packed for `isa`, and their most common
/// type.
fn packed_bytes(source: &dyn WeightSource, isa: Isa, is_here: impl Fn(&str) -> bool) -> (u64, TensorType) {
    let mut total = 0u64;
    let mut by_type: Vec<(TensorType, u64)> = Vec::new();
    for tensor in source.tensors().iter().filter(|tensor| is_here(&tensor.name)) {
        let looked_up = match tensor.name.as_str() {
            "token_embd.weight" => source.tensor("output.weight").is_some(),
            name => name == "per_layer_token_embd.weight",
        };
        let isa = if looked_up { Isa::Scalar } else { isa };
        let Some(bytes) = tensor_bytes(tensor, isa) else { continue };
        total = total.saturating_add(bytes);
        match by_type.iter_mut().find(|(ty, _)| *ty == tensor.ty) {
            Some((_, n)) => *n = n.saturating_add(bytes),
            None => by_type.push((tensor.ty, bytes)),
        }
    }
    (total, by_type.into_iter().max_by_key(|(_, n)| *n).map_or(TensorType::F32, |(ty, _)| ty))
}

/// Bytes that a matrix, or all matrices of a tensor, take when packed for `isa`; `None` for a vector.
fn tensor_bytes(tensor: &TensorInfo, isa: Isa) -> Option<u64> {
    let (n, n_rows, n_cols) = match tensor.shape[..] {
        [n_rows, n_cols] => (1, n_rows, n_cols),
        [n, n_rows, n_cols] => (n, n_rows, n_cols),
        _ => return None,
    };
    let bytes = match (usize::try_from(n_rows), usize::try_from(n_cols)) {
        // Loading it returns an error with its name, which a lack of memory must not hide.
        _ if !tensor.ty.is_supported() => tensor.n_bytes,
        (Ok(rows), Ok(cols)) => Matrix::packed_bytes(isa, tensor.ty, rows, cols).unwrap_or(usize::MAX) as u64,
        _ => u64::MAX,
    };
    Some(bytes.saturating_mul(n))
}

#[cfg(test)]
mod tests {
    use super::available_bytes;

    #[test]
    fn available_memory_is_plausible() {
        let available = available_bytes();
        if cfg!(any(target_os = "linux", target_os = "macos", windows)) {
            let available = available.expect("these systems tell");
            assert!((16 << 20..1 << 50).contains(&available), "{available}");
        }
        #[cfg(target_os = "linux")]
        if let (Some(found), Ok(text)) = (available, std::fs::read_to_string("/proc/meminfo")) {
            // A container may have less, but never more; other processes allocate at the same time.
            let line = text.lines().find(|line| line.starts_with("MemAvailable:")).expect("on every kernel since 3.14");
            let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
            assert!(found <= kib * 1024 + (4 << 30), "{found}");
        }
    }
}
