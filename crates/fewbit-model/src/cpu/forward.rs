//! The forward pass through layers: rows of the residual stream in, rows out.
//!
//! The order below is that of the computation; a step is about five parallel sections per layer. Brackets mark parts
//! that only some models have:
//!
//! ```text
//! x = embedding[token] [* scale]          on the host, see `decoder`
//! each layer, with latent attention as in `latent`, otherwise:
//!     h = [norm of] x                    quantized once for q, k, v
//!     q, k, v = h Wq, h Wk, h Wv [+ biases];  [norm q, k, v;]  [rotate q, k;]  [scale q;]  append k, v to the cache
//!       [or v = h Wk; or no k, v: those in the cache are of an earlier layer]
//!     x += [norm of] (attention(q, cache) [* sigmoid(gates)]) Wo [+ bias]
//!       or a layer with a state instead: see `delta`, `space`, `short_conv`
//!     h = [norm of] x                    quantized once for gate, up
//!     x += [norm of] (f(h Wgate) * (h Wup)) Wdown [+ biases]
//!       or (max(h Wup, 0)^2) Wdown without a gate;
//!       or the same of each expert that the token is routed to, weighted;
//!       h is that of attention if both have the same input;
//!       or the sum of that and of the experts, each normed before and after
//!     x += norm of (f(x Wgate) * per_layer[token, layer]) Wprojection;  x *= scale
//! hidden = norm(x[wanted rows])           see `head`
//! logits = hidden Woutput [+ bias] [* scale] [capped]
//! ```
//! The contribution of the row's adapters is added to a product and its bias: see `lora`.

use super::CpuSegment;
use super::adapters::{AdapterBuffers, add_low_rank};
use super::attention::{LayerStep, append, append_and_attend, attention_shape};
use super::delta::DeltaBuffers;
use super::latent::LatentBuffers;
use super::mtp::MtpBuffers;
use super::short_conv::ConvBuffers;
use super::space::SpaceBuffers;
use super::weights::{Attention, Experts, FeedForward, Ffn, Linear, Mlp, MlpBranch, PerLayer};
use crate::lora::{AdaptedRows, LoraTarget};
use crate::routing::Routing;
use crate::segment::{SequenceRows, Step};
use fewbit_checkpoint::names::{self, Part};
use fewbit_checkpoint::{ModelConfig, NormKind, QkNorm};
use fewbit_kernels::{ActivationKinds, Activations, Cpu, Matrix, Planes, Product, math::sigmoid};

/// Buffers of a step, for all tokens of the batch.
#[derive(Default)]
pub(super) struct Buffers {
    /// `[n_tokens, n_heads * head_dim]`
    pub(super) q: Vec<f32>,
    /// `[n_tokens, n_kv_heads * head_dim]`
    pub(super) k: Vec<f32>,
    /// `[n_tokens, n_kv_heads * head_dim]`; nothing with latent attention.
    v: Vec<f32>,
    /// `[n_tokens, n_heads * head_dim]`; with latent attention, `[n_tokens, n_heads * kv_rank]`.
    pub(super) attention: Vec<f32>,
    pub(super) latent: LatentBuffers,
    /// `[n_tokens, n_heads, 2, head_dim]`: queries with their gates.
    gated: Vec<f32>,
    /// `[n_tokens, n_heads * head_dim]`: the gates.
    gates: Vec<f32>,
    pub(super) delta: DeltaBuffers,
    pub(super) space: SpaceBuffers,
    pub(super) conv: ConvBuffers,
    pub(super) mtp: MtpBuffers,
    /// `[n_tokens, ffn_dim]`
    hidden: Vec<f32>,
    /// `[n_tokens, ffn_dim]`: products of the second matrix, if it has a bias. `[n_tokens, per_layer_dim]`: what the layer
    /// gets of the per-layer embeddings.
    up: Vec<f32>,
    /// `[n_tokens, dim]`: values that are normalized or scaled before they are added to the residual stream.
    branch: Vec<f32>,
    /// `[n_tokens, dim]`: what came into the layer, if attention and the feed-forward block share it.
    before: Vec<f32>,
    /// Inputs of products.
    pub(super) input: Activations,
    experts: ExpertBuffers,
    pub(super) adapters: AdapterBuffers,
}

