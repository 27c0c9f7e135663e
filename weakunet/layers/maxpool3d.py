"""Max pooling over 2x2x2 blocks (paper, section 2.2).

y[d,h,w] = max of x[2d:2d+2, 2h:2h+2, 2w:2w+2].
In backward dy goes to the block's maximum and 0 to the other seven voxels. Ties go to the FIRST in
memory order (z, then y, then x), on the CPU and on the GPU alike. Sizes must be even.
"""

import numpy as np

from weakunet.gpu import backend
from weakunet.layers.relu import relu_backward


def _require_even(x):
    for axis, name in zip((2, 3, 4), "DHW", strict=True):
        if x.shape[axis] % 2:
            raise ValueError(
                f"MaxPool3D: {name} = {x.shape[axis]} is odd (input {x.shape}); pad to an even size"
            )


def maxpool3d_forward(x):
    """Pool (N, C, D, H, W) by 2 along D, H and W.

    Returns
    -------
    y: (N, C, D/2, H/2, W/2).
    winner: uint8 of y's shape, the place 4*dz + 2*dy + dx of the maximum in its block.

    Raises ValueError when D, H or W is odd.
    """
    _require_even(x)
    if backend.is_cuda(x):
        return maxpool3d_forward_cuda(x)
    # x first, then y, then z: at each step a tie keeps the lower index, so the first in memory
    # order wins.
    left, right = x[..., 0::2], x[..., 1::2]
    y, winner = np.maximum(left, right), (right > left).view(np.uint8)
    for axis, step in ((3, 2), (2, 4)):
        low, high = _halves(y, axis)
        low_winner, high_winner = _halves(winner, axis)
        y = np.maximum(low, high)
        winner = np.where(high > low, high_winner + np.uint8(step), low_winner)
    return y, winner


def _halves(x, axis):
    even = [slice(None)] * x.ndim
    odd = list(even)
    even[axis], odd[axis] = slice(0, None, 2), slice(1, None, 2)
    return x[tuple(even)], x[tuple(odd)]


def maxpool3d_backward(dy, winner):
    """dx (N, C, 2D, 2H, 2W) from dy (N, C, D, H, W) and the winners of the forward pass."""
    if backend.is_cuda(dy):
        return maxpool3d_backward_cuda(dy, winner)
    n, c, d, h, w = dy.shape
    dx = np.empty((n, c, d, 2, h, 2, w, 2), dy.dtype)
    for place in range(8):
        dz, dy_, dx_ = place >> 2, place >> 1 & 1, place & 1
        dx[:, :, :, dz, :, dy_, :, dx_] = dy * (winner == place)
    return dx.reshape(n, c, 2 * d, 2 * h, 2 * w)


def maxpool3d_backward_skip(dy, winner, dskip, y):
    """As maxpool3d_backward, where y (N, C, 2D, 2H, 2W), the output of a ReLU, is a skip, too.

    Two gradients meet there: dskip and that of the pooling are added, and the ReLU's backward is
    applied. On a GPU all this is one pass.
    """
    if backend.is_cuda(dy):
        return maxpool3d_backward_skip_cuda(dy, winner, dskip, y)
    return relu_backward(maxpool3d_backward(dy, winner) + dskip, y)


# The CUDA pairs take packed arrays, too (conv/packed.py), whose sixth axis goes along.


def maxpool3d_forward_cuda(x):
    d, h, w = (size // 2 for size in x.shape[2:5])
    xp, shape = backend.array_module(x), (*x.shape[:2], d, h, w, *x.shape[5:])
    y, winner = xp.empty(shape, x.dtype), xp.empty(shape, np.uint8)
    backend.launch("layers/maxpool3d", "maxpool3d_forward", y.size, (x, y, winner, h, w, y.size))
    return y, winner


def maxpool3d_backward_cuda(dy, winner):
    n, c, d, h, w = dy.shape[:5]
    shape = n, c, 2 * d, 2 * h, 2 * w, *dy.shape[5:]
    dx = backend.array_module(dy).empty(shape, dy.dtype)
    args = dy, winner, dx, h, w, dy.size
    backend.launch("layers/maxpool3d", "maxpool3d_backward", dy.size, args)
    return dx


def maxpool3d_backward_skip_cuda(dy, winner, dskip, y):
    dx, (h, w) = backend.array_module(dy).empty_like(y), dy.shape[3:5]
    args = dy, winner, dskip, y, dx, h, w, dy.size
    backend.launch("layers/maxpool3d", "maxpool3d_backward_skip", dy.size, args)
    return dx


class MaxPool3D:
    """2x2x2 max pooling that keeps which voxel won."""

    def forward(self, x, keep=True):
        y, winner = maxpool3d_forward(x)
        self.winner = winner if keep else None
        return y

    def backward(self, dy):
        winner, self.winner = self.winner, None
        return maxpool3d_backward(dy, winner)

    def backward_skip(self, dy, dskip, y):
        winner, self.winner = self.winner, None
        return maxpool3d_backward_skip(dy, winner, dskip, y)
