"""Compiles CUDA C to PTX with NVRTC, which needs neither a GPU nor a toolkit: the library is a package.

nvrtc.py SOURCE OUT ARCHITECTURE OPTION..: SOURCE becomes OUT, for example for compute_75.
"""

import ctypes
import pathlib
import sys

import nvidia.cuda_nvrtc

path, out, architecture, *options = sys.argv[1:]
path = pathlib.Path(path)
libraries = pathlib.Path(list(nvidia.cuda_nvrtc.__path__)[0])
# In the folder `lib`, or `bin` on Windows.
found = [path for end in (".so*", ".dll") for path in sorted(libraries.glob(f"*/*nvrtc*{end}"))]
library = next(path for path in found if "builtins" not in path.name and "alt" not in path.name)
nvrtc = ctypes.CDLL(str(library))
nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p


def call(function, *args):
    status = getattr(nvrtc, function)(*args)
    if status != 0:
        raise RuntimeError(f"{function}: {nvrtc.nvrtcGetErrorString(status).decode()}")


def text(function, program):
    size = ctypes.c_size_t()
    call(f"{function}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    call(function, program, buffer)
    return buffer.value.decode()


program = ctypes.c_void_p()
source = path.read_bytes()
call("nvrtcCreateProgram", ctypes.byref(program), source, path.name.encode(), 0, None, None)
all_options = [f"--gpu-architecture={architecture}", f"--include-path={path.parent}", *options]
all_options = [option.encode() for option in all_options]
status = nvrtc.nvrtcCompileProgram(program, len(all_options), (ctypes.c_char_p * len(all_options))(*all_options))
log = text("nvrtcGetProgramLog", program).strip()
if log:
    print(log, file=sys.stderr)
if status != 0:
    sys.exit(f"{path}: NVRTC cannot compile it")
pathlib.Path(out).write_text(text("nvrtcGetPTX", program), encoding="utf-8", newline="\n")
