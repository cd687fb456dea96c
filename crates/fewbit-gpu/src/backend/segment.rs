//! A segment and a head of a model around the plan that a backend runs.

use super::pages::Pages;
use super::{Memory, RESERVED_ROWS, lock};
use crate::interpreter::refuse_collector;
use crate::plan::{Buffer, Plan, Weights};
use fewbit_kernels::Cpu;
use fewbit_model::{
    AdaptedRows, AdapterPart, Head, KvType, LayerLoader, LoraTarget, LowRank, ModelConfig, ModelError, Segment,
    StateStore, Step,
};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// An [`Op::Adapt`](crate::plan::Op::Adapt) of a plan, where adapters add to the product of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) layer: usize,
    pub(crate) target: LoraTarget,
    pub(crate) from: Buffer,
    pub(crate) to: Buffer,
}

/// A plan with its weights on a device.
pub(crate) trait Runner: Send + 'static {
    /// The device.
    type Memory: Memory;

    /// The weights of a plan while they are uploaded.
    type Weights<'a>: Weights;

    /// No weights yet.
    fn weights(memory: &Self::Memory) -> Self::Weights<'_>;

    /// A plan whose weights are uploaded. Layers of pages are relative to `first_layer`.
    fn new(
        memory: &Arc<Self::Memory>,
        config: &ModelConfig,
        plan: Plan,
        weights: Self::Weights<'_>,
        pages: (KvType, usize),
    ) -> Self;

    /// The device's name.
    fn device(&self) -> &str;

    /// Bytes of the weights.
    fn weight_bytes(&self) -> u64;

    /// The most rows of one run.
    fn most_rows(&self) -> usize;

    /// Runs the plan on the rows `x` (`[n_tokens, dim]`), and copies the buffer `result` to `out`.
    fn run(
        &mut self,
        x: &[f32],
        step: Option<(&Step<'_>, &Pages<Self::Memory>)>,
        loras: &[AdaptedRows],
        result: Buffer,
        out: &mut [f32],
    ) -> Result<(), ModelError>;

    /// Uploads the part of an adapter for one matrix.
    fn upload(memory: &Self::Memory, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError>;
}

/// Layers on a device.
pub(crate) struct PlanSegment<R: Runner> {
    memory: Arc<R::Memory>,
    run: Mutex<R>,
    pages: Arc<Pages<R::Memory>>,
    layers: Range<usize>,
    weight_bytes: u64,
}

impl<R: Runner> PlanSegment<R> {
    /// Uploads some layers, which are packed by `packer`.
    pub(crate) fn load(
        memory: &Arc<R::Memory>,
        packer: &Cpu,
        loader: &mut LayerLoader<'_>,
        layers: Range<usize>,
    ) -> Result<Self, ModelError> {
        let (config, kv_type) = (loader.config(), loader.kv_type());
        let mut weights = R::weights(memory);
        let taken = layers.clone().map(|layer| (layer, loader.layer(packer, layer)));
        let plan = Plan::of_layers(config, taken, &mut weights)?;
        let with_state = loader.layer_part().with_state(layers.clone());
        let reserved = plan.scratch_bytes(RESERVED_ROWS);
        let pages = Arc::new(Pages::new(memory, config, kv_type, with_state, reserved));
        let run = R::new(memory, config, plan, weights, (kv_type, layers.start));
        let weight_bytes = run.weight_bytes();
        Ok(Self { memory: Arc::clone(memory), run: Mutex::new(run), pages, layers, weight_bytes })
    }
}

impl<R: Runner> Segment for PlanSegment<R> {
    fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn states(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.pages) as Arc<dyn StateStore>
    }

    fn forward(&self, step: &mut Step<'_>, x: &mut [f32]) -> Result<(), ModelError> {
        let mut run = lock(&self.run);
        refuse_collector(step, run.device())?;
        let rows = x.to_vec();
        let loras = step.loras;
        run.run(&rows, Some((step, &self.pages)), loras, Buffer::X, x)
    }

    fn check(&self) -> Result<(), ModelError> {
        self.memory.check()
    }

    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
        R::upload(&self.memory, adapter)
    }
}

/// The head of a model on a device.
pub(crate) struct PlanHead<R: Runner> {
    memory: Arc<R::Memory>,
    run: Mutex<R>,
    n_vocab: usize,
    dim: usize,
    most_rows: usize,
    weight_bytes: u64,
}

impl<R: Runner> PlanHead<R> {
    /// Uploads the head, which is packed by `packer`.
    pub(crate) fn load(
        memory: &Arc<R::Memory>,
        packer: &Cpu,
        loader: &mut LayerLoader<'_>,
    ) -> Result<Self, ModelError> {
        let (config, kv_type) = (loader.config(), loader.kv_type());
        let head = loader.head(packer)?;
        let mut weights = R::weights(memory);
        let plan = Plan::of_head(config, head, &mut weights)?;
        let (n_vocab, dim) = (plan.shape(Buffer::Logits).width, config.dim);
        let run = R::new(memory, config, plan, weights, (kv_type, 0));
        let (weight_bytes, most_rows) = (run.weight_bytes(), run.most_rows());
        Ok(Self { memory: Arc::clone(memory), run: Mutex::new(run), n_vocab, dim, most_rows, weight_bytes })
    }

    /// Runs the plan, and copies the buffer `result`, whose rows have this `width`, to `out`.
    fn run(
        &self,
        rows: &[f32],
        loras: &[AdaptedRows],
        (result, width): (Buffer, usize),
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let mut run = lock(&self.run);
        if !loras.is_empty() {
            // Adapters refer to rows of the whole batch, so it cannot be split.
            return run.run(rows, None, loras, result, out);
        }
        for (rows, out) in rows.chunks(self.most_rows * self.dim).zip(out.chunks_mut(self.most_rows * width)) {
            run.run(rows, None, &[], result, out)?;
        }
        Ok(())
    }
}

impl<R: Runner> Head for PlanHead<R> {
    fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn norm(&self, rows: &mut [f32]) -> Result<(), ModelError> {
        let input = rows.to_vec();
        self.run(&input, &[], (Buffer::Normed, self.dim), rows)
    }

    fn logits(&self, rows: &[f32], loras: &[AdaptedRows], out: &mut [f32]) -> Result<(), ModelError> {
        self.run(rows, loras, (Buffer::Logits, self.n_vocab), out)
    }

    fn check(&self) -> Result<(), ModelError> {
        self.memory.check()
    }

    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
        R::upload(&self.memory, adapter)
    }
}
