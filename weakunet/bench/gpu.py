"""The GPU half of `python -m weakunet.bench`: our kernels beside PyTorch's (cuDNN) in one run.

For every distinct layer of the default's and the paper's network, and for whole training steps and
predictions (gpu_steps.py): the result is first compared with a float64 reference on fresh
random data, then timed between device events, after a warm-up, as the median over rounds. A layer
is timed while the GPU is busy with something else until all of it is queued, so that the host's
time does not count; a step is timed as it comes.

Ours run in fp32 (`ours_s`) and with convolutions in TF32 and bf16 (`ours_tf32_s`, `ours_bf16_s`).
PyTorch (where it is installed) runs in fp32 without TF32, in TF32, and in bf16 (a whole step: under
autocast), each with both layouts of memory and cuDNN's benchmark mode, whole networks also through
torch.compile with CUDA graphs; the fastest counts (`torch_tf32_by` in --json says which), what
fails or is wrong is named and left out. `ratio` is fp32's, `ratio_tf32` TF32's, `ratio_bf16` our
fastest one over PyTorch's bf16.
`share` is the floor by this device's own limits over our time in fp32; the limits are a large
copy's speed and the multiply-add rate, both measured in the same run. `share_tf32` is that of our
time in TF32, the floor with an H200's tensor cores at the peak of its data sheet. `predicted_s` and
`predicted_bf16_s` are what predictions.py said beforehand of `ours_tf32_s` and `ours_bf16_s`, and
`host_s` of the host's part, for an H200.
Small layers stay in the GPU's cache from call to call, on both sides.
"""

import datetime
from functools import partial
from types import SimpleNamespace

import numpy as np

from weakunet.bench import check as bench_check
from weakunet.bench import counts as bench_counts
from weakunet.bench import gpu_steps as bench_gpu_steps
from weakunet.bench.counts import SIZES
from weakunet.gpu import backend
from weakunet.layers import globalpool3d, maxpool3d, relu
from weakunet.layers.conv import folded
from weakunet.layers.conv import gpu as conv3d_cuda
from weakunet.util.cli import progress

try:
    from weakunet.bench import pytorch_gpu as bench_torch_gpu
except ImportError:
    bench_torch_gpu = None

TIMES = [
    ("ours_s", "{:.6f}"),
    ("torch_s", "{:.6f}"),
    ("ratio", "{:.2f}"),
    ("ours_tf32_s", "{:.6f}"),
    ("torch_tf32_s", "{:.6f}"),
    ("ratio_tf32", "{:.2f}"),
    ("ours_bf16_s", "{:.6f}"),
    ("torch_bf16_s", "{:.6f}"),
    ("ratio_bf16", "{:.2f}"),
    ("floor_s", "{:.6f}"),
    ("share", "{:.2f}"),
    ("floor_tf32_s", "{:.6f}"),
    ("share_tf32", "{:.2f}"),
    ("predicted_s", "{:.6f}"),
    ("predicted_bf16_s", "{:.6f}"),
]
OURS = {"ours_tf32": "tensor", "ours_bf16": "tensor_bf16"}  # beside fp32: the rungs
NAMES = [("name", "{}"), ("size", "{}")]
COLUMNS = [*NAMES, ("times", "{}"), *TIMES]
COLUMNS += [("naive_s", "{:.6f}"), ("tflops", "{:.2f}"), ("gbs", "{:.0f}")]
STEP_COLUMNS = [*NAMES, *TIMES, ("host_s", "{:.6f}")]
MORE_COLUMNS = [*NAMES, *bench_gpu_steps.COLUMNS]
BLOCK = bench_gpu_steps.BLOCK  # edge of the local maxima's blocks
# how far a layer's results may be off float64, of the largest one; a factor rounded to bf16 is off
# by up to 2^-8, 8 times as far as one in TF32, and so are ours
TOLERANCE = {"ours": 1e-5, "ours_tf32": 2e-3, "ours_bf16": 1.6e-2, "naive": 1e-3, "fp32": 1e-3}
TOLERANCE |= {"tf32": 5e-3, "bf16": 3e-2}


