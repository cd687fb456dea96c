//! The tensors of a model: their shapes, and how they are taken into memory.

use crate::config::ExpertConfig;
use crate::names::{self, Part};
use crate::source::{WeightSource, decode};
use crate::{ModelConfig, ModelError};
use fewbit_format::TensorInfo;
use fewbit_kernels::{ActivationKinds, Engine, Isa, Matrix, ThreadPool};
use fewbit_quant::TensorType;
use std::collections::HashSet;
use std::ops::Range;

/// Everything that a forward pass multiplies with. Matrices are `[rows, columns]` = `[outputs, inputs]`.
pub(crate) struct Weights {
    /// `[n_vocab, dim]`; the output matrix serves where the two are tied.
    embedding: Option<Matrix>,
    pub(crate) layers: Vec<Layer>,
    /// `[dim]`
    pub(crate) output_norm: Vec<f32>,
    /// `[n_vocab, dim]`
    pub(crate) output: Linear,
}

/// A matrix, and what is added to its products.
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    /// `[weight.n_rows]`
    pub(crate) bias: Option<Vec<f32>>,
}

/// One decoder layer.
pub(crate) struct Layer {
    /// `[dim]`
    pub(crate) attn_norm: Vec<f32>,
    /// The tensors of q, k and v: three, or one.
    pub(crate) qkv_parts: &'static [Part],
    /// `[n_heads * head_dim, dim]`
    pub(crate) q: Linear,
    /// `[n_kv_heads * head_dim, dim]`
    pub(crate) k: Linear,
    /// `[n_kv_heads * head_dim, dim]`
    pub(crate) v: Linear,
    /// `[head_dim]` each, for queries and for keys.
    pub(crate) qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    /// `[dim, n_heads * head_dim]`
    pub(crate) attn_output: Linear,
    /// `[dim]`
    pub(crate) attn_post_norm: Option<Vec<f32>>,
    /// `[dim]`
    pub(crate) ffn_norm: Vec<f32>,
    pub(crate) ffn: FeedForward,
    /// `[dim]`
    pub(crate) ffn_post_norm: Option<Vec<f32>>,
    /// How the input of q, k and v is quantized. Queries and keys go into an exponential, so their input is
    /// quantized to two planes: of all inputs but the output's, its error weighs most in the result (see
    /// docs/fidelity.md).
    pub(crate) qkv_input: ActivationKinds,
    /// How the input of the feed-forward part is quantized.
    pub(crate) ffn_input: ActivationKinds,
}

/// What follows attention in a layer.
pub(crate) enum FeedForward {
    Dense(Mlp),
    Experts(Experts),
}

/// `down(f(gate x) * (up x))`
pub(crate) struct Mlp {
    /// `[ffn_dim, dim]`
    pub(crate) gate: Linear,
    /// `[ffn_dim, dim]`
    pub(crate) up: Linear,
    /// `[dim, ffn_dim]`
    pub(crate) down: Linear,
    /// The tensors of gate and up, and that of down.
    pub(crate) input_parts: &'static [Part],
    pub(crate) down_part: Part,
}

/// Routed experts.
pub(crate) struct Experts {
    /// `[n_experts, dim]`
    pub(crate) router: Matrix,
    /// All experts' matrices of a kind are one tensor.
    pub(crate) is_merged: bool,
    /// `[n_experts]`; without biases.
    pub(crate) experts: Vec<Mlp>,
    /// The expert that every token goes through.
    pub(crate) shared: Option<Mlp>,
    /// `[1, dim]`: gives the score of the shared expert.
    pub(crate) shared_router: Option<Matrix>,
}

/// Where tensors come from, and how far along loading is.
struct Loader<'a> {
    source: &'a dyn WeightSource,
    total_bytes: u64,
    engine: &'a Engine,
    progress: &'a (dyn Fn(u64, u64) + Send + Sync),
    done_bytes: u64,
    /// Names of the tensors that are part of the model.
    known: HashSet<String>,
}

