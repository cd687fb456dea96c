//! Attention of the sequences of a batch over their pages.

use super::state::{Element, Layout, elems, elems_mut, of_kv_type};
use crate::segment::SequenceRows;
use crate::{KvType, ModelConfig};
use fewbit_kernels::{AttentionSequence, AttentionShape, Cpu, KvPage, KvPageMut, PAGE};
use std::sync::{Mutex, PoisonError};

/// With at least this many sequences, each with fewer new positions than this, threads store whole sequences.
const MANY: usize = 4;

/// The work of a batch in one layer: each sequence appends its rows of `k` and `v`, then attends with those of `q`.
pub(super) struct LayerStep<'a> {
    pub(super) layout: &'a Layout,
    /// Index within the segment of the layer whose keys and values these are.
    pub(super) layer: usize,
    pub(super) shape: AttentionShape,
    /// `[n_heads]`
    pub(super) sinks: Option<&'a [f32]>,
    /// `[tokens of the batch, n_heads * head_dim]`
    pub(super) q: &'a [f32],
    /// `[tokens of the batch, n_kv_heads * head_dim]`; nothing if they were appended by the layer that they are of.
    pub(super) k: &'a [f32],
    /// `[tokens of the batch, n_kv_heads * head_dim]`; nothing if values are part of the keys.
    pub(super) v: &'a [f32],
}

/// Appends keys and values to every sequence's pages.
pub(super) fn append(cpu: &Cpu, ty: KvType, sequences: &mut [SequenceRows<'_>], step: &LayerStep<'_>) {
    of_kv_type!(ty, T => append_of_type::<T>(cpu, sequences, step));
}

/// Appends keys and values to every sequence's pages and writes the attention of all queries to `out`.
pub(super) fn append_and_attend(
    cpu: &Cpu,
    ty: KvType,
    sequences: &mut [SequenceRows<'_>],
    step: &LayerStep<'_>,
    out: &mut [f32],
) {
    append(cpu, ty, sequences, step);
    of_kv_type!(ty, T => attend::<T>(cpu, sequences, step, out));
}

fn append_of_type<T: Element>(cpu: &Cpu, sequences: &mut [SequenceRows<'_>], step: &LayerStep<'_>) {
    let shape = &step.shape;
    let kv_dim = shape.n_kv_heads * shape.head_dim;
    let v_dim = if shape.value_offset.is_some() { 0 } else { kv_dim };
    let (keys, values) = step.layout.keys_values(step.layer);
    let store = |sequence: &mut SequenceRows<'_>| {
        let (rows, position) = (sequence.rows(), sequence.position());
        let mut pages: Vec<_> = sequence
            .new_pages()
            .map(|page| {
                let page = elems_mut::<T>(page);
                // Values are stored after the keys.
                let (head, tail) = page.split_at_mut(values.start);
                KvPageMut { keys: &mut head[keys.clone()], values: &mut tail[..values.len()] }
            })
            .collect();
        let (k, v) = (rows.start * kv_dim..rows.end * kv_dim, rows.start * v_dim..rows.end * v_dim);
        cpu.store_kv(shape, &mut pages, position % PAGE, &step.k[k], &step.v[v]);
    };
    if step.k.is_empty() {
        // The layer sees keys and values that another one has appended.
    } else if sequences.len() >= MANY && sequences.iter().all(|sequence| sequence.rows().len() < MANY) {
        let sequences: Vec<_> = sequences.iter_mut().map(Mutex::new).collect();
        cpu.pool().for_chunks(sequences.len(), sequences.len().div_ceil(2 * cpu.pool().n_threads()), |range, _| {
            for sequence in &sequences[range] {
                store(&mut sequence.lock().unwrap_or_else(PoisonError::into_inner));
            }
        });
    } else {
        // Storing a sequence with many new positions already uses all threads.
        sequences.iter_mut().for_each(store);
    }
}

fn attend<T: Element>(cpu: &Cpu, sequences: &mut [SequenceRows<'_>], step: &LayerStep<'_>, out: &mut [f32]) {
    let (keys, values) = step.layout.keys_values(step.layer);
    // Attention depends only on differences of positions and on where they are relative to page boundaries: counting
    // from the first remaining page gives the same bits. A model with chunks keeps all pages.
    let sequences: Vec<_> = sequences
        .iter()
        .map(|sequence| AttentionSequence {
            first_position: sequence.position() - sequence.first_page() * PAGE,
            n_tokens: sequence.rows().len(),
            pages: sequence
                .pages()
                .map(|page| {
                    let page = elems::<T>(page);
                    KvPage { keys: &page[keys.clone()], values: &page[values.clone()] }
                })
                .collect(),
        })
        .collect();
    cpu.attention(&step.shape, &sequences, step.sinks, step.q, out);
}

/// The shape of a layer's attention.
pub fn attention_shape(config: &ModelConfig, layer: usize) -> AttentionShape {
    AttentionShape {
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads_of(layer),
        head_dim: config.head_dim_of(layer),
        scale: config.attention_scale,
        softcap: config.attention_softcap,
        window: config.window(layer),
        is_chunked: config.has_chunks,
        // The rotated key comes first, then the latent, which is also the value.
        value_offset: config.latent.map(|latent| latent.rotated_dim),
    }
}
