//! Multi-head latent attention.
//!
//! What is cached of a position is one row that all heads share: its rotated key, then the latent of its keys and values.
//! The matrices that would expand the latent to keys and values of each head are applied to queries and outputs instead
//! (the "absorbed" form), so that attention is that of `n_heads` queries with one key head, whose value is the part of
//! the key after the rotated elements. This is the definition for any number of tokens: expanding keys and values for
//! long prompts would take fewer operations, but give other bits.
//!
//! ```text
//! h = rms_norm(x)                              quantized once for both
//! q = h Wq, or rms_norm(h Wqa) Wqb             [n_heads][plain_dim + rotated_dim]
//! c, k = h Wkva                                [kv_rank], [rotated_dim]
//! key of the position = rotate(k), rms_norm(c)
//! query of head i     = rotate(q_i's last elements), Kb_i (q_i's first elements)
//! o = attention                                [n_heads][kv_rank]
//! x += [Vb_0 o_0, Vb_1 o_1, ...] Wo
//! ```
//! The latents have norms with an epsilon of their own, [`LatentConfig::NORM_EPS`].

use super::CpuSegment;
use super::adapters::add_low_rank;
use super::forward::{Batch, Buffers};
use super::weights::{LatentAttention, Packer};
use crate::ModelError;
use crate::loader::weight;
use crate::lora::LoraTarget;
use fewbit_checkpoint::names::Part;
use fewbit_checkpoint::source::decode;
use fewbit_checkpoint::{CheckpointError, LatentConfig};
use fewbit_kernels::{ActivationKinds, Activations, Matrix, Planes, Product};
use fewbit_quant::TensorType;

/// Buffers of layers with latent attention.
#[derive(Default)]
pub(super) struct LatentBuffers {
    /// `[n_tokens, q_rank]`
    q_latent: Vec<f32>,
    /// `[n_tokens, n_heads * query_dim]`
    q: Vec<f32>,
    /// `[n_tokens, kv_rank + rotated_dim]`: the latent, then the shared key.
    kv: Vec<f32>,
    /// `[n_tokens, kv_rank]`
    latent: Vec<f32>,
    /// `[n_heads, n_tokens, kv_rank]`, then `[n_heads, n_tokens, value_dim]`
    by_head: Vec<f32>,
    /// `[n_tokens, n_heads * value_dim]`
    values: Vec<f32>,
    /// The input of each head's products.
    inputs: Vec<Activations>,
}

impl LatentBuffers {
    /// Makes room for `n` tokens.
    pub(super) fn resize(&mut self, n: usize, n_heads: usize, latent: &LatentConfig) {
        self.q_latent.resize(n * latent.q_rank.unwrap_or(0), 0.0);
        self.q.resize(n * n_heads * latent.query_dim(), 0.0);
        self.kv.resize(n * (latent.kv_rank + latent.rotated_dim), 0.0);
        self.latent.resize(n * latent.kv_rank, 0.0);
        self.by_head.resize(n * n_heads * latent.kv_rank.max(latent.value_dim), 0.0);
        self.values.resize(n * n_heads * latent.value_dim, 0.0);
        if self.inputs.len() < n_heads {
            self.inputs.resize_with(n_heads, Activations::new);
        }
    }
}

