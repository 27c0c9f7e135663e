"""Global pooling: one number x_i = g(f_i) per feature map f_i (paper, section 2.2).

Three mappings g, each with the gradient it sends back:
  max   the largest voxel (the paper's worked example); all of the gradient goes to that one voxel.
  mean  the mean over all voxels; every voxel gets an equal, tiny share.
  lmax  the sum of local maxima (ours, not the paper's): the largest voxel of each k x k x k block,
        summed over the blocks that touch the region where lesions were counted, and divided by one
        constant of the network, `blocks`. It adds up over lesions like the mean, its gradient
        reaches one voxel per block, as the max's does, and what lies outside the region (zeros
        around a scan) changes nothing. Without region and constant it is the mean over the blocks.

Where a grid of blocks happens to lie decides which lesions share a block. With overlap 2, blocks
begin every k/2 voxels, so that every voxel is in 2 x 2 x 2 of them, and the sum is divided by 8: an
isolated maximum adds as much as before, wherever it is, and the grid matters far less.
Ties go to the first voxel in memory order. A last block that does not fit is simply smaller.
"""

import itertools
import math

import numpy as np

from weakunet.gpu import backend, cuda_source
from weakunet.layers.conv.packed import is_packed, pack, unpack
from weakunet.layers.relu import relu_backward

THREADS = cuda_source.constants("layers/globalpool3d")["THREADS"]


def globalmax_forward(x):
    """x (N, C, D, H, W) -> y (N, C), argmax (N, C): the flat voxel index of each maximum."""
    if backend.is_cuda(x):
        return globalmax_forward_cuda(x)
    voxels = x.reshape(*x.shape[:2], -1)
    argmax = voxels.argmax(axis=2)
    return np.take_along_axis(voxels, argmax[..., None], axis=2)[..., 0], argmax


def globalmax_backward(dy, argmax, shape):
    """dx of `shape` (N, C, D, H, W): dy (N, C) at the maxima, 0 elsewhere."""
    if backend.is_cuda(dy):
        return globalmax_backward_cuda(dy, argmax, shape)
    dx = np.zeros(shape, dy.dtype)
    np.put_along_axis(dx.reshape(*shape[:2], -1), argmax[..., None], dy[..., None], axis=2)
    return dx


def globalmean_forward(x):
    """x (N, C, D, H, W) -> y (N, C)."""
    if backend.is_cuda(x):
        return globalmean_forward_cuda(x)
    return x.mean(axis=(2, 3, 4))


def globalmean_backward(dy, shape):
    """dx of `shape` (N, C, D, H, W): every voxel gets dy / (D H W)."""
    if backend.is_cuda(dy):
        return globalmean_backward_cuda(dy, shape)
    voxels = shape[2] * shape[3] * shape[4]
    return np.broadcast_to((dy / dy.dtype.type(voxels))[..., None, None, None], shape)


