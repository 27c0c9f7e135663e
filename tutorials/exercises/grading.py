"""What the exercises' tests share: take an answer, compare its results, name the mistake.

A test knows the typical wrong results of its lesson (it computes them) and looks whether the answer
is one of those; so that a student reads "dw is transposed" and not that two arrays differ.
"""

import faulthandler
import importlib.util
import os
import re
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

SECONDS = 10  # of processor time that a kernel may run; ours need a hundredth of one
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(path) for path in (ROOT, ROOT / "tests") if str(path) not in sys.path]

from cuda_on_cpu import harness  # noqa: E402 (it lies in tests/)
from cuda_on_cpu.build import build  # noqa: E402


def load_answer(folder):
    """The module `exercise.py` of a folder; a CUDA answer, kernels.cu, lies beside it."""
    path = Path(folder) / "exercise.py"
    if not path.is_file():
        pytest.fail(
            f"{path}: no such file; an answer keeps the folder's and the file's name", False
        )
    spec = importlib.util.spec_from_file_location(f"answer_{abs(hash(path))}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fail(message):
    """End the test with one message and no traceback."""
    pytest.fail(message, pytrace=False)


def compare(what, actual, expected, mistakes=(), tolerance=1e-9):
    """Fail unless `actual` is `expected` within `tolerance` of its largest magnitude.

    what: the result's name. mistakes: pairs (the array that a mistake gives, the message); the
    first that `actual` agrees with is named. Otherwise shape, NaN or the worst element is.
    """
    expected = np.asarray(expected, float)
    if actual is None:
        fail(f"{what} is None: the function does not return it")
    try:
        actual = np.asarray(actual, float)
    except (TypeError, ValueError):
        fail(f"{what} is {type(actual).__name__} {str(actual)[:60]}, not numbers {expected.shape}")
    for wrong, message in mistakes:  # the exercise's own data must tell them apart
        assert not _same(expected, wrong, tolerance), f"the data do not show: {message}"
    if _same(actual, expected, tolerance):
        return
    for wrong, message in mistakes:
        if _same(actual, wrong, tolerance):
            fail(message)
    if actual.shape != expected.shape:
        fail(f"{what} has shape {actual.shape}, expected {expected.shape}")
    if np.isnan(actual).any():
        where = tuple(map(int, np.argwhere(np.isnan(actual))[0]))
        fail(f"{what} is NaN in {np.isnan(actual).sum()} of {actual.size} places, first at {where}")
    off = abs(actual - expected)
    where = np.unravel_index(off.argmax(), off.shape)
    fail(
        f"{what} is wrong in {(off > tolerance * _scale(expected)).sum()} of {off.size} places; "
        f"worst at {tuple(map(int, where))}: {actual[where]:.6g}, expected {expected[where]:.6g}"
    )


def parts(function, result, names):
    """The parts of a returned tuple, names = "dx, dw, db"; fails where they are not there."""
    number = len(names.split(", "))
    if not isinstance(result, (tuple, list)) or len(result) != number:
        given = (
            f"{len(result)} parts" if isinstance(result, (tuple, list)) else type(result).__name__
        )
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
    threads run. What does not compile, gets stuck, never ends or dies fails with what is known
    about it.
    """
    if harness.reason_not_to_run():
        pytest.skip(harness.reason_not_to_run())
    path = Path(answer.__file__).with_name("kernels.cu")
    try:
        build(path, "double")
    except harness.KernelError as error:
        fail(str(error))

    def run(sanitize=None):
        try:
            harness.CudaOnCpu(seed, sanitize).launch(path, kernel, threads, args)
        except (harness.KernelError, TypeError, ValueError) as error:
            return error
        return None

    died_of = _try_in_a_child(run)
    if died_of == signal.SIGVTALRM:
        fail(f"{kernel} has not ended after {SECONDS} s: does a loop never stop?")
    if died_of is not None:
        text = str(run("address")) if harness.reason_not_to_run("address") is None else ""
        line = re.search(r"kernels\.cu:\d+", text)
        fail(
            f"{line.group() if line else kernel}: the program died of "
            f"{signal.Signals(died_of).name}; most likely an index far outside its array"
        )
    error = run()
    if "divergent barrier" in str(error):
        fail(
            f"{error}\nA __syncthreads() stands where not all threads of the block come by: inside "
            "an `if`, or after a `return`"
        )
    if isinstance(error, (TypeError, ValueError)):
        fail(f"{error}\nThe kernel's name and parameters must stay as they were")
    if error is not None:
        fail(str(error))


def _try_in_a_child(run):
    """Run in a forked copy of this program first: the signal that it died of, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that the child does without (numpy's)
        child = os.fork()
    if child == 0:
        faulthandler.disable()
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        run()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
