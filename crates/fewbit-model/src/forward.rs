//! The forward pass: token ids in, logits out.
//!
//! Reading order is the order of the computation, and a step is some five parallel sections per layer. Parts in
//! brackets are those that only some models have:
//!
//! ```text
//! x = embedding[token] [* scale]
//! each layer:
//!     h = rms_norm(x)                    quantized once for q, k, v
//!     q, k, v = h Wq, h Wk, h Wv [+ biases];  [norm each head of q, k;]  [rotate q, k;]  append k, v to the cache
//!     x += [norm of] attention(q, cache) Wo [+ bias]
//!     h = rms_norm(x)                    quantized once for gate, up
//!     x += [norm of] (f(h Wgate) * (h Wup)) Wdown [+ biases]
//!       or the same of each expert that the token is routed to, weighted
//! hidden = rms_norm(x[wanted rows])
//! logits = hidden Woutput [+ bias] [* scale] [capped]
//! ```
//! To a product and its bias, what the row's adapters give is added: see `lora`.

use crate::cache::{LayerStep, append_and_attend};
use crate::config::ModelConfig;
use crate::decoder::{Chunk, Decoder, Logits, LogitsFor};
use crate::lora::{self, Group, LoraScratch, Target};
use crate::names::{self, Part};
use crate::quantize::Collector;
use crate::rope::Angles;
use crate::routing::Routing;
use crate::weights::{Experts, FeedForward, Linear, Mlp};
use fewbit_kernels::{ActivationKinds, Activations, Matrix, Planes, Product, math::sigmoid};

/// Buffers of a step, for all tokens of the batch.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `[n_tokens, dim]`: the residual stream.
    x: Vec<f32>,
    /// `[n_tokens, n_heads * head_dim]`
    q: Vec<f32>,
    /// `[n_tokens, n_kv_heads * head_dim]`
    k: Vec<f32>,
    /// `[n_tokens, n_kv_heads * head_dim]`
    v: Vec<f32>,
    /// `[n_tokens, n_heads * head_dim]`
    attention: Vec<f32>,
    /// `[n_tokens, ffn_dim]`
    hidden: Vec<f32>,
    /// `[n_tokens, ffn_dim]`: products of the second matrix, where they have a bias.
    up: Vec<f32>,
    /// `[n_tokens, dim]`: what is added to the residual stream, where it is normed or scaled first.
    branch: Vec<f32>,
    /// Angles of every token's position, in layers that see everything and in local ones.
    global: Angles,
    local: Angles,
    /// `[n_tokens]`: factors of the queries.
    temperatures: Vec<f32>,
    /// Inputs of products.
    input: Activations,
    /// Those of a step that is over, for their memory.
    pub(crate) spare_logits: Logits,
    /// Who is told of them, while an importance matrix is measured.
    pub(crate) collector: Option<Collector>,
    experts: ExpertScratch,
    /// Which rows have adapters.
    loras: Vec<Group>,
    lora: LoraScratch,
}

/// Buffers of layers with routed experts.
#[derive(Default)]
struct ExpertScratch {
    /// `[n_tokens, n_experts]`
    scores: Vec<f32>,
    routing: Routing,
    /// `[n_tokens * n_used, experts.ffn_dim]`, in order of the experts.
    hidden: Vec<f32>,
    /// `[n_tokens * n_used, dim]`, in order of the experts.
    out: Vec<f32>,
    /// Inputs of each expert that has tokens.
    inputs: Vec<Activations>,
    /// `[n_tokens, dim]`: outputs of the shared expert.
    shared: Vec<f32>,
    /// `[n_tokens]`: its scores.
    shared_scores: Vec<f32>,
}

impl Scratch {
    /// Tells the collector, if there is one, that the current input meets these matrices of a layer.
    fn collect(&mut self, layer: usize, parts: &[Part]) {
        let Some(collector) = &mut self.collector else { return };
        let x = self.input.values();
        for part in parts {
            let name = format!("{}.weight", names::gguf(*part, layer));
            collector.add(&name, 0, 1, x, x.len() / self.input.n_rows());
        }
    }

