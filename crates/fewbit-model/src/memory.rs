//! Estimates of the memory that a model will take, before anything is allocated.

use crate::cpu::page_bytes;
use crate::{KvType, ModelError};
use fewbit_checkpoint::WeightSource;
use fewbit_kernels::{Isa, Matrix, PAGE};
use fewbit_quant::TensorType;

/// Memory that a loaded model and one sequence take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// The sum of all parts.
    pub fn total_bytes(&self) -> u64 {
        let all = [self.weight_bytes, self.kv_bytes, self.lora_bytes, self.scratch_bytes];
        all.into_iter().fold(0, u64::saturating_add)
    }
}

/// Estimates the memory for loading `source` for `isa` with a context of `n_ctx` positions. `kv_type` is as in
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
        weight_bytes: packed_bytes(source, isa, |_| true).0,
        kv_bytes: pages.saturating_mul(page_bytes(&config, kv_type.unwrap_or(default_kv_type(source)))),
        lora_bytes: 0,
        scratch_bytes: 512 * 5 * widths as u64,
    })
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
        let (n, n_rows, n_cols) = match tensor.shape[..] {
            [n_rows, n_cols] => (1, n_rows, n_cols),
            [n, n_rows, n_cols] => (n, n_rows, n_cols),
            _ => continue,
        };
        let looked_up = tensor.name == "token_embd.weight" && source.tensor("output.weight").is_some();
        let isa = if looked_up { Isa::Scalar } else { isa };
        let bytes = match (usize::try_from(n_rows), usize::try_from(n_cols)) {
            // Loading it returns an error with its name, which a lack of memory must not hide.
            _ if !tensor.ty.is_supported() => tensor.n_bytes,
            (Ok(rows), Ok(cols)) => Matrix::packed_bytes(isa, tensor.ty, rows, cols).unwrap_or(usize::MAX) as u64,
            _ => u64::MAX,
        };
        let bytes = bytes.saturating_mul(n);
        total = total.saturating_add(bytes);
        match by_type.iter_mut().find(|(ty, _)| *ty == tensor.ty) {
            Some((_, n)) => *n = n.saturating_add(bytes),
            None => by_type.push((tensor.ty, bytes)),
        }
    }
    (total, by_type.into_iter().max_by_key(|(_, n)| *n).map_or(TensorType::F32, |(ty, _)| ty))
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
