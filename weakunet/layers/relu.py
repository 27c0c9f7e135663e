"""ReLU: y = max(x, 0), after every convolution but the last (paper, section 2.2).

Backward: dx = dy where y > 0, else 0; the derivative at 0 is taken as 0. The output y is enough to
know where.
"""

import numpy as np

from weakunet.gpu import backend


def relu_forward(x):
    """y = max(x, 0); x of any shape."""
    if backend.is_cuda(x):
        return relu_forward_cuda(x)
    return np.maximum(x, 0)


def relu_backward(dy, y):
    """dx from dy and the OUTPUT y of the forward pass (all of one shape)."""
    if backend.is_cuda(dy):
        return relu_backward_cuda(dy, y)
    return dy * (y > 0)


def relu_forward_cuda(x):
    y = backend.array_module(x).empty_like(x)
    backend.launch("layers/relu", "relu_forward", x.size, (x, y, x.size))
    return y


def relu_backward_cuda(dy, y):
    dx = backend.array_module(dy).empty_like(dy)
    backend.launch("layers/relu", "relu_backward", dy.size, (dy, y, dx, dy.size))
    return dx


class ReLU:
    """ReLU that keeps its output for backward."""

    def forward(self, x, keep=True):
        y = relu_forward(x)
        self.y = y if keep else None
        return y

    def backward(self, dy):
        dx = relu_backward(dy, self.y)
        self.y = None
        return dx
