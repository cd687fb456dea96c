//! Runs a plan on the CPU with the scalar reference kernels of `fewbit-quant` and `fewbit-kernels`, one operation after
//! another. It is slow and exists to verify plans: its results are bit for bit those of the CPU segment.

use crate::plan::{Buffer, MatrixRef, Op, Plan, Weights};
use fewbit_kernels::math::sigmoid;
use fewbit_kernels::{ActivationKinds, Activations, Cpu, Isa, Matrix, Planes};
use fewbit_model::{
    AdaptedRows, AdapterPart, Device, DeviceError, Head, HostStates, LayerLoader, LoraTarget, LowRank, ModelConfig,
    ModelError, NormKind, Routing, Segment, StateStore, Step,
};
use fewbit_quant::ActivationKind;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A device that runs plans with the reference kernels, in host memory.
pub struct Interpreter {
    cpu: Cpu,
}

impl Interpreter {
    /// Creates an interpreter that runs on one thread.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub fn new() -> Result<Self, ModelError> {
        Ok(Self { cpu: Cpu::new(Isa::Scalar, 1)? })
    }
}

/// Weights in host memory.
#[derive(Default)]
struct HostWeights {
    matrices: Vec<Matrix>,
    vectors: Vec<Vec<f32>>,
}

impl Weights for HostWeights {
    fn device(&self) -> &str {
        "interpreter"
    }

    fn matrix(&mut self, matrix: Matrix) -> Result<usize, ModelError> {
        self.matrices.push(matrix);
        Ok(self.matrices.len() - 1)
    }

    fn experts(&mut self, matrices: Vec<Matrix>) -> Result<usize, ModelError> {
        let first = self.matrices.len();
        self.matrices.extend(matrices);
        Ok(first)
    }

    fn vector(&mut self, vector: Vec<f32>) -> Result<usize, ModelError> {
        self.vectors.push(vector);
        Ok(self.vectors.len() - 1)
    }
}

impl HostWeights {
    fn n_bytes(&self) -> u64 {
        self.matrices.iter().map(|m| m.n_bytes() as u64).sum()
    }
}

/// The part of an adapter for one matrix.
struct Adapter {
    rank: usize,
    /// `[rank, n_cols]`
    a: Vec<f32>,
    /// `[n_rows, rank]`
    b: Vec<f32>,
}

fn adapter_part(adapter: &LowRank<'_>) -> AdapterPart {
    let data = Adapter { rank: adapter.rank, a: adapter.a.to_vec(), b: adapter.b.to_vec() };
    AdapterPart { n_bytes: 4 * (data.a.len() + data.b.len()) as u64, data: Box::new(data) }
}

impl Device for Interpreter {
    fn name(&self) -> String {
        "interpreter".to_owned()
    }

    fn load_segment(&self, loader: &mut LayerLoader<'_>, layers: Range<usize>) -> Result<Box<dyn Segment>, ModelError> {
        let (config, kv_type, mut weights) = (loader.config(), loader.kv_type(), HostWeights::default());
        let taken = layers.clone().map(|layer| (layer, loader.layer(&self.cpu, layer)));
        let plan = Plan::of_layers(config, taken, &mut weights)?;
        let with_state = loader.layer_part().with_state(layers.clone());
        let states = HostStates::new(config, kv_type, with_state);
        let run = Run { cpu: self.cpu.clone(), config: config.clone(), plan, weights };
        Ok(Box::new(PlanSegment { run, layers, states }))
    }

    fn load_head(&self, loader: &mut LayerLoader<'_>) -> Result<Box<dyn Head>, ModelError> {
        let (config, mut weights) = (loader.config(), HostWeights::default());
        let head = loader.head(&self.cpu)?;
        let plan = Plan::of_head(config, head, &mut weights)?;
        Ok(Box::new(PlanHead { run: Run { cpu: self.cpu.clone(), config: config.clone(), plan, weights } }))
    }
}

/// A plan with its weights.
struct Run {
    cpu: Cpu,
    config: ModelConfig,
    plan: Plan,
    weights: HostWeights,
}

/// The inputs of a step, other than the rows.
struct Inputs<'a, 'b> {
    /// The step, the KV cache and the first layer of the segment; `None` in a head.
    step: Option<(&'a mut Step<'b>, &'a HostStates, usize)>,
    loras: &'a [AdaptedRows],
}

/// The memory of a step.
struct Memory {
    n_tokens: usize,
    buffers: BTreeMap<Buffer, Vec<f32>>,
    q32: Activations,
    q256: Activations,
    routing: Routing,
}

impl Memory {
    fn get(&self, buffer: Buffer) -> &[f32] {
        &self.buffers[&buffer]
    }