def measure(rounds, only="", graph=False):
    """All rows of the tables whose name contains `only` (dicts). graph: replay steps as CUDA
    graphs, too.
    """
    limits, device = _print_head(), backend.device_name("cuda")
    rows = [row for size in SIZES for row in bench_counts.count_rows(size, limits)]
    rows = [row for row in rows if only in row["name"]]
    for row in progress(rows, "bench"):
        layer, direction = row.pop("layer", None), row.pop("direction", None)
        if layer:
            runs = _layer_runs(layer, direction)
        else:
            runs = bench_gpu_steps.runs(row["name"], graph)
        times = {side: device_seconds(run, rounds, hold=bool(layer)) for side, run in runs.items()}
        row |= {"device": device, "threads": None, "ours_s": times["ours"]}
        row |= {f"{side}_s": times.get(side) for side in (*OURS, "ours_graph", "naive")}
        row |= _beside_torch(times)
        row |= {"tflops": row["flop"] / times["ours"] / 1e12}
        row |= {"gbs": row["bytes"] / times["ours"] / 1e9, "share": row["floor_s"] / times["ours"]}
        in_tf32 = row["ours_tf32_s"]
        row["share_tf32"] = row["floor_tf32_s"] / in_tf32 if in_tf32 else None
        if not layer:
            row |= bench_gpu_steps.beside_the_time(row, runs)
        _free_memory()
    return rows


def _print_head():
    """Say when, on what and with what versions; returns the device's limits."""
    print(datetime.date.today())
    bench_check.print_installation()
    if bench_torch_gpu:
        print(bench_torch_gpu.versions())
    limits = device_limits()
    print(f"multiply-adds {limits[0] / 1e12:.1f} TFLOP/s, copy {limits[1] / 1e12:.2f} TB/s")
    return limits


def _beside_torch(times):
    """PyTorch's fastest time of each precision, what it was, and our times over them."""
    row = {}
    ours = {"fp32": times["ours"], "tf32": times.get("ours_tf32")}
    ours["bf16"] = min(times[side] for side in ("ours", *OURS) if side in times)
    for mode in ours:
        theirs = {side: time for side, time in times.items() if side.startswith(mode)}
        by = min(theirs, key=theirs.get, default=None)
        name = "" if mode == "fp32" else f"_{mode}"
        row |= {f"torch{name}_s": theirs.get(by), f"torch{name}_by": by}
        row[f"ratio{name}"] = ours[mode] / theirs[by] if by and ours[mode] else None
    return row


def _free_memory():
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    if bench_torch_gpu:
        bench_torch_gpu.torch.cuda.empty_cache()


def device_seconds(run, rounds, hold=False):
    """Median seconds of `run()` on the GPU, between two events on the stream it works on.

    hold: keep the GPU busy for a millisecond or more before the first event, in which the host
    queues all of `run()`; else the GPU may wait for the host, and that counts.
    """
    import cupy

    for _ in range(3):
        run()
    times = []
    for _ in range(rounds):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        if hold:
            _multiply_add(2**20, 4096)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, stop) / 1000)
    return float(np.median(times))


def _multiply_add(threads, steps):
    y = backend.to_device(np.empty(threads, np.float32), "cuda")
    backend.launch("bench/bench", "multiply_add", threads, (y, 0.5, 1.0, steps, threads))


def device_limits(elements=2**28, steps=4096):
    """(FLOP/s, bytes/s) that this GPU reaches in float32 with nothing else to do."""
    rng = np.random.default_rng(0)
    x = backend.to_device(rng.random(elements, np.float32), "cuda")
    xp = backend.array_module(x)
    y, threads = xp.empty_like(x), min(elements, 2**20)
    copy = partial(backend.launch, "bench/bench", "copy", threads, (x, y, x.size))
    args = y, 0.5, 1.0, steps, threads
    multiply_add = partial(backend.launch, "bench/bench", "multiply_add", threads, args)
    flop = 2 * 8 * steps * threads
    return flop / device_seconds(multiply_add, 9), 2 * x.nbytes / device_seconds(copy, 9)


def _convolve(a, kernel="tiled"):
    if a.coarse is not None:
        return folded.upsample_conv3d_forward(a.x, a.coarse, a.w, a.b, kernel)
    return conv3d_cuda.conv3d_forward_cuda(a.x, a.w, a.b, kernel)


