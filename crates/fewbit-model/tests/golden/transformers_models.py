#!/usr/bin/env python3
"""Tiny random models of Hugging Face's library, with the float64 logits that it computes itself, and what llama.cpp's
converter makes of each.

Writes, for each group of models, `NAME.json` (configuration and tensors of each folder; the keys, names and shapes of the
GGUF file, with a hash of every tensor's bytes) and `NAME.f32` (logits at some positions, little-endian). It needs torch,
transformers 5 and llama.cpp's source code:

    python3 transformers_models.py LLAMA_CPP [NAME...]
"""
import json
import os
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from reference import VOCAB, positions, values  # noqa: E402

N_TOKENS = 80


def models():
    """Name, class, configuration, and whether the experts are stored as MXFP4. Sizes are uneven, and there are at least
    two layers of each kind."""
    yarn = {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 128,
    }
    sizes = {
        "vocab_size": VOCAB, "max_position_embeddings": 512, "num_attention_heads": 6, "num_key_value_heads": 2,
        "hidden_size": 96, "head_dim": 16, "num_hidden_layers": 4, "intermediate_size": 64, "pad_token_id": None,
    }
    gpt_oss = {
        **sizes, "num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 13,
        "rope_parameters": {**yarn, "truncate": False},
    }
    llama4 = {
        **sizes, "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size_mlp": 80, "num_hidden_layers": 8,
        "attention_chunk_size": 21, "floor_scale": 11, "attn_scale": 0.3, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    }
    without = lambda config, *keys: {key: value for key, value in config.items() if key not in keys}
    dense = {**without(sizes, "head_dim"), "intermediate_size": 80}
    hybrid = {**dense, "num_hidden_layers": 8, "sliding_window": 13}
    theta = lambda theta, **more: {"rope_type": "default", "rope_theta": theta, **more}
    kinds = {"R": "linear_attention", "A": "full_attention"}
    next_ = {
        **sizes, "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 20,
        "linear_value_head_dim": 16, "rope_parameters": theta(1e4, partial_rotary_factor=0.25),
    }
    next_experts = {
        "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40,
    }
    return [
        ("gpt-oss", "GptOss", gpt_oss, False),
        ("gpt-oss, experts in MXFP4", "GptOss", {**gpt_oss, "num_key_value_heads": 3, "intermediate_size": 96}, True),
        ("Llama 4 Scout", "Llama4", llama4, False),
        ("Llama 4 Maverick", "Llama4", {
            **llama4, "interleave_moe_layer_step": 2, "num_experts_per_tok": 1, "use_qk_norm": False,
            "num_local_experts": 128, "hidden_size": 32, "intermediate_size": 8,
            "rope_parameters": theta(1e4),
        }, False),
        ("OLMo 2", "Olmo2", {**dense, "rope_parameters": theta(5e5)}, False),
        ("OLMo 3", "Olmo3", {**hybrid, "rope_parameters": {
            "full_attention": {**yarn, "rope_theta": 5e5}, "sliding_attention": theta(5e5),
        }}, False),
        ("GLM-4", "Glm4", {**dense, "head_dim": 16, "rope_parameters": theta(1e4, partial_rotary_factor=0.5)}, False),
        ("EXAONE 4, 32B", "Exaone4", {**hybrid, "rope_parameters": theta(1e6)}, False),
        ("EXAONE 4, 1.2B", "Exaone4", {
            **dense, "sliding_window": None, "layer_types": ["full_attention"] * 4, "tie_word_embeddings": True, "rope_parameters": llama4["rope_parameters"],
        }, False),
        ("Hunyuan", "HunYuanDenseV1", {**sizes, "intermediate_size": 80, "max_position_embeddings": 32768, "rope_parameters": {
            "rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0,
        }}, False),
        ("Seed-OSS", "SeedOss", {**dense, "head_dim": 24, "rope_parameters": theta(1e7)}, False),
        ("LFM2", "Lfm2", {
            **dense, "num_hidden_layers": 6, "block_multiple_of": 16, "rope_parameters": theta(1e6),
            "layer_types": [{"C": "conv", "A": "full_attention"}[kind] for kind in "CCACAC"],
        }, False),
        ("Qwen3-Next", "Qwen3Next", {**next_, "num_hidden_layers": 8, **next_experts}, False),
        ("Qwen3.5, dense", "Qwen3_5", {
            **next_, "num_hidden_layers": 5, "linear_conv_kernel_dim": 3, "intermediate_size": 80,
            "layer_types": [kinds[kind] for kind in "RARRA"],
        }, False),
        ("Qwen3.5, experts", "Qwen3_5Moe", {
            **without(next_, "intermediate_size"), **next_experts, "linear_key_head_dim": 24,
            "layer_types": [kinds[kind] for kind in "RARA"],
        }, False),
    ]