    /// The same of the inputs of each expert that has tokens.
    fn collect_experts(&mut self, layer: usize, w: &Experts, parts: &[Part]) {
        let Some(collector) = &mut self.collector else { return };
        for ((expert, _), input) in self.experts.routing.groups.iter().zip(&self.experts.inputs) {
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

    fn resize(&mut self, n: usize, c: &ModelConfig) {
        let (q_dim, kv_dim) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        self.x.resize(n * c.dim, 0.0);
        self.branch.resize(n * c.dim, 0.0);
        self.q.resize(n * q_dim, 0.0);
        self.attention.resize(n * q_dim, 0.0);
        self.k.resize(n * kv_dim, 0.0);
        self.v.resize(n * kv_dim, 0.0);
        self.global.clear();
        self.local.clear();
        self.temperatures.clear();
        if let Some(experts) = &c.experts {
            let e = &mut self.experts;
            e.scores.resize(n * experts.n_experts, 0.0);
            e.hidden.resize(n * experts.n_used * experts.ffn_dim, 0.0);
            e.out.resize(n * experts.n_used * c.dim, 0.0);
            e.shared.resize(n * c.dim, 0.0);
            e.shared_scores.resize(n, 0.0);
        }
    }
}

impl Decoder {
    pub(crate) fn step(&self, batch: &mut [Chunk<'_>], s: &mut Scratch) -> Logits {
        let c = &self.config;
        let n: usize = batch.iter().map(|chunk| chunk.tokens.len()).sum();
        s.resize(n, c);
        let tokens = batch.iter().flat_map(|chunk| chunk.tokens);
        for (&token, x) in tokens.zip(s.x.chunks_exact_mut(c.dim)) {
            self.weights.embed(token as usize, x);
            if c.embedding_scale != 1.0 {
                x.iter_mut().for_each(|x| *x *= c.embedding_scale);
            }
        }
        for chunk in batch.iter() {
            for i in 0..chunk.tokens.len() {
                let position = chunk.cache.len() + i;
                self.rope.angles(position, &mut s.global, &mut s.local);
                s.temperatures.extend(c.attention_temperature.map(|t| t.factor(position)));
            }
        }
        s.loras = lora::groups(batch, |chunk| chunk.tokens.len());
        if n > 0 {
            for layer in 0..c.n_layers() {
                self.attention(layer, batch, s);
                self.feed_forward(layer, s);
            }
        }
        let hidden = self.hidden_states(batch, s);
        let mut logits = self.logits(batch, s);
        logits.hidden = hidden;
        logits
    }

    fn attention(&self, index: usize, batch: &mut [Chunk<'_>], s: &mut Scratch) {
        let (c, e, w) = (&self.config, &self.engine, &self.weights.layers[index]);
        e.rms_norm(&s.x, &w.attn_norm, c.rms_norm_eps, w.qkv_input, &mut s.input);
        s.collect(index, w.qkv_parts);
        let parts = &mut [
            (&w.q.weight, &mut s.q[..], Planes::First),
            (&w.k.weight, &mut s.k[..], Planes::All),
            (&w.v.weight, &mut s.v[..], Planes::All),
        ];
        e.matmul_many(parts, &s.input);
        for (w, out) in [(&w.q, &mut s.q), (&w.k, &mut s.k), (&w.v, &mut s.v)] {
            self.add_bias(w, out);
        }
        let parts = &mut [(Target::Q, &mut s.q[..]), (Target::K, &mut s.k[..]), (Target::V, &mut s.v[..])];
        lora::add_low_rank(e, &s.loras, index, parts, &s.input, &mut s.lora);
        if let Some((q_norm, k_norm)) = &w.qk_norm {
            e.norm_heads(q_norm, c.rms_norm_eps, c.n_heads, &mut s.q);
            e.norm_heads(k_norm, c.rms_norm_eps, c.n_kv_heads, &mut s.k);
        }
        if c.layers[index].has_rope {
            let angles = if c.uses_local_rope(index) { &s.local } else { &s.global };
            e.rope(c.rope.style, c.head_dim, c.n_heads, &angles.cos, &angles.sin, &mut s.q);
            e.rope(c.rope.style, c.head_dim, c.n_kv_heads, &angles.cos, &angles.sin, &mut s.k);
        }
        if c.attention_temperature.is_some() {
            let factors = &s.temperatures;
            e.each_row(c.n_heads * c.head_dim, &mut s.q, |row, q| q.iter_mut().for_each(|q| *q *= factors[row]));
        }

        let mut end = 0;
        let mut caches: Vec<_> = batch
            .iter_mut()
            .map(|chunk| {
                end += chunk.tokens.len();
                (&mut *chunk.cache, end - chunk.tokens.len()..end)
            })
            .collect();
        let step = LayerStep { layer: index, shape: c.attention_shape(index), q: &s.q, k: &s.k, v: &s.v };
        append_and_attend(e, &mut caches, &step, &mut s.attention);
        let kinds = ActivationKinds::of([w.attn_output.weight.ty()]);
        e.activate(&s.attention, w.attn_output.weight.n_cols(), kinds, &mut s.input);
        s.collect(index, &[Part::AttnOutput]);
        self.add_product(index, Target::AttnOutput, &w.attn_output, w.attn_post_norm.as_deref(), s);
    }

    fn feed_forward(&self, index: usize, s: &mut Scratch) {
        let (c, e, w) = (&self.config, &self.engine, &self.weights.layers[index]);
        e.rms_norm(&s.x, &w.ffn_norm, c.rms_norm_eps, w.ffn_input, &mut s.input);
        let post_norm = w.ffn_post_norm.as_deref();
        match &w.ffn {
            FeedForward::Dense(mlp) => {
                self.hidden(index, mlp, s);
                self.add_product(index, Target::Down, &mlp.down, post_norm, s);
            }
            FeedForward::Experts(experts) => {
                self.experts(index, experts, s);
                self.add_branch(post_norm, s);
            }
        }
    }

    /// `f(gate x) * (up x)` of the current input, made the input of the next product.
    fn hidden(&self, index: usize, mlp: &Mlp, s: &mut Scratch) {
        s.collect(index, mlp.input_parts);
        let (e, function, ffn_dim) = (&self.engine, self.config.gate, mlp.gate.weight.n_rows());
        s.hidden.resize(s.input.n_rows() * ffn_dim, 0.0);
        let is_plain = mlp.gate.bias.is_none() && mlp.up.bias.is_none();
        if is_plain && !s.loras.iter().any(|group| group.changes(index, &[Target::Gate, Target::Up])) {
            e.matmul_gated(function, &mlp.gate.weight, &mlp.up.weight, &s.input, &mut s.hidden);
        } else {
            s.up.resize(s.hidden.len(), 0.0);
            let parts =
                &mut [(&mlp.gate.weight, &mut s.hidden[..], Planes::All), (&mlp.up.weight, &mut s.up[..], Planes::All)];
            e.matmul_many(parts, &s.input);
            self.add_bias(&mlp.gate, &mut s.hidden);
            self.add_bias(&mlp.up, &mut s.up);
            let parts = &mut [(Target::Gate, &mut s.hidden[..]), (Target::Up, &mut s.up[..])];
            lora::add_low_rank(e, &s.loras, index, parts, &s.input, &mut s.lora);
            e.gate(function, ffn_dim, &mut s.hidden, &s.up);
        }
        e.activate(&s.hidden, ffn_dim, ActivationKinds::of([mlp.down.weight.ty()]), &mut s.input);
        s.collect(index, &[mlp.down_part]);
    }

    /// Sends every token of the current input through its experts; what comes out is in `s.branch`. See
    /// `crate::routing` for the definition.
    fn experts(&self, index: usize, w: &Experts, s: &mut Scratch) {
        let (c, e) = (&self.config, &self.engine);
        let config = c.experts.as_ref().expect("layers have experts only if the model has");
        s.collect(index, &[Part::Router]);
        let x = &mut s.experts;
        e.matmul(&w.router, &s.input, &mut x.scores);
        x.routing.route(config, &x.scores);
        let groups = &x.routing.groups;
        if x.inputs.len() < groups.len() {
            x.inputs.resize_with(groups.len(), Activations::new);
        }

        for ((_, range), input) in groups.iter().zip(&mut x.inputs) {
            e.gather(&s.input, &x.routing.tokens[range.clone()], s.input.kinds(), input);
        }
        s.collect_experts(index, w, w.experts[0].input_parts);
        let x = &mut s.experts;
        let groups = &x.routing.groups;
        let rows = groups.iter().zip(&x.inputs).zip(split_rows(&mut x.hidden, groups, config.ffn_dim));
        let mut products: Vec<_> = rows
            .map(|(((expert, _), input), out)| {
                let mlp = &w.experts[*expert];
                Product::Gated { function: c.gate, gate: &mlp.gate.weight, up: &mlp.up.weight, x: input, out }
            })
            .collect();
        e.matmul_each(&mut products);

        let rows = groups.iter().zip(&mut x.inputs).zip(split_rows(&mut x.hidden, groups, config.ffn_dim));
        for (((expert, _), input), hidden) in rows {
            let kinds = ActivationKinds::of([w.experts[*expert].down.weight.ty()]);
            e.activate(hidden, config.ffn_dim, kinds, input);
        }
        s.collect_experts(index, w, &[w.experts[0].down_part]);
        let x = &mut s.experts;
        let groups = &x.routing.groups;
        let rows = groups.iter().zip(&x.inputs).zip(split_rows(&mut x.out, groups, c.dim));
        let mut products: Vec<_> = rows
            .map(|(((expert, _), input), out)| Product::Store { w: &w.experts[*expert].down.weight, x: input, out })
            .collect();
        e.matmul_each(&mut products);

        if let Some(shared) = &w.shared {
            self.shared_expert(index, shared, w.shared_router.as_ref(), s);
        }
        let ExpertScratch { routing, out, shared, shared_scores, .. } = &s.experts;
        e.each_row(c.dim, &mut s.branch, |token, branch| {
            branch.fill(0.0);
            let routes = token * config.n_used..(token + 1) * config.n_used;
            for (place, &(_, weight)) in routing.places[routes.clone()].iter().zip(&routing.chosen[routes]) {
                let out = &out[place * c.dim..(place + 1) * c.dim];
                e.add_scaled(branch, out, weight);
            }
            if w.shared.is_some() {
                let weight = w.shared_router.as_ref().map_or(1.0, |_| sigmoid(shared_scores[token]));
                let shared = &shared[token * c.dim..(token + 1) * c.dim];
                e.add_scaled(branch, shared, weight);
            }
        });
    }

    /// The expert that every token goes through, and the scores that weight it.
    fn shared_expert(&self, index: usize, mlp: &Mlp, router: Option<&Matrix>, s: &mut Scratch) {
        if let Some(router) = router {
            self.engine.matmul(router, &s.input, &mut s.experts.shared_scores);
        }
        self.hidden(index, mlp, s);
        self.engine.matmul(&mlp.down.weight, &s.input, &mut s.experts.shared);
        self.add_bias(&mlp.down, &mut s.experts.shared);
    }

    fn add_bias(&self, w: &Linear, out: &mut [f32]) {
        if let Some(bias) = &w.bias {
            self.engine.add_bias(bias, out);
        }
    }

    /// Adds the product of the current input to the residual stream.
    fn add_product(&self, layer: usize, target: Target, w: &Linear, post_norm: Option<&[f32]>, s: &mut Scratch) {
        let (c, e) = (&self.config, &self.engine);
        if post_norm.is_none() && c.residual_scale == 1.0 {
            e.matmul_add(&w.weight, &s.input, &mut s.x);
            self.add_bias(w, &mut s.x);
            lora::add_low_rank(e, &s.loras, layer, &mut [(target, &mut s.x[..])], &s.input, &mut s.lora);
        } else {
            e.matmul(&w.weight, &s.input, &mut s.branch);
            self.add_bias(w, &mut s.branch);
            lora::add_low_rank(e, &s.loras, layer, &mut [(target, &mut s.branch[..])], &s.input, &mut s.lora);
            self.add_branch(post_norm, s);
        }
    }

    /// Adds what is in `s.branch` to the residual stream.
    fn add_branch(&self, post_norm: Option<&[f32]>, s: &mut Scratch) {
        let c = &self.config;
        let norm = post_norm.map(|w| (w, c.rms_norm_eps));
        self.engine.add_normed(norm, c.residual_scale, c.dim, &mut s.branch, &mut s.x);
    }

    /// The hidden states behind the last norm, of the chunks that want them.
    fn hidden_states(&self, batch: &[Chunk<'_>], s: &mut Scratch) -> Vec<f32> {
        let c = &self.config;
        let mut wanted = Vec::new();
        let mut end = 0;
        for chunk in batch {
            let start = end;
            end += chunk.tokens.len();
            if chunk.logits == LogitsFor::Hidden {
                wanted.extend_from_slice(&s.x[start * c.dim..end * c.dim]);
            }
        }
        if !wanted.is_empty() {
            let (norm, kinds) = (&self.weights.output_norm, ActivationKinds::default());
            self.engine.rms_norm(&wanted, norm, c.rms_norm_eps, kinds, &mut s.input);
            wanted.copy_from_slice(s.input.values());
        }
        wanted
    }

    /// Logits of the rows that are wanted, and of no others: the output matrix is the largest of a small
    /// model.
    fn logits(&self, batch: &[Chunk<'_>], s: &mut Scratch) -> Logits {
        let (c, e, output) = (&self.config, &self.engine, &self.weights.output);
        let mut wanted = Vec::new();
        let mut end = 0;
        for chunk in batch {
            end += chunk.tokens.len();
            let rows = chunk.logits.rows(chunk.tokens.len());
            wanted.extend_from_slice(&s.x[(end - rows) * c.dim..end * c.dim]);
        }
        let n_vocab = self.n_vocab();
        let mut logits = std::mem::take(&mut s.spare_logits);
        logits.resize(n_vocab, wanted.len() / c.dim);
        if !wanted.is_empty() {
            // Two planes: nothing averages out the error of a logit, and few rows come this far.
            let kinds = ActivationKinds::of([output.weight.ty()]).two_planes();
            e.rms_norm(&wanted, &self.weights.output_norm, c.rms_norm_eps, kinds, &mut s.input);
            e.matmul(&output.weight, &s.input, &mut logits.values);
            self.add_bias(output, &mut logits.values);
            let loras = lora::groups(batch, |chunk| chunk.logits.rows(chunk.tokens.len()));
            let parts = &mut [(Target::Output, &mut logits.values[..])];
            lora::add_low_rank(e, &loras, 0, parts, &s.input, &mut s.lora);
            if c.logit_scale != 1.0 {
                e.each_row(n_vocab, &mut logits.values, |_, row| row.iter_mut().for_each(|y| *y *= c.logit_scale));
            }
            if let Some(cap) = c.logit_softcap {
                e.softcap(cap, n_vocab, &mut logits.values);
            }
        }
        logits
    }
}

/// Cuts rows of `n_cols`, in order of the experts, into those of each expert.
fn split_rows<'a>(
    x: &'a mut [f32],
    groups: &[(usize, std::ops::Range<usize>)],
    n_cols: usize,
) -> impl Iterator<Item = &'a mut [f32]> {
    let mut rest = x;
    groups.iter().map(move |(_, range)| {
        let (rows, behind) = std::mem::take(&mut rest).split_at_mut(range.len() * n_cols);
        rest = behind;
        rows
    })
}
