//! The tensors of layers, packed for this CPU. Devices that upload packed weights get them through
//! [`LayerLoader::layer`] and [`LayerLoader::head`].

pub use super::recurrent_weights::{DeltaGates, DeltaInputs, DeltaNet, ShortConv, StateSpace};
use crate::ModelError;
use crate::loader::{LayerLoader, weight};
use fewbit_checkpoint::names::{self, Part};
use fewbit_checkpoint::source::decode;
use fewbit_checkpoint::{DeltaNetConfig, ExpertConfig, QkNorm, Recurrent, StateSpaceConfig};
use fewbit_kernels::{ActivationKinds, Cpu, Isa, Matrix};
use fewbit_quant::TensorType;
use std::ops::Range;

/// A matrix, and the bias that is added to its products.
#[non_exhaustive]
pub struct Linear {
    /// The matrix.
    pub weight: Matrix,
    /// `[weight.n_rows]`
    pub bias: Option<Vec<f32>>,
}

/// One decoder layer, or the half of it that was asked for.
#[non_exhaustive]
pub struct Layer {
    /// Attention, which comes first.
    pub attention: Option<Attention>,
    /// Latent attention in its place.
    pub latent: Option<LatentAttention>,
    /// The gated delta rule, in layers that have it instead of attention.
    pub delta_net: Option<DeltaNet>,
    /// The state space, in layers that have it instead of attention.
    pub state_space: Option<StateSpace>,
    /// The short convolution, in layers that have it instead of attention.
    pub short_conv: Option<ShortConv>,
    /// The feed-forward part.
    pub ffn: Option<Ffn>,
    /// What comes after it, in layers that have an embedding of their own.
    pub per_layer: Option<PerLayer>,
    /// The factor of what leaves the layer.
    pub scale: Option<f32>,
}

/// What a layer adds to the residual stream of the per-layer embedding of a token.
#[non_exhaustive]
pub struct PerLayer {
    /// `[per_layer_dim, dim]`
    pub gate: Matrix,
    /// `[dim, per_layer_dim]`
    pub projection: Matrix,
    /// `[dim]`
    pub post_norm: Vec<f32>,
    /// How the input of the gate is quantized.
    pub(super) input: ActivationKinds,
}

/// The attention of a layer, with its norms.
#[non_exhaustive]
pub struct Attention {
    /// `[dim]`
    pub norm: Option<Vec<f32>>,
    /// The tensors of q, k and v: three, or one for all.
    pub(super) qkv_parts: &'static [Part],
    /// `[n_heads * head_dim, dim]`; with gates `[n_heads * 2 * head_dim, dim]`, the query of each head before its gate.
    pub q: Linear,
    /// `[n_kv_heads * head_dim, dim]`; none in layers that see the keys and values of another one.
    pub k: Option<Linear>,
    /// `[n_kv_heads * head_dim, dim]`; without it, what `k` gives is both.
    pub v: Option<Linear>,
    /// For queries and for keys, `[head_dim]` each, or the heads of a row together: `[n_heads * head_dim]` and
    /// `[n_kv_heads * head_dim]`. That of keys is empty in layers without keys.
    pub qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    /// `[head_dim]`: ones, in models whose values have a norm.
    pub value_norm: Option<Vec<f32>>,
    /// `[n_heads]`
    pub sinks: Option<Vec<f32>>,
    /// `[dim, n_heads * head_dim]`
    pub output: Linear,
    /// `[dim]`
    pub post_norm: Option<Vec<f32>>,
    /// How the input of q, k and v is quantized. Queries and keys go into an exponential, so their input is quantized
    /// to two planes: of all inputs except that of the output matrix, its error affects the result most (see
    /// docs/fidelity.md).
    pub(super) input: ActivationKinds,
}

