#!/usr/bin/env python3
"""Position embeddings as Hugging Face's `transformers` reads them from `config.json`, in every spelling.

Writes `ropes.json`: configurations, and for each the frequencies (radians per position) and the attention factor that
transformers gets from it: its configuration classes bring the keys into one form, and its functions compute with them.
Where `torch` would be, they get NumPy in float64, so that the numbers are exact to more than f32 and nothing needs to be
installed but

    pip install transformers==5.24.0 numpy
    python3 ropes.py
"""
import ast
import inspect
import json
import os

import numpy as np
import transformers
from transformers import modeling_rope_utils
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

HERE = os.path.dirname(os.path.abspath(__file__))


class Array(np.ndarray):
    """An array with the few methods of a tensor that the formulas use."""

    def to(self, device=None, dtype=None):
        return self.astype(np.float64).view(Array)

    def float(self):
        return self.to()


class Torch:
    """What the formulas take from `torch`."""

    int64 = float = float32 = np.float64
    Tensor = Array

    @staticmethod
    def tensor(x, dtype=None, device=None):
        # The divisors are f32.
        return np.asarray(x, dtype=np.float32).astype(np.float64).view(Array)

    @staticmethod
    def arange(*limits, dtype=None, device=None):
        return np.arange(*limits).astype(np.float64).view(Array)

    @staticmethod
    def where(condition, a, b):
        return np.where(condition, a, b).view(Array)

    @staticmethod
    def clamp(x, low, high):
        return np.clip(x, low, high).view(Array)


modeling_rope_utils.torch = Torch


def plain_rope(model_type):
    """`compute_default_rope_parameters` of the class's own file, which cannot be imported without `torch`."""
    folder = os.path.join(os.path.dirname(transformers.__file__), "models")
    name = model_type.removesuffix("_text")
    with open(os.path.join(folder, name, f"modeling_{name}.py")) as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "compute_default_rope_parameters":
            node.decorator_list, node.returns = [], None
            for argument in node.args.args:
                argument.annotation = None
            scope = {"torch": Torch}
            exec(compile(ast.Module([node], []), name, "exec"), scope)
            return scope[node.name]
    raise ValueError(model_type)


def rope(config, model_type, kind, seq_len=None):
    own = config.rope_parameters[kind] if kind else config.rope_parameters
    of_kind = {"layer_type": kind} if kind else {}
    if own["rope_type"] == "default":
        function = plain_rope(model_type)
    else:
        function = modeling_rope_utils.ROPE_INIT_FUNCTIONS[own["rope_type"]]
    if "seq_len" in inspect.signature(function).parameters:
        of_kind["seq_len"] = seq_len
    frequencies, factor = function(config, **of_kind)
    return {"frequencies": [float(f) for f in frequencies], "attention_factor": float(factor)}


def read(settings):
    """What transformers makes of a configuration: for all layers or global ones, and for local ones."""
    model_type = settings["model_type"]
    config = CONFIG_MAPPING[model_type].from_dict(json.loads(json.dumps(settings)))
    nested = "sliding_attention" in config.rope_parameters
    kinds = {"global": "full_attention", "local": "sliding_attention"} if nested else {"global": None}
    out = {name: rope(config, model_type, kind) for name, kind in kinds.items()}
    own = config.rope_parameters["full_attention"] if nested else config.rope_parameters
    if own["rope_type"] == "longrope":
        # The divisors of long texts take the place of the short ones' beyond the original context.
        out["original_context"] = own["original_max_position_embeddings"]
        out["global_long"] = rope(config, model_type, None, settings["max_position_embeddings"])
    return out


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
# What folders of a class have besides.
MORE = {"gemma3_text": {"head_dim": 24}, "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2}}
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
}


