//! Attention over a paged KV cache.
//!
//! This is the definition, for one query row `q` (a head of a token at position `i`) that sees keys
//! `max(0, i - window + 1) ..= i`, or, with chunks, those from the last multiple of `window` up to `i`. Positions are
//! split at absolute multiples of [`PAGE`]; each page gives a partial result, and partial results are merged in order, so
//! that threads may share the pages of one query without changing a bit:
//!
//! ```text
//! q'   = q * scale
//! s_j  = fma chain over d: q'[d] * k_j[d];  with a cap c: s_j = c * tanh(s_j * (1 / c))
//! m    = max s_j            p_j = exp(s_j - m)
//! l    = sum p_j            16 strided chains (lane j % 16), then a tree
//! o[d] = fma chain over j: p_j * v_j[d]
//!
//! first page:  (M, L, O) = (m, l, o)
//! then:        M' = max(M, m), a = exp(M - M'), b = exp(m - M')
//!              L = fma(l, b, L * a),  O = fma(o, b, O * a),  M = M'
//! out  = O * (1 / L)
//!        with a sink z:  M' = max(M, z), a = exp(M - M'), out = O * (a / (L * a + exp(z - M')))
//! ```
//! A sink is a score of its head that takes its part of the sum and adds nothing to the output.
//!
//! With latent attention, the value of a position is the part of its key after the first
//! [`AttentionShape::value_offset`] elements, as it is stored, and is not stored again: the rows of values that a unit of
//! work reads are copied out of the keys once per page.
//!
//! Pages hold f16, f32 or Q8_0 blocks. [`crate::kv`] describes their layout and the products with Q8_0.

use crate::Isa;
use crate::cpu::Cpu;
use crate::elementwise::{multiversion, softcap};
use crate::kv::{KEY_BLOCK, KvElement, KvKernels, MAX_TILE, PAGE, Queries};
use crate::math::{SUM_LANES, exp, exp_with, fma, tree_sum};
use crate::shared::SharedMut;
use half::f16;
use std::cell::RefCell;
use std::ops::Range;

/// Number of tokens whose queries one unit of work covers.
const TOKEN_TILE: usize = 16;

/// Number of query heads that one unit of work covers, if values are part of the keys: one key head has all query heads
/// then. With fewer, copying values out of the keys costs more; with more, threads share less of a short step.
const HEAD_TILE: usize = 16;

/// The parameters that all layers of a model share, or all layers with the same window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor that scores are multiplied by, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// If set, scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Largest number of keys that a query sees, its own included.
    pub window: Option<usize>,
    /// Whether the window does not slide: it starts at the last multiple of its length.
    pub is_chunked: bool,
    /// If set, values are not stored: they are the keys without this many first elements.
    pub value_offset: Option<usize>,
}

impl AttentionShape {
    /// Elements of a head's value, and of its output.
    pub fn value_dim(&self) -> usize {
        self.head_dim - self.value_offset.unwrap_or(0)
    }

    /// Whether keys and values of these sizes can be stored in a cache of this type.
    pub fn is_supported<T: KvElement>(&self) -> bool {
        T::supports(self.head_dim) && T::supports(self.value_dim())
    }

    /// [`value_dim`](Self::value_dim) rounded up to the length of a row of values.
    fn width(&self) -> usize {
        self.value_dim().next_multiple_of(16)
    }

    /// Query heads that share a key head.
    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Number of elements that the keys of one page take in one layer.
    pub fn key_elems<T: KvElement>(&self) -> usize {
        self.n_kv_heads * PAGE / KEY_BLOCK * T::key_block_elems(self.head_dim)
    }

    /// Number of elements that the values of one page take in one layer.
    pub fn value_elems<T: KvElement>(&self) -> usize {
        match self.value_offset {
            Some(_) => 0,
            None => self.n_kv_heads * T::head_value_elems(self.head_dim),
        }
    }

    /// The keys that a query at `position` sees.
    fn visible(&self, position: usize) -> Range<usize> {
        let first = match self.window {
            None => 0,
            Some(w) if self.is_chunked => position / w * w,
            Some(w) => (position + 1).saturating_sub(w),
        };
        first..position + 1
    }
}

