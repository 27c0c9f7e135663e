"""The convolution of conv3d.py on a GPU: the CUDA pairs of conv3d_forward and conv3d_backward.

Four rungs, chosen by name: 'naive' (one thread an output voxel) shows the equation, 'tiled' (tiles
of the input in shared memory, 64 sums a thread in registers) computes the same numbers fast, for
k = 1 and 3, 'tensor' (tensor cores) is faster still and rounds the factors, for k = 3, the more so
'tensor_bf16'; see tensor.py. The kernels are in naive.cu, tiled.cu,
tiled_weight.cu.
"""

import math

from weakunet.gpu import backend, cuda_source
from weakunet.layers.conv import tensor as conv3d_tensor
from weakunet.layers.relu import relu_backward, relu_forward

NAIVE, TILED = "layers/conv/naive", "layers/conv/tiled"
TILED_WEIGHT = "layers/conv/tiled_weight"
SIZES = cuda_source.constants(TILED) | cuda_source.constants(TILED_WEIGHT)
KERNELS = ("naive", "tiled", *conv3d_tensor.PAIR)
KERNEL_OF = {"fp32": "tiled", "tf32": "tensor", "bf16": "tensor_bf16"}  # the rung of a precision
# The weight gradient is shared out over about so many blocks, on every GPU the same: the number
# decides the order of the additions.
BLOCKS = 1024


def conv3d_forward_cuda(x, w, b, kernel="tiled", relu=False):
    """y (N, C_out, D, H, W) from x (N, C_in, D, H, W), w (C_out, C_in, k, k, k), b (C_out,).

    relu: the ReLU that follows is computed, too: max(y, 0).
    """
    kernel = _rung(kernel, x, w)
    if kernel in conv3d_tensor.PAIR:
        return conv3d_tensor.forward(kernel, x, w, b, relu)
    y = backend.array_module(x).empty((len(x), len(w), *x.shape[2:]), x.dtype)
    c_in, c_out, k, volume = x.shape[1], len(w), w.shape[-1], x.shape[2:]
    if kernel == "naive":
        args = x, w, b, y, c_in, c_out, k, *volume, y.size
        backend.launch(NAIVE, "conv3d_forward_naive", y.size, args)
    else:
        args = x, w, b, y, c_in, c_out, *volume
        backend.launch(TILED, f"conv3d_forward_tiled_k{k}", _tiles(y.shape), args)
    return relu_forward(y) if relu else y


def conv3d_backward_cuda(dy, x, w, needs_dx=True, kernel="tiled", mask=False):
    """dx (None unless `needs_dx`), dw, db from dy (N, C_out, D, H, W), x and w.

    mask: x came from a ReLU, and its backward is computed, too: dx is 0 where x is not positive.
    """
    kernel = _rung(kernel, x, w)
    dx = _backward_input(dy, x, w, kernel, mask) if needs_dx else None
    return dx, _backward_weight(dy, x, w, kernel), _backward_bias(dy, kernel)


def _rung(kernel, x, w):
    """The rung that does this: `kernel`, or 'tiled' where tensor cores do not run.

    Raises ValueError for what `kernel` cannot take.
    """
    if kernel not in KERNELS:
        raise ValueError(f"conv3d: kernel {kernel!r} is none of {', '.join(KERNELS)}")
    if kernel != "naive" and w.shape[-1] not in (1, 3):
        raise ValueError(f"conv3d: the {kernel} kernel takes k = 1 or 3, not {w.shape[-1]}")
    if x.shape[1] != w.shape[1]:
        raise ValueError(f"conv3d: x has {x.shape[1]} channels, w {w.shape} wants {w.shape[1]}")
    if math.prod(x.shape[2:]) >= 2**31:
        raise ValueError(f"conv3d: a volume of {x.shape[2:]} has more than 2^31 - 1 voxels")
    falls_back = kernel in conv3d_tensor.PAIR and not conv3d_tensor.runs(x, w)
    return "tiled" if falls_back else kernel


