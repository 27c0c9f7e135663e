"""The GPU half of `python -m weakunet.bench`: our kernels beside PyTorch's (cuDNN) in one run.

For every distinct layer of the default's and the paper's network, and for whole training steps and
predictions: the result is first compared with a float64 reference on fresh random data, then timed
between device events, after a warm-up, as the median over rounds. Ours run in fp32 (`ours_s`) and
with convolutions in TF32 (`ours_tf32_s`; `ratio_tf32` is over PyTorch's in TF32). PyTorch (where it
is installed) runs in fp32 without TF32, in fp32 with TF32, and in bf16 with channels_last_3d; a
whole step in bf16 is under autocast. `share` is the floor by this device's own limits over our
time; the limits are a large copy's speed and the multiply-add rate, both measured in the same run.
`predicted_s` is what bench_predict.py said beforehand of `ours_tf32_s`, for an H200.
Small layers stay in the GPU's cache from call to call, on both sides.
"""

from functools import partial
from types import SimpleNamespace

import numpy as np

from weakunet import backend, bench_counts
from weakunet.bench_counts import SIZES
from weakunet.cli import progress
from weakunet.layers import conv3d_cuda, globalpool3d, maxpool3d, relu, upconv3d
from weakunet.loss import mse_backward
from weakunet.model import WeakUNet
from weakunet.optim import Adadelta

try:
    from weakunet import bench_torch_gpu
except ImportError:
    bench_torch_gpu = None

COLUMNS = [
    ("name", "{}"),
    ("size", "{}"),
    ("times", "{}"),
    ("ours_s", "{:.6f}"),
    ("ours_tf32_s", "{:.6f}"),
    ("naive_s", "{:.6f}"),
    ("torch_s", "{:.6f}"),
    ("torch_tf32_s", "{:.6f}"),
    ("torch_bf16_s", "{:.6f}"),
    ("ratio", "{:.2f}"),
    ("ratio_tf32", "{:.2f}"),
    ("tflops", "{:.2f}"),
    ("gbs", "{:.0f}"),
    ("floor_s", "{:.6f}"),
    ("predicted_s", "{:.6f}"),
    ("share", "{:.2f}"),
    ("ours_mb", "{:.0f}"),
    ("torch_mb", "{:.0f}"),
]
DTYPES = (np.float32, np.float64)
BLOCK = 8  # edge of the local maxima's blocks


def measure(rounds, only=""):
    """All rows of the table whose name contains `only` (dicts; `layer` and `direction` apart)."""
    limits = device_limits()
    device = backend.device_name("cuda")
    print(
        f"{device}: multiply-adds {limits[0] / 1e12:.1f} TFLOP/s, copy {limits[1] / 1e12:.2f} TB/s"
    )
    rows = [row for size in SIZES for row in bench_counts.count_rows(size, limits)]
    rows = [row for row in rows if only in row["name"]]
    for row in progress(rows, "bench"):
        layer, direction = row.pop("layer", None), row.pop("direction", None)
        runs = _layer_runs(layer, direction) if layer else _network_runs(row["name"])
        times = {side: device_seconds(run, rounds) for side, run in runs.items()}
        ours, fp32 = times.pop("ours"), times.get("fp32")
        row |= {"device": device, "threads": None, "ours_s": ours, "torch_s": fp32}
        row |= {f"torch_{mode}_s": times.get(mode) for mode in ("tf32", "bf16")}
        row |= {"ratio": ours / fp32 if fp32 else None, "ratio_tf32": None}
        row["ours_tf32_s"] = times.get("ours_tf32")
        if row["ours_tf32_s"] and row["torch_tf32_s"]:
            row["ratio_tf32"] = row["ours_tf32_s"] / row["torch_tf32_s"]
        row |= {"tflops": row["flop"] / ours / 1e12, "gbs": row["bytes"] / ours / 1e9}
        row["share"] = row["floor_s"] / ours
        row |= {"naive_s": times.get("naive")} | (_memory(runs) if not layer else {})
        _free_memory()
    return rows


def _free_memory():
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    if bench_torch_gpu:
        bench_torch_gpu.torch.cuda.empty_cache()


def device_seconds(run, rounds):
    """Median seconds of `run()` on the GPU, between two events on the stream it works on."""
    import cupy

    for _ in range(3):
        run()
    times = []
    for _ in range(rounds):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, stop) / 1000)
    return float(np.median(times))


def device_limits(elements=2**28, steps=4096):
    """(FLOP/s, bytes/s) that this GPU reaches in float32 with nothing else to do."""
    rng = np.random.default_rng(0)
    x = backend.to_device(rng.random(elements, np.float32), "cuda")
    xp = backend.array_module(x)
    y, threads = xp.empty_like(x), min(elements, 2**20)
    copy = partial(backend.launch, "bench", "copy", threads, (x, y, x.size))
    args = y, 0.5, 1.0, steps, threads
    multiply_add = partial(backend.launch, "bench", "multiply_add", threads, args)
    flop = 2 * 8 * steps * threads
    return flop / device_seconds(multiply_add, 9), 2 * x.nbytes / device_seconds(copy, 9)


