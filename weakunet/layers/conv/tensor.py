"""The 3x3x3 convolution on a GPU's tensor cores: how gpu.py's rung 'tensor' is launched.

A tensor core multiplies floats that are rounded to TF32, 10 bits of mantissa, and adds up in
float32. A result is off by about 3e-4 of the largest one (its own factors' rounding, not a
mistake): enough to train with, too much for a gradient check. See tensor.cu. What reads an
upsampled tensor has kernels of its own: folded_tensor.py.

The rung 'tensor_bf16' is the same with two factors in bfloat16, 7 bits of mantissa, in the place of
one: half as many instructions of the tensor cores, results off by 8 times as much (tensor_bf16.cu).
"""

import math

import numpy as np

from weakunet.gpu import backend, cuda_source

FORWARD, WEIGHT = "layers/conv/tensor", "layers/conv/tensor_weight"
BF16 = "layers/conv/tensor_bf16"  # all kernels of these two and of folded_tensor.py
SIZES = cuda_source.constants(FORWARD) | cuda_source.constants(WEIGHT)
PAIR = {"tensor": 1, "tensor_bf16": 2}  # rung -> factors in the place of a float
# The weight gradient is shared out over about so many blocks, on every GPU the same: the number
# decides the order of the additions. (An H100 or H200 has room for 264 at a time.)
BLOCKS = 528


def runs(x, w):
    """True if it takes this convolution: 3x3x3, 8 or more input channels, float32, sm_80 or newer.

    Not so the first layer (one channel would leave 7/8 of a tensor core idle), gradient checks in
    float64, and cards older than Ampere.
    """
    fits = w.shape[-1] == 3 and x.shape[1] >= SIZES["CHANNELS"] and x.dtype == np.float32
    return fits and backend.compute_capability() >= SIZES["MIN_SM"]


def launch(rung, file, kernel, threads, args):
    """backend.launch() of a kernel of one of this rung's files."""
    backend.launch(BF16 if PAIR[rung] == 2 else file, kernel, threads, args)


def forward(rung, x, w, b, relu=False):
    """y (N, C_out, D, H, W), or max(y, 0) with `relu`, of x (N, C_in, D, H, W), w and b."""
    return _convolve(rung, x, _arranged(rung, w), len(w), b=b, relu=relu)


def backward_input(rung, dy, w, mask=None):
    """dx (N, C_in, D, H, W) of dy (N, C_out, D, H, W) and w: a convolution of dy, w flipped.

    mask: of dx's shape; where it is not positive, dx is 0 (the backward of a ReLU with this output)
    """
    return _convolve(rung, dy, _arranged(rung, w, backward=True), w.shape[1], mask=mask)


def backward_weight(rung, dy, x):
    """parts (S, C_out, C_in, 3, 3, 3), which add up to dw, of dy and x."""
    (scans, c_in, *volume), c_out = x.shape, dy.shape[1]
    grid = _ceil(c_in, SIZES["DW_GROUPS"] * SIZES["CHANNELS"]), _ceil(c_out, SIZES["DW_MAPS"])
    tiles = scans * tiles_of(volume, "DW", PAIR[rung])
    count = max(1, min(tiles, BLOCKS // (grid[0] * grid[1])))
    parts = backend.array_module(x).empty((count, c_out, c_in, 3, 3, 3), x.dtype)
    threads = (count, *grid), (SIZES["DW_THREADS"],)
    args = dy, x, parts, scans, c_in, c_out, *volume
    launch(rung, WEIGHT, "conv3d_tensor_backward_weight", threads, args)
    return parts


def _arranged(rung, w, backward=False):
    """The weights in the order in which the kernel reads them."""
    c_in, c_out = (len(w), w.shape[1]) if backward else (w.shape[1], len(w))
    groups = _ceil(c_out, SIZES["MAPS"]), _ceil(c_in, SIZES["CHANNELS"] * PAIR[rung])
    arranged = backend.array_module(w).empty((*groups, 27, SIZES["FRAGMENTS"], 4), w.dtype)
    args = w, arranged, c_in, c_out, backward, arranged.size
    launch(rung, FORWARD, "conv3d_tensor_weights", arranged.size, args)
    return arranged


def _convolve(rung, x, arranged, c_out, b=None, relu=False, mask=None):
    (scans, c_in, *volume), groups = x.shape, len(arranged)
    y = backend.array_module(x).empty((scans, c_out, *volume), x.dtype)
    bias, masked = b is not None, mask is not None
    arrays = x, arranged, b if bias else x, mask if masked else x, y
    args = *arrays, c_in, c_out, *volume, bias, relu, masked
    threads = (tiles_of(volume, "TILE"), groups, scans), (SIZES["THREADS"],)
    launch(rung, FORWARD, "conv3d_tensor", threads, args)
    return y


def tiles_of(volume, name, pair=1, sizes=SIZES):
    """Tiles (name_Z, name_Y, name_X of `sizes`, `pair` times as deep) of a volume (D, H, W)."""
    tile = [sizes[f"{name}_Z"] * pair, sizes[f"{name}_Y"], sizes[f"{name}_X"]]
    return math.prod(_ceil(size, part) for size, part in zip(volume, tile, strict=True))


def _ceil(size, part):
    return -(-size // part)
