"""Run a CUDA kernel's own text on the CPU: compiled by a C++ compiler, called with numpy arrays.

    CudaOnCpu(seed=0).launch("layers/relu", "relu_forward", x.size, (x, y, x.size))

The kernel file is built unchanged behind cuda_on_cpu.h, once per text, dtype and sanitizer, into a
folder of temporary files, and runs thread after thread with real barriers (cuda_on_cpu.cpp).
With `sanitize` ("address" or "thread") it is built into a program of its own, each launch a run of
that program, so that the sanitizers see nothing of Python and their report comes back as an error.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from weakunet import backend, cuda_source

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c++20", "-g", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
# Shared arrays lie in a section of their own, which AddressSanitizer must be told of. Its report of
# an access behind an array says more than the check of object sizes, so that is left out.
BUILD = {
    None: ["-O2", "-shared"],
    "address": ["-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
                "-fno-sanitize=object-size", "-fno-sanitize-recover=all",
                "-fsanitize-sections=cuda_shared"],
    "thread": ["-O1", "-fno-omit-frame-pointer", "-fsanitize=thread"],
}  # fmt: skip
# The only change to a kernel's text: a pragma's spelling.
REWRITES = [
    (r"#pragma unroll[ \t]*$", "#pragma GCC unroll 64"),
    (r"#pragma unroll[ \t]+(\d+)", r"#pragma GCC unroll \1"),
]
_library_lock = threading.Lock()


class KernelError(RuntimeError):
    """A kernel does not compile, or went wrong while it ran."""


@functools.cache
def compiler():
    """The C++ compiler to use ($CXX, else g++, else clang++), or None where there is none."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    return next((path for name in wanted if (path := shutil.which(name))), None)


@functools.cache
def reason_not_to_run(sanitize=None):
    """Why nothing can be run here (one line), or None where it can."""
    if sys.platform == "win32":
        return "the CUDA-on-CPU harness needs Linux or macOS"
    if compiler() is None:
        return "no C++ compiler (set CXX, or install g++ or clang++)"
    if sanitize is None:
        return None
    if "clang" in _compiler_version():
        return "the sanitizers are set up for g++ (clang's does not look into named sections)"
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/empty"
        command = [compiler(), "-x", "c++", "-", "-o", program, *BUILD[sanitize]]
        made = subprocess.run(command, input="int main() {}", capture_output=True, text=True)
        if made.returncode:
            return f"{compiler()} has no {sanitize} sanitizer: {made.stderr.strip()[-200:]}"
        ran = _run_sanitized(program, b"")
        if ran.returncode:
            return f"the {sanitize} sanitizer does not run here: {ran.stderr.decode()[-200:]}"
    return None


@functools.cache
def _compiler_version():
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout


def _folder():
    """Where built kernels are kept: a folder of temporary files that only its owner can write."""
    folder = Path(tempfile.gettempdir()) / f"weakunet-cuda-on-cpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise KernelError(f"{folder}: belongs to somebody else; set TMPDIR to a folder of yours")
    return folder


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
    native = ["-march=native"] if os.uname().machine == "x86_64" else []
    macro = [f"-DCUDA_ON_CPU_{sanitize.upper()}"] if sanitize else []
    return [*FLAGS, *native, *macro, "-I", str(HERE)]


@functools.cache
def _harness_hash():
    texts = [(HERE / f"cuda_on_cpu.{end}").read_text() for end in ("h", "cpp")]
    return "".join([*texts, Path(__file__).read_text(), compiler(), _compiler_version()])


def _name(*parts):
    return hashlib.sha256("\0".join([_harness_hash(), *map(str, parts)]).encode()).hexdigest()[:24]


@functools.cache
def _runtime(sanitize):
    """cuda_on_cpu.cpp as an object file: the same for every kernel, and never instrumented."""
    made = _folder() / f"{_name('runtime', sanitize)}.o"
    if not made.exists():
        command = [compiler(), *_base_flags(sanitize), "-O2", "-c", HERE / "cuda_on_cpu.cpp"]
        _compile(command, made, "cuda_on_cpu.cpp")
    return made


def _translation_unit(path, text, real):
    names = cuda_source.kernels(str(path.with_suffix("")))
    if re.search(r"^template\b(?:(?!^\}).)*__shared__", text, re.M | re.S):
        raise KernelError(f"{path}: __shared__ inside a template cannot be poisoned on the CPU")
    for old, new in REWRITES:
        text = re.sub(old, new, text, flags=re.M)
    calls = "".join(
        f"static void call_{name}(void** a) {{ cuda_on_cpu::call({name}, a); }}\n" for name in names
    )
    table = "".join(f'{{"{name}", call_{name}}}, ' for name in names)
    return (
        f'#include "cuda_on_cpu.h"\n#define real {real}\nnamespace {{\n#line 1 "{path}"\n{text}\n'
        f'}}\n#line 1 "calls"\n{calls}namespace cuda_on_cpu {{ extern const Kernel kernels[];\n'
        f"const Kernel kernels[] = {{ {table}{{nullptr, nullptr}} }}; }}\n"
    )


