//! The tensors of a model: their names in the file, their shapes, and how they are taken into memory.

use crate::{ModelConfig, ModelError};
use fewbit_format::{GgufFile, TensorInfo};
use fewbit_kernels::{ActivationKinds, Engine, Isa, Matrix, ThreadPool};
use fewbit_quant::TensorType;

/// Everything that a forward pass multiplies with. Matrices are `[rows, columns]` = `[outputs, inputs]`.
pub(crate) struct Weights {
    /// `[n_vocab, dim]`; the output matrix serves where the two are tied.
    embedding: Option<Matrix>,
    pub(crate) layers: Vec<Layer>,
    /// `[dim]`
    pub(crate) output_norm: Vec<f32>,
    /// `[n_vocab, dim]`
    pub(crate) output: Matrix,
    /// `[rope_dims / 2]`: divisors of the rotary frequencies.
    pub(crate) rope_factors: Option<Vec<f32>>,
}

/// One decoder layer.
pub(crate) struct Layer {
    /// `[dim]`
    pub(crate) attn_norm: Vec<f32>,
    /// `[n_heads * head_dim, dim]`
    pub(crate) q: Matrix,
    /// `[n_kv_heads * head_dim, dim]`
    pub(crate) k: Matrix,
    /// `[n_kv_heads * head_dim, dim]`
    pub(crate) v: Matrix,
    /// `[dim, n_heads * head_dim]`
    pub(crate) attn_output: Matrix,
    /// `[dim]`
    pub(crate) ffn_norm: Vec<f32>,
    /// `[ffn_dim, dim]`
    pub(crate) gate: Matrix,
    /// `[ffn_dim, dim]`
    pub(crate) up: Matrix,
    /// `[dim, ffn_dim]`
    pub(crate) down: Matrix,
    /// How the input of q, k and v is quantized; likewise for gate and up. Queries and keys go into an
    /// exponential, so their input is quantized to two planes: of all inputs but the output's, its error
    /// weighs most in the result (see docs/fidelity.md).
    pub(crate) qkv_input: ActivationKinds,
    pub(crate) gate_up_input: ActivationKinds,
}

/// Where tensors come from, and how far along loading is.
struct Loader<'a> {
    file: &'a GgufFile,
    engine: &'a Engine,
    progress: &'a (dyn Fn(u64, u64) + Send + Sync),
    done_bytes: u64,
}

