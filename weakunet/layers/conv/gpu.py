"""The convolution of conv3d.py on a GPU: which kernel runs, and how naive.cu and tiled.cu start.

    naive        one thread per output: the equation
    tiled        fast, in float32 or float64, for k = 3
    tensor       tensor cores in TF32, k = 3 only (tensor.py): faster, numbers are rounded
    tensor_bf16  the same in bfloat16: faster again, less accurate

The last two work on packed arrays (packed.py), and what is not packed they pack and unpack.

`--precision` picks one: fp32 is `tiled`, tf32 and bf16 run on tensor cores, and `auto`, the
default, is fp32 on a CPU and tf32 on a GPU whose tensor cores pass a test. Networks learned from
counts in tf32 as in fp32 (README), and in bf16 on the three seeds that were tried, before maps were
stored in it.
"""

import math

import numpy as np

from weakunet.gpu import backend, cuda_source
from weakunet.layers.conv import tensor
from weakunet.layers.conv.packed import MIN_SM, STORED, is_packed, pack, unpack
from weakunet.layers.relu import relu_backward, relu_forward
from weakunet.util.cli import InputError

NAIVE, TILED = "layers/conv/naive", "layers/conv/tiled"
SIZES = cuda_source.constants(TILED)
KERNELS = ("naive", "tiled", *STORED)
KERNEL_OF = {"fp32": "tiled", "tf32": "tensor", "bf16": "tensor_bf16"}  # of a precision
PRECISIONS = ("auto", *KERNEL_OF)
# How far a convolution may be off float32's, of its largest value: 4 times what rounding explains.
TOLERANCE = {"tf32": 2e-3, "bf16": 1.6e-2}
# The weight gradient is split across about this many blocks, the same number on every GPU, because
# it decides the order of the additions.
BLOCKS = 1024


def conv3d_forward_cuda(x, w, b, kernel="tiled", relu=False, inside=None):
    """y (N, C_out, D, H, W) from x (N, C_in, D, H, W), w (C_out, C_in, k, k, k), b (C_out,).

    Fused: relu, then y = max(y, 0); inside (N, 1, D, H, W), then y = 0 where it is 0.
    x may be packed; then y is, too, but that of a 1x1x1 convolution.
    """
    kernel, packed = _rung(kernel, x, w)
    if packed is not None:
        y = tensor.forward(packed, w, b, relu, inside)
        return y if is_packed(x) else unpack(y, len(w))
    c_out, c_in, k, volume = *w.shape[:3], x.shape[2:5]
    y = backend.array_module(x).empty((len(x), c_out, *volume), w.dtype)
    if kernel == "tiled":
        masked = 0 if inside is None else 2
        args = x, w, b, inside if masked else x, y, c_in, c_out, *volume, relu, masked
        backend.launch(TILED, "conv3d_forward_tiled", _tiles(y.shape), args)
        return y
    args = x, w, b, y, c_in, c_out, k, *volume, y.size
    backend.launch(NAIVE, "conv3d_forward_naive", y.size, args)
    y = relu_forward(y) if relu else y
    return y if inside is None else y * inside


def conv3d_backward_cuda(dy, x, w, needs_dx=True, kernel="tiled", mask=False):
    """dx (None unless `needs_dx`), dw, db from dy (N, C_out, D, H, W), x and w.

    mask: fuse the backward of the ReLU before, whose output is x: dx is 0 where x is not positive.
    dy and x may be packed; then dx is, too, but that of a 1x1x1 convolution.
    """
    wanted, (kernel, packed) = kernel, _rung(kernel, x, w)
    if packed is not None:
        dy, dx = pack(dy, packed.dtype), None
        if needs_dx:
            dx = tensor.backward_input(dy, w, packed if mask else None)
            dx = dx if is_packed(x) else unpack(dx, w.shape[1])
        sums = _sum_parts(tensor.backward_weight(dy, packed, *w.shape[:2]))
        return dx, sums[: w.size].reshape(w.shape), sums[w.size :]
    x = unpack(x, w.shape[1])
    dx = _backward_input(dy, x, w, kernel, mask) if needs_dx else None
    kernel = "naive" if wanted == "naive" else "tiled"
    return dx, _backward_weight(dy, x, w, kernel), _backward_bias(dy, kernel)


