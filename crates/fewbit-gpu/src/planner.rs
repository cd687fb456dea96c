//! Builds plans: turns the weights of layers into operations, and uploads them.

use super::plan::{Buffer, MatrixRef, Op, Plan, Shape, VectorRef, Weights};
use fewbit_kernels::Matrix;
use fewbit_model::weights::{Attention, Experts, FeedForward, Ffn, Layer, Linear, Mlp, PerLayer};
use fewbit_model::{ExpertConfig, LoraTarget, ModelConfig, ModelError, QkNorm};
use fewbit_quant::ActivationKind;

/// A matrix and its bias, on the device.
type Placed = (MatrixRef, Option<VectorRef>);

/// Builds a plan, and uploads the weights that it needs.
pub(crate) struct Planner<'a> {
    config: &'a ModelConfig,
    weights: &'a mut dyn Weights,
    pub(crate) plan: Plan,
}

/// A feed-forward part: gate, up and down.
type PlacedMlp = (Option<Placed>, Placed, Placed);

/// The buffers of attention.
struct Heads {
    q: Buffer,
    k: Buffer,
    v: Buffer,
    out: Buffer,
}

const HEADS: Heads = Heads { q: Buffer::Q, k: Buffer::K, v: Buffer::V, out: Buffer::Attention };

const LOCAL_HEADS: Heads =
    Heads { q: Buffer::LocalQ, k: Buffer::LocalK, v: Buffer::LocalV, out: Buffer::LocalAttention };

impl<'a> Planner<'a> {
    pub(crate) fn new(config: &'a ModelConfig, weights: &'a mut dyn Weights, plan: Plan) -> Self {
        Self { config, weights, plan }
    }

    pub(crate) fn layer(&mut self, index: usize, layer: Layer) -> Result<(), ModelError> {
        let Layer { attention, ffn, per_layer, scale, .. } = layer;
        // What attention had as its input is still there afterwards.
        let is_normed = self.config.is_parallel && attention.is_some();
        attention.map(|attention| self.attention(index, attention)).transpose()?;
        ffn.map(|ffn| self.feed_forward(index, ffn, is_normed)).transpose()?;
        per_layer.map(|own| self.per_layer(index, own)).transpose()?;
        self.plan.ops.extend(scale.map(|factor| Op::Scale { of: Buffer::X, factor }));
        Ok(())
    }

    fn attention(&mut self, index: usize, attention: Attention) -> Result<(), ModelError> {
        let c = self.config;
        let Attention { norm, q, k, v, qk_norm, value_norm, sinks, output, post_norm, .. } = attention;
        let is_local = c.local_heads.is_some() && c.layers[index].is_local;
        let (heads, head_dim) = (if is_local { LOCAL_HEADS } else { HEADS }, c.head_dim_of(index));
        let (has_keys, has_values) = (k.is_some(), v.is_some());
        let input = self.input(norm)?;
        // Keys and values are cached and read again by later tokens, so their input has two planes; queries use only
        // the first.
        let mut parts = vec![(self.place(q)?, heads.q, LoraTarget::Q, 1)];
        for (w, to, target) in [(k, heads.k, LoraTarget::K), (v, heads.v, LoraTarget::V)] {
            if let Some(w) = w {
                parts.push((self.place(w)?, to, target, 2));
            }
        }
        let matrices: Vec<_> = parts.iter().map(|((w, _), ..)| *w).collect();
        self.quantize(input, &matrices, if has_keys { 2 } else { 1 });
        for (w, to, target, planes) in parts {
            self.product(w, input, planes, to, Some((index, target)));
        }
        if has_keys && !has_values {
            self.use_buffer(heads.v, 1, c.n_kv_heads_of(index) * head_dim);
            self.plan.ops.push(Op::Copy { from: heads.k, at: 0, to: heads.v });
        }
        let source = c.kv_layer(index);
        let is_of_source = |op: &Op| matches!(op, Op::Append { layer, .. } if *layer == source);
        if source != index && !self.plan.ops.iter().any(is_of_source) {
            return Err(self.unsupported("layers without the one whose keys and values they share"));
        }
        let rotated = if has_keys { vec![heads.q, heads.k] } else { vec![heads.q] };
        let mut ops = Vec::new();
        if let Some((q_norm, k_norm)) = qk_norm {
            for (&of, weight) in rotated.iter().zip([q_norm, k_norm]) {
                ops.push(Op::NormHeads { of, weight: self.place_vector(weight)? });
            }
        }
        if c.layers[index].has_rope {
            let is_local = c.uses_local_rope(index);
            let rotations = rotated.iter().map(|&of| Op::Rotate { of, head_dim, is_local });
            let at = if c.qk_norm == QkNorm::RotatedHeads { 0 } else { ops.len() };
            ops.splice(at..at, rotations);
        }
        self.plan.ops.extend(ops);
        if let Some(weight) = value_norm {
            self.norm_heads(heads.v, weight)?;
        }
        if c.has_temperature(index) {
            self.plan.ops.push(Op::Temper { of: heads.q });
        }
        if has_keys {
            self.plan.ops.push(Op::Append { layer: index, k: heads.k, v: heads.v });
        }
        self.use_buffer(heads.out, 1, c.n_heads * head_dim);
        let sinks = sinks.map(|sinks| self.place_vector(sinks)).transpose()?;
        self.plan.ops.push(Op::Attend { layer: source, q: heads.q, to: heads.out, sinks });
        let output = self.place(output)?;
        self.quantize(heads.out, &[output.0], 1);
        self.add_product(output, heads.out, (index, LoraTarget::AttnOutput), post_norm)
    }

