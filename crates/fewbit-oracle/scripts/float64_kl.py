#!/usr/bin/env python3
"""KL divergence of logits from those of a float64 forward pass on the dequantized weights.

usage: fewbit tokenize MODEL --json < TEXT | float64_kl.py MODEL.gguf N_WINDOWS LOGITS [LLAMA_BASE]
       (needs: pip install numpy gguf)

LOGITS is what the example `logits` of fewbit-oracle wrote for the same text and number of windows of 512 tokens;
LLAMA_BASE what `llama-perplexity -c 512 --chunks N_WINDOWS --kl-divergence-base LLAMA_BASE` wrote.
"""
import json
import pathlib
import struct
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "fewbit-model/tests/golden"))
from stories260k import forward, load  # noqa: E402

CTX = 512
ROWS = CTX - 1 - CTX // 2


def log_softmax(x):
    x = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def llama_rows(path):
    """Log probabilities as 16-bit steps: per row a scale, the smallest, and the steps."""
    with open(path, "rb") as f:
        assert f.read(8) == b"_logits_", "a base that llama-perplexity wrote"
        n_ctx, n_vocab, n_chunks = struct.unpack("<iii", f.read(12))
        f.seek(4 * n_ctx * n_chunks, 1)
        row = 2 * ((n_vocab + 1) // 2) + 4
        data = np.frombuffer(f.read(), "<u2").reshape(-1, row)
    scale, least = data[:, :4].copy().view("<f4").T
    return least[:, None] + scale[:, None] * data[:, 4 : 4 + n_vocab].astype(np.float64)


def main(path, n_windows, logits_path, llama=None):
    ids = json.load(sys.stdin)
    ids = ids["ids"] if isinstance(ids, dict) else ids
    meta, weights = load(path)
    windows = [ids[i * CTX : (i + 1) * CTX] for i in range(n_windows)]
    exact = np.concatenate([log_softmax(forward(meta, weights, w)[CTX // 2 : CTX - 1]) for w in windows])
    ours = np.fromfile(logits_path, "<f4").reshape(exact.shape)
    rows = {"logits": log_softmax(ours)}
    if llama:
        rows["llama.cpp"] = llama_rows(llama)[: len(exact)]
    for name, other in rows.items():
        kl = (np.exp(exact) * (exact - other)).sum(axis=-1)
        same = np.mean(exact.argmax(-1) == other.argmax(-1))
        print(f"{name}: mean KL {kl.mean():.6f}, median {np.median(kl):.6f}, same most probable token {same:.4f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:5])
