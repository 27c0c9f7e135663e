"""Global pooling: one number x_i = g(f_i) per feature map f_i (paper, section 2.2).

Three mappings g, each with the gradient it sends back:
  max   the largest voxel (the paper's worked example); all of the gradient goes to that one voxel.
  mean  the mean over all voxels; every voxel gets an equal, tiny share.
  lmax  the mean of local maxima (ours, not the paper's): the largest voxel of each k x k x k block,
        then the mean over the blocks. It adds up over lesions like the mean, and its gradient
        reaches one voxel a block, as the max's does.
Ties go to the first voxel in memory order. A last block that does not fit is simply smaller.
"""

import numpy as np


def globalmax_forward(x):
    """x (N, C, D, H, W) -> y (N, C), argmax (N, C): the flat voxel index of each maximum."""
    voxels = x.reshape(*x.shape[:2], -1)
    argmax = voxels.argmax(axis=2)
    return np.take_along_axis(voxels, argmax[..., None], axis=2)[..., 0], argmax


def globalmax_backward(dy, argmax, shape):
    """dx of `shape` (N, C, D, H, W): dy (N, C) at the maxima, 0 elsewhere."""
    dx = np.zeros(shape, dy.dtype)
    np.put_along_axis(dx.reshape(*shape[:2], -1), argmax[..., None], dy[..., None], axis=2)
    return dx


def globalmean_forward(x):
    """x (N, C, D, H, W) -> y (N, C)."""
    return x.mean(axis=(2, 3, 4))


def globalmean_backward(dy, shape):
    """dx of `shape` (N, C, D, H, W): every voxel gets dy / (D H W)."""
    voxels = shape[2] * shape[3] * shape[4]
    return np.broadcast_to((dy / dy.dtype.type(voxels))[..., None, None, None], shape)


def localmax_forward(x, k):
    """x (N, C, D, H, W) -> y (N, C), the mean over k x k x k blocks of each block's maximum, and
    argmax (N, C, blocks), the flat voxel index of each block's maximum.
    """
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


def localmax_backward(dy, argmax, shape):
    """dx of `shape` (N, C, D, H, W): dy / blocks at each block's maximum, 0 elsewhere."""
    dx = np.zeros(shape, dy.dtype)
    share = np.broadcast_to((dy / dy.dtype.type(argmax.shape[2]))[..., None], argmax.shape)
    np.put_along_axis(dx.reshape(*shape[:2], -1), argmax, share, axis=2)
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
        scatter = globalmax_backward if self.mode == "max" else localmax_backward
        dx = scatter(dy, self.argmax, self.shape)
        self.argmax = None
        return dx
