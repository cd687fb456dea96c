//! What a segment of layers or a head computes, as a list of operations over named buffers.
//!
//! ```text
//! each layer   Norm x -> normed, Quantize normed, Product q k v [Bias] [Adapt], [NormHeads], [Rotate], [Temper],
//!              Append, Attend -> attention
//!              Quantize attention, Product -> x [Bias] [Adapt]     or, where it is normed or scaled first,
//!                Product -> branch [Bias] [Adapt], [NormHeads of one head], Add -> x
//!              Norm x -> normed, Quantize normed, then of a dense part
//!                Product gate up [Bias] [Adapt], Gate, Quantize gate, Product -> x as above
//!              or of experts
//!                Product -> scores, Route, ExpertProduct gate up, Gate, Quantize, ExpertProduct -> outputs,
//!                [the shared expert], Combine -> branch, [NormHeads], Add -> x
//! head         Norm x -> normed, Quantize normed (two planes), Product -> logits [Bias] [Adapt], [Scale], [Softcap]
//! ```
//! Every operation is defined by what the CPU's segment does, down to the order of its float operations; the order of
//! the list is one in which no operation reads what a later one writes. Operations know their shapes but not the number
//! of rows, which a step brings. A backend is free to run several of them as one (norm and quantize; a product and
//! what is done with it; append and attend), as long as it keeps their definitions: nothing but the last of a run is
//! read later if [`Plan::is_read_later`] says so.
//!
//! A buffer has a number of rows for each token, and a width. Besides the buffers there are two quantized forms
//! ([`ActivationKind`]), of which each holds what was quantized last, and the routes of every token.

use fewbit_kernels::{GateFunction, Matrix, RopeStyle};
use fewbit_model::weights::{Experts, FeedForward, HeadWeights, Layer, Linear, Mlp};
use fewbit_model::{LoraTarget, ModelConfig, ModelError};
use fewbit_quant::{ActivationKind, TensorType};
use std::collections::BTreeMap;

/// Rows of numbers on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Buffer {
    /// The residual stream: what goes into the plan, and out of a segment's.
    X,
    /// Its norm.
    Normed,
    /// Queries.
    Q,
    /// New keys.
    K,
    /// New values.
    V,
    /// What attention gives.
    Attention,
    /// Products of the gate, then the hidden layer of the feed-forward part.
    Gate,
    /// What the gate is multiplied with.
    Up,
    /// What is added to the residual stream after it was normed or scaled.
    Branch,
    /// Scores of the experts.
    Scores,
    /// As [`Gate`](Self::Gate), of routed experts: a row for each route.
    ExpertGate,
    /// As [`Up`](Self::Up), of routed experts.
    ExpertUp,
    /// Outputs of routed experts.
    ExpertOut,
    /// As [`Gate`](Self::Gate), of the expert that every token goes through.
    SharedGate,
    /// As [`Up`](Self::Up), of that expert.
    SharedUp,
    /// The output of that expert.
    SharedOut,
    /// Its score.
    SharedScore,
    /// Logits.
    Logits,
}

/// The rows of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows for each token: 1, or the experts that a token goes through.
    pub rows_per_token: usize,
    /// Numbers of a row.
    pub width: usize,
}

/// A matrix on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixRef {
    /// What the device calls it.
    pub id: usize,
    /// The type of its weights.
    pub ty: TensorType,
    /// Outputs.
    pub n_rows: usize,
    /// Inputs.
    pub n_cols: usize,
}

impl MatrixRef {
    /// How its input is quantized.
    pub fn kind(&self) -> ActivationKind {
        ActivationKind::of(self.ty).expect("checked when the matrix was packed")
    }
}

/// A vector on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorRef {
    /// What the device calls it.
    pub id: usize,
    /// Its length.
    pub len: usize,
}