impl Weights {
    /// Packs every tensor of the model; pages of the file are given back as they have been read.
    pub(crate) fn load(
        source: &dyn WeightSource,
        config: &ModelConfig,
        engine: &Engine,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Self, ModelError> {
        let total_bytes = source.n_bytes();
        let mut loader = Loader { source, total_bytes, engine, progress, done_bytes: 0, known: HashSet::new() };
        let dim = config.dim;
        let name = weight(Part::TokenEmbedding, 0);
        let n_vocab = *loader.find(&name)?.shape.first().unwrap_or(&0);
        let n_vocab = usize::try_from(n_vocab).unwrap_or(usize::MAX);
        let (output, embedding) = if loader.has(Part::Output, 0) {
            let embedding = loader.pack(&name, &[n_vocab, dim], 0..n_vocab, Isa::Scalar)?;
            (loader.linear(Part::Output, 0, n_vocab, dim)?, Some(embedding))
        } else {
            let weight = loader.matrix(&name, &[n_vocab, dim], 0..n_vocab)?;
            (Linear { weight, bias: loader.bias(Part::Output, 0, n_vocab)? }, None)
        };
        let layers = (0..config.n_layers()).map(|i| loader.layer(i, config)).collect::<Result<_, _>>()?;
        let output_norm = loader.vector(&weight(Part::OutputNorm, 0), dim)?;
        let is_unknown = |name: &str| !loader.known.contains(name) && !names::is_ignored_in_gguf(name);
        match source.tensors().iter().find(|t| is_unknown(&t.name)) {
            Some(tensor) => Err(ModelError::UnexpectedTensor {
                name: source.name_in_file(&tensor.name),
                architecture: config.architecture.clone(),
            }),
            None => Ok(Self { embedding, layers, output_norm, output }),
        }
    }

    /// Size of the vocabulary.
    pub(crate) fn n_vocab(&self) -> usize {
        self.output.weight.n_rows()
    }

    /// The embedding of a token: `out` is `[dim]`.
    pub(crate) fn embed(&self, token: usize, out: &mut [f32]) {
        self.embedding.as_ref().unwrap_or(&self.output.weight).decode_row(token, out);
    }

    /// Bytes of all matrices.
    pub(crate) fn n_bytes(&self) -> u64 {
        let matrices = self.layers.iter().flat_map(Layer::matrices);
        matrices.chain([&self.output.weight]).chain(&self.embedding).map(|m| m.n_bytes() as u64).sum()
    }
}

impl Layer {
    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let mut all = vec![&self.q.weight, &self.k.weight, &self.v.weight, &self.attn_output.weight];
        match &self.ffn {
            FeedForward::Dense(mlp) => all.extend(mlp.matrices()),
            FeedForward::Experts(experts) => {
                all.push(&experts.router);
                all.extend(&experts.shared_router);
                all.extend(experts.experts.iter().chain(&experts.shared).flat_map(Mlp::matrices));
            }
        }
        all.into_iter()
    }
}

impl Mlp {
    fn matrices(&self) -> [&Matrix; 3] {
        [&self.gate.weight, &self.up.weight, &self.down.weight]
    }

    /// Types of the weights that the input meets.
    fn input_types(&self) -> [TensorType; 2] {
        [self.gate.weight.ty(), self.up.weight.ty()]
    }
}

/// The name of a part's matrix or norm.
fn weight(part: Part, layer: usize) -> String {
    format!("{}.weight", names::gguf(part, layer))
}

