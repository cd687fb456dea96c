//! Layers on a device: the seam between what runs a model and what it runs on.
//!
//! ```text
//! host       embedding ──> x [n_tokens, dim] f32 ──> segment ──> x ──> ... ──> segment ──> x ──> head ──> logits
//! segment    the weights of consecutive layers, and what these layers keep of every sequence
//! ```
//! The host knows tokens, positions, which page is whose, which row has which adapter; a segment knows its device.
//! To add a device, implement [`Device`], [`Segment`], [`StateStore`] and [`Head`]; the CPU's are in `cpu/`. The rows
//! that a segment gives out are a function of the rows before them in their sequence and of nothing else: not of the
//! batch, the chunks, or where the model is cut into segments.

use crate::ModelError;
use crate::loader::LayerLoader;
use crate::lora::{AdaptedRows, AdapterPart, LowRank};
use crate::pages::Page;
use crate::quantize::Collector;
use crate::rope::RopeAngles;
use crate::state::{StatePage, StateStore};
use fewbit_kernels::PAGE;
use std::ops::Range;
use std::sync::Arc;

/// Something that computes and has memory: takes layers of a model as it is loaded.
pub trait Device: Send + Sync {
    /// What it is called, for people.
    fn name(&self) -> String;

    /// Takes some consecutive layers.
    ///
    /// # Errors
    /// [`ModelError`] for tensors that are missing or of another shape, and if the device has no room for them.
    fn load_segment(&self, loader: &mut LayerLoader<'_>, layers: Range<usize>) -> Result<Box<dyn Segment>, ModelError>;

    /// Takes what follows the last layer.
    ///
    /// # Errors
    /// As [`load_segment`](Self::load_segment).
    fn load_head(&self, loader: &mut LayerLoader<'_>) -> Result<Box<dyn Head>, ModelError>;
}

/// Consecutive layers with their weights and their state, on one device.
pub trait Segment: Send + Sync {
    /// Which layers of the model they are.
    fn layers(&self) -> Range<usize>;

    /// Bytes of the weights in the device's memory.
    fn weight_bytes(&self) -> u64;

    /// Where its layers keep what they have seen of a sequence.
    fn states(&self) -> Arc<dyn StateStore>;

    /// Takes the rows of a batch through the layers, in place: `x` is `[n_tokens, dim]`. What the layers keep of the
    /// new positions goes into the pages of [`Step::sequences`].
    ///
    /// # Errors
    /// If the device fails: then no sequence has got longer, and what was written of new positions counts for nothing.
    fn forward(&self, step: &mut Step<'_>, x: &mut [f32]) -> Result<(), ModelError>;

    /// Takes an adapter of one of its matrices.
    ///
    /// # Errors
    /// If the device has no room for it, or fails.
    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError>;
}

/// What follows the last layer: a norm, and the output matrix.
pub trait Head: Send + Sync {
    /// Size of the vocabulary.
    fn n_vocab(&self) -> usize;

    /// Bytes of its weights in the device's memory that are not those of the embedding.
    fn weight_bytes(&self) -> u64;

    /// Norms rows `[n_rows, dim]` in place: what a model for embeddings gives.
    ///
    /// # Errors
    /// If the device fails.
    fn norm(&self, rows: &mut [f32]) -> Result<(), ModelError>;

    /// Logits `[n_rows, n_vocab]` of rows `[n_rows, dim]`; `loras` counts these rows.
    ///
    /// # Errors
    /// If the device fails.
    fn logits(&self, rows: &[f32], loras: &[AdaptedRows], out: &mut [f32]) -> Result<(), ModelError>;

    /// Takes an adapter of the output matrix.
    ///
    /// # Errors
    /// If the device has no room for it, or fails.
    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError>;
}

/// What a segment is told of a batch.
#[non_exhaustive]
pub struct Step<'a> {
    /// The sequences of the batch, in the order of their rows.
    pub sequences: Vec<SequenceRows<'a>>,
    /// The rotation of every row's position, in layers that see everything.
    pub global: &'a RopeAngles,
    /// The same in local layers, where it is another one.
    pub local: &'a RopeAngles,
    /// `[n_tokens]`: factors of the queries, in models that scale them by their position.
    pub temperatures: &'a [f32],
    /// Which rows have which adapters.
    pub loras: &'a [AdaptedRows],
    /// Who is told of the inputs of every matrix, while an importance matrix is measured.
    pub collector: Option<&'a mut Collector>,
}

/// The rows of one sequence in a batch, and its pages in one segment.
pub struct SequenceRows<'a> {
    rows: Range<usize>,
    position: usize,
    n_gone: usize,
    pages: &'a mut [Page],
    segment: usize,
}

impl<'a> SequenceRows<'a> {
    /// `n_gone` pages came before `pages` and were given up.
    pub(crate) fn new(rows: Range<usize>, position: usize, n_gone: usize, pages: &'a mut [Page]) -> Self {
        Self { rows, position, n_gone, pages, segment: 0 }
    }

    /// Makes its pages those of another segment.
    pub(crate) fn enter(&mut self, segment: usize) {
        self.segment = segment;
    }

    /// Its rows of the batch.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Position of the first of them: as many came before it.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Which page the first of [`pages`](Self::pages) is. Those before it have been given up, because no layer of the
    /// model will see their positions again.
    pub fn first_page(&self) -> usize {
        self.n_gone
    }

    /// The pages that are left, to be read; new positions have theirs too.
    pub fn pages(&self) -> impl Iterator<Item = &StatePage> {
        self.pages.iter().map(|page| page.part(self.segment))
    }

    /// The pages from that of the first new position on, to be written: no other sequence holds them.
    pub fn new_pages(&mut self) -> impl Iterator<Item = &mut StatePage> {
        let first = self.position / PAGE - self.n_gone;
        let segment = self.segment;
        self.pages[first..].iter_mut().map(move |page| page.part_mut(segment).expect("reserved, so not shared"))
    }
}
