"""Compile a .cu file for the CPU: behind cuda_on_cpu.h, once per text, dtype and sanitizer.

What is built is kept in a folder of temporary files, under a name made from everything that went
into it, so that nothing stale is ever used. Needs a C++ compiler: $CXX, else g++, else clang++,
else the clang that `pip install ziglang` brings to Linux, macOS and Windows.
"""

import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from weakunet.gpu import cuda_source

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
FLAGS += ["-fno-strict-aliasing"]  # a kernel may read the two halves of a float4 as float2s
# Shared arrays lie in a section of their own, which AddressSanitizer must be told of. Its report of
# an access behind an array says more than the check of object sizes, so that is left out.
BUILD = {
    None: ["-O2", "-shared"],
    "address": ["-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
                "-fno-sanitize=object-size", "-fno-sanitize-recover=all",
                "-fsanitize-sections=cuda_shared"],
    "thread": ["-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=thread"],
}  # fmt: skip
# The only changes to a kernel's text: a pragma's spelling, and where dynamic shared memory lies.
# (tensor_core.cuh leaves the functions that are a GPU's own instructions to cuda_on_cpu.h.)
REWRITES = [
    (r"extern __shared__ (\w+) (\w+)\[\];", r"\1* \2 = (\1*)cuda_on_cpu::dynamic_shared;"),
    (r"#pragma unroll[ \t]*$", "#pragma GCC unroll 64"),
    (r"#pragma unroll[ \t]+(\d+)", r"#pragma GCC unroll \1"),
]


class KernelError(RuntimeError):
    """A kernel does not compile, or went wrong while it ran."""


@functools.cache
def compiler():
    """The command of the C++ compiler to use, a tuple; empty where there is none."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    for name in wanted:
        if path := shutil.which(name):
            return (path,)
    zig = not os.environ.get("CXX") and importlib.util.find_spec("ziglang")
    return (sys.executable, "-m", "ziglang", "c++") if zig else ()


@functools.cache
def compiler_version():
    """What the compiler says about itself."""
    return subprocess.run([*compiler(), "--version"], capture_output=True, text=True).stdout


def try_sanitizer(sanitize):
    """(path of an empty program built with a sanitizer, None), or (None, why there is none)."""
    program = _folder() / f"empty-{_name(sanitize)}"
    command = [*compiler(), "-x", "c++", "-", "-o", program, *BUILD[sanitize]]
    made = subprocess.run(command, input="int main() {}", capture_output=True, text=True)
    return (None, made.stderr.strip()[-200:]) if made.returncode else (program, None)


@functools.cache
def build(path, real="float", sanitize=None):
    """Compile a .cu file; return the path of the shared library (sanitized: of the program).

    Raises KernelError with the compiler's lines.
    """
    path = Path(path).resolve()
    unit = _translation_unit(path, cuda_source.read_with_includes(path), real)
    suffix = ".dll" if sys.platform == "win32" else ""
    made = _folder() / f"{path.stem}-{_name(unit, sanitize)}{suffix}"
    if made.exists():
        return made
    with tempfile.TemporaryDirectory(dir=_folder()) as folder:
        source = Path(folder) / "unit.cpp"
        source.write_text(unit, encoding="utf-8")
        flags = [*_base_flags(sanitize), *BUILD[sanitize]]
        command = [*compiler(), *flags, source, _runtime(sanitize)]
        return _compile(command, made, f"{path.name} ({real})")


def _translation_unit(path, text, real):
    if re.search(r"^template\b(?:(?!^\}).)*__shared__", text, re.M | re.S):
        raise KernelError(f"{path}: __shared__ inside a template cannot be poisoned on the CPU")
    for old, new in REWRITES:
        text = re.sub(old, new, text, flags=re.M)
    names = cuda_source.kernels(str(path.with_suffix("")))
    calls = "".join(
        f"static void call_{name}(void** a) {{ cuda_on_cpu::call({name}, a); }}\n" for name in names
    )
    table = "".join(f'{{"{name}", call_{name}}}, ' for name in names)
    return (
        f'#include "cuda_on_cpu.h"\n#define real {"double" if real == "double" else "float"}\n'
        f'#define stored {real}\nnamespace {{\n#line 1 "{path}"\n{text}\n'
        f'}}\n#line 1 "calls"\n{calls}namespace cuda_on_cpu {{ extern const Kernel kernels[];\n'
        f"const Kernel kernels[] = {{ {table}{{nullptr, nullptr}} }}; }}\n"
    )


@functools.cache
def _runtime(sanitize):
    """cuda_on_cpu.cpp as an object file: the same for every kernel, and never instrumented."""
    made = _folder() / f"{_name('runtime', sanitize)}.o"
    if not made.exists():
        command = [*compiler(), *_base_flags(sanitize), "-O2", "-c", HERE / "cuda_on_cpu.cpp"]
        _compile(command, made, "cuda_on_cpu.cpp")
    return made


def _compile(command, made, what):
    """Run a compiler that writes `made`, which appears under its name only when it is whole."""
    with tempfile.TemporaryDirectory(dir=_folder()) as folder:
        partial = Path(folder) / made.name
        result = subprocess.run([*command, "-o", partial], capture_output=True, text=True)
        if result.returncode:
            raise KernelError(f"{what} does not compile on the CPU:\n{result.stderr.strip()}")
        os.replace(partial, made)
    return made


@functools.cache
def _base_flags(sanitize):
    # Fused multiply-add, as a GPU has, and the widest vectors of this machine.
    native = ["-march=native"] if platform.machine() in ("x86_64", "AMD64") else []
    macro = [f"-DCUDA_ON_CPU_{sanitize.upper()}"] if sanitize else []
    return [*FLAGS, *native, *macro, "-I", str(HERE)]


@functools.cache
def _harness_text():
    texts = [(HERE / name).read_text() for name in ("cuda_on_cpu.h", "cuda_on_cpu.cpp", "build.py")]
    return "\0".join([*texts, *compiler(), compiler_version()])


def _name(*parts):
    return hashlib.sha256("\0".join([_harness_text(), *map(str, parts)]).encode()).hexdigest()[:24]


def _folder():
    """Where built kernels are kept: a folder of temporary files that only its owner can write."""
    user = os.getuid() if hasattr(os, "getuid") else 0  # Windows' folder is each user's own
    folder = Path(tempfile.gettempdir()) / f"weakunet-cuda-on-cpu-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != user:
        raise KernelError(f"{folder}: belongs to somebody else; set TMPDIR to a folder of yours")
    return folder