    fn get_mut(&mut self, buffer: Buffer) -> &mut Vec<f32> {
        self.buffers.get_mut(&buffer).expect("every buffer of the plan is there")
    }
}

impl Run {
    /// Runs the operations on `x`: `[n_tokens, dim]`.
    fn run(&self, x: &[f32], inputs: &mut Inputs<'_, '_>) -> Memory {
        let n_tokens = x.len() / self.config.dim;
        // Filled with NaN, so that reading an element that was never written is noticed.
        let fill = |shape: &crate::plan::Shape| vec![f32::NAN; n_tokens * shape.rows_per_token * shape.width];
        let buffers = self.plan.buffers.iter().map(|(&buffer, shape)| (buffer, fill(shape))).collect();
        let (q32, q256) = (Activations::new(), Activations::new());
        let mut memory = Memory { n_tokens, buffers, q32, q256, routing: Routing::default() };
        memory.get_mut(Buffer::X).copy_from_slice(x);
        for op in &self.plan.ops {
            self.op(op, &mut memory, inputs);
        }
        memory
    }

    fn vector(&self, id: usize) -> &[f32] {
        &self.weights.vectors[id]
    }

    fn width(&self, buffer: Buffer) -> usize {
        self.plan.shape(buffer).width
    }

    fn op(&self, op: &Op, m: &mut Memory, inputs: &mut Inputs<'_, '_>) {
        let (cpu, c) = (&self.cpu, &self.config);
        match *op {
            Op::Norm { from, weight, to } => {
                let mut out = Activations::new();
                let (x, weight, eps, kinds) =
                    (m.get(from), self.vector(weight.id), self.plan.eps, ActivationKinds::default());
                match self.plan.norm {
                    NormKind::Layer => cpu.layer_norm(x, weight, eps, kinds, &mut out),
                    _ => cpu.rms_norm(x, weight, eps, kinds, &mut out),
                }
                m.get_mut(to).copy_from_slice(out.values());
            }
            Op::NormHeads { of, weight } => {
                let n_heads = self.width(of) / weight.len;
                cpu.norm_heads(self.vector(weight.id), self.plan.eps, n_heads, m.get_mut(of));
            }
            Op::Quantize { from, kind, planes } => {
                let ty = match kind {
                    ActivationKind::Q8Block256 => fewbit_quant::TensorType::Q4_K,
                    _ => fewbit_quant::TensorType::Q8_0,
                };
                let kinds = ActivationKinds::of([ty]);
                let kinds = if planes == 2 { kinds.two_planes() } else { kinds };
                let mut form = Activations::new();
                cpu.activate(m.get(from), self.width(from), kinds, &mut form);
                *(if kind == ActivationKind::Q8Block256 { &mut m.q256 } else { &mut m.q32 }) = form;
            }
            Op::Product { w, from, planes, to, adds } => {
                let out = self.product(w, m.get(from), planes, m, &self.weights.matrices[w.id]);
                let to = m.get_mut(to);
                match adds {
                    true => to.iter_mut().zip(out).for_each(|(y, d)| *y += d),
                    false => to.copy_from_slice(&out),
                }
            }
            Op::Bias { vector, of } => cpu.add_bias(self.vector(vector.id), m.get_mut(of)),
            Op::Adapt { layer, target, from, to } => self.adapt((layer, target), from, to, m, inputs.loras),
            Op::Rotate { of, is_local } => {
                let (step, ..) = inputs.step.as_mut().expect("only layers rotate");
                let angles = if is_local { step.local } else { step.global };
                let n_heads = self.width(of) / self.plan.head_dim;
                cpu.rope(self.plan.rope, self.plan.head_dim, n_heads, &angles.cos, &angles.sin, m.get_mut(of));
            }
            Op::Temper { of } => {
                let (step, ..) = inputs.step.as_mut().expect("only layers have positions");
                let width = self.width(of);
                let rows = m.get_mut(of).chunks_exact_mut(width).zip(step.temperatures);
                rows.for_each(|(row, factor)| row.iter_mut().for_each(|q| *q *= factor));
            }
            // `Attend` appends as well, as in the CPU segment.
            Op::Append { .. } => {}
            Op::Attend { layer, sinks } => {
                let (step, states, first) = inputs.step.as_mut().expect("only layers attend");
                let mut out = std::mem::take(m.get_mut(Buffer::Attention));
                let qkv = [Buffer::Q, Buffer::K, Buffer::V].map(|buffer| m.get(buffer));
                let place = (layer, layer - *first);
                let sinks = sinks.map(|sinks| self.vector(sinks.id));
                states.append_and_attend(cpu, c, place, &mut step.sequences, qkv, sinks, &mut out);
                *m.get_mut(Buffer::Attention) = out;
            }
            Op::Gate { gate, up } => {
                let mut hidden = std::mem::take(m.get_mut(gate));
                cpu.gate(self.plan.gate, self.width(gate), &mut hidden, m.get(up));
                *m.get_mut(gate) = hidden;
            }
            Op::SquaredRelu { of } => {
                let width = self.width(of);
                cpu.squared_relu(width, m.get_mut(of));
            }
            Op::Route { choice_bias } => {
                let config = c.experts.as_ref().expect("routed only if there are experts");
                let mut routing = std::mem::take(&mut m.routing);
                let choice_bias = choice_bias.map(|bias| self.vector(bias.id));
                routing.route(config, choice_bias, m.get(Buffer::Scores));
                m.routing = routing;
            }
            Op::Weigh { from, to } => {
                let n_used = m.routing.chosen.len() / m.n_tokens;
                let width = self.width(from);
                let mut out = std::mem::take(m.get_mut(to));
                for (route, row) in out.chunks_exact_mut(width).enumerate() {
                    let x = &m.get(from)[route / n_used * width..][..width];
                    let weight = m.routing.chosen[route].1;
                    row.iter_mut().zip(x).for_each(|(y, &x)| *y = x * weight);
                }
                *m.get_mut(to) = out;
            }
            Op::ExpertBias { biases, of } => {
                let (width, biases) = (self.width(of), self.vector(biases.id));
                let mut rows = std::mem::take(m.get_mut(of));
                for (row, (expert, _)) in rows.chunks_exact_mut(width).zip(&m.routing.chosen) {
                    cpu.add_bias(&biases[expert * width..(expert + 1) * width], row);
                }
                *m.get_mut(of) = rows;
            }
            Op::ExpertProduct { w, from, to } => {
                let n_used = m.routing.chosen.len() / m.n_tokens;
                let per_token = self.plan.shape(from).rows_per_token;
                for route in 0..m.routing.chosen.len() {
                    let row = if per_token == 1 { route / n_used } else { route };
                    let expert = &self.weights.matrices[w.id + m.routing.chosen[route].0];
                    let all = self.product(w, m.get(from), 1, m, expert);
                    let out = &all[row * w.n_rows..(row + 1) * w.n_rows];
                    m.get_mut(to)[route * w.n_rows..(route + 1) * w.n_rows].copy_from_slice(out);
                }
            }
            Op::Combine { weighs, has_shared, has_shared_score } => {
                let n_used = m.routing.chosen.len() / m.n_tokens;
                let mut branch = std::mem::take(m.get_mut(Buffer::Branch));
                branch.fill(0.0);
                for (token, branch) in branch.chunks_exact_mut(c.dim).enumerate() {
                    for route in token * n_used..(token + 1) * n_used {
                        let out = &m.get(Buffer::ExpertOut)[route * c.dim..(route + 1) * c.dim];
                        cpu.add_scaled(branch, out, if weighs { m.routing.chosen[route].1 } else { 1.0 });
                    }
                    if has_shared {
                        let weight = if has_shared_score { sigmoid(m.get(Buffer::SharedScore)[token]) } else { 1.0 };
                        let out = &m.get(Buffer::SharedOut)[token * c.dim..(token + 1) * c.dim];
                        cpu.add_scaled(branch, out, weight);
                    }
                }
                *m.get_mut(Buffer::Branch) = branch;
            }
            Op::Add { factor } => {
                let mut x = std::mem::take(m.get_mut(Buffer::X));
                cpu.add_scaled(&mut x, m.get(Buffer::Branch), factor);
                *m.get_mut(Buffer::X) = x;
            }
            Op::Scale { of, factor } => m.get_mut(of).iter_mut().for_each(|y| *y *= factor),
            Op::Softcap { of, cap } => {
                let width = self.width(of);
                cpu.softcap(cap, width, m.get_mut(of));
            }
        }
    }

