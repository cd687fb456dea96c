//! The adapters of the rows of a batch.

use super::{Lora, LoraSet, LoraTarget, Parts};
use std::any::Any;
use std::sync::Arc;

/// The rows of a batch that use one adapter.
pub struct AdaptedRows {
    lora: Lora,
    parts: Arc<Parts>,
    rows: Vec<usize>,
    scales: Vec<f32>,
    is_all: bool,
}

/// Groups the rows of a batch by adapter, in the order of loading; each set comes with its number of rows.
pub(crate) fn adapted_rows<'a>(sets: impl Iterator<Item = (&'a LoraSet, usize)>) -> Vec<AdaptedRows> {
    let mut groups: Vec<AdaptedRows> = Vec::new();
    let mut end = 0;
    for (loras, n_rows) in sets {
        let rows = end..end + n_rows;
        end = rows.end;
        for (lora, scale) in loras.iter() {
            let i = groups.iter().position(|group| group.lora == *lora).unwrap_or_else(|| {
                let (lora, parts) = (lora.clone(), lora.parts());
                groups.push(AdaptedRows { lora, parts, rows: Vec::new(), scales: Vec::new(), is_all: false });
                groups.len() - 1
            });
            groups[i].rows.extend(rows.clone());
            groups[i].scales.extend(rows.clone().map(|_| scale));
        }
    }
    groups.retain(|group| !group.rows.is_empty());
    groups.iter_mut().for_each(|group| group.is_all = group.rows.len() == end);
    groups.sort_by_key(|group| group.lora.inner.id);
    groups
}

impl AdaptedRows {
    /// The rows, in ascending order.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// The requested scale for each of the rows.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Whether these are all rows of the batch.
    pub fn is_all(&self) -> bool {
        self.is_all
    }

    /// The adapter's part for a matrix, as created by its device, and the adapter's scale for it.
    pub fn part(&self, layer: usize, target: LoraTarget) -> Option<(&(dyn Any + Send + Sync), f32)> {
        self.parts.get(&(layer, target)).map(|scaled| (&*scaled.part.data, scaled.scale))
    }

    /// Whether the adapter changes one of these matrices.
    pub fn changes(&self, layer: usize, targets: &[LoraTarget]) -> bool {
        targets.iter().any(|&target| self.parts.contains_key(&(layer, target)))
    }
}
