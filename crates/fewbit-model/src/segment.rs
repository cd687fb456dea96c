//! Layers on a device: the interface between the code that runs a model and the devices that it runs on.
//!
//! ```text
//! host       embedding ──> x [n_tokens, dim] f32 ──> segment ──> x ──> ... ──> segment ──> x ──> head ──> logits
//! segment    the weights of consecutive layers, and what these layers keep of every sequence
//! ```
//! The host handles tokens, positions, the ownership of pages, and the adapters of rows; a segment handles its device.
//! To add a device, implement [`Device`], [`Segment`], [`StateStore`] and [`Head`]; those of the CPU are in `cpu/`. The
//! output rows of a segment depend only on the rows before them in their sequence: not on the batch, the chunks, or how
//! the model is split into segments.

use crate::loader::LayerLoader;
use crate::lora::{AdaptedRows, AdapterPart, LowRank};
use crate::pages::Page;
use crate::quantize::Collector;
use crate::rope::RopeAngles;
use crate::state::{StatePage, StateStore};
use crate::{DeviceMemory, ModelError};
use fewbit_kernels::PAGE;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A device with its own memory, which takes layers of a model as it is loaded.
pub trait Device: Send + Sync {
    /// The name to display.
    fn name(&self) -> String;

    /// Its memory at this moment, as far as it is known. Before a model is loaded, it is checked against an estimate.
    fn memory(&self) -> DeviceMemory {
        DeviceMemory::default()
    }

    /// Measures what it can do at most, for benchmarks; `None` if that is not implemented for this device.
    ///
    /// # Errors
    /// If the device fails.
    fn ceilings(&self) -> Result<Option<DeviceCeilings>, ModelError> {
        Ok(None)
    }

    /// Begins to measure how long each kernel takes, until [`stop_timing`](Self::stop_timing). Returns whether this device
    /// can. Meanwhile steps take longer, because nothing overlaps.
    fn start_timing(&self) -> bool {
        false
    }

    /// Ends it, and returns the sums over all launches since it began, the longest first.
    fn stop_timing(&self) -> Vec<KernelTime> {
        Vec::new()
    }

    /// Takes some consecutive layers.
    ///
    /// # Errors
    /// [`ModelError`] for tensors that are missing or have the wrong shape, and if the device has no memory for them.
    fn load_segment(&self, loader: &mut LayerLoader<'_>, layers: Range<usize>) -> Result<Box<dyn Segment>, ModelError>;

    /// Takes the norm and the output matrix after the last layer.
    ///
    /// # Errors
    /// As [`load_segment`](Self::load_segment).
    fn load_head(&self, loader: &mut LayerLoader<'_>) -> Result<Box<dyn Head>, ModelError>;
}

/// What a device can do at most, as measured.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeviceCeilings {
    /// Bytes of its memory that it reads per second.
    pub read_bytes_per_s: f64,
    /// Multiply-accumulates of bytes per second.
    pub int8_macs_per_s: f64,
}

impl DeviceCeilings {
    /// The ceilings of a device.
    pub fn new(read_bytes_per_s: f64, int8_macs_per_s: f64) -> Self {
        Self { read_bytes_per_s, int8_macs_per_s }
    }
}

/// The time that the launches of one kind of kernel took on a device, all together.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct KernelTime {
    /// What it computes; of products with the weight type, and the rows and columns of the matrix.
    pub kernel: String,
    /// Number of launches.
    pub n_launches: u64,
    /// The sum of their times, by the device's clock.
    pub time: Duration,
    /// Bytes of weights that they read; 0 for kernels that read none, or where it depends on the tokens.
    pub weight_bytes: u64,
}

impl KernelTime {
    /// No launches yet.
    pub fn new(kernel: impl Into<String>) -> Self {
        Self { kernel: kernel.into(), n_launches: 0, time: Duration::ZERO, weight_bytes: 0 }
    }
}

