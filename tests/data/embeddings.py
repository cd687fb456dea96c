"""Embeddings to compare with, for `tests/it/embed.rs`.

    python3 embeddings.py LLAMA_EMBEDDING SMOLLM2.gguf        (needs numpy and gguf)

Writes embeddings.json:

- `stories`: the hidden states of stories260K behind the last norm, pooled in each way and not normalized, in float64,
  from `stories260K-f32.gguf` beside this script;
- `smollm2`: what llama.cpp's `llama-embedding` gives for a text, pooled in each way and normalized.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "crates/fewbit-model/tests/golden"))
from stories260k import hidden_states, load

IDS = [1, 403, 407, 261, 378, 432, 286, 261, 376, 393, 426, 267, 337]
TEXT = "The quick brown fox jumps over the lazy dog, and nobody knows why it did."


def llama_embedding(pooling):
    program, model = sys.argv[1:3]
    command = [program, "-m", model, "-p", TEXT, "--pooling", pooling, "--embd-output-format", "array", "-t", "2"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [round(x, 6) for x in json.loads(out)[0]]


states = hidden_states(*load(HERE / "stories260K-f32.gguf"), IDS)
pooled = {"mean": states.mean(0), "last": states[-1], "cls": states[0]}
result = {
    "stories": {"ids": IDS, **{way: [float(np.float32(x)) for x in of] for way, of in pooled.items()}},
    "smollm2": {"text": TEXT, **{way: llama_embedding(way) for way in pooled}},
}
with open(HERE / "embeddings.json", "w") as out:
    json.dump(result, out)
    out.write("\n")
