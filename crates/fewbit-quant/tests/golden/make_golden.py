#!/usr/bin/env python3
"""Makes the golden numbers of tests/golden.rs: blocks of every weight type and what they decode to.

The decoder here is the one of the Python package `gguf` (written in NumPy by the people who define the
format), so that the numbers owe nothing to the code they test.

    pip install numpy gguf
    python3 make_golden.py            # writes <type>.bin beside this script
    python3 make_golden.py --check    # compares with what is there, writes nothing

A file holds n blocks, then the n * block_elems decoded values as little-endian f32. The blocks are:

- some of random bytes with ordinary scales,
- one all zeros and one all ones (0xff) but for the scales, which are 1,
- one per special scale: zero, subnormal, largest, negative, infinite, NaN; the minimum of types that have
  one takes the special values in another order, so that both meet different partners.

Every NaN is written as 0x7fc00000: which bits a NaN has is no property of the format.
"""

import pathlib
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

HERE = pathlib.Path(__file__).parent

# Type, number of random blocks, and where the f16 scale and minimum stand in a block.
TYPES = [
    ("F32", 200, []),
    ("F16", 400, []),
    ("BF16", 400, []),
    ("Q4_0", 24, [0]),
    ("Q4_1", 24, [0, 2]),
    ("Q5_0", 24, [0]),
    ("Q5_1", 24, [0, 2]),
    ("Q8_0", 24, [0]),
    ("Q2_K", 8, [80, 82]),
    ("Q3_K", 8, [108]),
    ("Q4_K", 8, [0, 2]),
    ("Q5_K", 8, [0, 2]),
    ("Q6_K", 8, [208]),
]

ONE = 0x3C00
SPECIAL = [
    0x0000,  # zero
    0x8000,  # negative zero
    0x0001,  # smallest subnormal
    0x83FF,  # largest subnormal, negative
    0x0400,  # smallest normal
    0x7BFF,  # largest
    0xFBFF,  # largest, negative
    0xBC00,  # -1
    0x7C00,  # infinity
    0xFC00,  # negative infinity
    0x7E00,  # NaN
]


def blocks_of(name: str, n_random: int, fields: list[int]) -> np.ndarray:
    """The blocks of one type: [n_blocks, block_bytes]."""
    _, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    rng = np.random.default_rng(list(name.encode()))
    n_special = len(SPECIAL) if fields else 0
    n_extreme = 2 if fields else 0
    blocks = rng.integers(0, 256, (n_random + n_extreme + n_special, block_bytes), dtype=np.uint8)
    if fields:
        blocks[n_random] = 0x00
        blocks[n_random + 1] = 0xFF
    for which, at in enumerate(fields):
        scales = np.empty(len(blocks), np.uint16)
        ordinary = (rng.normal(size=n_random) * 0.05).astype(np.float16)
        scales[:n_random] = ordinary.view(np.uint16)
        scales[n_random : n_random + n_extreme] = ONE
        for i in range(n_special):
            scales[n_random + n_extreme + i] = SPECIAL[i if which == 0 else (4 * i + 1) % n_special]
        blocks[:, at : at + 2] = scales.astype("<u2").view(np.uint8).reshape(-1, 2)
    if not fields:
        # Plain numbers: the special values of the type itself, at the end.
        special = {
            "F32": np.array([0, 1 << 31, 1, 0x807FFFFF, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000], "<u4"),
            "F16": np.array(SPECIAL, "<u2"),
            "BF16": np.array([0, 0x8000, 1, 0x807F, 0x7F7F, 0x7F80, 0xFF80, 0x7FC0], "<u2"),
        }[name]
        blocks = np.concatenate([blocks, special.view(np.uint8).reshape(-1, block_bytes)])
    return blocks


def golden(name: str, n_random: int, fields: list[int]) -> bytes:
    """The contents of one file."""
    blocks = blocks_of(name, n_random, fields)
    with np.errstate(all="ignore"):
        values = dequantize(blocks, GGMLQuantizationType[name]).astype("<f4")
    bits = values.view("<u4").copy()
    bits[np.isnan(values)] = 0x7FC00000
    return blocks.tobytes() + bits.tobytes()


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    differ = []
    for name, n_random, fields in TYPES:
        contents = golden(name, n_random, fields)
        path = HERE / f"{name.lower()}.bin"
        if not check:
            path.write_bytes(contents)
        elif path.read_bytes() != contents:
            differ.append(path.name)
    if differ:
        print("differ:", ", ".join(differ))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