    /// The product of a matrix with all rows of `from`, in the form in which they were quantized last.
    fn product(&self, w: MatrixRef, from: &[f32], planes: usize, m: &Memory, matrix: &Matrix) -> Vec<f32> {
        let mut plain = Activations::new();
        let form = match w.kind() {
            ActivationKind::Q8Block32 => &m.q32,
            ActivationKind::Q8Block256 => &m.q256,
            ActivationKind::F32 => {
                self.cpu.activate(from, w.n_cols, ActivationKinds::default(), &mut plain);
                &plain
            }
        };
        assert!(form.values() == from || form.values().iter().any(|x| x.is_nan()), "the form is that of the input");
        let mut out = vec![0.0; form.n_rows() * w.n_rows];
        let planes = if planes == 1 { Planes::First } else { Planes::All };
        self.cpu.matmul_many(&mut [(matrix, &mut out, planes)], form);
        out
    }

    /// Applies adapters exactly as `lora` in `fewbit_model` defines it.
    fn adapt(&self, matrix: (usize, LoraTarget), from: Buffer, to: Buffer, m: &mut Memory, loras: &[AdaptedRows]) {
        let (n_cols, n_rows) = (self.width(from), self.width(to));
        let chain = |w: &[f32], x: &[f32]| w.iter().zip(x).fold(0.0f32, |acc, (w, x)| w.mul_add(*x, acc));
        for group in loras {
            let Some((data, part_scale)) = group.part(matrix.0, matrix.1) else { continue };
            let Adapter { rank, a, b } = data.downcast_ref().expect("made by this device");
            for (&row, scale) in group.rows().iter().zip(group.scales()) {
                let x = &m.get(from)[row * n_cols..(row + 1) * n_cols];
                let scale = part_scale * scale;
                let t: Vec<f32> = a.chunks_exact(n_cols).map(|a| chain(a, x) * scale).collect();
                let y = &mut m.get_mut(to)[row * n_rows..(row + 1) * n_rows];
                y.iter_mut().zip(b.chunks_exact(*rank)).for_each(|(y, b)| *y += chain(b, &t));
            }
        }
    }
}

struct PlanSegment {
    run: Run,
    layers: Range<usize>,
    states: HostStates,
}

impl Segment for PlanSegment {
    fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    fn weight_bytes(&self) -> u64 {
        self.run.weights.n_bytes()
    }

