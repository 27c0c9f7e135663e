"""The CPU half of `python -m weakunet.bench`: numpy beside PyTorch.

GFLOP/s count what counts.py does, whatever was really computed.
Peak memory: each side runs two steps in a fresh process; reported is the highest resident memory
(VmHWM in /proc; Linux only) above what was resident once the libraries were imported. Of PyTorch's
two layouts the one that needs less is compared.
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

from weakunet.bench import counts, runs
from weakunet.bench.runs import batch_of, model_of, network_run, pytorch
from weakunet.util.cli import progress
from weakunet.util.threads import set_threads

COLUMNS = ["name", "size", "threads", *runs.COLUMNS[:3], "gflops", "ours_mb", "torch_mb"]
COLUMNS += ["memory_ratio"]


def measure(thread_counts, rounds, only=""):
    """All rows of the table whose name contains `only`, a list of dicts (see the module)."""
    kernels = {str(lib["architecture"]) for lib in threadpool_info() if lib["user_api"] == "blas"}
    version = pytorch.torch.__version__ if pytorch else "not installed"
    print(f"numpy {np.__version__}, BLAS kernels {', '.join(kernels)}; PyTorch {version}")
    found = []
    for threads in thread_counts:
        _set_threads(threads)
        cases = counts.to_time(None, only, counts.STEPS[:-1])  # the paper's size takes minutes
        for row, (subject, what) in progress(cases, f"{threads} thread(s)"):
            sides = runs.sides_of(subject, what, "cpu", ("fp32",), "cpu")
            row |= {"device": "cpu", "threads": threads}
            row |= runs.compared(runs.in_turn(sides, rounds, _seconds))
            row["gflops"] = row["flop"] / row["ours_s"] / 1e9
            found.append(row | (_memory(subject, threads) if what == "step" else {}))
    set_threads()
    return found


def _set_threads(threads):
    set_threads(threads)
    if pytorch:
        pytorch.torch.set_num_threads(threads)


def _seconds(run):
    time.sleep(0.02)  # PyTorch's threads keep spinning for a while after their last job
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _memory(step, threads):
    """Peak memory of a step, each side in a process of its own; {} where it is not Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    peaks = {}
    for side in ("ours", *(pytorch.LAYOUTS if pytorch else ())):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            peaks[side] = fresh.submit(_peak_mb, side, step, threads).result()
    row = {"ours_mb": peaks.pop("ours"), "torch_mb": min(peaks.values(), default=None)}
    return row | {"memory_ratio": row["ours_mb"] / row["torch_mb"] if peaks else None}


def _peak_mb(side, step, threads):
    """The MB by which two steps of one side raise the resident memory of this process."""
    _set_threads(threads)
    before = _status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    if side == "ours":
        run = network_run(step, "step", "cpu")
    else:
        run = pytorch.network_run("step", model_of(step), *batch_of(step), pytorch.LAYOUTS[side])
    run()
    run()
    return _status_mb("VmHWM") - before


def _status_mb(field):
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024
