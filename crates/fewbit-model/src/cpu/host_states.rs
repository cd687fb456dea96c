//! Keys and values in host memory, for devices other than the CPU backend that compute there: the interpreter of plans.

use super::attention::{LayerStep, append_and_attend, attention_shape};
use super::state::{Layout, store};
use crate::segment::SequenceRows;
use crate::state::StateStore;
use crate::{KvType, ModelConfig};
use fewbit_kernels::Cpu;
use std::ops::Range;
use std::sync::Arc;

/// The pages of some layers in host memory, and attention over them.
pub struct HostStates {
    layout: Layout,
    kv_type: KvType,
    store: Arc<dyn StateStore>,
}

impl HostStates {
    /// Creates the states of some layers of a model.
    pub fn new(config: &ModelConfig, kv_type: KvType, layers: Range<usize>) -> Self {
        let layout = Layout::new(config, kv_type, layers);
        Self { kv_type, store: store(&layout, kv_type), layout }
    }

    /// Creates the store of their pages.
    pub fn store(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.store)
    }

    /// Appends the rows `k` and `v` of every sequence to its pages of one layer (`layer` in the model, `in_segment` in
    /// this segment), then writes the attention of its rows of `q` to `out`. `sinks` are those of all heads, if they
    /// have some.
    #[allow(clippy::too_many_arguments)]
    pub fn append_and_attend(
        &self,
        cpu: &Cpu,
        config: &ModelConfig,
        (layer, in_segment): (usize, usize),
        sequences: &mut [SequenceRows<'_>],
        [q, k, v]: [&[f32]; 3],
        sinks: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let shape = attention_shape(config, layer);
        let step = LayerStep { layout: &self.layout, layer: in_segment, shape, sinks, q, k, v };
        append_and_attend(cpu, self.kv_type, sequences, &step, out);
    }
}