/// Buffers of layers with routed experts.
#[derive(Default)]
struct ExpertBuffers {
    /// `[n_tokens, n_experts]`
    scores: Vec<f32>,
    routing: Routing,
    /// `[n_tokens * n_used, experts.ffn_dim]`, ordered by expert.
    hidden: Vec<f32>,
    /// As `hidden`: products of the second matrix, if experts have biases.
    up: Vec<f32>,
    /// `[n_tokens * n_used, dim]`, ordered by expert.
    out: Vec<f32>,
    /// Inputs of each expert that has tokens.
    inputs: Vec<Activations>,
    /// `[n_tokens, dim]`: outputs of the shared expert.
    shared: Vec<f32>,
    /// `[n_tokens]`: the scores of the shared expert.
    shared_scores: Vec<f32>,
    /// `[n_tokens, dim]`: outputs of the feed-forward block next to the experts.
    mlp: Vec<f32>,
}

impl Buffers {
    pub(super) fn resize(&mut self, n: usize, c: &ModelConfig) {
        self.branch.resize(n * c.dim, 0.0);
        if let Some(latent) = &c.latent {
            self.q.resize(n * c.n_heads * c.head_dim, 0.0);
            self.k.resize(n * c.n_kv_heads * c.head_dim, 0.0);
            self.attention.resize(n * c.n_heads * latent.kv_rank, 0.0);
            self.v.clear();
            self.latent.resize(n, c.n_heads, latent);
        }
        if let Some(experts) = &c.experts {
            let e = &mut self.experts;
            e.scores.resize(n * experts.n_experts, 0.0);
            e.hidden.resize(n * experts.n_used * experts.ffn_dim, 0.0);
            e.out.resize(n * experts.n_used * c.dim, 0.0);
            e.shared.resize(n * c.dim, 0.0);
            e.shared_scores.resize(n, 0.0);
            e.mlp.resize(if experts.next_to_mlp { n * c.dim } else { 0 }, 0.0);
        }
    }

    /// Resizes the buffers of heads, which not all layers need have the same of.
    fn resize_heads(&mut self, n: usize, c: &ModelConfig, layer: usize) {
        let head_dim = c.head_dim_of(layer);
        let (q_dim, kv_dim) = (c.n_heads * head_dim, c.n_kv_heads_of(layer) * head_dim);
        let kv_dim = if c.shares_kv(layer) { 0 } else { kv_dim };
        self.q.resize(n * q_dim, 0.0);
        self.k.resize(n * kv_dim, 0.0);
        self.v.resize(n * kv_dim, 0.0);
        self.attention.resize(n * q_dim, 0.0);
        if c.has_output_gate {
            self.gated.resize(2 * n * q_dim, 0.0);
            self.gates.resize(n * q_dim, 0.0);
        }
    }
}

/// A batch on its way through the layers.
pub(super) struct Batch<'a, 'b> {
    pub(super) step: &'a mut Step<'b>,
    /// `[n_tokens, dim]`: the residual stream.
    pub(super) x: &'a mut [f32],
}

impl Batch<'_, '_> {
    pub(super) fn loras(&self) -> &[AdaptedRows] {
        self.step.loras
    }

    /// Passes the input of these matrices of a layer to the collector, if there is one.
    pub(super) fn collect(&mut self, input: &Activations, layer: usize, parts: &[Part]) {
        let Some(collector) = &mut self.step.collector else { return };
        let x = input.values();
        for part in parts {
            let name = format!("{}.weight", names::gguf(*part, layer));
            collector.add(&name, 0, 1, x, x.len() / input.n_rows());
        }
    }

