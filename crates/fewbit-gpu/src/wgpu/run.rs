//! Runs a plan on the device. Its operations become dispatches, which are bound to buffers for as many rows as the
//! largest step so far.

use super::adapters;
use super::gpu::{Gpu, Pipeline};
use super::shaders::{Kernel, RowsOp};
use super::step::{StepShape, StepTables};
use super::timestamps::Timestamps;
use super::weights::{DeviceMatrix, DeviceWeights};
use crate::backend::pages::Pages;
use crate::backend::timing::Labels;
use crate::backend::{Memory, Place, Runner, in_order, row_buffers};
use crate::plan::{Buffer, MatrixRef, Op, Plan};
use fewbit_kernels::{GateFunction, RopeStyle};
use fewbit_model::{
    AdaptedRows, AdapterPart, Gating, KvType, LowRank, ModelConfig, ModelError, NormKind, Step, attention_shape,
};
use fewbit_quant::ActivationKind;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A plan with its weights, and the buffers of its steps.
pub(super) struct Run {
    pub(super) gpu: Arc<Gpu>,
    pub(super) config: ModelConfig,
    pub(super) plan: Plan,
    kv_type: KvType,
    matrices: Vec<DeviceMatrix>,
    vectors: Vec<wgpu::Buffer>,
    weight_bytes: u64,
    /// The first layer of the segment, to which the layers of pages are relative.
    first_layer: usize,
    /// The parameters of a step: [`StepShape`].
    step: wgpu::Buffer,
    /// Buffers and dispatches for steps of one row, of several, and of many, which use different kernels for products.
    bound: [Option<Bound>; 3],
}

/// Buffers for a number of rows, and the dispatches that use them.
struct Bound {
    n_tokens: usize,
    /// The generation of the page buffers.
    generation: u64,
    scratch: Scratch,
    dispatches: Vec<Dispatch>,
    /// The index in the plan of the operation of each dispatch.
    ops: Vec<usize>,
    /// The places of adapters, with the index of the dispatch before which they come.
    places: Vec<(usize, Place)>,
}

/// A kernel and the buffers that are bound to it.
pub(super) struct Dispatch {
    pipeline: Arc<Pipeline>,
    bind_group: wgpu::BindGroup,
    /// Workgroups along a row (the first dimension), and how many there are in the second.
    x: u32,
    rows: Rows,
}

/// How many workgroups there are in the second dimension.
#[derive(Clone, Copy)]
pub(super) enum Rows {
    /// This many per token.
    PerToken(u32),
    /// One for this many tokens.
    Tokens(u32),
    /// This many.
    Fixed(u32),
}

/// The buffers of a step.
struct Scratch {
    buffers: BTreeMap<Buffer, wgpu::Buffer>,
    /// Codes, scales and sums of the quantized forms, by block size.
    forms: BTreeMap<usize, [wgpu::Buffer; 3]>,
    routes: wgpu::Buffer,
    /// Rotation angles and temperature factors of the positions.
    angles: wgpu::Buffer,
    /// The sequence of each row, the sequences, and the slots of their pages.
    tables: wgpu::Buffer,
}

/// The parameters of one dispatch: `Shape` in the kernels.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Shape {
    pub(super) width: u32,
    pub(super) part: u32,
    pub(super) rows_per_token: u32,
    pub(super) a: u32,
    pub(super) b: u32,
    pub(super) c: u32,
    pub(super) d: u32,
    pub(super) e: u32,
    pub(super) f: f32,
    pub(super) g: f32,
    pub(super) h: f32,
    pub(super) i: f32,
}

/// How many tokens one thread of a product computes at a time, in steps of one token, of several, and of many. With many,
/// the threads of a workgroup share their inputs.
const TOKENS: [u32; 3] = [1, 4, 16];

/// Which of them a step of this many tokens takes.
fn size_of(n_tokens: usize) -> usize {
    match n_tokens {
        0..=1 => 0,
        2..16 => 1,
        _ => 2,
    }
}

/// Additional space in new tables, for the slots of further pages.
const FIRST_PAGES: usize = 64;

