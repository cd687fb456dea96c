//! GGUF files of well-known shapes with random weights, to measure speed without a download.
//!
//! Codes are random bits. Scales are fixed, chosen per type so that weights are about as large as trained ones (a
//! standard deviation near 0.02): nothing overflows, and kernels see only values that occur in practice. The text of
//! such a model is noise, and it has no vocabulary.

use std::path::Path;

use fewbit_format::{FormatError, GgufWriter};
use fewbit_quant::TensorType;

/// A shape of the Llama family.
///
/// ```
/// use fewbit::random::{RandomWeights, Shape};
///
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("random.gguf");
/// let shape = Shape { name: "tiny", n_layers: 2, ..Shape::named("smollm2-135m")? };
/// RandomWeights::new(shape, "Q4_0")?.write(&path)?;
/// assert_eq!(fewbit::expert::open(&path)?.weights().tensors().len(), 2 + 2 * 9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Name of the shape.
    pub name: &'static str,
    /// Number of layers.
    pub n_layers: u64,
    /// Size of a hidden state.
    pub dim: u64,
    /// Number of query heads.
    pub n_heads: u64,
    /// Number of key and value heads.
    pub n_kv_heads: u64,
    /// Size of the hidden state of the feed-forward network.
    pub ffn_dim: u64,
    /// Size of the vocabulary, in tokens.
    pub n_vocab: u64,
    /// Whether the output layer shares the matrix of the embedding.
    pub tied: bool,
}

#[rustfmt::skip]
static SHAPES: [Shape; 8] = [
    Shape { name: "smollm2-135m",   n_layers: 30, dim:  576, n_heads:  9, n_kv_heads:  3, ffn_dim:  1536, n_vocab:  49152, tied: true },
    Shape { name: "smollm2-360m",   n_layers: 32, dim:  960, n_heads: 15, n_kv_heads:  5, ffn_dim:  2560, n_vocab:  49152, tied: true },
    Shape { name: "tinyllama-1.1b", n_layers: 22, dim: 2048, n_heads: 32, n_kv_heads:  4, ffn_dim:  5632, n_vocab:  32000, tied: false },
    Shape { name: "llama-3.2-1b",   n_layers: 16, dim: 2048, n_heads: 32, n_kv_heads:  8, ffn_dim:  8192, n_vocab: 128256, tied: true },
    Shape { name: "llama-3.2-3b",   n_layers: 28, dim: 3072, n_heads: 24, n_kv_heads:  8, ffn_dim:  8192, n_vocab: 128256, tied: true },
    Shape { name: "llama-2-7b",     n_layers: 32, dim: 4096, n_heads: 32, n_kv_heads: 32, ffn_dim: 11008, n_vocab:  32000, tied: false },
    Shape { name: "mistral-7b",     n_layers: 32, dim: 4096, n_heads: 32, n_kv_heads:  8, ffn_dim: 14336, n_vocab:  32768, tied: false },
    Shape { name: "llama-3.1-8b",   n_layers: 32, dim: 4096, n_heads: 32, n_kv_heads:  8, ffn_dim: 14336, n_vocab: 128256, tied: false },
];

impl Shape {
    /// All named shapes.
    pub fn all() -> &'static [Self] {
        &SHAPES
    }

    /// The shape with this name.
    ///
    /// # Errors
    /// [`RandomError::UnknownShape`].
    pub fn named(name: &str) -> Result<Self, RandomError> {
        let found = SHAPES.iter().find(|shape| shape.name == name).copied();
        found.ok_or_else(|| RandomError::UnknownShape { name: name.to_owned() })
    }
}

/// Why a file with random weights cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RandomError {
    /// No shape has this name.
    #[error("no shape is called `{name}`: known are {}", SHAPES.each_ref().map(|shape| shape.name).join(", "))]
    UnknownShape {
        /// The name.
        name: String,
    },
    /// Random weights are not supported for this type.
    #[error("no random weights of type `{name}`: give {}, Q3_K_M, Q4_K_M or Q5_K_M", types().join(", "))]
    UnknownType {
        /// The name.
        name: String,
    },
    /// The sizes of a shape do not fit together.
    #[error("the shape `{name}`: {problem}")]
    BadShape {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] FormatError),
}

