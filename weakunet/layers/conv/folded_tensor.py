"""The decoder's convolution on a GPU's tensor cores: how folded.py's rung 'tensor' is launched.

The part that reads the skip connection is tensor.py's ordinary convolution. The part that
reads the upsampled tensor is a kernel of its own that reads the coarse one, with 8 taps an output
instead of 27, and adds to it. So neither the upsampled tensor nor the concatenation is ever stored.
As in tensor.py, the rung 'tensor_bf16' does so with factors in bfloat16.
"""

from weakunet.gpu import backend, cuda_source
from weakunet.layers.concat import concat_backward_cuda, concat_forward_cuda
from weakunet.layers.conv import tensor as conv3d_tensor
from weakunet.layers.conv.gpu import conv3d_backward_cuda, conv3d_forward_cuda
from weakunet.layers.conv.tensor import PAIR, launch, tiles_of

COARSE, WEIGHT = "layers/conv/folded", "layers/conv/folded_weight"
SIZES = cuda_source.constants(COARSE) | cuda_source.constants(WEIGHT)


def runs(rung, skip, coarse, w):
    """True if it takes this convolution: conv3d_tensor.runs, for both of its parts."""
    return rung in PAIR and all(conv3d_tensor.runs(x, w) for x in (skip, coarse))


def forward(rung, skip, coarse, w, b, relu=False):
    """As upconv3d_forward, or max(y, 0) with `relu`."""
    w_skip, w_coarse = concat_backward_cuda(w, skip.shape[1])
    y = conv3d_forward_cuda(skip, w_skip, b, rung)
    (scans, c_in, *volume), c_out = coarse.shape, len(w)
    arranged = _arranged(rung, w_coarse)
    args = coarse, arranged, y, c_in, c_out, *volume, relu
    threads = (tiles_of(volume, "UP", 1, SIZES), 2 * len(arranged), scans), (SIZES["UP_THREADS"],)
    launch(rung, COARSE, "upconv3d_tensor_forward", threads, args)
    return y


def backward(rung, dy, skip, coarse, w):
    """As upconv3d_backward: dskip, dcoarse, dw, db."""
    w_skip, w_coarse = concat_backward_cuda(w, skip.shape[1])
    dskip, dw_skip, db = conv3d_backward_cuda(dy, skip, w_skip, kernel=rung)
    dw = concat_forward_cuda(dw_skip, _backward_weight(rung, dy, coarse))
    return dskip, _backward_coarse(rung, dy, w_coarse), dw, db


def _backward_coarse(rung, dy, w):
    scans, c_in, c_out = *dy.shape[:2], w.shape[1]
    volume, arranged = [size // 2 for size in dy.shape[2:]], _arranged(rung, w, backward=True)
    dcoarse = backend.array_module(dy).empty((scans, c_out, *volume), dy.dtype)
    args = dy, arranged, dcoarse, c_in, c_out, *volume
    threads = (tiles_of(volume, "UP", 1, SIZES), len(arranged), scans), (SIZES["UP_THREADS"],)
    launch(rung, COARSE, "upconv3d_tensor_backward_coarse", threads, args)
    return dcoarse


def _backward_weight(rung, dy, coarse):
    """dw (C_out, C_b, 3, 3, 3) of the part that reads `coarse`."""
    (scans, c_in, *volume), c_out, xp = coarse.shape, dy.shape[1], backend.array_module(dy)
    count, *grid = weight_grid(coarse.shape, c_out, PAIR[rung])
    parts = xp.empty((count, c_out, c_in, 4, 4, 4), dy.dtype)
    args = dy, coarse, parts, scans, c_in, c_out, *volume
    threads = (4 * count, *grid), (SIZES["UP_DW_THREADS"],)
    launch(rung, WEIGHT, "upconv3d_tensor_backward_weight", threads, args)
    dw = xp.empty((c_out, c_in, 3, 3, 3), dy.dtype)
    threads = (-(-64 * c_out * c_in // SIZES["UNFOLD_THREADS"]),), (SIZES["UNFOLD_THREADS"],)
    args = parts, dw, count, c_out * c_in
    launch(rung, WEIGHT, "upconv3d_tensor_unfold", threads, args)
    return dw


def weight_grid(shape, c_out, pair=1):
    """How the weight gradient is shared out, coarse having `shape`: number of parts (each by 4
    parities in z and y), groups of coarse and groups of output channels.
    """
    grid = -(-shape[1] // (8 * SIZES["UP_DW_GROUPS"])), -(-c_out // SIZES["UP_DW_MAPS"])
    tiles = shape[0] * tiles_of(shape[2:], "UP_DW", pair, SIZES)
    return max(1, min(tiles, conv3d_tensor.BLOCKS // (4 * grid[0] * grid[1]))), *grid


def _arranged(rung, w, backward=False):
    """The folded weights in the order in which the kernels read them."""
    c_in, c_out = (len(w), w.shape[1]) if backward else (w.shape[1], len(w))
    maps = SIZES["UP_BACK_MAPS" if backward else "UP_MAPS"]
    groups = -(-c_out // maps), -(-c_in // (SIZES["CHANNELS"] * PAIR[rung]))
    arranged = backend.array_module(w).empty((*groups, 64, maps // 16, 32, 4), w.dtype)
    args = w, arranged, c_in, c_out, backward, arranged.size
    launch(rung, COARSE, "upconv3d_tensor_weights", arranged.size, args)
    return arranged
