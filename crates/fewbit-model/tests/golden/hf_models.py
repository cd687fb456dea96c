#!/usr/bin/env python3
"""Tiny random models as Hugging Face folders, one for every class that is supported, with their float64 logits.

Writes `hf_models.json` (configuration and tensors of each folder, from which the tests write it) and `hf_models.f32`
(logits at some positions, little-endian). Weights and forward pass are those of `reference.py`; the configurations
are written by hand, as files of these classes have them.

    python3 hf_models.py
"""
import json
import math
import os
from dataclasses import replace

from reference import VOCAB, Model, Rope, bf16, forward, positions, tensors, values

HERE = os.path.dirname(os.path.abspath(__file__))
N_TOKENS = 80

# GGUF names of the parts of a layer, and those of Hugging Face's library.
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_inp": "mlp.gate",
}
# Where the norms behind attention and behind the feed-forward part have names of their own.
POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def hf_name(m, config, name):
    mixtral = config["architectures"] == ["MixtralForCausalLM"]
    granite = config["architectures"] == ["GraniteMoeForCausalLM"]
    module, leaf = name.rsplit(".", 1)
    whole = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    if module in whole:
        return f"{whole[module]}.{leaf}"
    _, layer, part = module.split(".", 2)
    if "." in part:
        part, expert = part.split(".")
        own = {"ffn_gate": "w1", "ffn_up": "w3", "ffn_down": "w2"}[part] if mixtral else part[4:] + "_proj"
        part = f"block_sparse_moe.experts.{expert}.{own}" if mixtral else f"mlp.experts.{expert}.{own}"
    elif mixtral and part == "ffn_gate_inp":
        part = "block_sparse_moe.gate"
    elif granite and part.startswith("ffn_") and part != "ffn_norm":
        own = {"ffn_gate_inp": "router.layer", "ffn_up_exps": "input_linear", "ffn_down_exps": "output_linear"}
        part = f"block_sparse_moe.{own[part]}"
    elif m.fused and part == "ffn_up":
        part = "mlp.gate_up_proj"
    elif m.post_norms and part in POST_NORMS:
        part = POST_NORMS[part]
    else:
        part = PARTS[part]
    return f"model.layers.{layer}.{part}.{leaf}"


def hf_tensors(m, config):
    """Name, shape, GGUF name, scale and offset of the values, and what is done to them."""
    out = []
    all_tensors = tensors(m)
    for name, (shape, scale, offset) in all_tensors.items():
        if name.startswith("rope_factors") or ".ffn_gate_exps." in name:
            continue
        how = {}
        if ".ffn_up_exps." in name:
            # Of each expert the gate's rows, then these.
            gate = name.replace("ffn_up_exps", "ffn_gate_exps")
            how = {"after": [gate, *all_tensors[gate][1:]]}
            shape = (shape[0], 2 * shape[1], shape[2])
        if m.interleaved and (".attn_q." in name or ".attn_k." in name):
            how = {"halves": [m.head_dim, m.rope.dims]}
        if m.gelu and "norm" in name:
            how = {"minus_one": True}
        if name.endswith("ffn_gate_inp_shexp.weight"):
            shape = (1, *shape)
        out.append([hf_name(m, config, name), list(shape), name, scale, offset, how])
    return out


def base(m, cls, model_type, **more):
    config = {
        "architectures": [cls],
        "model_type": model_type,
        "hidden_size": m.dim,
        "intermediate_size": m.ffn,
        "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads,
        "num_key_value_heads": m.kv_heads,
        "vocab_size": VOCAB,
        "max_position_embeddings": m.context,
        "rms_norm_eps": m.eps,
        "rope_theta": m.rope.theta,
        "tie_word_embeddings": m.tied,
        "torch_dtype": "float32",
    }
    if m.head_dim * m.heads != m.dim:
        config["head_dim"] = m.head_dim
    return {**config, **more}


