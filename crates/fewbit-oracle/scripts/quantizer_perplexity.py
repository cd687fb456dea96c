"""Perplexity in llama.cpp of the files that fewbit and llama-quantize make of one F16 model, and their KL divergence from
that model, type by type.

    python3 quantizer_perplexity.py F16.gguf wiki.test.raw --llama LLAMA_BIN --fewbit FEWBIT --records records.jsonl

The F16 model's logits are kept in a temporary file; every quantized file is made, scored by `llama-perplexity` and
deleted. Results go to the records, one JSON object per line;
what is recorded already is not measured again, so that a run can be broken off (`--seconds`) and continued. The last
output is a Markdown table of all that the records have for this model and number of chunks. With `--imatrix` both
programs quantize by that importance matrix.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
import time

TYPES = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M",
    "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4",
]
MATRICES = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]


def quantize(program, args, ty, out):
    importance = ["--imatrix", args.imatrix] if args.imatrix else []
    if program == "fewbit":
        command = [args.fewbit, "quantize", args.model, out, "--type", ty, *importance, "--threads", args.threads]
    else:
        # llama-quantize has no recipe with MXFP4 in the layers of a model without experts.
        layers = [arg for name in MATRICES for arg in ["--tensor-type", f"{name}=mxfp4"]] if ty == "MXFP4" else []
        name = "MXFP4_MOE" if ty == "MXFP4" else ty
        command = [f"{args.llama}/llama-quantize", *importance, *layers, args.model, out, name, args.threads]
    start = time.time()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.time() - start


def score(args, path, base, *more):
    command = [f"{args.llama}/llama-perplexity", "-m", path, "-f", args.text, "-c", "512", "--chunks", str(args.chunks)]
    command += ["-t", args.threads, "--kl-divergence-base", base, *more]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def number(label, text):
    return float(re.search(label + r" *: *(-?[0-9.]+)", text).group(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--llama", required=True, help="folder of llama.cpp's programs")
    parser.add_argument("--fewbit", default="fewbit")
    parser.add_argument("--records", required=True)
    parser.add_argument("--imatrix")
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--types", nargs="*", default=TYPES)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing after this time")
    args = parser.parse_args()

    name, start = os.path.basename(args.model), time.time()
    key = lambda r: (r["model"], r["type"], r["imatrix"], r["program"], r["chunks"])
    records = {}
    if os.path.exists(args.records):
        with open(args.records) as lines:
            records = {key(record): record for record in map(json.loads, lines)}
    with tempfile.TemporaryDirectory() as folder:
        measure(args, folder, name, start, key, records)
    table(args, name, records)


def measure(args, folder, name, start, key, records):
    base, out = os.path.join(folder, "base.bin"), os.path.join(folder, "out.gguf")
    for ty in args.types:
        for program in ["fewbit", "llama"]:
            record = dict(model=name, type=ty, imatrix=bool(args.imatrix), program=program, chunks=args.chunks)
            if key(record) in records or time.time() - start > args.seconds:
                continue
            if not os.path.exists(base):
                score(args, args.model, base)
            record["seconds"] = round(quantize(program, args, ty, out), 2)
            record["bytes"] = os.path.getsize(out)
            said = score(args, out, base, "--kl-divergence")
            record["ppl"] = number(r"Mean PPL\(Q\)", said)
            record["base_ppl"] = number(r"Mean PPL\(base\)", said)
            record["kld"] = number(r"Mean +KLD", said)
            records[key(record)] = record
            with open(args.records, "a") as lines:
                print(json.dumps(record), file=lines)


def table(args, name, records):
    print("| | PPL, fewbit | llama-quantize | | KLD, fewbit | llama-quantize | |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for ty in args.types:
        pair = [records.get((name, ty, bool(args.imatrix), program, args.chunks)) for program in ["fewbit", "llama"]]
        cells = ["-"] * 6
        if all(pair):
            of = lambda what, digits: [f"{pair[0][what]:.{digits}f}", f"{pair[1][what]:.{digits}f}",
                                       f"{100 * (pair[0][what] / pair[1][what] - 1):+.2f} %"]
            cells = of("ppl", 2) + of("kld", 5)
        print(f"| {ty} | {' | '.join(cells)} |")


main()
