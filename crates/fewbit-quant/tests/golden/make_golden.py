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

MXFP4 has an exponent byte in place of a scale: random ones, and the first and last three. grids.txt has one
line per type whose codes are looked up: its name and a sum over the values of 1024 random blocks (scale 1,
exponent 127 for MXFP4), which between them use every entry of every codebook.

Every NaN is written as 0x7fc00000: which bits a NaN has is no property of the format.
"""

import pathlib
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

HERE = pathlib.Path(__file__).parent

# Where a block's scale stands, if it is no f16 in one place: in the upper nibbles of the last four words
# (IQ1_M), or as an exponent in the first byte (MXFP4).
NIBBLES = "nibbles"
EXPONENT = "exponent"

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
    ("IQ4_NL", 24, [0]),
    ("IQ4_XS", 8, [0]),
    ("IQ3_XXS", 8, [0]),
    ("IQ3_S", 8, [0]),
    ("IQ2_XXS", 8, [0]),
    ("IQ2_XS", 8, [0]),
    ("IQ2_S", 8, [0]),
    ("IQ1_S", 8, [0]),
    ("IQ1_M", 8, NIBBLES),
    ("TQ1_0", 8, [52]),
    ("TQ2_0", 8, [64]),
    ("MXFP4", 24, EXPONENT),
    ("F64", 200, []),
    ("I8", 200, []),
    ("I16", 200, []),
    ("I32", 200, []),
    ("I64", 200, []),
]

# Types whose codes are looked up.
GRIDS = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"]

# Plain numbers that the package does not decode: NumPy's own conversion to f32.
NUMPY = {"F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}

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


def put_scales(blocks: np.ndarray, at: int | str, scales: np.ndarray) -> None:
    """Writes an f16 (as bits), or an exponent, into each block."""
    if at == EXPONENT:
        blocks[:, 0] = scales
    elif at == NIBBLES:
        for i in range(4):
            upper = (scales >> (4 * i) & 15).astype(np.uint8) << 4
            blocks[:, 49 + 2 * i] = blocks[:, 49 + 2 * i] & 15 | upper
    else:
        blocks[:, at : at + 2] = scales.astype("<u2").view(np.uint8).reshape(-1, 2)


def blocks_of(name: str, n_random: int, fields: list[int] | str) -> np.ndarray:
    """The blocks of one type: [n_blocks, block_bytes]."""
    _, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    rng = np.random.default_rng(list(name.encode()))
    n_special = len(SPECIAL) if fields else 0
    n_extreme = 2 if fields else 0
    blocks = rng.integers(0, 256, (n_random + n_extreme + n_special, block_bytes), dtype=np.uint8)
    if fields:
        blocks[n_random] = 0x00
        blocks[n_random + 1] = 0xFF
    if fields == EXPONENT:
        exponents = rng.integers(0, 256, len(blocks))
        exponents[n_random : n_random + 8] = [127, 127, 0, 1, 2, 253, 254, 255]
        put_scales(blocks, fields, exponents)
        return blocks
    for which, at in enumerate([fields] if fields == NIBBLES else fields):
        scales = np.empty(len(blocks), np.uint16)
        ordinary = (rng.normal(size=n_random) * 0.05).astype(np.float16)
        scales[:n_random] = ordinary.view(np.uint16)
        scales[n_random : n_random + n_extreme] = ONE
        for i in range(n_special):
            scales[n_random + n_extreme + i] = SPECIAL[i if which == 0 else (4 * i + 1) % n_special]
        put_scales(blocks, at, scales)
    if not fields:
        # Plain numbers: the special values of the type itself, at the end.
        special = {
            "F32": np.array([0, 1 << 31, 1, 0x807FFFFF, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000], "<u4"),
            "F16": np.array(SPECIAL, "<u2"),
            "BF16": np.array([0, 0x8000, 1, 0x807F, 0x7F7F, 0x7F80, 0xFF80, 0x7FC0], "<u2"),
            "F64": np.array([0, -0.0, 1e-310, 1e-46, -1e-40, 1 / 3, 16777217, 3.5e38, -1e300, np.inf, np.nan], "<f8"),
            "I8": np.array([0, -1, 127, -128], "<i1"),
            "I16": np.array([0, -1, 32767, -32768], "<i2"),
            "I32": np.array([0, -1, 2**31 - 1, -(2**31), 16777217, 33554435], "<i4"),
            "I64": np.array([0, -1, 2**63 - 1, -(2**63), 16777217, -33554435], "<i8"),
        }[name]
        blocks = np.concatenate([blocks, special.view(np.uint8).reshape(-1, block_bytes)])
    return blocks


def values_of(name: str, blocks: np.ndarray) -> np.ndarray:
    """What blocks decode to."""
    with np.errstate(all="ignore"):
        if name in NUMPY:
            return blocks.view(NUMPY[name]).astype("<f4")
        return dequantize(blocks, GGMLQuantizationType[name]).astype("<f4")


def golden(name: str, n_random: int, fields: list[int] | str) -> bytes:
    """The contents of one file."""
    blocks = blocks_of(name, n_random, fields)
    values = values_of(name, blocks)
    bits = values.view("<u4").copy()
    bits[np.isnan(values)] = 0x7FC00000
    return blocks.tobytes() + bits.tobytes()


def grid_sum(name: str) -> int:
    """A sum over the bits of the values of random blocks, each times an odd number that says where it stands.

    The blocks are bytes of a small generator, so that the test can make them as well.
    """
    _, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    state, data = 1, bytearray()
    for _ in range(1024 * block_bytes):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        data.append(state >> 56)
    blocks = np.frombuffer(bytes(data), np.uint8).reshape(-1, block_bytes).copy()
    fields = next(fields for other, _, fields in TYPES if other == name)
    at = fields if isinstance(fields, str) else fields[0]
    put_scales(blocks, at, np.full(len(blocks), 127 if at == EXPONENT else ONE))
    bits = values_of(name, blocks).reshape(-1).view("<u4").astype(np.uint64)
    odd = 2 * np.arange(len(bits), dtype=np.uint64) + np.uint64(1)
    return int((bits * odd).sum(dtype=np.uint64))


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    differ = []
    files = {f"{name.lower()}.bin": golden(name, n_random, fields) for name, n_random, fields in TYPES}
    files["grids.txt"] = "".join(f"{name} {grid_sum(name):016x}\n" for name in GRIDS).encode()
    for name, contents in files.items():
        path = HERE / name
        if not check:
            path.write_bytes(contents)
        elif path.read_bytes() != contents:
            differ.append(path.name)
    if differ:
        print("differ:", ", ".join(differ))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