/// One page of one layer.
#[derive(Clone, Copy, Debug)]
pub struct KvPage<'a, T = f16> {
    /// `[n_kv_heads][PAGE / 16]` blocks of [`KvElement::key_block_elems`].
    pub keys: &'a [T],
    /// `[n_kv_heads]` parts of [`KvElement::head_value_elems`].
    pub values: &'a [T],
}

/// One page of one layer, for writing.
#[derive(Debug)]
pub struct KvPageMut<'a, T = f16> {
    /// As [`KvPage::keys`].
    pub keys: &'a mut [T],
    /// As [`KvPage::values`].
    pub values: &'a mut [T],
}

/// The queries of one sequence, and its cache.
#[derive(Clone, Debug)]
pub struct AttentionSequence<'a, T = f16> {
    /// Position of the first query. With chunks, pages must begin at position 0 of the text, as chunks do.
    pub first_position: usize,
    /// Number of queries, at consecutive positions. Their own keys and values are in the cache already.
    pub n_tokens: usize,
    /// All pages from position 0.
    pub pages: Vec<KvPage<'a, T>>,
}

/// A partial result of one query row: maximum and sum. Where its `o` is stored follows from the context.
#[derive(Clone, Copy)]
struct Partial {
    max: f32,
    sum: f32,
}

const EMPTY: Partial = Partial { max: f32::NEG_INFINITY, sum: 0.0 };

/// Buffers of one thread.
#[derive(Default)]
struct AttentionBuffers {
    /// The scaled queries of a unit.
    queries: Queries,
    /// `[tile][PAGE]`
    scores: Vec<f32>,
    /// `[tile][width]`
    o: Vec<f32>,
    /// `[rows][width]`
    merged: Vec<f32>,
    states: Vec<Partial>,
}

thread_local! {
    static BUFFERS: RefCell<AttentionBuffers> = RefCell::default();
}

multiversion! {
    /// Turns scores into weights `p`, zero outside `first..end`; returns maximum and sum.
    pub(crate) fn softmax_page(scores: &mut [f32], first: usize, end: usize) -> (f32, f32) {
        let end = end.min(scores.len());
        if first >= end {
            scores.fill(0.0);
            return (f32::NEG_INFINITY, 0.0);
        }
        scores[..first].fill(f32::NEG_INFINITY);
        scores[end..].fill(f32::NEG_INFINITY);
        let mut lanes = [f32::NEG_INFINITY; SUM_LANES];
        let blocks = scores.as_chunks_mut::<SUM_LANES>().0;
        for chunk in blocks.iter() {
            for (lane, &s) in lanes.iter_mut().zip(chunk) {
                // Unlike f32::max, a plain comparison, which vectorizes; NaN never wins either way.
                *lane = if s > *lane { s } else { *lane };
            }
        }
        let max = lanes.into_iter().fold(f32::NEG_INFINITY, |m, s| if s > m { s } else { m });
        for s in blocks.as_flattened_mut() {
            *s = exp_with::<FMA>(*s - max);
        }
        // Keys that the query does not see add nothing, whatever the maximum is.
        scores[..first].fill(0.0);
        scores[end..].fill(0.0);
        let mut sums = [0.0f32; SUM_LANES];
        for chunk in scores.as_chunks::<SUM_LANES>().0 {
            for (sum, &p) in sums.iter_mut().zip(chunk) {
                *sum += p;
            }
        }
        (max, tree_sum(sums))
    }
}

multiversion! {
    /// Merges the partial result `(new, o)` of the next page into `(state, merged)`; returns the new state. Both are
    /// `[maximum, sum]`.
    pub(crate) fn merge(state: [f32; 2], merged: &mut [f32], new: [f32; 2], o: &[f32]) -> [f32; 2] {
        let ([state_max, state_sum], [new_max, new_sum]) = (state, new);
        let max = if new_max > state_max { new_max } else { state_max };
        let (a, b) = (exp_with::<FMA>(state_max - max), exp_with::<FMA>(new_max - max));
        for (y, &o) in merged.iter_mut().zip(o) {
            *y = fma::<FMA>(o, b, *y * a);
        }
        [max, fma::<FMA>(new_sum, b, state_sum * a)]
    }
}

