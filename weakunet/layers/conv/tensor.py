"""Convolutions on a GPU's tensor cores: how tensor.cu and folded.cu are launched.

The rung 'tensor' multiplies floats rounded to TF32 (10 bits of mantissa) and adds in float32. A
result is off by about 3e-4 of the largest one, from rounding its factors: enough to train with, too
much for a gradient check. The rung 'tensor_bf16' holds two factors in bfloat16 (7 bits) in the
place of one: half as many tensor instructions, results off by 8 times as much.
"""

import math

import numpy as np

from weakunet.gpu import backend, cuda_source

TENSOR, FOLDED = "layers/conv/tensor", "layers/conv/folded"
BF16 = "layers/conv/tensor_bf16"  # all kernels of these two
SIZES = cuda_source.constants(TENSOR) | cuda_source.constants(FOLDED)
PAIR = {"tensor": 1, "tensor_bf16": 2}  # rung -> factors in the place of a float
# The weight gradients are split across about this many blocks, the same number on every GPU,
# because it decides the order of the additions. (An H100 or H200 has room for 264 at a time.)
BLOCKS = 528


def runs(x, w):
    """True if they take this convolution: 3x3x3, 8 or more input channels, float32, sm_80 or newer.

    That leaves out the first layer (one channel would leave 7/8 of a tensor core idle), gradient
    checks in float64, and cards older than Ampere.
    """
    return x.shape[1] >= SIZES["CHANNELS"] and _fits(x, w)


def runs_backward_weight(x, w):
    """True if they take its weight gradient: `runs`, or the first layer, of one input channel."""
    return runs(x, w) or (x.shape[1] == 1 and _fits(x, w))


def _fits(x, w):
    fits = w.shape[-1] == 3 and x.dtype == np.float32
    return fits and backend.compute_capability() >= SIZES["MIN_SM"]


def launch(rung, file, kernel, threads, args):
    """backend.launch() of a kernel of one of this rung's files."""
    backend.launch(BF16 if PAIR[rung] == 2 else file, kernel, threads, args)


def forward(rung, x, w, b, relu=False, inside=None):
    """y (N, C_out, D, H, W) of x (N, C_in, D, H, W), w and b; relu, inside: conv3d_forward_cuda."""
    return _convolve(rung, x, _arranged(rung, w), len(w), b=b, relu=relu, mask=inside)


def backward_input(rung, dy, w, mask=None):
    """dx (N, C_in, D, H, W) of dy (N, C_out, D, H, W) and w: a convolution of dy, w flipped.

    mask: of dx's shape; where it is not positive, dx is 0 (the backward of a ReLU with this output)
    """
    return _convolve(rung, dy, _arranged(rung, w, backward=True), w.shape[1], mask=mask)


