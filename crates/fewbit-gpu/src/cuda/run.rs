//! Runs a plan on the device: its operations become launches, and those of few rows a graph.

use super::adapters::{self, AdapterScratch};
use super::driver::{self, Function, Graph};
use super::gpu::{DeviceBuffer, Gpu};
use super::kernels::{
    Address, AppendParams, AttendParams, CombineParams, ExpertParams, Form, GateParams, GroupParams, Launch,
    NormParams, ProductParams, QuantizeParams, RotateParams, Route, RouteParams, RoutedParams, RowsOp, RowsParams,
    TILE_FROM,
};
use super::step::{Layout, Tables, TablesAt};
use super::weights::{DeviceMatrix, DeviceWeights};
use crate::backend::pages::Pages;
use crate::backend::timing::Labels;
use crate::backend::{Memory, Part, Place, Runner, in_order, row_buffers};
use crate::plan::{Buffer, MatrixRef, Op, Plan};
use bytemuck::Pod;
use fewbit_kernels::PAGE;
use fewbit_model::{
    AdaptedRows, AdapterPart, Gating, KvType, LowRank, ModelConfig, ModelError, NormKind, Step, attention_shape,
};
use fewbit_quant::ActivationKind;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The most rows of a step whose launches are captured. There is a graph for each number of rows.
const CAPTURED_ROWS: usize = 8;

/// The most bytes of a buffer of a step, which limit its rows.
const MOST_BYTES: usize = 1 << 30;

/// Additional space in new tables, for the slots of further pages.
const FIRST_BYTES: u64 = 1 << 10;

/// A plan with its weights, and the buffers of its steps.
pub(super) struct Run {
    gpu: Arc<Gpu>,
    config: ModelConfig,
    plan: Plan,
    kv_type: KvType,
    matrices: Vec<DeviceMatrix>,
    vectors: Vec<DeviceBuffer>,
    weight_bytes: u64,
    /// The first layer of the segment, to which the layers of pages are relative.
    first_layer: usize,
    scratch: Option<Scratch>,
    adapters: AdapterScratch,
    /// The launches of steps, which are bound to the buffers of `scratch` and of the pages.
    bound: HashMap<Shape, Bound>,
    /// The generation of the page buffers.
    generation: u64,
}

/// What the launches of a step depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    layout: Layout,
    /// How many pages attention has launches for: a power of two, at least those that a row has.
    n_pages: usize,
}

/// The launches of a step.
struct Bound {
    dispatches: Vec<Dispatch>,
    /// The index in the plan of the operation of each launch, of launches that do several that of the first one.
    ops: Vec<usize>,
    /// The places of adapters, with the index of the launch before which they come.
    places: Vec<(usize, Place)>,
    graph: Option<Captured>,
}

/// A graph, which is dropped with it.
struct Captured {
    gpu: Arc<Gpu>,
    graph: Graph,
}

impl Drop for Captured {
    fn drop(&mut self) {
        self.gpu.driver.drop_graph(self.graph);
    }
}

/// A launch with its parameters.
pub(super) struct Dispatch {
    function: Function,
    grid: [u32; 3],
    block: u32,
    shared: u32,
    params: Vec<u64>,
}

impl Dispatch {
    /// A launch with these parameters, a struct of [`super::kernels`].
    pub(super) fn new(gpu: &Gpu, params: &impl Pod, launch: Launch) -> Result<Self, ModelError> {
        let Launch { module, name, grid, block, shared } = launch;
        let function = gpu.function(module, name)?;
        let params = bytemuck::pod_collect_to_vec(bytemuck::bytes_of(params));
        Ok(Self { function, grid, block, shared, params })
    }

    pub(super) fn launch(&self) -> driver::Launch<'_> {
        let Self { function, grid, block, shared, ref params } = *self;
        driver::Launch { function, grid, block, shared, params }
    }
}

/// The buffers of a step.
struct Scratch {
    n_rows: usize,
    buffers: BTreeMap<Buffer, DeviceBuffer>,
    /// Codes, scales and sums of the quantized forms, by block size.
    forms: BTreeMap<usize, [DeviceBuffer; 3]>,
    /// The routes to experts; routes in order of their experts, the tiles that they make, what grouping them needs.
    routes: Option<[DeviceBuffer; 4]>,
    /// See [`Tables`].
    tables: DeviceBuffer,
    /// Partial results of attention.
    parts: Option<DeviceBuffer>,
}