def localmax_forward(x, k, region=None, blocks=None, overlap=1, channels=None):
    """Sum the maxima of the k x k x k blocks of each map over the blocks that touch the region.

    Parameters
    ----------
    x : (N, C, D, H, W)
    k : edge of a block, in voxels; divides by `overlap`
    region : (N, D, H, W) uint8, not 0 where values are taken from; None: everywhere
    blocks : what the sum is divided by; None: the number of blocks
    overlap : 1, blocks side by side; 2, they begin every k / 2 voxels and their sum is divided by 8
    channels : C, where x is packed (conv/packed.py) and does not tell

    Returns
    -------
    y : (N, C)
    argmax : (N, C, number of blocks), each block's maximum as a flat voxel index; -1 where it does
        not touch the region, and adds nothing
    """
    if backend.is_cuda(x):
        return localmax_forward_cuda(x, k, region, blocks, overlap, channels)
    maxima, argmax = _step_maxima(x, k // overlap, region)
    if overlap == 2:
        maxima, argmax = _join_eight(maxima, argmax)
    touches = argmax >= 0
    y = np.where(touches, maxima, 0).reshape(*x.shape[:2], -1).sum(axis=2)
    return y / x.dtype.type(_divisor(x.shape, k, blocks, overlap)), argmax.reshape(*x.shape[:2], -1)


def localmax_backward(dy, argmax, shape, k, blocks=None, overlap=1, y=None):
    """dx of `shape` (N, C, D, H, W): at each block's maximum dy / blocks, 0 elsewhere.

    y (of dx's shape): what was pooled, the output of a ReLU, whose backward is computed as well.
    Where it is packed, so is dx, and `shape` is a packed array's.
    """
    if backend.is_cuda(dy):
        return localmax_backward_cuda(dy, argmax, shape, k, blocks, overlap, y)
    divisor = _divisor(shape, k, blocks, overlap)
    maps, voxels = shape[0] * shape[1], math.prod(shape[2:])
    at = argmax.reshape(maps, -1) + voxels * np.arange(maps)[:, None]
    won = np.bincount(at[argmax.reshape(maps, -1) >= 0], minlength=maps * voxels).reshape(shape)
    dx = won.astype(dy.dtype) * (dy / dy.dtype.type(divisor))[..., None, None, None]
    return dx if y is None else relu_backward(dx, y)


def _divisor(shape, k, blocks, overlap):
    """What a sum over blocks is divided by: each voxel is in overlap^3 of them."""
    if blocks is None:
        blocks = math.prod(grid_of(shape, k))
    return float(blocks) * overlap**3


def grid_of(shape, k):
    """How many k x k x k blocks lie side by side along the axes of an array (..., D, H, W)."""
    return tuple(-(-size // k) for size in shape[-3:])


def _step_maxima(x, k, region):
    """The maximum of each k x k x k block in the region, and its flat index: (N, C, bd, bh, bw)."""
    n, c, d, h, w = x.shape
    if region is not None:
        x = np.where(region[:, None] > 0, x, -np.inf)
    bd, bh, bw = grid = grid_of(x.shape, k)
    padding = [(0, count * k - size) for count, size in zip(grid, (d, h, w), strict=True)]
    if any(after for _, after in padding):
        x = np.pad(x, [(0, 0), (0, 0), *padding], constant_values=-np.inf)
    blocked = x.reshape(n, c, bd, k, bh, k, bw, k).transpose(0, 1, 2, 4, 6, 3, 5, 7)
    blocked = blocked.reshape(n, c, bd, bh, bw, k**3)
    place = blocked.argmax(axis=-1)
    maxima = np.take_along_axis(blocked, place[..., None], axis=-1)[..., 0]
    # from the place inside the block to the flat index in the volume
    block_z, block_y, block_x = np.indices(grid)
    z, y, x_ = np.unravel_index(place, (k, k, k))
    argmax = ((block_z * k + z) * h + block_y * k + y) * w + block_x * k + x_
    return maxima, np.where(maxima > -np.inf, argmax, -1)


def _join_eight(maxima, argmax):
    """The same of blocks twice as large, one for each 2 x 2 x 2 neighbours, also over the edge."""
    around = [(0, 0), (0, 0), (1, 1), (1, 1), (1, 1)]
    maxima = np.pad(maxima, around, constant_values=-np.inf)
    argmax = np.pad(argmax, around, constant_values=-1)
    best, at = np.array(-np.inf, maxima.dtype), np.array(-1)
    for corner in itertools.product((slice(0, -1), slice(1, None)), repeat=3):
        value, index = maxima[(..., *corner)], argmax[(..., *corner)]
        better = (value > best) | ((value == best) & (index < at))  # ties: first in memory order
        best, at = np.where(better, value, best), np.where(better, index, at)
    return best, at


# The CUDA pairs. In the .cu file a batch of channels is a row of maps, one after the other.


def _parts(voxels):
    """How many blocks share a map: enough for a GPU, at least 8 voxels a thread; the same on every
    GPU, because it decides the order of the additions.
    """
    return min(64, -(-voxels // 2048))


def globalmax_forward_cuda(x):
    xp, (n, c), voxels = backend.array_module(x), x.shape[:2], math.prod(x.shape[2:])
    maps, parts = n * c, _parts(voxels)
    part_max, part_argmax = xp.empty((maps, parts), x.dtype), xp.empty((maps, parts), np.int64)
    y, argmax = xp.empty((n, c), x.dtype), xp.empty((n, c), np.int64)
    args = x, part_max, part_argmax, voxels
    backend.launch("layers/globalpool3d", "globalmax_parts", ((parts, maps), (THREADS,)), args)
    args = part_max, part_argmax, y, argmax, parts, maps
    backend.launch("layers/globalpool3d", "globalmax_forward", maps, args)
    return y, argmax


def globalmax_backward_cuda(dy, argmax, shape):
    dx = backend.array_module(dy).empty(shape, dy.dtype)
    args = dy, argmax, dx, math.prod(shape[2:]), dx.size
    backend.launch("layers/globalpool3d", "globalmax_backward", dx.size, args)
    return dx


def globalmean_forward_cuda(x):
    return _sum_cuda(x, math.prod(x.shape[2:]))


def _sum_cuda(x, divisor):
    """(N, C): the sum of everything in each map of x (N, C, ...), divided by a number."""
    xp, (n, c), voxels = backend.array_module(x), x.shape[:2], math.prod(x.shape[2:])
    maps, parts = n * c, _parts(voxels)
    part_sum, y = xp.empty((maps, parts), x.dtype), xp.empty((n, c), x.dtype)
    args = x, part_sum, voxels
    backend.launch("layers/globalpool3d", "globalmean_parts", ((parts, maps), (THREADS,)), args)
    args = part_sum, y, parts, float(divisor), maps
    backend.launch("layers/globalpool3d", "globalmean_forward", maps, args)
    return y


def globalmean_backward_cuda(dy, shape):
    dx = backend.array_module(dy).empty(shape, dy.dtype)
    args = dy, dx, math.prod(shape[2:]), dx.size
    backend.launch("layers/globalpool3d", "globalmean_backward", dx.size, args)
    return dx


def localmax_forward_cuda(x, k, region=None, blocks=None, overlap=1, channels=None):
    xp, n, volume, step = backend.array_module(x), len(x), x.shape[2:5], k // overlap
    c = channels or x.shape[1]
    if region is None:
        region = xp.ones((n, *volume), np.uint8)
    grid = grid_of(volume, step)
    dtype = np.float32 if is_packed(x) else x.dtype
    maxima, argmax = xp.empty((n, c, *grid), dtype), xp.empty((n, c, *grid), np.int64)
    threads = math.prod((n, x.shape[1], *grid, *x.shape[5:]))
    args = x, region, maxima, argmax, step, c, *volume, threads
    backend.launch("layers/globalpool3d", "localmax_blocks", threads, args)
    if overlap == 2:
        small, larger = (maxima, argmax), (n, c, *(size + 1 for size in grid))
        maxima, argmax = xp.empty(larger, dtype), xp.empty(larger, np.int64)
        args = *small, maxima, argmax, *grid, argmax.size
        backend.launch("layers/globalpool3d", "localmax_join_eight", argmax.size, args)
    return _sum_cuda(maxima, _divisor(volume, k, blocks, overlap)), argmax.reshape(n, c, -1)


def localmax_backward_cuda(dy, argmax, shape, k, blocks=None, overlap=1, y=None):
    masked, step, volume = y is not None, k // overlap, shape[2:5]
    dx = backend.array_module(dy).zeros(shape, y.dtype if masked else dy.dtype)
    cells = dy.size * math.prod(grid_of(volume, step))
    args = dy, argmax, y if masked else dx, dx, _divisor(volume, k, blocks, overlap)
    args = *args, step, overlap, dy.shape[1], *volume, masked, cells
    backend.launch("layers/globalpool3d", "localmax_backward", cells, args)
    return dx


class GlobalPool3D:
    """Global pooling by `mode` ('max', 'mean' or 'lmax' with blocks of `k` voxels).

    overlap, blocks: of lmax, see localmax_forward. channels: of packed maps, which only lmax takes
    as they are.
    """

    def __init__(self, mode, k=8, overlap=1, channels=None):
        if mode not in ("max", "mean", "lmax"):
            raise ValueError(f"GlobalPool3D: mode {mode!r} is none of max, mean, lmax")
        self.mode, self.k, self.overlap, self.blocks = mode, k, overlap, None
        self.channels = channels

    def forward(self, x, region=None, keep=True):
        """region: (N, D, H, W) uint8, where lmax takes its maxima; None: everywhere."""
        x = x if self.mode == "lmax" else unpack(x, self.channels)
        self.shape, self.argmax = x.shape, None
        if self.mode == "mean":
            return globalmean_forward(x)
        if self.mode == "max":
            y, argmax = globalmax_forward(x)
        else:
            more = self.k, region, self.blocks, self.overlap, self.channels
            y, argmax = localmax_forward(x, *more)
            # how large each scan's region is, 1 on average: its blocks over the constant
            touching = (argmax[:, 0] >= 0).sum(axis=1).astype(y.dtype)
            volume = x.shape[2:5]
            self.size = touching / y.dtype.type(_divisor(volume, self.k, self.blocks, self.overlap))
        self.argmax = argmax if keep else None
        return y

    def backward(self, dy, y=None):
        """dx; y: what was pooled, where it is the output of a ReLU, for dx to have passed it."""
        argmax, self.argmax = self.argmax, None
        if self.mode == "lmax":
            more = self.k, self.blocks, self.overlap, y
            return localmax_backward(dy, argmax, self.shape, *more)
        if self.mode == "max":
            dx = globalmax_backward(dy, argmax, self.shape)
        else:
            dx = globalmean_backward(dy, self.shape)
        return dx if y is None else relu_backward(pack(dx, y.dtype), y)