impl CpuSegment {
    pub(super) fn latent_attention(&self, index: usize, w: &LatentAttention, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let (c, e) = (&self.config, &self.shared.cpu);
        let latent = c.latent.as_ref().expect("layers have latent attention only if the model has");
        self.input(w.norm.as_deref(), w.input, b.x, &mut s.input);
        self.latent_queries(index, w, b, s);
        let LatentConfig { kv_rank, plain_dim, rotated_dim, .. } = *latent;
        let query_dim = latent.query_dim();

        // The key of every position: its rotated part, then the latent.
        let t = &mut s.latent;
        e.each_row(kv_rank, &mut t.latent, |row, latent| {
            latent.copy_from_slice(&t.kv[row * (kv_rank + rotated_dim)..][..kv_rank]);
        });
        e.norm_heads(&w.kv_norm, LatentConfig::NORM_EPS, 1, &mut t.latent);
        e.each_row(c.head_dim, &mut s.k, |row, k| {
            let (rotated, latent) = k.split_at_mut(rotated_dim);
            rotated.copy_from_slice(&t.kv[row * c.head_dim + kv_rank..][..rotated_dim]);
            latent.copy_from_slice(&t.latent[row * kv_rank..(row + 1) * kv_rank]);
        });

        // The same for the queries of every head.
        let by_head = self.by_head(&w.keys, w.keys_input, &t.q, query_dim, &mut t.inputs, &mut t.by_head);
        if w.has_split_parts {
            b.collect_heads(&t.inputs[..c.n_heads], index, Part::KFromLatent);
        }
        let n = s.k.len() / c.head_dim;
        e.each_row(c.n_heads * c.head_dim, &mut s.q, |row, q| {
            for (head, q) in q.chunks_exact_mut(c.head_dim).enumerate() {
                let (rotated, latent) = q.split_at_mut(rotated_dim);
                let at = (row * c.n_heads + head) * query_dim + plain_dim;
                rotated.copy_from_slice(&t.q[at..at + rotated_dim]);
                latent.copy_from_slice(&by_head[(head * n + row) * kv_rank..][..kv_rank]);
            }
        });
        let angles = b.step.global;
        e.rope(c.rope.style, c.head_dim, c.n_heads, &angles.cos, &angles.sin, &mut s.q);
        e.rope(c.rope.style, c.head_dim, 1, &angles.cos, &angles.sin, &mut s.k);
        self.attend(index, None, b, s);

        let (t, value_dim) = (&mut s.latent, latent.value_dim);
        let by_head = self.by_head(&w.values, w.values_input, &s.attention, kv_rank, &mut t.inputs, &mut t.by_head);
        if w.has_split_parts {
            b.collect_heads(&t.inputs[..c.n_heads], index, Part::VFromLatent);
        }
        e.each_row(c.n_heads * value_dim, &mut t.values, |row, values| {
            for (head, values) in values.chunks_exact_mut(value_dim).enumerate() {
                values.copy_from_slice(&by_head[(head * n + row) * value_dim..][..value_dim]);
            }
        });
        let kinds = ActivationKinds::of([w.output.weight.ty()]);
        e.activate(&s.latent.values, c.n_heads * value_dim, kinds, &mut s.input);
        b.collect(&s.input, index, &[Part::AttnOutput]);
        self.add_product(index, LoraTarget::AttnOutput, &w.output, w.post_norm.as_deref(), b, s);
    }

    /// Computes the queries of all heads, and the latent and key of every position, of the current input.
    fn latent_queries(&self, index: usize, w: &LatentAttention, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let (e, t) = (&self.shared.cpu, &mut s.latent);
        match &w.q_latent {
            None => {
                b.collect(&s.input, index, &[Part::Q, Part::KvLatent]);
                let parts = &mut [
                    (&w.q.weight, &mut t.q[..], Planes::First),
                    (&w.kv_latent.weight, &mut t.kv[..], Planes::All),
                ];
                e.matmul_many(parts, &s.input);
                self.add_bias(&w.q, &mut t.q);
                let parts = &mut [(LoraTarget::Q, &mut t.q[..])];
                add_low_rank(e, b.loras(), index, parts, &s.input, &mut s.adapters);
            }
            Some((q_latent, norm)) => {
                b.collect(&s.input, index, &[Part::QLatent, Part::KvLatent]);
                let parts = &mut [
                    (&q_latent.weight, &mut t.q_latent[..], Planes::First),
                    (&w.kv_latent.weight, &mut t.kv[..], Planes::All),
                ];
                e.matmul_many(parts, &s.input);
                self.add_bias(q_latent, &mut t.q_latent);
                e.rms_norm(&t.q_latent, norm, LatentConfig::NORM_EPS, w.q_input, &mut s.input);
                b.collect(&s.input, index, &[Part::QFromLatent]);
                e.matmul(&w.q.weight, &s.input, &mut t.q);
                self.add_bias(&w.q, &mut t.q);
            }
        }
        self.add_bias(&w.kv_latent, &mut t.kv);
    }

    /// The product of each head's matrix with its part of every row of `x`, whose rows are `stride` long: head `i`'s
    /// begins at `i * step`. The result is `[n_heads, n_tokens, n_rows of the matrices]`.
    fn by_head<'a>(
        &self,
        matrices: &[Matrix],
        kinds: ActivationKinds,
        x: &[f32],
        step: usize,
        inputs: &mut [Activations],
        out: &'a mut [f32],
    ) -> &'a [f32] {
        let e = &self.shared.cpu;
        let (n_rows, n_cols, stride) = (matrices[0].n_rows(), matrices[0].n_cols(), matrices.len() * step);
        let n = x.len() / stride;
        for (head, input) in inputs[..matrices.len()].iter_mut().enumerate() {
            e.activate_columns(x, stride, head * step..head * step + n_cols, kinds, input);
        }
        let out = &mut out[..matrices.len() * n * n_rows];
        let parts = out.chunks_exact_mut(n * n_rows).zip(matrices).zip(&*inputs);
        let mut products: Vec<_> = parts.map(|((out, w), x)| Product::Store { w, x, out }).collect();
        e.matmul_each(&mut products);
        out
    }
}

