//! A Llama in candle, once with candle's `QMatMul` and once with `QLinear`. The two differ only in the constructor of
//! the linear layers.
//!
//! ```text
//! cargo run --release -p fewbit-candle --example quantized_llama [MODEL OR FILE]
//! ```
//! Both round activations to 8 bits, in different ways, so the most probable token could differ if two tokens have
//! nearly the same probability; for this prompt it does not.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{D, Device, Module, Result, Tensor};
use candle_nn::{Embedding, RmsNorm, ops, rotary_emb};
use fewbit::expert::tokenizer::{SpecialTokens, TokenizerOptions};
use fewbit_candle::QLinear;

const PROMPT: &str = "The numbers from one to thirty: 1, 2, 3, 4, 5, 6,";
const N_TOKENS: usize = 40;

/// A decoder of architecture `llama`, generic over the type of its linear layers.
struct Llama<L> {
    embedding: Embedding,
    layers: Vec<Layer<L>>,
    norm: RmsNorm,
    output: L,
    /// One row per position: `[n_positions, head_dim / 2]`.
    cos: Tensor,
    sin: Tensor,
}

struct Layer<L> {
    attention_norm: RmsNorm,
    q: L,
    k: L,
    v: L,
    o: L,
    ffn_norm: RmsNorm,
    gate: L,
    up: L,
    down: L,
    head_dim: usize,
    /// Keys and values of earlier positions: `[1, n_kv_heads, n, head_dim]`.
    cache: Option<(Tensor, Tensor)>,
}

impl<L: Module> Llama<L> {
    fn load<E: Into<candle_core::Error>>(
        path: &Path,
        linear: impl Fn(QTensor) -> std::result::Result<L, E>,
    ) -> Result<Self> {
        let mut file = File::open(path)?;
        let content = Content::read(&mut file)?;
        let value = |key: &str| -> Result<&Value> {
            let value = content.metadata.get(key);
            value.ok_or_else(|| candle_core::Error::msg(format!("the file has no {key}")))
        };
        let n_heads = value("llama.attention.head_count")?.to_u32()? as usize;
        let dim = value("llama.embedding_length")?.to_u32()? as usize;
        let n_positions = value("llama.context_length")?.to_u32()?.min(4096);
        let eps = f64::from(value("llama.attention.layer_norm_rms_epsilon")?.to_f32()?);
        let base = value("llama.rope.freq_base").and_then(|v| v.to_f32()).unwrap_or(10_000.0);
        let head_dim = dim / n_heads;

        let mut tensor = |name: &str| content.tensor(&mut file, name, &Device::Cpu);
        let make = |tensor: QTensor| linear(tensor).map_err(Into::into);
        let norm = |tensor: QTensor| Ok::<_, candle_core::Error>(RmsNorm::new(tensor.dequantize(&Device::Cpu)?, eps));
        let mut layers = Vec::new();
        for i in 0..value("llama.block_count")?.to_u32()? {
            let mut tensor = |name: &str| tensor(&format!("blk.{i}.{name}.weight"));
            layers.push(Layer {
                attention_norm: norm(tensor("attn_norm")?)?,
                q: make(tensor("attn_q")?)?,
                k: make(tensor("attn_k")?)?,
                v: make(tensor("attn_v")?)?,
                o: make(tensor("attn_output")?)?,
                ffn_norm: norm(tensor("ffn_norm")?)?,
                gate: make(tensor("ffn_gate")?)?,
                up: make(tensor("ffn_up")?)?,
                down: make(tensor("ffn_down")?)?,
                head_dim,
                cache: None,
            });
        }
        let embedding = tensor("token_embd.weight")?;
        let table = embedding.dequantize(&Device::Cpu)?;
        // Many small models use the embedding as output matrix.
        let output = tensor("output.weight").unwrap_or(embedding);
        let rates: Vec<f32> = (0..head_dim / 2).map(|i| base.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let angles = Tensor::arange(0f32, n_positions as f32, &Device::Cpu)?
            .unsqueeze(1)?
            .broadcast_mul(&Tensor::new(rates, &Device::Cpu)?)?;
        Ok(Self {
            embedding: Embedding::new(table, dim),
            layers,
            norm: norm(tensor("output_norm.weight")?)?,
            output: make(output)?,
            cos: angles.cos()?,
            sin: angles.sin()?,
        })
    }

    /// Logits after the last of `tokens`, the first of which is at `position`.
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        let n = tokens.len();
        let (cos, sin) = (self.cos.narrow(0, position, n)?, self.sin.narrow(0, position, n)?);
        let mut x = self.embedding.forward(&Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?)?;
        for layer in &mut self.layers {
            let attended = layer.attend(&layer.attention_norm.forward(&x)?, &cos, &sin)?;
            x = (x + attended)?;
            let input = layer.ffn_norm.forward(&x)?;
            let hidden = (ops::silu(&layer.gate.forward(&input)?)? * layer.up.forward(&input)?)?;
            x = (x + layer.down.forward(&hidden)?)?;
        }
        self.output.forward(&self.norm.forward(&x.narrow(1, n - 1, 1)?)?)?.flatten_all()
    }
}

