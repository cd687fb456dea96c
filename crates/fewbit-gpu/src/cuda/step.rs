//! What kernels are told of a step: where each row is in its sequence, in which slots the pages lie, and how the rows'
//! positions are rotated. All of it is one block of bytes, in the same order every time.

use super::kernels::{Address, Row};
use crate::backend::pages::slot_of;
use fewbit_kernels::PAGE;
use fewbit_model::Step;

/// Where in the block everything is. Steps of the same layout can run the same graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Layout {
    pub(super) n_rows: usize,
    /// Cosines of a row in global layers and in local ones.
    halves: [usize; 2],
    n_temperatures: usize,
}

/// The block, on the host.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) layout: Layout,
    pub(super) bytes: Vec<u8>,
    /// The most pages up to the position of a row.
    pub(super) n_pages: usize,
}

/// The block, on the device.
#[derive(Clone, Copy)]
pub(super) struct TablesAt {
    pub(super) layout: Layout,
    pub(super) address: Address,
}

impl Layout {
    /// Bytes before the slots, which come last because their number changes.
    fn fixed_bytes(&self) -> usize {
        self.n_rows * size_of::<Row>() + 4 * (2 * self.n_rows * (self.halves[0] + self.halves[1]) + self.n_temperatures)
    }
}

impl TablesAt {
    pub(super) fn rows(&self) -> Address {
        self.address
    }

    /// Cosines and sines, and how many of them a row has.
    pub(super) fn angles(&self, is_local: bool) -> (Address, Address, u32) {
        let Layout { n_rows, halves: [global, local], .. } = self.layout;
        let half = if is_local { local } else { global };
        let before = if is_local { 2 * n_rows * global } else { 0 };
        let at = |n: usize| self.address + (n_rows * size_of::<Row>() + 4 * n) as u64;
        (at(before), at(before + n_rows * half), half as u32)
    }

    pub(super) fn temperatures(&self) -> Address {
        self.slots() - 4 * self.layout.n_temperatures as u64
    }

    pub(super) fn slots(&self) -> Address {
        self.address + self.layout.fixed_bytes() as u64
    }
}

impl Tables {
    /// The tables of a step with this many rows.
    pub(super) fn new(step: &Step<'_>, n_rows: usize) -> Self {
        let mut rows = vec![Row::default(); n_rows];
        let mut slots: Vec<u32> = Vec::new();
        let mut n_pages = 0;
        for (i, sequence) in step.sequences.iter().enumerate() {
            for (at, row) in rows[sequence.rows()].iter_mut().enumerate() {
                *row = Row {
                    position: (sequence.position() + at) as u32,
                    first_page: sequence.first_page() as u32,
                    slots_at: slots.len() as u32,
                    sequence: i as u32,
                };
            }
            slots.extend(sequence.pages().map(slot_of));
            n_pages = n_pages.max((sequence.position() + sequence.rows().len()).div_ceil(PAGE));
        }
        let halves = [step.global, step.local].map(|angles| angles.cos.len() / n_rows.max(1));
        let layout = Layout { n_rows, halves, n_temperatures: step.temperatures.len() };
        let mut bytes = Vec::with_capacity(layout.fixed_bytes() + 4 * slots.len());
        bytes.extend_from_slice(bytemuck::cast_slice(&rows));
        for angles in [step.global, step.local] {
            bytes.extend_from_slice(bytemuck::cast_slice(&angles.cos));
            bytes.extend_from_slice(bytemuck::cast_slice(&angles.sin));
        }
        bytes.extend_from_slice(bytemuck::cast_slice(step.temperatures));
        bytes.extend_from_slice(bytemuck::cast_slice(&slots));
        Self { layout, bytes, n_pages }
    }

    /// The tables of a step of a head, which has no positions.
    pub(super) fn of_head(n_rows: usize) -> Self {
        Self { layout: Layout { n_rows, ..Layout::default() }, ..Self::default() }
    }
}