impl Packer<'_, '_> {
    pub(super) fn latent_attention(&mut self, i: usize) -> Result<LatentAttention, ModelError> {
        let config = self.loader.config();
        let latent = config.latent.as_ref().expect("as above");
        let (dim, q_dim) = (config.dim, config.n_heads * latent.query_dim());
        let (q_latent, q) = match latent.q_rank {
            None => (None, self.linear(Part::Q, i, q_dim, dim)?),
            Some(rank) => {
                let linear = self.linear(Part::QLatent, i, rank, dim)?;
                let norm = self.loader.vector(&weight(Part::QLatentNorm, i), rank)?;
                (Some((linear, norm)), self.linear(Part::QFromLatent, i, q_dim, rank)?)
            }
        };
        let kv_latent = self.linear(Part::KvLatent, i, latent.kv_rank + latent.rotated_dim, dim)?;
        let kv_norm = self.loader.vector(&weight(Part::KvLatentNorm, i), latent.kv_rank)?;
        let has_split_parts = !self.loader.has(Part::KvFromLatent, i);
        let (keys, values) = match has_split_parts {
            true => self.split_heads(i, latent)?,
            false => self.joint_heads(i, latent)?,
        };
        let first = q_latent.as_ref().map_or(&q, |(linear, _)| linear);
        let kinds = |types: &[TensorType]| ActivationKinds::of(types.iter().copied());
        let of_heads = |heads: &[Matrix]| ActivationKinds::of(heads.iter().map(Matrix::ty));
        Ok(LatentAttention {
            norm: self.norm_if(config.has_pre_norms, Part::AttnNorm, i)?,
            input: kinds(&[first.weight.ty(), kv_latent.weight.ty()]).two_planes(),
            q_input: kinds(&[q.weight.ty()]).two_planes(),
            keys_input: of_heads(&keys).two_planes(),
            values_input: of_heads(&values),
            q_latent,
            q,
            kv_latent,
            kv_norm,
            keys,
            values,
            has_split_parts,
            output: self.linear(Part::AttnOutput, i, dim, config.n_heads * latent.value_dim)?,
            post_norm: self.norm_if(config.has_post_norms, Part::AttnPostNorm, i)?,
        })
    }

    /// The matrices of all heads for keys and values, which are a tensor each.
    fn split_heads(&mut self, i: usize, latent: &LatentConfig) -> Result<(Vec<Matrix>, Vec<Matrix>), ModelError> {
        let n_heads = self.loader.config().n_heads;
        let mut heads = |part, n_rows: usize, n_cols: usize| -> Result<Vec<Matrix>, ModelError> {
            let (name, shape) = (weight(part, i), [n_heads, n_rows, n_cols]);
            (0..n_heads).map(|head| self.matrix(&name, &shape, head * n_rows..(head + 1) * n_rows)).collect()
        };
        let keys = heads(Part::KFromLatent, latent.kv_rank, latent.plain_dim)?;
        Ok((keys, heads(Part::VFromLatent, latent.value_dim, latent.kv_rank)?))
    }

    /// The same of older files, where they are one tensor: of every head, the rows of its keys, then those of its values.
    /// Those of keys are turned, which makes F32 of quantized ones.
    fn joint_heads(&mut self, i: usize, latent: &LatentConfig) -> Result<(Vec<Matrix>, Vec<Matrix>), ModelError> {
        let n_heads = self.loader.config().n_heads;
        let LatentConfig { kv_rank, plain_dim, value_dim, .. } = *latent;
        let (name, of) = (weight(Part::KvFromLatent, i), plain_dim + value_dim);
        let shape = [n_heads * of, kv_rank];
        let (mut keys, mut values) = (Vec::with_capacity(n_heads), Vec::with_capacity(n_heads));
        for head in 0..n_heads {
            let (first, cpu) = (head * of, self.cpu);
            let turn = |ty: TensorType, bytes: &[u8]| {
                let rows = decode(&name, ty, bytes, plain_dim * kv_rank)?;
                let turned: Vec<u8> = (0..kv_rank * plain_dim)
                    .flat_map(|at| rows[at % plain_dim * kv_rank + at / plain_dim].to_le_bytes())
                    .collect();
                // Short floats stay so: the values are the same, and take less memory.
                match ty {
                    TensorType::F16 | TensorType::BF16 => {
                        let mut short = vec![0; kv_rank * plain_dim * 2];
                        cpu.convert(TensorType::F32, &turned, ty, plain_dim, None, &mut short)
                            .map_err(|source| CheckpointError::Decode { name: name.clone(), source })?;
                        Ok(cpu.pack(ty, kv_rank, plain_dim, &short)?)
                    }
                    _ => Ok(cpu.pack(TensorType::F32, kv_rank, plain_dim, &turned)?),
                }
            };
            keys.push(self.loader.rows(&name, &shape, first..first + plain_dim, turn)?);
            values.push(self.matrix(&name, &shape, first + plain_dim..first + of)?);
        }
        Ok((keys, values))
    }
}
