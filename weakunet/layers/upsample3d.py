"""Nearest-neighbour upsampling by 2x2x2 (paper, section 2.2; the kind is ours).

y[d,h,w] = x[d//2, h//2, w//2].
Backward: every input voxel was copied eight times, so its gradient is the sum of the eight.
"""

import numpy as np

from weakunet.gpu import backend


def upsample3d_forward(x):
    """(N, C, D, H, W) -> (N, C, 2D, 2H, 2W), each voxel repeated along D, H and W."""
    if backend.is_cuda(x):
        return upsample3d_forward_cuda(x)
    n, c, d, h, w = x.shape
    # along W first: numpy copies whole rows fast
    rows = np.empty((n, c, d, 1, h, 1, w, 2), x.dtype)
    rows[..., 0] = rows[..., 1] = x[:, :, :, None, :, None]
    y = np.empty((n, c, d, 2, h, 2, 2 * w), x.dtype)
    y[:] = rows.reshape(n, c, d, 1, h, 1, 2 * w)
    return y.reshape(n, c, 2 * d, 2 * h, 2 * w)


def upsample3d_backward(dy):
    """(N, C, 2D, 2H, 2W) -> (N, C, D, H, W), the sum over each 2x2x2 block."""
    if backend.is_cuda(dy):
        return upsample3d_backward_cuda(dy)
    dx = dy[:, :, 0::2] + dy[:, :, 1::2]
    dx = dx[:, :, :, 0::2] + dx[:, :, :, 1::2]
    return dx[..., 0::2] + dx[..., 1::2]


def upsample3d_forward_cuda(x):
    n, c, d, h, w = x.shape
    y = backend.array_module(x).empty((n, c, 2 * d, 2 * h, 2 * w), x.dtype)
    backend.launch("layers/upsample3d", "upsample3d_forward", y.size, (x, y, h, w, y.size))
    return y


def upsample3d_backward_cuda(dy):
    n, c, d, h, w = (*dy.shape[:2], *(size // 2 for size in dy.shape[2:]))
    dx = backend.array_module(dy).empty((n, c, d, h, w), dy.dtype)
    backend.launch("layers/upsample3d", "upsample3d_backward", dx.size, (dy, dx, h, w, dx.size))
    return dx