    /// Passes the input of each head's matrix of a tensor that holds those of all heads to the collector.
    pub(super) fn collect_heads(&mut self, inputs: &[Activations], layer: usize, part: Part) {
        let Some(collector) = &mut self.step.collector else { return };
        let name = format!("{}.weight", names::gguf(part, layer));
        for (head, input) in inputs.iter().enumerate() {
            let x = input.values();
            collector.add(&name, head, inputs.len(), x, x.len() / input.n_rows());
        }
    }

    /// Passes the inputs of each expert that has tokens to the collector.
    fn collect_experts(&mut self, buffers: &ExpertBuffers, layer: usize, w: &Experts, parts: &[Part]) {
        let Some(collector) = &mut self.step.collector else { return };
        for ((expert, _), input) in buffers.routing.groups.iter().zip(&buffers.inputs) {
            let (x, n_cols) = (input.values(), input.values().len() / input.n_rows());
            for part in parts {
                let name = names::gguf(*part, layer);
                match w.is_merged {
                    true => collector.add(&format!("{name}.weight"), *expert, w.experts.len(), x, n_cols),
                    false => collector.add(&format!("{name}.{expert}.weight"), 0, 1, x, n_cols),
                }
            }
        }
    }
}

impl CpuSegment {
    /// Runs the rows of a batch through the layers.
    pub(super) fn compute(&self, step: &mut Step<'_>, x: &mut [f32], s: &mut Buffers) {
        let n = x.len() / self.config.dim;
        s.resize(n, &self.config);
        let mut batch = Batch { step, x };
        for (layer, weights) in self.layers.clone().zip(&self.weights) {
            if self.config.is_parallel {
                s.before.clear();
                s.before.extend_from_slice(batch.x);
            }
            if let Some(conv) = &weights.short_conv {
                self.short_conv(layer, conv, &mut batch, s);
            }
            if let Some(space) = &weights.state_space {
                self.state_space(layer, space, &mut batch, s);
            }
            if let Some(delta) = &weights.delta_net {
                self.delta_net(layer, delta, &mut batch, s);
            }
            if let Some(attention) = &weights.attention {
                self.attention(layer, attention, &mut batch, s);
            }
            if let Some(latent) = &weights.latent {
                self.latent_attention(layer, latent, &mut batch, s);
            }
            if let Some(ffn) = &weights.ffn {
                self.feed_forward(layer, ffn, &mut batch, s);
            }
            if let Some(own) = &weights.per_layer {
                self.per_layer(layer, own, &mut batch, s);
            }
            if let Some(scale) = weights.scale {
                let dim = self.config.dim;
                self.shared.cpu.each_row(dim, batch.x, |_, x| x.iter_mut().for_each(|x| *x *= scale));
            }
        }
    }

    /// Adds what the layer gets of the per-layer embeddings, gated by the residual stream.
    fn per_layer(&self, index: usize, w: &PerLayer, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let (c, e) = (&self.config, &self.shared.cpu);
        self.input(None, w.input, b.x, &mut s.input);
        b.collect(&s.input, index, &[Part::LayerGate]);
        let width = w.gate.n_rows();
        s.hidden.resize(s.input.n_rows() * width, 0.0);
        e.matmul(&w.gate, &s.input, &mut s.hidden);
        s.up.clear();
        for of_token in b.step.per_layer.chunks_exact(c.n_layers() * width) {
            s.up.extend_from_slice(&of_token[index * width..(index + 1) * width]);
        }
        e.gate(c.gate, width, &mut s.hidden, &s.up);
        e.activate(&s.hidden, width, ActivationKinds::of([w.projection.ty()]), &mut s.input);
        b.collect(&s.input, index, &[Part::LayerProjection]);
        e.matmul(&w.projection, &s.input, &mut s.branch);
        self.add_branch(Some(&w.post_norm), b, s);
    }