    /// `is_normed`: the input is what was normed for attention.
    fn feed_forward(&mut self, index: usize, ffn: Ffn, is_normed: bool) -> Result<(), ModelError> {
        let Ffn { norm, matrices, post_norm, .. } = ffn;
        let input = if is_normed { Buffer::Normed } else { self.input(norm)? };
        match matrices {
            FeedForward::Dense(mlp) => {
                let mlp = self.place_mlp(mlp)?;
                self.quantize(input, &inputs_of(&mlp), 1);
                let is_wide = self.config.ffn_dim_of(index) != self.config.ffn_dim;
                let to = if is_wide { [Buffer::WideGate, Buffer::WideUp] } else { [Buffer::Gate, Buffer::Up] };
                let hidden = self.hidden(index, &mlp, input, to);
                self.add_product(mlp.2, hidden, (index, LoraTarget::Down), post_norm)
            }
            FeedForward::Experts(experts) => {
                self.experts(index, experts, input)?;
                self.add_branch(post_norm)
            }
            _ => Err(self.unsupported("this kind of feed-forward part")),
        }
    }

    /// What a layer gets of the per-layer embeddings, gated by the residual stream.
    fn per_layer(&mut self, index: usize, own: PerLayer) -> Result<(), ModelError> {
        let PerLayer { gate, projection, post_norm, .. } = own;
        let (gate, projection) = (self.place_matrix(gate)?, self.place_matrix(projection)?);
        let width = gate.n_rows;
        self.quantize(Buffer::X, &[gate], 1);
        self.product((gate, None), Buffer::X, 1, Buffer::PerLayerGate, None);
        self.use_buffer(Buffer::PerLayers, 1, self.config.n_layers() * width);
        self.use_buffer(Buffer::PerLayer, 1, width);
        self.plan.ops.push(Op::Copy { from: Buffer::PerLayers, at: index * width, to: Buffer::PerLayer });
        self.plan.ops.push(Op::Gate { gate: Buffer::PerLayerGate, up: Buffer::PerLayer });
        self.quantize(Buffer::PerLayerGate, &[projection], 1);
        self.product((projection, None), Buffer::PerLayerGate, 1, Buffer::Branch, None);
        self.add_branch(Some(post_norm))
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

    /// Leaves the outputs of experts, and of a feed-forward part next to them, in [`Buffer::Branch`].
    fn experts(&mut self, index: usize, experts: Experts, mut input: Buffer) -> Result<(), ModelError> {
        let config = self.config.experts.expect("layers have experts only if the model has");
        let Experts { router, router_bias, choice_bias, mlp: own, experts, shared, shared_router, .. } = experts;
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
        let mut inputs = Vec::new();
        if !config.scales_inputs {
            inputs.extend([gates.0, ups.0]);
        }
        inputs.extend(shared.iter().flat_map(inputs_of));
        inputs.extend(shared_router);
        let mut expert_post_norm = None;
        if let Some(own) = own {
            let mlp = self.place_mlp(own.mlp)?;
            self.quantize(input, &inputs_of(&mlp), 1);
            let hidden = self.hidden(index, &mlp, input, [Buffer::Gate, Buffer::Up]);
            self.product(mlp.2, hidden, 1, Buffer::MlpOut, Some((index, LoraTarget::Down)));
            self.norm_heads(Buffer::MlpOut, own.post_norm)?;
            // The router and the experts have norms of their own.
            input = Buffer::Normed;
            self.norm(own.router_norm, Buffer::X, input)?;
            self.quantize(input, &[router.0], 1);
            let factors = self.place_vector(own.expert_factors)?;
            self.route(router, input, choice_bias, Some(factors));
            self.norm(own.expert_norm, Buffer::X, input)?;
            self.quantize(input, &inputs, 1);
            expert_post_norm = Some(own.expert_post_norm);
        } else {
            inputs.push(router.0);
            self.quantize(input, &inputs, 1);
            self.route(router, input, choice_bias, None);
        }
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
        if let Some(weight) = expert_post_norm {
            self.norm_heads(Buffer::Branch, weight)?;
            self.plan.ops.push(Op::Add { from: Buffer::MlpOut, to: Buffer::Branch, factor: 1.0 });
        }
        Ok(())
    }

    /// Chooses the experts of every token.
    fn route(&mut self, router: Placed, input: Buffer, choice_bias: Option<VectorRef>, factors: Option<VectorRef>) {
        let config = self.config.experts.expect("layers have experts only if the model has");
        self.product(router, input, 1, Buffer::Scores, None);
        if choice_bias.is_some() || config.groups.is_some() {
            self.use_buffer(Buffer::Choices, 1, width_of_choices(&config));
        }
        self.plan.ops.push(Op::Route { choice_bias, factors });
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
        self.plan.ops.push(Op::Add { from: Buffer::Branch, to: Buffer::X, factor: self.config.residual_scale });
        Ok(())
    }

    pub(crate) fn product(
        &mut self,
        w: Placed,
        from: Buffer,
        planes: usize,
        to: Buffer,
        adapted: Option<(usize, LoraTarget)>,
    ) {
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
    pub(crate) fn quantize(&mut self, from: Buffer, matrices: &[MatrixRef], planes: usize) {
        for kind in [ActivationKind::Q8Block32, ActivationKind::Q8Block256] {
            if matrices.iter().any(|w| w.kind() == kind) {
                self.plan.ops.push(Op::Quantize { from, kind, planes });
            }
        }
    }

    pub(crate) fn norm(&mut self, weight: Vec<f32>, from: Buffer, to: Buffer) -> Result<(), ModelError> {
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

    pub(crate) fn place(&mut self, linear: Linear) -> Result<Placed, ModelError> {
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

    pub(crate) fn unsupported(&self, what: &str) -> ModelError {
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
