//! What a segment of layers or a head computes, as a list of operations on named buffers.
//!
//! ```text
//! each layer   [Norm x -> normed], Quantize normed (or x), Product q [k [v]] [Bias] [Adapt], [Copy k -> v], [NormHeads],
//!              [Rotate], [NormHeads], [Temper], [Append], Attend -> attention
//!              Quantize attention, Product -> x [Bias] [Adapt]     or, where it is normed or scaled first,
//!                Product -> branch [Bias] [Adapt], [NormHeads of one head], Add -> x
//!              [Norm x -> normed], Quantize normed (or x; or what was normed for attention), then of a dense part
//!                Product gate up [Bias] [Adapt], Gate, Quantize gate, Product -> x as above
//!                or, without gates, Product up [Bias] [Adapt], SquaredRelu, Quantize up, Product -> x
//!              or of experts
//!                Product -> scores [Bias], Route, [the shared expert], [Weigh -> expert inputs, Quantize],
//!                ExpertProduct gate up [ExpertBias], Gate, Quantize, ExpertProduct -> outputs [ExpertBias],
//!                Combine -> branch, [NormHeads], Add -> x
//!                or of both, each normed before and after
//!              [Product -> per-layer gate, Copy -> per-layer, Gate, Quantize, Product -> branch, NormHeads, Add -> x]
//!              [Scale x]
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
use fewbit_model::weights::{HeadWeights, Layer};
use fewbit_model::{LoraTarget, ModelConfig, ModelError, NormKind};
use fewbit_quant::{ActivationKind, TensorType};
use std::collections::BTreeMap;

use crate::planner::Planner;

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
    /// Queries of local layers, if their heads have another size than those of global ones.
    LocalQ,
    /// New keys of such layers.
    LocalK,
    /// New values of such layers.
    LocalV,
    /// The output of their attention.
    LocalAttention,
    /// The product with the gate matrix, then the hidden layer of the feed-forward part.
    Gate,
    /// The product with the up matrix, by which the gate is multiplied.
    Up,
    /// Like [`Gate`](Self::Gate), in layers whose feed-forward part has another width than that of others.
    WideGate,
    /// Like [`Up`](Self::Up), in such layers.
    WideUp,
    /// The output of a feed-forward part next to experts.
    MlpOut,
    /// What all layers of the model get of the per-layer embeddings: an input of the plan.
    PerLayers,
    /// The part of it that a layer gets.
    PerLayer,
    /// The gate of that.
    PerLayerGate,
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
        /// Elements of a head.
        head_dim: usize,
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
        /// Keys.
        k: Buffer,
        /// Values.
        v: Buffer,
    },
    /// Attention of the queries over the KV cache pages of their sequences.
    Attend {
        /// The index in the model of the layer whose pages they are.
        layer: usize,
        /// Queries.
        q: Buffer,
        /// The outputs.
        to: Buffer,
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
        /// What the weights of experts are multiplied by at the end.
        factors: Option<VectorRef>,
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
    /// `to = from`, of some columns.
    Copy {
        /// Rows.
        from: Buffer,
        /// The first column that is copied, of as many as `to` has.
        at: usize,
        /// The copies.
        to: Buffer,
    },
    /// `to += factor * from`, as fused multiply-adds.
    Add {
        /// What is added.
        from: Buffer,
        /// Rows.
        to: Buffer,
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

impl Plan {
    /// An empty plan.
    fn new(config: &ModelConfig) -> Self {
        let buffers = BTreeMap::from([(Buffer::X, Shape { rows_per_token: 1, width: config.dim })]);
        let (norm, eps) = (config.norm, config.rms_norm_eps);
        Self { ops: Vec::new(), buffers, norm, eps, gate: config.gate, rope: config.rope.style }
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
        let mut planner = Planner::new(config, weights, Self::new(config));
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
        let mut p = Planner::new(config, weights, Self::new(config));
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
            Self::Append { k, v, .. } => vec![*k, *v],
            Self::Attend { q, .. } => vec![*q],
            Self::Copy { from, .. } => vec![*from],
            Self::Gate { gate, up } => vec![*gate, *up],
            Self::Route { .. } => vec![Buffer::Scores],
            Self::Combine { has_shared, has_shared_score, .. } => {
                let shared = [(*has_shared, Buffer::SharedOut), (*has_shared_score, Buffer::SharedScore)];
                let shared = shared.into_iter().filter(|(is_there, _)| *is_there).map(|(_, buffer)| buffer);
                [Buffer::ExpertOut].into_iter().chain(shared).collect()
            }
            Self::Add { from, to, .. } => vec![*from, *to],
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
            Self::Attend { to, .. } | Self::Copy { to, .. } => *to,
            Self::Gate { gate, .. } => *gate,
            Self::Combine { .. } => Buffer::Branch,
            Self::Add { to, .. } => *to,
            Self::Quantize { .. } | Self::Append { .. } | Self::Route { .. } => return None,
        })
    }
}
