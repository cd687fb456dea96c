//! What a model will take, before anything is allocated.

use crate::ModelError;
use crate::pages::{KvType, page_bytes};
use crate::source::WeightSource;
use crate::weights::packed_bytes;
use fewbit_kernels::{Isa, PAGE};
use fewbit_quant::TensorType;

/// Memory that a loaded model and one sequence take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryEstimate {
    /// Packed weights.
    pub weight_bytes: u64,
    /// The KV cache of `n_ctx` positions.
    pub kv_bytes: u64,
    /// Adapters.
    pub lora_bytes: u64,
    /// Buffers of one forward pass over a prefill chunk of 512 tokens.
    pub scratch_bytes: u64,
}

impl MemoryEstimate {
    /// Everything together.
    pub fn total_bytes(&self) -> u64 {
        let all = [self.weight_bytes, self.kv_bytes, self.lora_bytes, self.scratch_bytes];
        all.into_iter().fold(0, u64::saturating_add)
    }
}

/// Estimates what loading `source` for `isa` and a context of `n_ctx` positions will take. `kv_type` as in
/// [`LoadOptions`](crate::LoadOptions::kv_type).
///
/// # Errors
/// As [`WeightSource::config`].
pub fn estimate(
    source: &dyn WeightSource,
    isa: Isa,
    n_ctx: usize,
    kv_type: Option<KvType>,
) -> Result<MemoryEstimate, ModelError> {
    let config = source.config()?;
    let pages = n_ctx.div_ceil(PAGE) as u64;
    // Per token: residual stream and its norm, q, k, v, attention output, hidden layer; floats and, for the
    // inputs of products, their quantized forms.
    let ffn = match config.experts {
        Some(e) => e.n_used * (2 * e.ffn_dim + 2 * config.dim) + e.shared_ffn_dim.unwrap_or(0),
        None => 2 * config.ffn_dim,
    };
    let widths = 4 * config.dim + 3 * config.n_heads * config.head_dim + ffn;
    Ok(MemoryEstimate {
        weight_bytes: packed_bytes(source, isa).0,
        kv_bytes: pages.saturating_mul(page_bytes(&config, kv_type.unwrap_or(default_kv_type(source)))),
        lora_bytes: 0,
        scratch_bytes: 512 * 5 * widths as u64,
    })
}

/// The cache is never the coarsest part: full precision for full-precision weights, else f16.
pub(crate) fn default_kv_type(source: &dyn WeightSource) -> KvType {
    match source.tensors().iter().all(|t| t.ty == TensorType::F32) {
        true => KvType::F32,
        false => KvType::F16,
    }
}

/// Refuses a load that the operating system says will not fit.
pub(crate) fn check_fits(source: &dyn WeightSource, isa: Isa) -> Result<(), ModelError> {
    let (needed_bytes, weight_type) = packed_bytes(source, isa);
    match available_bytes() {
        Some(available_bytes) if needed_bytes > available_bytes => {
            Err(ModelError::DoesNotFit { needed_bytes, available_bytes, weight_type })
        }
        _ => Ok(()),
    }
}

/// Memory that can be had without swapping, on Linux, macOS, Windows and FreeBSD; `None` where the operating system
/// does not tell. In a container (cgroup) it is no more than the container may still take.
pub fn available_bytes() -> Option<u64> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory_specifics(sysinfo::MemoryRefreshKind::nothing().with_ram());
    let available = system.available_memory();
    // `CGroupLimits::free_memory` counts the file cache as used, which a container that has just written or read a
    // model is full of. The kernel gives that back, so what counts is what programs hold.
    let in_container = system.cgroup_limits().map(|limits| limits.total_memory.saturating_sub(limits.rss));
    // A system of which nothing is known says 0.
    (system.total_memory() > 0).then(|| available.min(in_container.unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::available_bytes;

    #[test]
    fn the_memory_there_is_is_known() {
        let available = available_bytes();
        if cfg!(any(target_os = "linux", target_os = "macos", windows)) {
            let available = available.expect("these systems tell");
            assert!((16 << 20..1 << 50).contains(&available), "{available}");
        }
        #[cfg(target_os = "linux")]
        if let (Some(found), Ok(text)) = (available, std::fs::read_to_string("/proc/meminfo")) {
            // A container may have less, nobody has more; other processes allocate meanwhile.
            let line = text.lines().find(|line| line.starts_with("MemAvailable:")).expect("on every kernel since 3.14");
            let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
            assert!(found <= kib * 1024 + (4 << 30), "{found}");
        }
    }
}