def longrope(m):
    """The divisors stand in the configuration."""
    all_tensors = tensors(m)
    pick = lambda name: [float(x) for x in values(name, *all_tensors[name])]
    return {
        "type": "longrope",
        "short_factor": pick("rope_factors_short.weight"),
        "long_factor": pick("rope_factors_long.weight"),
    }


def models():
    llama = Model("Llama")
    half = replace(llama, interleaved=False)
    llama3 = replace(llama, name="Llama 3.1", context=512, rope=Rope(500000.0, 16, "llama3", 8.0, 64))
    yarn = replace(llama, name="Llama, YaRN", rope=Rope(10000.0, 16, "yarn", 4.0, 128, 0.1 * math.log(4.0) + 1))
    linear = replace(llama, name="CodeLlama-like, linear scaling, tied", tied=True, rope=Rope(kind="linear", factor=4.0))
    nemo = replace(llama, name="Mistral Nemo", head_dim=24, kv_heads=1, rope=Rope(1e6, 24))
    mistral = replace(llama, name="Mistral, window of 21", window=21)
    ministral = replace(llama, name="Ministral", layers=4, window=11, local=[False, True, True, True])
    experts = dict(experts=8, used=2, merged=False)
    mixtral = replace(llama, name="Mixtral", ffn=48, rope=Rope(1e6), **experts)
    qwen2 = replace(half, name="Qwen2, a window from the second layer on", layers=3, qkv_bias=True, window=17, local=[False, True, True])
    qwen3 = replace(half, name="Qwen3", qk_norm=True, head_dim=24, rope=Rope(1e6, 24))
    qwen2moe = replace(
        half, name="Qwen2-MoE", qkv_bias=True, expert_ffn=32, normalized=False, shared_ffn=40, shared_gate=True, **experts
    )
    qwen3moe = replace(qwen3, name="Qwen3-MoE", expert_ffn=32, normalized=True, **experts)
    gemma = replace(half, name="Gemma", gelu=True, tied=True, dim=72, embedding_scale=bf16(math.sqrt(72)), eps=1e-6)
    gemma2 = replace(
        gemma, name="Gemma 2", layers=3, post_norms=True, window=13, local=[True, False, True], attention_cap=2.0,
        logit_cap=5.0, attention_scale=20**-0.5,
    )
    gemma3 = replace(
        gemma, name="Gemma 3", layers=7, qk_norm=True, post_norms=True, head_dim=24, kv_heads=1, window=9,
        local=[True] * 5 + [False, True], rope=Rope(1e6, 24, "linear", 8.0), local_rope=Rope(1e4, 24),
    )
    long = Rope(10000.0, 12, "longrope", original=64, attention_factor=math.sqrt(1 + math.log(8) / math.log(64)))
    phi3 = replace(half, name="Phi-3 128k", fused=True, rope=long)
    smollm3 = replace(llama, name="SmolLM3", layers=5, tied=True, nope=[False, False, False, True, False], rope=Rope(5e6))
    granite = replace(
        llama, name="Granite", tied=True, embedding_scale=3.0, residual_scale=0.375, logit_scale=0.5, attention_scale=0.125
    )
    granitemoe = replace(granite, name="Granite MoE", ffn=48, experts=8, used=2)
    scaling = lambda kind, **more: {"rope_type": kind, **more}
    return [
        (llama3, base(llama3, "LlamaForCausalLM", "llama", rope_scaling=scaling(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64))),
        (yarn, base(yarn, "LlamaForCausalLM", "llama", max_position_embeddings=512, rope_scaling=scaling(
            "yarn", factor=4.0, original_max_position_embeddings=128))),
        (linear, base(linear, "LlamaForCausalLM", "llama", rope_scaling={"type": "linear", "factor": 4.0})),
        (nemo, base(nemo, "MistralForCausalLM", "mistral", sliding_window=None)),
        (mistral, base(mistral, "MistralForCausalLM", "mistral", sliding_window=21)),
        (ministral, base(ministral, "MinistralForCausalLM", "ministral", sliding_window=11, layer_types=[
            "full_attention", "sliding_attention", "sliding_attention", "sliding_attention"])),
        (mixtral, base(mixtral, "MixtralForCausalLM", "mixtral", num_local_experts=8, num_experts_per_tok=2,
                       sliding_window=None)),
        (qwen2, base(qwen2, "Qwen2ForCausalLM", "qwen2", use_sliding_window=True, sliding_window=17,
                     max_window_layers=1)),
        (qwen3, base(qwen3, "Qwen3ForCausalLM", "qwen3", use_sliding_window=False, attention_bias=False)),
        (qwen2moe, base(qwen2moe, "Qwen2MoeForCausalLM", "qwen2_moe", num_experts=8, num_experts_per_tok=2,
                        moe_intermediate_size=32, shared_expert_intermediate_size=40, norm_topk_prob=False,
                        decoder_sparse_step=1, mlp_only_layers=[], use_sliding_window=False)),
        (qwen3moe, base(qwen3moe, "Qwen3MoeForCausalLM", "qwen3_moe", num_experts=8, num_experts_per_tok=2,
                        moe_intermediate_size=32, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
                        use_sliding_window=False)),
        (gemma, base(gemma, "GemmaForCausalLM", "gemma", hidden_act="gelu", head_dim=16)),
        (gemma2, base(gemma2, "Gemma2ForCausalLM", "gemma2", hidden_activation="gelu_pytorch_tanh", head_dim=16,
                      sliding_window=13, attn_logit_softcapping=2.0, final_logit_softcapping=5.0,
                      query_pre_attn_scalar=20)),
        (gemma3, base(gemma3, "Gemma3ForCausalLM", "gemma3_text", hidden_activation="gelu_pytorch_tanh",
                      sliding_window=9, sliding_window_pattern=6, rope_local_base_freq=10000.0,
                      rope_scaling=scaling("linear", factor=8.0), query_pre_attn_scalar=24)),
        (phi3, base(phi3, "Phi3ForCausalLM", "phi3", sliding_window=None, partial_rotary_factor=0.75,
                    original_max_position_embeddings=64, rope_scaling=longrope(phi3))),
        (smollm3, base(smollm3, "SmolLM3ForCausalLM", "smollm3", no_rope_layers=[1, 1, 1, 0, 1],
                       use_sliding_window=False)),
        (granite, base(granite, "GraniteForCausalLM", "granite", embedding_multiplier=3.0, residual_multiplier=0.375,
                       logits_scaling=2.0, attention_multiplier=0.125, attention_bias=False, mlp_bias=False)),
        (granitemoe, base(granitemoe, "GraniteMoeForCausalLM", "granitemoe", embedding_multiplier=3.0,
                          residual_multiplier=0.375, logits_scaling=2.0, attention_multiplier=0.125, attention_bias=False,
                          num_local_experts=8, num_experts_per_tok=2, router_aux_loss_coef=0.001)),
    ]


def main():
    tokens = [(i * i * 7 + i * 13 + i // 3) % VOCAB for i in range(N_TOKENS)]
    rows = positions(N_TOKENS)
    out, logits = [], []
    for m, config in models():
        logits.append(forward(m, tokens)[rows].astype("<f4"))
        out.append(json.dumps({"name": m.name, "config": config, "tensors": hf_tensors(m, config)}))
        print(m.name)
    head = f'"tokens": {json.dumps(tokens)},\n"positions": {json.dumps(rows)},\n"models": [\n'
    with open(os.path.join(HERE, "hf_models.json"), "w") as file:
        file.write("{" + head + ",\n".join(out) + "\n]}\n")
    with open(os.path.join(HERE, "hf_models.f32"), "wb") as file:
        file.write(b"".join(rows.tobytes() for rows in logits))


if __name__ == "__main__":
    main()