/// Consecutive layers with their weights and their state, on one device.
pub trait Segment: Send + Sync {
    /// The range of layers in the model.
    fn layers(&self) -> Range<usize>;

    /// Bytes of the weights in the device's memory.
    fn weight_bytes(&self) -> u64;

    /// The store for the state that its layers keep of sequences.
    fn states(&self) -> Arc<dyn StateStore>;

    /// The stores for what its recurrent layers keep: their states at a position, and the inputs of a few rows; `None`
    /// without such layers.
    fn fixed_states(&self) -> Option<[Arc<dyn StateStore>; 2]> {
        None
    }

    /// Runs the rows of a batch through the layers, in place: `x` is `[n_tokens, dim]`. The state of the new positions
    /// goes into the pages of [`Step::sequences`].
    ///
    /// # Errors
    /// If the device fails. Then no sequence is extended, and what was written for new positions is ignored.
    fn forward(&self, step: &mut Step<'_>, x: &mut [f32]) -> Result<(), ModelError>;

    /// Returns an error if its device was lost. After one, its layers move to the CPU: see
    /// [`Decoder::replace_lost`](crate::Decoder::replace_lost).
    ///
    /// # Errors
    /// [`DeviceError::Lost`](crate::DeviceError::Lost).
    fn check(&self) -> Result<(), ModelError> {
        Ok(())
    }

    /// Takes an adapter for one of its matrices.
    ///
    /// # Errors
    /// If the device has no memory for it, or fails.
    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError>;
}

/// The head: the norm and the output matrix after the last layer.
pub trait Head: Send + Sync {
    /// Size of the vocabulary.
    fn n_vocab(&self) -> usize;

    /// Bytes of its weights in the device's memory, without those shared with the embedding.
    fn weight_bytes(&self) -> u64;

    /// Normalizes rows `[n_rows, dim]` in place, which gives the output of an embedding model.
    ///
    /// # Errors
    /// If the device fails.
    fn norm(&self, rows: &mut [f32]) -> Result<(), ModelError>;

    /// Computes logits `[n_rows, n_vocab]` of rows `[n_rows, dim]`; the row indices in `loras` refer to these rows.
    ///
    /// # Errors
    /// If the device fails.
    fn logits(&self, rows: &[f32], loras: &[AdaptedRows], out: &mut [f32]) -> Result<(), ModelError>;

    /// As [`Segment::check`].
    ///
    /// # Errors
    /// [`DeviceError::Lost`](crate::DeviceError::Lost).
    fn check(&self) -> Result<(), ModelError> {
        Ok(())
    }

    /// Takes an adapter for the output matrix.
    ///
    /// # Errors
    /// If the device has no memory for it, or fails.
    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError>;
}

/// The information about a batch that a segment gets.
#[non_exhaustive]
pub struct Step<'a> {
    /// The sequences of the batch, in the order of their rows.
    pub sequences: Vec<SequenceRows<'a>>,
    /// The rotary angles of every row's position, for global layers.
    pub global: &'a RopeAngles,
    /// The same for local layers, if theirs differ.
    pub local: &'a RopeAngles,
    /// `[n_tokens]`: factors of the queries, in models that scale them by position.
    pub temperatures: &'a [f32],
    /// `[n_tokens, n_layers, per_layer_dim]`: what each layer of the model gets of the per-layer embeddings, in models
    /// that have them.
    pub per_layer: &'a [f32],
    /// The adapters of the rows.
    pub loras: &'a [AdaptedRows],
    /// Receives the inputs of every matrix while an importance matrix is measured.
    pub collector: Option<&'a mut Collector>,
}

/// The rows of one sequence in a batch, and its pages in one segment.
pub struct SequenceRows<'a> {
    rows: Range<usize>,
    position: usize,
    n_gone: usize,
    pages: &'a mut [Page],
    fixed: Option<FixedRows<'a>>,
    segment: usize,
}

