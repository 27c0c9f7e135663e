"""Convolutions on a GPU's tensor cores: how tensor.cu and folded.cu are launched.

The rung 'tensor' multiplies floats rounded to TF32 (10 bits of mantissa) and adds in float32. A
result is off by about 3e-4 of the largest one, from rounding its factors: enough to train with, too
much for a gradient check. The rung 'tensor_bf16' rounds to bfloat16 (7 bits): half the bytes and
half as many tensor instructions, results off by 8 times as much. Feature maps are packed here, and
their dtype says which of the two it is (packed.py); weights and their gradients are float32.
"""

import math

import numpy as np

from weakunet.gpu import backend, cuda_source

TENSOR, FOLDED, PARTS = "layers/conv/tensor", "layers/conv/folded", "layers/conv/parts"
SIZES = cuda_source.constants(TENSOR) | cuda_source.constants(FOLDED) | cuda_source.constants(PARTS)
# The weight gradients are split across about this many blocks, the same number on every GPU,
# because it decides the order of the additions. (An H100 or H200 has room for 264 at a time.)
BLOCKS = 528


def forward(x, w, b, relu=False, inside=None):
    """y of x and w (C_out, C_in, 3, 3, 3), b (C_out,); relu, inside: see conv3d_forward_cuda."""
    return _convolve(x, w, b=b, relu=relu, inside=inside)


def backward_input(dy, w, mask=None):
    """dx of dy and w: a convolution of dy, w flipped.

    mask: packed like dx; 0 where it is not positive (the backward of a ReLU with this output)
    """
    return _convolve(dy, w, backward=True, mask=mask)


def backward_weight(dy, x, c_out, c_in):
    """parts (S, C_out C_in 27 + C_out) of dy and x, which add up to dw and, behind it, db."""
    scans, volume = len(x), x.shape[2:5]
    name, kernel, channels = "DW", "conv3d_tensor_backward_weight", (c_in, c_out)
    if c_in == 1:
        name, kernel, channels = "FIRST", "conv3d_tensor_backward_first", (c_out,)
    grid = _ceil(c_in, SIZES["DW_GROUPS"] * SIZES["CHANNELS"]), _ceil(c_out, SIZES["DW_MAPS"])
    count = _blocks(scans * tiles_of(volume, "DW", _pair(x)), grid)
    parts = backend.array_module(x).empty((count, c_out * (c_in * 27 + 1)), np.float32)
    threads = (count, *grid), (SIZES[f"{name}_THREADS"],), SIZES[f"{name}_BYTES"]
    backend.launch(TENSOR, kernel, threads, (dy, x, parts, scans, *channels, *volume))
    return parts


def _arranged(x, w, backward):
    """The weights in the order in which the kernel reads them, for x or dy packed like x."""
    c_in, c_out = (len(w), w.shape[1]) if backward else (w.shape[1], len(w))
    groups = _ceil(c_out, SIZES["MAPS"]), _ceil(c_in, x.shape[5])
    words = math.prod(groups) * 27 * SIZES["FRAGMENTS"] * 4
    arranged = backend.array_module(w).empty(words * _pair(x), x.dtype)
    backend.launch(
        TENSOR, "conv3d_tensor_weights", words, (w, arranged, c_in, c_out, backward, words)
    )
    return arranged


def _convolve(x, w, backward=False, b=None, relu=False, mask=None, inside=None):
    c_in, c_out = (len(w), w.shape[1]) if backward else (w.shape[1], len(w))
    y = _maps_like(x, c_out, x.shape[2:5])
    masked = 1 if mask is not None else 2 if inside is not None else 0
    # where there is none, any array takes its place: the kernel will not read it
    arrays = w if b is None else b, y if mask is None else mask, w if inside is None else inside, y
    sizes = c_in, c_out, *x.shape[2:5]
    args = x, _arranged(x, w, backward), *arrays, *sizes, b is not None, relu, masked
    grid = tiles_of(x.shape[2:5], "TILE"), _ceil(c_out, SIZES["MAPS"]), len(x)
    threads = grid, (SIZES["THREADS"],), SIZES["CONV_BYTES"]
    backend.launch(TENSOR, "conv3d_tensor", threads, args)
    return y


# ---- the part of an upsampled convolution that reads the coarse tensor (see folded.py) -----------


