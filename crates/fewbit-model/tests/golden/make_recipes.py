#!/usr/bin/env python3
"""Which types llama-quantize gives the tensors of several models: writes recipes.txt beside this file.

usage: make_recipes.py LLAMA_QUANTIZE

Each model is a file of tiny matrices with true names and metadata, given to `llama-quantize --dry-run`. Lines of
the result: model, recipe (with `+` where there is an importance matrix), type, name of a tensor with `*` for the
layer, and the layers. Types are given for matrices only. Made with llama.cpp of llama-cpp-python 0.3.36. Needs:
pip install gguf numpy.
"""
import collections
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

import numpy as np
from gguf import GGUFWriter

RECIPES = ["F16", "BF16", "F32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S",
           "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4_MOE"]
IMPORTANCE = ["Q4_0", "Q5_0", "Q2_K_S", "IQ4_NL", "IQ4_XS"]
# name, architecture, layers, columns, columns of ffn_down, heads, key and value heads, experts, tied
MODELS = [
    ("gqa", "llama", 32, 256, 256, 32, 8, 0, False),
    ("mha", "llama", 22, 256, 256, 32, 32, 0, True),
    ("moe", "llama", 16, 256, 256, 32, 8, 8, False),
    ("moe4", "llama", 9, 256, 256, 32, 16, 4, False),
    ("70b", "llama", 80, 256, 256, 64, 8, 0, False),
    ("72b", "qwen2", 80, 256, 256, 64, 8, 0, False),
    ("narrow", "llama", 30, 576, 1536, 9, 3, 0, True),
    ("odd", "llama", 3, 80, 272, 5, 5, 0, False),
    ("joint", "phi3", 16, 256, 256, 32, 32, 0, False),
]


def write_model(path, arch, layers, cols, down, heads, kv_heads, experts, tied):
    w = GGUFWriter(path, arch)
    w.add_block_count(layers)
    w.add_context_length(128)
    w.add_embedding_length(cols)
    w.add_feed_forward_length(down)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(cols // heads)
    w.add_rope_freq_base(1e4)
    w.add_vocab_size(4)
    if experts:
        w.add_expert_count(experts)
        w.add_expert_used_count(2)

    def matrix(name, n_cols, stack=()):
        w.add_tensor(name, np.zeros((*stack, 4, n_cols), dtype=np.float16))

    matrix("token_embd.weight", cols)
    if not tied:
        matrix("output.weight", cols)
    w.add_tensor("output_norm.weight", np.zeros(cols, dtype=np.float32))
    stack = (experts,) if experts else ()
    suffix = "_exps" if experts else ""
    for i in range(layers):
        for name in ["attn_qkv"] if arch == "phi3" else ["attn_q", "attn_k", "attn_v"]:
            matrix(f"blk.{i}.{name}.weight", cols)
        matrix(f"blk.{i}.attn_output.weight", cols)
        w.add_tensor(f"blk.{i}.attn_norm.weight", np.zeros(cols, dtype=np.float32))
        if experts:
            matrix(f"blk.{i}.ffn_gate_inp.weight", cols)
        for name in ["ffn_up"] if arch == "phi3" else ["ffn_gate", "ffn_up"]:
            matrix(f"blk.{i}.{name}{suffix}.weight", cols, stack)
        matrix(f"blk.{i}.ffn_down{suffix}.weight", down, stack)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def ranges(numbers):
    parts = []
    for n in numbers:
        if parts and parts[-1][1] == n - 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in parts)


def types_of(program, model, recipe, imatrix):
    command = [program, "--dry-run", *(["--imatrix", imatrix] if imatrix else []), model, "unused.gguf", recipe]
    text = subprocess.run(command, capture_output=True, text=True, check=True)
    found = collections.defaultdict(list)
    for line in (text.stdout + text.stderr).splitlines():
        match = re.match(r"\[ *\d+/ *\d+\] +(\S+) .*type = +(\w+), .*?(?:\((\w+)\))?$", line)
        if not match or match[1].endswith("_norm.weight"):
            continue
        layer = re.match(r"blk\.(\d+)\.(.*)", match[1])
        name = f"blk.*.{layer[2]}" if layer else match[1]
        found[(match[3] or match[2]).upper(), name].append(int(layer[1]) if layer else 0)
    return found


def main(program):
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        imatrix = f"{folder}/imatrix.dat"
        entry = b"blk.0.attn_q.weight"
        data = struct.pack("<ii", 1, len(entry)) + entry + struct.pack("<iif", 1, 1, 1.0)
        pathlib.Path(imatrix).write_bytes(data)
        for model, *facts in MODELS:
            path = f"{folder}/{model}.gguf"
            write_model(path, *facts)
            for recipe in RECIPES + [f"{name}+" for name in IMPORTANCE]:
                name = recipe.rstrip("+")
                found = types_of(program, path, name, imatrix if recipe.endswith("+") else None)
                for (ty, tensor), layers in sorted(found.items()):
                    lines.append(f"{model} {recipe} {ty} {tensor} {ranges(sorted(layers))}")
    (pathlib.Path(__file__).parent / "recipes.txt").write_text("".join(line + "\n" for line in lines))
    print(len(lines), "lines")


if __name__ == "__main__":
    main(*sys.argv[1:])
