#!/usr/bin/env python3
"""Writes SmolLM2-135M as an equal model of 768 columns, so that blocks of 256 fit its rows.

    pip install gguf numpy
    python3 pad_columns.py SmolLM2-135M-Instruct.Q4_1.gguf padded-f16.gguf

The 576 columns become 768 with zeros, 9 heads become 12 and 3 K/V heads 4; ffn rows have 1536 columns already. A
norm then divides by the mean of 768 squares instead of 576, so its weights take sqrt(576 / 768) and its epsilon
576 / 768: nothing else changes, and the perplexity is that of the original. Weights are written as F16, norms as F32.
"""

import sys

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize

SIZES = {576: 768, 192: 256}
METADATA = {"llama.embedding_length": 768, "llama.attention.head_count": 12, "llama.attention.head_count_kv": 4}
EPSILON = "llama.attention.layer_norm_rms_epsilon"


def copy_metadata(reader: GGUFReader, writer: GGUFWriter) -> None:
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        kind, text = field.types[0], field.types[-1] == GGUFValueType.STRING
        values = [bytes(field.parts[i]) if text else field.parts[i][0].item() for i in field.data]
        if kind == GGUFValueType.ARRAY:
            writer.add_array(key, values)
        elif text:
            writer.add_string(key, values[0].decode())
        else:
            value = METADATA.get(key, values[0])
            writer.add_key_value(key, value * 576 / 768 if key == EPSILON else value, kind)


def main(source: str, target: str) -> None:
    reader, writer = GGUFReader(source), GGUFWriter(target, "llama")
    copy_metadata(reader, writer)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        padded = np.zeros([SIZES.get(n, n) for n in values.shape], np.float32)
        padded[tuple(slice(n) for n in values.shape)] = values
        if values.ndim == 1:
            writer.add_tensor(tensor.name, padded * np.float32((576 / 768) ** 0.5))
        else:
            writer.add_tensor(tensor.name, padded.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main(*sys.argv[1:])
