"""ReLU: y = max(x, 0), after every convolution but the last (paper, section 2.2).

Backward: dx = dy where y > 0, else 0; the derivative at 0 is taken as 0. The output y is enough to
know where.
"""

import numpy as np


def relu_forward(x):
    """y = max(x, 0); x of any shape."""
    return np.maximum(x, 0)


def relu_backward(dy, y):
    """dx from dy and the OUTPUT y of the forward pass (all of one shape)."""
    return dy * (y > 0)


class ReLU:
    """ReLU that remembers its output."""

    def forward(self, x, keep=True):
        y = relu_forward(x)
        self.y = y if keep else None
        return y

    def backward(self, dy):
        dx = relu_backward(dy, self.y)
        self.y = None
        return dx
