"""Embeddings to compare with, for `tests/it/embed.rs`.

    python3 embeddings.py LLAMA_EMBEDDING SMOLLM2.gguf        (needs numpy and gguf)

Writes embeddings.json:

- `stories`: the hidden states of stories260K behind the last norm, pooled in each way and not normalized, in float64,
  from `stories260K-f32.gguf` beside this script;
- `smollm2`: what llama.cpp's `llama-embedding` gives for a text, pooled in each way and normalized.
"""

import json
import pathlib
import subprocess
import sys

import gguf
import numpy as np

HERE = pathlib.Path(__file__).parent
IDS = [1, 403, 407, 261, 378, 432, 286, 261, 376, 393, 426, 267, 337]
TEXT = "The quick brown fox jumps over the lazy dog, and nobody knows why it did."

reader = gguf.GGUFReader(HERE / "stories260K-f32.gguf")
tensors = {t.name: np.array(t.data, dtype=np.float64) for t in reader.tensors}


def number(key):
    return reader.get_field(key).contents()


n_layers, n_heads = number("llama.block_count"), number("llama.attention.head_count")
n_kv, dim = number("llama.attention.head_count_kv"), number("llama.embedding_length")
eps, theta = number("llama.attention.layer_norm_rms_epsilon"), number("llama.rope.freq_base")
head = dim // n_heads


def norm(x, name):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * tensors[name + ".weight"]


def rotate(x):
    angle = np.arange(len(x))[:, None, None] * theta ** (-np.arange(0, head, 2) / head)
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
    out[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
    return out


def hidden_states(ids):
    n = len(ids)
    x = tensors["token_embd.weight"][ids]
    for i in range(n_layers):
        def times(h, part):
            return h @ tensors[f"blk.{i}.{part}.weight"].T

        h = norm(x, f"blk.{i}.attn_norm")
        q = rotate(times(h, "attn_q").reshape(n, n_heads, head))
        k = rotate(times(h, "attn_k").reshape(n, n_kv, head))
        v = times(h, "attn_v").reshape(n, n_kv, head)
        k, v = (np.repeat(m, n_heads // n_kv, axis=1) for m in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head)
        scores[:, np.triu_indices(n, 1)[0], np.triu_indices(n, 1)[1]] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + times(np.einsum("hqk,khd->qhd", weights, v).reshape(n, dim), "attn_output")
        h = norm(x, f"blk.{i}.ffn_norm")
        gate = times(h, "ffn_gate")
        x = x + times(gate / (1 + np.exp(-gate)) * times(h, "ffn_up"), "ffn_down")
    return norm(x, "output_norm")


def llama_embedding(pooling):
    program, model = sys.argv[1:3]
    command = [program, "-m", model, "-p", TEXT, "--pooling", pooling, "--embd-output-format", "array", "-t", "2"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [round(x, 6) for x in json.loads(out)[0]]


states = hidden_states(IDS)
pooled = {"mean": states.mean(0), "last": states[-1], "cls": states[0]}
result = {
    "stories": {"ids": IDS, **{way: [float(np.float32(x)) for x in of] for way, of in pooled.items()}},
    "smollm2": {"text": TEXT, **{way: llama_embedding(way) for way in pooled}},
}
with open(HERE / "embeddings.json", "w") as out:
    json.dump(result, out)
    out.write("\n")