/// One operation. `eps` is the model's.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `to = from / sqrt(mean(from^2) + eps) * weight`, each row.
    Norm {
        /// Rows.
        from: Buffer,
        /// Of the same width.
        weight: VectorRef,
        /// Their norms.
        to: Buffer,
    },
    /// The same in place, of every part of a row that is as long as `weight`.
    NormHeads {
        /// Rows.
        of: Buffer,
        /// Of the width of a part.
        weight: VectorRef,
    },
    /// Makes rows the quantized form of this kind, and of two planes also what the first lost.
    Quantize {
        /// Rows.
        from: Buffer,
        /// Blocks of 32 or 256.
        kind: ActivationKind,
        /// 1 or 2.
        planes: usize,
    },
    /// `to = w from`, or `to += w from`. Quantized matrices read the quantized form of their kind, made of `from`.
    Product {
        /// The matrix.
        w: MatrixRef,
        /// Its input.
        from: Buffer,
        /// Planes of the input that it takes.
        planes: usize,
        /// Its output.
        to: Buffer,
        /// Whether it is added to what is there.
        adds: bool,
    },
    /// `of += vector`, each row.
    Bias {
        /// Of the width of the rows.
        vector: VectorRef,
        /// Rows.
        of: Buffer,
    },
    /// Adds to rows of `to` what their adapters make of the same rows of `from`; see `fewbit_model`'s `lora`.
    Adapt {
        /// The layer of the matrix; 0 of the output matrix.
        layer: usize,
        /// Which matrix it belongs to.
        target: LoraTarget,
        /// Input of the matrix, before it is quantized.
        from: Buffer,
        /// Output of the matrix.
        to: Buffer,
    },
    /// Rotates every head by its row's position.
    Rotate {
        /// Rows of heads.
        of: Buffer,
        /// By the angles of local layers.
        is_local: bool,
    },
    /// Multiplies every row with its position's factor.
    Temper {
        /// Rows.
        of: Buffer,
    },
    /// Appends keys and values to the pages of their sequences.
    Append {
        /// The layer, counted in the model.
        layer: usize,
    },
    /// Attention of the queries over the pages of their sequences.
    Attend {
        /// The layer, counted in the model.
        layer: usize,
    },
    /// `gate = f(gate) * up`.
    Gate {
        /// Rows, in place.
        gate: Buffer,
        /// Rows of the same shape.
        up: Buffer,
    },
    /// Chooses the experts of every token by its scores; see `fewbit_model`'s `routing`.
    Route,
    /// Of every route, the product with its expert's matrix. Rows of `from` are tokens or routes.
    ExpertProduct {
        /// The matrices of all experts, of one type and shape; the first of them.
        w: MatrixRef,
        /// Their input.
        from: Buffer,
        /// Their output: a row for each route.
        to: Buffer,
    },
    /// `branch = 0`, then `+= weight * output` for each route of a token, best first, then for the shared expert, whose
    /// weight is 1 or the sigmoid of its score.
    Combine {
        /// Whether there is a shared expert.
        has_shared: bool,
        /// Whether it has a score.
        has_shared_score: bool,
    },
    /// `x += factor * branch`, fused.
    Add {
        /// The factor.
        factor: f32,
    },
    /// `of *= factor`.
    Scale {
        /// Rows.
        of: Buffer,
        /// The factor.
        factor: f32,
    },
    /// `of = cap * tanh(of / cap)`.
    Softcap {
        /// Rows.
        of: Buffer,
        /// The cap.
        cap: f32,
    },
}

/// Operations, and the buffers that they use.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In order.
    pub ops: Vec<Op>,
    /// Shapes of all buffers.
    pub buffers: BTreeMap<Buffer, Shape>,
    /// Numbers of a head.
    pub head_dim: usize,
    /// Of every norm.
    pub eps: f32,
    /// Of every gate.
    pub gate: GateFunction,
    /// How heads are rotated.
    pub rope: RopeStyle,
}

/// Where a device takes the weights of a plan.
pub trait Weights {
    /// The device's name, for errors.
    fn device(&self) -> &str;

    /// Takes a matrix, and says what it is called.
    ///
    /// # Errors
    /// If the device has no room for it, or no code for its type.
    fn matrix(&mut self, matrix: Matrix) -> Result<usize, ModelError>;

    /// Takes the matrices of all experts, which have one type and shape.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    fn experts(&mut self, matrices: Vec<Matrix>) -> Result<usize, ModelError>;

    /// Takes a vector.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    fn vector(&mut self, vector: Vec<f32>) -> Result<usize, ModelError>;
}

/// A matrix and its bias, on the device.
type Placed = (MatrixRef, Option<VectorRef>);

