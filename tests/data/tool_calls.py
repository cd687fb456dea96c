#!/usr/bin/env python3
"""Calls in a history as published templates write them, rendered with Python's Jinja2: what a model of that template writes.

    tool_calls.py FOLDER... > tool_calls.json

The folders have the templates of llama.cpp's `models/templates`, that of allenai/Olmo-3.1-32B-Instruct (two copies, one of them in
LM Studio's MLX files, are equal), and vLLM's `examples/tool_chat_template_hunyuan_a13b.jinja`. vLLM also has an
`examples/tool_chat_template_olmo3.jinja`, which writes texts between single quotes without escapes: what is no quote in them is read,
but no case here. They are others' work and not here: the result has the SHA-256 of each, and the text of the calls alone, which is
what differs between an answer with the calls and one with a word.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "crates/fewbit-tokenizer/tests/data/templates"))
from render import SPECIAL, environment

# The style of each, and the form of arguments that it wants.
TEMPLATES = {
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "Hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "Hermes",
    "Qwen-Qwen2.5-7B-Instruct": "Hermes",
    "Qwen-Qwen3-0.6B": "Hermes",
    "Qwen-QwQ-32B": "Hermes",
    "ibm-granite-granite-4.0": "Hermes",
    "ibm-granite-granite-4.1": "Hermes",
    "Qwen3-Coder": "Qwen3Coder",
    "Qwen3.5-4B": "Qwen3Coder",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "Qwen3Coder",
    "GLM-4.6": "Glm",
    "GLM-4.7-Flash": "Glm",
    "LFM2.5-8B-A1B": "Lfm2",
    "allenai-Olmo-3.1-32B-Instruct": "Olmo",
    "ByteDance-Seed-OSS": "Seed",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "DeepSeekR1",
    "deepseek-ai-DeepSeek-V3.1": "DeepSeekV31",
    "moonshotai-Kimi-K2": "Kimi",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "Cohere",
    "google-gemma-4-31B-it": "Gemma4",
    "google-gemma-4-31B-it-interleaved": "Gemma4",
    "meta-llama-Llama-3.1-8B-Instruct": "Llama3Json",
    "meta-llama-Llama-3.2-3B-Instruct": "Llama3Json",
    "meta-llama-Llama-3.3-70B-Instruct": "Llama3Json",
    "mistralai-Mistral-Nemo-Instruct-2407": "MistralList",
    "Mistral-Small-3.2-24B-Instruct-2506": "MistralCallId",
    "unsloth-mistral-Devstral-Small-2507": "MistralArgs",
    "mistralai-Ministral-3-14B-Reasoning-2512": "MistralArgs",
    "tool_chat_template_hunyuan_a13b": "Hunyuan",
    "unsloth-Apriel-1.5": "Hunyuan",
    "openai-gpt-oss-120b": "Harmony",
}
MARKS = "</tool_call> <tool_call>{\"name\": \"run\"} [TOOL_CALLS] \"]}\\\" <|python_tag|>\n</think> é"
CALLS = {
    "one": [("get_weather", {"city": "Paris", "days": 2})],
    "values": [("run", {"code": "print('a')\nprint(\"b\")", "days": -3, "more": [1.5, True, None, {"k": "ü"}]})],
    "none": [("run", {})],
    "marks": [("run", {"code": MARKS})],
    "two": [("get_weather", {"city": "Paris"}), ("run", {"code": "x = 1"})],
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": {
        "type": "object", "properties": {
            "city": {"type": "string", "description": "d"}, "days": {"type": "integer", "description": "d"},
            "code": {"type": "string", "description": "d"}, "more": {"type": "array", "description": "d"}},
        "required": []}}}
    for name in ("get_weather", "run")
]


def render(template, answer):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", **answer}]
    for i in range(len(answer.get("tool_calls", []))):
        call = answer["tool_calls"][i]
        messages.append({"role": "tool", "name": call["function"]["name"], "tool_call_id": call["id"], "content": "QRESULTQ"})
    return template.render(
        messages=messages, tools=TOOLS, documents=None, add_generation_prompt=False, enable_thinking=False, **SPECIAL)


def written(template, calls, said):
    """The text between what an answer without calls begins with, and its end."""
    make = lambda form: [
        {"type": "function", "id": f"callid{i:03}", "function": {"name": name, "arguments": form(arguments)}}
        for i, (name, arguments) in enumerate(calls)
    ]
    with_calls = render(template, {"content": said, "tool_calls": make(lambda x: x)})
    plain = render(template, {"content": said + "ZWORDZ"})
    begin = plain.index("ZWORDZ") - len(said)
    # Where the templates part, at the latest where the text of an answer begins.
    begin = min(begin, len(os.path.commonprefix([plain, with_calls])))
    # Not inside a mark: `<think>` and `<tool_call>` begin alike.
    while begin and with_calls[begin - 1] in "<t[" and not with_calls[:begin].endswith("assistant"):
        begin -= 1
    opening = with_calls.rfind("<", 0, begin)
    if opening >= 0 and ">" not in with_calls[opening:begin]:
        begin = opening
    end_of_answer = plain[plain.index("ZWORDZ") + 6 :]
    text = with_calls[begin:]
    # What follows the calls: the end of the answer, then the results.
    marks = ("<|tool_response>", end_of_answer.strip(), "<|call|>", "</s>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|observation|>",
             "<|eos|>", "<seed:eos>", "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>")
    mark = next(m for m in marks if m and m in text)
    # Command R's plan, which is empty.
    return text[: text.index(mark)].removeprefix("<|START_THINKING|><|END_THINKING|>")


def main():
    result = []
    for name, style in TEMPLATES.items():
        found = [Path(folder) / f"{name}.jinja" for folder in sys.argv[1:]]
        source = next(path for path in found if path.exists()).read_text(encoding="utf-8")
        template = environment().from_string(source)
        rows = []
        for case, calls in CALLS.items():
            for said in ("", "Let me see."):
                # One call per message, and a text with it is reasoning.
                if style == "Harmony" and (case == "two" or said):
                    continue
                # Its template writes a text after the results.
                if style == "Gemma4" and said:
                    continue
                # Its template writes quotes in texts as they are.
                if style == "Lfm2" and case in ("values", "marks"):
                    continue
                try:
                    text = written(template, calls, said)
                except Exception as error:
                    print(name, case, repr(said), repr(error), file=sys.stderr)
                    continue
                rows.append({"case": case, "said": said, "text": text,
                             "calls": [{"name": n, "arguments": a} for n, a in calls]})
        result.append({"template": name, "sha256": hashlib.sha256(source.encode()).hexdigest(), "style": style, "rows": rows})
    json.dump(result, sys.stdout, ensure_ascii=False, indent=1)
    print()


main()
