#!/usr/bin/env python3
"""Float64 logits of tiny random models, one for every part that a ModelConfig can have.

Writes `models.json` (metadata and tensors of each model, from which the tests build the same GGUF file) and
`models.f32` (logits at some positions, little-endian). `--gguf DIR` also writes the models as GGUF files, to be
compared with other programs; it needs the package `gguf`.

The formulas are those of the papers and of the Hugging Face implementations, in plain NumPy, on the whole
sequence at once. Weights come from a counter-based generator that the tests have too (see `values`).

Each model has readings of its configuration that would be wrong (a window that is one off, no cap, ...); the script
checks that they would change the logits far more than the tests' bound allows.
"""
import json
import math
import sys
from dataclasses import dataclass, field, replace

import numpy as np

VOCAB = 61
MASK = (1 << 64) - 1


def values(name, shape, scale, offset):
    """f32 values of a tensor: SplitMix64 on a counter, seeded with the FNV-1a hash of the name."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    unit = ((z >> np.uint64(40)).astype(np.int64) - (1 << 23)).astype(np.float32) * np.float32(2.0**-23)
    return (unit * np.float32(scale) + np.float32(offset)).reshape(shape)


@dataclass
class Rope:
    theta: float = 10000.0
    dims: int = 16
    kind: str = "none"  # none, linear, yarn, longrope, llama3
    factor: float = 1.0
    original: int = 0
    attention_factor: float = 1.0
    has_divisors: bool = False


@dataclass
class Model:
    name: str
    arch: str = "llama"
    layers: int = 2
    dim: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    ffn: int = 96
    context: int = 512
    eps: float = 1e-5
    interleaved: bool = True
    gelu: bool = False
    tied: bool = False
    qkv_bias: bool = False
    output_biases: bool = False  # of the attention output, and of the feed-forward matrices
    logit_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    fused: bool = False
    window: int = 0
    local: list = None  # per layer
    nope: list = None  # per layer
    rope: Rope = field(default_factory=Rope)
    local_rope: Rope = None
    attention_scale: float = None
    attention_cap: float = None
    logit_cap: float = None
    temperature: tuple = None  # scale, length
    experts: int = 0
    used: int = 0
    expert_ffn: int = 0
    normalized: bool = True
    expert_scale: float = 1.0
    merged: bool = True
    shared_ffn: int = 0
    shared_gate: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    tokens: int = 80
    options: dict = field(default_factory=dict)
    extra: dict = field(default_factory=dict)  # metadata beyond what the fields say
    wrong: dict = field(default_factory=dict)  # what a wrong reading would be -> changed fields

    def is_local(self, i):
        return self.window > 0 and (self.local is None or self.local[i])

    def has_rope(self, i):
        return self.nope is None or not self.nope[i]


# What a file says of a model. Values are (GGUF type, value).


def metadata(m):
    a = m.arch
    meta = {
        "general.architecture": ("string", a),
        f"{a}.block_count": ("u32", m.layers),
        f"{a}.context_length": ("u32", m.context),
        f"{a}.embedding_length": ("u32", m.dim),
        f"{a}.feed_forward_length": ("u32", m.ffn),
        f"{a}.attention.head_count": ("u32", m.heads),
        f"{a}.attention.head_count_kv": ("u32", m.kv_heads),
        f"{a}.attention.key_length": ("u32", m.head_dim),
        f"{a}.attention.value_length": ("u32", m.head_dim),
        f"{a}.attention.layer_norm_rms_epsilon": ("f32", m.eps),
        f"{a}.rope.freq_base": ("f32", m.rope.theta),
        f"{a}.rope.dimension_count": ("u32", m.rope.dims),
    }
    if m.window:
        meta[f"{a}.attention.sliding_window"] = ("u32", m.window)
    if m.experts:
        meta[f"{a}.expert_count"] = ("u32", m.experts)
        meta[f"{a}.expert_used_count"] = ("u32", m.used)
    meta.update({f"{a}.{key}": value for key, value in m.extra.items()})
    return meta


def tensors(m):
    """Name -> (shape, scale, offset). The last dimension is that of the inputs."""
    out = {}

    def matrix(name, rows, cols, gain=1.0, before=()):
        out[f"{name}.weight"] = ((*before, rows, cols), gain * math.sqrt(3 / cols), 0.0)

    def bias(name, n):
        out[f"{name}.bias"] = ((n,), 0.5, 0.0)

    def norm(name, n):
        out[f"{name}.weight"] = ((n,), 0.4, 1.0)

    q, kv = m.heads * m.head_dim, m.kv_heads * m.head_dim
    matrix("token_embd", VOCAB, m.dim, 2.0)
    if not m.tied:
        matrix("output", VOCAB, m.dim, 2.5)
    if m.logit_bias:
        bias("output", VOCAB)
    norm("output_norm", m.dim)
    half = m.rope.dims // 2
    if m.rope.has_divisors:
        out["rope_freqs.weight"] = ((half,), 0.9, 2.0)
    if m.rope.kind == "longrope":
        out["rope_factors_short.weight"] = ((half,), 0.3, 1.4)
        out["rope_factors_long.weight"] = ((half,), 1.5, 4.0)
    for i in range(m.layers):
        p = f"blk.{i}."
        norm(p + "attn_norm", m.dim)
        if m.fused:
            matrix(p + "attn_qkv", q + 2 * kv, m.dim, 1.3)
        else:
            matrix(p + "attn_q", q, m.dim, 1.5)
            matrix(p + "attn_k", kv, m.dim, 1.5)
            matrix(p + "attn_v", kv, m.dim)
        if m.qkv_bias:
            for part, n in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)]:
                bias(p + part, n)
        if m.qk_norm:
            norm(p + "attn_q_norm", m.head_dim)
            norm(p + "attn_k_norm", m.head_dim)
        matrix(p + "attn_output", m.dim, q)
        norm(p + "ffn_norm", m.dim)
        if m.post_norms:
            norm(p + "post_attention_norm", m.dim)
            norm(p + "post_ffw_norm", m.dim)
        if m.output_biases:
            bias(p + "attn_output", m.dim)
            bias(p + "ffn_gate", m.ffn)
            bias(p + "ffn_up", m.ffn)
            bias(p + "ffn_down", m.dim)
        if m.experts:
            f = m.expert_ffn or m.ffn
            matrix(p + "ffn_gate_inp", m.experts, m.dim)
            for part, rows, cols in [("gate", f, m.dim), ("up", f, m.dim), ("down", m.dim, f)]:
                if m.merged:
                    matrix(p + f"ffn_{part}_exps", rows, cols, before=(m.experts,))
                else:
                    for e in range(m.experts):
                        matrix(p + f"ffn_{part}.{e}", rows, cols)
            if m.shared_ffn:
                matrix(p + "ffn_gate_shexp", m.shared_ffn, m.dim)
                matrix(p + "ffn_up_shexp", m.shared_ffn, m.dim)
                matrix(p + "ffn_down_shexp", m.dim, m.shared_ffn)
            if m.shared_gate:
                out[p + "ffn_gate_inp_shexp.weight"] = ((m.dim,), math.sqrt(3 / m.dim), 0.0)
        elif m.fused:
            matrix(p + "ffn_up", 2 * m.ffn, m.dim)
            matrix(p + "ffn_down", m.dim, m.ffn)
        else:
            matrix(p + "ffn_gate", m.ffn, m.dim)
            matrix(p + "ffn_up", m.ffn, m.dim)
            matrix(p + "ffn_down", m.dim, m.ffn)
    return out


# The forward pass.


def rms_norm(x, w, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def inverse_frequencies(rope, w, long):
    """Hugging Face's modeling_rope_utils."""
    n = rope.dims
    inv = rope.theta ** -(np.arange(0, n, 2) / n)
    if rope.kind == "linear":
        inv = inv / rope.factor
    elif rope.kind == "yarn":
        beta_fast, beta_slow = 32.0, 1.0

        def correction(turns):
            return n * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

        low = max(math.floor(correction(beta_fast)), 0)
        high = min(math.ceil(correction(beta_slow)), n - 1)
        high = high + 0.001 if low == high else high
        ramp = np.clip((np.arange(n // 2) - low) / (high - low), 0, 1)
        keep = 1 - ramp
        inv = inv / rope.factor * (1 - keep) + inv * keep
    elif rope.kind == "llama3":
        low, high = 1.0, 4.0
        smooth = np.clip((rope.original * inv / (2 * math.pi) - low) / (high - low), 0, 1)
        inv = (1 - smooth) * inv / rope.factor + smooth * inv
    elif rope.kind == "longrope":
        inv = inv / w("rope_factors_long.weight" if long else "rope_factors_short.weight")
    if rope.has_divisors:
        inv = inv / w("rope_freqs.weight")
    return inv


def rotate(x, inv, rope, interleaved):
    """x: [tokens, heads, head_dim]"""
    angle = np.arange(x.shape[0])[:, None] * inv[None, :]
    cos = np.cos(angle)[:, None, :] * rope.attention_factor
    sin = np.sin(angle)[:, None, :] * rope.attention_factor
    n = rope.dims
    out = x.copy()
    if interleaved:
        a, b = x[..., 0:n:2], x[..., 1:n:2]
        out[..., 0:n:2], out[..., 1:n:2] = a * cos - b * sin, b * cos + a * sin
    else:
        a, b = x[..., : n // 2], x[..., n // 2 : n]
        out[..., : n // 2], out[..., n // 2 : n] = a * cos - b * sin, b * cos + a * sin
    return out


def forward(m, tokens):
    all_tensors = tensors(m)

    def w(name):
        return values(name, *all_tensors[name]).astype(np.float64)

    def linear(x, name):
        y = x @ w(f"{name}.weight").T
        return y + w(f"{name}.bias") if f"{name}.bias" in all_tensors else y

    def activation(x):
        if m.gelu:
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return x * sigmoid(x)

    t = len(tokens)
    x = w("token_embd.weight")[tokens] * m.embedding_scale
    context = m.options.get("context_length", m.context)
    long = m.rope.original > 0 and context > m.rope.original
    for i in range(m.layers):
        p = f"blk.{i}."
        h = rms_norm(x, w(p + "attn_norm.weight"), m.eps)
        q_dim, kv_dim = m.heads * m.head_dim, m.kv_heads * m.head_dim
        if m.fused:
            qkv = linear(h, p + "attn_qkv")
            q, k, v = np.split(qkv, [q_dim, q_dim + kv_dim], axis=-1)
        else:
            q, k, v = linear(h, p + "attn_q"), linear(h, p + "attn_k"), linear(h, p + "attn_v")
        q = q.reshape(t, m.heads, m.head_dim)
        k, v = k.reshape(t, m.kv_heads, m.head_dim), v.reshape(t, m.kv_heads, m.head_dim)
        if m.qk_norm:
            q = rms_norm(q, w(p + "attn_q_norm.weight"), m.eps)
            k = rms_norm(k, w(p + "attn_k_norm.weight"), m.eps)
        if m.has_rope(i):
            rope = m.local_rope if m.local_rope and m.is_local(i) else m.rope
            inv = inverse_frequencies(rope, w, long)
            q, k = rotate(q, inv, rope, m.interleaved), rotate(k, inv, rope, m.interleaved)
        if m.temperature:
            beta, length = m.temperature
            q = q * (1 + beta * np.log(1 + np.floor(np.arange(t) / length)))[:, None, None]
        group = m.heads // m.kv_heads
        scale = m.attention_scale or m.head_dim**-0.5
        scores = np.einsum("thd,shd->hts", q, np.repeat(k, group, 1)) * scale
        if m.attention_cap:
            scores = m.attention_cap * np.tanh(scores / m.attention_cap)
        at, to = np.arange(t)[:, None], np.arange(t)[None, :]
        seen = (to <= at) & ((to > at - m.window) if m.is_local(i) else True)
        scores = np.where(seen, scores, -np.inf)
        out = np.einsum("hts,shd->thd", softmax(scores), np.repeat(v, group, 1)).reshape(t, q_dim)
        out = linear(out, p + "attn_output")
        if m.post_norms:
            out = rms_norm(out, w(p + "post_attention_norm.weight"), m.eps)
        x = x + m.residual_scale * out

        h = rms_norm(x, w(p + "ffn_norm.weight"), m.eps)
        if m.experts:
            p_all = softmax(linear(h, p + "ffn_gate_inp"))
            out = np.zeros_like(h)
            for row in range(t):
                chosen = np.argsort(-p_all[row], kind="stable")[: m.used]
                weights = p_all[row, chosen]
                if m.normalized:
                    weights = weights / weights.sum()
                for e, weight in zip(chosen, weights * m.expert_scale):

                    def expert(part):
                        if m.merged:
                            return w(p + f"ffn_{part}_exps.weight")[e]
                        return w(p + f"ffn_{part}.{e}.weight")

                    hidden = activation(expert("gate") @ h[row]) * (expert("up") @ h[row])
                    out[row] += weight * (expert("down") @ hidden)
            if m.shared_ffn:
                hidden = activation(linear(h, p + "ffn_gate_shexp")) * linear(h, p + "ffn_up_shexp")
                shared = linear(hidden, p + "ffn_down_shexp")
                if m.shared_gate:
                    shared = shared * sigmoid(h @ w(p + "ffn_gate_inp_shexp.weight"))[:, None]
                out = out + shared
        elif m.fused:
            gate, up = np.split(linear(h, p + "ffn_up"), 2, axis=-1)
            out = linear(activation(gate) * up, p + "ffn_down")
        else:
            out = linear(activation(linear(h, p + "ffn_gate")) * linear(h, p + "ffn_up"), p + "ffn_down")
        if m.post_norms:
            out = rms_norm(out, w(p + "post_ffw_norm.weight"), m.eps)
        x = x + m.residual_scale * out
    x = rms_norm(x, w("output_norm.weight"), m.eps)
    logits = x @ w("token_embd.weight" if m.tied else "output.weight").T
    if m.logit_bias:
        logits = logits + w("output.bias")
    logits = logits * m.logit_scale
    if m.logit_cap:
        logits = m.logit_cap * np.tanh(logits / m.logit_cap)
    return logits


# The models.


def bf16(x):
    """Rounded to nearest even bf16."""
    bits = int(np.float32(x).view(np.uint32))
    return float(np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32))


def window(w, **more):
    return {"one key more": {"window": w + 1}, "one key less": {"window": w - 1}, "no window": {"window": 0}, **more}


def models():
    llama = Model("Llama: grouped queries", wrong={"pairs by halves": {"interleaved": False}})
    half = replace(llama, interleaved=False)
    gemma = replace(half, gelu=True, tied=True, dim=72, embedding_scale=bf16(math.sqrt(72)), eps=1e-6)
    exact = {"the root not rounded to bf16": {"embedding_scale": math.sqrt(72)}}
    qwen3 = replace(half, arch="qwen3", qk_norm=True, head_dim=24, rope=Rope(1e6, 24))
    mixtral = replace(llama, experts=8, used=2, ffn=48)
    long = Rope(10000.0, 12, "longrope", original=64, attention_factor=1.1875)
    yarn = Rope(10000.0, 16, "yarn", 4.0, 128, 0.1 * math.log(4.0) + 1)
    yarn_extra = {
        "rope.scaling.type": ("string", "yarn"),
        "rope.scaling.factor": ("f32", 4.0),
        "rope.scaling.original_context_length": ("u32", 128),
    }
    return [
        replace(llama, tied=True),
        replace(
            llama,
            name="Nemo: heads of 24 in a width of 64, one key head",
            head_dim=24,
            kv_heads=1,
            rope=Rope(1e6, 24),
            wrong={"scaled by the width": {"attention_scale": 16**-0.5}},
        ),
        replace(llama, name="Mistral: window of 21", window=21, wrong=window(21)),
        replace(llama, name="Mistral: window of 256 across pages", window=256, tokens=300, wrong=window(256)),
        replace(
            llama,
            name="Ministral: every fourth layer sees everything, from the first on",
            layers=5,
            window=11,
            local=[False, True, True, True, False],
            extra={"attention.sliding_window_pattern": ("bools", [False, True, True, True, False])},
            wrong=window(11, **{"all layers local": {"local": None}}),
        ),
        replace(
            llama,
            name="linear scaling",
            rope=Rope(kind="linear", factor=4.0),
            extra={"rope.scaling.type": ("string", "linear"), "rope.scaling.factor": ("f32", 4.0)},
            wrong={"unscaled": {"rope": Rope()}},
        ),
        replace(
            llama,
            name="Llama 3.1: rope_freqs",
            rope=Rope(500000.0, has_divisors=True),
            wrong={"unscaled": {"rope": Rope(500000.0)}},
        ),
        replace(
            llama,
            name="YaRN",
            rope=yarn,
            extra=yarn_extra,
            wrong={
                "linear": {"rope": replace(yarn, kind="linear")},
                "no attention factor": {"rope": replace(yarn, attention_factor=1.0)},
            },
        ),
        replace(
            llama,
            name="Ministral 3: YaRN without its magnitude, queries scaled by position",
            arch="mistral3",
            rope=replace(yarn, original=32, attention_factor=1.0),
            temperature=(0.3, 32),
            extra={
                **yarn_extra,
                "rope.scaling.original_context_length": ("u32", 32),
                "rope.scaling.yarn_log_multiplier": ("f32", 1.0),
                "attention.temperature_scale": ("f32", 0.3),
            },
            wrong={"no temperature": {"temperature": None}},
        ),
        replace(
            llama,
            name="Llama with biases everywhere",
            qkv_bias=True,
            output_biases=True,
            wrong={"no biases of the outputs": {"output_biases": False}, "none of q, k, v": {"qkv_bias": False}},
        ),
        replace(
            llama,
            name="SmolLM3: every fourth layer without position",
            arch="smollm3",
            layers=5,
            nope=[False, False, False, True, False],
            wrong={"position everywhere": {"nope": None}},
        ),
        replace(
            llama,
            name="Granite: scales",
            arch="granite",
            embedding_scale=3.0,
            residual_scale=0.375,
            logit_scale=0.5,
            attention_scale=0.125,
            extra={
                "embedding_scale": ("f32", 3.0),
                "residual_scale": ("f32", 0.375),
                "logit_scale": ("f32", 2.0),
                "attention.scale": ("f32", 0.125),
            },
            wrong={
                "residual": {"residual_scale": 1.0},
                "embedding": {"embedding_scale": 1.0},
                "logits": {"logit_scale": 2.0},
                "attention": {"attention_scale": None},
            },
        ),
        replace(half, name="Qwen2", arch="qwen2", qkv_bias=True, logit_bias=True, wrong={"no bias": {"qkv_bias": False}}),
        replace(qwen3, name="Qwen3", wrong={"no norms": {"qk_norm": False}}),
        replace(
            half,
            name="Phi-3: fused matrices, a part of each head rotated, a window",
            arch="phi3",
            fused=True,
            rope=Rope(dims=12),
            window=17,
            wrong=window(17, **{"whole heads rotated": {"rope": Rope(dims=16)}}),
        ),
        *[
            replace(
                half,
                name=f"Phi-3 128k: LongRoPE, {which}",
                arch="phi3",
                fused=True,
                rope=long,
                options=options,
                extra={
                    "rope.scaling.original_context_length": ("u32", 64),
                    "rope.scaling.attn_factor": ("f32", 1.1875),
                },
                tokens=60,
                wrong={"the other divisors": {"options": other}, "none": {"rope": replace(long, kind="none")}},
            )
            for which, options, other in [("long", {}, {"context_length": 64}), ("short", {"context_length": 64}, {})]
        ],
        replace(gemma, name="Gemma", arch="gemma", wrong={"SiLU": {"gelu": False}, **exact}),
        replace(
            gemma,
            name="Gemma 2: caps, post norms, every other layer local",
            arch="gemma2",
            layers=3,
            post_norms=True,
            window=13,
            local=[True, False, True],
            attention_cap=2.0,
            logit_cap=5.0,
            extra={"attn_logit_softcapping": ("f32", 2.0), "final_logit_softcapping": ("f32", 5.0)},
            wrong=window(
                13,
                **{
                    "no cap of scores": {"attention_cap": None},
                    "no cap of logits": {"logit_cap": None},
                    "no post norms": {"post_norms": False},
                    "the other layers local": {"local": [False, True, False]},
                },
            ),
        ),
        replace(
            gemma,
            name="Gemma 3: five local layers to one, with a rope of their own",
            arch="gemma3",
            layers=7,
            qk_norm=True,
            post_norms=True,
            head_dim=24,
            kv_heads=1,
            window=9,
            local=[True, True, True, True, True, False, True],
            rope=Rope(1e6, 24, "linear", 8.0),
            local_rope=Rope(1e4, 24),
            extra={"rope.scaling.type": ("string", "linear"), "rope.scaling.factor": ("f32", 8.0)},
            wrong=window(
                9,
                **{
                    "one rope": {"local_rope": None},
                    "scaled local rope": {"local_rope": Rope(1e4, 24, "linear", 8.0)},
                    "all layers local": {"local": None},
                    "SiLU": {"gelu": False},
                },
            ),
        ),
        replace(mixtral, name="Mixtral", wrong={"not normalized": {"normalized": False}, "three": {"used": 3}}),
        replace(mixtral, name="Mixtral, a tensor for each expert", merged=False, wrong={"one": {"used": 1}}),
        replace(
            half,
            name="Qwen2-MoE: probabilities as weights, a shared expert with a gate",
            arch="qwen2moe",
            qkv_bias=True,
            experts=6,
            used=3,
            expert_ffn=32,
            normalized=False,
            shared_ffn=64,
            shared_gate=True,
            extra={
                "expert_feed_forward_length": ("u32", 32),
                "expert_shared_feed_forward_length": ("u32", 64),
            },
            wrong={"normalized": {"normalized": True}, "no gate": {"shared_gate": False}},
        ),
        replace(
            qwen3,
            name="Qwen3-MoE",
            arch="qwen3moe",
            experts=6,
            used=2,
            expert_ffn=32,
            expert_scale=1.5,
            extra={"expert_feed_forward_length": ("u32", 32), "expert_weights_scale": ("f32", 1.5)},
            wrong={"unscaled": {"expert_scale": 1.0}},
        ),
    ]


def positions(n):
    return sorted({0, 1, n // 4, n // 2, n - 2, n - 1})


def write_gguf(m, path):
    import gguf

    writer = gguf.GGUFWriter(path, m.arch)
    add = {"u32": writer.add_uint32, "f32": writer.add_float32, "string": writer.add_string, "bools": writer.add_array}
    for key, (kind, value) in metadata(m).items():
        if key != "general.architecture":
            add[kind](key, value)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(VOCAB)
    for name, spec in tensors(m).items():
        writer.add_tensor(name, values(name, *spec))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    tokens = [(i * i * 7 + i * 13 + i // 3) % VOCAB for i in range(300)]
    spec, logits = [], []
    for m in models():
        rows = positions(m.tokens)
        want = forward(m, tokens[: m.tokens])[rows]
        for reading, changed in m.wrong.items():
            off = np.abs(forward(replace(m, **changed), tokens[: m.tokens])[rows] - want).max()
            print(f"{m.name}: {reading}: {off:.2g}")
            assert off > 0.005, "too close to be told apart"
        logits.append(want.astype("<f4"))
        spec.append(
            {
                "name": m.name,
                "options": m.options,
                "window": m.window,
                "metadata": {key: list(value) for key, value in metadata(m).items()},
                "tensors": [[name, list(shape), scale, offset] for name, (shape, scale, offset) in tensors(m).items()],
                "n_tokens": m.tokens,
                "positions": rows,
            }
        )
    if len(sys.argv) == 3 and sys.argv[1] == "--gguf":
        for i, m in enumerate(models()):
            write_gguf(m, f"{sys.argv[2]}/{i:02}.gguf")
            np.save(f"{sys.argv[2]}/{i:02}.npy", logits[i])
        return
    models_json = ",\n".join(json.dumps(model) for model in spec)
    with open("models.json", "w") as f:
        f.write(f'{{"tokens": {json.dumps(tokens)},\n"models": [\n{models_json}\n]}}\n')
    with open("models.f32", "wb") as f:
        f.write(b"".join(rows.tobytes() for rows in logits))


if __name__ == "__main__":
    main()
