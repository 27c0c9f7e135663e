"""Global pooling: one number x_i = g(f_i) per feature map f_i (paper, section 2.2).

Three mappings g, each with the gradient it sends back:
  max   the largest voxel (the paper's worked example); all of the gradient goes to that one voxel.
  mean  the mean over all voxels; every voxel gets an equal, tiny share.
  lmax  the mean of local maxima (ours, not the paper's): the largest voxel of each k x k x k block,
        then the mean over the blocks. It adds up over lesions like the mean, and its gradient
        reaches one voxel a block, as the max's does.
Ties go to the first voxel in memory order. A last block that does not fit is simply smaller.
"""

import math

import numpy as np

from weakunet.gpu import backend, cuda_source

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


def localmax_forward(x, k):
    """x (N, C, D, H, W) -> y (N, C), the mean over k x k x k blocks of each block's maximum, and
    argmax (N, C, blocks), the flat voxel index of each block's maximum.
    """
    if backend.is_cuda(x):
        return localmax_forward_cuda(x, k)
    n, c, d, h, w = x.shape
    blocks = tuple(-(-size // k) for size in (d, h, w))
    padding = [(0, count * k - size) for count, size in zip(blocks, (d, h, w), strict=True)]
    if any(after for _, after in padding):
        x = np.pad(x, [(0, 0), (0, 0), *padding], constant_values=-np.inf)
    bd, bh, bw = blocks
    blocked = x.reshape(n, c, bd, k, bh, k, bw, k).transpose(0, 1, 2, 4, 6, 3, 5, 7)
    blocked = blocked.reshape(n, c, bd * bh * bw, k**3)
    place = blocked.argmax(axis=3)
    maxima = np.take_along_axis(blocked, place[..., None], axis=3)[..., 0]
    # from the place inside the block to the flat index in the volume
    block_z, block_y, block_x = np.unravel_index(np.arange(bd * bh * bw), blocks)
    z, y_, x_ = np.unravel_index(place, (k, k, k))
    argmax = ((block_z * k + z) * h + block_y * k + y_) * w + block_x * k + x_
    return maxima.mean(axis=2), argmax


def localmax_backward(dy, argmax, shape, k):
    """dx of `shape` (N, C, D, H, W): dy / blocks at each k x k x k block's maximum, 0 elsewhere."""
    if backend.is_cuda(dy):
        return localmax_backward_cuda(dy, argmax, shape, k)
    dx = np.zeros(shape, dy.dtype)
    share = np.broadcast_to((dy / dy.dtype.type(argmax.shape[2]))[..., None], argmax.shape)
    np.put_along_axis(dx.reshape(*shape[:2], -1), argmax, share, axis=2)
    return dx


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
    xp, (n, c), voxels = backend.array_module(x), x.shape[:2], math.prod(x.shape[2:])
    maps, parts = n * c, _parts(voxels)
    part_sum, y = xp.empty((maps, parts), x.dtype), xp.empty((n, c), x.dtype)
    args = x, part_sum, voxels
    backend.launch("layers/globalpool3d", "globalmean_parts", ((parts, maps), (THREADS,)), args)
    args = part_sum, y, parts, voxels, maps
    backend.launch("layers/globalpool3d", "globalmean_forward", maps, args)
    return y


def globalmean_backward_cuda(dy, shape):
    dx = backend.array_module(dy).empty(shape, dy.dtype)
    args = dy, dx, math.prod(shape[2:]), dx.size
    backend.launch("layers/globalpool3d", "globalmean_backward", dx.size, args)
    return dx


def localmax_forward_cuda(x, k):
    xp, (n, c, d, h, w) = backend.array_module(x), x.shape
    blocks = -(-d // k) * -(-h // k) * -(-w // k)
    block_max, argmax = xp.empty((n, c, blocks), x.dtype), xp.empty((n, c, blocks), np.int64)
    args = x, block_max, argmax, k, d, h, w, argmax.size
    backend.launch("layers/globalpool3d", "localmax_blocks", argmax.size, args)
    return globalmean_forward_cuda(block_max), argmax


def localmax_backward_cuda(dy, argmax, shape, k):
    dx = backend.array_module(dy).empty(shape, dy.dtype)
    args = dy, argmax, dx, k, *shape[2:], dx.size
    backend.launch("layers/globalpool3d", "localmax_backward", dx.size, args)
    return dx


class GlobalPool3D:
    """Global pooling by `mode` ('max', 'mean' or 'lmax' with blocks of `k` voxels)."""

    def __init__(self, mode, k=8):
        if mode not in ("max", "mean", "lmax"):
            raise ValueError(f"GlobalPool3D: mode {mode!r} is none of max, mean, lmax")
        self.mode, self.k = mode, k

    def forward(self, x, keep=True):
        self.shape, self.argmax = x.shape, None
        if self.mode == "mean":
            return globalmean_forward(x)
        y, argmax = globalmax_forward(x) if self.mode == "max" else localmax_forward(x, self.k)
        self.argmax = argmax if keep else None
        return y

    def backward(self, dy):
        if self.mode == "mean":
            return globalmean_backward(dy, self.shape)
        argmax, self.argmax = self.argmax, None
        if self.mode == "max":
            return globalmax_backward(dy, argmax, self.shape)
        return localmax_backward(dy, argmax, self.shape, self.k)
