//! What a segment of layers or a head computes, as a list of operations on named buffers.
//!
//! ```text
//! each layer   [Norm x -> normed], Quantize normed (or x), Product q k v [Bias] [Adapt], [NormHeads], [Rotate],
//!              [NormHeads], [Temper], Append, Attend -> attention
//!              Quantize attention, Product -> x [Bias] [Adapt]     or, where it is normed or scaled first,
//!                Product -> branch [Bias] [Adapt], [NormHeads of one head], Add -> x
//!              [Norm x -> normed], Quantize normed (or x; or what was normed for attention), then of a dense part
//!                Product gate up [Bias] [Adapt], Gate, Quantize gate, Product -> x as above
//!                or, without gates, Product up [Bias] [Adapt], SquaredRelu, Quantize up, Product -> x
//!              or of experts
//!                Product -> scores [Bias], Route, [the shared expert], [Weigh -> expert inputs, Quantize],
//!                ExpertProduct gate up [ExpertBias], Gate, Quantize, ExpertProduct -> outputs [ExpertBias],
//!                Combine -> branch, [NormHeads], Add -> x
//! head         Norm x -> normed, Quantize normed (two planes), Product -> logits [Bias] [Adapt], [Scale], [Softcap]
//! ```
//! Every operation is defined by what the CPU segment does, down to the order of its float operations. The operations
//! are listed in execution order. They know their shapes but not the number of rows, which comes with each step. A
//! backend may fuse several of them (norm and quantize; a product and what follows it; append and attend), as long as
//! the results stay the same. It does not need to store an intermediate result that no later operation reads, as
//! [`Plan::is_read_later`] tells.
//!
//! A buffer has a number of rows per token, and a width. In addition to the buffers there are two quantized forms
//! ([`ActivationKind`]), each of which holds what was quantized last, and the expert routes of every token.

use fewbit_kernels::{GateFunction, Matrix, RopeStyle};
use fewbit_model::weights::{Attention, Experts, FeedForward, Ffn, HeadWeights, Layer, Linear, Mlp};
use fewbit_model::{ExpertConfig, LoraTarget, ModelConfig, ModelError, NormKind, QkNorm};
use fewbit_quant::{ActivationKind, TensorType};
use std::collections::BTreeMap;

/// A buffer of rows of numbers on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Buffer {
    /// The residual stream: the input of a plan, and the output of a segment's plan.
    X,
    /// The normalized residual stream.
    Normed,
    /// Queries.
    Q,
    /// New keys.
    K,
    /// New values.
    V,
    /// The output of attention.
    Attention,
    /// The product with the gate matrix, then the hidden layer of the feed-forward part.
    Gate,
    /// The product with the up matrix, by which the gate is multiplied.
    Up,
    /// An output that is normalized or scaled before it is added to the residual stream.
    Branch,
    /// Scores of the experts.
    Scores,
    /// What experts are chosen by, where that is not their weight; then the sums of their groups.
    Choices,
    /// Inputs of routed experts that are multiplied by the weights of their routes: one row per route.
    ExpertIn,
    /// Like [`Gate`](Self::Gate), for routed experts: one row per route.
    ExpertGate,
    /// Like [`Up`](Self::Up), for routed experts.
    ExpertUp,
    /// Outputs of routed experts.
    ExpertOut,
    /// Like [`Gate`](Self::Gate), for the shared expert, which every token uses.
    SharedGate,
    /// Like [`Up`](Self::Up), for the shared expert.
    SharedUp,
    /// The output of the shared expert.
    SharedOut,
    /// The score of the shared expert.
    SharedScore,
    /// Logits.
    Logits,
}

/// The shape of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows per token: 1, or the number of experts that each token uses.
    pub rows_per_token: usize,
    /// Numbers per row.
    pub width: usize,
}

/// A matrix on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixRef {
    /// Its id on the device.
    pub id: usize,
    /// The type of its weights.
    pub ty: TensorType,
    /// Rows, which is the length of the output.
    pub n_rows: usize,
    /// Columns, which is the length of the input.
    pub n_cols: usize,
}

impl MatrixRef {
    /// How the input of its products is quantized.
    pub fn kind(&self) -> ActivationKind {
        ActivationKind::of(self.ty).expect("checked when the matrix was packed")
    }
}

