"""Run a CUDA kernel's own text on the CPU: compiled by a C++ compiler, called with numpy arrays.

    CudaOnCpu(seed=0).launch("layers/relu", "relu_forward", x.size, (x, y, x.size))

The threads of a block run in turns, in an order that the seed shuffles, with real barriers
(cuda_on_cpu.cpp). Found are: a barrier that some threads miss, and, in the numbers, a missing
barrier (in most orders) and shared memory or outputs that nobody has written. With `sanitize` the
kernel runs in a program of its own, and more is found, with its line:
"address"  accesses out of bounds, of shared arrays too; integer overflow; misaligned accesses
"thread"   races between threads of a block, and between a block and the one that runs after it
Not found: a number of threads or bytes of shared memory that a GPU does not have; speed.
"""

import atexit
import contextlib
import ctypes
import functools
import os
import sys
import tempfile
import threading
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np

from weakunet.gpu import backend, cuda_source

from .build import KernelError, build, compiler, compiler_version, try_sanitizer

__all__ = ["CudaOnCpu", "KernelError", "reason_not_to_run", "run"]
# How many sanitized programs stay alive; ThreadSanitizer's take some hundred megabytes each.
ALIVE = {"address": 16, "thread": 6}
_one_at_a_time = threading.Lock()
_alive = {}


@functools.cache
def reason_not_to_run(sanitize=None):
    """Why nothing can be run here (one line), or None where it can."""
    if not compiler():
        return "no C++ compiler: install g++ or clang++, or run `python -m pip install ziglang`"
    if sanitize is None:
        return None
    if sys.platform != "linux":
        return "the sanitizers are set up for Linux"
    if "clang" in compiler_version():
        return "the sanitizers are set up for g++ (clang's does not look into named sections)"
    program, reason = try_sanitizer(sanitize)
    if reason is None:
        empty = Program(program)
        reason = empty.report() if empty.process.wait() else None
        empty.close()
    return f"no {sanitize} sanitizer with {compiler()[0]}: {reason}" if reason else None


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
        grid, block, shared = backend.launch_sizes(threads)
        if np.prod(block) > 1024:
            raise ValueError(f"{path.name}, {kernel}: a block of {block}; CUDA takes 1024 threads")
        self.launched.add((str(file), kernel))
        if min(grid) > 0:
            run(path, kernel, grid, block, checked, real, self.seed, self.sanitize, shared)


def run(path, kernel, grid, block, args, real="float", seed=0, sanitize=None, shared=0):
    """Run one kernel of a .cu file over a grid of blocks; arrays among `args` change in place.

    grid, block: three numbers each, x first; shared: bytes of dynamic shared memory. args:
    C-contiguous numpy arrays and numpy scalars of the kernel's own types. Raises KernelError: the
    kernel's name, and what went wrong where.
    """
    where, sizes = f"{Path(path).name}, {kernel}", (*grid, *block, shared)
    with _one_at_a_time:  # shared memory is static, a program has one standard input
        if sanitize:
            problem = _run_sanitized(path, kernel, sizes, args, real, seed, sanitize)
        else:
            problem = _run_here(path, kernel, sizes, args, real, seed)
    if problem:
        raise KernelError(f"{where}: {problem}")


@functools.cache
def _library(path, real):
    return ctypes.CDLL(str(build(path, real)))


def _run_here(path, kernel, sizes, args, real, seed):
    cells = [np.array(a.ctypes.data if isinstance(a, np.ndarray) else a) for a in args]
    pointers = (ctypes.c_void_p * len(cells))(*[cell.ctypes.data for cell in cells])
    message = ctypes.create_string_buffer(4096)
    _library(path, real).cuda_on_cpu_launch(
        kernel.encode(), pointers, (ctypes.c_uint * 7)(*sizes), ctypes.c_uint64(seed), message
    )
    return message.value.decode()


def _run_sanitized(path, kernel, sizes, args, real, seed, sanitize):
    binary = build(path, real, sanitize)
    program = _alive.pop((binary, sanitize), None) or Program(binary)
    problem = program.launch(kernel, sizes, seed, args)
    if problem:
        program.close()
        return problem
    _alive[binary, sanitize] = program  # as the last, for the first to go is the oldest
    others = [key for key in _alive if key[1] == sanitize]
    if len(others) > ALIVE[sanitize]:
        _alive.pop(others[0]).close()
    return None


class Program:
    """A running sanitized program (the main of cuda_on_cpu.cpp)."""

    def __init__(self, path):
        options = "exitcode=66:detect_leaks=0:halt_on_error=1"
        settings = {"ASAN_OPTIONS": options, "TSAN_OPTIONS": options}
        self.errors = tempfile.TemporaryFile()
        self.process = Popen(
            [path], stdin=PIPE, stdout=PIPE, stderr=self.errors, env={**os.environ, **settings},
            preexec_fn=_fixed_addresses,
        )  # fmt: skip

    def launch(self, kernel, sizes, seed, args):
        """Run a kernel; arrays change in place. Returns None, or what went wrong."""
        arrays = [isinstance(a, np.ndarray) for a in args]
        raw = [np.asarray(a).tobytes() for a in args]
        numbers = [*sizes, seed, len(raw), *map(len, raw), *map(int, arrays)]
        try:
            self.process.stdin.write(f"{kernel} {' '.join(map(str, numbers))}\n".encode())
            self.process.stdin.write(b"".join(raw))
            self.process.stdin.flush()
        except BrokenPipeError:
            return self.report()
        if self.process.stdout.read(1) != b"\n":
            return self.report()
        for a in (a for a, is_array in zip(args, arrays, strict=True) if is_array):
            values = np.frombuffer(self.process.stdout.read(a.nbytes), a.dtype).reshape(a.shape)
            if a.flags.writeable:
                a[...] = values
        return None

    def report(self):
        """Why the program ended: the sanitizer's report, without its dump of memory."""
        code = self.process.wait()
        self.errors.seek(0)
        text = self.errors.read().decode(errors="replace").partition("Shadow bytes around")[0]
        return text.strip() or f"the program ended with code {code}"

    def close(self):
        """End the program."""
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdout, self.errors):
            file.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


@atexit.register
def _end_programs():
    while _alive:
        _alive.popitem()[1].close()


def _fixed_addresses():
    # ThreadSanitizer cannot start where newer kernels place programs at random: switch that off.
    ctypes.CDLL(None).personality(0x0040000)