    fn attention(&self, index: usize, w: &Attention, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let (c, e) = (&self.config, &self.shared.cpu);
        self.queries_keys_values(index, w, true, b, s);
        self.attend(index, w.sinks.as_deref(), b, s);
        let head_dim = c.head_dim_of(index);
        if c.has_output_gate {
            e.sigmoid_gate(c.n_heads * head_dim, &mut s.attention, &s.gates);
        }
        let kinds = ActivationKinds::of([w.output.weight.ty()]);
        e.activate(&s.attention, w.output.weight.n_cols(), kinds, &mut s.input);
        b.collect(&s.input, index, &[Part::AttnOutput]);
        self.add_product(index, LoraTarget::AttnOutput, &w.output, w.post_norm.as_deref(), b, s);
    }

    /// Appends keys and values of the rows to the cache.
    pub(super) fn append(&self, index: usize, w: &Attention, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let (shape, layer) = (attention_shape(&self.config, index), self.config.kv_layer(index) - self.layers.start);
        self.queries_keys_values(index, w, false, b, s);
        let step = LayerStep { layout: &self.layout, layer, shape, sinks: None, q: &[], k: &s.k, v: &s.v };
        append(&self.shared.cpu, self.kv_type, &mut b.step.sequences, &step);
    }

    /// Computes keys, values and, if they are wanted, queries and gates of the rows.
    fn queries_keys_values(
        &self,
        index: usize,
        w: &Attention,
        has_queries: bool,
        b: &mut Batch<'_, '_>,
        s: &mut Buffers,
    ) {
        let (c, e) = (&self.config, &self.shared.cpu);
        s.resize_heads(b.x.len() / c.dim, c, index);
        self.input(w.norm.as_deref(), w.input, b.x, &mut s.input);
        b.collect(&s.input, index, w.qkv_parts);
        let queries = if c.has_output_gate { &mut s.gated } else { &mut s.q };
        let all = [
            (has_queries.then_some(&w.q), &mut queries[..], LoraTarget::Q, Planes::First),
            (w.k.as_ref(), &mut s.k[..], LoraTarget::K, Planes::All),
            (w.v.as_ref(), &mut s.v[..], LoraTarget::V, Planes::All),
        ];
        let mut all: Vec<_> =
            all.into_iter().filter_map(|(w, out, target, planes)| Some((w?, out, target, planes))).collect();
        let mut parts: Vec<_> = all.iter_mut().map(|(w, out, _, planes)| (&w.weight, &mut **out, *planes)).collect();
        e.matmul_many(&mut parts, &s.input);
        all.iter_mut().for_each(|(w, out, ..)| self.add_bias(w, out));
        let mut parts: Vec<_> = all.iter_mut().map(|(_, out, target, _)| (*target, &mut **out)).collect();
        add_low_rank(e, b.loras(), index, &mut parts, &s.input, &mut s.adapters);
        if w.v.is_none() {
            s.v.copy_from_slice(&s.k);
        }
        let head_dim = c.head_dim_of(index);
        if c.has_output_gate && has_queries {
            e.split_gates(head_dim, c.n_heads, &s.gated, &mut s.q, &mut s.gates);
        }
        let is_normed_late = c.qk_norm == QkNorm::RotatedHeads;
        if !is_normed_late {
            self.norm_queries_and_keys(index, w, has_queries, s);
        }
        if let Some(norm) = &w.value_norm {
            e.norm_heads(norm, c.rms_norm_eps, c.n_kv_heads_of(index), &mut s.v);
        }
        if c.layers[index].has_rope {
            let angles = if c.uses_local_rope(index) { b.step.local } else { b.step.global };
            if has_queries {
                e.rope(c.rope.style, head_dim, c.n_heads, &angles.cos, &angles.sin, &mut s.q);
            }
            if w.k.is_some() {
                e.rope(c.rope.style, head_dim, c.n_kv_heads_of(index), &angles.cos, &angles.sin, &mut s.k);
            }
        }
        if is_normed_late {
            self.norm_queries_and_keys(index, w, has_queries, s);
        }
    }

