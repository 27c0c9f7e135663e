"""What the exercises' tests share: run an answer, compare its results, name the mistake.

A test computes the results of typical mistakes and looks whether the answer is one of them. So a
student reads "dw is transposed", not that two arrays differ. An answer runs in a process of its own
(answer_process.py), with limits.
"""

import ast
import functools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [p for p in map(str, (ROOT, ROOT / "tests", HERE)) if p not in sys.path]

from answer_process import Between, Other, WeightedCubes, decode, read_message, write_message  # noqa: E402
from cuda_on_cpu import harness  # noqa: E402 (it lies in tests/)

__all__ = ["Answer", "Between", "Stopped", "WeightedCubes", "compare", "fail", "launch", "parts"]
SECONDS = 10  # of processor time for one task; our solutions need far less
WAIT = 40  # seconds after which an answer that only sleeps is ended
MEGABYTES = 2000
# Modules with which an answer could bypass the grader, and words that are a set's task itself.
NEVER = "ctypes gc importlib inspect multiprocessing pickle runpy socket subprocess".split()
TASK_ITSELF = {"02_convolution": ("convolve", "correlate")}
KERNEL_NEVER = re.compile(
    r"#\s*include|\b(?:asm|__asm__|system|popen|v?fork|execv\w*|_?exit|abort|syscall|dlopen|"
    r"constructor)\b"
)


class Stopped(pytest.fail.Exception):
    """An answer ended in an exception, ran too long, or may not be graded. `name` says which."""

    def __init__(self, name, message):
        super().__init__(message, pytrace=False)
        self.name = name