/// A vector on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorRef {
    /// Its id on the device.
    pub id: usize,
    /// Its length.
    pub len: usize,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The norm [`Plan::norm`] of each row, with [`Plan::eps`]: `to = from / sqrt(mean(from^2) + eps) * weight`, or the
    /// same of `from - mean(from)`.
    Norm {
        /// Rows.
        from: Buffer,
        /// The weights, as many as a row is wide.
        weight: VectorRef,
        /// The normalized rows.
        to: Buffer,
    },
    /// RMS norm in place of every part of a row (such as a head) that is as long as `weight`.
    NormHeads {
        /// Rows.
        of: Buffer,
        /// The weights, as many as a part is wide.
        weight: VectorRef,
    },
    /// Quantizes rows to the form of this kind. With two planes, the second one is the rounding error of the first,
    /// quantized.
    Quantize {
        /// Rows.
        from: Buffer,
        /// The quantized form: blocks of 32 or 256.
        kind: ActivationKind,
        /// 1 or 2.
        planes: usize,
    },
    /// Matrix product: `to = w from`, or `to += w from`. Quantized matrices read the quantized form of `from`.
    Product {
        /// The matrix.
        w: MatrixRef,
        /// Its input.
        from: Buffer,
        /// How many planes of the input are used.
        planes: usize,
        /// Its output.
        to: Buffer,
        /// Whether the product is added to the content of `to`.
        adds: bool,
    },
    /// `of += vector`, for each row.
    Bias {
        /// The vector, as long as a row.
        vector: VectorRef,
        /// Rows.
        of: Buffer,
    },
    /// Adds the LoRA adapters' products with rows of `from` to the same rows of `to`; see `lora` in `fewbit_model`.
    Adapt {
        /// The layer of the matrix; 0 for the output matrix.
        layer: usize,
        /// The matrix that is adapted.
        target: LoraTarget,
        /// The input of the matrix, before it is quantized.
        from: Buffer,
        /// The output of the matrix.
        to: Buffer,
    },
    /// Rotary position embedding: rotates every head according to the position of its row.
    Rotate {
        /// Rows of heads.
        of: Buffer,
        /// Whether to use the angles of local layers.
        is_local: bool,
    },
    /// Multiplies every row by the temperature factor of its position.
    Temper {
        /// Rows.
        of: Buffer,
    },
    /// Appends keys and values to the KV cache pages of their sequences.
    Append {
        /// The index of the layer in the model.
        layer: usize,
    },
    /// Attention of the queries over the KV cache pages of their sequences.
    Attend {
        /// The index of the layer in the model.
        layer: usize,
        /// The sink of every query head, in models with sinks.
        sinks: Option<VectorRef>,
    },
    /// `gate = f(gate) * up`, or what else [`Plan::gate`] is.
    Gate {
        /// The rows that are changed in place.
        gate: Buffer,
        /// Rows of the same shape.
        up: Buffer,
    },
    /// `of = max(of, 0)^2`.
    SquaredRelu {
        /// Rows.
        of: Buffer,
    },
    /// Chooses the experts of every token by its scores; see `routing` in `fewbit_model`. The scores are used up.
    Route {
        /// What is added to the weights of experts to choose some of them.
        choice_bias: Option<VectorRef>,
    },
    /// `to = weight * from` for every route: its weight, and the row of its token.
    Weigh {
        /// One row per token.
        from: Buffer,
        /// One row per route.
        to: Buffer,
    },
    /// `of += bias` for every route, with the bias of its expert.
    ExpertBias {
        /// The biases of all experts, one after another.
        biases: VectorRef,
        /// One row per route.
        of: Buffer,
    },
    /// For every route, the product with the matrix of its expert. `from` has one row per token or per route.
    ExpertProduct {
        /// The first matrix of the experts, which all have the same type and shape.
        w: MatrixRef,
        /// Their input.
        from: Buffer,
        /// Their output: one row per route.
        to: Buffer,
    },
    /// Sums the outputs of the experts: `branch = 0`, then `+= weight * output` for each route of a token, best first,
    /// then for the shared expert, whose weight is 1 or the sigmoid of its score. Where inputs were weighted
    /// ([`Weigh`](Self::Weigh)), the weights of outputs are 1.
    Combine {
        /// Whether outputs are weighted.
        weighs: bool,
        /// Whether there is a shared expert.
        has_shared: bool,
        /// Whether the shared expert has a score.
        has_shared_score: bool,
    },
    /// `x += factor * branch`, as fused multiply-adds.
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