def _convolve_backward(a, kernel="tiled"):
    if a.coarse is not None:
        return folded.upsample_conv3d_backward(a.dy, a.x, a.coarse, a.w, kernel)
    return conv3d_cuda.conv3d_backward_cuda(a.dy, a.x, a.w, a.x.shape[1] > 1, kernel)


# what each kind of layer runs; `a` holds dy, x, w, b, coarse, winner (None where there is none)
CONVOLUTIONS = ("conv3d", "upconv3d")
FORWARD = {
    "conv3d": _convolve,
    "upconv3d": _convolve,
    "naive": lambda a: _convolve(a, "naive"),
    "tensor": lambda a: _convolve(a, "tensor"),
    "tensor_bf16": lambda a: _convolve(a, "tensor_bf16"),
    "relu": lambda a: relu.relu_forward(a.x),
    "maxpool3d": lambda a: maxpool3d.maxpool3d_forward(a.x),
    "localmax": lambda a: globalpool3d.localmax_forward(a.x, BLOCK),
}
BACKWARD = {
    "conv3d": _convolve_backward,
    "upconv3d": _convolve_backward,
    "naive": lambda a: _convolve_backward(a, "naive"),
    "tensor": lambda a: _convolve_backward(a, "tensor"),
    "tensor_bf16": lambda a: _convolve_backward(a, "tensor_bf16"),
    "relu": lambda a: relu.relu_backward(a.dy, a.x),
    "maxpool3d": lambda a: maxpool3d.maxpool3d_backward(a.dy, a.winner),
    "localmax": lambda a: globalpool3d.localmax_backward(a.dy, a.winner, a.x.shape, BLOCK),
}


def _layer_runs(layer, direction):
    """{side: function} for one layer in one direction, after comparing ours with float64."""
    calls, arrays = {"forward": FORWARD, "backward": BACKWARD}[direction], _layer_arrays(layer)
    ours, naive = calls[layer.kind], calls["naive"]
    host = {name: None if a is None else backend.to_host(a) for name, a in vars(arrays).items()}
    if layer.kind in CONVOLUTIONS:  # numpy would take minutes; --check compares with it
        reference = naive(_in_float64(vars(arrays)))
    else:
        reference = ours(_in_float64(host))
    runs = {"ours": partial(ours, arrays)}
    if layer.kind in CONVOLUTIONS:
        runs |= {side: partial(calls[rung], arrays) for side, rung in OURS.items()}
        runs["naive"] = partial(naive, arrays)
    if bench_torch_gpu:
        inputs = [host[name] for name in ("dy", "x", "w", "b", "coarse")]
        runs |= bench_torch_gpu.layer_runs(layer.kind, direction, inputs, BLOCK)
    what = f"{layer.name} {direction}"
    # PyTorch gives no winners, and in bf16 others, so only its convolutions are compared
    compared = [side for side in runs if side in TOLERANCE or layer.kind in CONVOLUTIONS]
    return bench_gpu_steps.checked(what, runs, compared, reference, TOLERANCE)


def _in_float64(arrays):
    return SimpleNamespace(
        **{
            name: a.astype(np.float64) if a is not None and a.dtype.kind == "f" else a
            for name, a in arrays.items()
        }
    )


def _layer_arrays(layer):
    """What the layer works on, fresh random numbers on the GPU: dy, x, w, b, coarse, winner."""
    rng = np.random.default_rng()

    def random(*shape):
        return backend.to_device(rng.standard_normal(shape, np.float32), "cuda")

    kind, c_in, c_out, (n, d, h, w), c_coarse = layer
    half, a = (d // 2, h // 2, w // 2), SimpleNamespace(w=None, b=None, coarse=None, winner=None)
    a.x, a.dy = random(n, c_in, d, h, w), random(n, c_out, d, h, w)
    if kind in CONVOLUTIONS:
        a.w, a.b = random(c_out, c_in + c_coarse, 3, 3, 3), random(c_out)
    if kind == "upconv3d":
        a.coarse = random(n, c_coarse, *half)
    elif kind == "maxpool3d":
        a.dy, a.winner = random(n, c_in, *half), maxpool3d.maxpool3d_forward(a.x)[1]
    elif kind == "localmax":
        a.dy, a.winner = random(n, c_in), globalpool3d.localmax_forward(a.x, BLOCK)[1]
    return a