/// The states of recurrent layers that the rows of a sequence begin with and leave behind.
pub(crate) struct FixedRows<'a> {
    base: Option<&'a Page>,
    n_replayed: usize,
    log: Option<&'a mut Page>,
    is_logged: bool,
    to: Vec<(usize, &'a mut Page)>,
}

impl<'a> FixedRows<'a> {
    pub(crate) fn new(
        base: Option<&'a Page>,
        n_replayed: usize,
        log: Option<&'a mut Page>,
        is_logged: bool,
        to: Vec<(usize, &'a mut Page)>,
    ) -> Self {
        Self { base, n_replayed, log, is_logged, to }
    }
}

/// The states of recurrent layers of one sequence, in one segment.
#[non_exhaustive]
pub struct FixedStates<'a> {
    /// The state before the replayed rows; zero if there is none.
    pub base: Option<&'a StatePage>,
    /// Number of rows from there to the first new one. Their inputs are in the log.
    pub n_replayed: usize,
    /// The log, for reading.
    pub log: Option<&'a StatePage>,
    /// Receives the states after so many rows, the replayed ones included, in increasing order; the last one after all
    /// rows.
    pub to: Vec<(usize, &'a mut StatePage)>,
}

impl<'a> SequenceRows<'a> {
    /// Creates the rows of a sequence of which `n_gone` pages before `pages` were released.
    pub(crate) fn new(
        rows: Range<usize>,
        position: usize,
        n_gone: usize,
        pages: &'a mut [Page],
        fixed: Option<FixedRows<'a>>,
    ) -> Self {
        Self { rows, position, n_gone, pages, fixed, segment: 0 }
    }

    /// The states of its recurrent layers, in a model with such layers.
    pub fn fixed_states(&mut self) -> Option<FixedStates<'_>> {
        let segment = self.segment;
        let fixed = self.fixed.as_mut()?;
        let to = fixed.to.iter_mut();
        Some(FixedStates {
            base: fixed.base.map(|page| page.part(segment)),
            n_replayed: fixed.n_replayed,
            log: fixed.log.as_deref().map(|page| page.part(segment)),
            to: to.map(|(n, page)| (*n, page.part_mut(segment).expect("reserved, so not shared"))).collect(),
        })
    }

    /// Number of rows before the new ones that are computed again for the states of recurrent layers.
    pub fn n_replayed(&self) -> usize {
        self.fixed.as_ref().map_or(0, |fixed| fixed.n_replayed)
    }

    /// The log of the inputs of recurrent layers, if those of the new rows go there.
    pub fn log(&mut self) -> Option<&mut StatePage> {
        let segment = self.segment;
        let fixed = self.fixed.as_mut().filter(|fixed| fixed.is_logged)?;
        let log = fixed.log.as_deref_mut()?;
        Some(log.part_mut(segment).expect("reserved, so not shared"))
    }

    /// Selects the pages of another segment.
    pub(crate) fn enter(&mut self, segment: usize) {
        self.segment = segment;
    }

    /// The range of its rows in the batch.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Position of the first of these rows, which is the number of positions before it.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Index of the first of [`pages`](Self::pages). Earlier pages were released, because no layer of the model will
    /// see their positions again.
    pub fn first_page(&self) -> usize {
        self.n_gone
    }

    /// The remaining pages, for reading; they include those of the new positions.
    pub fn pages(&self) -> impl Iterator<Item = &StatePage> {
        self.pages.iter().map(|page| page.part(self.segment))
    }

    /// The pages from that of the first new position on, for writing: no other sequence holds them.
    pub fn new_pages(&mut self) -> impl Iterator<Item = &mut StatePage> {
        let first = self.position / PAGE - self.n_gone;
        let segment = self.segment;
        self.pages[first..].iter_mut().map(move |page| page.part_mut(segment).expect("reserved, so not shared"))
    }
}
