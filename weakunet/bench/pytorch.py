"""The same convolutions and network in PyTorch, only to be timed beside ours.

Every run is given in all the ways that could be PyTorch's fastest, by name: 'torch tf32
channels_last' is in TF32 with channels last in memory; 'compiled' goes through torch.compile with
CUDA graphs.
"""

import itertools
import math

import torch
from torch.nn import functional

from weakunet.model import INPUT_CENTRE, INPUT_GAIN
from weakunet.training.settings import Settings

LAYOUTS = {"default": torch.contiguous_format, "channels_last": torch.channels_last_3d}
COMPILE = {"mode": "reduce-overhead"}  # torch.compile's name for the use of CUDA graphs


def versions():
    """One line that says what is installed."""
    cudnn = torch.backends.cudnn.version()
    return f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}"


def _in_mode(mode, function):
    """`function` run in a precision; fp32 means without TF32."""

    def run():
        torch.backends.cudnn.benchmark = True  # tries its algorithms once per shape
        torch.backends.cudnn.allow_tf32 = mode == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"
        return function()

    return run


def convolution_runs(direction, arrays, modes, device):
    """{side: function} for a 3x3x3 convolution of arrays: dy, x, coarse or None, w, b, in numpy.

    coarse is upsampled and put behind x first.
    """
    found = {}
    for mode, layout in itertools.product(modes, LAYOUTS):
        run = _convolution(direction, arrays, mode, LAYOUTS[layout], device)
        found[f"torch {mode} {layout}"] = _in_mode(mode, run)
    return found


def _convolution(direction, arrays, mode, layout, device):
    dtype = torch.bfloat16 if mode == "bf16" else torch.float32
    tensors = (a if a is None else torch.from_numpy(a).to(device, dtype) for a in arrays)
    dy, x, coarse, w, b = (_in_layout(tensor, layout) for tensor in tensors)

    def forward():
        joined = x if coarse is None else torch.cat((x, _upsampled(coarse)), dim=1)
        return functional.conv3d(joined, w, b, padding=1)

    if direction == "forward":
        return forward
    # a network's first convolution needs no dx
    inputs = [t for t in (x if x.shape[1] > 1 else None, coarse, w, b) if t is not None]
    for tensor in inputs:
        tensor.requires_grad_()
    y = _in_mode(mode, forward)()
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def _upsampled(h):
    return functional.interpolate(h, scale_factor=2, mode="nearest")


def _in_layout(tensor, layout):
    is_volume = tensor is not None and tensor.ndim == 5
    return tensor.to(memory_format=layout) if is_volume else tensor


def network_runs(what, model, scans, counts, modes, device):
    """{side: function} for one 'step' or 'predict' of `model` (see network_run).

    torch.compile is tried on a GPU, with one layout: inside it chooses its own.
    """
    found = {}
    for mode, layout, compiled in itertools.product(modes, LAYOUTS, ("", " compiled")):
        if compiled and (len(modes) == 1 or layout != "default"):
            continue
        how = LAYOUTS[layout], device, mode, COMPILE if compiled else None
        run = network_run(what, model, scans, counts, *how)
        found[f"torch {mode} {layout}{compiled}"] = _in_mode(mode, run)
    return found


def network_run(what, model, scans, counts, layout, device="cpu", mode="fp32", compiled=None):
    """A function that runs one 'step' or 'predict' of `model`, a WeakUNet on the CPU.

    A step returns the counts (N,) before its update and all gradients, a prediction the counts and
    heatmaps (N, 1, D, H, W). scans (N, 1, D, H, W) and counts (N,) are numpy arrays. compiled:
    options of torch.compile, or None.
    """
    tensors = {name: torch.from_numpy(w.copy()).to(device) for name, w in model.params.items()}
    params = {name: _in_layout(w, layout).requires_grad_() for name, w in tensors.items()}
    scans = torch.from_numpy(scans).to(device, memory_format=layout)
    counts = torch.from_numpy(counts).to(device)

    def forward(params, scans):
        maps, w = features(params, model.settings, scans), params["linear.w"]
        predicted = pool(maps, model.settings) @ w + params["linear.b"]
        if what == "step":
            return predicted
        return predicted, functional.conv3d(maps, w.view(1, -1, 1, 1, 1))

    forward = forward if compiled is None else torch.compile(forward, **compiled)
    optimizer = torch.optim.Adadelta(params.values(), Settings.lr, Settings.rho, Settings.eps)

    def run():
        optimizer.zero_grad()
        with (
            torch.set_grad_enabled(what == "step"),
            torch.autocast(device, torch.bfloat16, enabled=mode == "bf16"),
        ):
            predicted = forward(params, scans)
        if what == "predict":
            return predicted
        ((predicted.float() - counts) ** 2).mean().backward()
        optimizer.step()
        return (predicted.detach(), *(tensor.grad for tensor in params.values()))

    return run


def features(params, settings, scans):
    """The last feature maps (N, C, D, H, W) of scans (N, 1, D, H, W)."""

    def level(h, name):
        for j in range(settings["convs_per_level"]):
            conv = f"{name}.conv{j}"
            h = functional.conv3d(h, params[f"{conv}.w"], params[f"{conv}.b"], padding=1)
            h = functional.relu(h)
        return h

    h, skips, last = (scans - INPUT_CENTRE) * INPUT_GAIN, [], len(settings["channels"]) - 1
    for i in range(last):
        skips.append(level(h, f"encoder{i}"))
        h = functional.max_pool3d(skips[-1], 2)
    h = level(h, f"encoder{last}")
    for i in reversed(range(last)):
        h = level(torch.cat((skips.pop(), _upsampled(h)), dim=1), f"decoder{i}")
    return h


def pool(maps, settings):
    """(N, C): the sum of local maxima, as layers/globalpool3d.py has it, of scans without a 0.

    Where all of a scan is ROI, nothing is masked either: PyTorch is spared that.
    """
    k, overlap = settings["block"], 2 if settings["region"] else 1
    blocks = math.prod(-(-size // k) for size in maps.shape[2:])
    maxima = functional.max_pool3d(maps, k, k // overlap, k - k // overlap, ceil_mode=True)
    return maxima.sum(dim=(2, 3, 4)) / (blocks * overlap**3)


def peak_mb(run):
    """Peak MB of GPU memory that PyTorch holds while `run` runs, beyond what it held before."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
