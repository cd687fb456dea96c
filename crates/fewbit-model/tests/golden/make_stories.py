"""Logits of stories260K in float64, with and without a sliding window, for `tests/hf.rs`.

    python3 make_stories.py        (needs numpy and gguf)

Reads ../../../../tests/data/stories260K-f32.gguf, lets the model continue "<s>" greedily for 200 tokens, and writes
stories.json: the ids, and logits at some positions, without a window and with a window of 64 keys (the query's own
included). With --keep-ids the ids are those that the file has.
"""

import json
import pathlib
import sys

import gguf
import numpy as np

HERE = pathlib.Path(__file__).parent
DATA = HERE.parents[3] / "tests/data/stories260K-f32.gguf"

reader = gguf.GGUFReader(DATA)
tensors = {t.name: np.array(t.data, dtype=np.float64) for t in reader.tensors}


def number(key):
    return reader.get_field(key).contents()


n_layers, n_heads = number("llama.block_count"), number("llama.attention.head_count")
n_kv, dim = number("llama.attention.head_count_kv"), number("llama.embedding_length")
eps, theta = number("llama.attention.layer_norm_rms_epsilon"), number("llama.rope.freq_base")
head = dim // n_heads


def norm(x, name):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * tensors[name + ".weight"]


def rotate(x, positions):
    angle = positions[:, None, None] * theta ** (-np.arange(0, head, 2) / head)
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
    out[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
    return out


def logits(ids, window=None):
    n = len(ids)
    at = np.arange(n, dtype=np.float64)
    x = tensors["token_embd.weight"][ids]
    distance = at[:, None] - at[None, :]
    hidden = (distance < 0) | ((distance >= window) if window else False)
    for i in range(n_layers):
        def times(h, part):
            return h @ tensors[f"blk.{i}.{part}.weight"].T

        h = norm(x, f"blk.{i}.attn_norm")
        q = rotate(times(h, "attn_q").reshape(n, n_heads, head), at)
        k = rotate(times(h, "attn_k").reshape(n, n_kv, head), at)
        v = times(h, "attn_v").reshape(n, n_kv, head)
        k, v = (np.repeat(m, n_heads // n_kv, axis=1) for m in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head)
        scores[:, hidden] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + times(np.einsum("hqk,khd->qhd", weights, v).reshape(n, dim), "attn_output")
        h = norm(x, f"blk.{i}.ffn_norm")
        gate = times(h, "ffn_gate")
        x = x + times(gate / (1 + np.exp(-gate)) * times(h, "ffn_up"), "ffn_down")
    return norm(x, "output_norm") @ tensors["output.weight"].T


ids = json.loads((HERE / "stories.json").read_text())["ids"] if "--keep-ids" in sys.argv else [1]
while len(ids) < 201:
    ids.append(int(logits(ids)[-1].argmax()))
full, windowed = logits(ids), {w: logits(ids, w) for w in (63, 64, 65)}
# The positions at which a window that is too small, and one that is too large, show most.
at = [int(np.abs(windowed[w] - windowed[64]).max(-1).argmax()) for w in (63, 65)] + [200]
for w in (63, 65):
    print(w, np.abs(windowed[w] - windowed[64])[at].max(-1))
rows = {name: [[float(np.float32(x)) for x in of[i]] for i in at] for name, of in (("full", full), ("window64", windowed[64]))}
with open(HERE / "stories.json", "w") as out:
    json.dump({"ids": ids, "positions": at, **rows}, out)
    out.write("\n")