impl Partial {
    /// Merges the result of the next page; the first one is taken as it is.
    fn take(&mut self, isa: Isa, merged: &mut [f32], new: Self, o: &[f32], is_first: bool) {
        if is_first {
            *self = new;
            merged.copy_from_slice(o);
            return;
        }
        let [max, sum] = merge(isa, [self.max, self.sum], merged, [new.max, new.sum], o);
        *self = Self { max, sum };
    }
}

impl Cpu {
    /// Writes keys and values (`[n, n_kv_heads * head_dim]` each, keys rotated) of consecutive positions
    /// into `pages`, all pages from position 0. If values are part of the keys, `v` is empty.
    pub fn store_kv<T: KvElement>(
        &self,
        shape: &AttentionShape,
        pages: &mut [KvPageMut<'_, T>],
        first_position: usize,
        k: &[f32],
        v: &[f32],
    ) {
        let hd = shape.head_dim;
        let row = shape.n_kv_heads * hd;
        assert!(shape.is_supported::<T>(), "heads of {hd} in a cache of this type");
        let has_values = shape.value_offset.is_none();
        let (block_elems, value_elems) = (T::key_block_elems(hd), shape.value_elems::<T>() / shape.n_kv_heads);
        let n = k.len() / row;
        let n_values = if has_values { k.len() } else { 0 };
        assert!(k.len() == n * row && v.len() == n_values, "whole rows of keys and values");
        assert!(first_position + n <= pages.len() * PAGE, "room in the pages");
        let pages: Vec<_> = pages
            .iter_mut()
            .map(|page| {
                assert!(page.keys.len() == shape.key_elems::<T>() && page.values.len() == shape.value_elems::<T>());
                (SharedMut::new(page.keys), SharedMut::new(page.values))
            })
            .collect();
        let isa = self.isa();
        let store = |heads: Range<usize>| {
            for head in heads {
                for t in 0..n {
                    let position = first_position + t;
                    let (page, j) = (&pages[position / PAGE], position % PAGE);
                    let from = t * row + head * hd..t * row + (head + 1) * hd;
                    let block = (head * PAGE + j) / KEY_BLOCK * block_elems;
                    // SAFETY: heads are handed out once, and parts of different heads do not overlap.
                    let (keys, values) = unsafe {
                        (
                            page.0.range(block..block + block_elems),
                            page.1.range(head * value_elems..(head + 1) * value_elems),
                        )
                    };
                    T::store_key(isa, &k[from.clone()], j % KEY_BLOCK, keys);
                    if has_values {
                        T::store_value(isa, &v[from], j, values);
                    }
                }
            }
        };
        if n < 8 {
            store(0..shape.n_kv_heads);
        } else {
            self.pool().for_chunks(shape.n_kv_heads, 1, |heads, _| store(heads));
        }
    }

    /// Attention of all queries: `q` is `[tokens of all sequences, n_heads * head_dim]`, and `out` is
    /// `[tokens of all sequences, n_heads * value_dim]`. `sinks` are the sinks of all heads, `[n_heads]`.
    pub fn attention<T: KvElement>(
        &self,
        shape: &AttentionShape,
        sequences: &[AttentionSequence<'_, T>],
        sinks: Option<&[f32]>,
        q: &[f32],
        out: &mut [f32],
    ) {
        let row = shape.n_heads * shape.head_dim;
        let n_tokens: usize = sequences.iter().map(|s| s.n_tokens).sum();
        let out_row = shape.n_heads * shape.value_dim();
        assert!(q.len() == n_tokens * row && out.len() == n_tokens * out_row, "queries of all sequences");
        assert!(sinks.is_none_or(|sinks| sinks.len() == shape.n_heads), "a sink for each head");
        assert!(shape.window != Some(0), "a window of at least one key");
        assert!(shape.n_heads.is_multiple_of(shape.n_kv_heads), "query heads per key head");
        assert!(shape.is_supported::<T>(), "heads of {} in a cache of this type", shape.head_dim);
        let group = shape.group();
        let head_tile = if shape.value_offset.is_some() { HEAD_TILE } else { group };
        let mut units = Vec::new();
        let mut offset = 0;
        for (s, sequence) in sequences.iter().enumerate() {
            assert!(sequence.first_position + sequence.n_tokens <= sequence.pages.len() * PAGE, "positions cached");
            for page in &sequence.pages {
                assert!(page.keys.len() == shape.key_elems::<T>() && page.values.len() == shape.value_elems::<T>());
            }
            // Later tiles see more keys and cost more, so they are handed out first.
            for first in (0..sequence.n_tokens).step_by(TOKEN_TILE).rev() {
                let tokens = first..sequence.n_tokens.min(first + TOKEN_TILE);
                for kv_head in 0..shape.n_kv_heads {
                    for head in (kv_head * group..(kv_head + 1) * group).step_by(head_tile) {
                        let heads = head..(kv_head * group + group).min(head + head_tile);
                        units.push(Unit { s, kv_head, heads, tokens: tokens.clone(), offset });
                    }
                }
            }
            offset += sequence.n_tokens;
        }
        let out = SharedMut::new(out);
        let job = Attention { isa: self.isa(), shape, sequences, sinks, q, out: &out };
        if units.len() < 4 * self.pool().n_threads() && units.iter().any(|u| job.pages(u).len() > 1) {
            job.split(self, &units);
        } else {
            self.pool().for_chunks(units.len(), 1, |range, _| {
                BUFFERS.with_borrow_mut(|buffers| range.for_each(|u| job.unit(&units[u], buffers)));
            });
        }
    }
}

/// One unit of work: the queries of some tokens of one sequence, in heads that share one key head.
#[derive(Clone)]
struct Unit {
    /// Index of the sequence.
    s: usize,
    kv_head: usize,
    /// The query heads.
    heads: Range<usize>,
    tokens: Range<usize>,
    /// Row of `q` of the sequence's first token.
    offset: usize,
}

impl Unit {
    fn n_rows(&self) -> usize {
        self.tokens.len() * self.heads.len()
    }
}

struct Attention<'a, T> {
    isa: Isa,
    shape: &'a AttentionShape,
    sequences: &'a [AttentionSequence<'a, T>],
    /// `[n_heads]`
    sinks: Option<&'a [f32]>,
    q: &'a [f32],
    out: &'a SharedMut<'a, f32>,
}