impl Run {
    /// Makes sure that there are buffers for this many rows, and dispatches that use them.
    fn bind(
        &mut self,
        n_tokens: usize,
        pages: Option<&Pages<Gpu>>,
        n_tables: usize,
        n_angles: usize,
    ) -> Result<(), ModelError> {
        let (pools, generation) = pages.map(Pages::buffers).unwrap_or_default();
        let is_enough = |bound: &Bound| {
            let fits = |buffer: &wgpu::Buffer, n: usize| buffer.size() >= 4 * n as u64;
            bound.n_tokens >= n_tokens
                && bound.generation == generation
                && fits(&bound.scratch.tables, n_tables)
                && fits(&bound.scratch.angles, n_angles)
        };
        let size = size_of(n_tokens);
        // Those of the old page buffers keep them in memory.
        for bound in &mut self.bound {
            bound.take_if(|bound| bound.generation != generation);
        }
        if self.bound[size].as_ref().is_some_and(is_enough) {
            return Ok(());
        }
        // Free the old buffers before allocating larger ones.
        self.bound[size] = None;
        let capacity = if n_tokens > 1 { n_tokens.next_power_of_two() } else { 1 };
        let scratch = self.scratch(capacity, n_tables, n_angles)?;
        let (mut dispatches, mut ops, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (index, op) in self.plan.ops.iter().enumerate() {
            if let Op::Adapt { layer, target, from, to } = *op {
                places.push((dispatches.len(), Place { layer, target, from, to }));
            }
            self.encode(op, &scratch, pages.zip(Some(&pools[..])), TOKENS[size], &mut dispatches)?;
            ops.resize(dispatches.len(), index);
        }
        self.bound[size] = Some(Bound { n_tokens: capacity, generation, scratch, dispatches, ops, places });
        Ok(())
    }

    /// Bytes of weights that the dispatches of an operation read, if that does not depend on the tokens.
    fn weight_bytes_of(&self, op: &Op, n_tokens: usize) -> u64 {
        match op {
            Op::Product { w, .. } => self.matrices[w.id].tiles.iter().map(|tile| tile.buffer.size()).sum(),
            Op::ExpertProduct { w, to, .. } if n_tokens == 1 => {
                4 * u64::from(self.matrices[w.id].expert_words) * self.plan.shape(*to).rows_per_token as u64
            }
            _ => 0,
        }
    }

    fn scratch(&self, n_tokens: usize, n_tables: usize, n_angles: usize) -> Result<Scratch, ModelError> {
        let (buffers, forms) = row_buffers(&*self.gpu, &self.plan, n_tokens)?;
        let n_used = self.config.experts.map_or(0, |experts| experts.n_used);
        let angles = n_angles.max(n_tokens * (4 * self.config.head_dim + 1));
        let tables = (n_tables + FIRST_PAGES).next_power_of_two();
        Ok(Scratch {
            buffers,
            forms,
            routes: self.gpu.buffer((8 * n_tokens * n_used) as u64)?,
            angles: self.gpu.buffer(4 * angles as u64)?,
            tables: self.gpu.buffer(4 * tables as u64)?,
        })
    }

    /// Appends the dispatches of one operation to `out`.
    fn encode(
        &self,
        op: &Op,
        s: &Scratch,
        pages: Option<(&Pages<Gpu>, &[wgpu::Buffer])>,
        n_tokens: u32,
        out: &mut Vec<Dispatch>,
    ) -> Result<(), ModelError> {
        let width = |buffer: Buffer| self.plan.shape(buffer).width as u32;
        let of = |buffer: Buffer| {
            let shape = self.plan.shape(buffer);
            Shape { width: shape.width as u32, rows_per_token: shape.rows_per_token as u32, ..Shape::default() }
        };
        let per_token = |buffer: Buffer| Rows::PerToken(self.plan.shape(buffer).rows_per_token as u32);
        let buffer = |buffer: Buffer| &s.buffers[&buffer];
        let kv = self.kv_type;
        let c = &self.config;
        let mut add = |kernel: Kernel, shape: Shape, x: u32, rows: Rows, buffers: &[&wgpu::Buffer]| {
            out.push(self.dispatch(&kernel, shape, x, rows, buffers)?);
            Ok(())
        };
        match *op {
            Op::Norm { from, weight, to } => {
                let shape = Shape { part: width(from), f: self.plan.eps, ..of(from) };
                let buffers = [buffer(from), &self.vectors[weight.id], buffer(to)];
                let has_mean = self.plan.norm == NormKind::Layer;
                add(Kernel::Norm { in_place: false, has_mean }, shape, 1, per_token(from), &buffers)
            }
            Op::NormHeads { of: on, weight } => {
                let part = weight.len as u32;
                let shape = Shape { part, f: self.plan.eps, ..of(on) };
                let buffers = [buffer(on), &self.vectors[weight.id]];
                let kernel = Kernel::Norm { in_place: true, has_mean: false };
                add(kernel, shape, width(on) / part, per_token(on), &buffers)
            }
            Op::Quantize { from, kind, planes } => {
                let shape = Shape { a: planes as u32, ..of(from) };
                let [codes, scales, sums] = &s.forms[&kind.block_elems()];
                let x = width(from).div_ceil(256);
                add(Kernel::Quantize { kind }, shape, x, per_token(from), &[buffer(from), codes, scales, sums])
            }
            Op::Product { w, from, planes, to, adds } => {
                // Floats are not shared.
                let n_tokens = if w.kind() == ActivationKind::F32 { n_tokens.min(TOKENS[1]) } else { n_tokens };
                let kernel = Kernel::Product { ty: w.ty, n_tokens, adds, experts: false };
                for tile in &self.matrices[w.id].tiles {
                    let shape = Shape { d: planes as u32, rows_per_token: 1, ..self.product(&w, &tile.rows) };
                    let mut buffers = vec![&tile.buffer];
                    buffers.extend(self.input(&w, from, s));
                    buffers.push(buffer(to));
                    let x = (tile.rows.len() as u32).div_ceil(64);
                    add(kernel.clone(), shape, x, Rows::Tokens(n_tokens), &buffers)?;
                }
                Ok(())
            }
            Op::ExpertProduct { w, from, to } => {
                let matrix = &self.matrices[w.id];
                let tile = &matrix.tiles[0];
                let rows_per_token = self.plan.shape(to).rows_per_token as u32;
                // How many routes share a row of the input.
                let sharing = rows_per_token / self.plan.shape(from).rows_per_token as u32;
                let (f, g) = (f32::from_bits(matrix.expert_words), f32::from_bits(sharing));
                let shape = Shape { d: 1, rows_per_token, f, g, ..self.product(&w, &tile.rows) };
                let mut buffers = vec![&tile.buffer];
                buffers.extend(self.input(&w, from, s));
                buffers.extend([buffer(to), &s.routes]);
                let kernel = Kernel::Product { ty: w.ty, n_tokens: 1, adds: false, experts: true };
                let x = (w.n_rows as u32).div_ceil(64);
                add(kernel, shape, x, Rows::PerToken(rows_per_token), &buffers)
            }
            Op::Bias { vector, of: on } => {
                let buffers = [buffer(on), &self.vectors[vector.id]];
                add(Kernel::Rows(RowsOp::Bias), of(on), width(on).div_ceil(64), per_token(on), &buffers)
            }
            // These dispatches are created for each step: see `adapters`.
            Op::Adapt { .. } => Ok(()),
            Op::Rotate { of: on, head_dim, is_local } => {
                let is_interleaved = self.plan.rope == RopeStyle::Interleaved;
                let part = head_dim as u32;
                let shape = Shape { part, a: u32::from(is_local), b: u32::from(is_interleaved), ..of(on) };
                let x = (width(on) / 2).div_ceil(64);
                add(Kernel::Rotate, shape, x, per_token(on), &[buffer(on), &s.angles])
            }
            Op::Temper { of: on } => {
                let x = width(on).div_ceil(64);
                add(Kernel::Rows(RowsOp::Temper), of(on), x, per_token(on), &[buffer(on), &s.angles])
            }
            Op::Append { layer, k, v } => {
                let (pages, pools) = pages.expect("only layers have pages");
                let shape = self.page_shape(pages, layer, k);
                let buffers = [buffer(k), buffer(v), &s.tables, &pools[layer - self.first_layer]];
                let threads = if kv == KvType::Q8_0 { width(k) / 32 } else { width(k) };
                add(Kernel::Append { kv }, shape, threads.div_ceil(64), Rows::PerToken(1), &buffers)
            }
            Op::Attend { layer, q, to, sinks } => {
                let (pages, pools) = pages.expect("only layers have pages");
                let attention = attention_shape(c, layer);
                let cap = attention.softcap.unwrap_or(0.0);
                let shape = Shape {
                    d: (attention.n_heads / attention.n_kv_heads) as u32,
                    e: attention.window.map_or(0, |window| window as u32),
                    f: attention.scale,
                    g: cap,
                    h: if cap > 0.0 { 1.0 / cap } else { 0.0 },
                    ..self.page_shape(pages, layer, q)
                };
                let pool = &pools[layer - self.first_layer];
                let mut buffers = vec![buffer(q), &s.tables, pool, buffer(to)];
                buffers.extend(sinks.map(|sinks| &self.vectors[sinks.id]));
                let (is_chunked, sinks) = (attention.is_chunked && attention.window.is_some(), sinks.is_some());
                let kernel = Kernel::Attend { kv, head_dim: attention.head_dim, is_chunked, sinks };
                add(kernel, shape, c.n_heads as u32, Rows::PerToken(1), &buffers)
            }
            Op::Gate { gate, up } => {
                let kernel = match self.plan.gate {
                    GateFunction::Silu => RowsOp::Silu,
                    GateFunction::GeluTanh => RowsOp::Gelu,
                    GateFunction::ClampedSilu => RowsOp::ClampedSilu,
                };
                let buffers = [buffer(gate), buffer(up)];
                add(Kernel::Rows(kernel), of(gate), width(gate).div_ceil(64), per_token(gate), &buffers)
            }
            Op::SquaredRelu { of: on } => {
                let x = width(on).div_ceil(64);
                add(Kernel::Rows(RowsOp::SquaredRelu), of(on), x, per_token(on), &[buffer(on)])
            }
            Op::Route { choice_bias, factors } => {
                let experts = c.experts.expect("routed only if there are experts");
                let (a, b, f) = (experts.n_used as u32, u32::from(experts.is_normalized), experts.scale);
                let mut shape = Shape { a, b, f, ..of(Buffer::Scores) };
                if let Some(groups) = experts.groups {
                    let [c, d, e] = [groups.n_groups, groups.n_used, groups.n_best].map(|n| n as u32);
                    shape = Shape { c, d, e, ..shape };
                }
                let (biased, grouped) = (choice_bias.is_some(), experts.groups.is_some());
                let is_sigmoid = experts.gating == Gating::Sigmoid;
                let kernel = Kernel::Route { is_sigmoid, biased, grouped, factors: factors.is_some() };
                let mut buffers = vec![buffer(Buffer::Scores), &s.routes];
                buffers.extend((biased || grouped).then(|| buffer(Buffer::Choices)));
                buffers.extend([choice_bias, factors].into_iter().flatten().map(|vector| &self.vectors[vector.id]));
                add(kernel, shape, 1, Rows::PerToken(1), &buffers)
            }
            Op::Weigh { from, to } => {
                let buffers = [buffer(to), buffer(from), &s.routes];
                add(Kernel::Routed { biases: false }, of(to), width(to).div_ceil(64), per_token(to), &buffers)
            }
            Op::ExpertBias { biases, of: on } => {
                let buffers = [buffer(on), &self.vectors[biases.id], &s.routes];
                add(Kernel::Routed { biases: true }, of(on), width(on).div_ceil(64), per_token(on), &buffers)
            }
            Op::Combine { weighs, has_shared, has_shared_score } => {
                let n_used = c.experts.expect("routed only if there are experts").n_used as u32;
                let mut buffers = vec![buffer(Buffer::ExpertOut)];
                buffers.extend(weighs.then_some(&s.routes));
                buffers.extend(has_shared.then(|| buffer(Buffer::SharedOut)));
                buffers.extend(has_shared_score.then(|| buffer(Buffer::SharedScore)));
                buffers.push(buffer(Buffer::Branch));
                let shape = Shape { a: n_used, ..of(Buffer::Branch) };
                let kernel = Kernel::Combine { weighs, shared: has_shared, scored: has_shared_score };
                add(kernel, shape, width(Buffer::Branch).div_ceil(64), Rows::PerToken(1), &buffers)
            }
            Op::Copy { from, at, to } => {
                let shape = Shape { a: width(from), b: at as u32, ..of(to) };
                let buffers = [buffer(to), buffer(from)];
                add(Kernel::Rows(RowsOp::Copy), shape, width(to).div_ceil(64), per_token(to), &buffers)
            }
            Op::Add { from, to, factor } => {
                let shape = Shape { f: factor, ..of(to) };
                let buffers = [buffer(to), buffer(from)];
                add(Kernel::Rows(RowsOp::Add), shape, width(to).div_ceil(64), per_token(to), &buffers)
            }
            Op::Scale { of: on, factor } => {
                let shape = Shape { f: factor, ..of(on) };
                add(Kernel::Rows(RowsOp::Scale), shape, width(on).div_ceil(64), per_token(on), &[buffer(on)])
            }
            Op::Softcap { of: on, cap } => {
                let shape = Shape { f: cap, g: 1.0 / cap, ..of(on) };
                add(Kernel::Rows(RowsOp::Softcap), shape, width(on).div_ceil(64), per_token(on), &[buffer(on)])
            }
        }
    }

    /// The parameters of a product, for some rows of its matrix.
    fn product(&self, w: &MatrixRef, rows: &std::ops::Range<usize>) -> Shape {
        let matrix = &self.matrices[w.id];
        Shape {
            width: w.n_cols as u32,
            part: rows.len() as u32,
            a: rows.start as u32,
            b: matrix.panel_words,
            c: matrix.meta_words,
            e: w.n_rows as u32,
            ..Shape::default()
        }
    }

    /// The buffers from which a product reads its input.
    fn input<'a>(&self, w: &MatrixRef, from: Buffer, s: &'a Scratch) -> Vec<&'a wgpu::Buffer> {
        match w.kind() {
            ActivationKind::F32 => vec![&s.buffers[&from]],
            kind => s.forms[&kind.block_elems()].iter().collect(),
        }
    }

    /// The parameters of kernels that use the pages of a layer.
    fn page_shape(&self, pages: &Pages<Gpu>, layer: usize, rows: Buffer) -> Shape {
        let [keys, values] = pages.layer_bytes(layer - self.first_layer);
        let head_dim = self.config.head_dim_of(layer);
        Shape {
            width: self.plan.shape(rows).width as u32,
            part: head_dim as u32,
            rows_per_token: 1,
            a: ((keys + values) / 4) as u32,
            // In 32-bit words.
            b: (keys / 4) as u32,
            c: head_dim.next_multiple_of(16) as u32,
            ..Shape::default()
        }
    }

    pub(super) fn dispatch(
        &self,
        kernel: &Kernel,
        shape: Shape,
        x: u32,
        rows: Rows,
        buffers: &[&wgpu::Buffer],
    ) -> Result<Dispatch, ModelError> {
        let pipeline = self.gpu.pipeline(kernel)?;
        let shape = self.gpu.uniform(bytemuck::bytes_of(&shape));
        let all = [&shape, &self.step].into_iter().chain(buffers.iter().copied());
        let all: Vec<_> = all.map(wgpu::Buffer::as_entire_binding).collect();
        let bind_group = self.gpu.bind(&pipeline, &all);
        Ok(Dispatch { pipeline, bind_group, x, rows })
    }
}

