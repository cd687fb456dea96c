//! Small random models of several types and shapes.

pub(crate) mod random;

use fewbit_format::{GgufFile, GgufWriter};
use fewbit_quant::TensorType;
use random::Random;

/// A random model, and what it is for.
pub(crate) struct TinyModel {
    pub(crate) name: &'static str,
    pub(crate) file: GgufFile,
}

/// A shape, a type for most weights, and a type for the rest.
pub(crate) struct Shape {
    pub(crate) dim: usize,
    pub(crate) ffn: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) window: Option<u32>,
    pub(crate) tied: bool,
    pub(crate) ty: TensorType,
    pub(crate) other: TensorType,
}

impl Shape {
    /// A writer with the metadata and random tensors of this shape.
    pub(crate) fn writer(&self, seed: u64) -> GgufWriter<'static> {
        let (n_layers, n_vocab) = (2, 61);
        let mut w = GgufWriter::new();
        w.set("general.architecture", "llama");
        w.set("llama.block_count", n_layers as u32);
        w.set("llama.context_length", 2048u32);
        w.set("llama.embedding_length", self.dim as u32);
        w.set("llama.feed_forward_length", self.ffn as u32);
        w.set("llama.attention.head_count", self.heads as u32);
        w.set("llama.attention.head_count_kv", self.kv_heads as u32);
        w.set("llama.attention.key_length", self.head_dim as u32);
        w.set("llama.attention.value_length", self.head_dim as u32);
        w.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
        w.set("llama.rope.freq_base", 10_000.0f32);
        if let Some(window) = self.window {
            w.set("llama.attention.sliding_window", window);
        }
        let mut random = Random(seed);
        let mut matrix = |w: &mut GgufWriter<'static>, name: String, rows: usize, cols: usize, ty: TensorType| {
            let bytes = random.blocks(ty, rows * cols);
            w.tensor(name, &[rows as u64, cols as u64], ty, bytes).expect("a valid tensor");
        };
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        matrix(&mut w, "token_embd.weight".into(), n_vocab, self.dim, self.other);
        if !self.tied {
            matrix(&mut w, "output.weight".into(), n_vocab, self.dim, self.other);
        }
        for i in 0..n_layers {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            matrix(&mut w, name("attn_q"), q, self.dim, self.ty);
            matrix(&mut w, name("attn_k"), kv, self.dim, self.ty);
            matrix(&mut w, name("attn_v"), kv, self.dim, self.other);
            matrix(&mut w, name("attn_output"), self.dim, q, self.ty);
            matrix(&mut w, name("ffn_gate"), self.ffn, self.dim, self.ty);
            matrix(&mut w, name("ffn_up"), self.ffn, self.dim, self.ty);
            matrix(&mut w, name("ffn_down"), self.dim, self.ffn, self.other);
        }
        let ones: Vec<u8> = (0..self.dim).flat_map(|_| 1.0f32.to_le_bytes()).collect();
        for i in 0..n_layers {
            for part in ["attn_norm", "ffn_norm"] {
                w.tensor(format!("blk.{i}.{part}.weight"), &[self.dim as u64], TensorType::F32, ones.clone())
                    .expect("a valid tensor");
            }
        }
        w.tensor("output_norm.weight", &[self.dim as u64], TensorType::F32, ones).expect("a valid tensor");
        w
    }
}

/// A 32-column model, with a window, uneven heads and an output matrix of its own, and a K-quant one.
pub(crate) fn tiny_models() -> Vec<TinyModel> {
    use TensorType::{BF16, F16, Q4_0, Q4_1, Q4_K, Q5_0, Q6_K, Q8_0};
    let shape = |ty, other| Shape {
        dim: 64,
        ffn: 96,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        window: None,
        tied: true,
        ty,
        other,
    };
    let shapes = [
        ("Q4_1 and Q8_0, tied", shape(Q4_1, Q8_0)),
        ("Q4_0 and Q5_0, window of 100", Shape { window: Some(100), tied: false, ..shape(Q4_0, Q5_0) }),
        ("F16 and BF16, heads of 24", Shape { head_dim: 24, heads: 3, kv_heads: 1, ..shape(F16, BF16) }),
        ("Q4_K and Q6_K", Shape { dim: 256, ffn: 512, head_dim: 64, tied: false, ..shape(Q4_K, Q6_K) }),
    ];
    let open = |(i, (name, shape)): (usize, (&'static str, Shape))| {
        let bytes = shape.writer(i as u64).to_bytes().expect("a valid file");
        TinyModel { name, file: GgufFile::from_bytes(bytes).expect("a valid file") }
    };
    shapes.into_iter().enumerate().map(open).collect()
}
