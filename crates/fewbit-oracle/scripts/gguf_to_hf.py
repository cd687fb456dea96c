"""A GGUF file of SmolLM2 as the Hugging Face folder that it came from: other names, queries and keys in half-split
pairs, and the vocabulary as `tokenizer.json`.

    python3 gguf_to_hf.py SmolLM2.gguf FOLDER [F16|BF16|F32]

Needs the packages `gguf`, `numpy` and `safetensors`. Quantized weights are decoded. For checks of
`fewbit quantize FOLDER OUT --type T`: the folder, the file made from it and the first file must give the same tokens
and, but for the rounding of weights to the type, the same perplexity.
"""

import json
import os
import sys

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file

PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONTROL, UNKNOWN, USER_DEFINED = 3, 2, 4


def main():
    source, folder = sys.argv[1:3]
    dtype = sys.argv[3] if len(sys.argv) > 3 else "F16"
    reader = GGUFReader(source)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    number = lambda key: meta[f"llama.{key}"]
    heads, kv_heads = number("attention.head_count"), number("attention.head_count_kv")
    head_dim = number("embedding_length") // heads

    tensors = {}
    for tensor in reader.tensors:
        module, leaf = tensor.name.rsplit(".", 1)
        values = dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q" in module or ".attn_k" in module:
            n = heads if ".attn_q" in module else kv_heads
            values = values.reshape(n, head_dim // 2, 2, -1).swapaxes(1, 2).reshape(n * head_dim, -1)
        if module in WHOLE:
            name = WHOLE[module]
        else:
            _, layer, part = module.split(".")
            name = f"model.layers.{layer}.{PARTS[part]}"
        tensors[f"{name}.{leaf}"] = values.astype(np.float16 if dtype == "F16" else np.float32)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "model.safetensors")
    if dtype == "BF16":
        import torch
        from safetensors.torch import save_file as save_torch

        save_torch({name: torch.from_numpy(values).bfloat16() for name, values in tensors.items()}, path)
    else:
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, path)

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": number("embedding_length"),
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": round(float(number("attention.layer_norm_rms_epsilon")), 9),
        "rope_theta": float(number("rope.freq_base")),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
    }
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    added = [
        {"id": id, "content": text, "special": kind != USER_DEFINED, "normalized": False, "lstrip": False,
         "rstrip": False, "single_word": False}
        for id, (text, kind) in enumerate(zip(tokens, kinds))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {text: id for id, text in enumerate(tokens)},
                  "merges": meta["tokenizer.ggml.merges"]},
    }
    named = lambda key: tokens[meta[f"tokenizer.ggml.{key}_token_id"]]
    about = {
        "bos_token": named("bos"),
        "eos_token": named("eos"),
        "add_bos_token": bool(meta.get("tokenizer.ggml.add_bos_token", False)),
        "chat_template": meta["tokenizer.chat_template"],
    }
    for name, content in [("config", config), ("tokenizer", tokenizer), ("tokenizer_config", about)]:
        with open(os.path.join(folder, f"{name}.json"), "w") as file:
            json.dump(content, file, ensure_ascii=False)


main()