def _rung(kernel, x, w):
    """The rung of y and dx, and x packed, or None where tensor cores do not run.

    The rung is `kernel`, but 'tiled' where tensor cores cannot run (see pack), and 'naive' for a
    1x1x1 convolution: neighbours have nothing to share. Raises ValueError for what `kernel` cannot
    take.
    """
    if kernel not in KERNELS:
        raise ValueError(f"conv3d: kernel {kernel!r} is none of {', '.join(KERNELS)}")
    if kernel != "naive" and w.shape[-1] not in (1, 3):
        raise ValueError(f"conv3d: the {kernel} kernel takes k = 1 or 3, not {w.shape[-1]}")
    if not is_packed(x) and x.shape[1] != w.shape[1]:
        raise ValueError(f"conv3d: x has {x.shape[1]} channels, w {w.shape} wants {w.shape[1]}")
    if math.prod(x.shape[2:5]) >= 2**31:
        raise ValueError(f"conv3d: a volume of {x.shape[2:5]} has more than 2^31 - 1 voxels")
    if w.shape[-1] == 1:
        return "naive", None
    packed = x if is_packed(x) else pack(x, STORED.get(kernel))
    if is_packed(packed):
        return kernel, packed
    return "tiled" if kernel in STORED else kernel, None


def _backward_input(dy, x, w, kernel, mask):
    dx = backend.array_module(x).empty(x.shape, x.dtype)
    c_in, c_out, k, volume = x.shape[1], len(w), w.shape[-1], x.shape[2:]
    if kernel == "naive":
        args = dy, w, dx, c_in, c_out, k, *volume, dx.size
        backend.launch(NAIVE, "conv3d_backward_input_naive", dx.size, args)
        return relu_backward(dx, x) if mask else dx
    args = dy, w, x, dx, c_in, c_out, *volume, mask
    backend.launch(TILED, "conv3d_backward_input_tiled", _tiles(dx.shape), args)
    return dx


def _backward_weight(dy, x, w, kernel):
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
    backend.launch(TILED, f"conv3d_backward_weight_tiled_k{k}", threads, args)
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
    backend.launch(TILED, "conv3d_backward_bias_tiled", threads, (dy, parts, voxels))
    return _sum_parts(parts)


def _sum_parts(parts):
    result = backend.array_module(parts).empty(parts.shape[1:], parts.dtype)
    args = parts, result, len(parts), result.size
    backend.launch(tensor.PARTS, "conv3d_sum_parts", result.size, args)
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


# ---- --precision ---------------------------------------------------------------------------------


def pick_precision(name, device):
    """'fp32', 'tf32' or 'bf16' for a user's choice of PRECISIONS, on `device` ('cpu' or 'cuda').

    Prints a note where it is not what was asked for. Raises InputError where tensor cores were
    asked for and there are none, or their results are wrong.
    """
    wanted = {"cpu": "fp32", "cuda": "tf32"}[device] if name == "auto" else name
    if wanted == "fp32":
        return wanted
    if device == "cpu":
        raise InputError(
            f"--precision {name} needs the tensor cores of a GPU, and this runs on the CPU; "
            "use --precision fp32 or auto"
        )
    if backend.compute_capability() < MIN_SM:
        print("note: this GPU has no tensor cores for tf32, so it computes in fp32", flush=True)
        return "fp32"
    if computes_right(wanted):
        return wanted
    wrong = f"a convolution in {wanted} gives wrong results on this GPU"
    if name != "auto":
        raise InputError(f"{wrong} (python -m weakunet.bench --check); use --precision fp32")
    print(f"note: {wrong}, so it computes in fp32", flush=True)
    return "fp32"


def computes_right(precision):
    """True if a small convolution agrees with float32's up to rounding, forward and backward."""
    rng, size = np.random.default_rng(0), (1, 16, 6, 10, 20)
    arrays = (rng.standard_normal(shape, np.float32) for shape in (size, size, (16, 16, 3, 3, 3)))
    dy, x, w = (backend.to_device(array, "cuda") for array in arrays)
    b = w[:, 0, 0, 0, 0].copy()
    results = []
    for kernel in (KERNEL_OF[precision], KERNEL_OF["fp32"]):
        found = conv3d_forward_cuda(x, w, b, kernel), *conv3d_backward_cuda(dy, x, w, kernel=kernel)
        results.append([backend.to_host(array) for array in found])
    return all(
        np.abs(found - expected).max() <= TOLERANCE[precision] * np.abs(expected).max()
        for found, expected in zip(*results, strict=True)
    )