    /// Scales the queries by their positions, if they are, and lets them attend: `s.q`, `s.k` and `s.v` to `s.attention`.
    pub(super) fn attend(&self, index: usize, sinks: Option<&[f32]>, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let (c, e) = (&self.config, &self.shared.cpu);
        if c.has_temperature(index) {
            let factors = b.step.temperatures;
            e.each_row(c.n_heads * c.head_dim_of(index), &mut s.q, |row, q| {
                q.iter_mut().for_each(|q| *q *= factors[row])
            });
        }
        let (mut shape, layer) = (attention_shape(c, index), c.kv_layer(index) - self.layers.start);
        if self.is_mtp {
            // Position 0 has no keys: a window of as many keys as there are before the only query, and its own.
            shape.window = b.step.sequences.first().map(SequenceRows::position);
        }
        let step = LayerStep { layout: &self.layout, layer, shape, sinks, q: &s.q, k: &s.k, v: &s.v };
        append_and_attend(e, self.kv_type, &mut b.step.sequences, &step, &mut s.attention);
    }

    fn norm_queries_and_keys(&self, index: usize, w: &Attention, has_queries: bool, s: &mut Buffers) {
        let (c, e) = (&self.config, &self.shared.cpu);
        if let Some((q_norm, k_norm)) = &w.qk_norm {
            let head_dim = c.head_dim_of(index);
            if has_queries {
                e.norm_heads(q_norm, c.rms_norm_eps, c.n_heads * head_dim / q_norm.len(), &mut s.q);
            }
            if w.k.is_some() {
                e.norm_heads(k_norm, c.rms_norm_eps, c.n_kv_heads_of(index) * head_dim / k_norm.len(), &mut s.k);
            }
        }
    }

    fn feed_forward(&self, index: usize, w: &Ffn, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        if let FeedForward::Experts(experts @ Experts { mlp: Some(branch), .. }) = &w.matrices {
            return self.both(index, w, branch, experts, b, s);
        }
        let x = if self.config.is_parallel { &s.before } else { &*b.x };
        self.input(w.norm.as_deref(), w.input, x, &mut s.input);
        let post_norm = w.post_norm.as_deref();
        match &w.matrices {
            FeedForward::Dense(mlp) => {
                self.hidden(index, mlp, b, s);
                self.add_product(index, LoraTarget::Down, &mlp.down, post_norm, b, s);
            }
            FeedForward::Experts(experts) => {
                self.route(index, experts, b, s);
                self.experts(index, experts, b, s);
                self.add_branch(post_norm, b, s);
            }
        }
    }

    /// A feed-forward block and experts, which have the residual stream as their input, each with its own norms.
    fn both(&self, index: usize, w: &Ffn, own: &MlpBranch, experts: &Experts, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let (c, e) = (&self.config, &self.shared.cpu);
        self.input(w.norm.as_deref(), own.input, b.x, &mut s.input);
        self.hidden(index, &own.mlp, b, s);
        let out = &mut s.experts.mlp;
        e.matmul(&own.mlp.down.weight, &s.input, out);
        self.add_bias(&own.mlp.down, out);
        add_low_rank(e, b.loras(), index, &mut [(LoraTarget::Down, &mut out[..])], &s.input, &mut s.adapters);
        e.norm_heads(&own.post_norm, c.rms_norm_eps, 1, out);

        self.input(Some(&own.router_norm), own.router_input, b.x, &mut s.input);
        self.route(index, experts, b, s);
        self.input(Some(&own.expert_norm), w.input, b.x, &mut s.input);
        self.experts(index, experts, b, s);
        e.norm_heads(&own.expert_post_norm, c.rms_norm_eps, 1, &mut s.branch);
        let Buffers { branch, experts, .. } = &mut *s;
        e.each_row(c.dim, branch, |row, x| e.add_scaled(x, &experts.mlp[row * c.dim..(row + 1) * c.dim], 1.0));
        self.add_branch(w.post_norm.as_deref(), b, s);
    }