def deepseek_models():
    """Models with multi-head latent attention, with and without a latent of the queries, groups of experts, YaRN; and
    models with experts like theirs."""
    theta = lambda theta, **more: {"rope_type": "default", "rope_theta": theta, **more}
    dense = {
        "vocab_size": VOCAB, "max_position_embeddings": 512, "num_attention_heads": 6, "num_key_value_heads": 2,
        "hidden_size": 96, "num_hidden_layers": 4, "intermediate_size": 80, "pad_token_id": None,
    }
    experts = {
        "n_routed_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "routed_scaling_factor": 1.7,
    }
    sizes = {
        **dense, "num_key_value_heads": 6, "first_k_dense_replace": 2, "kv_lora_rank": 64, "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 32, "v_head_dim": 40, "moe_intermediate_size": 32, "n_shared_experts": 2, "rms_norm_eps": 1e-5,
    }
    yarn = {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 128, "mscale": 0.7, "mscale_all_dim": 0.7,
    }
    grouped = {
        **sizes, "q_lora_rank": 48, "n_routed_experts": 12, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3,
        "num_mtp_layers": 0,
    }
    # What the published files have besides, and the library ignores.
    published = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
    lite = {key: value for key, value in grouped.items() if key not in ("first_k_dense_replace", "num_mtp_layers")}
    return [
        ("DeepSeek 2 Lite", "DeepseekV2", {
            **sizes, "q_lora_rank": None, "n_routed_experts": 6, "num_experts_per_tok": 2, "rope_parameters": yarn,
        }, False),
        ("DeepSeek 2", "DeepseekV2", {
            **grouped, "topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5, "rope_parameters": theta(1e4),
        }, False),
        ("DeepSeek 3", "DeepseekV3", {**grouped, **published, "rope_parameters": {**yarn, "mscale": 1.0, "mscale_all_dim": 1.0}}, False),
        ("Kimi K2", "DeepseekV3", {
            **grouped, **published, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 2.8,
            "v_head_dim": 24, "rope_parameters": theta(5e4),
        }, False),
        ("GLM-4.7 Flash", "Glm4MoeLite", {
            **lite, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "rope_parameters": theta(1e6),
            "first_k_dense_replace": 1,
        }, False),
        ("Mistral Small 4", "Mistral4", {
            **lite, "first_k_dense_replace": 0, "qk_nope_head_dim": 32, "rope_parameters": {
                **yarn, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3,
                "original_max_position_embeddings": 16, "factor": 32.0,
            },
        }, False),
        ("Command R7B", "Cohere2", {
            **dense, "num_hidden_layers": 8, "sliding_window": 13, "logit_scale": 0.25, "rotary_pct": 1.0, "layer_norm_eps": 1e-5,
            "rope_parameters": theta(5e4),
        }, False),
        ("Command R", "Cohere", {
            **dense, "num_key_value_heads": 6, "model_max_length": 512, "logit_scale": 0.8, "rope_parameters": theta(8e6),
        }, False),
        ("GLM-4.5", "Glm4Moe", {
            **dense, **experts, "head_dim": 24, "use_qk_norm": True, "attention_bias": True, "first_k_dense_replace": 2,
            "n_shared_experts": 1, "num_mtp_layers": 0, "rope_parameters": theta(1e6, partial_rotary_factor=0.5),
        }, False),
        ("GLM-4.5 Air", "Glm4Moe", {
            **dense, **experts, "use_qk_norm": False, "first_k_dense_replace": 1, "n_shared_experts": 2,
            "num_mtp_layers": 0, "norm_topk_prob": False, "rope_parameters": theta(1e6, partial_rotary_factor=0.5),
        }, False),
    ]


