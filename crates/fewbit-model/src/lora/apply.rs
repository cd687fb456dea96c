//! Adding what adapters give to the products of a step. The [module](super) has the definition.

use super::{Lora, LowRank, Target};
use crate::decoder::Chunk;
use fewbit_kernels::{ActivationKinds, Activations, Engine, Matrix, Planes, Product};

/// The rows of a batch that have one adapter.
pub(crate) struct Group {
    lora: Lora,
    /// In ascending order.
    rows: Vec<usize>,
    /// The scale of each.
    scales: Vec<f32>,
    /// They are the whole batch.
    is_all: bool,
}

/// Buffers.
#[derive(Default)]
pub(crate) struct LoraScratch {
    /// Inputs of the rows that have the adapter.
    input: Activations,
    /// Place of each row of the batch among those that have the adapter.
    places: Vec<usize>,
    parts: Vec<PartScratch>,
}

/// Buffers of one matrix.
#[derive(Default)]
struct PartScratch {
    /// `[rows, rank]`: A x
    t: Vec<f32>,
    scaled: Activations,
    /// `[rows, outputs]`: B (s t), where it goes to some rows only.
    out: Vec<f32>,
}

/// Which adapters the rows of a batch have, of which each chunk brings `n_rows`; in the order of loading.
pub(crate) fn groups(batch: &[Chunk<'_>], n_rows: impl Fn(&Chunk<'_>) -> usize) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut end = 0;
    for chunk in batch {
        let rows = end..end + n_rows(chunk);
        end = rows.end;
        for (lora, scale) in chunk.cache.loras().iter() {
            let i = groups.iter().position(|group| group.lora == *lora).unwrap_or_else(|| {
                groups.push(Group { lora: lora.clone(), rows: Vec::new(), scales: Vec::new(), is_all: false });
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

impl Group {
    /// Whether its adapter changes one of these matrices.
    pub(crate) fn changes(&self, layer: usize, targets: &[Target]) -> bool {
        targets.iter().any(|&target| self.lora.part(layer, target).is_some())
    }
}

/// Adds what the adapters give for `x` to the products of some matrices of a layer, which all have the input `x`;
/// each is `[x.n_rows, outputs]`.
pub(crate) fn add_low_rank(
    e: &Engine,
    groups: &[Group],
    layer: usize,
    parts: &mut [(Target, &mut [f32])],
    x: &Activations,
    s: &mut LoraScratch,
) {
    for group in groups {
        let mut found: Vec<(&LowRank, &mut [f32])> = parts
            .iter_mut()
            .filter_map(|(target, y)| group.lora.part(layer, *target).map(|part| (part, &mut **y)))
            .collect();
        if !found.is_empty() {
            add_group(e, group, &mut found, x, s);
        }
    }
}

fn add_group(e: &Engine, group: &Group, parts: &mut [(&LowRank, &mut [f32])], x: &Activations, s: &mut LoraScratch) {
    let LoraScratch { input, places, parts: scratch } = s;
    let n = group.rows.len();
    let x = match group.is_all {
        true => x,
        false => {
            e.gather(x, &group.rows, ActivationKinds::default(), input);
            &*input
        }
    };
    if scratch.len() < parts.len() {
        scratch.resize_with(parts.len(), PartScratch::default);
    }
    let mut products: Vec<(&Matrix, &mut [f32], Planes)> = Vec::with_capacity(parts.len());
    for ((part, _), s) in parts.iter().zip(scratch.iter_mut()) {
        s.t.resize(n * part.a.n_rows(), 0.0);
        products.push((&part.a, &mut s.t, Planes::All));
    }
    e.matmul_many(&mut products, x);
    for ((part, _), s) in parts.iter().zip(scratch.iter_mut()) {
        let rank = part.a.n_rows();
        for (row, &scale) in s.t.chunks_exact_mut(rank).zip(&group.scales) {
            let scale = part.scale * scale;
            row.iter_mut().for_each(|t| *t *= scale);
        }
        e.activate(&s.t, rank, ActivationKinds::default(), &mut s.scaled);
    }
    if group.is_all {
        let products = parts.iter_mut().zip(scratch.iter());
        let mut products: Vec<_> =
            products.map(|((part, y), s)| Product::Add { w: &part.b, x: &s.scaled, out: y }).collect();
        e.matmul_each(&mut products);
        return;
    }
    let mut products: Vec<_> = Vec::with_capacity(parts.len());
    for ((part, _), PartScratch { scaled, out, .. }) in parts.iter().zip(scratch.iter_mut()) {
        out.resize(n * part.b.n_rows(), 0.0);
        products.push(Product::Store { w: &part.b, x: scaled, out });
    }
    e.matmul_each(&mut products);
    for ((part, y), s) in parts.iter_mut().zip(scratch.iter()) {
        let width = part.b.n_rows();
        places.clear();
        places.resize(y.len() / width, usize::MAX);
        group.rows.iter().enumerate().for_each(|(i, &row)| places[row] = i);
        e.each_row(width, y, |row, y| {
            if let Some(i) = places.get(row).filter(|&&i| i != usize::MAX) {
                y.iter_mut().zip(&s.out[i * width..]).for_each(|(y, &d)| *y += d);
            }
        });
    }
}