    /// Makes the residual stream, normed if there is a norm, the input of the next products.
    pub(super) fn input(&self, norm: Option<&[f32]>, kinds: ActivationKinds, x: &[f32], input: &mut Activations) {
        let (c, e) = (&self.config, &self.shared.cpu);
        match norm {
            Some(norm) if c.norm == NormKind::Layer => e.layer_norm(x, norm, c.rms_norm_eps, kinds, input),
            Some(norm) => e.rms_norm(x, norm, c.rms_norm_eps, kinds, input),
            None => e.activate(x, c.dim, kinds, input),
        }
    }

    /// Computes `f(gate x) * (up x)`, or `max(up x, 0)^2`, of the current input and makes it the input of the next product.
    fn hidden(&self, index: usize, mlp: &Mlp, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        b.collect(&s.input, index, mlp.input_parts);
        let (e, function, ffn_dim) = (&self.shared.cpu, self.config.gate, mlp.up.weight.n_rows());
        s.hidden.resize(s.input.n_rows() * ffn_dim, 0.0);
        let Some(gate) = &mlp.gate else {
            e.matmul(&mlp.up.weight, &s.input, &mut s.hidden);
            self.add_bias(&mlp.up, &mut s.hidden);
            let parts = &mut [(LoraTarget::Up, &mut s.hidden[..])];
            add_low_rank(e, b.loras(), index, parts, &s.input, &mut s.adapters);
            e.squared_relu(ffn_dim, &mut s.hidden);
            return self.activate_hidden(index, mlp, b, s);
        };
        let is_plain = gate.bias.is_none() && mlp.up.bias.is_none();
        if is_plain && !b.loras().iter().any(|rows| rows.changes(index, &[LoraTarget::Gate, LoraTarget::Up])) {
            e.matmul_gated(function, &gate.weight, &mlp.up.weight, &s.input, &mut s.hidden);
        } else {
            s.up.resize(s.hidden.len(), 0.0);
            let parts =
                &mut [(&gate.weight, &mut s.hidden[..], Planes::All), (&mlp.up.weight, &mut s.up[..], Planes::All)];
            e.matmul_many(parts, &s.input);
            self.add_bias(gate, &mut s.hidden);
            self.add_bias(&mlp.up, &mut s.up);
            let parts = &mut [(LoraTarget::Gate, &mut s.hidden[..]), (LoraTarget::Up, &mut s.up[..])];
            add_low_rank(e, b.loras(), index, parts, &s.input, &mut s.adapters);
            e.gate(function, ffn_dim, &mut s.hidden, &s.up);
        }
        self.activate_hidden(index, mlp, b, s);
    }

    /// Makes `s.hidden` the input of the next product.
    fn activate_hidden(&self, index: usize, mlp: &Mlp, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let kinds = ActivationKinds::of([mlp.down.weight.ty()]);
        self.shared.cpu.activate(&s.hidden, mlp.up.weight.n_rows(), kinds, &mut s.input);
        b.collect(&s.input, index, &[mlp.down_part]);
    }

    /// Chooses the experts of every token of the current input. See `crate::routing` for the definition.
    fn route(&self, index: usize, w: &Experts, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let (c, e) = (&self.config, &self.shared.cpu);
        let config = c.experts.as_ref().expect("layers have experts only if the model has");
        b.collect(&s.input, index, &[Part::Router]);
        let x = &mut s.experts;
        e.matmul(&w.router, &s.input, &mut x.scores);
        if let Some(bias) = &w.router_bias {
            e.add_bias(bias, &mut x.scores);
        }
        let factors = w.mlp.as_ref().map(|branch| &branch.expert_factors[..]);
        x.routing.route_with_factors(config, w.choice_bias.as_deref(), factors, &x.scores);
    }

