//! The buffers of a plan's rows.

use super::Memory;
use crate::plan::{Buffer, Plan};
use fewbit_model::ModelError;
use fewbit_quant::ActivationKind;
use std::collections::BTreeMap;

/// The buffers of a plan, and the codes, scales and sums of its quantized forms by block size.
pub(crate) type RowBuffers<B> = (BTreeMap<Buffer, B>, BTreeMap<usize, [B; 3]>);

/// Buffers for a step of `n_tokens`.
pub(crate) fn row_buffers<M: Memory>(
    memory: &M,
    plan: &Plan,
    n_tokens: usize,
) -> Result<RowBuffers<M::Buffer>, ModelError> {
    let mut buffers = BTreeMap::new();
    for (&buffer, shape) in &plan.buffers {
        buffers.insert(buffer, memory.buffer(4 * (n_tokens * shape.rows_per_token * shape.width) as u64)?);
    }
    let mut forms = BTreeMap::new();
    for kind in [ActivationKind::Q8Block32, ActivationKind::Q8Block256] {
        let n = (n_tokens * plan.quantized_elems(kind)) as u64;
        if n > 0 {
            let (block, sum) = (kind.block_elems() as u64, kind.sum_elems() as u64);
            let form = [memory.buffer(n)?, memory.buffer(4 * n / block)?, memory.buffer(4 * n / sum)?];
            forms.insert(kind.block_elems(), form);
        }
    }
    Ok((buffers, forms))
}
