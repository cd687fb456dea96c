//! Hugging Face folders for the tests: written from a GGUF file of architecture `llama`, or broken on purpose.

use fewbit_format::GgufFile;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

/// A tensor to be written: its name, element type, shape and bytes.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: Vec<u8>,
}

/// A folder to be written.
#[derive(Clone)]
pub(crate) struct Folder {
    pub(crate) config: Map<String, Value>,
    pub(crate) tensors: Vec<Tensor>,
}

/// The bytes of a safetensors file.
pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for tensor in tensors {
        let offsets = [data.len(), data.len() + tensor.bytes.len()];
        let record = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets });
        header.insert(tensor.name.clone(), record);
        data.extend_from_slice(&tensor.bytes);
    }
    let header = Value::Object(header).to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

impl Folder {
    /// The model of a GGUF file of architecture `llama` as Hugging Face's library has it: other names, and queries
    /// and keys in half-split pairs. `shape` is `(heads, kv heads)`.
    pub(crate) fn of_gguf(file: &GgufFile) -> Self {
        let number = |key: &str| file.metadata().require_u64(&format!("llama.{key}")).expect("a complete file");
        let (dim, heads) = (number("embedding_length"), number("attention.head_count"));
        let kv_heads = number("attention.head_count_kv");
        let head_dim = (dim / heads) as usize;
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": dim,
            "intermediate_size": number("feed_forward_length"),
            "num_hidden_layers": number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": file.tensor("token_embd.weight").expect("an embedding").shape[0],
            "max_position_embeddings": number("context_length"),
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": false,
        });
        let Value::Object(config) = config else { unreachable!("an object") };
        let tensors = file.tensors().iter().map(|tensor| {
            let bytes = file.tensor_bytes(tensor);
            let bytes = match tensor.name.contains("attn_q.") || tensor.name.contains("attn_k.") {
                true => half_split(bytes, tensor.shape[0] as usize, head_dim),
                false => bytes.to_vec(),
            };
            Tensor { name: hf_name(&tensor.name), dtype: tensor.ty.name(), shape: tensor.shape.clone(), bytes }
        });
        Self { config, tensors: tensors.collect() }
    }

    /// Writes one file of weights.
    pub(crate) fn write(&self, to: &Path) {
        fs::write(to.join("config.json"), Value::Object(self.config.clone()).to_string()).expect("writable");
        fs::write(to.join("model.safetensors"), safetensors(&self.tensors)).expect("writable");
    }

    /// Writes the weights in several files, with their index.
    pub(crate) fn write_shards(&self, to: &Path, n: usize) {
        self.write(to);
        fs::remove_file(to.join("model.safetensors")).expect("written above");
        let mut map = Map::new();
        for (i, tensors) in self.tensors.chunks(self.tensors.len().div_ceil(n)).enumerate() {
            let name = format!("model-{i}.safetensors");
            fs::write(to.join(&name), safetensors(tensors)).expect("writable");
            map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), Value::String(name.clone()))));
        }
        fs::write(to.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).expect("writable");
    }

    pub(crate) fn set(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.to_owned(), value);
        self
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("a tensor of the folder")
    }
}

/// Rows of interleaved pairs into the order of half-split ones.
pub(crate) fn half_split(bytes: &[u8], n_rows: usize, head_dim: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / n_rows;
    let row = |r: usize| &bytes[r * row_bytes..(r + 1) * row_bytes];
    let source = |r: usize| {
        let (head, e) = (r / head_dim, r % head_dim);
        head * head_dim + 2 * (e % (head_dim / 2)) + e / (head_dim / 2)
    };
    (0..n_rows).flat_map(|r| row(source(r)).iter().copied()).collect()
}

fn hf_name(gguf: &str) -> String {
    let parts = [
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    match gguf {
        "token_embd.weight" => "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => "model.norm.weight".to_owned(),
        "output.weight" => "lm_head.weight".to_owned(),
        name => {
            let (layer, part) = name.trim_start_matches("blk.").split_once('.').expect("a tensor of a layer");
            let part = part.trim_end_matches(".weight");
            let (_, hf) = parts.iter().find(|(gguf, _)| *gguf == part).expect("a known part");
            format!("model.layers.{layer}.{hf}.weight")
        }
    }
}
