"""Logits of stories260K in float64, with and without a sliding window, for `tests/hf.rs`.

    python3 make_stories.py        (needs numpy and gguf)

Reads ../../../../tests/data/stories260K-f32.gguf, lets the model continue "<s>" greedily for 200 tokens, and writes
stories.json: the ids, and logits at some positions, without a window and with a window of 64 keys (the query's own
included). With --keep-ids the ids are those that the file has.
"""

import json
import pathlib
import sys

import numpy as np

from stories260k import forward, load

HERE = pathlib.Path(__file__).parent
meta, weights = load(HERE.parents[3] / "tests/data/stories260K-f32.gguf")


def logits(ids, window=None):
    return forward(meta, weights, ids, window)


ids = json.loads((HERE / "stories.json").read_text())["ids"] if "--keep-ids" in sys.argv else [1]
while len(ids) < 201:
    ids.append(int(logits(ids)[-1].argmax()))
full, windowed = logits(ids), {w: logits(ids, w) for w in (63, 64, 65)}
# The positions at which a window that is too small, and one that is too large, show most.
at = [int(np.abs(windowed[w] - windowed[64]).max(-1).argmax()) for w in (63, 65)] + [200]
for w in (63, 65):
    print(w, np.abs(windowed[w] - windowed[64])[at].max(-1))
rows = {name: [[float(np.float32(x)) for x in of[i]] for i in at] for name, of in (("full", full), ("window64", windowed[64]))}
with open(HERE / "stories.json", "w") as out:
    json.dump({"ids": ids, "positions": at, **rows}, out)
    out.write("\n")
