#!/usr/bin/env python3
"""Golden numbers for stories260K: a float64 forward pass of a Llama GGUF file in NumPy.

usage: stories260k.py ../../../../tests/data/stories260K-f32.gguf      (needs: pip install numpy gguf)

Writes beside itself
  stories260k_greedy.json    ids of greedy decoding from the beginning-of-text token, and their text
  stories260k_logits.f32     logits after every 20th token of that sequence, [rows][n_vocab] little-endian f32
"""
import json
import pathlib
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

STRIDE = 20
N_TOKENS = 200


def load(path):
    reader = GGUFReader(path)
    meta = {k: f.contents() for k, f in reader.fields.items()}
    tensors = {t.name: dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
    return meta, tensors


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def rotate(x, angles):
    """Interleaved pairs; x: [tokens, heads, head_dim], angles: [tokens, head_dim / 2]."""
    z = x[..., 0::2] + 1j * x[..., 1::2]
    z = z * np.exp(1j * angles)[:, None, :]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = z.real, z.imag
    return out


def hidden_states(meta, w, ids, window=None):
    """What the output matrix meets, of every position: [tokens, dim]. A query sees `window` keys, its own included."""
    a = "llama."
    n_heads = meta[a + "attention.head_count"]
    n_kv = meta[a + "attention.head_count_kv"]
    eps = meta[a + "attention.layer_norm_rms_epsilon"]
    dim = meta[a + "embedding_length"]
    head = dim // n_heads
    n = len(ids)
    frequencies = float(meta[a + "rope.freq_base"]) ** (-np.arange(0, head, 2) / head)
    angles = np.arange(n)[:, None] * frequencies[None, :]
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    unseen = (distance < 0) | (distance >= (window or n))
    x = w["token_embd.weight"][ids]
    for i in range(meta[a + "block_count"]):
        t = lambda name: w[f"blk.{i}.{name}.weight"]
        h = rms_norm(x, t("attn_norm"), eps)
        q = rotate((h @ t("attn_q").T).reshape(n, n_heads, head), angles)
        k = rotate((h @ t("attn_k").T).reshape(n, n_kv, head), angles).repeat(n_heads // n_kv, axis=1)
        v = (h @ t("attn_v").T).reshape(n, n_kv, head).repeat(n_heads // n_kv, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head)
        scores[:, unseen] = -np.inf
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", p, v).reshape(n, dim) @ t("attn_output").T
        h = rms_norm(x, t("ffn_norm"), eps)
        gate = h @ t("ffn_gate").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ t("ffn_up").T)) @ t("ffn_down").T
    return rms_norm(x, w["output_norm.weight"], eps)


def forward(meta, w, ids, window=None):
    """Logits of every position: [tokens, n_vocab]."""
    return hidden_states(meta, w, ids, window) @ w.get("output.weight", w["token_embd.weight"]).T


def main(path):
    here = pathlib.Path(__file__).parent
    meta, w = load(path)
    ids = [1]
    while len(ids) <= N_TOKENS:
        ids.append(int(forward(meta, w, ids)[-1].argmax()))
    pieces = [meta["tokenizer.ggml.tokens"][i] for i in ids[1:]]
    data = b"".join(
        bytes([int(p[3:5], 16)]) if p.startswith("<0x") and p.endswith(">") else p.replace("\u2581", " ").encode()
        for p in pieces
    )
    text = data.decode().removeprefix(" ")
    (here / "stories260k_greedy.json").write_text(json.dumps({"ids": ids, "text": text}) + "\n")
    rows = forward(meta, w, ids[:N_TOKENS])[::STRIDE]
    (here / "stories260k_logits.f32").write_bytes(rows.astype("<f4").tobytes())
    print(text)


if __name__ == "__main__":
    main(sys.argv[1])