class Answer:
    """The functions of the exercise.py in a folder; each call runs in the answer's own process.

    quiet: throw away what it prints. Use it in a `with` statement, or call close().
    """

    def __init__(self, folder, quiet=False):
        self._folder, self._quiet = Path(folder).resolve(), quiet
        self._process, self._late = None, False

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return functools.partial(self._call, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _call(self, function, *args):
        if self._process is None:
            self._start(_what_it_may_import(self._folder))
        return self._ask(function, "call", function, args)

    def _start(self, modules=(), megabytes=None):
        self._temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        paths = (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""))
        settings = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        settings["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        numbers = str(SECONDS), str(MEGABYTES if megabytes is None else megabytes)
        self._process = subprocess.Popen(
            [sys.executable, HERE / "answer_process.py", self._folder, *numbers],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            stderr=subprocess.DEVNULL if self._quiet else None, cwd=self._temporary.name,
            env={**os.environ, **settings},
        )  # fmt: skip
        self._watch = threading.Timer(max(WAIT, SECONDS), self._end, [True])
        self._watch.daemon = True
        self._watch.start()
        write_message(self._process.stdin, pickle.dumps(("imports", *modules)))

    def _end(self, late=False):
        """End the process, and what it may have started."""
        self._late |= late
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (AttributeError, OSError):  # Windows; nobody is left
            self._process.kill()

    def close(self):
        """End the answer's process."""
        if self._process:
            self._watch.cancel()
            self._end()
            self._process.stdout.close()
            try:
                self._process.stdin.close()
            except OSError:
                pass
            self._process.wait()
            self._temporary.cleanup()
            self._process = None

    def _ask(self, what, *request):
        """Send a request, return its result; arrays that a kernel changed are changed here, too."""
        args = request[2]
        try:
            write_message(self._process.stdin, pickle.dumps(request))
            message = read_message(self._process.stdout)
            if message is None:
                raise self._why_it_ended(what)
            reply = json.loads(message, object_hook=decode)
            if "error" in reply:
                raise Stopped(*_what_stopped(what, **{k: str(v) for k, v in reply.items()}))
            for i, array in reply["changed"].items():
                arg = args[int(i)]
                arg = arg.around if isinstance(arg, Between) else arg
                arg[...] = array
            return reply["result"]
        except OSError:
            raise self._why_it_ended(what) from None
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise Stopped("refused", f"{what} writes into the grader's own channel") from None

    def _why_it_ended(self, what):
        code = self._process.wait()
        late = self._late or code == -getattr(signal, "SIGXCPU", 0)
        self.close()
        if late:
            seconds = f"{SECONDS} s of processor time" if code != -9 else f"{WAIT} s"
            return Stopped("late", f"{what} has not ended after {seconds}: does a loop never stop?")
        if code < 0:
            died = signal.Signals(-code).name
            why = "memory, or endless recursion"
            return Stopped(died, f"{what}: the program died of {died}: {why}")
        return Stopped("exit", f"{what} ends the program (exit code {code}) instead of returning")


def _what_stopped(what, error, text, where):
    """The name and the message of what an answer's process says about an exception."""
    if error in ("NotImplementedError", "missing", "refused", "changed", "KernelError"):
        return error, text
    if error == "SystemExit":
        return error, f"{what} ends the program (sys.exit) instead of returning{where}"
    return error, f"{what} stops with {error}: {text}{where}"


_parsing = threading.Lock()  # Python 3.11's parser counts the recursions of all threads as one


def _parse(text):
    with _parsing:
        return ast.parse(text)


def _imports(tree):
    """(line, name) of everything that a program imports; `from a import b` is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _what_it_may_import(folder):
    """Modules that the set's own exercise.py imports beyond Python and numpy.

    Fails if the answer is missing, or imports more than Python, numpy and these.
    """
    path, stub = folder / "exercise.py", HERE / folder.name / "exercise.py"
    if not path.is_file():
        raise Stopped("missing", f"{path}: no such file; an answer keeps folder's and file's name")
    given = [name for _, name in _imports(_parse(stub.read_text(encoding="utf-8")))]
    try:
        tree = _parse(path.read_bytes().decode("utf-8-sig"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise Stopped("SyntaxError", f"exercise.py{where} is no Python: {error}") from None
    scipy = any(name.startswith("scipy.") for name in given)
    for line, name in _imports(tree):
        top = name.partition(".")[0]
        of_python = top in sys.stdlib_module_names and top not in NEVER
        if not (of_python or top == "numpy" or name in given or (top == "scipy" and scipy)):
            said = "an answer may use Python, numpy and what its exercise.py came with"
            raise Stopped("refused", f"exercise.py, line {line}: it imports {name}; {said}")
    for node in ast.walk(tree):
        word = getattr(node, "attr", None) or getattr(node, "value", None)
        word = node.name if isinstance(node, ast.alias) else word
        if isinstance(word, str) and word in TASK_ITSELF.get(folder.name, ()):
            raise Stopped("refused", f"exercise.py uses numpy's {word}: that is the task itself")
    return [name.rpartition(".")[0] for name in given if name != "numpy"]


def fail(message):
    """End the test with one message and no traceback."""
    pytest.fail(message, pytrace=False)


def compare(what, actual, expected, mistakes=(), tolerance=1e-9):
    """Fail unless `actual` is `expected` within `tolerance` of its largest magnitude.

    what: the result's name. mistakes: pairs (the array that a mistake gives, the message); the
    first that `actual` agrees with is named, otherwise the shape, NaN or the worst element.
    """
    expected = np.asarray(expected, float)
    if actual is None:
        fail(f"{what} is None: the function does not return it")
    try:
        if isinstance(actual, str) or np.asarray(actual).dtype.kind == "U":
            raise TypeError
        actual = np.asarray(actual, float)
    except (TypeError, ValueError):
        fail(f"{what} is {_name_of(actual)}, not numbers of shape {expected.shape}")
    for wrong, message in mistakes:  # the exercise's own data must tell them apart
        assert not _same(expected, wrong, tolerance), f"the data do not show: {message}"
    if _same(actual, expected, tolerance):
        return
    for wrong, message in mistakes:
        if _same(actual, wrong, tolerance):
            fail(message)
    if actual.shape != expected.shape:
        fail(f"{what} has shape {actual.shape}, expected {expected.shape}")
    if not expected.shape:
        fail(f"{what} is {actual:.6g}, expected {expected:.6g}")
    if np.isnan(actual).any():
        where = tuple(map(int, np.argwhere(np.isnan(actual))[0]))
        fail(f"{what} is NaN in {np.isnan(actual).sum()} of {actual.size} places, first at {where}")
    off = abs(actual - expected)
    where = np.unravel_index(off.argmax(), off.shape)
    fail(
        f"{what} is wrong in {(off > tolerance * _scale(expected)).sum()} of {off.size} places; "
        f"worst at {tuple(map(int, where))}: {actual[where]:.6g}, expected {expected[where]:.6g}"
    )


def _name_of(result):
    return f"a {result.name} {result.text}" if isinstance(result, Other) else repr(result)[:60]


def parts(function, result, names):
    """The parts of a returned tuple, names = "dx, dw, db"; fails if there are not as many."""
    number = len(names.split(", "))
    if not isinstance(result, (tuple, list)) or len(result) != number:
        is_tuple = isinstance(result, (tuple, list))
        given = f"{len(result)} parts" if is_tuple else _name_of(result)
        fail(f"{function} must return {number} things, {names}; it returns {given}")
    return result


def _scale(expected):
    return max(abs(expected).max(initial=0), 1e-300)


def _same(a, b, tolerance):
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        return False
    scale = max(np.abs(b[np.isfinite(b)]).max(initial=0), 1e-300)
    return np.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True)


def launch(answer, kernel, threads, args, seed=0):
    """Run a kernel of the answer's kernels.cu on the CPU (the text is unchanged CUDA C).

    threads and args as for backend.launch(), arrays in float64; seed: the order in which the
    threads run. A kernel that does not compile, gets stuck, never ends or dies fails with a reason.
    """
    if harness.reason_not_to_run():
        pytest.skip(harness.reason_not_to_run())
    path = answer._folder / "kernels.cu"
    if not path.is_file():
        raise Stopped("missing", f"{path}: no such file; an answer keeps folder's and file's name")
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text("utf-8", "replace"), flags=re.S)
    if word := KERNEL_NEVER.search(text):
        raise Stopped("refused", f"kernels.cu uses {word.group()!r}: a kernel needs nothing of it")
    request = kernel, "launch", kernel, args, threads, seed
    try:
        if answer._process is None:
            answer._start()
        answer._ask(*request, None)
    except Stopped as error:
        if error.name.startswith("SIG"):
            line = _line_that_dies(answer, request)
            message = "the program died; most likely an index far outside its array"
            raise Stopped(error.name, f"{line or kernel}: {message}") from None
        if "divergent barrier" in str(error):
            why = "inside an `if`, or after a `return`"
            fail(
                f"{error}\nA __syncthreads() stands where not all threads of the block come: {why}"
            )
        if error.name in ("TypeError", "ValueError"):
            fail(f"{error}\nThe kernel's name and parameters must stay as they were")
        raise


def _line_that_dies(answer, request):
    """Where AddressSanitizer, if it can run here, sees the kernel leave its arrays."""
    if harness.reason_not_to_run("address"):
        return None
    answer._start(megabytes=0)  # it reserves terabytes
    try:
        answer._ask(*request, "address")
    except Stopped as error:
        line = re.search(r"kernels\.cu:\d+", str(error))
        return line and line.group()
    return None
