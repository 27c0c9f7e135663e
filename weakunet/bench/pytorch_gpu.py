"""PyTorch's side of the GPU bench: layers, steps and predictions in three precisions (cuDNN).

Every run is given in all the ways that could be PyTorch's fastest, by name: 'tf32 channels_last
compiled' is in TF32, with channels last in memory, through torch.compile with CUDA graphs.
"""

import itertools

import torch
from torch.nn import functional

from weakunet.bench import pytorch as bench_torch
from weakunet.bench.pytorch import LAYOUTS

DEVICE = "cuda"
MODES = ("fp32", "tf32", "bf16")
COMPILE = {"mode": "reduce-overhead"}  # torch.compile's name for the use of CUDA graphs


def versions():
    """One line that says what is installed."""
    cudnn = torch.backends.cudnn.version()
    return f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}"


def _use(mode):
    """fp32 means without TF32; cuDNN tries its algorithms once per shape and keeps the fastest."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = mode == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"


def _in_mode(mode, function):
    def run():
        _use(mode)
        return function()

    return run


def layer_runs(kind, direction, arrays, block):
    """{name: function} for one layer. arrays: dy, x, w, b, coarse as numpy arrays (None where the
    layer has none); block: edge of the local maxima's blocks.
    """
    return {
        f"{mode} {layout}": _in_mode(mode, _layer_run(kind, direction, arrays, block, mode, layout))
        for mode, layout in itertools.product(MODES, LAYOUTS)
    }


def _layer_run(kind, direction, arrays, block, mode, layout):
    dtype = torch.bfloat16 if mode == "bf16" else torch.float32
    tensors = [
        None
        if a is None
        else torch.from_numpy(a)
        .to(DEVICE, dtype)
        .to(memory_format=LAYOUTS[layout] if a.ndim == 5 else torch.contiguous_format)
        for a in arrays
    ]
    dy, x, w, b, coarse = tensors

    def upconvolve():
        up = functional.interpolate(coarse, scale_factor=2, mode="nearest")
        return functional.conv3d(torch.cat((x, up), dim=1), w, b, padding=1)

    forward = {
        "conv3d": lambda: functional.conv3d(x, w, b, padding=1),
        "relu": lambda: functional.relu(x),
        "maxpool3d": lambda: functional.max_pool3d(x, 2),
        "upconv3d": upconvolve,
        "localmax": lambda: functional.max_pool3d(x, block, ceil_mode=True).mean(dim=(2, 3, 4)),
    }[kind]
    if direction == "forward":
        return forward
    _use(mode)
    first_convolution = kind == "conv3d" and x.shape[1] == 1
    inputs = [t for t in (x, w, b, coarse) if t is not None and not (t is x and first_convolution)]
    for tensor in inputs:
        tensor.requires_grad_()
    y = forward()
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def network_runs(what, model, scans, counts):
    """{name: function} for one 'step' or one 'predict' of `model`, a WeakUNet on the CPU; it
    returns the predicted counts (N,), and for 'predict' the heatmaps too, as a tuple.

    torch.compile chooses the layout inside by itself, so it is given one of them.
    """
    found = {}
    for mode, layout, compiled in itertools.product(MODES, LAYOUTS, ("", " compiled")):
        if compiled and layout == "default":
            continue
        options = {"layout": LAYOUTS[layout], "device": DEVICE}
        options["autocast"] = torch.bfloat16 if mode == "bf16" else None
        options["compiled"] = COMPILE if compiled else None
        if what == "predict":
            run = bench_torch.predict_run(model, scans, **options)
        else:
            run = bench_torch.step_run(model, scans, counts, **options)
        found[f"{mode} {layout}{compiled}"] = _in_mode(mode, run)
    return found


def peak_mb(run):
    """Peak MB of GPU memory that PyTorch holds while `run` runs, beyond what it held before."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