/// Adds operations to a plan, and puts the weights that they need on the device.
struct Planner<'a> {
    config: &'a ModelConfig,
    weights: &'a mut dyn Weights,
    plan: Plan,
}

impl Plan {
    /// An empty plan.
    fn new(config: &ModelConfig) -> Self {
        let buffers = BTreeMap::from([(Buffer::X, Shape { rows_per_token: 1, width: config.dim })]);
        let (head_dim, eps) = (config.head_dim, config.rms_norm_eps);
        Self { ops: Vec::new(), buffers, head_dim, eps, gate: config.gate, rope: config.rope.style }
    }

    /// The plan of some layers; `layers` gives the weights of each in turn.
    ///
    /// # Errors
    /// Those of `layers`, and of the device.
    pub fn of_layers(
        config: &ModelConfig,
        layers: impl Iterator<Item = (usize, Result<Layer, ModelError>)>,
        weights: &mut dyn Weights,
    ) -> Result<Self, ModelError> {
        let mut planner = Planner { config, weights, plan: Self::new(config) };
        for (index, layer) in layers {
            planner.layer(index, layer?)?;
        }
        Ok(planner.plan)
    }

    /// The plan of what follows the last layer.
    ///
    /// # Errors
    /// Those of the device.
    pub fn of_head(config: &ModelConfig, head: HeadWeights, weights: &mut dyn Weights) -> Result<Self, ModelError> {
        let mut p = Planner { config, weights, plan: Self::new(config) };
        let HeadWeights { norm, output, .. } = head;
        p.norm(norm, Buffer::X, Buffer::Normed)?;
        let output = p.place(output)?;
        // Two planes: nothing averages out the error of a logit, and few rows come this far.
        p.quantize(Buffer::Normed, &[output.0], 2);
        p.product(output, Buffer::Normed, 2, Buffer::Logits, Some((0, LoraTarget::Output)));
        if config.logit_scale != 1.0 {
            p.plan.ops.push(Op::Scale { of: Buffer::Logits, factor: config.logit_scale });
        }
        if let Some(cap) = config.logit_softcap {
            p.plan.ops.push(Op::Softcap { of: Buffer::Logits, cap });
        }
        Ok(p.plan)
    }

    /// The shape of a buffer of the plan.
    ///
    /// # Panics
    /// If it has none such.
    pub fn shape(&self, buffer: Buffer) -> Shape {
        self.buffers[&buffer]
    }

    /// Bytes of all buffers and quantized forms for a step of `n_tokens`.
    pub fn scratch_bytes(&self, n_tokens: usize) -> u64 {
        let rows = self.buffers.values().map(|s| (s.rows_per_token * s.width) as u64 * 4);
        // Codes, a scale and a sum for each block, of two planes.
        let quantized = [ActivationKind::Q8Block32, ActivationKind::Q8Block256]
            .into_iter()
            .map(|kind| self.quantized_elems(kind) as u64 * 2)
            .sum::<u64>();
        (rows.sum::<u64>() + quantized).saturating_mul(n_tokens as u64)
    }

    /// Elements of one token that the quantized form of this kind must have room for, all planes together.
    pub fn quantized_elems(&self, kind: ActivationKind) -> usize {
        let of = |op: &Op| match op {
            Op::Quantize { from, kind: k, planes } if *k == kind => {
                let shape = self.shape(*from);
                shape.rows_per_token * shape.width * planes
            }
            _ => 0,
        };
        self.ops.iter().map(of).max().unwrap_or(0)
    }

    /// Whether an operation after the `i`-th reads what is in `buffer` after it.
    pub fn is_read_later(&self, i: usize, buffer: Buffer) -> bool {
        for op in &self.ops[i + 1..] {
            if op.reads().contains(&buffer) {
                return true;
            }
            if op.writes() == Some(buffer) {
                return false;
            }
        }
        // A segment's result is its residual stream, a head's its logits.
        [Buffer::X, Buffer::Logits].contains(&buffer)
    }
}

