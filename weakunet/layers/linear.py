"""The last layer: count = w . x + b with x = G(f), one number per feature map (paper, eqs. 1, 2).

No activation follows. Without the global pooling the same w makes the heatmap, M = sum_i w_i f_i
(eq. 3). Backward: dx = dy w, dw = sum over the batch of dy x, db = sum of dy.
"""

import numpy as np

from weakunet.gpu import backend


def linear_forward(x, w, b):
    """x (N, C), w (C,), b (1,) -> y (N,)."""
    if backend.is_cuda(x):
        return linear_forward_cuda(x, w, b)
    return x @ w + b


def linear_backward(dy, x, w):
    """dx (N, C), dw (C,), db (1,) from dy (N,)."""
    if backend.is_cuda(dy):
        return linear_backward_cuda(dy, x, w)
    return dy[:, None] * w, dy @ x, dy.sum(keepdims=True)


def linear_forward_cuda(x, w, b):
    y = backend.array_module(x).empty(len(x), x.dtype)
    backend.launch("layers/linear", "linear_forward", len(x), (x, w, b, y, *x.shape))
    return y


def linear_backward_cuda(dy, x, w):
    xp, (scans, channels) = backend.array_module(dy), x.shape
    dx, dw, db = (xp.empty(shape, x.dtype) for shape in (x.shape, channels, 1))
    args = dy, x, w, dx, dw, db, scans, channels
    backend.launch("layers/linear", "linear_backward", channels + 1, args)
    return dx, dw, db


class Linear:
    """w . x + b with a Gaussian start: w ~ N(0, 1/C), b = 0."""

    def __init__(self, c, rng, dtype=np.float32):
        w = rng.standard_normal(c) / np.sqrt(c)
        self.params = {"w": w.astype(dtype), "b": np.zeros(1, dtype)}
        self.grads = {name: np.zeros_like(value) for name, value in self.params.items()}

    def forward(self, x, keep=True):
        self.x = x if keep else None
        return linear_forward(x, self.params["w"], self.params["b"])

    def backward(self, dy):
        dx, self.grads["w"], self.grads["b"] = linear_backward(dy, self.x, self.params["w"])
        self.x = None
        return dx

    def to(self, device):
        """Move its arrays to 'cpu' or 'cuda'."""
        backend.move(self, device)
