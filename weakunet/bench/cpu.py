"""The CPU half of `python -m weakunet.bench`: numpy beside PyTorch, in paired rounds.

In every round each side runs once, in turn, so that whatever else the machine does hits
all of them; times are medians over the rounds, and `ratio` is the median over them of our time
over that of PyTorch's faster path (its default, or oneDNN with channels_last_3d). GFLOP/s count the
27 products of a plain convolution, whatever was really computed; `sgemm_share` compares them with a
1024^3 matrix product of the same threads, timed in the same run.
Peak memory: each side runs two steps in a fresh process; reported is the highest resident memory
(VmHWM, reset beforehand through /proc/self/clear_refs; Linux only) above what was resident once the
libraries were imported. Of PyTorch's two paths the one that needs less is compared.
"""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from weakunet.layers.conv import cpu as conv3d_fast
from weakunet.layers.conv.conv3d import conv3d_backward, conv3d_forward
from weakunet.layers.loss import mse_backward
from weakunet.layers.optim import Adadelta
from weakunet.model import WeakUNet
from weakunet.util.cli import progress
from weakunet.util.threads import set_threads

try:
    from weakunet.bench import pytorch as bench_torch
except ImportError:
    bench_torch = None

SMALL = {"channels": (8, 16, 32), "convs_per_level": 1}
PAPER = {"channels": (32, 64, 128), "convs_per_level": 2}
# The paper's volume at half size per axis is 42 x 64 x 84; 44 divides by 4, for the two poolings.
STEPS = [
    ("step:default", SMALL, (4, 1, 16, 32, 32)),
    ("step:default", SMALL, (4, 1, 24, 48, 48)),
    ("step:half-paper", PAPER, (1, 1, 44, 64, 84)),
]
# (C_in, C_out, N, D, H, W): the convolutions of the default network, then of half the paper's
CONVS = [
    (1, 8, 4, 16, 32, 32),
    (8, 16, 4, 8, 16, 16),
    (16, 32, 4, 4, 8, 8),
    (48, 16, 4, 8, 16, 16),
    (24, 8, 4, 16, 32, 32),
    (1, 32, 1, 44, 64, 84),
    (32, 32, 1, 44, 64, 84),
    (64, 64, 1, 22, 32, 42),
    (128, 128, 1, 11, 16, 21),
    (192, 64, 1, 22, 32, 42),
    (96, 32, 1, 44, 64, 84),
]


def measure(thread_counts, rounds, only=""):
    """All rows of the table whose name contains `only`, a list of dicts (see the module)."""
    kernels = {str(lib["architecture"]) for lib in threadpool_info() if lib["user_api"] == "blas"}
    version = bench_torch.torch.__version__ if bench_torch else "not installed"
    print(f"numpy {np.__version__}, BLAS kernels {', '.join(kernels)}; PyTorch {version}")
    rows = []
    for threads in thread_counts:
        set_threads(threads)
        if bench_torch:
            bench_torch.torch.set_num_threads(threads)
        sgemm = _sgemm_rate(threads)
        print(f"{threads} thread(s): sgemm {sgemm / 1e9:.0f} GFLOP/s")
        cases = [case for case in _cases() if only in case[0]]
        for name, shape, flop, make_runs, memory in progress(cases, f"{threads} thread(s)"):
            times = _paired(make_runs(), rounds)
            rows.append(_row(name, "x".join(map(str, shape)), threads, flop, sgemm, times))
            rows[-1] |= memory(threads) if memory else {}
    set_threads()
    return rows


def _cases():
    """(name, shape, FLOP or None, function that returns the runs, function that measures memory)"""
    for c_in, c_out, *shape in CONVS:
        flop = 2 * 27 * c_in * c_out * int(np.prod(shape))
        for direction, products in (("forward", 1), ("backward", 2 if c_in > 1 else 1)):
            runs = partial(_conv_runs, c_in, c_out, shape, direction)
            yield f"conv {c_in}->{c_out} {direction}", shape, products * flop, runs, None
    for i, (name, network, shape) in enumerate(STEPS):
        yield name, shape, None, partial(_step_runs, network, shape), partial(_memory, i)


def _row(name, size, threads, flop, sgemm, times):
    ours = np.median(times["ours"])
    row = {"name": name, "size": size, "device": "cpu", "threads": threads, "ours_s": float(ours)}
    row |= {"torch_s": None, "ratio": None}
    for path in ("default", "channels_last"):
        row[f"torch_{path}_s"] = float(np.median(times[path])) if path in times else None
    if "default" in times:
        faster = min(("default", "channels_last"), key=lambda path: np.median(times[path]))
        row["torch_s"] = row[f"torch_{faster}_s"]
        row["ratio"] = float(np.median(np.divide(times["ours"], times[faster])))
    if flop:
        row |= {"gflops": flop / ours / 1e9, "sgemm_share": flop / ours / sgemm}
    return row