@functools.cache
def build(path, real="float", sanitize=None):
    """Compile a .cu file for `real`; return the shared library (sanitized: the program)."""
    path = Path(path).resolve()
    unit = _translation_unit(path, path.read_text(), real)
    made = _folder() / f"{path.stem}-{_name(unit, sanitize)}"
    if made.exists():
        return made
    source = made.with_suffix(f".{os.getpid()}.cpp")
    source.write_text(unit)
    try:
        command = [compiler(), *_base_flags(sanitize), *BUILD[sanitize]]
        return _compile([*command, source, _runtime(sanitize)], made, f"{path.name} ({real})")
    finally:
        source.unlink()


@functools.cache
def _library(path, real):
    return ctypes.CDLL(str(build(path, real)))


class CudaOnCpu:
    """backend.launch() on numpy arrays; the fixture `cuda_on_cpu` puts one in its place.

    seed: decides the order of blocks and threads. sanitize: None, "address" or "thread"; by default
    what the environment's CUDA_ON_CPU_SANITIZE says. launched: the (file, kernel) pairs that ran.
    """

    def __init__(self, seed=0, sanitize=None):
        self.seed = seed
        self.sanitize = sanitize or os.environ.get("CUDA_ON_CPU_SANITIZE") or None
        self.launched = set()

    def launch(self, file, kernel, threads, args):
        """As backend.launch(), with the same checks; `file` may be the path of any .cu file too."""
        path = cuda_source.cu_path(str(file).removesuffix(".cu"))
        checked, real = cuda_source.check_arguments(str(path.with_suffix("")), kernel, args)
        grid, block = backend.grid_and_block(threads)
        if np.prod(block) > 1024:
            raise ValueError(f"{path.name}, {kernel}: a block of {block}; CUDA takes 1024 threads")
        self.launched.add((str(file), kernel))
        if min(grid) > 0:
            run(path, kernel, grid, block, checked, real, self.seed, self.sanitize)


def run(path, kernel, grid, block, args, real="float", seed=0, sanitize=None):
    """Run one kernel of a .cu file over a grid of blocks; arrays among `args` change in place.

    grid, block: three numbers each, x first. args: C-contiguous numpy arrays and numpy scalars of
    the kernel's own types. Raises KernelError: the kernel's name, and what went wrong where.
    """
    where = f"{Path(path).name}, {kernel}"
    if sanitize:
        _run_program(build(path, real, sanitize), where, kernel, grid, block, args, seed)
        return
    cells = [np.array(a.ctypes.data if isinstance(a, np.ndarray) else a) for a in args]
    pointers = (ctypes.c_void_p * len(cells))(*[cell.ctypes.data for cell in cells])
    message = ctypes.create_string_buffer(4096)
    sizes = (ctypes.c_uint * 6)(*grid, *block)
    with _library_lock:  # one block at a time: shared memory is a static
        failed = _library(path, real).cuda_on_cpu_launch(
            kernel.encode(), pointers, sizes, ctypes.c_uint64(seed), message
        )
    if failed:
        raise KernelError(f"{where}: {message.value.decode()}")


def _run_program(program, where, kernel, grid, block, args, seed):
    arrays = [isinstance(a, np.ndarray) for a in args]
    raw = [np.asarray(a).tobytes() for a in args]
    numbers = [*grid, *block, seed, len(raw), *map(len, raw), *map(int, arrays)]
    ran = _run_sanitized(program, f"{kernel} {' '.join(map(str, numbers))}\n".encode(), *raw)
    if ran.returncode:
        report = ran.stderr.decode(errors="replace").partition("Shadow bytes around")[0].strip()
        raise KernelError(f"{where}: {report or f'ended with code {ran.returncode}'}")
    left = ran.stdout
    for a in (a for a, is_array in zip(args, arrays, strict=True) if is_array):
        if a.flags.writeable:
            a[...] = np.frombuffer(left[: a.nbytes], a.dtype).reshape(a.shape)
        left = left[a.nbytes :]


def _run_sanitized(program, *pieces):
    options = "exitcode=66:detect_leaks=0:halt_on_error=1:print_summary=1"
    environment = {**os.environ, "ASAN_OPTIONS": options, "TSAN_OPTIONS": options,
                   "UBSAN_OPTIONS": "print_stacktrace=1"}  # fmt: skip
    return subprocess.run(
        [program], input=b"".join(pieces), capture_output=True, env=environment,
        preexec_fn=_fixed_addresses if sys.platform == "linux" else None,
    )  # fmt: skip


def _fixed_addresses():
    # ThreadSanitizer cannot start where newer kernels place programs at random: switch that off.
    ctypes.CDLL(None).personality(0x0040000)