/// The latent attention of a layer, with its norms.
#[non_exhaustive]
pub struct LatentAttention {
    /// `[dim]`
    pub norm: Option<Vec<f32>>,
    /// `[q_rank, dim]` and `[q_rank]`: the latent of the queries and its norm, if they have one.
    pub q_latent: Option<(Linear, Vec<f32>)>,
    /// `[n_heads * query_dim, q_rank]`, or `[n_heads * query_dim, dim]`
    pub q: Linear,
    /// `[kv_rank + rotated_dim, dim]`
    pub kv_latent: Linear,
    /// `[kv_rank]`
    pub kv_norm: Vec<f32>,
    /// `[n_heads]` matrices, `[kv_rank, plain_dim]` each.
    pub keys: Vec<Matrix>,
    /// `[n_heads]` matrices, `[value_dim, kv_rank]` each.
    pub values: Vec<Matrix>,
    /// `[dim, n_heads * value_dim]`
    pub output: Linear,
    /// `[dim]`
    pub post_norm: Option<Vec<f32>>,
    /// How the inputs are quantized, of the layer and of the queries from their latent: in two planes, as those of
    /// [`Attention`].
    pub(super) input: ActivationKinds,
    pub(super) q_input: ActivationKinds,
    /// The same for the inputs of `keys`, and in one plane for those of `values`.
    pub(super) keys_input: ActivationKinds,
    pub(super) values_input: ActivationKinds,
    /// The tensors of `keys` and `values`, if the file has one for each.
    pub(super) has_split_parts: bool,
}

/// The feed-forward part of a layer, with its norms.
#[non_exhaustive]
pub struct Ffn {
    /// `[dim]`
    pub norm: Option<Vec<f32>>,
    /// The matrices.
    pub matrices: FeedForward,
    /// `[dim]`
    pub post_norm: Option<Vec<f32>>,
    /// How the input is quantized.
    pub(super) input: ActivationKinds,
}

/// The matrices of a feed-forward part.
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "there is one for each layer")]
pub enum FeedForward {
    /// The same matrices for all tokens.
    Dense(Mlp),
    /// A few of many experts, chosen per token.
    Experts(Experts),
}

/// `down(f(gate x) * (up x))`, or `down(max(up x, 0)^2)` without a gate.
#[non_exhaustive]
pub struct Mlp {
    /// `[ffn_dim, dim]`
    pub gate: Option<Linear>,
    /// `[ffn_dim, dim]`
    pub up: Linear,
    /// `[dim, ffn_dim]`
    pub down: Linear,
    /// The tensors of gate and up, and the tensor of down.
    pub(super) input_parts: &'static [Part],
    pub(super) down_part: Part,
}

/// Routed experts.
#[non_exhaustive]
pub struct Experts {
    /// `[n_experts, dim]`
    pub router: Matrix,
    /// `[n_experts]`
    pub router_bias: Option<Vec<f32>>,
    /// `[n_experts]`: added to the weights of experts to choose some of them.
    pub choice_bias: Option<Vec<f32>>,
    /// The feed-forward block next to the experts, in models with one.
    pub mlp: Option<MlpBranch>,
    /// Whether one tensor holds the same matrix of all experts.
    pub(super) is_merged: bool,
    /// `[n_experts]`; either all matrices have biases or none.
    pub experts: Vec<Mlp>,
    /// The expert that every token goes through.
    pub shared: Option<Mlp>,
    /// `[1, dim]`: computes the score of the shared expert.
    pub shared_router: Option<Matrix>,
}

/// A plain feed-forward block next to experts: it has the norm of the input that [`Ffn`] has, and the experts have their
/// own.
#[non_exhaustive]
pub struct MlpBranch {
    /// The matrices.
    pub mlp: Mlp,
    /// `[dim]`: of the output of `mlp`.
    pub post_norm: Vec<f32>,
    /// `[dim]`: of the input of the router.
    pub router_norm: Vec<f32>,
    /// `[n_experts]`: factors of the weights of experts.
    pub expert_factors: Vec<f32>,
    /// `[dim]`: of the input of the experts.
    pub expert_norm: Vec<f32>,
    /// `[dim]`: of their output.
    pub expert_post_norm: Vec<f32>,
    /// How the inputs of `mlp` and of the router are quantized.
    pub(super) input: ActivationKinds,
    pub(super) router_input: ActivationKinds,
}

/// The weights after the last layer.
#[non_exhaustive]
pub struct HeadWeights {
    /// `[dim]`
    pub norm: Vec<f32>,
    /// `[n_vocab, dim]`
    pub output: Linear,
}

/// For devices that lay out weights as the CPU does.
impl LayerLoader<'_> {
    /// Takes a layer, or the [half](Self::layer_part) of it that is wanted, and packs its matrices for the CPU's
    /// instruction set.
    ///
    /// # Errors
    /// [`ModelError`] for tensors that are missing, have the wrong shape, or have a type that no product can read.
    pub fn layer(&mut self, cpu: &Cpu, layer: usize) -> Result<Layer, ModelError> {
        Packer { loader: self, cpu }.layer(layer)
    }

    /// Takes the weights after the last layer; an output matrix that is tied to the embedding is packed separately.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn head(&mut self, cpu: &Cpu) -> Result<HeadWeights, ModelError> {
        let dim = self.config().dim;
        let output = Packer { loader: self, cpu }.output(dim)?;
        Ok(HeadWeights { output, norm: self.output_norm()? })
    }
}

