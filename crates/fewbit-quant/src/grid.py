#!/usr/bin/env python3
"""Writes grid.rs: the codebooks of the IQ1, IQ2 and IQ3 formats, which are data that no rule generates.

    pip install numpy gguf
    python3 grid.py && cargo fmt -p fewbit-quant
"""

import pathlib

import numpy as np
from gguf import quants

HEAD = '''//! The codebooks of the formats IQ1, IQ2 and IQ3: runs of 8 or 4 elements that a code word stands for.
//!
//! They were found by clustering when the formats were designed, so no rule generates them: `grid.py`, beside
//! this file, takes them from the Python package `gguf` and writes this file. An entry holds the indices of
//! its elements' magnitudes, first element lowest, in 2 bits each (runs of 8) or 3 bits each (runs of 4).
//! What an index means is in `codebook.rs`.
'''


def main() -> None:
    text = HEAD
    for name, bits in [("IQ2_XXS", 2), ("IQ2_XS", 2), ("IQ2_S", 2), ("IQ3_XXS", 3), ("IQ3_S", 3), ("IQ1_S", 2)]:
        cls = getattr(quants, name)
        cls.init_grid()
        n, run = cls.grid_shape
        values = cls.grid.reshape(n, run)
        index = np.searchsorted(np.array(cls.grid_map, np.float32), values)
        assert (np.array(cls.grid_map, np.float32)[index] == values).all()
        entries = (index << (bits * np.arange(run))).sum(axis=1)
        assert len(set(entries)) == n and entries.max() < 1 << 16
        words = ", ".join(f"0x{entry:04x}" for entry in entries)
        text += f"\npub(crate) static {name}: [u16; {n}] = [{words}];\n"
    (pathlib.Path(__file__).parent / "grid.rs").write_text(text)


main()
