"""What the bench times: convolutions, training steps and predictions, ours and PyTorch's, checked.

A side is named by who runs, in which precision, and how: 'ours tf32', 'naive fp32',
'torch bf16 channels_last compiled'. In every round each side runs once, in turn, so that whatever
else the machine does hits all of them. Times are medians over the rounds; a ratio is the median of
our time over PyTorch's in the same round, for the fastest of PyTorch's ways in that precision.
"""

from functools import partial

import numpy as np

from weakunet.bench.convolution import arrays_of, convolve, moved, packed, step_by_step
from weakunet.bench.counts import Layer
from weakunet.gpu import backend
from weakunet.layers.conv.gpu import KERNEL_OF
from weakunet.layers.loss import mse_backward
from weakunet.layers.optim import Adadelta
from weakunet.model import WeakUNet
from weakunet.training.loop import SMALL
from weakunet.training.settings import Settings
from weakunet.util.cli import one_line

try:
    from weakunet.bench import pytorch
except ImportError:
    pytorch = None
ENDS = {"fp32": "", "tf32": "_tf32", "bf16": "_bf16"}  # how a precision's columns end
COLUMNS = []
for end in ENDS.values():
    COLUMNS += [f"ours{end}_s", f"torch{end}_s", f"ratio{end}"]
# How far results may be off, in parts of the largest value. A factor rounded to TF32 is off by up
# to 2^-11, to bf16 by up to 2^-8; PyTorch rounds its results to bf16, too.
OURS = {"fp32": [1e-5] * 4, "tf32": [2e-3] * 4, "bf16": [1.6e-2] * 4}
OTHERS = {"fp32": [1e-3] * 4, "tf32": [5e-3] * 4, "bf16": [3e-2] * 4}
PREDICT = {"fp32": [1e-3, 1e-3], "tf32": [2e-2, 2e-2], "bf16": [1e-1, 1e-1]}
# Of a step the counts, then every gradient. Rounding decides which of two nearly equal voxels is a
# block's maximum: one such tie moves a gradient by 1.5e-2 (seen on an H200). In tf32 and bf16 there
# are many: their gradients are left to the --check.
STEP = {"fp32": [1e-3] + [5e-2] * 99, "tf32": [2e-2], "bf16": [1e-1]}


def sides_of(subject, what, device, modes, torch_device):
    """{side: function} of a convolution's forward or backward, or a `Step`'s 'step' or 'predict'.

    modes: the precisions. Each function is run once and compared with a float64 reference.
    """
    if isinstance(subject, Layer):
        return _convolution_runs(subject, what, device, modes, torch_device)
    exact = network_run(subject, what, device, np.float64)()
    found = {f"ours {mode}": network_run(subject, what, device, np.float32, mode) for mode in modes}
    if pytorch:
        model, inputs = model_of(subject), batch_of(subject)
        found |= pytorch.network_runs(what, model, *inputs, modes, torch_device)
    return checked(f"{what}:{subject.name}", found, exact, STEP if what == "step" else PREDICT)


def checked(what, runs, exact, tolerances):
    """`runs` {side: function} without those of PyTorch that fail or are wrong, which are named.

    exact: the float64 results, an array or a tuple of arrays. tolerances: {precision: one number
    per result}; a result without one is not compared.
    Raises AssertionError when one of ours is wrong.
    """
    good, exact = dict(runs), _on_host(exact)
    for side, run in runs.items():
        who, mode, *_ = side.split()
        try:
            results = zip(_on_host(run()), exact, tolerances[mode], strict=False)
            for value, expected, tolerance in results:
                error = np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-30)
                if not error <= tolerance:
                    raise AssertionError(f"off by {error:.1e} of the float64 reference's maximum")
        except Exception as error:  # torch.compile, for one, needs Triton and a compiler
            if who != "torch":
                raise AssertionError(f"{what}, {side}: {error}") from error
            print(f"note: {what}: {side} is left out: {one_line(error)}")
            del good[side]
    return good


def _on_host(results):
    """One array or a tuple of arrays, PyTorch's among them, as numpy arrays; None is dropped."""
    results = results if isinstance(results, tuple) else (results,)
    results = (r.detach().float().cpu() if hasattr(r, "cpu") else r for r in results)
    return [backend.to_host(result) for result in results if result is not None]


def network_run(step, what, device, dtype=np.float32, precision="fp32", graph=True):
    """A function that runs one prediction, or one training step, with our own layers.

    graph: replay a small step on a GPU as one CUDA graph, as training does.
    """
    model = model_of(step, dtype).to(device, precision)
    scans, counts = (backend.to_device(a.astype(dtype), device) for a in batch_of(step))
    if what == "predict":
        return lambda: model.predict(scans)
    optimizer = Adadelta(model.params, Settings.lr, Settings.rho, Settings.eps)

    def train(scans, counts):
        predicted = model.forward(scans)
        model.backward(mse_backward(predicted, counts))
        optimizer.step(model.grads)
        return (predicted, *model.grads.values())

    if graph and device == "cuda" and scans.size < SMALL:
        train = backend.as_graph(train)
    return lambda: train(scans, counts)


def batch_of(step):
    """Random scans (N, 1, D, H, W) and counts (N,)."""
    rng, (n, *_) = np.random.default_rng(0), step.shape
    return rng.random(step.shape, np.float32), rng.integers(0, 10, n).astype(np.float32)


def model_of(step, dtype=np.float32):
    """The step's network with random weights."""
    return WeakUNet(**step.network, rng=np.random.default_rng(1), dtype=dtype)


def _convolution_runs(layer, direction, device, modes, torch_device):
    rng = np.random.default_rng(0)
    host = arrays_of(layer, lambda shape: rng.standard_normal(shape, np.float32))
    arrays = moved(host, np.float32, device)
    exact = step_by_step(direction, *moved(host, np.float64, device))

    def run(kernel, arrays):
        return partial(convolve, direction, kernel, *arrays)

    name = f"{layer.name} {direction}"
    ours = {f"ours {mode}": run(KERNEL_OF[mode], arrays) for mode in modes}
    ours = checked(name, ours, exact, OURS)
    for mode in modes:  # checked on plain maps, timed on those of a network
        ours[f"ours {mode}"] = run(KERNEL_OF[mode], packed(arrays, KERNEL_OF[mode]))
    others = {"naive fp32": run("naive", arrays)} if device == "cuda" else {}
    if pytorch:
        others |= pytorch.convolution_runs(direction, host, modes, torch_device)
    return ours | checked(name, others, exact, OTHERS)


def in_turn(runs, rounds, seconds, warm_up=1):
    """{side: [seconds per round]} of the functions in `runs`, taken in turn.

    seconds: the clock, a function that runs one of them and returns how long it took.
    """
    times = {side: [] for side in runs}
    for i in range(-warm_up, rounds):
        for side, run in runs.items():
            taken = seconds(run)
            if i >= 0:
                times[side].append(taken)
    return times


def compared(times):
    """The columns of a row: our time, PyTorch's fastest, which way that was, and the ratio."""
    medians = {side: float(np.median(own)) for side, own in times.items()}
    row = {}
    for mode, end in ENDS.items():
        ours, theirs = f"ours {mode}", [side for side in times if side.startswith(f"torch {mode}")]
        by = min(theirs, key=medians.get, default=None)
        row |= {f"ours{end}_s": medians.get(ours), f"torch{end}_s": medians.get(by)}
        row |= {f"torch{end}_by": by, f"ratio{end}": None}
        if by and ours in times:
            row[f"ratio{end}"] = float(np.median(np.divide(times[ours], times[by])))
    return row | {"naive_s": medians.get("naive fp32")}