impl Op {
    /// The buffers that it reads; an operation in place reads what it writes.
    pub fn reads(&self) -> Vec<Buffer> {
        match self {
            Self::Norm { from, .. } | Self::Quantize { from, .. } => vec![*from],
            Self::Product { from, to, adds: true, .. } => vec![*from, *to],
            Self::Product { from, .. } | Self::ExpertProduct { from, .. } => vec![*from],
            Self::Adapt { from, to, .. } => vec![*from, *to],
            Self::NormHeads { of, .. } | Self::Bias { of, .. } | Self::Rotate { of, .. } | Self::Temper { of } => {
                vec![*of]
            }
            Self::Scale { of, .. } | Self::Softcap { of, .. } => vec![*of],
            Self::Append { .. } => vec![Buffer::K, Buffer::V],
            Self::Attend { .. } => vec![Buffer::Q],
            Self::Gate { gate, up } => vec![*gate, *up],
            Self::Route => vec![Buffer::Scores],
            Self::Combine { has_shared, has_shared_score } => {
                let shared = [(*has_shared, Buffer::SharedOut), (*has_shared_score, Buffer::SharedScore)];
                let shared = shared.into_iter().filter(|(is_there, _)| *is_there).map(|(_, buffer)| buffer);
                [Buffer::ExpertOut].into_iter().chain(shared).collect()
            }
            Self::Add { .. } => vec![Buffer::X, Buffer::Branch],
        }
    }

    /// The buffer that it writes.
    pub fn writes(&self) -> Option<Buffer> {
        Some(match self {
            Self::Norm { to, .. } | Self::Product { to, .. } | Self::ExpertProduct { to, .. } => *to,
            Self::Adapt { to, .. } => *to,
            Self::NormHeads { of, .. } | Self::Bias { of, .. } | Self::Rotate { of, .. } | Self::Temper { of } => *of,
            Self::Scale { of, .. } | Self::Softcap { of, .. } => *of,
            Self::Attend { .. } => Buffer::Attention,
            Self::Gate { gate, .. } => *gate,
            Self::Combine { .. } => Buffer::Branch,
            Self::Add { .. } => Buffer::X,
            Self::Quantize { .. } | Self::Append { .. } | Self::Route => return None,
        })
    }
}