impl Layer {
    /// Bytes of the layer's matrices.
    pub fn n_bytes(&self) -> u64 {
        self.matrices().map(|m| m.n_bytes() as u64).sum()
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let mut all = Vec::new();
        if let Some(w) = &self.attention {
            all.extend([&w.q.weight, &w.output.weight]);
            all.extend(w.k.iter().chain(&w.v).map(|w| &w.weight));
        }
        if let Some(w) = &self.latent {
            all.extend(w.q_latent.as_ref().map(|(latent, _)| &latent.weight));
            all.extend([&w.q.weight, &w.kv_latent.weight, &w.output.weight]);
            all.extend(w.keys.iter().chain(&w.values));
        }
        all.extend(self.delta_net.iter().flat_map(DeltaNet::matrices));
        all.extend(self.state_space.iter().flat_map(StateSpace::matrices));
        all.extend(self.short_conv.iter().flat_map(|w| [&w.inputs, &w.output.weight]));
        match self.ffn.as_ref().map(|ffn| &ffn.matrices) {
            None => {}
            Some(FeedForward::Dense(mlp)) => all.extend(mlp.matrices()),
            Some(FeedForward::Experts(experts)) => {
                all.push(&experts.router);
                all.extend(&experts.shared_router);
                all.extend(experts.experts.iter().chain(&experts.shared).flat_map(Mlp::matrices));
                all.extend(experts.mlp.iter().flat_map(|branch| branch.mlp.matrices()));
            }
        }
        all.extend(self.per_layer.iter().flat_map(|w| [&w.gate, &w.projection]));
        all.into_iter()
    }
}

impl Mlp {
    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.gate.iter().chain([&self.up, &self.down]).map(|linear| &linear.weight)
    }

    /// Types of the weights that are multiplied with the input.
    fn input_types(&self) -> impl Iterator<Item = TensorType> {
        self.gate.iter().chain([&self.up]).map(|linear| linear.weight.ty())
    }
}

/// Takes matrices and packs them.
pub(super) struct Packer<'a, 'b> {
    pub(super) loader: &'a mut LayerLoader<'b>,
    pub(super) cpu: &'a Cpu,
}

/// Packs some rows of a tensor of this shape for an instruction set.
pub(crate) fn pack(
    loader: &mut LayerLoader<'_>,
    cpu: &Cpu,
    isa: Isa,
    name: &str,
    shape: &[usize],
    rows: Range<usize>,
) -> Result<Matrix, ModelError> {
    let (n_rows, n_cols) = (rows.len(), shape[shape.len() - 1]);
    let pack = |ty, bytes: &[u8]| Ok(Matrix::pack(cpu.pool(), isa, ty, n_rows, n_cols, bytes)?);
    loader.rows(name, shape, rows, pack)
}

impl Packer<'_, '_> {
    pub(super) fn layer(&mut self, i: usize) -> Result<Layer, ModelError> {
        let part = self.loader.layer_part();
        let (recurrent, is_latent) = (self.loader.config().recurrent_of(i), self.loader.config().latent.is_some());
        let here = self.loader.config().layers[i];
        let (mut attention, mut latent, mut delta_net, mut state_space, mut short_conv) =
            (None, None, None, None, None);
        match recurrent {
            _ if !part.has_attention() || !here.has_attention => {}
            None if is_latent => latent = Some(self.latent_attention(i)?),
            None => attention = Some(self.attention(i)?),
            Some(Recurrent::DeltaNet(config)) => delta_net = Some(self.delta_net(i, config)?),
            Some(Recurrent::StateSpace(config)) => state_space = Some(self.state_space(i, config)?),
            Some(Recurrent::ShortConvolution { n_taps }) => short_conv = Some(self.short_conv(i, n_taps)?),
            Some(_) => unreachable!("every kind of recurrent layer is above"),
        }
        let has_ffn = part.has_feed_forward() && here.has_feed_forward;
        let mut ffn = has_ffn.then(|| self.ffn(i)).transpose()?;
        if let (true, Some(ffn)) = (self.loader.config().is_parallel, &mut ffn) {
            ffn.norm = match &attention {
                Some(attention) => attention.norm.clone(),
                None => self.norm_if(self.loader.config().has_pre_norms, Part::AttnNorm, i)?,
            };
        }
        let per_layer = match self.loader.config().per_layer_dim {
            Some(width) if part.has_feed_forward() => Some(self.per_layer(i, width)?),
            _ => None,
        };
        let has_scale = self.loader.config().has_layer_scales && self.loader.has(Part::LayerScale, i);
        let scale = match has_scale && part.has_feed_forward() {
            true => self.loader.vector(&weight(Part::LayerScale, i), 1)?.first().copied(),
            false => None,
        };
        Ok(Layer { attention, latent, delta_net, state_space, short_conv, ffn, per_layer, scale })
    }