/// Names of the types that random weights are supported for.
fn types() -> Vec<&'static str> {
    TensorType::all().filter(|&ty| scales(ty).is_some()).map(TensorType::name).collect()
}

/// The type of each tensor: one type, or one of llama.cpp's mixtures.
#[derive(Debug)]
struct Mixture {
    most: TensorType,
    /// The value projection and the second half of the FFN, in every third layer or so.
    sensitive: TensorType,
    output: TensorType,
}

fn mixture(name: &str) -> Result<Mixture, RandomError> {
    use TensorType as T;
    let mixture = |most, sensitive, output| Ok(Mixture { most, sensitive, output });
    match name.to_ascii_uppercase().as_str() {
        "Q3_K_M" => mixture(T::Q3_K, T::Q5_K, T::Q6_K),
        "Q4_K_M" => mixture(T::Q4_K, T::Q6_K, T::Q6_K),
        "Q5_K_M" => mixture(T::Q5_K, T::Q6_K, T::Q6_K),
        upper => match TensorType::from_name(upper) {
            Some(ty) if scales(ty).is_some() => mixture(ty, ty, ty),
            _ => Err(RandomError::UnknownType { name: name.to_owned() }),
        },
    }
}

/// A shape and a type, ready to be written to a file.
#[derive(Debug)]
pub struct RandomWeights {
    shape: Shape,
    mixture: Mixture,
}

impl RandomWeights {
    /// Weights of this shape and type: a tensor type (`Q4_0`), or one of llama.cpp's mixtures (`Q4_K_M`).
    ///
    /// # Errors
    /// [`RandomError`] for a type that is not supported, and for a shape whose sizes do not fit together.
    pub fn new(shape: Shape, ty: &str) -> Result<Self, RandomError> {
        let bad = |problem| Err(RandomError::BadShape { name: shape.name, problem });
        let Shape { name: _, n_layers, dim, n_heads, n_kv_heads, ffn_dim, n_vocab, tied: _ } = shape;
        let numbers = [n_layers, dim, n_heads, n_kv_heads, ffn_dim, n_vocab];
        if numbers.iter().any(|&n| n == 0 || n > 1 << 20) {
            return bad("all numbers are between 1 and 2^20");
        }
        if !dim.is_multiple_of(n_heads) || !n_heads.is_multiple_of(n_kv_heads) {
            return bad("`dim` is a multiple of `n_heads`, and `n_heads` of `n_kv_heads`");
        }
        if !dim.is_multiple_of(32) || !ffn_dim.is_multiple_of(32) {
            return bad("`dim` and `ffn_dim` are multiples of 32, the length of a block");
        }
        Ok(Self { shape, mixture: mixture(ty)? })
    }

    /// Writes the file. It is as large as a real one.
    ///
    /// # Errors
    /// [`RandomError::Write`] if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), RandomError> {
        write(&self.shape, &self.mixture, path)
    }
}