impl Planner<'_> {
    fn layer(&mut self, index: usize, layer: Layer) -> Result<(), ModelError> {
        let c = self.config;
        let Layer { attn_norm, q, k, v, qk_norm, attn_output, attn_post_norm, ffn_norm, ffn, ffn_post_norm, .. } =
            layer;
        self.norm(attn_norm, Buffer::X, Buffer::Normed)?;
        let parts = [
            (self.place(q)?, Buffer::Q, LoraTarget::Q),
            (self.place(k)?, Buffer::K, LoraTarget::K),
            (self.place(v)?, Buffer::V, LoraTarget::V),
        ];
        // Keys and values are kept and met again: their input has two planes, and that of queries one.
        self.quantize(Buffer::Normed, &parts.map(|((w, _), ..)| w), 2);
        for (i, (w, to, target)) in parts.into_iter().enumerate() {
            let planes = if i == 0 { 1 } else { 2 };
            self.product(w, Buffer::Normed, planes, to, Some((index, target)));
        }
        if let Some((q_norm, k_norm)) = qk_norm {
            self.norm_heads(Buffer::Q, q_norm)?;
            self.norm_heads(Buffer::K, k_norm)?;
        }
        if c.layers[index].has_rope {
            let is_local = c.uses_local_rope(index);
            self.plan.ops.extend([Buffer::Q, Buffer::K].map(|of| Op::Rotate { of, is_local }));
        }
        if c.attention_temperature.is_some() {
            self.plan.ops.push(Op::Temper { of: Buffer::Q });
        }
        self.use_buffer(Buffer::Attention, 1, c.n_heads * c.head_dim);
        self.plan.ops.extend([Op::Append { layer: index }, Op::Attend { layer: index }]);
        let attn_output = self.place(attn_output)?;
        self.quantize(Buffer::Attention, &[attn_output.0], 1);
        self.add_product(attn_output, Buffer::Attention, (index, LoraTarget::AttnOutput), attn_post_norm)?;

        self.norm(ffn_norm, Buffer::X, Buffer::Normed)?;
        match ffn {
            FeedForward::Dense(mlp) => {
                let mlp = self.place_mlp(mlp)?;
                self.quantize(Buffer::Normed, &[mlp[0].0, mlp[1].0], 1);
                self.hidden(index, &mlp, [Buffer::Gate, Buffer::Up]);
                self.add_product(mlp[2], Buffer::Gate, (index, LoraTarget::Down), ffn_post_norm)
            }
            FeedForward::Experts(experts) => {
                self.experts(index, experts)?;
                self.add_branch(ffn_post_norm)
            }
            _ => Err(self.unsupported("this kind of feed-forward part")),
        }
    }

    /// `gate = f(gate x) * (up x)`, quantized for the next product.
    fn hidden(&mut self, index: usize, &[gate, up, down]: &[Placed; 3], to: [Buffer; 2]) {
        self.product(gate, Buffer::Normed, 1, to[0], Some((index, LoraTarget::Gate)));
        self.product(up, Buffer::Normed, 1, to[1], Some((index, LoraTarget::Up)));
        self.plan.ops.push(Op::Gate { gate: to[0], up: to[1] });
        self.quantize(to[0], &[down.0], 1);
    }

    fn experts(&mut self, index: usize, experts: Experts) -> Result<(), ModelError> {
        let config = self.config.experts.expect("layers have experts only if the model has");
        let Experts { router, experts, shared, shared_router, .. } = experts;
        let n_used = config.n_used;
        let router = self.place_matrix(router)?;
        let (mut gates, mut ups, mut downs) = (Vec::new(), Vec::new(), Vec::new());
        for Mlp { gate, up, down, .. } in experts {
            gates.push(gate.weight);
            ups.push(up.weight);
            downs.push(down.weight);
        }
        let (gates, ups, downs) = (self.place_experts(gates)?, self.place_experts(ups)?, self.place_experts(downs)?);
        let shared = shared.map(|mlp| self.place_mlp(mlp)).transpose()?;
        let shared_router = shared_router.map(|router| self.place_matrix(router)).transpose()?;
        let mut inputs = vec![router, gates, ups];
        inputs.extend(shared.iter().flat_map(|mlp| [mlp[0].0, mlp[1].0]));
        inputs.extend(shared_router);
        self.quantize(Buffer::Normed, &inputs, 1);

        self.product((router, None), Buffer::Normed, 1, Buffer::Scores, None);
        self.plan.ops.push(Op::Route);
        for (w, to) in [(gates, Buffer::ExpertGate), (ups, Buffer::ExpertUp)] {
            self.use_buffer(to, n_used, config.ffn_dim);
            self.plan.ops.push(Op::ExpertProduct { w, from: Buffer::Normed, to });
        }
        if let Some(router) = shared_router {
            self.product((router, None), Buffer::Normed, 1, Buffer::SharedScore, None);
        }
        if let Some(mlp) = &shared {
            // Both quantize their hidden layers: the shared expert comes first, because it reads the input's form.
            self.hidden(index, mlp, [Buffer::SharedGate, Buffer::SharedUp]);
            self.product(mlp[2], Buffer::SharedGate, 1, Buffer::SharedOut, None);
        }
        self.plan.ops.push(Op::Gate { gate: Buffer::ExpertGate, up: Buffer::ExpertUp });
        self.quantize(Buffer::ExpertGate, &[downs], 1);
        self.use_buffer(Buffer::ExpertOut, n_used, self.config.dim);
        self.plan.ops.push(Op::ExpertProduct { w: downs, from: Buffer::ExpertGate, to: Buffer::ExpertOut });
        self.use_buffer(Buffer::Branch, 1, self.config.dim);
        let (has_shared, has_shared_score) = (shared.is_some(), shared_router.is_some());
        self.plan.ops.push(Op::Combine { has_shared, has_shared_score });
        Ok(())
    }

    /// Adds a product to the residual stream.
    fn add_product(
        &mut self,
        w: Placed,
        from: Buffer,
        adapted: (usize, LoraTarget),
        post_norm: Option<Vec<f32>>,
    ) -> Result<(), ModelError> {
        if post_norm.is_none() && self.config.residual_scale == 1.0 {
            self.any_product(w, from, 1, Buffer::X, Some(adapted), true);
            return Ok(());
        }
        self.product(w, from, 1, Buffer::Branch, Some(adapted));
        self.add_branch(post_norm)
    }

    fn add_branch(&mut self, post_norm: Option<Vec<f32>>) -> Result<(), ModelError> {
        if let Some(weight) = post_norm {
            self.norm_heads(Buffer::Branch, weight)?;
        }
        self.plan.ops.push(Op::Add { factor: self.config.residual_scale });
        Ok(())
    }

    fn product(&mut self, w: Placed, from: Buffer, planes: usize, to: Buffer, adapted: Option<(usize, LoraTarget)>) {
        self.any_product(w, from, planes, to, adapted, false);
    }

    fn any_product(
        &mut self,
        (w, bias): Placed,
        from: Buffer,
        planes: usize,
        to: Buffer,
        adapted: Option<(usize, LoraTarget)>,
        adds: bool,
    ) {
        self.use_buffer(to, 1, w.n_rows);
        self.plan.ops.push(Op::Product { w, from, planes, to, adds });
        self.plan.ops.extend(bias.map(|vector| Op::Bias { vector, of: to }));
        self.plan.ops.extend(adapted.map(|(layer, target)| Op::Adapt { layer, target, from, to }));
    }

    /// Quantizes rows for all these matrices.
    fn quantize(&mut self, from: Buffer, matrices: &[MatrixRef], planes: usize) {
        for kind in [ActivationKind::Q8Block32, ActivationKind::Q8Block256] {
            if matrices.iter().any(|w| w.kind() == kind) {
                self.plan.ops.push(Op::Quantize { from, kind, planes });
            }
        }
    }

    fn norm(&mut self, weight: Vec<f32>, from: Buffer, to: Buffer) -> Result<(), ModelError> {
        let weight = self.place_vector(weight)?;
        self.use_buffer(to, 1, weight.len);
        self.plan.ops.push(Op::Norm { from, weight, to });
        Ok(())
    }

    fn norm_heads(&mut self, of: Buffer, weight: Vec<f32>) -> Result<(), ModelError> {
        let weight = self.place_vector(weight)?;
        self.plan.ops.push(Op::NormHeads { of, weight });
        Ok(())
    }

    /// Makes a buffer as wide as this, if it is not: layers may differ.
    fn use_buffer(&mut self, buffer: Buffer, rows_per_token: usize, width: usize) {
        let shape = Shape { rows_per_token, width };
        let known = *self.plan.buffers.entry(buffer).or_insert(shape);
        assert_eq!(known, shape, "{buffer:?} has one shape in all layers of a model");
    }

    fn place(&mut self, linear: Linear) -> Result<Placed, ModelError> {
        let bias = linear.bias.map(|bias| self.place_vector(bias)).transpose()?;
        Ok((self.place_matrix(linear.weight)?, bias))
    }

    fn place_mlp(&mut self, mlp: Mlp) -> Result<[Placed; 3], ModelError> {
        Ok([self.place(mlp.gate)?, self.place(mlp.up)?, self.place(mlp.down)?])
    }

    fn place_matrix(&mut self, matrix: Matrix) -> Result<MatrixRef, ModelError> {
        let (ty, n_rows, n_cols) = (matrix.ty(), matrix.n_rows(), matrix.n_cols());
        Ok(MatrixRef { id: self.weights.matrix(matrix)?, ty, n_rows, n_cols })
    }

    fn place_experts(&mut self, matrices: Vec<Matrix>) -> Result<MatrixRef, ModelError> {
        let first = matrices.first().expect("at least one expert");
        let (ty, n_rows, n_cols) = (first.ty(), first.n_rows(), first.n_cols());
        if matrices.iter().any(|m| (m.ty(), m.n_rows(), m.n_cols()) != (ty, n_rows, n_cols)) {
            return Err(self.unsupported("experts of different weight types in one layer"));
        }
        Ok(MatrixRef { id: self.weights.experts(matrices)?, ty, n_rows, n_cols })
    }

    fn place_vector(&mut self, vector: Vec<f32>) -> Result<VectorRef, ModelError> {
        let len = vector.len();
        Ok(VectorRef { id: self.weights.vector(vector)?, len })
    }

    fn unsupported(&self, what: &str) -> ModelError {
        let source = fewbit_model::DeviceError::Unsupported { what: what.to_owned() };
        ModelError::Device { device: self.weights.device().to_owned(), source }
    }
}
