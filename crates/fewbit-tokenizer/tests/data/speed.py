#!/usr/bin/env python3
"""How fast Hugging Face's `tokenizers` is ready, and how fast it encodes a text on one thread.

    speed.py tokenizer.json TEXT

Does what the example `speed` does: parts between blank lines, medians of five.
"""

import os
import statistics
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Tokenizer

ready = []
for _ in range(5):
    start = time.perf_counter()
    tokenizer = Tokenizer.from_file(sys.argv[1])
    ready.append(time.perf_counter() - start)
text = open(sys.argv[2], encoding="utf-8", newline="").read()
parts = text.split("\n\n")
tokenizer.encode_special_tokens = True
rates = []
for _ in range(5):
    start = time.perf_counter()
    n = sum(len(tokenizer.encode(part, add_special_tokens=False).ids) for part in parts)
    rates.append(len(text.encode()) / 1e6 / (time.perf_counter() - start))
print(f"ready in {statistics.median(ready) * 1e3:.0f} ms, {n} tokens, {statistics.median(rates):.1f} MB/s (medians of five)")