def add_folded(y, coarse, w, relu=False, inside=None):
    """Add to y (of 2D, 2H, 2W) the convolution of `coarse` (of D, H, W) by w (C_out, C_b, 3, 3, 3).

    relu, inside: as in forward.
    """
    arranged = _arranged_folded(coarse, w)
    args = coarse, arranged, w if inside is None else inside, y, w.shape[1], len(w)
    args = *args, *coarse.shape[2:5], relu, inside is not None
    grid = tiles_of(coarse.shape[2:5], "UP"), 2 * _ceil(len(w), SIZES["UP_MAPS"]), len(coarse)
    threads = grid, (SIZES["UP_THREADS"],), SIZES["UP_BYTES"]
    backend.launch(FOLDED, "folded_tensor_forward", threads, args)


def backward_coarse(dy, w, mask=None):
    """dcoarse of dy (of 2D, 2H, 2W) and w (C_out, C_b, 3, 3, 3); mask: as in backward_input."""
    c_in, c_out, volume = *w.shape[:2], [size // 2 for size in dy.shape[2:5]]
    dcoarse, arranged = _maps_like(dy, c_out, volume), _arranged_folded(dy, w, backward=True)
    arrays = dy, arranged, dcoarse if mask is None else mask, dcoarse
    args = *arrays, c_in, c_out, *volume, mask is not None
    grid = tiles_of(volume, "UP"), _ceil(c_out, SIZES["UP_BACK_MAPS"]), len(dy)
    threads = grid, (SIZES["UP_THREADS"],), SIZES["UP_BACK_BYTES"]
    backend.launch(FOLDED, "folded_tensor_backward_coarse", threads, args)
    return dcoarse


def backward_weight_folded(dy, coarse, c_out, c_in):
    """dw (C_out, C_b, 3, 3, 3) of the part that reads `coarse`."""
    scans, volume, xp = len(coarse), coarse.shape[2:5], backend.array_module(dy)
    grid = _ceil(c_in, 8 * SIZES["UP_DW_GROUPS"]), _ceil(c_out, SIZES["UP_DW_MAPS"])
    # each by 4 parities in z and y
    count = _blocks(scans * tiles_of(volume, "UP_DW", _pair(coarse)), (4, *grid))
    parts = xp.empty((count, c_out, c_in, 4, 4, 4), np.float32)
    args = dy, coarse, parts, scans, c_in, c_out, *volume
    threads = (4 * count, *grid), (SIZES["UP_DW_THREADS"],), SIZES["UP_DW_BYTES"]
    backend.launch(FOLDED, "folded_tensor_backward_weight", threads, args)
    dw = xp.empty((c_out, c_in, 3, 3, 3), np.float32)
    block = SIZES["UNFOLD_THREADS"]
    threads = (_ceil(64 * c_out * c_in, block),), (block,)
    backend.launch(PARTS, "folded_tensor_unfold", threads, (parts, dw, count, c_out * c_in))
    return dw


def _arranged_folded(x, w, backward=False):
    """The folded weights in the order in which the kernels read them, as _arranged."""
    c_in, c_out = (len(w), w.shape[1]) if backward else (w.shape[1], len(w))
    maps = SIZES["UP_BACK_MAPS" if backward else "UP_MAPS"]
    words = _ceil(c_out, maps) * _ceil(c_in, x.shape[5]) * 64 * maps * 8
    arranged = backend.array_module(w).empty(words * _pair(x), x.dtype)
    backend.launch(
        FOLDED, "folded_tensor_weights", words, (w, arranged, c_in, c_out, backward, words)
    )
    return arranged


def _maps_like(x, channels, volume):
    """An empty array of so many maps, packed like x."""
    shape = len(x), _ceil(channels, x.shape[5]), *volume, x.shape[5]
    return backend.array_module(x).empty(shape, x.dtype)


def _pair(x):
    """How many numbers of a packed array are in 32 bits."""
    return 4 // x.itemsize


def _blocks(tiles, grid):
    """How many blocks share the tiles of a weight gradient, of which a grid does all channels."""
    return max(1, min(tiles, BLOCKS // math.prod(grid)))


def tiles_of(volume, name, pair=1):
    """Tiles (name_Z, name_Y, name_X of SIZES, `pair` times as deep) of a volume (D, H, W)."""
    tile = [SIZES[f"{name}_Z"] * pair, SIZES[f"{name}_Y"], SIZES[f"{name}_X"]]
    return math.prod(_ceil(size, part) for size, part in zip(volume, tile, strict=True))


def _ceil(size, part):
    return -(-size // part)