    /// Sends every token of the current input through its experts and leaves the result in `s.branch`.
    fn experts(&self, index: usize, w: &Experts, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let (c, e) = (&self.config, &self.shared.cpu);
        let config = c.experts.as_ref().expect("layers have experts only if the model has");
        let x = &mut s.experts;
        let groups = &x.routing.groups;
        if x.inputs.len() < groups.len() {
            x.inputs.resize_with(groups.len(), Activations::new);
        }

        for ((_, range), input) in groups.iter().zip(&mut x.inputs) {
            let (tokens, kinds) = (&x.routing.tokens[range.clone()], s.input.kinds());
            match config.scales_inputs {
                true => e.gather_scaled(&s.input, tokens, &x.routing.weights[range.clone()], kinds, input),
                false => e.gather(&s.input, tokens, kinds, input),
            }
        }
        b.collect_experts(&s.experts, index, w, w.experts[0].input_parts);
        let x = &mut s.experts;
        self.expert_hidden(config.ffn_dim, w, x);
        let groups = &x.routing.groups;
        let rows = groups.iter().zip(&mut x.inputs).zip(split_rows(&mut x.hidden, groups, config.ffn_dim));
        for (((expert, _), input), hidden) in rows {
            let kinds = ActivationKinds::of([w.experts[*expert].down.weight.ty()]);
            e.activate(hidden, config.ffn_dim, kinds, input);
        }
        b.collect_experts(&s.experts, index, w, &[w.experts[0].down_part]);
        let x = &mut s.experts;
        let groups = &x.routing.groups;
        let rows = groups.iter().zip(&x.inputs).zip(split_rows(&mut x.out, groups, c.dim));
        let mut products: Vec<_> = rows
            .map(|(((expert, _), input), out)| Product::Store { w: &w.experts[*expert].down.weight, x: input, out })
            .collect();
        e.matmul_each(&mut products);
        add_expert_biases(e, groups, |expert| w.experts[expert].down.bias.as_deref(), c.dim, &mut x.out);

        if let Some(shared) = &w.shared {
            self.shared_expert(index, shared, w.shared_router.as_ref(), b, s);
        }
        let ExpertBuffers { routing, out, shared, shared_scores, .. } = &s.experts;
        e.each_row(c.dim, &mut s.branch, |token, branch| {
            branch.fill(0.0);
            let routes = token * config.n_used..(token + 1) * config.n_used;
            for (place, &(_, weight)) in routing.places[routes.clone()].iter().zip(&routing.chosen[routes]) {
                let out = &out[place * c.dim..(place + 1) * c.dim];
                e.add_scaled(branch, out, if config.scales_inputs { 1.0 } else { weight });
            }
            if w.shared.is_some() {
                let weight = w.shared_router.as_ref().map_or(1.0, |_| sigmoid(shared_scores[token]));
                let shared = &shared[token * c.dim..(token + 1) * c.dim];
                e.add_scaled(branch, shared, weight);
            }
        });
    }

    /// Computes `f(gate x) * (up x)`, or `max(up x, 0)^2`, of every expert that has tokens.
    fn expert_hidden(&self, ffn_dim: usize, w: &Experts, x: &mut ExpertBuffers) {
        let (e, function) = (&self.shared.cpu, self.config.gate);
        let groups = &x.routing.groups;
        if !self.config.is_gated {
            let rows = groups.iter().zip(&x.inputs).zip(split_rows(&mut x.hidden, groups, ffn_dim));
            let mut products: Vec<_> = rows
                .map(|(((expert, _), input), out)| Product::Store { w: &w.experts[*expert].up.weight, x: input, out })
                .collect();
            e.matmul_each(&mut products);
            add_expert_biases(e, groups, |expert| w.experts[expert].up.bias.as_deref(), ffn_dim, &mut x.hidden);
            e.squared_relu(ffn_dim, &mut x.hidden);
            return;
        }
        let gate = |expert: usize| w.experts[expert].gate.as_ref().expect("experts of a gated model");
        if gate(0).bias.is_none() {
            let rows = groups.iter().zip(&x.inputs).zip(split_rows(&mut x.hidden, groups, ffn_dim));
            let mut products: Vec<_> = rows
                .map(|(((expert, _), input), out)| {
                    let up = &w.experts[*expert].up.weight;
                    Product::Gated { function, gate: &gate(*expert).weight, up, x: input, out }
                })
                .collect();
            e.matmul_each(&mut products);
            return;
        }
        x.up.resize(x.hidden.len(), 0.0);
        let outs = split_rows(&mut x.hidden, groups, ffn_dim).zip(split_rows(&mut x.up, groups, ffn_dim));
        let mut products: Vec<_> = (groups.iter().zip(&x.inputs).zip(outs))
            .flat_map(|(((expert, _), input), (hidden, up))| {
                [
                    Product::Store { w: &gate(*expert).weight, x: input, out: hidden },
                    Product::Store { w: &w.experts[*expert].up.weight, x: input, out: up },
                ]
            })
            .collect();
        e.matmul_each(&mut products);
        add_expert_biases(e, groups, |expert| gate(expert).bias.as_deref(), ffn_dim, &mut x.hidden);
        add_expert_biases(e, groups, |expert| w.experts[expert].up.bias.as_deref(), ffn_dim, &mut x.up);
        e.gate(function, ffn_dim, &mut x.hidden, &x.up);
    }

