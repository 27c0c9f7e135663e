"""Whole steps and predictions for gpu.py: what runs, how it is checked, what memory it takes.

Beside the times of its table, for a training step with convolutions in TF32:

train_s      a step's share of an epoch of the training command's own loop, which picks the scans
             and moves them at random (train_share: the bare step's time over that, wanted >= 0.95)
grown_mb     by how much CuPy's pool grew over 1000 steps; the pool keeps what a step lets go of and
             hands it to the next, so after a few steps it should be 0
ours_graph_s the same step replayed as one CUDA graph (--graph), for which the host queues nothing
"""

import time

import numpy as np

from weakunet.bench.counts import SIZES
from weakunet.gpu import backend
from weakunet.layers.loss import mse_backward
from weakunet.layers.optim import Adadelta
from weakunet.model import WeakUNet
from weakunet.training.loop import Run, train_epoch
from weakunet.training.settings import Settings
from weakunet.util.cli import one_line

try:
    from weakunet.bench import pytorch_gpu as bench_torch_gpu
except ImportError:
    bench_torch_gpu = None

COLUMNS = [
    ("train_s", "{:.6f}"),
    ("train_share", "{:.2f}"),
    ("ours_graph_s", "{:.6f}"),
    ("ours_mb", "{:.0f}"),
    ("torch_mb", "{:.0f}"),
    ("ours_tf32_mb", "{:.0f}"),
    ("torch_tf32_mb", "{:.0f}"),
    ("grown_mb", "{:.0f}"),
]
BLOCK = 8  # edge of the local maxima's blocks
# how far counts and heatmaps may be off float64, of the largest one
TOLERANCE = {"ours": 1e-4, "ours_tf32": 2e-2, "ours_bf16": 1e-1}
TOLERANCE |= {"fp32": 1e-3, "tf32": 2e-2, "bf16": 1e-1}


def runs(name, graph):
    """{side: function} for 'step:paper', 'predict:paper', ..., each after a check in float64.

    graph: one more, `ours_graph`.
    """
    what, _, size = name.partition(":")
    network, shape = SIZES[size]
    rng = np.random.default_rng(0)
    scans, counts = rng.random(shape, np.float32), rng.integers(0, 10, shape[0]).astype(np.float32)
    exact = _run(what, network, scans, counts, np.float64)()
    found = {"ours": _run(what, network, scans, counts, np.float32)}
    for mode in ("tf32", "bf16"):
        found[f"ours_{mode}"] = _run(what, network, scans, counts, np.float32, mode)
    if bench_torch_gpu:
        model = _model(network, np.float32)
        found |= bench_torch_gpu.network_runs(what, model, scans, counts)
    found = checked(name, found, found, exact, TOLERANCE)
    if graph:
        found["ours_graph"] = _graph_run(what, network, scans, counts)
    return found


def checked(what, runs, compared, reference, tolerance):
    """`runs` {side: function} without those of PyTorch that fail or are wrong, which are named.

    Each side in `compared` is run and its results compared with `reference` (float64; arrays, or
    None where there is none). tolerance: of each precision, in parts of the largest value.
    Raises AssertionError when one of ours is wrong.
    """
    good, reference = dict(runs), _results(reference)
    for side in compared:
        try:
            for value, expected in zip(_results(runs[side]()), reference, strict=True):
                error = np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-30)
                if not error <= tolerance[side.partition(" ")[0]]:
                    raise AssertionError(f"off by {error:.1e} of the float64 reference's maximum")
        except Exception as error:  # torch.compile needs Triton and a compiler
            if " " not in side:
                raise AssertionError(f"{what}, {side}: {error}") from error
            print(f"note: {what}, PyTorch, {side}, is left out: {one_line(error)}")
            del good[side]
    return good


def _results(results):
    """One array or a tuple of arrays, PyTorch's among them, as numpy arrays; None is dropped."""
    results = results if isinstance(results, tuple) else (results,)
    results = (r.detach().float().cpu() if hasattr(r, "cpu") else r for r in results)
    return [backend.to_host(result) for result in results if result is not None]


def _graph_run(what, network, scans, counts):
    """The run in TF32 as a CUDA graph, after a check that it gives the same bits."""
    one, other = (_run(what, network, scans, counts, np.float32, "tf32") for _ in "12")
    replay = backend.captured(one)  # runs it once: a step has then changed the weights
    other()
    for value, expected in zip(replay(), other(), strict=True):
        if not np.array_equal(backend.to_host(value), backend.to_host(expected)):
            raise AssertionError(f"{what}: the CUDA graph gives other bits than its kernels")
    return replay


def _model(network, dtype):
    return WeakUNet(**network, rng=np.random.default_rng(1), dtype=dtype)


def _run(what, network, scans, counts, dtype, precision="fp32"):
    """A function that runs one prediction, or one training step (forward, backward, Adadelta)."""
    model = _model(network, dtype).to("cuda", precision)
    scans, counts = (backend.to_device(a.astype(dtype), "cuda") for a in (scans, counts))
    if what == "predict":
        return lambda: model.predict(scans)
    optimizer = Adadelta(model.params)

    def step():
        predicted = model.forward(scans)
        model.backward(mse_backward(predicted, counts))
        optimizer.step(model.grads)
        return (predicted,)

    return step


def beside_the_time(row, runs):
    """More columns of a row: peak memory, and for a step its growth and the training loop's time.

    Peak memory, in MB: what our pool holds for a run, and the most that PyTorch's allocates, beyond
    what was there before; of its two layouts that which needs less.
    """
    import cupy

    pool, more = cupy.get_default_memory_pool(), {}
    for mode, suffix in (("fp32", ""), ("tf32", "_tf32")):
        pool.free_all_blocks()
        before = pool.used_bytes()
        runs[f"ours{suffix}"]()
        more[f"ours{suffix}_mb"] = (pool.total_bytes() - before) / 2**20
        # what a compiled run holds between its calls would not be seen
        theirs = [side for side in runs if side.startswith(mode) and "compiled" not in side]
        peaks = [bench_torch_gpu.peak_mb(runs[side]) for side in theirs]
        more[f"torch{suffix}_mb"] = min(peaks, default=None)
    if row["name"].startswith("step:"):
        more["grown_mb"] = _grown_mb(runs["ours_tf32"], pool)
        more["train_s"] = train_seconds(*SIZES[row["name"].partition(":")[2]])
        more["train_share"] = row["ours_tf32_s"] / more["train_s"]
    return more


def _grown_mb(step, pool, steps=1000):
    for _ in range(3):
        step()
    before = pool.total_bytes()
    for _ in range(steps):
        step()
    return (pool.total_bytes() - before) / 2**20


def train_seconds(network, shape, steps=20):
    """Seconds a step of train.py's loop over random scans, from one epoch of `steps`, in TF32."""
    rng = np.random.default_rng(0)
    settings = Settings(batch=shape[0], gaussian_head=True)  # a last layer that is not started anew
    run = Run(_model(network, np.float32).to("cuda", "tf32"), settings, None)
    volumes = rng.random((steps * shape[0], *shape[2:]), np.float32)
    volumes, counts = backend.to_device(volumes, "cuda"), np.ones(len(volumes), np.float32)
    for _ in range(2):  # the first epoch warms up
        run.batch, start = 0, time.perf_counter()
        train_epoch(run, volumes, counts, lambda: False)
        backend.to_host(run.predicted)  # waits for the GPU
    return (time.perf_counter() - start) / steps