impl Runner for Run {
    type Memory = Gpu;
    type Weights<'a> = DeviceWeights<'a>;

    fn weights(gpu: &Gpu) -> DeviceWeights<'_> {
        DeviceWeights::new(gpu)
    }

    fn new(
        gpu: &Arc<Gpu>,
        config: &ModelConfig,
        plan: Plan,
        weights: DeviceWeights<'_>,
        (kv_type, first_layer): (KvType, usize),
    ) -> Self {
        let DeviceWeights { matrices, vectors, n_bytes, .. } = weights;
        let step = gpu.uniform(bytemuck::bytes_of(&StepShape::default()));
        Self {
            gpu: Arc::clone(gpu),
            config: config.clone(),
            plan,
            kv_type,
            matrices,
            vectors,
            weight_bytes: n_bytes,
            first_layer,
            step,
            bound: [None, None, None],
        }
    }

    fn device(&self) -> &str {
        &self.gpu.name
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Limited by the buffers, all of which must be bound to kernels.
    fn most_rows(&self) -> usize {
        let widest = self.plan.buffers.values().map(|s| s.rows_per_token * s.width * 4).max().unwrap_or(4);
        let most_rows = self.plan.buffers.values().map(|s| s.rows_per_token).max().unwrap_or(1);
        // Each row of a token is a workgroup in the second dimension.
        let groups = self.gpu.limits.max_compute_workgroups_per_dimension as usize / most_rows;
        // Buffers grow to the next power of two.
        let rows = (self.gpu.largest_buffer() as usize / widest).max(1).min(groups);
        if rows.is_power_of_two() { rows } else { rows.next_power_of_two() / 2 }
    }

    fn run(
        &mut self,
        x: &[f32],
        step: Option<(&Step<'_>, &Pages<Gpu>)>,
        loras: &[AdaptedRows],
        result: Buffer,
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        self.gpu.check()?;
        let n_tokens = x.len() / self.config.dim;
        if n_tokens > self.most_rows() {
            let most = self.most_rows();
            return Err(self.gpu.unsupported(format!("{n_tokens} tokens in a step, but {most} (see `prefill_chunk`)")));
        }
        let StepTables { shape, tables, angles } = StepTables::new(step.map(|(step, _)| step), n_tokens);
        let pages = step.map(|(_, pages)| pages);
        self.bind(n_tokens, pages, tables.len(), angles.len())?;
        let bound = self.bound[size_of(n_tokens)].as_ref().expect("bound just now");
        let queue = &self.gpu.queue;
        queue.write_buffer(&bound.scratch.buffers[&Buffer::X], 0, bytemuck::cast_slice(x));
        if let (Some((step, _)), Some(rows)) = (step, bound.scratch.buffers.get(&Buffer::PerLayers)) {
            queue.write_buffer(rows, 0, bytemuck::cast_slice(step.per_layer));
        }
        queue.write_buffer(&bound.scratch.tables, 0, bytemuck::cast_slice(&tables));
        queue.write_buffer(&bound.scratch.angles, 0, bytemuck::cast_slice(&angles));
        queue.write_buffer(&self.step, 0, bytemuck::bytes_of(&shape));
        // If a head is only asked for norms, it ends after the first operation.
        let n_dispatches = if result == Buffer::Normed { 1 } else { bound.dispatches.len() };
        // The dispatches of adapters, with the index of the dispatch before which they come.
        let mut adapted = Vec::new();
        if !loras.is_empty() {
            for (at, place) in &bound.places {
                let dispatches = self.adapt(*place, loras, |buffer| bound.scratch.buffers[&buffer].clone())?;
                adapted.extend(dispatches.into_iter().map(|dispatch| (*at, dispatch)));
            }
        }
        let all = || in_order(&bound.dispatches[..n_dispatches], &adapted);
        let mut encoder = self.gpu.encoder();
        let timestamps = self.gpu.timing.is_on().then(|| Timestamps::new(&self.gpu, all().count()));
        if let Some(timestamps) = &timestamps {
            for (i, (_, dispatch)) in all().enumerate() {
                let timestamp_writes = Some(timestamps.of(i));
                let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
                dispatch.encode(&mut encoder.begin_compute_pass(&descriptor), n_tokens as u32);
            }
            timestamps.resolve(&mut encoder);
        } else {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            all().for_each(|(_, dispatch)| dispatch.encode(&mut pass, n_tokens as u32));
        }
        let of = self.plan.shape(result);
        let bytes = (n_tokens * of.rows_per_token * of.width * 4) as u64;
        let take = |bytes: &[u8]| out.copy_from_slice(bytemuck::cast_slice(bytes));
        self.gpu.read_after(encoder, &bound.scratch.buffers[&result], 0, bytes, take)?;
        if let Some(timestamps) = timestamps {
            let labels = Labels::new(&self.plan, &bound.ops, |op| self.weight_bytes_of(op, n_tokens));
            timestamps.add(&self.gpu, all().map(|(at, _)| labels.get(at)))?;
        }
        Ok(())
    }

    fn upload(gpu: &Gpu, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
        adapters::upload(gpu, adapter)
    }
}

impl Dispatch {
    fn encode(&self, pass: &mut wgpu::ComputePass<'_>, n_tokens: u32) {
        pass.set_pipeline(&self.pipeline.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        match self.rows {
            Rows::PerToken(rows) => pass.dispatch_workgroups(self.x, n_tokens * rows, 1),
            Rows::Tokens(tokens) => pass.dispatch_workgroups(self.x, n_tokens.div_ceil(tokens), 1),
            Rows::Fixed(rows) => pass.dispatch_workgroups(self.x, rows, 1),
        }
    }
}
