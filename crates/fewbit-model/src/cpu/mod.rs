//! Layers on the CPU, the reference device, which defines what the others compute.

mod adapters;
mod attention;
mod delta;
mod forward;
mod head;
mod host_states;
mod latent;
mod mtp;
mod recurrent;
mod recurrent_weights;
mod short_conv;
mod space;
mod state;
pub(crate) mod weights;

pub use attention::attention_shape;
pub use host_states::HostStates;
pub(crate) use mtp::MtpLayer;
pub(crate) use state::{fixed_bytes, layer_page_bytes, no_states, page_bytes};
pub(crate) use weights::pack;

use crate::loader::LayerLoader;
use crate::lora::{AdapterPart, LowRank};
use crate::segment::{Device, Head, Segment, Step};
use crate::state::StateStore;
use crate::{KvType, ModelConfig, ModelError};
use fewbit_checkpoint::CheckpointError;
use fewbit_kernels::Cpu;
use forward::Buffers;
use head::CpuHead;
use state::{FixedLayout, Layout};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use weights::{Layer, Packer};

/// The CPU as a device for layers.
pub struct CpuDevice {
    shared: Arc<Shared>,
}

/// The state that all segments on one CPU share.
struct Shared {
    cpu: Cpu,
    /// Buffers of a step, which the segments use in turn.
    buffers: Mutex<Buffers>,
}

impl Shared {
    fn with_buffers<R>(&self, f: impl FnOnce(&mut Buffers) -> R) -> R {
        // A failed step may leave arbitrary values in them; they are always overwritten.
        f(&mut self.buffers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl CpuDevice {
    /// Creates the device with the instruction set and threads of `cpu`.
    pub fn new(cpu: Cpu) -> Self {
        Self { shared: Arc::new(Shared { cpu, buffers: Mutex::default() }) }
    }
}

impl Device for CpuDevice {
    fn name(&self) -> String {
        format!("cpu ({})", self.shared.cpu.isa())
    }

    fn load_segment(&self, loader: &mut LayerLoader<'_>, layers: Range<usize>) -> Result<Box<dyn Segment>, ModelError> {
        Ok(Box::new(self.segment(loader, layers)?))
    }

    fn load_head(&self, loader: &mut LayerLoader<'_>) -> Result<Box<dyn Head>, ModelError> {
        Ok(Box::new(CpuHead::load(&self.shared, loader)?))
    }
}

impl CpuDevice {
    fn segment(&self, loader: &mut LayerLoader<'_>, layers: Range<usize>) -> Result<CpuSegment, ModelError> {
        let (config, kv_type) = (loader.config().clone(), loader.kv_type());
        let with_state = loader.layer_part().with_state(layers.clone());
        if let Some(layer) = with_state.clone().find(|&layer| !layers.contains(&config.kv_layer(layer))) {
            return Err(CheckpointError::UnsupportedFeature {
                feature: "a segment without the layer whose keys and values it shares",
                key: "shared_kv.n_layers".to_owned(),
                value: format!("layer {layer} of the segment {layers:?}"),
            }
            .into());
        }
        let mut packer = Packer { loader, cpu: &self.shared.cpu };
        let weights = layers.clone().map(|i| packer.layer(i)).collect::<Result<_, _>>()?;
        let fixed = FixedLayout::new(&config, with_state.clone());
        let layout = Layout::new(&config, kv_type, with_state);
        let states = state::store(&layout, kv_type);
        let shared = Arc::clone(&self.shared);
        Ok(CpuSegment { shared, config, kv_type, layers, weights, layout, fixed, states, is_mtp: false })
    }
}

/// Consecutive layers on the CPU.
struct CpuSegment {
    shared: Arc<Shared>,
    config: ModelConfig,
    kv_type: KvType,
    layers: Range<usize>,
    /// `[layers.len()]`
    weights: Vec<Layer>,
    layout: Layout,
    fixed: FixedLayout,
    states: Arc<dyn StateStore>,
    /// Whether it is the layer that predicts a further token, which has nothing at position 0.
    is_mtp: bool,
}

impl Segment for CpuSegment {
    fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    fn weight_bytes(&self) -> u64 {
        self.weights.iter().map(Layer::n_bytes).sum()
    }

    fn states(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.states)
    }

    fn fixed_states(&self) -> Option<[Arc<dyn StateStore>; 2]> {
        self.fixed.stores()
    }

    fn forward(&self, step: &mut Step<'_>, x: &mut [f32]) -> Result<(), ModelError> {
        self.shared.with_buffers(|buffers| self.compute(step, x, buffers));
        Ok(())
    }

    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
        Ok(adapters::pack(&self.shared.cpu, adapter)?)
    }
}
