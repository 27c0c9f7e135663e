"""The same network in PyTorch, only to be timed beside ours (nothing else in weakunet needs it)."""

import torch
from torch.nn import functional

from weakunet.model import INPUT_CENTRE, INPUT_GAIN

# PyTorch's CPU convolutions take a different path (oneDNN's) when channels come last in memory.
LAYOUTS = {"default": torch.contiguous_format, "channels_last": torch.channels_last_3d}


def convolution_run(direction, dy, x, w, b, needs_dx, layout):
    """A function that runs one 3x3x3 convolution, forward or backward, on copies of the arrays."""
    dy, x, w = (torch.from_numpy(array).to(memory_format=layout) for array in (dy, x, w))
    b = torch.from_numpy(b)
    if direction == "forward":
        return lambda: torch.conv3d(x, w, b, padding=1)
    stride = padding = dilation = [1, 1, 1]
    rest = [len(b)], stride, padding, dilation, False, [0, 0, 0], 1, [needs_dx, True, True]
    return lambda: torch.ops.aten.convolution_backward(dy, x, w, *rest)


def step_run(model, scans, counts, layout, device="cpu", autocast=None, compiled=None):
    """A function that runs one training step from the weights of `model`, a WeakUNet.

    scans (N, 1, D, H, W) and counts (N,) are numpy arrays; the function returns the counts (N,)
    that were predicted before the update, as a tuple of one, and keeps its weights from call to
    call. autocast: the dtype of the forward pass under autocast, or None. compiled: options of
    torch.compile, or None to run as written.
    """
    params = parameters(model, layout, device)
    optimizer = torch.optim.Adadelta(params.values(), lr=1.0, rho=0.95, eps=1e-6)
    scans = torch.from_numpy(scans).to(device, memory_format=layout)
    counts = torch.from_numpy(counts).to(device)

    def forward(params, scans):
        return _counts(params, features(params, model.settings, scans), model.settings)

    forward = forward if compiled is None else torch.compile(forward, **compiled)

    def step():
        optimizer.zero_grad()
        with torch.autocast(device, autocast, enabled=autocast is not None):
            predicted = forward(params, scans)
        ((predicted.float() - counts) ** 2).mean().backward()
        optimizer.step()
        return (predicted.detach(),)

    return step


def predict_run(model, scans, layout, device="cpu", autocast=None, compiled=None):
    """A function that returns the counts (N,) and heatmaps (N, 1, D, H, W) of `scans`."""
    params = parameters(model, layout, device)
    scans = torch.from_numpy(scans).to(device, memory_format=layout)

    def forward(params, scans):
        maps = features(params, model.settings, scans)
        heatmap = functional.conv3d(maps, params["linear.w"].view(1, -1, 1, 1, 1))
        return _counts(params, maps, model.settings), heatmap

    forward = forward if compiled is None else torch.compile(forward, **compiled)

    def predict():
        with torch.no_grad(), torch.autocast(device, autocast, enabled=autocast is not None):
            return forward(params, scans)

    return predict


def parameters(model, layout, device="cpu"):
    """name -> tensor: copies of the weights of `model`, a WeakUNet."""
    params = {}
    for name, value in model.params.items():
        tensor = torch.from_numpy(value.copy()).to(device)
        tensor = tensor.to(memory_format=layout) if value.ndim == 5 else tensor
        params[name] = tensor.requires_grad_()
    return params


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
        h = functional.interpolate(h, scale_factor=2, mode="nearest")
        h = level(torch.cat((skips.pop(), h), dim=1), f"decoder{i}")
    return h


def _counts(params, maps, settings):
    pooled = functional.max_pool3d(maps, settings["block"], ceil_mode=True).mean(dim=(2, 3, 4))
    return pooled @ params["linear.w"] + params["linear.b"]