    fn per_layer(&mut self, i: usize, width: usize) -> Result<PerLayer, ModelError> {
        let dim = self.loader.config().dim;
        let gate = self.whole(Part::LayerGate, i, width)?;
        Ok(PerLayer {
            input: ActivationKinds::of([gate.ty()]),
            gate,
            projection: self.matrix(&weight(Part::LayerProjection, i), &[dim, width], 0..dim)?,
            post_norm: self.loader.vector(&weight(Part::LayerPostNorm, i), dim)?,
        })
    }

    fn short_conv(&mut self, i: usize, n_taps: usize) -> Result<ShortConv, ModelError> {
        let dim = self.loader.config().dim;
        let inputs = self.whole(Part::ConvIn, i, 3 * dim)?;
        Ok(ShortConv {
            norm: self.norm_if(self.loader.config().has_pre_norms, Part::AttnNorm, i)?,
            input: ActivationKinds::of([inputs.ty()]),
            inputs,
            convolution: self.convolution(Part::Conv, i, dim, n_taps)?,
            n_taps,
            output: self.linear(Part::ConvOut, i, dim, dim)?,
        })
    }

    /// The weights of a convolution, `[n_taps, n_channels]`; a file has those of a channel together.
    fn convolution(&mut self, part: Part, i: usize, n_channels: usize, n_taps: usize) -> Result<Vec<f32>, ModelError> {
        let (name, n) = (weight(part, i), n_channels * n_taps);
        let taps = self
            .loader
            .rows(&name, &[n_channels, n_taps], 0..n_channels, |ty, bytes| Ok(decode(&name, ty, bytes, n)?))?;
        Ok((0..n).map(|at| taps[at % n_channels * n_taps + at / n_channels]).collect())
    }

    fn delta_net(&mut self, i: usize, config: DeltaNetConfig) -> Result<DeltaNet, ModelError> {
        let (dim, n_channels, n_heads) = (self.loader.config().dim, config.n_channels(), config.n_v_heads);
        let is_mixed = self.loader.has(Part::SsmIn, i);
        let inputs = match is_mixed {
            true => DeltaInputs::Mixed(self.whole(Part::SsmIn, i, n_channels + config.value_dim())?),
            false => DeltaInputs::Apart {
                qkv: self.whole(Part::Qkv, i, n_channels)?,
                z: self.whole(Part::AttnGate, i, config.value_dim())?,
            },
        };
        let has_mixed_gates = self.loader.has(Part::SsmBetaAlpha, i);
        let gates = match has_mixed_gates {
            true => DeltaGates::Mixed(self.whole(Part::SsmBetaAlpha, i, 2 * n_heads)?),
            false => DeltaGates::Apart {
                beta: self.whole(Part::SsmBeta, i, n_heads)?,
                alpha: self.whole(Part::SsmAlpha, i, n_heads)?,
            },
        };
        let input_parts: &[Part] = match (is_mixed, has_mixed_gates) {
            (true, true) => &[Part::SsmIn, Part::SsmBetaAlpha],
            (true, false) => &[Part::SsmIn, Part::SsmBeta, Part::SsmAlpha],
            (false, true) => &[Part::Qkv, Part::AttnGate, Part::SsmBetaAlpha],
            (false, false) => &[Part::Qkv, Part::AttnGate, Part::SsmBeta, Part::SsmAlpha],
        };
        let convolution = self.convolution(Part::SsmConv, i, n_channels, config.n_taps)?;
        let mut net = DeltaNet {
            config,
            norm: self.norm_if(self.loader.config().has_pre_norms, Part::AttnNorm, i)?,
            inputs,
            gates,
            input_parts,
            convolution,
            dt: self.loader.vector(&format!("{}.bias", names::gguf(Part::SsmDt, i)), n_heads)?,
            decay: self.loader.vector(&names::gguf(Part::SsmA, i), n_heads)?,
            out_norm: self.loader.vector(&weight(Part::SsmNorm, i), config.v_dim)?,
            output: self.linear(Part::SsmOut, i, dim, config.value_dim())?,
            input: ActivationKinds::of([]),
        };
        let matrices = net.matrices();
        net.input = ActivationKinds::of(matrices[..matrices.len() - 1].iter().map(|m| m.ty())).two_planes();
        Ok(net)
    }