    fn states(&self) -> Arc<dyn StateStore> {
        self.states.store()
    }

    fn forward(&self, step: &mut Step<'_>, x: &mut [f32]) -> Result<(), ModelError> {
        refuse_collector(step, "interpreter")?;
        let loras = step.loras;
        let mut inputs = Inputs { step: Some((step, &self.states, self.layers.start)), loras };
        let memory = self.run.run(x, &mut inputs);
        x.copy_from_slice(memory.get(Buffer::X));
        Ok(())
    }

    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
        Ok(adapter_part(adapter))
    }
}

/// Refuses to measure an importance matrix, which needs the inputs of every matrix in host memory.
pub(crate) fn refuse_collector(step: &Step<'_>, device: &str) -> Result<(), ModelError> {
    match step.collector {
        None => Ok(()),
        Some(_) => {
            let what = "the measuring of an importance matrix".to_owned();
            Err(ModelError::Device { device: device.to_owned(), source: DeviceError::Unsupported { what } })
        }
    }
}

struct PlanHead {
    run: Run,
}

impl Head for PlanHead {
    fn n_vocab(&self) -> usize {
        self.run.width(Buffer::Logits)
    }

    fn weight_bytes(&self) -> u64 {
        self.run.weights.n_bytes()
    }

    fn norm(&self, rows: &mut [f32]) -> Result<(), ModelError> {
        let memory = self.run.run(rows, &mut Inputs { step: None, loras: &[] });
        rows.copy_from_slice(memory.get(Buffer::Normed));
        Ok(())
    }

    fn logits(&self, rows: &[f32], loras: &[AdaptedRows], out: &mut [f32]) -> Result<(), ModelError> {
        let memory = self.run.run(rows, &mut Inputs { step: None, loras });
        out.copy_from_slice(memory.get(Buffer::Logits));
        Ok(())
    }

    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
        Ok(adapter_part(adapter))
    }
}
