#!/usr/bin/env python3
"""Float64 logits of some of the tiny models of reference.py with a LoRA adapter merged into their weights.

    python3 lora.py        (needs numpy)

Writes `lora.json` (what each adapter is made of, from which the tests build its file) and `lora.f32` (logits at some
positions, little-endian). Every matrix W that adapters can change becomes W + s B A, in float64, where
s = alpha / rank * scale; A and B come from the same generator as the weights.
"""
import json
import math

import numpy as np

import reference

RANK, ALPHA, SCALE = 4, 6.0, 0.75
NAMES = ["Llama: ", "Llama with biases", "Granite", "Qwen2", "Phi-3: ", "Gemma 2", "Mixtral"]
PARTS = ["attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]

base_values = reference.values


def adapter(m):
    """Name of a matrix -> its shape, for all that adapters can change."""
    def changes(name):
        parts = name.split(".")
        return name == "output.weight" or (len(parts) == 4 and parts[2] in PARTS)

    return {name: spec[0] for name, spec in reference.tensors(m).items() if changes(name) and name.endswith(".weight")}


def halves(name, shape):
    rows, cols = shape
    return (
        (f"{name}.lora_a", (RANK, cols), math.sqrt(3 / cols)),
        (f"{name}.lora_b", (rows, RANK), 0.6),
    )


def forward(m, tokens, s):
    shapes = adapter(m)

    def merged(name, shape, scale, offset):
        w = base_values(name, shape, scale, offset).astype(np.float64)
        if name in shapes:
            a, b = (base_values(n, of, by, 0.0).astype(np.float64) for n, of, by in halves(name, shape))
            w = w + s * (b @ a)
        return w

    reference.values = merged
    try:
        return reference.forward(m, tokens)
    finally:
        reference.values = base_values


def main():
    everything = json.load(open("models.json"))
    models = reference.models()
    spec, logits = [], []
    for name in NAMES:
        index = next(i for i, m in enumerate(models) if m.name.startswith(name))
        m = models[index]
        tokens = everything["tokens"][: m.tokens]
        rows = everything["models"][index]["positions"]
        s = ALPHA / RANK * SCALE
        want = forward(m, tokens, s)[rows]
        for reading, wrong in [("none", 0.0), ("no alpha", SCALE), ("no scale", ALPHA / RANK), ("no rank", ALPHA * SCALE)]:
            off = np.abs(forward(m, tokens, wrong)[rows] - want).max()
            print(f"{m.name}: {reading}: {off:.2g}")
            assert off > 0.05, "too close to be told apart"
        logits.append(want.astype("<f4"))
        tensors = [half for name, shape in adapter(m).items() for half in halves(name, shape)]
        spec.append({"model": index, "tensors": tensors})
    with open("lora.json", "w") as f:
        rows = ",\n".join(json.dumps(adapter) for adapter in spec)
        f.write(f'{{"rank": {RANK}, "alpha": {ALPHA}, "scale": {SCALE}, "adapters": [\n{rows}\n]}}\n')
    with open("lora.f32", "wb") as f:
        f.write(b"".join(of.tobytes() for of in logits))


if __name__ == "__main__":
    main()