    fn state_space(&mut self, i: usize, config: StateSpaceConfig) -> Result<StateSpace, ModelError> {
        let (dim, n_heads, value_dim) = (self.loader.config().dim, config.n_heads, config.value_dim());
        let n_channels = config.n_channels();
        let [z, channels, time_steps] =
            self.split(Part::SsmIn, i, [value_dim, n_channels, n_heads], dim)?.map(|linear| linear.weight);
        let group_dim = value_dim / config.n_groups;
        Ok(StateSpace {
            config,
            norm: self.norm_if(self.loader.config().has_pre_norms, Part::AttnNorm, i)?,
            input: ActivationKinds::of([z.ty()]).two_planes(),
            z,
            channels,
            time_steps,
            convolution: self.convolution(Part::SsmConv, i, n_channels, config.n_taps)?,
            convolution_bias: self.bias(Part::SsmConv, i, n_channels)?,
            dt: self.loader.vector(&format!("{}.bias", names::gguf(Part::SsmDt, i)), n_heads)?,
            decay: self.table(&names::gguf(Part::SsmA, i), [n_heads, 1])?,
            d: self.table(&names::gguf(Part::SsmD, i), [n_heads, 1])?,
            out_norm: self.table(&weight(Part::SsmNorm, i), [config.n_groups, group_dim])?,
            output: self.linear(Part::SsmOut, i, dim, value_dim)?,
        })
    }

    /// The values of a small tensor with two dimensions.
    fn table(&mut self, name: &str, shape: [usize; 2]) -> Result<Vec<f32>, ModelError> {
        let take = |ty, bytes: &[u8]| Ok(decode(name, ty, bytes, shape[0] * shape[1])?);
        self.loader.rows(name, &shape, 0..shape[0], take)
    }

    /// A matrix of this many rows for the residual stream.
    fn whole(&mut self, part: Part, i: usize, n_rows: usize) -> Result<Matrix, ModelError> {
        let dim = self.loader.config().dim;
        self.matrix(&weight(part, i), &[n_rows, dim], 0..n_rows)
    }

    fn attention(&mut self, i: usize) -> Result<Attention, ModelError> {
        let config = self.loader.config();
        let (dim, head_dim) = (config.dim, config.head_dim_of(i));
        let (q_dim, kv_dim) = (config.n_heads * head_dim, config.n_kv_heads_of(i) * head_dim);
        let query_rows = if config.has_output_gate { 2 * q_dim } else { q_dim };
        let has_kv = !config.shares_kv(i);
        let is_fused = has_kv && self.loader.has(Part::Qkv, i);
        let has_values = has_kv && (!config.can_lack_values(i) || self.loader.has(Part::V, i));
        let (q, k, v) = if is_fused {
            let [q, k, v] = self.split(Part::Qkv, i, [query_rows, kv_dim, kv_dim], dim)?;
            (q, Some(k), Some(v))
        } else {
            let q = self.linear(Part::Q, i, query_rows, dim)?;
            let k = has_kv.then(|| self.linear(Part::K, i, kv_dim, dim)).transpose()?;
            (q, k, has_values.then(|| self.linear(Part::V, i, kv_dim, dim)).transpose()?)
        };
        let mut norm = |part, len| self.loader.vector(&weight(part, i), len);
        let qk_norm = match config.qk_norm_of(i) {
            Some(QkNorm::Heads | QkNorm::RotatedHeads) => {
                let of_keys = if has_kv { norm(Part::KNorm, head_dim)? } else { Vec::new() };
                Some((norm(Part::QNorm, head_dim)?, of_keys))
            }
            Some(QkNorm::Rows) => Some((norm(Part::QNorm, q_dim)?, norm(Part::KNorm, kv_dim)?)),
            Some(QkNorm::Plain) => Some((vec![1.0; head_dim], vec![1.0; head_dim])),
            None => None,
            Some(_) => unreachable!("every norm of `QkNorm` is above"),
        };
        let sinks = match config.has_sinks {
            true => Some(norm(Part::AttnSinks, config.n_heads)?),
            false => None,
        };
        let types = [Some(&q), k.as_ref(), v.as_ref()].into_iter().flatten().map(|w| w.weight.ty());
        let input = ActivationKinds::of(types).two_planes();
        Ok(Attention {
            input,
            norm: self.norm_if(config.has_pre_norms, Part::AttnNorm, i)?,
            qkv_parts: match (is_fused, has_kv, has_values) {
                (true, ..) => &[Part::Qkv],
                (_, false, _) => &[Part::Q],
                (_, _, false) => &[Part::Q, Part::K],
                _ => &[Part::Q, Part::K, Part::V],
            },
            q,
            k,
            v,
            qk_norm,
            value_norm: (config.has_value_norm && has_kv).then(|| vec![1.0; head_dim]),
            sinks,
            output: self.linear(Part::AttnOutput, i, dim, q_dim)?,
            post_norm: self.norm_if(config.has_post_norms, Part::AttnPostNorm, i)?,
        })
    }

