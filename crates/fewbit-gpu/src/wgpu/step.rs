//! What kernels are told of a step, in tables: which sequence each row belongs to, where the sequences are and in which
//! slots their pages lie, and the rotations of the rows' positions.

use crate::backend::pages::slot_of;
use fewbit_model::Step;

/// The tables of a step.
#[derive(Debug, Default)]
pub(super) struct StepTables {
    pub(super) shape: StepShape,
    /// The sequence of each row; six numbers for each sequence (its first row, rows, first position, first page, its
    /// first entry among the slots, 0); the slots.
    pub(super) tables: Vec<u32>,
    /// For each kind of layer the cosines and the sines of the rows; the temperature factors.
    pub(super) angles: Vec<f32>,
}

/// Where in the tables everything is: `Step` in the kernels.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct StepShape {
    pub(super) n_tokens: u32,
    pub(super) row_at: u32,
    pub(super) sequence_at: u32,
    pub(super) slot_at: u32,
    /// Where the angles of global layers begin, and how many cosines each row has.
    pub(super) global_at: u32,
    pub(super) global_n: u32,
    /// The same for local layers.
    pub(super) local_at: u32,
    pub(super) local_n: u32,
    pub(super) temperature_at: u32,
    /// Constants that compilers must not know.
    pub(super) infinity: f32,
    pub(super) zero: u32,
    pub(super) pad: u32,
}

impl StepTables {
    /// The tables of a step with this many rows; without a step (in a head) only their number.
    pub(super) fn new(step: Option<&Step<'_>>, n_tokens: usize) -> Self {
        let shape = StepShape { n_tokens: n_tokens as u32, infinity: f32::INFINITY, ..StepShape::default() };
        let mut all = Self { shape, ..Self::default() };
        if let Some(step) = step {
            all.describe(step, n_tokens);
        }
        all
    }

    fn describe(&mut self, step: &Step<'_>, n_tokens: usize) {
        let Self { shape, tables, angles } = self;
        tables.resize(n_tokens, 0);
        shape.sequence_at = n_tokens as u32;
        let mut slots = Vec::new();
        for (i, sequence) in step.sequences.iter().enumerate() {
            let rows = sequence.rows();
            tables[rows.clone()].fill(i as u32);
            let numbers = [rows.start, rows.len(), sequence.position(), sequence.first_page(), slots.len(), 0];
            tables.extend(numbers.map(|n| n as u32));
            slots.extend(sequence.pages().map(slot_of));
        }
        shape.slot_at = tables.len() as u32;
        tables.extend(slots);
        for (of, at, n) in [
            (step.global, &mut shape.global_at, &mut shape.global_n),
            (step.local, &mut shape.local_at, &mut shape.local_n),
        ] {
            *at = angles.len() as u32;
            *n = (of.cos.len() / n_tokens) as u32;
            angles.extend_from_slice(&of.cos);
            angles.extend_from_slice(&of.sin);
        }
        shape.temperature_at = angles.len() as u32;
        angles.extend_from_slice(step.temperatures);
    }
}
