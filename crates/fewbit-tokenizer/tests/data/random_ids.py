#!/usr/bin/env python3
"""Makes random texts and the ids that Hugging Face's `tokenizers` gives them.

    random_ids.py MODEL [-n 10000] [--seed 0] [--code FILE...] > cases.jsonl

MODEL is a tokenizer.json, or a .gguf of SmolLM2 (byte-level BPE with single digits), whose tokenizer is built
from the vocabulary in the file. Each line is an object: "text", its ids with special tokens taken for text
("plain") and recognised ("special"), no BOS or EOS added. To compare:

    cargo run --release -p fewbit-tokenizer --example ids -- MODEL < cases.jsonl
"""

import argparse
import json
import random
import sys
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

SPACES = [" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2009", "\u0085", "\u2028", "\v", "\f", "\x1c", "\u180e", "\u200b"]
WORDS = "the of and I'm you're we'll HELLO'S don't it's He'd they'Ve 's 'T naïve Straße ſtraße CamelCase snake_case x1 123 1234567 3.14 ½ ² Ⅷ ٣٤ 你好 世界 こんにちは 안녕 привет мир שלום مرحبا नमस्ते ไทย e\u0301 a\u0308\u0323 \u1e9b\u0323 ﬁ Å Å 🙂 👩\u200d👩\u200d👧 🇨🇭 ❤\ufe0f <s> </s> <0x0A> ▁ Ġ <| |>".split(" ")
SCRIPTS = [(0x20, 0x7F), (0xA0, 0x250), (0x250, 0x370), (0x300, 0x370), (0x370, 0x400), (0x400, 0x530), (0x590, 0x700), (0x900, 0xE00), (0x1100, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2C00), (0x3000, 0x3100), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xF900, 0x10000), (0x10000, 0x20000), (0x1F300, 0x1FA00)]


def assigned(rng, low, high):
    """A character that Unicode 9 has: of what came later the two libraries' tables know different parts."""
    while True:
        c = chr(rng.randrange(low, high))
        if unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs", "Co"):
            return c
        if rng.random() < 0.01:
            low, high = 0x20, 0x7F


def any_assigned(rng, low, high):
    while True:
        c = chr(rng.randrange(low, high))
        if unicodedata.category(c) not in ("Cn", "Cs"):
            return c
        if rng.random() < 0.01:
            low, high = 0x20, 0x7F


def text(rng, code, special):
    kind = rng.randrange(7)
    n = rng.choice([1, 2, 3, 5, 8, 13, 30, 80])
    if kind == 0:  # any characters
        return "".join(any_assigned(rng, 0, 0x30000) for _ in range(n))
    if kind == 1:  # characters of a few scripts
        scripts = rng.sample(SCRIPTS, 3)
        return "".join(any_assigned(rng, *rng.choice(scripts)) for _ in range(n))
    if kind == 2:  # white space and little else
        return "".join(rng.choice(SPACES + ["a", "1", "."]) for _ in range(n))
    if kind == 3:  # words
        return "".join(rng.choice(WORDS) + rng.choice(["", " ", rng.choice(SPACES)]) for _ in range(n))
    if kind == 4:  # code or prose as it is
        start = rng.randrange(max(1, len(code) - 400))
        return code[start : start + rng.randrange(1, 400)]
    if kind == 5:  # code with something strange in it
        start = rng.randrange(max(1, len(code) - 100))
        part = list(code[start : start + rng.randrange(1, 100)])
        for _ in range(rng.randrange(1, 6)):
            part.insert(rng.randrange(len(part) + 1), rng.choice([any_assigned(rng, 0, 0x30000), rng.choice(SPACES), rng.choice(WORDS)]))
        return "".join(part)
    # special tokens among text
    return "".join(rng.choice([rng.choice(special), rng.choice(WORDS), rng.choice(SPACES)]) for _ in range(n))


def load(path):
    if path.suffix != ".gguf":
        return Tokenizer.from_file(str(path))
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    field = lambda key: fields[key].contents()
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, k in zip(tokens, kinds) if k == 3])
    return tokenizer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("-n", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--code", type=Path, nargs="*", default=[Path(__file__)])
    args = parser.parse_args()
    tokenizer = load(args.model)
    added = json.loads(tokenizer.to_str())["added_tokens"]
    special = [token["content"] for token in added][:40] or ["<s>"]
    code = "".join(path.read_text(encoding="utf-8") for path in args.code)
    rng = random.Random(args.seed)
    texts = [text(rng, code, special) for _ in range(args.n)]
    rows = [{"text": t} for t in texts]
    for name, as_text in [("plain", True), ("special", False)]:
        tokenizer.encode_special_tokens = as_text
        for row, t in zip(rows, texts):
            row[name] = tokenizer.encode(t, add_special_tokens=False).ids
    for row in rows:
        print(json.dumps(row))


main()