/// Makes sure that a buffer has so many bytes: a new one, whose content is lost, if it has less.
pub(super) fn grown(gpu: &Gpu, buffer: &mut Option<DeviceBuffer>, bytes: u64) -> Result<DeviceBuffer, ModelError> {
    buffer.take_if(|buffer| buffer.bytes() < bytes);
    Ok(match buffer {
        Some(buffer) => buffer.clone(),
        None => buffer.insert(gpu.buffer(bytes.next_power_of_two())?).clone(),
    })
}

/// Everything that launches are bound to.
struct Bindings<'a> {
    scratch: &'a Scratch,
    tables: TablesAt,
    n_pages: usize,
    pages: Option<(&'a Pages<Gpu>, &'a [DeviceBuffer])>,
}

impl Run {
    /// Makes sure that there are buffers for this step.
    fn allocate(&mut self, n_rows: usize, table_bytes: u64, n_pages: usize) -> Result<(), ModelError> {
        let has_room = |scratch: &Scratch| scratch.n_rows >= n_rows && scratch.tables.bytes() >= table_bytes;
        if !self.scratch.as_ref().is_some_and(has_room) {
            // Free the old buffers before allocating larger ones, and what is bound to them.
            self.bound.clear();
            let old_rows = self.scratch.take().map_or(0, |scratch| scratch.n_rows);
            self.scratch = Some(self.new_scratch(n_rows.max(old_rows), table_bytes)?);
        }
        if let (true, Some(scratch)) = (in_pages(n_rows, n_pages), &mut self.scratch) {
            let c = &self.config;
            let len = n_rows * c.n_heads * n_pages * (c.widest_head_dim() + 2);
            let before = scratch.parts.as_ref().map(DeviceBuffer::address);
            let parts = grown(&self.gpu, &mut scratch.parts, 4 * len as u64)?;
            if before.is_some_and(|before| before != parts.address()) {
                self.bound.clear();
            }
        }
        Ok(())
    }

    fn new_scratch(&self, n_rows: usize, table_bytes: u64) -> Result<Scratch, ModelError> {
        let n_rows = n_rows.next_power_of_two();
        let gpu = &*self.gpu;
        let (buffers, forms) = row_buffers(gpu, &self.plan, n_rows)?;
        let routes = |experts: &fewbit_model::ExpertConfig| -> Result<_, ModelError> {
            let (n_routes, n_experts) = (n_rows * experts.n_used, experts.n_experts);
            let group = GroupParams { n_routes: n_routes as u32, n_experts: n_experts as u32, ..Default::default() };
            Ok([
                gpu.buffer((n_routes * size_of::<Route>()) as u64)?,
                gpu.buffer(4 * n_routes as u64)?,
                gpu.buffer(4 * group.tile_words() as u64)?,
                gpu.buffer(8 * n_experts as u64)?,
            ])
        };
        let routes = self.config.experts.as_ref().map(routes).transpose()?;
        let tables = gpu.buffer((table_bytes + FIRST_BYTES).next_power_of_two())?;
        Ok(Scratch { n_rows, buffers, forms, routes, tables, parts: None })
    }

