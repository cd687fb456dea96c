"""Tiny Hugging Face folders with quantized matrices, and what those are in float32, for `tests/hf_quantized.rs`.

    python3 make_quantized.py      (needs numpy)

Each folder holds an embedding, and the q and o projections of one layer in one of the forms of GPTQ, AWQ,
compressed-tensors and FP8. expected.f32 has the dequantized q, then o, row after row, as the formats define them;
nothing here is shared with the reader in Rust. bound.txt says what error the reader states: `exact` for forms that
block types hold exactly, `step` for 1/128 of a scale, `f16` for 2^-11 of the weight.
"""

import json
import pathlib
import shutil
import struct

import numpy as np

HERE = pathlib.Path(__file__).parent
DIM, HEADS, KV, HEAD, VOCAB = 64, 2, 1, 16, 8
SHAPES = {"q_proj": (HEADS * HEAD, DIM), "o_proj": (DIM, HEADS * HEAD)}
CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=DIM, intermediate_size=96,
    num_hidden_layers=1, num_attention_heads=HEADS, num_key_value_heads=KV, head_dim=HEAD, vocab_size=VOCAB,
    max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True,
)
random = np.random.default_rng(7)


def pack(codes, bits, axis, order=None):
    """Unsigned codes into int32 words along an axis, the first in the lowest bits."""
    codes = np.moveaxis(np.asarray(codes, dtype=np.uint64), axis, -1)
    per = 32 // bits
    if codes.shape[-1] % per:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, per - codes.shape[-1] % per)])
    codes = codes.reshape(*codes.shape[:-1], -1, per)
    order = order or list(range(per))
    words = sum(codes[..., order[i]] << np.uint64(bits * i) for i in range(per))
    return np.ascontiguousarray(np.moveaxis(words.astype(np.uint32).view(np.int32), -1, axis))


def scales(*shape):
    return random.uniform(0.001, 0.02, shape).astype(np.float16)


def bf16(x):
    bits = np.asarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).view(np.float32)



def save(path, tensors):
    header, data = {}, b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