impl<L: Module> Layer<L> {
    fn attend(&mut self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let (_, n, _) = x.dims3()?;
        let heads = |y: Tensor| y.reshape((1, n, (), self.head_dim))?.transpose(1, 2)?.contiguous();
        let q = rotary_emb::rope_i(&heads(self.q.forward(x)?)?, cos, sin)?;
        let mut k = rotary_emb::rope_i(&heads(self.k.forward(x)?)?, cos, sin)?;
        let mut v = heads(self.v.forward(x)?)?;
        if let Some((earlier_k, earlier_v)) = &self.cache {
            k = Tensor::cat(&[earlier_k, &k], 2)?;
            v = Tensor::cat(&[earlier_v, &v], 2)?;
        }
        self.cache = Some((k.clone(), v.clone()));
        let (_, n_heads, ..) = q.dims4()?;
        let (_, n_kv_heads, n_seen, _) = k.dims4()?;
        // Query heads that share a key head are adjacent: `[n_kv_heads, heads of each x n, head_dim]`.
        let group = n_heads / n_kv_heads;
        let q = q.reshape((n_kv_heads, group * n, self.head_dim))?;
        let scores = (q.matmul(&k.squeeze(0)?.t()?)? / (self.head_dim as f64).sqrt())?;
        let mask: Vec<f32> = (0..n)
            .flat_map(|i| (0..n_seen).map(move |j| if j + n > n_seen + i { f32::NEG_INFINITY } else { 0.0 }))
            .collect();
        let mask = Tensor::from_vec(mask, (1, 1, n, n_seen), &Device::Cpu)?;
        let scores = scores.reshape((n_kv_heads, group, n, n_seen))?.broadcast_add(&mask)?;
        let weights = ops::softmax_last_dim(&scores)?.reshape((n_kv_heads, group * n, n_seen))?;
        let y = weights.matmul(&v.squeeze(0)?)?.reshape((1, n_heads, n, self.head_dim))?;
        self.o.forward(&y.transpose(1, 2)?.reshape((1, n, n_heads * self.head_dim))?)
    }
}

/// The most probable continuation, and its tokens per second after the prompt (during which candle still packs weights).
fn generate<L: Module>(model: &mut Llama<L>, prompt: &[u32]) -> Result<(Vec<u32>, f64)> {
    let mut tokens = prompt.to_vec();
    let mut logits = model.forward(prompt, 0)?;
    let start = Instant::now();
    for _ in 0..N_TOKENS {
        let token = logits.argmax(D::Minus1)?.to_scalar::<u32>()?;
        logits = model.forward(&[token], tokens.len())?;
        tokens.push(token);
    }
    Ok((tokens.split_off(prompt.len()), N_TOKENS as f64 / start.elapsed().as_secs_f64()))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "smollm2-135m-instruct".to_owned());
    let silent = |_: &fewbit::hub::Event<'_>| {};
    let path = fewbit::resolve(&name, &silent)?;
    let tokenizer = fewbit::expert::open_tokenizer(&path, &TokenizerOptions::default())?;
    let prompt = tokenizer.encode(PROMPT, SpecialTokens::Plain);

    // This is the only type that changes.
    let mut with_candle = Llama::load(&path, QMatMul::from_qtensor)?;
    let mut with_fewbit = Llama::load(&path, QLinear::from_qtensor)?;

    let (theirs, speed) = generate(&mut with_candle, &prompt)?;
    println!("candle: {speed:.0} tokens/s");
    let (ours, speed) = generate(&mut with_fewbit, &prompt)?;
    println!("fewbit: {speed:.0} tokens/s");
    println!("{PROMPT}{}", tokenizer.decode(&ours));
    if ours != theirs {
        return Err(format!("candle goes on differently: {}", tokenizer.decode(&theirs)).into());
    }
    Ok(())
}
