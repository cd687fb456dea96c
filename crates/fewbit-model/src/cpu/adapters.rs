//! Adds the contribution of adapters to the products of a step; `crate::lora` has the definition.

use crate::lora::{AdaptedRows, AdapterPart, LoraTarget, LowRank};
use fewbit_kernels::{ActivationKinds, Activations, Cpu, KernelError, Matrix, Planes, Product};
use fewbit_quant::TensorType;

/// The packed matrices of one part of an adapter.
struct Packed {
    /// `[rank, inputs]`
    a: Matrix,
    /// `[outputs, rank]`
    b: Matrix,
}

/// A part of an adapter, and its scale.
type Scaled<'a> = (&'a Packed, f32);

/// Packs the part of an adapter for one matrix.
pub(super) fn pack(cpu: &Cpu, adapter: &LowRank<'_>) -> Result<AdapterPart, KernelError> {
    let pack = |n_rows, n_cols, values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        cpu.pack(TensorType::F32, n_rows, n_cols, &bytes)
    };
    let a = pack(adapter.rank, adapter.n_cols, adapter.a)?;
    let b = pack(adapter.n_rows, adapter.rank, adapter.b)?;
    let n_bytes = (a.n_bytes() + b.n_bytes()) as u64;
    Ok(AdapterPart { data: Box::new(Packed { a, b }), n_bytes })
}

/// The part of an adapter for one matrix, as packed by this CPU.
fn part(group: &AdaptedRows, layer: usize, target: LoraTarget) -> Option<Scaled<'_>> {
    let (data, scale) = group.part(layer, target)?;
    Some((data.downcast_ref().expect("packed by this segment"), scale))
}

/// Buffers for the adapters.
#[derive(Default)]
pub(super) struct AdapterBuffers {
    /// Inputs of the rows with the adapter.
    input: Activations,
    /// Index of each row of the batch among the rows with the adapter.
    places: Vec<usize>,
    parts: Vec<PartBuffers>,
}

/// Buffers of one matrix.
#[derive(Default)]
struct PartBuffers {
    /// `[rows, rank]`: A x
    t: Vec<f32>,
    scaled: Activations,
    /// `[rows, outputs]`: B (s t), if it is added to only some of the rows.
    out: Vec<f32>,
}

/// Adds the contribution of the adapters for input `x` to the products of some matrices of a layer, all of which have
/// this input; each product is `[x.n_rows, outputs]`.
pub(super) fn add_low_rank(
    e: &Cpu,
    groups: &[AdaptedRows],
    layer: usize,
    parts: &mut [(LoraTarget, &mut [f32])],
    x: &Activations,
    s: &mut AdapterBuffers,
) {
    for group in groups {
        let mut found: Vec<(Scaled<'_>, &mut [f32])> = parts
            .iter_mut()
            .filter_map(|(target, y)| part(group, layer, *target).map(|part| (part, &mut **y)))
            .collect();
        if !found.is_empty() {
            add_group(e, group, &mut found, x, s);
        }
    }
}

fn add_group(
    e: &Cpu,
    group: &AdaptedRows,
    parts: &mut [(Scaled<'_>, &mut [f32])],
    x: &Activations,
    s: &mut AdapterBuffers,
) {
    let AdapterBuffers { input, places, parts: scratch } = s;
    let n = group.rows().len();
    let x = match group.is_all() {
        true => x,
        false => {
            e.gather(x, group.rows(), ActivationKinds::default(), input);
            &*input
        }
    };
    if scratch.len() < parts.len() {
        scratch.resize_with(parts.len(), PartBuffers::default);
    }
    let mut products: Vec<(&Matrix, &mut [f32], Planes)> = Vec::with_capacity(parts.len());
    for (((part, _), _), s) in parts.iter().zip(scratch.iter_mut()) {
        s.t.resize(n * part.a.n_rows(), 0.0);
        products.push((&part.a, &mut s.t, Planes::All));
    }
    e.matmul_many(&mut products, x);
    for (((part, part_scale), _), s) in parts.iter().zip(scratch.iter_mut()) {
        let rank = part.a.n_rows();
        for (row, &scale) in s.t.chunks_exact_mut(rank).zip(group.scales()) {
            let scale = part_scale * scale;
            row.iter_mut().for_each(|t| *t *= scale);
        }
        e.activate(&s.t, rank, ActivationKinds::default(), &mut s.scaled);
    }
    if group.is_all() {
        let products = parts.iter_mut().zip(scratch.iter());
        let mut products: Vec<_> =
            products.map(|(((part, _), y), s)| Product::Add { w: &part.b, x: &s.scaled, out: y }).collect();
        e.matmul_each(&mut products);
        return;
    }
    let mut products: Vec<_> = Vec::with_capacity(parts.len());
    for (((part, _), _), PartBuffers { scaled, out, .. }) in parts.iter().zip(scratch.iter_mut()) {
        out.resize(n * part.b.n_rows(), 0.0);
        products.push(Product::Store { w: &part.b, x: scaled, out });
    }
    e.matmul_each(&mut products);
    for (((part, _), y), s) in parts.iter_mut().zip(scratch.iter()) {
        let width = part.b.n_rows();
        places.clear();
        places.resize(y.len() / width, usize::MAX);
        group.rows().iter().enumerate().for_each(|(i, &row)| places[row] = i);
        e.each_row(width, y, |row, y| {
            if let Some(i) = places.get(row).filter(|&&i| i != usize::MAX) {
                y.iter_mut().zip(&s.out[i * width..]).for_each(|(y, &d)| *y += d);
            }
        });
    }
}
