"""The process in which a student's answer runs, apart from the tests that judge it.

    python answer_process.py FOLDER SECONDS MEGABYTES        (grading.py starts it)

It takes pickled calls from standard input and sends back JSON: numbers, text and arrays, nothing
that the grader would have to execute. So an answer may change numpy, exit, loop or print: the
grader sees numbers, or none. A guard stops it from reading other files and starting programs. This
stops mistakes and cheating in Python, not an expert with criminal intent.
"""

import base64
import importlib.util
import json
import os
import pickle
import struct
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LARGEST = 50e6  # bytes of one reply
DO_THE_TASK = "weakunet", "scipy", "skimage", "sklearn", "torch", "cupy", "tensorflow", "jax"
PLAIN = "biufU"  # dtypes: bool, integers, floats, text
STARTS_A_PROGRAM = (
    "os.exec os.fork os.forkpty os.posix_spawn os.spawn os.startfile os.system subprocess.Popen "
    "pty.spawn socket.connect resource.setrlimit os.kill os.killpg _winapi.CreateProcess "
    "ctypes.dlopen ctypes.dlsym os.remove os.rename os.rmdir os.symlink os.link os.truncate"
).split()


class Between(NamedTuple):
    """A kernel's array that lies in the middle of a larger one."""

    around: Any
    start: int
    stop: int


class WeightedCubes:
    """L(x) = sum a x^3, which looks at x when it is called: a loss that travels with its x."""

    def __init__(self, a, x):
        self.a, self.x = a, x

    def __call__(self):
        return float((self.a * self.x**3).sum())


class Other:
    """Stands for a result that is neither numbers nor text."""

    def __init__(self, name, text):
        self.name, self.text = name, text


def encode(value):
    """What JSON cannot hold as what it can; json.dumps calls it."""
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in PLAIN:
        value = np.asarray(value)
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"dtype": value.dtype.str, "shape": value.shape, "data": data}
    return {"other": [type(value).__name__, repr(value)[:60]]}


def decode(value):
    """The array or other result that `encode` was given; json.loads calls it for each dict."""
    match value:
        case {"dtype": str(dtype), "shape": [*shape], "data": str(data)}:
            if np.dtype(dtype).kind not in PLAIN:
                raise ValueError(dtype)
            array = np.frombuffer(base64.b64decode(data), dtype).reshape(shape).copy()
            return array if shape else array[()]
        case {"other": [str(name), str(text)]}:
            return Other(name, text)
    return value


def read_message(stream):
    """The next message of a stream, as bytes; None at its end. ValueError: it is none of ours."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    (size,) = struct.unpack("<q", head)
    if not 0 <= size <= LARGEST:
        raise ValueError(f"a message of {size} bytes")
    body = stream.read(size)
    return body if len(body) == size else None


def write_message(stream, body):
    """Send bytes that `read_message` takes."""
    stream.write(struct.pack("<q", len(body)) + body)
    stream.flush()


def _limit(seconds, megabytes):
    """Ask the system for limits of processor time and memory, where it has them (not Windows)."""
    try:
        import resource
    except ImportError:
        return
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, megabytes << 20),
        (resource.RLIMIT_FSIZE, 200 << 20),
    ):
        hard = resource.getrlimit(what)[1]
        if most and (hard == resource.RLIM_INFINITY or most < hard):
            try:
                resource.setrlimit(what, (most, most + 1))
            except (ValueError, OSError):  # macOS refuses some
                pass


def _guard(folder):
    """From here on, refuse to open files outside `folder` and Python, and to start programs.

    Of the installed packages those that do a set's task are closed, if they are not loaded yet.
    """
    paths = [*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix]
    readable = [Path(path).resolve() for path in (folder, *paths, os.devnull)]
    packages = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]
    closed = [path / name for path in packages for name in DO_THE_TASK if name not in sys.modules]
    refused = []

    def watch(event, args):
        if event in STARTS_A_PROGRAM:
            refused.append(f"{event} is not allowed: an answer computes, and does nothing else")
        elif event == "open" and isinstance(args[0], (str, bytes)):
            path, flags = Path(os.fsdecode(args[0])).resolve(), args[2] or 0
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            known = any(path.is_relative_to(place) for place in readable)
            if writes or not known or any(path.is_relative_to(place) for place in closed):
                refused.append(f"it opens {path}: an answer reads and writes no other files")
            else:
                return
        else:
            return
        raise PermissionError(refused[-1])

    sys.addaudithook(watch)
    return refused


def _load(folder):
    """The answer's module."""
    path = Path(folder) / "exercise.py"
    spec = importlib.util.spec_from_file_location("exercise", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _where_it_stopped(error):
    """The last line of an answer's own file in a traceback, as ' (exercise.py, line 7)'."""
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename.endswith("exercise.py")
    ]
    return f" (exercise.py, line {lines[-1]})" if lines else ""