def cases():
    plain = {"rope_type": "default"}
    linear = {"rope_type": "linear", "factor": 4.0}
    with_theta = {**linear, "rope_theta": 1e6}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    yarn = {"rope_type": "yarn", "factor": 4.0}
    original = {"original_max_position_embeddings": 2048}
    new = lambda **more: {"rope_parameters": more}
    old = lambda **more: {"rope_scaling": more}
    # Where the base is, and which object wins.
    for model_type in CLASSES:
        if model_type != "ministral3":
            yield model_type, "nothing at all", {}
            yield model_type, "a base at the top", {"rope_theta": 5e5}
            yield model_type, "a base in rope_parameters", new(rope_theta=2e5, **plain)
            yield model_type, "a base at the top and in rope_parameters", {"rope_theta": 5e5, **new(rope_theta=2e5, **plain)}
    for what, settings in {
        "base at the top, rope_parameters without": {"rope_theta": 1e6, **new(**plain)},
        "base in rope_scaling": old(**with_theta),
        "base in rope_scaling and at the top": {"rope_theta": 5e5, **old(**with_theta)},
        "base at the top, rope_scaling without": {"rope_theta": 5e5, **old(**linear)},
        "rope_scaling before rope_parameters": {**old(**linear), **new(rope_theta=1e6, **plain)},
        "an empty rope_scaling": {"rope_scaling": {}, **new(**with_theta)},
        "rope_scaling null": {"rope_scaling": None, **new(**with_theta)},
        "both null": {"rope_scaling": None, "rope_parameters": None},
        "type in place of rope_type": old(type="linear", factor=4.0),
        "type and rope_type": old(type="linear", rope_type="default", factor=4.0),
        "type in rope_parameters": new(type="linear", factor=4.0, rope_theta=2e5),
        "dynamic": old(rope_type="dynamic", factor=2.0),
        "llama3": old(**llama3, **original),
        "llama3 in rope_parameters": new(rope_theta=5e5, **llama3, **original),
        "llama3 without an original context": old(**llama3),
        "llama3 with the original context at the top": {**old(**llama3), **original},
        "yarn": old(**yarn, **original),
        "yarn without an original context": old(**yarn),
        "yarn with both": {**old(rope_type="yarn", factor=4.0, original_max_position_embeddings=1024), **original},
        "yarn with betas": old(**yarn, **original, beta_fast=16.0, beta_slow=2.0),
        "yarn with betas that say nothing": old(**yarn, **original, beta_fast=None, beta_slow=0),
        "yarn, not truncated": old(**yarn, **original, truncate=False),
        "yarn with mscale": old(**yarn, **original, mscale=0.8, mscale_all_dim=0.5),
        "yarn with one mscale": old(**yarn, **original, mscale=0.8),
        "yarn with an attention factor": old(**yarn, **original, attention_factor=0.75),
        "yarn with a factor of null": old(rope_type="yarn", factor=None, **original),
        "yarn with a factor below 1": old(rope_type="yarn", factor=0.5, **original),
    }.items():
        yield "llama", what, settings
    yield "qwen3", "yarn as Qwen's cards have it", old(type="yarn", factor=4.0, original_max_position_embeddings=2048)
    yield "qwen3", "yarn, 128 elements", {"head_dim": 128, **old(**yarn, **original), "rope_theta": 1e6}
    yield "smollm3", "linear", old(**linear)
    # Phi-3: a part of each head, and divisors.
    short, long = [1.0 + 0.1 * i for i in range(6)], [2.0 + i for i in range(6)]
    divisors = dict(short_factor=short, long_factor=long)
    part = {"partial_rotary_factor": 0.75, "original_max_position_embeddings": 4096}
    yield "phi3", "a part of each head", {"partial_rotary_factor": 0.5}
    yield "phi3", "a part of each head, in rope_parameters", new(partial_rotary_factor=0.5, rope_theta=2e4, **plain)
    yield "phi3", "longrope", {**part, **old(type="longrope", **divisors)}
    yield "phi3", "su", {**part, **old(type="su", original_max_position_embeddings=4096, **divisors)}
    yield "phi3", "longrope in rope_parameters", {
        **part, **new(rope_type="longrope", rope_theta=2e4, partial_rotary_factor=0.75, **divisors)}
    yield "phi3", "longrope with a factor", {**part, **old(rope_type="longrope", factor=32.0, **divisors)}
    yield "phi3", "longrope with an attention factor", {**part, **old(rope_type="longrope", attention_factor=1.5, **divisors)}
    yield "phi3", "longrope, the original context in it as well", {
        **part, **old(rope_type="longrope", original_max_position_embeddings=1024, **divisors)}
    yield "llama", "longrope of another class", old(
        rope_type="longrope", short_factor=[1.0] * 8, long_factor=[3.0] * 8, **original)
    # Gemma 3: layers of two kinds.
    kinds = lambda **both: {"rope_parameters": both}
    for what, settings in {
        "bases at the top": {"rope_theta": 2e6, "rope_local_base_freq": 3e4},
        "linear scaling of global layers": {"rope_theta": 2e6, **old(rope_type="linear", factor=8.0)},
        "both kinds": kinds(
            full_attention={"rope_theta": 2e6, "rope_type": "linear", "factor": 8.0},
            sliding_attention={"rope_theta": 3e4, "rope_type": "default"}),
        "both kinds, bases at the top": {"rope_theta": 2e6, "rope_local_base_freq": 3e4, **kinds(
            full_attention=dict(plain), sliding_attention=dict(plain))},
        "both kinds and at the top": {"rope_theta": 9e6, "rope_local_base_freq": 9e4, **kinds(
            full_attention={"rope_theta": 2e6, **plain}, sliding_attention={"rope_theta": 3e4, **plain})},
        "only one kind": kinds(full_attention={"rope_theta": 2e6, **plain}),
        "the other kind": kinds(sliding_attention={"rope_theta": 3e4, **plain}),
        "scaled local layers": kinds(
            full_attention=dict(plain), sliding_attention={"rope_theta": 3e4, "rope_type": "linear", "factor": 2.0}),
        "rope_scaling over both kinds": {**old(rope_type="linear", factor=8.0), **kinds(
            full_attention={"rope_theta": 2e6, **plain}, sliding_attention={"rope_theta": 3e4, **plain})},
        "yarn in global layers": kinds(
            full_attention={"rope_theta": 2e6, **yarn, **original}, sliding_attention=dict(plain)),
    }.items():
        yield "gemma3_text", what, settings
    # Ministral 3: queries that grow with their position.
    yield "ministral3", "as its files have it", {"head_dim": 32, **new(
        rope_theta=1e6, rope_type="yarn", factor=16.0, original_max_position_embeddings=512, beta_fast=32.0, beta_slow=1.0,
        mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1)}


def main():
    out = []
    for model_type, what, settings in cases():
        config = {"architectures": [CLASSES[model_type]], "model_type": model_type, **SIZES, **MORE.get(model_type, {})}
        config.update(settings)
        out.append(json.dumps({"name": f"{model_type}: {what}", "config": config, "rope": read(config)}))
    head = f'"transformers": "{transformers.__version__}",\n"cases": [\n'
    with open(os.path.join(HERE, "ropes.json"), "w") as file:
        file.write("{" + head + ",\n".join(out) + "\n]}\n")
    print(f"{len(out)} configurations")


if __name__ == "__main__":
    main()