def hybrid_models():
    """Models with state spaces or short convolutions, and with experts besides or one mixer for each layer."""
    theta = lambda theta: {"rope_type": "default", "rope_theta": theta}
    sizes = {
        "vocab_size": VOCAB, "max_position_embeddings": 512, "num_attention_heads": 6, "num_key_value_heads": 2,
        "hidden_size": 96, "intermediate_size": 80, "pad_token_id": None,
    }
    kinds = {"C": "conv", "A": "full_attention", "M": "linear_attention", "-": "mlp", "E": "moe"}
    layers = lambda pattern: [kinds[kind] for kind in pattern]
    granite = {
        **sizes, "mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 20, "mamba_d_head": 24, "mamba_chunk_size": 16,
        "embedding_multiplier": 3.0, "attention_multiplier": 0.25, "residual_multiplier": 0.7, "logits_scaling": 2.0,
        "position_embedding_type": "nope", "rope_parameters": theta(1e4),
    }
    nemotron = {
        **sizes, "head_dim": 24, "mamba_num_heads": 8, "mamba_head_dim": 24, "n_groups": 4, "ssm_state_size": 20,
        "chunk_size": 16,
    }
    return [
        ("LFM2, experts", "Lfm2Moe", {
            **sizes, "num_hidden_layers": 6, "layer_types": layers("CCACAC"), "rope_parameters": theta(1e6),
            "num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "num_dense_layers": 2,
        }, False),
        ("Granite 4 H", "GraniteMoeHybrid", {
            **granite, "num_hidden_layers": 6, "layer_types": layers("MMAMAM"), "num_local_experts": 0,
            "num_experts_per_tok": 0, "shared_intermediate_size": 80, "tie_word_embeddings": True,
        }, False),
        ("Granite 4 H, experts", "GraniteMoeHybrid", {
            **granite, "num_hidden_layers": 5, "layer_types": layers("MAMMA"), "num_local_experts": 7,
            "num_experts_per_tok": 3, "intermediate_size": 24, "shared_intermediate_size": 40, "mamba_n_groups": 1,
            "mamba_d_conv": 3, "mamba_d_state": 36,
        }, False),
        ("Nemotron-H", "NemotronH", {
            **nemotron, "layers_block_type": layers("M-MA-M-AM"),
        }, False),
        ("Nemotron 3 Nano", "NemotronH", {
            **nemotron, "layers_block_type": layers("MEMAEMAE"), "n_routed_experts": 7, "num_experts_per_tok": 3,
            "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 40, "routed_scaling_factor": 1.7,
        }, False),
        ("Nemotron 3, groups of experts", "NemotronH", {
            **nemotron, "layers_block_type": layers("EMAEMA"), "n_routed_experts": 12, "num_experts_per_tok": 3,
            "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 24, "n_group": 4, "topk_group": 2,
            "norm_topk_prob": False,
        }, False),
    ]


# What configurations of published files have, even if it is what the library takes without it.
PUBLISHED = {
    "Lfm2Moe": ["conv_L_cache", "norm_eps"],
    "GraniteMoeHybrid": ["mamba_d_conv", "mamba_expand", "mamba_n_groups", "shared_intermediate_size", "rms_norm_eps"],
    "NemotronH": ["conv_kernel", "expand", "n_groups", "layer_norm_epsilon", "mlp_hidden_act", "num_hidden_layers"],
}