impl Loader<'_> {
    fn layer(&mut self, i: usize, config: &ModelConfig) -> Result<Layer, ModelError> {
        let (dim, head_dim) = (config.dim, config.head_dim);
        let (q_dim, kv_dim) = (config.n_heads * head_dim, config.n_kv_heads * head_dim);
        let is_fused = self.has(Part::Qkv, i);
        let [q, k, v] = match is_fused {
            true => self.split(Part::Qkv, i, [q_dim, kv_dim, kv_dim], dim)?,
            false => [
                self.linear(Part::Q, i, q_dim, dim)?,
                self.linear(Part::K, i, kv_dim, dim)?,
                self.linear(Part::V, i, kv_dim, dim)?,
            ],
        };
        let qk_norm = match config.has_qk_norm {
            true => {
                let mut norm = |part| self.vector(&weight(part, i), head_dim);
                Some((norm(Part::QNorm)?, norm(Part::KNorm)?))
            }
            false => None,
        };
        let mut post_norm = |part| match config.has_post_norms {
            true => self.vector(&weight(part, i), dim).map(Some),
            false => Ok(None),
        };
        let (attn_post_norm, ffn_post_norm) = (post_norm(Part::AttnPostNorm)?, post_norm(Part::FfnPostNorm)?);
        let (ffn, ffn_input) = match config.experts {
            Some(experts) => {
                let experts = self.experts(i, dim, experts)?;
                let mlps = experts.experts.iter().chain(&experts.shared).flat_map(Mlp::input_types);
                let routers = [&experts.router].into_iter().chain(&experts.shared_router).map(Matrix::ty);
                let kinds = ActivationKinds::of(mlps.chain(routers));
                (FeedForward::Experts(experts), kinds)
            }
            None => {
                let mlp = self.mlp(i, dim, config.ffn_dim)?;
                let kinds = ActivationKinds::of(mlp.input_types());
                (FeedForward::Dense(mlp), kinds)
            }
        };
        Ok(Layer {
            qkv_input: ActivationKinds::of([q.weight.ty(), k.weight.ty(), v.weight.ty()]).two_planes(),
            ffn_input,
            attn_norm: self.vector(&weight(Part::AttnNorm, i), dim)?,
            qkv_parts: if is_fused { &[Part::Qkv] } else { &[Part::Q, Part::K, Part::V] },
            q,
            k,
            v,
            qk_norm,
            attn_output: self.linear(Part::AttnOutput, i, dim, q_dim)?,
            attn_post_norm,
            ffn_norm: self.vector(&weight(Part::FfnNorm, i), dim)?,
            ffn,
            ffn_post_norm,
        })
    }

    fn mlp(&mut self, i: usize, dim: usize, ffn_dim: usize) -> Result<Mlp, ModelError> {
        // Where there is no gate of its own, its rows stand before those of the other matrix.
        let is_fused = !self.has(Part::Gate, i);
        let [gate, up] = match !is_fused {
            true => [self.linear(Part::Gate, i, ffn_dim, dim)?, self.linear(Part::Up, i, ffn_dim, dim)?],
            false => self.split(Part::Up, i, [ffn_dim, ffn_dim], dim)?,
        };
        let input_parts: &[Part] = if is_fused { &[Part::Up] } else { &[Part::Gate, Part::Up] };
        let down = self.linear(Part::Down, i, dim, ffn_dim)?;
        Ok(Mlp { gate, up, down, input_parts, down_part: Part::Down })
    }

    fn experts(&mut self, i: usize, dim: usize, config: ExpertConfig) -> Result<Experts, ModelError> {
        let (n, ffn_dim) = (config.n_experts, config.ffn_dim);
        let router = self.matrix(&weight(Part::Router, i), &[n, dim], 0..n)?;
        // All experts in one tensor, or, in older files, a tensor for each.
        let is_merged = self.has(Part::ExpertGates, i);
        let mut parts = |merged, single, rows: usize, cols: usize| -> Result<Vec<Linear>, ModelError> {
            let expert = |e: usize| {
                let weight = if is_merged {
                    self.matrix(&weight(merged, i), &[n, rows, cols], e * rows..(e + 1) * rows)
                } else {
                    self.matrix(&format!("{}.{e}.weight", names::gguf(single, i)), &[rows, cols], 0..rows)
                };
                Ok(Linear { weight: weight?, bias: None })
            };
            (0..n).map(expert).collect()
        };
        let gates = parts(Part::ExpertGates, Part::Gate, ffn_dim, dim)?;
        let ups = parts(Part::ExpertUps, Part::Up, ffn_dim, dim)?;
        let downs = parts(Part::ExpertDowns, Part::Down, dim, ffn_dim)?;
        let (input_parts, down_part): (&[Part], _) = match is_merged {
            true => (&[Part::ExpertGates, Part::ExpertUps], Part::ExpertDowns),
            false => (&[Part::Gate, Part::Up], Part::Down),
        };
        let experts = gates.into_iter().zip(ups).zip(downs);
        let experts = experts.map(|((gate, up), down)| Mlp { gate, up, down, input_parts, down_part }).collect();
        let shared = match config.shared_ffn_dim {
            Some(ffn_dim) => Some(Mlp {
                gate: self.linear(Part::SharedGate, i, ffn_dim, dim)?,
                up: self.linear(Part::SharedUp, i, ffn_dim, dim)?,
                down: self.linear(Part::SharedDown, i, dim, ffn_dim)?,
                input_parts: &[Part::SharedGate, Part::SharedUp],
                down_part: Part::SharedDown,
            }),
            None => None,
        };
        let shared_router = match config.has_shared_gate {
            true => Some(self.matrix(&weight(Part::SharedRouter, i), &[dim], 0..1)?),
            false => None,
        };
        Ok(Experts { router, is_merged, experts, shared, shared_router })
    }

    fn has(&self, part: Part, layer: usize) -> bool {
        self.source.tensor(&weight(part, layer)).is_some()
    }

    fn find(&self, name: &str) -> Result<&TensorInfo, ModelError> {
        self.source.tensor(name).ok_or_else(|| ModelError::MissingTensor { name: self.source.name_in_file(name) })
    }

    /// The tensor, if its shape is `expected` and its type one that can be computed with.
    fn checked(
        &self,
        name: &str,
        expected: &[usize],
        computes: impl Fn(TensorType) -> bool,
    ) -> Result<&TensorInfo, ModelError> {
        let tensor = self.find(name)?;
        let expected: Vec<u64> = expected.iter().map(|&n| n as u64).collect();
        if tensor.shape != expected {
            let name = self.source.name_in_file(name);
            return Err(ModelError::TensorShape { name, expected, found: tensor.shape.clone() });
        }
        if !computes(tensor.ty) {
            return Err(ModelError::UnsupportedTensorType { name: self.source.name_in_file(name), ty: tensor.ty });
        }
        Ok(tensor)
    }

    fn read(&mut self, n_bytes: usize) {
        self.done_bytes += n_bytes as u64;
        (self.progress)(self.done_bytes, self.total_bytes);
    }

    /// A matrix and its bias, if there is one.
    fn linear(&mut self, part: Part, layer: usize, n_rows: usize, n_cols: usize) -> Result<Linear, ModelError> {
        let weight = self.matrix(&weight(part, layer), &[n_rows, n_cols], 0..n_rows)?;
        Ok(Linear { weight, bias: self.bias(part, layer, n_rows)? })
    }

    /// The matrices of `n_rows` rows each that follow one another in one tensor.
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

    fn bias(&mut self, part: Part, layer: usize, len: usize) -> Result<Option<Vec<f32>>, ModelError> {
        let name = format!("{}.bias", names::gguf(part, layer));
        match self.source.tensor(&name) {
            Some(_) => self.vector(&name, len).map(Some),
            None => Ok(None),
        }
    }

    /// Some rows of a tensor of this shape, interleaved for products. Rows count through all but the last
    /// dimension; a vector is one row.
    fn matrix(&mut self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Matrix, ModelError> {
        self.pack(name, shape, rows, self.engine.isa())
    }

    /// Packs rows of a tensor, and gives its pages of the file back behind the last of them.
    fn pack(&mut self, name: &str, shape: &[usize], rows: Range<usize>, isa: Isa) -> Result<Matrix, ModelError> {
        let tensor = self.checked(name, shape, TensorType::is_supported)?;
        let n_rows: usize = shape[..shape.len() - 1].iter().product();
        let n_cols = shape[shape.len() - 1];
        let bytes = self.source.rows(self.engine, tensor, rows.clone())?;
        let matrix = Matrix::pack(self.engine.pool(), isa, tensor.ty, rows.len(), n_cols, &bytes)?;
        if rows.end == n_rows {
            self.source.release(tensor);
        }
        self.known.insert(name.to_owned());
        self.read(bytes.len());
        Ok(matrix)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.checked(name, &[len], TensorType::is_decodable)?;
        let bytes = self.source.rows(self.engine, tensor, 0..1)?;
        let out = decode(&self.source.name_in_file(name), tensor.ty, &bytes, len)?;
        self.known.insert(name.to_owned());
        self.read(bytes.len());
        Ok(out)
    }
}