fn write(shape: &Shape, mixture: &Mixture, path: &Path) -> Result<(), RandomError> {
    let head_dim = shape.dim / shape.n_heads;
    let kv_dim = head_dim * shape.n_kv_heads;

    let mut writer = GgufWriter::new();
    writer
        .set("general.architecture", "llama")
        .set("general.name", shape.name)
        .set("llama.block_count", shape.n_layers as u32)
        .set("llama.context_length", 8192_u32)
        .set("llama.embedding_length", shape.dim as u32)
        .set("llama.feed_forward_length", shape.ffn_dim as u32)
        .set("llama.attention.head_count", shape.n_heads as u32)
        .set("llama.attention.head_count_kv", shape.n_kv_heads as u32)
        .set("llama.attention.layer_norm_rms_epsilon", 1e-5_f32)
        .set("llama.rope.freq_base", 10_000.0_f32)
        .set("llama.rope.dimension_count", head_dim as u32)
        .set("llama.vocab_size", shape.n_vocab as u32);

    matrix(&mut writer, "token_embd.weight", shape.n_vocab, shape.dim, mixture.output)?;
    norm(&mut writer, "output_norm.weight", shape.dim)?;
    if !shape.tied {
        matrix(&mut writer, "output.weight", shape.n_vocab, shape.dim, mixture.output)?;
    }
    for layer in 0..shape.n_layers {
        // The layers in which llama.cpp's mixtures spend more bits.
        let eighth = shape.n_layers / 8;
        let more = layer < eighth || layer >= 7 * eighth || (layer - eighth) % 3 == 2;
        let sensitive = if more { mixture.sensitive } else { mixture.most };
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        norm(&mut writer, &name("attn_norm"), shape.dim)?;
        norm(&mut writer, &name("ffn_norm"), shape.dim)?;
        for (part, n_rows, n_cols, ty) in [
            ("attn_q", shape.dim, shape.dim, mixture.most),
            ("attn_k", kv_dim, shape.dim, mixture.most),
            ("attn_v", kv_dim, shape.dim, sensitive),
            ("attn_output", shape.dim, shape.dim, mixture.most),
            ("ffn_gate", shape.ffn_dim, shape.dim, mixture.most),
            ("ffn_up", shape.ffn_dim, shape.dim, mixture.most),
            ("ffn_down", shape.dim, shape.ffn_dim, sensitive),
        ] {
            matrix(&mut writer, &name(part), n_rows, n_cols, ty)?;
        }
    }
    writer.write_file(path)?;
    Ok(())
}

fn norm(writer: &mut GgufWriter<'_>, name: &str, dim: u64) -> Result<(), RandomError> {
    let ones = 1_f32.to_le_bytes().repeat(dim as usize);
    writer.tensor(name, &[dim], TensorType::F32, ones)?;
    Ok(())
}

fn matrix(
    writer: &mut GgufWriter<'_>,
    name: &str,
    n_rows: u64,
    n_cols: u64,
    ty: TensorType,
) -> Result<(), RandomError> {
    let ty = fallback(ty, n_cols);
    let row_bytes = ty.row_bytes(n_cols as usize).expect("a multiple of 32, and the type one of such blocks");
    let n_bytes = row_bytes as u64 * n_rows;
    let blocks = random_blocks(ty, n_bytes);
    writer.tensor_with(name, &[n_rows, n_cols], ty, move |out| {
        let mut left = n_bytes;
        while left > 0 {
            let n = left.min(blocks.len() as u64);
            out.write_all(&blocks[..n as usize])?;
            left -= n;
        }
        Ok(())
    })?;
    Ok(())
}

/// The type that llama.cpp uses if rows cannot be cut into blocks of 256.
fn fallback(ty: TensorType, n_cols: u64) -> TensorType {
    use TensorType as T;
    if n_cols.is_multiple_of(ty.block_elems() as u64) {
        return ty;
    }
    match ty {
        T::Q2_K | T::Q3_K | T::TQ1_0 | T::TQ2_0 => T::Q4_0,
        T::IQ1_S | T::IQ1_M | T::IQ2_XXS | T::IQ2_XS | T::IQ2_S => T::IQ4_NL,
        T::IQ3_XXS | T::IQ3_S | T::IQ4_XS => T::IQ4_NL,
        T::Q4_K => T::Q5_0,
        T::Q5_K => T::Q5_1,
        _ => T::Q8_0,
    }
}

