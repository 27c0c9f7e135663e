"""PyTorch's side of the GPU bench: layers, steps and predictions in three precisions (cuDNN)."""

import torch
from torch.nn import functional

from weakunet import bench_torch

DEVICE = "cuda"
MODES = ("fp32", "tf32", "bf16")


def _use(mode):
    """fp32 means without TF32; cuDNN tries its algorithms once per shape and keeps the fastest."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = mode == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"


def _layout(mode):
    return torch.channels_last_3d if mode == "bf16" else torch.contiguous_format


def layer_run(kind, direction, arrays, block, mode):
    """A function that runs one layer. arrays: dy, x, w, b, coarse as numpy arrays (None where the
    layer has none); block: edge of the local maxima's blocks.
    """
    dtype = torch.bfloat16 if mode == "bf16" else torch.float32
    tensors = [
        None
        if a is None
        else torch.from_numpy(a)
        .to(DEVICE, dtype)
        .to(memory_format=_layout(mode) if a.ndim == 5 else torch.contiguous_format)
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
        return lambda: _run(forward, mode)
    _use(mode)
    first_convolution = kind == "conv3d" and x.shape[1] == 1
    inputs = [t for t in (x, w, b, coarse) if t is not None and not (t is x and first_convolution)]
    for tensor in inputs:
        tensor.requires_grad_()
    y = forward()
    return lambda: _run(lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True), mode)


def _run(function, mode):
    _use(mode)
    return function()


def network_run(what, model, scans, counts, mode):
    """A function that runs one 'step' or one 'predict' of `model`, a WeakUNet on the CPU; it
    returns the predicted counts (N,), and for 'predict' the heatmaps too, as numpy arrays' tensors.
    """
    settings = {"layout": _layout(mode), "device": DEVICE}
    settings["autocast"] = torch.bfloat16 if mode == "bf16" else None
    if what == "predict":
        predict = bench_torch.predict_run(model, scans, **settings)
        return lambda: _run(predict, mode)
    step = bench_torch.step_run(model, scans, counts, **settings)
    return lambda: (_run(step, mode),)


def peak_mb(run):
    """Peak MB of GPU memory that PyTorch holds while `run` runs, beyond what it held before."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