def _backward_input(dy, x, w, kernel, mask):
    if kernel in conv3d_tensor.PAIR:
        return conv3d_tensor.backward_input(kernel, dy, w, x if mask else None)
    dx = backend.array_module(x).empty(x.shape, x.dtype)
    c_in, c_out, k, volume = x.shape[1], len(w), w.shape[-1], x.shape[2:]
    if kernel == "naive":
        args = dy, w, dx, c_in, c_out, k, *volume, dx.size
        backend.launch(NAIVE, "conv3d_backward_input_naive", dx.size, args)
    else:
        args = dy, w, dx, c_in, c_out, *volume
        backend.launch(TILED, f"conv3d_backward_input_tiled_k{k}", _tiles(dx.shape), args)
    return relu_backward(dx, x) if mask else dx


def _backward_weight(dy, x, w, kernel):
    if kernel in conv3d_tensor.PAIR:
        return _sum_parts(conv3d_tensor.backward_weight(kernel, dy, x))
    (scans, c_in, *volume), c_out, k = x.shape, len(w), w.shape[-1]
    if kernel == "naive":
        dw = backend.array_module(w).empty(w.shape, w.dtype)
        args = dy, x, dw, scans, c_in, c_out, k, *volume, dw.size
        backend.launch(NAIVE, "conv3d_backward_weight_naive", dw.size, args)
        return dw
    channels, groups = min(c_in, SIZES["DW_CHANNELS"]), _groups(c_out, "DW_MAPS", "DW_GROUPS")
    grid = -(-c_in // channels), -(-c_out // (groups * SIZES["DW_MAPS"]))
    d, h, w_ = volume
    tiles = scans * d * -(-h // SIZES["DW_Y"]) * -(-w_ // SIZES["DW_X"])
    count = max(1, min(tiles, BLOCKS // (grid[0] * grid[1])))
    parts = backend.array_module(w).empty((count, *w.shape), w.dtype)
    args = dy, x, parts, scans, c_in, c_out, *volume
    threads = (count, *grid), (channels * k * k, groups)
    backend.launch(TILED_WEIGHT, f"conv3d_backward_weight_tiled_k{k}", threads, args)
    return _sum_parts(parts)


def _backward_bias(dy, kernel):
    (scans, c_out, *volume), voxels = dy.shape, math.prod(dy.shape[2:])
    if kernel == "naive":
        db = backend.array_module(dy).empty(c_out, dy.dtype)
        args = dy, db, scans, c_out, *volume
        backend.launch(NAIVE, "conv3d_backward_bias_naive", c_out, args)
        return db
    count = min(64, -(-voxels // 2048))
    parts = backend.array_module(dy).empty((scans * count, c_out), dy.dtype)
    threads = (count, c_out, scans), (SIZES["THREADS"],)
    backend.launch(TILED_WEIGHT, "conv3d_backward_bias_tiled", threads, (dy, parts, voxels))
    return _sum_parts(parts)


def _sum_parts(parts):
    result = backend.array_module(parts).empty(parts.shape[1:], parts.dtype)
    args = parts, result, len(parts), result.size
    backend.launch(TILED_WEIGHT, "conv3d_sum_parts", result.size, args)
    return result


def _tiles(shape):
    """(grid, block) of the tiled kernels for an output of `shape` (N, C, D, H, W)."""
    n, c, d, h, w = shape
    groups = _groups(c, "MAPS", "GROUPS")
    tiles = -(-d // SIZES["TILE_Z"]) * -(-h // SIZES["TILE_Y"]) * -(-w // SIZES["TILE_X"])
    grid = tiles, -(-c // (groups * SIZES["MAPS"])), n
    return grid, (SIZES["TILE_X"], SIZES["TILE_Z"], groups)


def _groups(channels, maps, groups):
    return min(SIZES[groups], -(-channels // SIZES[maps]))