    fn ffn(&mut self, i: usize) -> Result<Ffn, ModelError> {
        let config = self.loader.config();
        let dim = config.dim;
        let (matrices, input) = match config.experts_of(i) {
            Some(experts) => {
                let experts = self.experts(i, dim, experts)?;
                let is_apart = experts.mlp.is_some();
                let mlps = experts.experts.iter().chain(&experts.shared).flat_map(Mlp::input_types);
                let routers = [&experts.router].into_iter().chain(&experts.shared_router).map(Matrix::ty);
                // The router next to a feed-forward block has an input of its own.
                let kinds = ActivationKinds::of(mlps.chain(routers.filter(|_| !is_apart)));
                (FeedForward::Experts(experts), kinds)
            }
            None => {
                let mlp = self.mlp(i, dim, config.ffn_dim_of(i))?;
                let kinds = ActivationKinds::of(mlp.input_types());
                (FeedForward::Dense(mlp), kinds)
            }
        };
        let has_norm = config.has_pre_norms && !config.is_parallel;
        let norm = self.norm_if(has_norm, names::ffn_norm(&config.architecture), i)?;
        let post_norm = self.norm_if(config.has_post_norms, Part::FfnPostNorm, i)?;
        Ok(Ffn { norm, matrices, post_norm, input })
    }

    /// A norm of the residual stream, in models that have it.
    pub(super) fn norm_if(&mut self, is_there: bool, part: Part, i: usize) -> Result<Option<Vec<f32>>, ModelError> {
        let dim = self.loader.config().dim;
        is_there.then(|| self.loader.vector(&weight(part, i), dim)).transpose()
    }

    fn mlp(&mut self, i: usize, dim: usize, ffn_dim: usize) -> Result<Mlp, ModelError> {
        let down = self.linear(Part::Down, i, dim, ffn_dim)?;
        if !self.loader.config().is_gated {
            let up = self.linear(Part::Up, i, ffn_dim, dim)?;
            return Ok(Mlp { gate: None, up, down, input_parts: &[Part::Up], down_part: Part::Down });
        }
        // Without a separate gate tensor, the rows of the gate precede those of the other matrix.
        let is_fused = !self.loader.has(Part::Gate, i);
        let [gate, up] = match !is_fused {
            true => [self.linear(Part::Gate, i, ffn_dim, dim)?, self.linear(Part::Up, i, ffn_dim, dim)?],
            false => self.split(Part::Up, i, [ffn_dim, ffn_dim], dim)?,
        };
        let input_parts: &[Part] = if is_fused { &[Part::Up] } else { &[Part::Gate, Part::Up] };
        Ok(Mlp { gate: Some(gate), up, down, input_parts, down_part: Part::Down })
    }