def _paired(runs, rounds):
    """Seconds {name: [per round]} of the functions in `runs`, taken in turn."""
    times = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            time.sleep(0.02)  # PyTorch's threads keep spinning for a while after their last job
            start = time.perf_counter()
            run()
            if i > 0:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return times


def _sgemm_rate(threads):
    a = np.ones((1024, 1024), np.float32)
    with threadpool_limits(threads, "blas"):
        runs = _paired({"sgemm": lambda: a @ a}, 9)
    return 2 * 1024**3 / np.median(runs["sgemm"])


def _require_close(name, value, reference, tolerance=1e-5):
    error = np.abs(value - reference).max() / np.abs(reference).max()
    if not error <= tolerance:
        raise AssertionError(f"{name}: off by {error:.1e} of the float64 reference's maximum")


def _conv_runs(c_in, c_out, shape, direction):
    """{side: function} for one convolution, ours checked against the plain one in float64."""
    rng = np.random.default_rng(0)
    n, *size = shape
    dy, x, w, b = (
        rng.standard_normal(shape, np.float32)
        for shape in ((n, c_out, *size), (n, c_in, *size), (c_out, c_in, 3, 3, 3), (c_out,))
    )
    dy64, x64, w64, b64 = (array.astype(np.float64) for array in (dy, x, w, b))
    needs_dx = c_in > 1  # the first layer of a network needs none
    if direction == "forward":
        runs = {"ours": lambda: conv3d_fast.forward(x, w, b)}
        _require_close("y", runs["ours"](), conv3d_forward(x64, w64, b64))
    else:
        runs = {"ours": lambda: conv3d_fast.backward(dy, x, w, needs_dx)}
        results = zip(runs["ours"](), conv3d_backward(dy64, x64, w64), strict=True)
        for name, (value, reference) in zip(("dx", "dw", "db"), results, strict=True):
            if value is not None:
                _require_close(name, value, reference)
    if bench_torch:
        for path, layout in bench_torch.LAYOUTS.items():
            arguments = direction, dy, x, w, b, needs_dx, layout
            runs[path] = bench_torch.convolution_run(*arguments)
    return runs


def _step_runs(network, shape):
    """{side: function} for a training step, after checking ours against itself in float64."""
    scans, counts = _batch(shape)
    model, exact = (_model(network, dtype) for dtype in (np.float32, np.float64))
    for net in (model, exact):
        net.counts = net.forward(scans.astype(net.linear.params["w"].dtype))
        net.backward(mse_backward(net.counts, counts))
    _require_close("counts", model.counts, exact.counts, 1e-4)
    for name, reference in exact.grads.items():
        _require_close(name, model.grads[name], reference, 1e-2)  # a maximum may move to a near tie
    runs = {side: _step_run(side, network, shape) for side in ("ours", *_paths())}
    for path in _paths():
        _require_close(path, runs[path]()[0].numpy(), exact.counts, 1e-4)
    return runs


def _paths():
    return list(bench_torch.LAYOUTS) if bench_torch else []


def _batch(shape):
    rng = np.random.default_rng(0)
    return rng.random(shape, np.float32), rng.integers(0, 10, shape[0]).astype(np.float32)


def _model(network, dtype=np.float32):
    return WeakUNet(**network, rng=np.random.default_rng(1), dtype=dtype)


def _step_run(side, network, shape):
    """A function that runs one training step (forward, backward, Adadelta) of one side."""
    (scans, counts), model = _batch(shape), _model(network)
    if side != "ours":
        return bench_torch.step_run(model, scans, counts, bench_torch.LAYOUTS[side])
    optimizer = Adadelta(model.params)

    def step():
        model.backward(mse_backward(model.forward(scans), counts))
        optimizer.step(model.grads)

    return step


def _memory(case, threads):
    """Peak memory of STEPS[case], each side in a process of its own; {} where it is not Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    peaks = {}
    for side in ("ours", *_paths()):
        command = [sys.executable, "-m", "weakunet.bench.cpu", side, str(case), str(threads)]
        peaks[side] = float(subprocess.run(command, capture_output=True, check=True).stdout)
    row = {"ours_mb": peaks.pop("ours"), "torch_mb": None, "memory_ratio": None}
    if peaks:
        row["torch_mb"] = min(peaks.values())
        row["memory_ratio"] = row["ours_mb"] / row["torch_mb"]
    return row


def _print_peak(side, case, threads):
    """Run two steps of one side and print the MB by which they raised the resident memory."""
    set_threads(int(threads))
    if bench_torch:
        bench_torch.torch.set_num_threads(int(threads))
    before = _status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    step = _step_run(side, *STEPS[int(case)][1:])
    step()
    step()
    print(_status_mb("VmHWM") - before)


def _status_mb(field):
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


if __name__ == "__main__":
    _print_peak(*sys.argv[1:])
