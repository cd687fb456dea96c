#!/usr/bin/env python3
"""Instructions of the inner loops of products on aarch64, from a disassembly: what can be said of speed without such a CPU.

    cargo xtask aarch64
    instructions.py target/emulated/aarch64-unknown-linux-gnu/release/deps/products-*[0-9a-f]

For every function of a weight type, the loop with the fewest instructions per 256 multiply-adds, which is that of large
batches; counted in all, and without loads, stores, addresses and branches. Needs aarch64-linux-gnu-objdump.

The same of llama.cpp's products, a line for each function, from its source folder ggml/src/ggml-cpu:

    aarch64-linux-gnu-g++ -O3 -std=c++17 -march=armv8.2-a+dotprod+i8mm -I../../include -I.. -I. -c arch/arm/repack.cpp
    instructions.py repack.o

Loops inside that only take scales apart are counted once, so these figures are the least.
"""

import re
import subprocess
import sys

# The instructions that multiply, with the multiply-adds of one.
KERNELS = {
    "neon": ("baseline", {"mul": 8, "mla": 8}, ".8h"),
    "dotprod": ("dotprod", {"sdot": 16}, ""),
    "i8mm": ("i8mm", {"smmla": 32}, ""),
}


def functions(path):
    command = ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", "-C", path]
    instructions = None
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if name := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            instructions = []
            yield name.group(1), instructions
        elif instructions is not None and (found := re.match(r"\s+([0-9a-f]+):\s+(\S+)\s*(.*)$", line)):
            instructions.append((int(found.group(1), 16), found.group(2), found.group(3)))


def loops(instructions):
    """The stretches that a branch at their end leads back to."""
    index = {address: i for i, (address, _, _) in enumerate(instructions)}
    for end, (_, name, arguments) in enumerate(instructions):
        target = re.search(r"([0-9a-f]+) <", arguments) if re.match(r"b$|b\.|cb|tb", name) else None
        begin = index.get(int(target.group(1), 16)) if target else None
        if begin is not None and begin < end:
            yield begin, end


def best_loop(instructions, multiply, form):
    """Of the loop with the fewest: instructions per 256 multiply-adds, those on vectors, and the columns of a block."""
    macs = lambda body: sum(multiply.get(name, 0) for _, name, arguments in body if form in arguments)
    all_loops, best = set(loops(instructions)), None
    for begin, end in all_loops:
        body = instructions[begin : end + 1]
        inner = [(b, e) for b, e in all_loops if begin <= b and e <= end and (b, e) != (begin, end)]
        if macs(body) < 200 or any(macs(instructions[b : e + 1]) for b, e in inner):
            continue
        vector = [n for _, n, a in body if re.search(r"\bv\d+\.", a) and not n.startswith(("ld", "st"))]
        per = 256 / macs(body)
        block = 32 if any(n == "scvtf" for _, n, _ in body) else 256
        best = min(best or (1e9, 0, 0), (len(body) * per, len(vector) * per, block))
    return best


def main():
    found = {}
    for name, instructions in list(functions(sys.argv[1])):
        for isa, (module, multiply, form) in KERNELS.items():
            if f"panel::{module}::quantized" in name and (best := best_loop(instructions, multiply, form)):
                found.setdefault((isa, best[2]), []).append(best[:2])
            if name.startswith("ggml_gemm") and (best := best_loop(instructions, multiply, form)):
                print(f"{isa:8} {name.split('(')[0]:30} {best[0]:5.1f} {best[1]:5.1f}")
    if not found:
        return
    print("isa      blocks of   types   instructions per 256 multiply-adds   of them on vectors")
    for (isa, block), types in sorted(found.items(), key=lambda row: (row[0][1], -min(row[1])[0])):
        whole, vector = [sorted(row[i] for row in types) for i in (0, 1)]
        print(f"{isa:8} {block:9} {len(types):7}   {whole[0]:5.0f} to {whole[-1]:3.0f} {'':24} {vector[0]:5.0f} to {vector[-1]:3.0f}")


main()