    /// The shared expert, which every token goes through, and the scores that weight it.
    fn shared_expert(&self, index: usize, mlp: &Mlp, router: Option<&Matrix>, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let e = &self.shared.cpu;
        if let Some(router) = router {
            e.matmul(router, &s.input, &mut s.experts.shared_scores);
        }
        self.hidden(index, mlp, b, s);
        e.matmul(&mlp.down.weight, &s.input, &mut s.experts.shared);
        self.add_bias(&mlp.down, &mut s.experts.shared);
    }

    pub(super) fn add_bias(&self, w: &Linear, out: &mut [f32]) {
        if let Some(bias) = &w.bias {
            self.shared.cpu.add_bias(bias, out);
        }
    }

    /// Adds the product of the current input to the residual stream.
    pub(super) fn add_product(
        &self,
        layer: usize,
        target: LoraTarget,
        w: &Linear,
        post_norm: Option<&[f32]>,
        b: &mut Batch<'_, '_>,
        s: &mut Buffers,
    ) {
        let (c, e) = (&self.config, &self.shared.cpu);
        let loras = b.step.loras;
        if post_norm.is_none() && c.residual_scale == 1.0 {
            e.matmul_add(&w.weight, &s.input, b.x);
            self.add_bias(w, b.x);
            add_low_rank(e, loras, layer, &mut [(target, &mut *b.x)], &s.input, &mut s.adapters);
        } else {
            e.matmul(&w.weight, &s.input, &mut s.branch);
            self.add_bias(w, &mut s.branch);
            add_low_rank(e, loras, layer, &mut [(target, &mut s.branch[..])], &s.input, &mut s.adapters);
            self.add_branch(post_norm, b, s);
        }
    }

    /// Adds `s.branch` to the residual stream.
    fn add_branch(&self, post_norm: Option<&[f32]>, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let c = &self.config;
        let norm = post_norm.map(|w| (w, c.rms_norm_eps));
        self.shared.cpu.add_normed(norm, c.residual_scale, c.dim, &mut s.branch, b.x);
    }
}

/// Adds the bias of its expert, if experts have one, to every row of `n_cols`. Rows are ordered by expert.
fn add_expert_biases<'a>(
    cpu: &Cpu,
    groups: &[(usize, std::ops::Range<usize>)],
    bias: impl Fn(usize) -> Option<&'a [f32]>,
    n_cols: usize,
    rows: &mut [f32],
) {
    for ((expert, _), rows) in groups.iter().zip(split_rows(rows, groups, n_cols)) {
        if let Some(bias) = bias(*expert) {
            cpu.add_bias(bias, rows);
        }
    }
}

/// Splits rows of `n_cols`, ordered by expert, into the rows of each expert.
fn split_rows<'a>(
    x: &'a mut [f32],
    groups: &[(usize, std::ops::Range<usize>)],
    n_cols: usize,
) -> impl Iterator<Item = &'a mut [f32]> {
    let mut rest = x;
    groups.iter().map(move |(_, range)| {
        let (rows, after) = std::mem::take(&mut rest).split_at_mut(range.len() * n_cols);
        rest = after;
        rows
    })
}