    fn experts(&mut self, i: usize, dim: usize, config: ExpertConfig) -> Result<Experts, ModelError> {
        let (n, ffn_dim) = (config.n_experts, config.ffn_dim);
        let router = self.matrix(&weight(Part::Router, i), &[n, dim], 0..n)?;
        let router_bias = self.bias(Part::Router, i, n)?;
        let choice_bias = self.bias(Part::ExpertBias, i, n)?;
        // All experts in one tensor or, in older files, one tensor per expert.
        let is_joint = self.loader.has(Part::ExpertGateUps, i);
        let is_gated = self.loader.config().is_gated;
        let first = if is_gated { Part::ExpertGates } else { Part::ExpertUps };
        let is_merged = is_joint || self.loader.has(first, i);
        let mut parts = |merged, single, rows: usize, cols: usize| -> Result<Vec<Linear>, ModelError> {
            let expert = |e: usize| {
                let weight = if is_merged {
                    self.matrix(&weight(merged, i), &[n, rows, cols], e * rows..(e + 1) * rows)
                } else {
                    self.matrix(&format!("{}.{e}.weight", names::gguf(single, i)), &[rows, cols], 0..rows)
                };
                let bias = if is_merged { self.expert_bias(merged, i, [n, rows], e)? } else { None };
                Ok(Linear { weight: weight?, bias })
            };
            (0..n).map(expert).collect()
        };
        let downs = parts(Part::ExpertDowns, Part::Down, dim, ffn_dim)?;
        let (gates, ups) = match is_joint {
            true => {
                let (gates, ups) = self.joint_experts(i, dim, &config)?;
                (Some(gates), ups)
            }
            false => {
                let gates = is_gated.then(|| parts(Part::ExpertGates, Part::Gate, ffn_dim, dim)).transpose()?;
                (gates, parts(Part::ExpertUps, Part::Up, ffn_dim, dim)?)
            }
        };
        let (input_parts, down_part): (&[Part], _) = match (is_merged, is_gated) {
            (true, _) if is_joint => (&[Part::ExpertGateUps], Part::ExpertDowns),
            (true, true) => (&[Part::ExpertGates, Part::ExpertUps], Part::ExpertDowns),
            (true, false) => (&[Part::ExpertUps], Part::ExpertDowns),
            (false, true) => (&[Part::Gate, Part::Up], Part::Down),
            (false, false) => (&[Part::Up], Part::Down),
        };
        let all =
            [(Part::ExpertGates, gates.as_ref()), (Part::ExpertUps, Some(&ups)), (Part::ExpertDowns, Some(&downs))];
        let has_bias = |all: &[Linear]| all.first().is_some_and(|first| first.bias.is_some());
        let biases: Vec<_> = all.into_iter().filter_map(|(part, all)| Some((part, has_bias(all?)))).collect();
        let lacks = biases.iter().find(|(_, has_bias)| !has_bias);
        if let Some((part, _)) = lacks.filter(|_| biases.iter().any(|(_, has_bias)| *has_bias)) {
            let name = names::gguf(*part, i);
            return Err(self.loader.find(&format!("{name}.bias")).expect_err("it has been looked for"));
        }
        let gates = gates
            .map_or_else(|| (0..n).map(|_| None).collect(), |gates| gates.into_iter().map(Some).collect::<Vec<_>>());
        let experts = gates.into_iter().zip(ups).zip(downs);
        let experts = experts.map(|((gate, up), down)| Mlp { gate, up, down, input_parts, down_part }).collect();
        let shared = match config.shared_ffn_dim {
            Some(ffn_dim) => Some(Mlp {
                gate: is_gated.then(|| self.linear(Part::SharedGate, i, ffn_dim, dim)).transpose()?,
                up: self.linear(Part::SharedUp, i, ffn_dim, dim)?,
                down: self.linear(Part::SharedDown, i, dim, ffn_dim)?,
                input_parts: if is_gated { &[Part::SharedGate, Part::SharedUp] } else { &[Part::SharedUp] },
                down_part: Part::SharedDown,
            }),
            None => None,
        };
        let shared_router = match config.has_shared_gate {
            true => {
                let name = weight(Part::SharedRouter, i);
                let is_vector = self.loader.find(&name)?.shape.len() == 1;
                Some(self.matrix(&name, &[1, dim][usize::from(is_vector)..], 0..1)?)
            }
            false => None,
        };
        let mlp = config.next_to_mlp.then(|| self.mlp_branch(i, dim, &config, router.ty())).transpose()?;
        Ok(Experts { router, router_bias, choice_bias, mlp, is_merged, experts, shared, shared_router })
    }

    /// The feed-forward block next to experts, and the norms of both.
    fn mlp_branch(
        &mut self,
        i: usize,
        dim: usize,
        config: &ExpertConfig,
        router: TensorType,
    ) -> Result<MlpBranch, ModelError> {
        let mlp = self.mlp(i, dim, self.loader.config().ffn_dim_of(i))?;
        let input = ActivationKinds::of(mlp.input_types());
        let root = (1.0 / (dim as f64).sqrt()) as f32;
        let mut norm = |part| self.loader.vector(&weight(part, i), dim);
        let (post_norm, expert_norm) = (norm(Part::MlpPostNorm)?, norm(Part::ExpertNorm)?);
        let expert_post_norm = norm(Part::ExpertPostNorm)?;
        // The input of the router is divided by the root of its length, too.
        let router_norm = self.loader.vector(&names::gguf(Part::RouterNorm, i), dim)?;
        Ok(MlpBranch {
            mlp,
            post_norm,
            router_norm: router_norm.iter().map(|w| w * root).collect(),
            expert_factors: self.loader.vector(&names::gguf(Part::ExpertFactors, i), config.n_experts)?,
            expert_norm,
            expert_post_norm,
            input,
            router_input: ActivationKinds::of([router]),
        })
    }