def folder(name, quantization, matrix, bound):
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    tensors = {"model.embed_tokens.weight": ("F16", random.normal(0, 0.1, (VOCAB, DIM)).astype(np.float16))}
    expected = b""
    for module, (rows, cols) in SHAPES.items():
        parts, values = matrix(rows, cols)
        for leaf, (dtype, array) in parts.items():
            tensors[f"model.layers.0.self_attn.{module}.{leaf}"] = (dtype, array)
        expected += np.ascontiguousarray(values, dtype="<f4").tobytes()
    save(path / "model.safetensors", tensors)
    (path / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": quantization}, indent=1) + "\n")
    (path / "expected.f32").write_bytes(expected)
    (path / "bound.txt").write_text(f"{bound}\n")


def grouped(rows, cols, bits, group, symmetric, order=False):
    """Codes [rows, cols], zeros and scales [rows, groups], the group of each column, and the values."""
    groups = cols // group
    codes = random.integers(0, 1 << bits, (rows, cols))
    zeros = np.full((rows, groups), 1 << bits - 1) if symmetric else random.integers(1, 1 << bits, (rows, groups))
    scale = scales(rows, groups)
    index = np.arange(cols) // group
    if order:
        random.shuffle(index)
    values = (codes - zeros[:, index]) * scale.astype(np.float64)[:, index]
    return codes, zeros, scale, index, values


def gptq(bits, group, symmetric, order=False, stored_minus=1):
    def matrix(rows, cols):
        codes, zeros, scale, index, values = grouped(rows, cols, bits, group, symmetric, order)
        return {
            "qweight": ("I32", pack(codes.T, bits, 0)),
            "qzeros": ("I32", pack(zeros.T - stored_minus, bits, 1)),
            "scales": ("F16", scale.T),
            "g_idx": ("I32", index.astype(np.int32)),
            "bias": ("F16", np.arange(rows).astype(np.float16)),
        }, values

    return matrix


def awq(rows, cols):
    codes, zeros, scale, _, values = grouped(rows, cols, 4, 32, False)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    return {
        "qweight": ("I32", pack(codes.T, 4, 1, order)),
        "qzeros": ("I32", pack(zeros.T, 4, 1, order)),
        "scales": ("F16", scale.T),
    }, values


def packed(bits, group, symmetric):
    def matrix(rows, cols):
        codes, zeros, _, index, _ = grouped(rows, cols, bits, group or cols, symmetric)
        scale = bf16(random.uniform(0.001, 0.02, zeros.shape))
        parts = {
            "weight_packed": ("I32", pack(codes, bits, 1)),
            "weight_scale": ("BF16", (scale.view(np.uint32) >> 16).astype(np.uint16)),
            "weight_shape": ("I64", np.array([rows, cols])),
        }
        if not symmetric:
            parts["weight_zero_point"] = ("I32", pack(zeros, bits, 0))
        return parts, (codes - zeros[:, index]) * scale.astype(np.float64)[:, index]

    return matrix


def int8(rows, cols):
    codes = random.integers(-128, 128, (rows, cols))
    scale = scales(rows, 1)
    return {"weight": ("I8", codes.astype(np.int8)), "weight_scale": ("F16", scale)}, codes * scale.astype(np.float64)


def e4m3(codes):
    """Sign, four bits of exponent (bias 7), three of mantissa."""
    codes = codes.astype(np.int64)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    return np.where(codes >> 7 == 1, -value, value)


def fp8_codes(rows, cols):
    codes = random.integers(0, 256, (rows, cols)).astype(np.uint8)
    return np.where(codes & 0x7F == 0x7F, 0, codes).astype(np.uint8)


def fp8(shape_of, leaf, rows_of, cols_of):
    def matrix(rows, cols):
        codes = fp8_codes(rows, cols)
        r, c = rows_of(rows), cols_of(cols)
        full = random.uniform(1e-4, 1e-2, (-(-rows // r), -(-cols // c))).astype(np.float32)
        values = e4m3(codes) * np.kron(full.astype(np.float64), np.ones((r, c)))[:rows, :cols]
        return {"weight": ("F8_E4M3", codes), leaf: ("F32", full.reshape(shape_of(full))), "input_scale": ("F32", np.ones(1, np.float32))}, values

    return matrix


ct = lambda format, weights: {
    "quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
}
one_minus = {"quant_method": "gptq", "desc_act": False, "sym": False}
folder("gptq4", {**one_minus, "bits": 4, "group_size": 32}, gptq(4, 32, False), "step")
folder("gptq4-sym", {**one_minus, "bits": 4, "group_size": 32, "sym": True}, gptq(4, 32, True), "exact")
folder("gptq4-v2", {**one_minus, "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}, gptq(4, 32, False, stored_minus=0), "step")
folder("gptq4-order", {**one_minus, "bits": 4, "group_size": 16, "desc_act": True}, gptq(4, 16, False, order=True), "f16")
folder("gptq8", {**one_minus, "bits": 8, "group_size": 32, "sym": True}, gptq(8, 32, True), "exact")
folder("gptq8-asym", {**one_minus, "bits": 8, "group_size": 32}, gptq(8, 32, False), "f16")
folder("awq", {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}, awq, "step")
folder("ct-int4", ct("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}), packed(4, 32, True), "exact")
folder("ct-int4-asym", ct("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False}), packed(4, 32, False), "step")
folder("ct-int8-packed", ct("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}), packed(8, None, True), "exact")
folder("ct-int8", ct("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}), int8, "exact")
folder("ct-fp8", ct("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}), fp8(lambda f: f.shape, "weight_scale", lambda r: 1, lambda c: c), "f16")
folder("fp8-block", {"quant_method": "fp8", "weight_block_size": [24, 24], "activation_scheme": "dynamic"}, fp8(lambda f: f.shape, "weight_scale_inv", lambda r: 24, lambda c: 24), "f16")
folder("fp8-tensor", {"quant_method": "fp8", "activation_scheme": "static"}, fp8(lambda f: (), "weight_scale", lambda r: r, lambda c: c), "f16")