/// The operations of a segment or a head, and the buffers that they use.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The operations, in execution order.
    pub ops: Vec<Op>,
    /// The shapes of all buffers.
    pub buffers: BTreeMap<Buffer, Shape>,
    /// The size of an attention head.
    pub head_dim: usize,
    /// The norm of the residual stream.
    pub norm: NormKind,
    /// The epsilon of all norms.
    pub eps: f32,
    /// The activation function of all gates.
    pub gate: GateFunction,
    /// The style of rotary embedding.
    pub rope: RopeStyle,
}

/// Receives the weights of a plan for a device.
pub trait Weights {
    /// The name of the device, for errors.
    fn device(&self) -> &str;

    /// Uploads a matrix. Returns its id.
    ///
    /// # Errors
    /// If the device has not enough memory, or does not support the type.
    fn matrix(&mut self, matrix: Matrix) -> Result<usize, ModelError>;

    /// Uploads the matrices of all experts, which have the same type and shape. Returns the id of the first.
    ///
    /// # Errors
    /// The errors of [`matrix`](Self::matrix).
    fn experts(&mut self, matrices: Vec<Matrix>) -> Result<usize, ModelError>;

    /// Uploads a vector. Returns its id.
    ///
    /// # Errors
    /// The errors of [`matrix`](Self::matrix).
    fn vector(&mut self, vector: Vec<f32>) -> Result<usize, ModelError>;
}

/// A matrix and its bias, on the device.
type Placed = (MatrixRef, Option<VectorRef>);

/// Builds a plan, and uploads the weights that it needs.
struct Planner<'a> {
    config: &'a ModelConfig,
    weights: &'a mut dyn Weights,
    plan: Plan,
}

impl Plan {
    /// An empty plan.
    fn new(config: &ModelConfig) -> Self {
        let buffers = BTreeMap::from([(Buffer::X, Shape { rows_per_token: 1, width: config.dim })]);
        let (head_dim, norm, eps) = (config.head_dim, config.norm, config.rms_norm_eps);
        Self { ops: Vec::new(), buffers, head_dim, norm, eps, gate: config.gate, rope: config.rope.style }
    }

    /// Builds the plan of some layers. `layers` yields the index and the weights of each.
    ///
    /// # Errors
    /// The errors of `layers` and of the device.
    pub fn of_layers(
        config: &ModelConfig,
        layers: impl Iterator<Item = (usize, Result<Layer, ModelError>)>,
        weights: &mut dyn Weights,
    ) -> Result<Self, ModelError> {
        let mut planner = Planner { config, weights, plan: Self::new(config) };
        if let Some(what) = config.only_on_cpu() {
            return Err(planner.unsupported(what));
        }
        for (index, layer) in layers {
            planner.layer(index, layer?)?;
        }
        Ok(planner.plan)
    }

    /// Builds the plan of the head, which follows the last layer.
    ///
    /// # Errors
    /// The errors of the device.
    pub fn of_head(config: &ModelConfig, head: HeadWeights, weights: &mut dyn Weights) -> Result<Self, ModelError> {
        let mut p = Planner { config, weights, plan: Self::new(config) };
        let HeadWeights { norm, output, .. } = head;
        p.norm(norm, Buffer::X, Buffer::Normed)?;
        let output = p.place(output)?;
        // Two planes, because nothing averages out the error of a logit; few rows get here, so the cost is small.
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
    /// If the plan does not use this buffer.
    pub fn shape(&self, buffer: Buffer) -> Shape {
        self.buffers[&buffer]
    }

    /// The memory of all buffers and quantized forms for a step of `n_tokens`, in bytes.
    pub fn scratch_bytes(&self, n_tokens: usize) -> u64 {
        let rows = self.buffers.values().map(|s| (s.rows_per_token * s.width) as u64 * 4);
        // Codes of two planes, with a scale and a sum for each block.
        let quantized = [ActivationKind::Q8Block32, ActivationKind::Q8Block256]
            .into_iter()
            .map(|kind| self.quantized_elems(kind) as u64 * 2)
            .sum::<u64>();
        (rows.sum::<u64>() + quantized).saturating_mul(n_tokens as u64)
    }

    /// How many elements per token the quantized form of this kind must hold, all planes together.
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

    /// Whether the content of `buffer` after the `i`-th operation is read by a later one, or is the result of the plan.
    pub fn is_read_later(&self, i: usize, buffer: Buffer) -> bool {
        for op in &self.ops[i + 1..] {
            if op.reads().contains(&buffer) {
                return true;
            }
            if op.writes() == Some(buffer) {
                return false;
            }
        }
        // The result of a segment is the residual stream, that of a head the logits.
        [Buffer::X, Buffer::Logits].contains(&buffer)
    }
}

impl Op {
    /// The buffers that it reads. An operation in place also reads the buffer that it writes.
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
            Self::SquaredRelu { of } | Self::ExpertBias { of, .. } | Self::Weigh { from: of, .. } => vec![*of],
            Self::Append { .. } => vec![Buffer::K, Buffer::V],
            Self::Attend { .. } => vec![Buffer::Q],
            Self::Gate { gate, up } => vec![*gate, *up],
            Self::Route { .. } => vec![Buffer::Scores],
            Self::Combine { has_shared, has_shared_score, .. } => {
                let shared = [(*has_shared, Buffer::SharedOut), (*has_shared_score, Buffer::SharedScore)];
                let shared = shared.into_iter().filter(|(is_there, _)| *is_there).map(|(_, buffer)| buffer);
                [Buffer::ExpertOut].into_iter().chain(shared).collect()
            }
            Self::Add { .. } => vec![Buffer::X, Buffer::Branch],
        }
    }

    /// The buffer that it writes, if any.
    pub fn writes(&self) -> Option<Buffer> {
        Some(match self {
            Self::Norm { to, .. } | Self::Product { to, .. } | Self::ExpertProduct { to, .. } => *to,
            Self::Adapt { to, .. } => *to,
            Self::NormHeads { of, .. } | Self::Bias { of, .. } | Self::Rotate { of, .. } | Self::Temper { of } => *of,
            Self::Scale { of, .. } | Self::Softcap { of, .. } => *of,
            Self::SquaredRelu { of } | Self::ExpertBias { of, .. } | Self::Weigh { to: of, .. } => *of,
            Self::Attend { .. } => Buffer::Attention,
            Self::Gate { gate, .. } => *gate,
            Self::Combine { .. } => Buffer::Branch,
            Self::Add { .. } => Buffer::X,
            Self::Quantize { .. } | Self::Append { .. } | Self::Route { .. } => return None,
        })
    }
}