def backward_weight(rung, dy, x):
    """parts (S, C_out C_in 27 + C_out) of dy and x, which add up to dw and, behind it, db."""
    (scans, c_in, *volume), c_out = x.shape, dy.shape[1]
    name, kernel, channels = "DW", "conv3d_tensor_backward_weight", (c_in, c_out)
    if c_in == 1:
        name, kernel, channels = "FIRST", "conv3d_tensor_backward_first", (c_out,)
    grid = _ceil(c_in, SIZES["DW_GROUPS"] * SIZES["CHANNELS"]), _ceil(c_out, SIZES["DW_MAPS"])
    tiles = scans * tiles_of(volume, "DW", PAIR[rung])
    count = max(1, min(tiles, BLOCKS // (grid[0] * grid[1])))
    parts = backend.array_module(x).empty((count, c_out * (c_in * 27 + 1)), x.dtype)
    threads = (count, *grid), (SIZES[f"{name}_THREADS"],), _shared_bytes(rung, name)
    launch(rung, TENSOR, kernel, threads, (dy, x, parts, scans, *channels, *volume))
    return parts


def _arranged(rung, w, backward=False):
    """The weights in the order in which the kernel reads them."""
    c_in, c_out = (len(w), w.shape[1]) if backward else (w.shape[1], len(w))
    groups = _ceil(c_out, SIZES["MAPS"]), _ceil(c_in, SIZES["CHANNELS"] * PAIR[rung])
    arranged = backend.array_module(w).empty((*groups, 27, SIZES["FRAGMENTS"], 4), w.dtype)
    args = w, arranged, c_in, c_out, backward, arranged.size
    launch(rung, TENSOR, "conv3d_tensor_weights", arranged.size, args)
    return arranged


def _convolve(rung, x, arranged, c_out, b=None, relu=False, mask=None):
    (scans, c_in, *volume), groups = x.shape, len(arranged)
    y = backend.array_module(x).empty((scans, c_out, *volume), x.dtype)
    bias, masked = b is not None, mask_kind(mask, c_out)
    arrays = x, arranged, b if bias else x, mask if masked else x, y
    args = *arrays, c_in, c_out, *volume, bias, relu, masked
    grid = tiles_of(volume, "TILE"), groups, scans
    threads = grid, (SIZES["THREADS"],), _shared_bytes(rung, "CONV")
    launch(rung, TENSOR, "conv3d_tensor", threads, args)
    return y


def mask_kind(mask, c_out):
    """A kernel's `masked`: 0 without a mask, 1 for one of y's shape, 2 for one map per scan."""
    return 0 if mask is None else 1 if mask.shape[1] == c_out else 2


def _shared_bytes(rung, name):
    """How much dynamic shared memory a kernel takes, in bytes."""
    return SIZES[f"{name}_BYTES"] + (PAIR[rung] - 1) * SIZES[f"{name}_STAGE"]


# ---- the convolution of an upsampled tensor, read at its coarse size (folded.py) -----------------


def add_folded(rung, y, coarse, w, relu=False, inside=None):
    """Add to y (N, C_out, 2D, 2H, 2W) what coarse (N, C_b, D, H, W) contributes, in place.

    w (C_out, C_b, 3, 3, 3). relu, inside: what then comes, as for conv3d_forward_cuda.
    """
    (scans, c_in, *volume), c_out = coarse.shape, len(w)
    arranged = _arranged_folded(rung, w)
    masked = inside is not None
    arrays = coarse, arranged, inside if masked else y, y
    args = *arrays, c_in, c_out, *volume, relu, masked
    grid = tiles_of(volume, "UP"), 2 * len(arranged), scans
    threads = grid, (SIZES["UP_THREADS"],), _shared_bytes(rung, "UP")
    launch(rung, FOLDED, "folded_tensor_forward", threads, args)


def backward_coarse(rung, dy, w, mask=None):
    """dcoarse (N, C_b, D, H, W) of dy (N, C_out, 2D, 2H, 2W) and w (C_out, C_b, 3, 3, 3).

    mask: as in backward_input
    """
    scans, c_in, c_out = *dy.shape[:2], w.shape[1]
    volume, arranged = [size // 2 for size in dy.shape[2:]], _arranged_folded(rung, w, True)
    dcoarse = backend.array_module(dy).empty((scans, c_out, *volume), dy.dtype)
    masked = mask is not None
    arrays = dy, arranged, mask if masked else dcoarse, dcoarse
    args = *arrays, c_in, c_out, *volume, masked
    grid = tiles_of(volume, "UP"), len(arranged), scans
    threads = grid, (SIZES["UP_THREADS"],), _shared_bytes(rung, "UP_BACK")
    launch(rung, FOLDED, "folded_tensor_backward_coarse", threads, args)
    return dcoarse


def backward_weight_folded(rung, dy, coarse):
    """dw (C_out, C_b, 3, 3, 3) of the part that reads `coarse`."""
    (scans, c_in, *volume), c_out, xp = coarse.shape, dy.shape[1], backend.array_module(dy)
    grid = _ceil(c_in, 8 * SIZES["UP_DW_GROUPS"]), _ceil(c_out, SIZES["UP_DW_MAPS"])
    tiles = scans * tiles_of(volume, "UP_DW", PAIR[rung])
    count = max(1, min(tiles, BLOCKS // (4 * grid[0] * grid[1])))  # each by 4 parities in z and y
    parts = xp.empty((count, c_out, c_in, 4, 4, 4), dy.dtype)
    args = dy, coarse, parts, scans, c_in, c_out, *volume
    threads = (4 * count, *grid), (SIZES["UP_DW_THREADS"],), _shared_bytes(rung, "UP_DW")
    launch(rung, FOLDED, "folded_tensor_backward_weight", threads, args)
    dw = xp.empty((c_out, c_in, 3, 3, 3), dy.dtype)
    block = SIZES["UNFOLD_THREADS"]
    args = parts, dw, count, c_out * c_in
    threads = (_ceil(64 * c_out * c_in, block),), (block,)
    launch(rung, FOLDED, "folded_tensor_unfold", threads, args)
    return dw


def _arranged_folded(rung, w, backward=False):
    """The folded weights in the order in which the kernels read them."""
    c_in, c_out = (len(w), w.shape[1]) if backward else (w.shape[1], len(w))
    maps = SIZES["UP_BACK_MAPS" if backward else "UP_MAPS"]
    groups = _ceil(c_out, maps), _ceil(c_in, SIZES["CHANNELS"] * PAIR[rung])
    arranged = backend.array_module(w).empty((*groups, 64, maps // 16, 32, 4), w.dtype)
    args = w, arranged, c_in, c_out, backward, arranged.size
    launch(rung, FOLDED, "folded_tensor_weights", arranged.size, args)
    return arranged


def tiles_of(volume, name, pair=1):
    """Tiles (name_Z, name_Y, name_X of SIZES, `pair` times as deep) of a volume (D, H, W)."""
    tile = [SIZES[f"{name}_Z"] * pair, SIZES[f"{name}_Y"], SIZES[f"{name}_X"]]
    return math.prod(_ceil(size, part) for size, part in zip(volume, tile, strict=True))


def _ceil(size, part):
    return -(-size // part)
