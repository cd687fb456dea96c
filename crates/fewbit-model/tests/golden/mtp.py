#!/usr/bin/env python3
"""Tiny random models with a layer that predicts a further token, and what it gives in float64: Hugging Face's library has
the layer (`MtpLayer`) and computes it. What llama.cpp's converter makes of each is written, too.

Writes `mtp.json`, as `transformers_models.py`, and `mtp.f32`: of each model the logits at some positions, those of the
layer at the positions after the first, and those of a draft of several tokens from the last one. It needs torch,
transformers 5 and llama.cpp's source code:

    python3 mtp.py LLAMA_CPP
"""
import copy
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from transformers.modeling_layers import MtpLayer

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import transformers_models as base  # noqa: E402
from reference import positions, values  # noqa: E402

# Drafted tokens from the last position.
N_DRAFTED = 3


def models():
    """Models of the other files: the class, the configuration, and the numbers of its files."""
    known = {name: (class_name, config) for name, class_name, config, _ in base.models() + base.deepseek_models()}
    for name in ["Qwen3-Next", "Qwen3.5, dense", "Qwen3.5, experts", "GLM-4.5", "GLM-4.5 Air"]:
        class_name, config = known[name]
        yield name, class_name, {key: value for key, value in config.items() if key != "num_mtp_layers"}


def name_in_files(class_name, n_layers, key):
    """The name in published files of a parameter of the library's layer."""
    is_qwen = class_name.startswith("Qwen")
    apart = {"enorm": "pre_fc_norm_embedding", "hnorm": "pre_fc_norm_hidden", "eh_proj": "fc", "post_norm": "norm"}
    module, rest = key.split(".", 1)
    if module == "mtp_block":
        return f"mtp.layers.0.{rest}" if is_qwen else f"model.layers.{n_layers}.{rest}"
    if is_qwen:
        return f"mtp.{apart[module]}.{rest}"
    return f"model.layers.{n_layers}.{'shared_head.norm' if module == 'post_norm' else module}.{rest}"


def further_layer(model, class_name, specs, arrays):
    """The library's layer, with weights as the tests make them."""
    config = copy.deepcopy(model.config)
    n_layers = config.num_hidden_layers
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"]
    if hasattr(config, "first_k_dense_replace"):
        config.first_k_dense_replace = 0
    block = type(model.model.layers[-1])
    norm = type(model.model.layers[-1].input_layernorm)
    layer = MtpLayer(config, block, norm, 0).double().eval()
    for key, parameter in layer.state_dict().items():
        name = name_in_files(class_name, n_layers, key)
        if class_name == "Qwen3Next" and ".experts." in name:
            shape = list(parameter.shape)
            parameter.copy_(torch.from_numpy(base.apart(name, shape, specs, arrays)).double())
            continue
        for name, part in base.separate(class_name, name, parameter):
            shape = list(part.shape)
            scale, offset = base.scale_and_offset(name, shape, class_name)
            arrays[name] = values(name, shape, scale, offset)
            specs.append([name, "F32", shape, scale, offset])
            part.copy_(torch.from_numpy(arrays[name]).double())
    if not class_name.startswith("Qwen"):
        # Copies, which are not read.
        for name, of in [("embed_tokens", "model.embed_tokens.weight"), ("shared_head.head", "lm_head.weight")]:
            name = f"model.layers.{n_layers}.{name}.weight"
            shape = list(arrays[of].shape)
            arrays[name] = values(name, shape, 1.0, 0.0)
            specs.append([name, "F32", shape, 1.0, 0.0])
    return layer


def run(model, layer, tokens, before):
    """The outputs of the layer for tokens from position 1 on, each with the hidden state before it."""
    n = len(tokens)
    x = model.model.embed_tokens(torch.tensor([tokens]))
    ids = torch.arange(1, n + 1)[None]
    is_qwen35 = "Qwen3_5" in type(model).__name__
    angles = model.model.rotary_emb(x, ids.expand(3, 1, n) if is_qwen35 else ids)
    mask = torch.full((n, n), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    return layer(x, before[None], position_embeddings=angles, attention_mask=mask, position_ids=ids, cache=None)[0]


def main():
    llama_cpp = Path(sys.argv[1])
    tokens = [(i * i * 7 + i * 13 + i // 3) % base.VOCAB for i in range(base.N_TOKENS)]
    rows = positions(base.N_TOKENS)
    out, numbers = [], b""
    for name, class_name, config in models():
        model, specs, arrays = base.folder(name, class_name, config, False)
        layer = further_layer(model, class_name, specs, arrays)
        with torch.no_grad(), base.InDouble():
            hidden = model.model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]
            of_model = model.lm_head(hidden)
            outputs = run(model, layer, tokens[1:], hidden[:-1])
            of_layer = model.lm_head(outputs)
            more, before, drafts = list(tokens[1:]), hidden[:-1], []
            for _ in range(N_DRAFTED):
                output = run(model, layer, more, before)[-1:]
                drafts.append(model.lm_head(output))
                more.append(int(drafts[-1].argmax()))
                before = torch.cat([before, output])
        drafts = torch.cat(drafts)
        assert of_model.dtype == drafts.dtype == torch.float64
        assert torch.allclose(drafts[0], of_layer[-1])
        print(f"{name}: logits up to {of_layer.abs().max():.1f}, drafts {more[len(tokens) - 1:]}")
        of_rows = of_layer[[row - 1 for row in rows if row > 0]]
        for part in [of_model[rows], of_rows, drafts]:
            numbers += part.numpy().astype("<f4").tobytes()
        config = model.config.to_diff_dict()
        config["architectures"] = [type(model).__name__]
        config.pop("dtype", None)
        config.pop("num_mtp_layers", None)
        if class_name.startswith("Glm"):
            config["num_nextn_predict_layers"] = 1
        elif class_name != "Qwen3Next":
            config["mtp_num_hidden_layers"] = 1
        gguf = base.converted(llama_cpp, config, arrays, no_mtp=False)
        out.append(json.dumps({"name": name, "config": config, "tensors": specs, "gguf": gguf}))
    head = f'"tokens": {json.dumps(tokens)},\n"positions": {json.dumps(rows)},\n"models": [\n'
    with open(os.path.join(HERE, "mtp.json"), "w") as file:
        file.write("{" + head + ",\n".join(out) + "\n]}\n")
    with open(os.path.join(HERE, "mtp.f32"), "wb") as file:
        file.write(numbers)


if __name__ == "__main__":
    main()