/// Places and values of the f16 scales in a block; empty for plain floats, `None` for types without
/// random weights.
fn scales(ty: TensorType) -> Option<&'static [(usize, u16)]> {
    use TensorType as T;
    // Powers of two as f16: 2^-e has exponent bits 15 - e. 0x1c00 is 2^-8, 0x0c00 is 2^-12; -2^-5 is
    // 0xa800, a minimum that puts the middle code near zero.
    Some(match ty {
        T::F32 | T::F16 | T::BF16 => &[],
        T::Q4_0 => &[(0, 0x1c00)],
        T::Q4_1 => &[(0, 0x1c00), (2, 0xa800)],
        T::Q5_0 => &[(0, 0x1800)],
        T::Q5_1 => &[(0, 0x1800), (2, 0xa800)],
        T::Q8_0 => &[(0, 0x0c00)],
        T::Q2_K => &[(80, 0x1800), (82, 0x1800)],
        T::Q3_K => &[(108, 0x1000)],
        T::Q4_K => &[(0, 0x0800), (2, 0x1400)],
        T::Q5_K => &[(0, 0x0400), (2, 0x1400)],
        // 2^-16, subnormal in f16.
        T::Q6_K => &[(208, 0x0100)],
        T::IQ4_NL => &[(0, 0x0c00)],
        T::IQ4_XS => &[(0, 0x0100)],
        T::IQ3_XXS | T::IQ3_S => &[(0, 0x0800)],
        T::IQ2_XXS | T::IQ2_XS | T::IQ2_S => &[(0, 0x0c00)],
        T::IQ1_S => &[(0, 0x1800)],
        // 0x1800 in the upper nibbles of the four words of scales, which are 3 each below.
        T::IQ1_M => &[(48, 0x06db), (50, 0x06db), (52, 0x86db), (54, 0x16db)],
        T::TQ1_0 => &[(52, 0x2400)],
        T::TQ2_0 => &[(64, 0x2400)],
        // The exponent of 2^-8 in one byte, and two codes after it.
        T::MXFP4 => &[(0, 0xa578)],
        _ => return None,
    })
}

/// About a megabyte of blocks, which a tensor repeats: random enough for caches and predictors, and
/// quick to make.
fn random_blocks(ty: TensorType, at_most: u64) -> Vec<u8> {
    let block_bytes = ty.block_bytes();
    let n_blocks = ((1 << 20) / block_bytes).min(at_most as usize / block_bytes).max(1);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    };
    let mut blocks: Vec<u8> = (0..n_blocks * block_bytes).map(|_| next() as u8).collect();
    match ty {
        // Floats between 2^-6 and 2^-5 of either sign.
        TensorType::F32 => {
            for value in blocks.chunks_exact_mut(4) {
                let bits = 0x3c80_0000 | (next() & 0x807f_ffff);
                value.copy_from_slice(&bits.to_le_bytes());
            }
        }
        TensorType::F16 | TensorType::BF16 => {
            let (exponent, rest) = if ty == TensorType::F16 { (0x2400, 0x83ff) } else { (0x3c80, 0x807f) };
            for value in blocks.chunks_exact_mut(2) {
                let bits = exponent | (next() as u16 & rest);
                value.copy_from_slice(&bits.to_le_bytes());
            }
        }
        _ => {
            for block in blocks.chunks_exact_mut(block_bytes) {
                if ty == TensorType::Q8_0 {
                    // No quantizer writes -128.
                    block.iter_mut().filter(|byte| **byte == 0x80).for_each(|byte| *byte = 0x81);
                }
                for &(at, bits) in scales(ty).unwrap_or_default() {
                    block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
                }
            }
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_files_of_every_type_can_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape { n_layers: 2, n_vocab: 512, ..Shape::named("smollm2-135m").unwrap() };
        for ty in types().into_iter().chain(["Q3_K_M", "q4_k_m", "Q5_K_M"]) {
            let path = folder.path().join(ty);
            RandomWeights::new(shape, ty).unwrap().write(&path).unwrap();
            let file = crate::expert::open(&path).unwrap();
            assert_eq!(file.weights().tensors().len(), 2 + 2 * 9, "{ty}");
        }
    }

    #[test]
    fn unknown_shapes_and_types_are_rejected_by_name() {
        let shape = Shape::named("smollm2-135m").unwrap();
        assert!(Shape::named("gpt-5").unwrap_err().to_string().contains("known are smollm2-135m"));
        let error = RandomWeights::new(shape, "NVFP4").unwrap_err().to_string();
        assert!(error.contains("NVFP4") && error.contains("IQ2_XS"), "{error}");
        for bad in [
            Shape { n_heads: 0, ..shape },
            Shape { n_heads: 7, ..shape },
            Shape { n_kv_heads: 2, ..shape },
            Shape { ffn_dim: 100, ..shape },
            Shape { n_vocab: u64::MAX, ..shape },
        ] {
            assert!(matches!(RandomWeights::new(bad, "Q4_0"), Err(RandomError::BadShape { .. })), "{bad:?}");
        }
    }
}