impl Weights {
    /// Packs every tensor of the model; pages of the file are given back as they have been read.
    pub(crate) fn load(
        file: &GgufFile,
        config: &ModelConfig,
        engine: &Engine,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Self, ModelError> {
        let mut loader = Loader { file, engine, progress, done_bytes: 0 };
        let embedding = loader.find("token_embd.weight")?;
        let n_vocab = *embedding.shape.first().unwrap_or(&0);
        let (dim, q_dim, kv_dim) = (config.dim, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let tied = file.tensor("output.weight").is_none();
        let n_vocab_rows = usize::try_from(n_vocab).unwrap_or(usize::MAX);
        let (output, embedding) = if tied {
            (loader.matrix("token_embd.weight", n_vocab_rows, dim)?, None)
        } else {
            let embedding = loader.rows("token_embd.weight", n_vocab_rows, dim)?;
            (loader.matrix("output.weight", n_vocab_rows, dim)?, Some(embedding))
        };
        let rope_factors = match file.tensor("rope_freqs.weight") {
            Some(_) => Some(loader.vector("rope_freqs.weight", config.rope_dims / 2)?),
            None => None,
        };
        let mut layers = Vec::with_capacity(config.n_layers);
        for i in 0..config.n_layers {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            let q = loader.matrix(&name("attn_q"), q_dim, dim)?;
            let k = loader.matrix(&name("attn_k"), kv_dim, dim)?;
            let v = loader.matrix(&name("attn_v"), kv_dim, dim)?;
            let gate = loader.matrix(&name("ffn_gate"), config.ffn_dim, dim)?;
            let up = loader.matrix(&name("ffn_up"), config.ffn_dim, dim)?;
            layers.push(Layer {
                qkv_input: ActivationKinds::of([q.ty(), k.ty(), v.ty()]).two_planes(),
                gate_up_input: ActivationKinds::of([gate.ty(), up.ty()]),
                attn_norm: loader.vector(&name("attn_norm"), dim)?,
                attn_output: loader.matrix(&name("attn_output"), dim, q_dim)?,
                ffn_norm: loader.vector(&name("ffn_norm"), dim)?,
                down: loader.matrix(&name("ffn_down"), dim, config.ffn_dim)?,
                q,
                k,
                v,
                gate,
                up,
            });
        }
        Ok(Self { embedding, layers, output_norm: loader.vector("output_norm.weight", dim)?, output, rope_factors })
    }

    /// Size of the vocabulary.
    pub(crate) fn n_vocab(&self) -> usize {
        self.output.n_rows()
    }

    /// The embedding of a token: `out` is `[dim]`.
    pub(crate) fn embed(&self, token: usize, out: &mut [f32]) {
        self.embedding.as_ref().unwrap_or(&self.output).decode_row(token, out);
    }

    /// Bytes of all matrices.
    pub(crate) fn n_bytes(&self) -> u64 {
        let layers = self.layers.iter().flat_map(|l| [&l.q, &l.k, &l.v, &l.attn_output, &l.gate, &l.up, &l.down]);
        layers.chain([&self.output]).chain(&self.embedding).map(|m| m.n_bytes() as u64).sum()
    }
}

impl Loader<'_> {
    fn find(&self, name: &str) -> Result<&TensorInfo, ModelError> {
        self.file.tensor(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })
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
            return Err(ModelError::TensorShape { name: name.to_owned(), expected, found: tensor.shape.clone() });
        }
        if !computes(tensor.ty) {
            return Err(ModelError::UnsupportedTensorType { name: name.to_owned(), ty: tensor.ty });
        }
        Ok(tensor)
    }

    fn read(&mut self, n_bytes: u64) {
        self.done_bytes += n_bytes;
        (self.progress)(self.done_bytes, self.file.file_bytes());
    }

    /// A matrix, interleaved for products.
    fn matrix(&mut self, name: &str, n_rows: usize, n_cols: usize) -> Result<Matrix, ModelError> {
        self.pack(name, n_rows, n_cols, self.engine.isa())
    }

    /// A matrix whose rows are only looked up: kept as the file has it.
    fn rows(&mut self, name: &str, n_rows: usize, n_cols: usize) -> Result<Matrix, ModelError> {
        self.pack(name, n_rows, n_cols, Isa::Scalar)
    }

    /// Packs a matrix and gives its pages of the file back.
    fn pack(&mut self, name: &str, n_rows: usize, n_cols: usize, isa: Isa) -> Result<Matrix, ModelError> {
        let tensor = self.checked(name, &[n_rows, n_cols], TensorType::is_supported)?;
        let bytes = self.file.tensor_bytes(tensor);
        let matrix = Matrix::pack(self.engine.pool(), isa, tensor.ty, n_rows, n_cols, bytes)?;
        self.file.release(tensor);
        let n_bytes = tensor.n_bytes;
        self.read(n_bytes);
        Ok(matrix)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.checked(name, &[len], TensorType::is_decodable)?;
        let mut out = vec![0.0; len];
        fewbit_quant::decode(tensor.ty, self.file.tensor_bytes(tensor), &mut out)
            .map_err(|source| ModelError::Decode { name: name.to_owned(), source })?;
        let n_bytes = tensor.n_bytes;
        self.read(n_bytes);
        Ok(out)
    }
}

/// Bytes that the matrices of a file take once packed for `isa`, and the type of most of them.
pub(crate) fn packed_bytes(file: &GgufFile, isa: Isa) -> (u64, TensorType) {
    let mut total = 0u64;
    let mut by_type: Vec<(TensorType, u64)> = Vec::new();
    for tensor in file.tensors() {
        let [n_rows, n_cols] = tensor.shape[..] else { continue };
        let looked_up = tensor.name == "token_embd.weight" && file.tensor("output.weight").is_some();
        let isa = if looked_up { Isa::Scalar } else { isa };
        let bytes = match (usize::try_from(n_rows), usize::try_from(n_cols)) {
            // Refused when it is loaded, with its name, which no lack of memory may hide.
            _ if !tensor.ty.is_supported() => tensor.n_bytes,
            (Ok(rows), Ok(cols)) => Matrix::packed_bytes(isa, tensor.ty, rows, cols).unwrap_or(usize::MAX) as u64,
            _ => u64::MAX,
        };
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