def _reply(ask, refused):
    """The JSON, as bytes, of what `ask()` returns, or of what stopped it."""
    try:
        body = json.dumps(ask(), default=encode).encode()
        if len(body) > LARGEST:
            raise MemoryError("the result is larger than 50 MB")
    except BaseException as error:
        name, where = type(error).__name__, _where_it_stopped(error)
        if isinstance(error, SyntaxError):
            where = f" (exercise.py, line {error.lineno})"
        body = json.dumps({"error": name, "text": str(error)[:500], "where": where}).encode()
    if refused:
        body = json.dumps({"error": "refused", "text": refused[0], "where": ""}).encode()
    return body


def _call(modules, folder, name, args):
    if not modules:
        modules.append(_load(folder))
    function = getattr(modules[0], name, None)
    if not callable(function):
        return {"error": "missing", "text": f"exercise.py has no function {name}", "where": ""}
    before = [a.copy() if isinstance(a, np.ndarray) else None for a in args]
    result = function(*args)
    for i, array in enumerate(before):
        if array is not None and args[i].tobytes() != array.tobytes():  # NaN is equal to itself
            text = f"{name} leaves its argument {function.__code__.co_varnames[i]} changed: "
            text += "work on a copy, or put the old values back"
            return {"error": "changed", "text": text, "where": ""}
    return {"result": result, "changed": {}}


def _launch(folder, kernel, args, threads, seed, sanitize):
    from cuda_on_cpu import harness  # it lies in tests/, which grading.py puts on the path

    views = [a.around[a.start : a.stop] if isinstance(a, Between) else a for a in args]
    path = Path(folder) / "kernels.cu"
    harness.build(path, "double")
    harness.CudaOnCpu(seed, sanitize).launch(path, kernel, threads, views)
    whole = [a.around if isinstance(a, Between) else a for a in args]
    changed = {i: a for i, a in enumerate(whole) if isinstance(a, np.ndarray)}
    return {"result": None, "changed": changed}


def main(folder, seconds, megabytes):
    """Answer calls until there are no more."""
    sys.dont_write_bytecode = True
    sys.modules["answer_process"] = sys.modules["__main__"]  # as grading.py's pickles call it
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an answer prints is no reply
    _limit(int(seconds), int(megabytes))
    modules, refused = [], None
    while (message := read_message(sys.stdin.buffer)) is not None:
        kind, *request = pickle.loads(message)
        if kind == "imports":  # what the set's own exercise.py imports from weakunet and scipy
            for name in request:
                importlib.import_module(name)
            continue
        if kind == "launch":
            body = _reply(lambda r=request: _launch(folder, *r), [])
        else:
            refused = _guard(folder) if refused is None else refused
            body = _reply(lambda r=request: _call(modules, folder, *r), refused)
        write_message(replies, body)


if __name__ == "__main__":
    main(*sys.argv[1:])