def _convolve(a, kernel="tiled"):
    if a.coarse is not None:
        return upconv3d.upconv3d_forward(a.x, a.coarse, a.w, a.b, kernel)
    return conv3d_cuda.conv3d_forward_cuda(a.x, a.w, a.b, kernel)


def _convolve_backward(a, kernel="tiled"):
    if a.coarse is not None:
        return upconv3d.upconv3d_backward(a.dy, a.x, a.coarse, a.w, kernel)
    return conv3d_cuda.conv3d_backward_cuda(a.dy, a.x, a.w, a.x.shape[1] > 1, kernel)


# what each kind of layer runs; `a` holds dy, x, w, b, coarse, winner (None where there is none)
CONVOLUTIONS = ("conv3d", "upconv3d")
FORWARD = {
    "conv3d": _convolve,
    "upconv3d": _convolve,
    "naive": lambda a: _convolve(a, "naive"),
    "tensor": lambda a: _convolve(a, "tensor"),
    "relu": lambda a: relu.relu_forward(a.x),
    "maxpool3d": lambda a: maxpool3d.maxpool3d_forward(a.x),
    "localmax": lambda a: globalpool3d.localmax_forward(a.x, BLOCK),
}
BACKWARD = {
    "conv3d": _convolve_backward,
    "upconv3d": _convolve_backward,
    "naive": lambda a: _convolve_backward(a, "naive"),
    "tensor": lambda a: _convolve_backward(a, "tensor"),
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
    tolerance = {"ours": 1e-5, "ours_tf32": 2e-3}
    if layer.kind in CONVOLUTIONS:
        runs |= {"ours_tf32": partial(calls["tensor"], arrays), "naive": partial(naive, arrays)}
    for side in runs.keys() & tolerance.keys():
        for value, expected in zip(_as_tuple(runs[side]()), _as_tuple(reference), strict=True):
            if value is not None:
                _require_close(f"{layer.name} {direction}", value, expected, tolerance[side])
    if bench_torch_gpu:
        inputs = [host[name] for name in ("dy", "x", "w", "b", "coarse")]
        for mode in bench_torch_gpu.MODES:
            runs[mode] = bench_torch_gpu.layer_run(layer.kind, direction, inputs, BLOCK, mode)
    return runs


def _in_float64(arrays):
    return SimpleNamespace(
        **{
            name: a.astype(np.float64) if a is not None and a.dtype.kind == "f" else a
            for name, a in arrays.items()
        }
    )


def _as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def _require_close(what, value, reference, tolerance):
    value, reference = backend.to_host(value), backend.to_host(reference)
    error = np.abs(value - reference).max() / max(np.abs(reference).max(), 1e-30)
    if not error <= tolerance:
        raise AssertionError(f"{what}: off by {error:.1e} of the float64 reference's maximum")


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


def _network_runs(name):
    """{side: function} for a whole step or prediction ('step:paper'), after a check in float64."""
    what, _, size = name.partition(":")
    network, shape = SIZES[size]
    rng = np.random.default_rng(0)
    scans, counts = rng.random(shape, np.float32), rng.integers(0, 10, shape[0]).astype(np.float32)
    ours = {dtype: _network_run(what, network, scans, counts, dtype) for dtype in DTYPES}
    exact = ours[np.float64]()
    for value, reference in zip(ours[np.float32](), exact, strict=True):
        _require_close(name, value, reference, 1e-4)
    runs = {"ours": ours[np.float32]}
    runs["ours_tf32"] = _network_run(what, network, scans, counts, np.float32, "tf32")
    for value, reference in zip(runs["ours_tf32"](), exact, strict=True):
        _require_close(f"{name} in TF32", value, reference, 2e-2)
    if bench_torch_gpu:
        model = _model(network, np.float32)
        for mode in bench_torch_gpu.MODES:
            runs[mode] = bench_torch_gpu.network_run(what, model, scans, counts, mode)
        theirs = runs["fp32"]()[0].detach().cpu().numpy()
        _require_close(f"PyTorch, {name}", theirs, exact[0], 1e-3)
    return runs


def _model(network, dtype):
    return WeakUNet(**network, rng=np.random.default_rng(1), dtype=dtype)


def _network_run(what, network, scans, counts, dtype, precision="fp32"):
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


def _memory(runs):
    """Peak MB of GPU memory of our run and of PyTorch's in fp32."""
    import cupy

    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.used_bytes()
    runs["ours"]()
    row = {"ours_mb": (pool.total_bytes() - before) / 2**20, "torch_mb": None}
    if "fp32" in runs:
        row["torch_mb"] = bench_torch_gpu.peak_mb(runs["fp32"])
    return row