def as_published(class_name, config, own):
    """The configuration as in published files, which the library renames."""
    config.update({key: getattr(own, key) for key in PUBLISHED.get(class_name, [])})
    # JSON has no infinity.
    config.pop("time_step_limit", None)
    if class_name == "GraniteMoeHybrid":
        kinds = {"linear_attention": "mamba", "full_attention": "attention"}
        config["layer_types"] = [kinds[kind] for kind in own.layer_types]
    if class_name == "NemotronH":
        config["hybrid_override_pattern"] = own.hybrid_override_pattern
        del config["layers_block_type"]
        if "moe" in own.layers_block_type:
            keys = ["n_shared_experts", "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor"]
            config.update({key: getattr(own, key) for key in keys})
        else:
            for key in [key for key in config if "expert" in key or "moe" in key]:
                del config[key]
    return config


def gemma_models():
    """Gemma 4: per-layer embeddings and layers that share keys and values with wider feed-forward blocks (E2B), and without
    wider ones (E4B), global layers without values (31B), experts (26B-A4B), and the one class without per-layer embeddings
    and experts. The width's root is the same in bf16, to which published weights round it."""
    kinds = {"L": "sliding_attention", "G": "full_attention"}
    sizes = {
        "vocab_size": VOCAB, "max_position_embeddings": 512, "num_attention_heads": 6, "num_key_value_heads": 3,
        "hidden_size": 64, "head_dim": 16, "global_head_dim": 40, "num_hidden_layers": 8, "intermediate_size": 80,
        "pad_token_id": None, "sliding_window": 13, "layer_types": [kinds[kind] for kind in "LLGLGLLG"],
        "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 0, "final_logit_softcapping": 9.0,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.3, "rope_theta": 1e6},
        },
    }
    shared = {**sizes, "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 4}
    unified = {key: value for key, value in sizes.items() if "per_layer_input" not in key}
    without_values = {"attention_k_eq_v": True, "num_global_key_value_heads": 2}
    return [
        ("Gemma 4 E2B", "Gemma4", {**shared, "use_double_wide_mlp": True}, False),
        ("Gemma 4 E4B", "Gemma4", {**shared, "num_kv_shared_layers": 3, "global_head_dim": 32, "tie_word_embeddings": False}, False),
        ("Gemma 4 31B", "Gemma4", {**sizes, **without_values, "num_hidden_layers": 6, "layer_types": [kinds[kind] for kind in "LGLGLG"]}, False),
        ("Gemma 4 26B-A4B", "Gemma4", {
            **sizes, **without_values, "num_hidden_layers": 4, "layer_types": [kinds[kind] for kind in "LGLG"],
            "enable_moe_block": True, "num_experts": 6, "top_k_experts": 3, "moe_intermediate_size": 24,
        }, False),
        ("Gemma 4 12B", "Gemma4Unified", {**unified, **without_values, "num_global_key_value_heads": 1}, False),
    ]


def scale_and_offset(name, shape, class_name):
    """How the values of a tensor are spread."""
    dim = shape[-2] if "experts." in name else shape[-1]
    if "norm" in name:
        return 0.4, 1.0
    if name.endswith(("layer_scalar", "router.scale", "per_expert_scale")):
        return 0.3, 0.8
    if name.endswith("sinks"):
        return 2.0, 0.0
    if name.endswith("A_log"):
        # States that decay slowly: where one token is all that is left, the norm after the state divides by next to nothing,
        # and the library itself is off by 5e-3 in float32.
        return 1.0, -3.0
    if name.endswith("bias"):
        return 0.5, 0.0
    # What experts are chosen by and weighted with must differ, and one token from the next.
    if name.endswith(("mlp.gate.weight", "mixer.gate.weight", "feed_forward.gate.weight", "router.layer.weight", "router.proj.weight")):
        # Next to the delta rule, the library's own float32 would be off by 2e-4.
        return (1 if class_name.startswith("Qwen") else 4) * (3 / dim) ** 0.5, 0.0
    # Gates of gpt-oss go beyond the limit of its clamped SwiGLU.
    gain = {"embed_tokens": 2.0, "lm_head": 2.5, "q_proj": 1.5, "k_proj": 1.5, "mlp.experts.gate_up_proj": 4.0, "linear_attn.out_proj": 0.07}
    gain = next((gain for part, gain in gain.items() if part in name), 1.0)
    return gain * (3 / dim) ** 0.5, 0.0


def unit_bytes(name, shape, scale, offset):
    """Bytes: `floor(128 scale (u + 1)) + offset`, where `u` is a value between -1 and 1."""
    unit = values(name, shape, 1.0, 0.0).astype(np.float64)
    return (np.floor((unit + 1) * 128 * scale) + offset).astype(np.uint8)


def packed(name, shape):
    """The tensors of an expert tensor as MXFP4 (name, shape, scale, offset), whose last two dimensions are turned."""
    n, rows, cols = shape[0], shape[2], shape[1]
    return [
        [f"{name}_blocks", [n, rows, cols // 32, 16], 1.0, 0],
        [f"{name}_scales", [n, rows, cols // 32], 4 / 256, 121],
    ]


# Classes whose files have a tensor for each expert's matrix, unlike the library's models.
SEPARATE = ["DeepseekV2", "DeepseekV3", "Glm4Moe", "Glm4MoeLite", "Lfm2Moe", "NemotronH"]

# Names in files that the library renames.
RENAMED = {
    "GraniteMoeHybrid": [
        ("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.input_linear.weight"),
        ("block_sparse_moe.experts.down_proj", "block_sparse_moe.output_linear.weight"),
        ("block_sparse_moe.router.weight", "block_sparse_moe.router.layer.weight"),
    ],
    "NemotronH": [("model.", "backbone.")],
}


def separate(class_name, key, parameter):
    """A parameter under its names in files, as views of the parameter."""
    for ours, theirs in RENAMED.get(class_name, []):
        key = key.replace(ours, theirs)
    if class_name not in SEPARATE or ".experts." not in key:
        return [(key, parameter)]
    gate, up, down = ["w1", "w3", "w2"] if class_name == "Lfm2Moe" else ["gate_proj", "up_proj", "down_proj"]
    prefix = key.rsplit(".", 1)[0]
    if key.endswith(".down_proj"):
        return [(f"{prefix}.{i}.{down}.weight", part) for i, part in enumerate(parameter)]
    if key.endswith(".up_proj"):
        # Experts without gates.
        return [(f"{prefix}.{i}.{up}.weight", part) for i, part in enumerate(parameter)]
    return [
        (f"{prefix}.{i}.{half}.weight", part)
        for i, expert in enumerate(parameter) for half, part in zip([gate, up], expert.chunk(2))
    ]


def apart(key, shape, specs, arrays):
    """The matrices of experts that lie apart in files, and how they lie together."""
    module, matrix = key.rsplit(".", 1)
    names = {"gate_up_proj": ["gate_proj", "up_proj"], "down_proj": ["down_proj"]}[matrix]
    rows, cols = shape[1] // len(names), shape[2]
    experts = []
    for expert in range(shape[0]):
        for part in names:
            name = f"{module}.{expert}.{part}.weight"
            scale, offset = (3 / cols) ** 0.5, 0.0
            arrays[name] = values(name, [rows, cols], scale, offset)
            specs.append([name, "F32", [rows, cols], scale, offset])
            experts.append(arrays[name])
    return np.stack(experts).reshape(shape)


def folder(name, class_name, config, is_packed):
    """The model, its tensors as the tests make them, and the arrays."""
    model_class = getattr(transformers, class_name + "ForCausalLM")
    config_class = model_class.config_class
    torch.manual_seed(0)
    config = config_class(**config)
    config._attn_implementation = config._experts_implementation = "eager"
    model = model_class(config).double().eval()
    specs, arrays = [], {}
    state = model.state_dict()
    for key, parameter in [part for item in state.items() for part in separate(class_name, *item)]:
        shape = list(parameter.shape)
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if is_packed and key.endswith("_proj") and "experts" in key:
            parts = packed(key, shape)
            for part in parts:
                specs.append([part[0], "U8", *part[1:]])
                arrays[part[0]] = unit_bytes(*part)
            from transformers.integrations.mxfp4 import convert_moe_packed_tensors

            blocks, scales = (torch.from_numpy(arrays[part[0]].copy()) for part in parts)
            # Twice the numbers of the format and half the exponent are exact in any type.
            whole = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            assert list(whole.shape) == shape, (whole.shape, shape)
            parameter.copy_(whole.double())
            continue
        if class_name == "Qwen3Next" and ".experts." in key:
            parameter.copy_(torch.from_numpy(apart(key, shape, specs, arrays)).double())
            continue
        scale, offset = scale_and_offset(key, shape, class_name)
        arrays[key] = values(key, shape, scale, offset)
        specs.append([key, "F32", shape, scale, offset])
        parameter.copy_(torch.from_numpy(arrays[key]).double())
    return model, specs, arrays


def check_names(class_name, model, arrays, is_packed):
    """Hugging Face's library writes these names, shapes and values."""
    if is_packed:
        return
    with tempfile.TemporaryDirectory() as to:
        model.float().save_pretrained(to)
        written = load_file(os.path.join(to, "model.safetensors"))
        if class_name == "Qwen3_5Moe":
            # Published files have the experts together, where the library writes them apart.
            written = {name: array for name, array in written.items() if ".experts." not in name}
            arrays = {name: array for name, array in arrays.items() if ".experts." not in name}
        assert set(written) == set(arrays), set(written) ^ set(arrays)
        for name, array in arrays.items():
            assert np.array_equal(written[name], array), name
    model.double()


class InDouble:
    """Lets code that asks for float32 on the way have float64."""

    def __enter__(self):
        self.float, self.to, self.softmax = torch.Tensor.float, torch.Tensor.to, torch.nn.functional.softmax
        self.type = torch.Tensor.type
        up = lambda x: torch.float64 if x is torch.float32 else x
        to, softmax, typed = self.to, self.softmax, self.type
        torch.Tensor.type = lambda tensor, *args, **more: typed(tensor, *map(up, args), **more)
        torch.Tensor.float = lambda tensor: tensor.double()
        torch.Tensor.to = lambda tensor, *args, **more: to(
            tensor, *map(up, args), **{key: up(value) for key, value in more.items()}
        )
        torch.nn.functional.softmax = lambda x, *args, dtype=None, **more: softmax(x, *args, dtype=up(dtype), **more)

    def __exit__(self, *_):
        torch.Tensor.float, torch.Tensor.to, torch.nn.functional.softmax = self.float, self.to, self.softmax
        torch.Tensor.type = self.type


def logits(model, tokens):
    with torch.no_grad(), InDouble():
        out = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    assert out.dtype == torch.float64
    return out.numpy()


def fnv(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & ((1 << 64) - 1)
    return f"{h:016x}"


def converted(llama_cpp, config, arrays, no_mtp=True):
    """The keys and tensors of the GGUF file that llama.cpp's converter makes."""
    sys.path.insert(0, str(llama_cpp / "gguf-py"))
    sys.path.insert(0, str(llama_cpp))
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    with tempfile.TemporaryDirectory() as to:
        to = Path(to)
        (to / "config.json").write_text(json.dumps(config))
        save_file(arrays, to / "model.safetensors", metadata={"format": "pt"})
        if config["model_type"].startswith("gemma4"):
            # The converter cuts the embedding to the size of the vocabulary.
            vocabulary = {"model": {"vocab": {str(i): i for i in range(VOCAB)}}, "added_tokens": []}
            (to / "tokenizer.json").write_text(json.dumps(vocabulary))
        hparams = ModelBase.load_hparams(to, False)
        if hparams["model_type"] == "mistral4":
            # It is the text part of a class that has others too.
            model_class = get_model_class("Mistral3ForConditionalGeneration").Mistral4Model
        elif hparams["model_type"] == "gemma4_unified_text":
            model_class = get_model_class("Gemma4UnifiedForConditionalGeneration")
        else:
            model_class = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
        without_vocabulary = type(model_class.__name__, (model_class,), {
            "model_arch": model_class.model_arch,
            "no_mtp": no_mtp,
            "set_vocab": lambda self: self.gguf_writer.add_tokenizer_model("none"),
        })
        out = to / "out.gguf"
        # The library's own configuration has what decides here, whatever the file says.
        own = {"hparams": dict(config)} if config["architectures"] == ["NemotronHForCausalLM"] else {}
        with torch.inference_mode():
            without_vocabulary(to, gguf.LlamaFileType.ALL_F32, out, eager=True, **own).write()
        reader = gguf.GGUFReader(out)
        metadata = {}
        for key, field in reader.fields.items():
            is_about = key.startswith("general.") and key != "general.architecture"
            if key.startswith(("GGUF.", "tokenizer.")) or is_about:
                continue
            kinds = [kind.name.lower() for kind in field.types]
            metadata[key] = ["+".join(kinds), field.contents()]
        tensors = []
        for tensor in reader.tensors:
            shape = [int(n) for n in reversed(tensor.shape)]
            data = tensor.data
            if tensor.name.endswith("ssm_a"):
                # PyTorch's exponential in float32 is not always the nearest number.
                layer = tensor.name.split(".")[1]
                log = next(array for name, array in arrays.items() if f".layers.{layer}." in name and name.endswith("A_log"))
                exact = -np.exp(log.astype(np.float64))
                nearest = exact[np.abs(exact - data.reshape(-1, 1)).argmin(1)].astype(np.float32)
                assert np.allclose(nearest, data.reshape(-1), rtol=3e-7)
                data = nearest
            tensors.append([tensor.name, tensor.tensor_type.name, shape, fnv(data.tobytes())])
        return {"metadata": metadata, "tensors": sorted(tensors)}


# The files, and the models in each.
FILES = {
    "transformers_models": models, "transformers_deepseek": deepseek_models, "transformers_hybrid": hybrid_models,
    "transformers_gemma": gemma_models,
}


def main():
    for name in sys.argv[2:] or FILES:
        write(Path(sys.argv[1]), name, FILES[name]())


def write(llama_cpp, to, models):
    tokens = [(i * i * 7 + i * 13 + i // 3) % VOCAB for i in range(N_TOKENS)]
    rows = positions(N_TOKENS)
    out, all_logits = [], b""
    for name, class_name, config, is_packed in models:
        model, specs, arrays = folder(name, class_name, config, is_packed)
        check_names(class_name, model, arrays, is_packed)
        got = logits(model, tokens)
        print(f"{name}: logits up to {np.abs(got).max():.1f}")
        all_logits += got[rows].astype("<f4").tobytes()
        config = model.config.to_diff_dict()
        config["architectures"] = [type(model).__name__]
        config.pop("dtype", None)
        config = as_published(class_name, config, model.config)
        if class_name == "Gemma4Unified":
            # The converter needs the key, which this class of the library does not write.
            config["moe_intermediate_size"] = None
        if is_packed:
            config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
        gguf = converted(llama_cpp, config, arrays)
        if class_name == "Llama4":
            # llama.cpp has these as constants, which a text would have to be long for; fewbit reads these keys.
            own = {
                "attention.sliding_window": ["uint32", config["attention_chunk_size"]],
                "attention.temperature_scale": ["float32", config["attn_scale"]],
                "attention.temperature_length": ["uint32", config["floor_scale"]],
            }
            gguf["metadata"].update({f"llama4.{key}": value for key, value in own.items()})
        if class_name == "Mistral4":
            # llama.cpp's converter leaves them out; fewbit takes those of Mistral Small 4 then.
            own = {
                "attention.temperature_scale": ["float32", config["rope_parameters"]["llama_4_scaling_beta"]],
                "attention.temperature_length": ["uint32", config["rope_parameters"]["original_max_position_embeddings"]],
            }
            gguf["metadata"].update({f"mistral4.{key}": value for key, value in own.items()})
        out.append(json.dumps({"name": name, "config": config, "tensors": specs, "gguf": gguf}))
    head = f'"tokens": {json.dumps(tokens)},\n"positions": {json.dumps(rows)},\n"models": [\n'
    with open(os.path.join(HERE, f"{to}.json"), "w") as file:
        file.write("{" + head + ",\n".join(out) + "\n]}\n")
    with open(os.path.join(HERE, f"{to}.f32"), "wb") as file:
        file.write(all_logits)


if __name__ == "__main__":
    main()
