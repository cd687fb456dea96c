#!/usr/bin/env python3
"""What llama.cpp's own encoders lose on the weights that tests/encode.rs makes: writes rmse.txt beside this file.

usage: make_rmse.py LIBGGML_BASE.so

Each line: type, kind of weights, root of the mean squared error (without importance), root of the mean squared
error weighted by importance (with importance). Errors are relative to the root of the mean (weighted) square of
the weights. Measured with ggml 0.25.3 (llama-cpp-python 0.3.36). Needs: pip install numpy.
"""
import ctypes
import pathlib
import sys

import numpy as np

TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13,
         "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "MXFP4": 39}
ROWS, COLS = 128, 512


def uniforms(n, seed):
    with np.errstate(over="ignore"):
        state = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, n + 1, dtype=np.uint64)
        z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


def normal(n, seed):
    """Twelve uniform numbers sum up to variance 1; summed in order, as the test does."""
    u = uniforms(12 * n, seed).reshape(n, 12)
    total = np.zeros(n)
    for i in range(12):
        total = total + u[:, i]
    return total - 6.0


def weights(kind):
    n = ROWS * COLS
    a = normal(n, 1)
    if kind == "heavy":  # long tails, as trained weights have them
        b = normal(n, 2)
        a = a * (0.25 + b * b)
    if kind == "shifted":  # all the blocks of a column share an offset
        a = a + np.tile(normal(COLS, 3), ROWS)
    return (0.02 * a).astype(np.float32).reshape(ROWS, COLS)


def main(lib):
    ggml = ctypes.CDLL(lib)
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
                                         ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    importance = (0.05 + normal(COLS, 4) ** 2).astype(np.float32)
    lines = []
    for name, ty in TYPES.items():
        to_float = getattr(ggml, f"dequantize_row_{name.lower().replace('_k', '_K')}")
        to_float.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        for kind in ["normal", "heavy", "shifted"]:
            x = np.ascontiguousarray(weights(kind))
            errors = []
            for imatrix in [None, importance]:
                out = np.zeros(8 * x.size, dtype=np.uint8)
                back = np.zeros_like(x)
                pointer = None if imatrix is None else imatrix.ctypes.data
                ggml.ggml_quantize_chunk(ty, x.ctypes.data, out.ctypes.data, 0, ROWS, COLS, pointer)
                to_float(out.ctypes.data, back.ctypes.data, x.size)
                w = 1.0 if imatrix is None else imatrix.astype(np.float64)
                lost = np.sum(w * (x.astype(np.float64) - back) ** 2)
                errors.append(np.sqrt(lost / np.sum(w * x.astype(np.float64) ** 2)))
            lines.append(f"{name} {kind} {errors[0]:.6f} {errors[1]:.6f}")
            print(lines[-1])
    path = pathlib.Path(__file__).parent / "rmse.txt"
    path.write_text("".join(line + "\n" for line in lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
