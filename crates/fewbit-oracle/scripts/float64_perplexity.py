#!/usr/bin/env python3
"""Perplexity of a Llama GGUF file in float64 on the dequantized weights: what exact arithmetic would give.

usage: fewbit tokenize MODEL --json < TEXT | float64_perplexity.py MODEL.gguf [N_WINDOWS]
       (needs: pip install numpy gguf)

The method is that of `fewbit perplexity --ctx 512`: windows of 512 tokens, the second half of each scored.
For models that want no beginning-of-text token.
"""
import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "fewbit-model/tests/golden"))
from stories260k import forward, load  # noqa: E402

CTX = 512


def main(path, n_windows):
    ids = json.load(sys.stdin)
    ids = ids["ids"] if isinstance(ids, dict) else ids
    meta, weights = load(path)
    nll = []
    for start in range(0, n_windows * CTX, CTX):
        window = ids[start : start + CTX]
        logits = forward(meta, weights, window)[CTX // 2 : CTX - 1]
        top = logits.max(axis=-1, keepdims=True)
        log_sum = (top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)))[:, 0]
        targets = window[CTX // 2 + 1 :]
        nll.extend(log_sum - logits[np.arange(len(targets)), targets])
        print(f"{start // CTX + 1} windows: perplexity {np.exp(np.mean(nll)):.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 4)
