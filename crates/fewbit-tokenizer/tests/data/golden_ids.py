#!/usr/bin/env python3
"""Makes the expected ids of texts.json.

    golden_ids.py smollm2 SmolLM2-135M-Instruct.Q4_1.gguf > smollm2_ids.json
    golden_ids.py spm stories260K-f32.gguf > stories260k_ids.json

The first builds a byte-level BPE tokenizer of Hugging Face's `tokenizers` from the file's vocabulary, with
the pre-tokenizer of SmolLM2's tokenizer.json. The second merges by score in the plainest way there is.
Each result has a list of ids per text, special tokens not parsed ("plain") and parsed ("special").
"""

import json
import sys
from pathlib import Path

from gguf import GGUFReader

CONTROL, UNKNOWN, BYTE = 3, 2, 6


def smollm2(tokens, kinds, field):
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    plain = lambda text: tokenizer.encode(text).ids
    special = Tokenizer.from_str(tokenizer.to_str())
    special.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, kinds) if k == CONTROL]
    )
    return plain, lambda text: special.encode(text).ids


def spm(tokens, kinds, field):
    scores = field("tokenizer.ggml.scores")
    pieces = {t: i for i, (t, k) in enumerate(zip(tokens, kinds)) if k not in (CONTROL, UNKNOWN, BYTE)}
    byte = {int(t[3:5], 16): i for i, (t, k) in enumerate(zip(tokens, kinds)) if k == BYTE}

    def plain(text):
        if not text:
            return []
        symbols = list("\u2581" + text.replace(" ", "\u2581"))
        while True:
            best = None
            for i in range(len(symbols) - 1):
                token = pieces.get(symbols[i] + symbols[i + 1])
                if token is not None and (best is None or scores[token] > scores[best[1]]):
                    best = (i, token)
            if best is None:
                break
            i = best[0]
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        ids = []
        for symbol in symbols:
            if symbol in pieces:
                ids.append(pieces[symbol])
            else:
                ids.extend(byte[b] for b in symbol.encode())
        return ids

    def special(text):
        names = sorted((t for t, k in zip(tokens, kinds) if k in (CONTROL, UNKNOWN)), key=len)[::-1]
        for name in names:
            before, found, after = text.partition(name)
            if found:
                # The first occurrence of the longest name; none of these contains another.
                return special(before) + [tokens.index(name)] + special(after)
        return plain(text)

    return plain, special


def main():
    family, path = sys.argv[1:]
    fields = GGUFReader(path).fields
    field = lambda key: fields[key].contents()
    make = {"smollm2": smollm2, "spm": spm}[family]
    plain, special = make(field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type"), field)
    texts = json.loads((Path(__file__).parent / "texts.json").read_text(encoding="utf-8"))
    rows = [{"plain": plain(text), "special": special(text)} for text in texts]
    print("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]")


main()