/// A feed-forward part: gate, up and down.
type PlacedMlp = (Option<Placed>, Placed, Placed);

impl Planner<'_> {
    fn layer(&mut self, index: usize, layer: Layer) -> Result<(), ModelError> {
        let Layer { attention, ffn, .. } = layer;
        // What attention had as its input is still there afterwards.
        let is_normed = self.config.is_parallel && attention.is_some();
        attention.map(|attention| self.attention(index, attention)).transpose()?;
        ffn.map(|ffn| self.feed_forward(index, ffn, is_normed)).transpose()?;
        Ok(())
    }

    fn attention(&mut self, index: usize, attention: Attention) -> Result<(), ModelError> {
        let c = self.config;
        let Attention { norm, q, k, v, qk_norm, sinks, output, post_norm, .. } = attention;
        let input = self.input(norm)?;
        let (Some(k), Some(v)) = (k, v) else { return Err(self.unsupported("layers without keys or values")) };
        let parts = [
            (self.place(q)?, Buffer::Q, LoraTarget::Q),
            (self.place(k)?, Buffer::K, LoraTarget::K),
            (self.place(v)?, Buffer::V, LoraTarget::V),
        ];
        // Keys and values are cached and read again by later tokens, so their input has two planes; queries use only
        // the first.
        self.quantize(input, &parts.map(|((w, _), ..)| w), 2);
        for (i, (w, to, target)) in parts.into_iter().enumerate() {
            let planes = if i == 0 { 1 } else { 2 };
            self.product(w, input, planes, to, Some((index, target)));
        }
        let mut ops = Vec::new();
        if let Some((q_norm, k_norm)) = qk_norm {
            for (of, weight) in [(Buffer::Q, q_norm), (Buffer::K, k_norm)] {
                ops.push(Op::NormHeads { of, weight: self.place_vector(weight)? });
            }
        }
        if c.layers[index].has_rope {
            let is_local = c.uses_local_rope(index);
            let rotations = [Buffer::Q, Buffer::K].map(|of| Op::Rotate { of, is_local });
            let at = if c.qk_norm == QkNorm::RotatedHeads { 0 } else { ops.len() };
            ops.splice(at..at, rotations);
        }
        self.plan.ops.extend(ops);
        if c.has_temperature(index) {
            self.plan.ops.push(Op::Temper { of: Buffer::Q });
        }
        self.use_buffer(Buffer::Attention, 1, c.n_heads * c.head_dim);
        let sinks = sinks.map(|sinks| self.place_vector(sinks)).transpose()?;
        self.plan.ops.extend([Op::Append { layer: index }, Op::Attend { layer: index, sinks }]);
        let output = self.place(output)?;
        self.quantize(Buffer::Attention, &[output.0], 1);
        self.add_product(output, Buffer::Attention, (index, LoraTarget::AttnOutput), post_norm)
    }

    /// `is_normed`: the input is what was normed for attention.
    fn feed_forward(&mut self, index: usize, ffn: Ffn, is_normed: bool) -> Result<(), ModelError> {
        let Ffn { norm, matrices, post_norm, .. } = ffn;
        let input = if is_normed { Buffer::Normed } else { self.input(norm)? };
        match matrices {
            FeedForward::Dense(mlp) => {
                let mlp = self.place_mlp(mlp)?;
                self.quantize(input, &inputs_of(&mlp), 1);
                let hidden = self.hidden(index, &mlp, input, [Buffer::Gate, Buffer::Up]);
                self.add_product(mlp.2, hidden, (index, LoraTarget::Down), post_norm)
            }
            FeedForward::Experts(experts) => {
                self.experts(index, experts, input)?;
                self.add_branch(post_norm)
            }
            _ => Err(self.unsupported("this kind of feed-forward part")),
        }
    }

    /// Norms the residual stream, in models that do. Returns where the input of the next products is.
    fn input(&mut self, norm: Option<Vec<f32>>) -> Result<Buffer, ModelError> {
        let Some(norm) = norm else { return Ok(Buffer::X) };
        self.norm(norm, Buffer::X, Buffer::Normed)?;
        Ok(Buffer::Normed)
    }

    /// Computes the hidden layer, `gate = f(gate x) * (up x)` or `up = max(up x, 0)^2`, and quantizes it for the next
    /// product. Returns where it is.
    fn hidden(&mut self, index: usize, &(gate, up, down): &PlacedMlp, from: Buffer, to: [Buffer; 2]) -> Buffer {
        let hidden = to[usize::from(gate.is_none())];
        if let Some(gate) = gate {
            self.product(gate, from, 1, to[0], Some((index, LoraTarget::Gate)));
        }
        self.product(up, from, 1, to[1], Some((index, LoraTarget::Up)));
        self.plan.ops.push(match gate {
            Some(_) => Op::Gate { gate: to[0], up: to[1] },
            None => Op::SquaredRelu { of: hidden },
        });
        self.quantize(hidden, &[down.0], 1);
        hidden
    }

    fn experts(&mut self, index: usize, experts: Experts, input: Buffer) -> Result<(), ModelError> {
        let config = self.config.experts.expect("layers have experts only if the model has");
        let Experts { router, router_bias, choice_bias, experts, shared, shared_router, .. } = experts;
        let n_used = config.n_used;
        let router_bias = router_bias.map(|bias| self.place_vector(bias)).transpose()?;
        let router = (self.place_matrix(router)?, router_bias);
        let choice_bias = choice_bias.map(|bias| self.place_vector(bias)).transpose()?;
        let (mut gates, mut ups, mut downs) = (Vec::new(), Vec::new(), Vec::new());
        for Mlp { gate, up, down, .. } in experts {
            gates.push(gate.ok_or_else(|| self.unsupported("experts without gates"))?);
            ups.push(up);
            downs.push(down);
        }
        let (gates, ups, downs) = (self.place_experts(gates)?, self.place_experts(ups)?, self.place_experts(downs)?);
        let shared = shared.map(|mlp| self.place_mlp(mlp)).transpose()?;
        let shared_router = shared_router.map(|router| self.place_matrix(router)).transpose()?;
        let mut inputs = vec![router.0];
        if !config.scales_inputs {
            inputs.extend([gates.0, ups.0]);
        }
        inputs.extend(shared.iter().flat_map(inputs_of));
        inputs.extend(shared_router);
        self.quantize(input, &inputs, 1);

        self.product(router, input, 1, Buffer::Scores, None);
        if choice_bias.is_some() || config.groups.is_some() {
            self.use_buffer(Buffer::Choices, 1, width_of_choices(&config));
        }
        self.plan.ops.push(Op::Route { choice_bias });
        let of_experts = [(gates, Buffer::ExpertGate), (ups, Buffer::ExpertUp)];
        if !config.scales_inputs {
            self.expert_products(&of_experts, input);
        }
        if let Some(router) = shared_router {
            self.product((router, None), input, 1, Buffer::SharedScore, None);
        }
        if let Some(mlp) = &shared {
            // The shared expert comes first: it still reads the quantized input, which quantizing a hidden layer may
            // overwrite.
            let hidden = self.hidden(index, mlp, input, [Buffer::SharedGate, Buffer::SharedUp]);
            self.product(mlp.2, hidden, 1, Buffer::SharedOut, None);
        }
        if config.scales_inputs {
            self.use_buffer(Buffer::ExpertIn, n_used, self.config.dim);
            self.plan.ops.push(Op::Weigh { from: input, to: Buffer::ExpertIn });
            self.quantize(Buffer::ExpertIn, &[gates.0, ups.0], 1);
            self.expert_products(&of_experts, Buffer::ExpertIn);
        }
        self.plan.ops.push(Op::Gate { gate: Buffer::ExpertGate, up: Buffer::ExpertUp });
        self.quantize(Buffer::ExpertGate, &[downs.0], 1);
        self.expert_products(&[(downs, Buffer::ExpertOut)], Buffer::ExpertGate);
        self.use_buffer(Buffer::Branch, 1, self.config.dim);
        let (has_shared, has_shared_score) = (shared.is_some(), shared_router.is_some());
        self.plan.ops.push(Op::Combine { weighs: !config.scales_inputs, has_shared, has_shared_score });
        Ok(())
    }

    /// The products of every route with matrices of its expert, which have biases or not.
    fn expert_products(&mut self, parts: &[(Placed, Buffer)], from: Buffer) {
        let n_used = self.config.experts.map_or(1, |experts| experts.n_used);
        for &((w, biases), to) in parts {
            self.use_buffer(to, n_used, w.n_rows);
            self.plan.ops.push(Op::ExpertProduct { w, from, to });
            self.plan.ops.extend(biases.map(|biases| Op::ExpertBias { biases, of: to }));
        }
    }

    /// Adds the product with `w` to the residual stream, normalized and scaled if the model does that.
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

    /// Quantizes rows in all forms that these matrices need.
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

    /// Declares a buffer with this shape, which must be the same in all layers.
    fn use_buffer(&mut self, buffer: Buffer, rows_per_token: usize, width: usize) {
        let shape = Shape { rows_per_token, width };
        let known = *self.plan.buffers.entry(buffer).or_insert(shape);
        assert_eq!(known, shape, "{buffer:?} has one shape in all layers of a model");
    }

    fn place(&mut self, linear: Linear) -> Result<Placed, ModelError> {
        let bias = linear.bias.map(|bias| self.place_vector(bias)).transpose()?;
        Ok((self.place_matrix(linear.weight)?, bias))
    }

    fn place_mlp(&mut self, mlp: Mlp) -> Result<PlacedMlp, ModelError> {
        let gate = mlp.gate.map(|gate| self.place(gate)).transpose()?;
        Ok((gate, self.place(mlp.up)?, self.place(mlp.down)?))
    }

    fn place_matrix(&mut self, matrix: Matrix) -> Result<MatrixRef, ModelError> {
        let (ty, n_rows, n_cols) = (matrix.ty(), matrix.n_rows(), matrix.n_cols());
        Ok(MatrixRef { id: self.weights.matrix(matrix)?, ty, n_rows, n_cols })
    }

    /// The same matrix of all experts; either all have biases or none.
    fn place_experts(&mut self, linears: Vec<Linear>) -> Result<Placed, ModelError> {
        let (mut matrices, mut biases) = (Vec::with_capacity(linears.len()), Vec::new());
        for Linear { weight, bias, .. } in linears {
            matrices.push(weight);
            biases.extend(bias.into_iter().flatten());
        }
        let first = matrices.first().expect("at least one expert");
        let (ty, n_rows, n_cols) = (first.ty(), first.n_rows(), first.n_cols());
        if matrices.iter().any(|m| (m.ty(), m.n_rows(), m.n_cols()) != (ty, n_rows, n_cols)) {
            return Err(self.unsupported("experts of different weight types in one layer"));
        }
        let biases = if biases.is_empty() { None } else { Some(self.place_vector(biases)?) };
        Ok((MatrixRef { id: self.weights.experts(matrices)?, ty, n_rows, n_cols }, biases))
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

/// The matrices of a feed-forward part that read its input.
fn inputs_of((gate, up, _): &PlacedMlp) -> Vec<MatrixRef> {
    gate.iter().chain([up]).map(|(w, _)| *w).collect()
}

/// The width of [`Buffer::Choices`].
fn width_of_choices(config: &ExpertConfig) -> usize {
    config.n_experts + config.groups.map_or(0, |groups| groups.n_groups)
}