    /// The launches for steps of this shape.
    fn bind(&self, shape: Shape, pages: Option<(&Pages<Gpu>, &[DeviceBuffer])>) -> Result<Bound, ModelError> {
        let scratch = self.scratch.as_ref().expect("allocated before");
        let tables = TablesAt { layout: shape.layout, address: scratch.tables.address() };
        let bindings = Bindings { scratch, tables, n_pages: shape.n_pages, pages };
        let (mut dispatches, mut ops, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let mut left = &self.plan.ops[..];
        while let Some((op, rest)) = left.split_first() {
            if let Op::Adapt { layer, target, from, to } = *op {
                places.push((dispatches.len(), Place { layer, target, from, to }));
            }
            let index = self.plan.ops.len() - left.len();
            left = &rest[self.encode(op, rest, &bindings, &mut dispatches)?..];
            ops.resize(dispatches.len(), index);
        }
        Ok(Bound { dispatches, ops, places, graph: None })
    }

    /// Bytes of weights that the launches of an operation read, if that does not depend on the tokens.
    fn weight_bytes_of(&self, op: &Op, n_rows: usize) -> u64 {
        match op {
            Op::Product { w, .. } => self.matrices[w.id].buffer.bytes(),
            Op::ExpertProduct { w, to, .. } if n_rows == 1 => {
                self.matrices[w.id].expert_bytes * self.plan.shape(*to).rows_per_token as u64
            }
            _ => 0,
        }
    }

    /// Appends the launches of an operation. Returns how many of the operations that follow they do as well.
    fn encode(&self, op: &Op, rest: &[Op], b: &Bindings<'_>, out: &mut Vec<Dispatch>) -> Result<usize, ModelError> {
        let n_tokens = b.tables.layout.n_rows;
        let rows = |buffer: Buffer| (n_tokens * self.plan.shape(buffer).rows_per_token) as u32;
        let width = |buffer: Buffer| self.plan.shape(buffer).width as u32;
        let at = |buffer: Buffer| b.scratch.buffers[&buffer].address();
        let vector = |id: usize| self.vectors[id].address();
        let c = &self.config;
        let gpu = &*self.gpu;
        let elementwise = |op: RowsOp, to: Buffer, other: Address, (x, y): (f32, f32)| {
            let (n_rows, n_cols) = (rows(to), width(to));
            let params = RowsParams { to: at(to), other, n_rows, n_cols, a: x, b: y, ..Default::default() };
            Dispatch::new(gpu, &params, params.launch(op))
        };
        match *op {
            Op::Norm { from, weight, to } => {
                let ([q32, q256], planes, n_fused) = self.forms(rest, to, b);
                let (from, weight) = (at(from), vector(weight.id));
                let (n_rows, part, eps) = (rows(to), width(to), self.plan.eps);
                let params = NormParams {
                    from,
                    weight,
                    to: at(to),
                    q32,
                    q256,
                    n_rows,
                    n_parts: 1,
                    part,
                    planes,
                    eps,
                    has_mean: u32::from(self.plan.norm == NormKind::Layer),
                };
                out.push(Dispatch::new(gpu, &params, params.launch())?);
                return Ok(n_fused);
            }
            Op::NormHeads { of, weight } => {
                let (part, n_rows, eps) = (weight.len as u32, rows(of), self.plan.eps);
                let (from, weight, n_parts) = (at(of), vector(weight.id), width(of) / part);
                let params =
                    NormParams { from, weight, to: from, n_rows, n_parts, part, planes: 1, eps, ..Default::default() };
                out.push(Dispatch::new(gpu, &params, params.launch())?);
            }
            Op::Quantize { from, kind, planes } => {
                let (n_rows, n_cols, planes) = (rows(from), width(from), planes as u32);
                let params = QuantizeParams { from: at(from), to: form(b, kind), n_rows, n_cols, planes, unused: 0 };
                out.push(Dispatch::new(gpu, &params, params.launch(kind))?);
            }
            Op::Product { w, from, planes, to, adds } => {
                let params = self.product(&w, (from, rows(from)), at(to), (planes, adds), b);
                out.push(Dispatch::new(gpu, &params, params.launch(w.ty))?);
            }
            Op::ExpertProduct { w, from, to } => self.experts(&w, from, to, b, out)?,
            Op::Bias { vector: v, of } => out.push(elementwise(RowsOp::Bias, of, vector(v.id), (0.0, 0.0))?),
            // These launches are made for each step: see `adapters`.
            Op::Adapt { .. } => {}
            Op::Rotate { of, head_dim, is_local } => {
                let (cos, sin, half) = b.tables.angles(is_local);
                let (n_rows, n_cols, head_dim) = (rows(of), width(of), head_dim as u32);
                let params = RotateParams { to: at(of), cos, sin, n_rows, n_cols, head_dim, half };
                out.push(Dispatch::new(gpu, &params, params.launch(self.plan.rope))?);
            }
            Op::Temper { of } => out.push(elementwise(RowsOp::Temper, of, b.tables.temperatures(), (0.0, 0.0))?),
            Op::Append { layer, k, v } => {
                let (pool, [key_bytes, value_bytes]) = self.pool(layer, b);
                let params = AppendParams {
                    k: at(k),
                    v: at(v),
                    rows: b.tables.rows(),
                    slots: b.tables.slots(),
                    pool,
                    page_bytes: key_bytes + value_bytes,
                    key_bytes,
                    n_rows: n_tokens as u32,
                    n_kv_heads: c.n_kv_heads_of(layer) as u32,
                    head_dim: c.head_dim_of(layer) as u32,
                    unused: 0,
                };
                out.push(Dispatch::new(gpu, &params, params.launch(self.kv_type))?);
            }
            Op::Attend { layer, q, to, sinks } => {
                self.attend(layer, [at(q), at(to), sinks.map_or(0, |sinks| vector(sinks.id))], b, out)?
            }
            Op::Gate { gate, up } => {
                let ([q32, q256], _, n_fused) = self.forms(rest, gate, b);
                let (n_rows, n_cols) = (rows(gate), width(gate));
                let params = GateParams { gate: at(gate), up: at(up), q32, q256, n_rows, n_cols };
                out.push(Dispatch::new(gpu, &params, params.launch(self.plan.gate))?);
                return Ok(n_fused);
            }
            Op::SquaredRelu { of } => out.push(elementwise(RowsOp::SquaredRelu, of, 0, (0.0, 0.0))?),
            Op::Weigh { from, to } => {
                let params = self.routed(at(from), to, b);
                out.push(Dispatch::new(gpu, &params, params.launch(false))?);
            }
            Op::ExpertBias { biases, of } => {
                let params = self.routed(vector(biases.id), of, b);
                out.push(Dispatch::new(gpu, &params, params.launch(true))?);
            }
            Op::Route { choice_bias, factors } => {
                let experts = c.experts.expect("routed only if there are experts");
                let [n_groups, n_groups_used, n_best] =
                    experts.groups.map_or([0; 3], |groups| [groups.n_groups, groups.n_used, groups.n_best]);
                let params = RouteParams {
                    scores: at(Buffer::Scores),
                    bias: choice_bias.map_or(0, |bias| vector(bias.id)),
                    factors: factors.map_or(0, |factors| vector(factors.id)),
                    choices: b.scratch.buffers.get(&Buffer::Choices).map_or(0, DeviceBuffer::address),
                    routes: self.routes(b)[0].address(),
                    n_rows: n_tokens as u32,
                    n_experts: experts.n_experts as u32,
                    n_used: experts.n_used as u32,
                    is_normalized: u32::from(experts.is_normalized),
                    scale: experts.scale,
                    is_sigmoid: u32::from(experts.gating == Gating::Sigmoid),
                    n_groups: n_groups as u32,
                    n_groups_used: n_groups_used as u32,
                    n_best: n_best as u32,
                    unused: 0,
                };
                out.push(Dispatch::new(gpu, &params, params.launch())?);
                if in_tiles(n_tokens) {
                    let params = self.group(n_tokens, b);
                    out.push(Dispatch::new(gpu, &params, params.launch())?);
                }
            }
            Op::Combine { weighs, has_shared, has_shared_score } => {
                let if_there = |is_there: bool, buffer: Buffer| if is_there { at(buffer) } else { 0 };
                let params = CombineParams {
                    outputs: at(Buffer::ExpertOut),
                    routes: self.routes(b)[0].address(),
                    shared: if_there(has_shared, Buffer::SharedOut),
                    shared_score: if_there(has_shared_score, Buffer::SharedScore),
                    to: at(Buffer::Branch),
                    n_rows: n_tokens as u32,
                    n_cols: width(Buffer::Branch),
                    n_used: c.experts.expect("routed only if there are experts").n_used as u32,
                    weighs: u32::from(weighs),
                };
                out.push(Dispatch::new(gpu, &params, params.launch())?);
            }
            Op::Copy { from, at: column, to } => {
                let (other, stride) = (at(from) + 4 * column as u64, width(from));
                let (to, n_rows, n_cols) = (at(to), rows(to), width(to));
                let params = RowsParams { to, other, n_rows, n_cols, stride, ..Default::default() };
                out.push(Dispatch::new(gpu, &params, params.launch(RowsOp::Copy))?);
            }
            Op::Add { from, to, factor } => out.push(elementwise(RowsOp::Add, to, at(from), (factor, 0.0))?),
            Op::Scale { of, factor } => out.push(elementwise(RowsOp::Scale, of, 0, (factor, 0.0))?),
            Op::Softcap { of, cap } => out.push(elementwise(RowsOp::Softcap, of, 0, (cap, 1.0 / cap))?),
        }
        Ok(0)
    }

    /// The forms that the operations which follow at once make of a buffer, in how many planes, and how many they are.
    fn forms(&self, rest: &[Op], of: Buffer, b: &Bindings<'_>) -> ([Form; 2], u32, usize) {
        let (mut forms, mut all_planes, mut n) = ([Form::default(); 2], 1, 0);
        for op in rest {
            match *op {
                Op::Quantize { from, kind, planes } if from == of && (n == 0 || planes as u32 == all_planes) => {
                    forms[usize::from(kind == ActivationKind::Q8Block256)] = form(b, kind);
                    all_planes = planes as u32;
                    n += 1;
                }
                _ => break,
            }
        }
        (forms, all_planes, n)
    }

    /// The parameters of a product whose input has this many rows.
    fn product(
        &self,
        w: &MatrixRef,
        (from, n_rows): (Buffer, u32),
        to: Address,
        (planes, adds): (usize, bool),
        b: &Bindings<'_>,
    ) -> ProductParams {
        let matrix = &self.matrices[w.id];
        let (values, form) = match w.kind() {
            ActivationKind::F32 => (b.scratch.buffers[&from].address(), Form::default()),
            kind => (0, form(b, kind)),
        };
        ProductParams {
            weights: matrix.buffer.address(),
            values,
            form,
            to,
            panel_bytes: matrix.panel_bytes as u64,
            meta_bytes: matrix.meta_bytes as u64,
            n_rows,
            n_cols: w.n_cols as u32,
            n_out: w.n_rows as u32,
            planes: planes as u32,
            adds: u32::from(adds),
            unused: 0,
        }
    }

    fn experts(
        &self,
        w: &MatrixRef,
        from: Buffer,
        to: Buffer,
        b: &Bindings<'_>,
        out: &mut Vec<Dispatch>,
    ) -> Result<(), ModelError> {
        let n_tokens = b.tables.layout.n_rows;
        let per_token = |buffer: Buffer| self.plan.shape(buffer).rows_per_token;
        let n_rows = (n_tokens * per_token(from)) as u32;
        let to_address = b.scratch.buffers[&to].address();
        let [routes, order, tiles, _] = self.routes(b);
        let params = ExpertParams {
            product: self.product(w, (from, n_rows), to_address, (1, false), b),
            routes: routes.address(),
            order: order.address(),
            tiles: tiles.address(),
            expert_bytes: self.matrices[w.id].expert_bytes,
            n_routes: (n_tokens * per_token(to)) as u32,
            routes_per_row: (per_token(to) / per_token(from)) as u32,
        };
        let launch = match in_tiles(n_tokens) {
            true => params.launch_tiles(w.ty, self.group(n_tokens, b).n_experts),
            false => params.launch(w.ty),
        };
        out.push(Dispatch::new(&self.gpu, &params, launch)?);
        Ok(())
    }

    /// The parameters of an operation on rows of routes.
    fn routed(&self, other: Address, to: Buffer, b: &Bindings<'_>) -> RoutedParams {
        let shape = self.plan.shape(to);
        RoutedParams {
            other,
            routes: self.routes(b)[0].address(),
            to: b.scratch.buffers[&to].address(),
            n_routes: (b.tables.layout.n_rows * shape.rows_per_token) as u32,
            n_cols: shape.width as u32,
            routes_per_row: shape.rows_per_token as u32,
            unused: 0,
        }
    }

    fn group(&self, n_tokens: usize, b: &Bindings<'_>) -> GroupParams {
        let experts = self.config.experts.expect("routed only if there are experts");
        let [routes, order, tiles, scratch] = self.routes(b).each_ref().map(DeviceBuffer::address);
        let (n_routes, n_experts) = ((n_tokens * experts.n_used) as u32, experts.n_experts as u32);
        GroupParams { routes, order, tiles, scratch, n_routes, n_experts }
    }

    fn routes<'a>(&self, b: &Bindings<'a>) -> &'a [DeviceBuffer; 4] {
        b.scratch.routes.as_ref().expect("there are experts")
    }

    /// The slots of a layer, and the bytes of keys and values in each.
    fn pool(&self, layer: usize, b: &Bindings<'_>) -> (Address, [u64; 2]) {
        let (pages, pools) = b.pages.expect("only layers have pages");
        let index = layer - self.first_layer;
        (pools[index].address(), pages.layer_bytes(index))
    }

    fn attend(
        &self,
        layer: usize,
        [q, to, sinks]: [Address; 3],
        b: &Bindings<'_>,
        out: &mut Vec<Dispatch>,
    ) -> Result<(), ModelError> {
        let (pool, [key_bytes, value_bytes]) = self.pool(layer, b);
        let (attention, n_tokens) = (attention_shape(&self.config, layer), b.tables.layout.n_rows);
        let cap = attention.softcap.unwrap_or(0.0);
        // A window touches one page more than it is long.
        let seen = attention.window.map_or(b.n_pages, |window| b.n_pages.min(window.div_ceil(PAGE) + 1));
        let is_in_pages = in_pages(n_tokens, b.n_pages) && seen > 1;
        let params = AttendParams {
            q,
            rows: b.tables.rows(),
            slots: b.tables.slots(),
            pool,
            sinks,
            to,
            parts: b.scratch.parts.as_ref().filter(|_| is_in_pages).map_or(0, DeviceBuffer::address),
            page_bytes: key_bytes + value_bytes,
            key_bytes,
            n_rows: n_tokens as u32,
            n_heads: attention.n_heads as u32,
            n_kv_heads: attention.n_kv_heads as u32,
            head_dim: attention.head_dim as u32,
            heads: 0,
            tokens: 0,
            window: attention.window.map_or(0, |window| window.min(u32::MAX as usize) as u32),
            n_pages: if is_in_pages { seen as u32 } else { 0 },
            scale: attention.scale,
            cap,
            inverse_cap: if cap > 0.0 { 1.0 / cap } else { 0.0 },
            is_chunked: u32::from(attention.is_chunked),
        }
        .tile();
        for launch in params.launches(self.kv_type) {
            out.push(Dispatch::new(&self.gpu, &params, launch)?);
        }
        Ok(())
    }

    /// Does the launches, as a graph if they are captured, with those of adapters between them.
    fn launch(&mut self, shape: Shape, loras: &[AdaptedRows], n_launches: usize) -> Result<(), ModelError> {
        let gpu = &*self.gpu;
        let bound = &self.bound[&shape];
        let scratch = self.scratch.as_ref().expect("allocated before");
        let mut adapted = Vec::new();
        if !loras.is_empty() {
            let at = |buffer: Buffer| scratch.buffers[&buffer].address();
            adapted = self.adapters.dispatches(gpu, &bound.places, loras, at)?;
        }
        let launches = &bound.dispatches[..n_launches.min(bound.dispatches.len())];
        if gpu.timing.is_on() {
            let labels = Labels::new(&self.plan, &bound.ops, |op| self.weight_bytes_of(op, shape.layout.n_rows));
            let all: Vec<_> = in_order(launches, &adapted).collect();
            let launches: Vec<_> = all.iter().map(|(_, dispatch)| dispatch.launch()).collect();
            let times = gpu.call(0, |driver| driver.time(&launches))?;
            all.iter().zip(times).for_each(|((at, _), time)| gpu.timing.add(labels.get(*at), time));
            return Ok(());
        }
        let is_whole = launches.len() == bound.dispatches.len() && adapted.is_empty();
        if is_whole && shape.layout.n_rows <= CAPTURED_ROWS {
            let graph = match &bound.graph {
                Some(captured) => captured.graph,
                None => {
                    let launches: Vec<_> = launches.iter().map(Dispatch::launch).collect();
                    let graph = gpu.call(0, |driver| driver.capture(&launches))?;
                    let bound = self.bound.get_mut(&shape).expect("bound before");
                    bound.graph.insert(Captured { gpu: Arc::clone(&self.gpu), graph }).graph
                }
            };
            return gpu.call(0, |driver| driver.replay(graph));
        }
        in_order(launches, &adapted)
            .try_for_each(|(_, dispatch)| gpu.call(0, |driver| driver.launch(&dispatch.launch())))
    }
}