/// Bytes that the matrices of a source take once packed for `isa`, and the type of most of them.
pub(crate) fn packed_bytes(source: &dyn WeightSource, isa: Isa) -> (u64, TensorType) {
    let mut total = 0u64;
    let mut by_type: Vec<(TensorType, u64)> = Vec::new();
    for tensor in source.tensors() {
        let (n, n_rows, n_cols) = match tensor.shape[..] {
            [n_rows, n_cols] => (1, n_rows, n_cols),
            [n, n_rows, n_cols] => (n, n_rows, n_cols),
            _ => continue,
        };
        let looked_up = tensor.name == "token_embd.weight" && source.tensor("output.weight").is_some();
        let isa = if looked_up { Isa::Scalar } else { isa };
        let bytes = match (usize::try_from(n_rows), usize::try_from(n_cols)) {
            // Refused when it is loaded, with its name, which no lack of memory may hide.
            _ if !tensor.ty.is_supported() => tensor.n_bytes,
            (Ok(rows), Ok(cols)) => Matrix::packed_bytes(isa, tensor.ty, rows, cols).unwrap_or(usize::MAX) as u64,
            _ => u64::MAX,
        };
        let bytes = bytes.saturating_mul(n);
        total = total.saturating_add(bytes);
        match by_type.iter_mut().find(|(ty, _)| *ty == tensor.ty) {
            Some((_, n)) => *n = n.saturating_add(bytes),
            None => by_type.push((tensor.ty, bytes)),
        }
    }
    (total, by_type.into_iter().max_by_key(|(_, n)| *n).map_or(TensorType::F32, |(ty, _)| ty))
}

/// A pool and instruction set as the options and the environment ask for.
pub(crate) fn engine(isa: Option<Isa>, threads: Option<usize>) -> Result<Engine, ModelError> {
    let isa = match isa {
        Some(isa) => isa.require()?,
        None => Isa::from_env()?,
    };
    let threads = threads.filter(|&n| n > 0).unwrap_or_else(|| {
        let from_env = std::env::var("FEWBIT_THREADS").ok().and_then(|n| n.parse().ok()).filter(|&n: &usize| n > 0);
        from_env.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
    });
    // More threads than any machine has would only exhaust the operating system.
    Ok(Engine::new(isa, threads.min(ThreadPool::MAX_THREADS))?)
}