    /// The gates and ups of all experts, whose rows are in one tensor.
    fn joint_experts(
        &mut self,
        i: usize,
        dim: usize,
        config: &ExpertConfig,
    ) -> Result<(Vec<Linear>, Vec<Linear>), ModelError> {
        let (name, n, ffn_dim) = (weight(Part::ExpertGateUps, i), config.n_experts, config.ffn_dim);
        let shape = [n, 2 * ffn_dim, dim];
        let (mut gates, mut ups) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for half in (0..2 * n).map(|half| half * ffn_dim..(half + 1) * ffn_dim) {
            let to = if gates.len() == ups.len() { &mut gates } else { &mut ups };
            to.push(Linear { weight: self.matrix(&name, &shape, half)?, bias: None });
        }
        Ok((gates, ups))
    }

    /// A matrix with its bias, if it has one.
    pub(super) fn linear(
        &mut self,
        part: Part,
        layer: usize,
        n_rows: usize,
        n_cols: usize,
    ) -> Result<Linear, ModelError> {
        let weight = self.matrix(&weight(part, layer), &[n_rows, n_cols], 0..n_rows)?;
        Ok(Linear { weight, bias: self.bias(part, layer, n_rows)? })
    }

    /// Matrices of `n_rows` rows each that are stored one after another in one tensor.
    fn split<const N: usize>(
        &mut self,
        part: Part,
        layer: usize,
        n_rows: [usize; N],
        n_cols: usize,
    ) -> Result<[Linear; N], ModelError> {
        let total = n_rows.iter().sum();
        let bias = self.bias(part, layer, total)?;
        let (mut parts, mut end) = (Vec::with_capacity(N), 0);
        for n in n_rows {
            end += n;
            let rows = end - n..end;
            let weight = self.matrix(&weight(part, layer), &[total, n_cols], rows.clone())?;
            parts.push(Linear { weight, bias: bias.as_ref().map(|b| b[rows].to_vec()) });
        }
        Ok(parts.try_into().unwrap_or_else(|_| unreachable!("one matrix for each of {N} numbers of rows")))
    }

    /// The output matrix: its own tensor, or a copy of the embedding, which is then on another device.
    pub(super) fn output(&mut self, dim: usize) -> Result<Linear, ModelError> {
        // It has as many rows as the embedding.
        let embedding = weight(Part::TokenEmbedding, 0);
        let n_vocab = self.loader.find(&embedding)?.shape.first().copied().unwrap_or(0);
        let n_vocab = usize::try_from(n_vocab).unwrap_or(usize::MAX);
        if self.loader.has(Part::Output, 0) {
            return self.linear(Part::Output, 0, n_vocab, dim);
        }
        let weight = self.matrix(&embedding, &[n_vocab, dim], 0..n_vocab)?;
        Ok(Linear { weight, bias: self.bias(Part::Output, 0, n_vocab)? })
    }

    pub(super) fn bias(&mut self, part: Part, layer: usize, len: usize) -> Result<Option<Vec<f32>>, ModelError> {
        let name = format!("{}.bias", names::gguf(part, layer));
        match self.loader.find(&name).ok() {
            Some(_) => self.loader.vector(&name, len).map(Some),
            None => Ok(None),
        }
    }

    /// The bias of one expert, if the experts have biases. `shape` is that of the biases of all.
    fn expert_bias(
        &mut self,
        part: Part,
        layer: usize,
        shape: [usize; 2],
        expert: usize,
    ) -> Result<Option<Vec<f32>>, ModelError> {
        let name = format!("{}.bias", names::gguf(part, layer));
        if self.loader.find(&name).is_err() {
            return Ok(None);
        }
        let take = |ty, bytes: &[u8]| Ok(decode(&name, ty, bytes, shape[1])?);
        self.loader.rows(&name, &shape, expert..expert + 1, take).map(Some)
    }

    /// Some rows of a tensor of this shape, interleaved for products.
    pub(super) fn matrix(&mut self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Matrix, ModelError> {
        pack(self.loader, self.cpu, self.cpu.isa(), name, shape, rows)
    }
}