/// The quantized form of this kind.
fn form(b: &Bindings<'_>, kind: ActivationKind) -> Form {
    let [codes, scales, sums] = b.scratch.forms[&kind.block_elems()].each_ref().map(DeviceBuffer::address);
    Form { codes, scales, sums }
}

/// Whether products with experts group the routes of so many rows.
fn in_tiles(n_rows: usize) -> bool {
    n_rows >= TILE_FROM as usize
}

/// Whether attention has blocks for each page of these rows: where there are too few rows for all of the device.
fn in_pages(n_rows: usize, n_pages: usize) -> bool {
    n_rows <= CAPTURED_ROWS && n_pages > 1
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
        Self {
            gpu: Arc::clone(gpu),
            config: config.clone(),
            plan,
            kv_type,
            matrices,
            vectors,
            weight_bytes: n_bytes,
            first_layer,
            scratch: None,
            adapters: AdapterScratch::default(),
            bound: HashMap::new(),
            generation: 0,
        }
    }

    fn device(&self) -> &str {
        &self.gpu.name
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Limited by the memory that buffers would take.
    fn most_rows(&self) -> usize {
        let widest = self.plan.buffers.values().map(|s| s.rows_per_token * s.width * 4).max().unwrap_or(4);
        (MOST_BYTES / widest.max(1)).max(1)
    }

    fn run(
        &mut self,
        x: &[f32],
        step: Option<(&Step<'_>, &Pages<Gpu>)>,
        loras: &[AdaptedRows],
        result: Buffer,
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let n_rows = x.len() / self.config.dim;
        if n_rows > self.most_rows() {
            let most = self.most_rows();
            return Err(self.gpu.unsupported(format!("{n_rows} tokens in a step, but {most} (see `prefill_chunk`)")));
        }
        let (pools, generation) = step.map(|(_, pages)| pages.buffers()).unwrap_or_default();
        if self.generation != generation {
            // What is bound to old buffers of pages keeps nothing alive, and must not be launched.
            self.bound.clear();
            self.generation = generation;
        }
        let tables = step.map_or_else(|| Tables::of_head(n_rows), |(step, _)| Tables::new(step, n_rows));
        let n_pages = tables.n_pages.max(1).next_power_of_two();
        self.allocate(n_rows, tables.bytes.len() as u64, n_pages)?;
        // Which pages there are matters only where they have launches of their own.
        let n_pages = if in_pages(n_rows, n_pages) { n_pages } else { 1 };
        let shape = Shape { layout: tables.layout, n_pages };
        if !self.bound.contains_key(&shape) {
            let bound = self.bind(shape, step.map(|(_, pages)| (pages, &pools[..])))?;
            // Of the many lengths that prompts have, only the last one's are kept.
            self.bound.retain(|shape, _| shape.layout.n_rows <= CAPTURED_ROWS);
            self.bound.insert(shape, bound);
        }
        let scratch = self.scratch.as_ref().expect("allocated just now");
        let rows: &[u8] = bytemuck::cast_slice(x);
        self.gpu.write(Part::of(&scratch.buffers[&Buffer::X], 0, rows.len() as u64), rows)?;
        if let (Some((step, _)), Some(buffer)) = (step, scratch.buffers.get(&Buffer::PerLayers)) {
            let rows: &[u8] = bytemuck::cast_slice(step.per_layer);
            self.gpu.write(Part::of(buffer, 0, rows.len() as u64), rows)?;
        }
        self.gpu.write(Part::of(&scratch.tables, 0, tables.bytes.len() as u64), &tables.bytes)?;
        // If a head is only asked for norms, it ends after the first operation.
        self.launch(shape, loras, if result == Buffer::Normed { 1 } else { usize::MAX })?;
        let scratch = self.scratch.as_ref().expect("allocated before");
        let of = self.plan.shape(result);
        let bytes = 4 * (n_rows * of.rows_per_token * of.width) as u64;
        let part = Part::of(&scratch.buffers[&result], 0, bytes);
        self.gpu.read(part, |bytes| out.copy_from_slice(bytemuck::cast_slice(bytes)))
    }

    fn upload(gpu: &Gpu, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
        adapters::upload(gpu, adapter)
    }
}