impl<T: KvElement> Attention<'_, T> {
    /// Pages that hold at least one key which some query of the unit sees.
    fn pages(&self, unit: &Unit) -> Range<usize> {
        let first = self.sequences[unit.s].first_position;
        let low = self.shape.visible(first + unit.tokens.start).start;
        let high = first + unit.tokens.end - 1;
        low / PAGE..high / PAGE + 1
    }

    /// Index of a row of the unit, in `q` and in `out`. Rows are `[tokens][heads of the unit]`.
    fn head_row(&self, unit: &Unit, row: usize) -> usize {
        let token = unit.offset + unit.tokens.start + row / unit.heads.len();
        token * self.shape.n_heads + unit.heads.start + row % unit.heads.len()
    }

    fn load_queries(&self, unit: &Unit, buffers: &mut AttentionBuffers) {
        let queries = &mut buffers.queries;
        queries.rows.clear();
        for row in 0..unit.n_rows() {
            let at = self.head_row(unit, row) * self.shape.head_dim;
            queries.rows.extend(self.q[at..at + self.shape.head_dim].iter().map(|&q| q * self.shape.scale));
        }
        T::prepare(self.isa, self.shape.head_dim, KvKernels::of(self.isa).rows, queries);
    }

    /// Runs all pages of a unit, one after another.
    fn unit(&self, unit: &Unit, buffers: &mut AttentionBuffers) {
        self.load_queries(unit, buffers);
        let (n_rows, width) = (unit.n_rows(), self.shape.width());
        let mut merged = std::mem::take(&mut buffers.merged);
        let mut states = std::mem::take(&mut buffers.states);
        merged.resize(n_rows * width, 0.0);
        states.clear();
        states.resize(n_rows, EMPTY);
        let mut seen = [false; TOKEN_TILE];
        for page in self.pages(unit) {
            self.page(unit, page, buffers, |row, partial, o| {
                let merged = &mut merged[row * width..(row + 1) * width];
                let n_heads = unit.heads.len();
                let seen = &mut seen[row / n_heads];
                // Rows of one token come one after another: the flag is set by the last of them.
                states[row].take(self.isa, merged, partial, o, !*seen);
                *seen |= row % n_heads == n_heads - 1;
            });
        }
        for row in 0..n_rows {
            self.finish(unit, row, states[row], &merged[row * width..(row + 1) * width]);
        }
        (buffers.merged, buffers.states) = (merged, states);
    }

    /// Splits the pages of a few units among all threads: partial results go to memory and are merged afterwards.
    fn split(&self, cpu: &Cpu, units: &[Unit]) {
        let width = self.shape.width();
        let pieces: Vec<(usize, usize)> =
            units.iter().enumerate().flat_map(|(u, unit)| self.pages(unit).map(move |page| (u, page))).collect();
        let rows = units.iter().map(Unit::n_rows).max().unwrap_or(0);
        let mut partials = vec![None; pieces.len() * rows];
        let mut outputs = vec![0.0f32; pieces.len() * rows * width];
        let (shared_partials, shared_outputs) = (SharedMut::new(&mut partials), SharedMut::new(&mut outputs));
        cpu.pool().for_chunks(pieces.len(), 1, |range, _| {
            BUFFERS.with_borrow_mut(|buffers| {
                for piece in range {
                    let (u, page) = pieces[piece];
                    self.load_queries(&units[u], buffers);
                    self.page(&units[u], page, buffers, |row, partial, o| {
                        let at = piece * rows + row;
                        // SAFETY: each piece is handed out once, and `at` belongs to this piece and row alone.
                        unsafe {
                            shared_partials.range(at..at + 1)[0] = Some(partial);
                            shared_outputs.range(at * width..(at + 1) * width).copy_from_slice(o);
                        }
                    });
                }
            });
        });
        for (u, unit) in units.iter().enumerate() {
            for row in 0..unit.n_rows() {
                let (mut state, mut merged, mut is_first) = (EMPTY, vec![0.0; width], true);
                for piece in (0..pieces.len()).filter(|&p| pieces[p].0 == u) {
                    let at = piece * rows + row;
                    if let Some(partial) = partials[at] {
                        let o = &outputs[at * width..(at + 1) * width];
                        state.take(self.isa, &mut merged, partial, o, is_first);
                        is_first = false;
                    }
                }
                self.finish(unit, row, state, &merged);
            }
        }
    }

    fn finish(&self, unit: &Unit, row: usize, state: Partial, merged: &[f32]) {
        let value_dim = self.shape.value_dim();
        let at = self.head_row(unit, row) * value_dim;
        // SAFETY: (token, head) names this range alone, and each unit is handed out once.
        let out = unsafe { self.out.range(at..at + value_dim) };
        let scale = match self.sinks {
            None => 1.0 / state.sum,
            Some(sinks) => {
                let sink = sinks[unit.heads.start + row % unit.heads.len()];
                let max = if sink > state.max { sink } else { state.max };
                let a = exp(state.max - max);
                a / (state.sum * a + exp(sink - max))
            }
        };
        for (y, &o) in out.iter_mut().zip(merged) {
            *y = o * scale;
        }
    }

    /// The positions of a page that a row of a unit sees, counted within the page.
    fn visible(&self, unit: &Unit, page: usize, row: usize) -> Range<usize> {
        let token = self.sequences[unit.s].first_position + unit.tokens.start + row / unit.heads.len();
        let v = self.shape.visible(token);
        v.start.saturating_sub(page * PAGE).min(PAGE)..v.end.saturating_sub(page * PAGE).min(PAGE)
    }

    /// The partial results of one page for every row of a unit that sees some of it.
    fn page(&self, unit: &Unit, page: usize, buffers: &mut AttentionBuffers, emit: impl FnMut(usize, Partial, &[f32])) {
        let KvPage { keys, values } = self.sequences[unit.s].pages[page];
        let block_elems = T::key_block_elems(self.shape.head_dim);
        let keys = &keys[unit.kv_head * PAGE / KEY_BLOCK * block_elems..][..PAGE / KEY_BLOCK * block_elems];
        let Some(offset) = self.shape.value_offset else {
            let value_elems = T::head_value_elems(self.shape.head_dim);
            let values = &values[unit.kv_head * value_elems..(unit.kv_head + 1) * value_elems];
            return self.page_of(unit, page, keys, values, buffers, emit);
        };
        // Later rows see later keys.
        let (first, last) = (self.visible(unit, page, 0), self.visible(unit, page, unit.n_rows() - 1));
        T::with_values(T::head_value_elems(self.shape.value_dim()), |values| {
            T::copy_values(keys, self.shape.head_dim, offset, first.start..last.end, values);
            self.page_of(unit, page, keys, values, buffers, emit);
        });
    }

    /// As [`page`](Self::page), with the keys and values of the unit's head.
    fn page_of(
        &self,
        unit: &Unit,
        page: usize,
        keys: &[T],
        values: &[T],
        buffers: &mut AttentionBuffers,
        mut emit: impl FnMut(usize, Partial, &[f32]),
    ) {
        let (hd, width) = (self.shape.head_dim, self.shape.width());
        let block_elems = T::key_block_elems(hd);
        let kernels = KvKernels::of(self.isa);
        let n_rows = unit.n_rows();
        buffers.scores.resize(kernels.rows * PAGE, 0.0);
        buffers.o.resize(kernels.rows * width, 0.0);
        let visible = |row: usize| self.visible(unit, page, row);
        for first in (0..n_rows).step_by(kernels.rows) {
            let n = kernels.rows.min(n_rows - first);
            // Later rows see later keys, so the range of the tile follows from its first and last rows.
            let (low, high) = (visible(first), visible(first + n - 1));
            let blocks = low.start / KEY_BLOCK..high.end.div_ceil(KEY_BLOCK);
            if blocks.is_empty() || high.is_empty() && low.is_empty() {
                continue;
            }
            let block_keys = &keys[blocks.start * block_elems..blocks.end * block_elems];
            let out = &mut buffers.scores[blocks.start * KEY_BLOCK..];
            T::scores(kernels, &buffers.queries, first..first + n, hd, block_keys, out);
            buffers.o[..n * width].fill(0.0);
            let mut partials = [EMPTY; MAX_TILE];
            for (m, partial) in partials[..n].iter_mut().enumerate() {
                let v = visible(first + m);
                let at = m * PAGE + blocks.start * KEY_BLOCK..m * PAGE + blocks.end * KEY_BLOCK;
                let base = blocks.start * KEY_BLOCK;
                if let Some(cap) = self.shape.softcap {
                    softcap(self.isa, &mut buffers.scores[at.clone()], cap, 1.0 / cap);
                }
                let (start, end) = (v.start.saturating_sub(base), v.end.saturating_sub(base));
                (partial.max, partial.sum) = softmax_page(self.isa, &mut buffers.scores[at], start, end);
            }
            // Positions that all rows see are computed for the whole tile. Positions before and after, which only some
            // rows see, are computed for each row alone, so that a key which a row does not see never touches its sums.
            let common = high.start..low.end.max(high.start);
            for m in 0..n {
                let v = visible(first + m);
                self.row_values(kernels, m, v.start..v.end.min(common.start), values, buffers);
            }
            if !common.is_empty() {
                T::values(kernels, n, &buffers.scores, common.clone(), values, self.shape.value_dim(), &mut buffers.o);
            }
            for (m, &partial) in partials[..n].iter().enumerate() {
                let v = visible(first + m);
                self.row_values(kernels, m, v.start.max(common.end)..v.end, values, buffers);
                if !v.is_empty() {
                    emit(first + m, partial, &buffers.o[m * width..(m + 1) * width]);
                }
            }
        }
    }

    fn row_values(
        &self,
        kernels: KvKernels,
        m: usize,
        range: Range<usize>,
        values: &[T],
        buffers: &mut AttentionBuffers,
    ) {
        if !range.is_empty() {
            let width = self.shape.width();
            let o = &mut buffers.o[m * width..(m + 1) * width];
            T::values(kernels, 1, &buffers.scores[m * PAGE..(m + 1) * PAGE], range, values, self.shape.value_dim(), o);
        }
    }
}
