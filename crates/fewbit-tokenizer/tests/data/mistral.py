#!/usr/bin/env python3
"""Makes the ids that Mistral's own library gives to conversations.

    mistral.py > mistral_ids.json
    mistral.py --folders DIR        # also lays out a folder for each tokenizer, to compare with

Needs the packages `mistral-common` (which carries the tokenizers) and `sentencepiece`. The result has, for each
tokenizer, a list of ids per conversation, or null where the library refuses it, and `texts` with the ids of
plain texts. `cargo run --release -p fewbit-tokenizer --example mistral -- DIR` compares.
"""

import json
import shutil
import sys
from pathlib import Path

import mistral_common
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

HERE = Path(__file__).parent
DATA = Path(mistral_common.__file__).parent / "data"

# Folder, file in the package, name in the folder, version of the template.
TOKENIZERS = {
    "v1": ("tokenizer.model.v1", "tokenizer.model.v1"),
    "v2": ("mistral_instruct_tokenizer_240216.model.v2", "tokenizer.model.v2"),
    "v3": ("mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model.v3"),
    "v7": ("mistral_instruct_tokenizer_241114.model.v7", "tokenizer.model.v7"),
    "v3-tekken": ("tekken_240911.json", "tekken.json"),
    "v7-tekken": ("tekken_240911.json", "tekken.json"),
}


def load(name, folder):
    source, target = TOKENIZERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / target
    if name == "v7-tekken":
        # The same vocabulary, used as version 7 (Mistral Small 2501's file is not in the package).
        data = json.loads((DATA / source).read_text(encoding="utf-8"))
        data["config"]["version"] = "v7"
        data.pop("image", None)
        path.write_text(json.dumps(data), encoding="utf-8")
    elif name == "v3-tekken":
        data = json.loads((DATA / source).read_text(encoding="utf-8"))
        data.pop("image", None)
        path.write_text(json.dumps(data), encoding="utf-8")
    else:
        shutil.copyfile(DATA / source, path)
    return MistralTokenizer.from_file(str(path))


def request(conversation):
    """As the library wants it: arguments of calls are text, and calls have a type."""
    messages = []
    for message in conversation["messages"]:
        message = dict(message)
        if message.get("tool_calls"):
            message["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}}
                for call in message["tool_calls"]
            ]
        messages.append(message)
    return ChatCompletionRequest(messages=messages, tools=conversation.get("tools"))


def main():
    folders = Path(sys.argv[2]) if sys.argv[1:2] == ["--folders"] else Path("mistral-folders")
    conversations = json.loads((HERE / "mistral_conversations.json").read_text(encoding="utf-8"))
    texts = json.loads((HERE / "texts.json").read_text(encoding="utf-8"))
    result = {}
    for name in TOKENIZERS:
        tokenizer = load(name, folders / name)
        rows = []
        for conversation in conversations:
            try:
                rows.append(tokenizer.encode_chat_completion(request(conversation)).tokens)
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
                rows.append(None)
        inner = tokenizer.instruct_tokenizer.tokenizer
        result[name] = {"conversations": rows, "texts": [inner.encode(text, bos=False, eos=False) for text in texts]}
    json.dump(result, sys.stdout)
    print()


main()
