"""3D convolution, zero padded, stride 1 (a cross-correlation, as everywhere in deep learning).

    y[n, o, z, y, x] = b[o] + sum_{c, i, j, m} w[o, c, i, j, m] x[n, c, z+i-p, y+j-p, x+m-p]

with p = (k-1)/2 and x zero outside the volume. Read it as k*k*k "taps": each is one matrix product
of w[:, :, i, j, m] (C_out, C_in) with the input shifted by that tap. `conv3d_forward` and
`conv3d_backward` say just that and are the reference; the class `Conv3D` computes the same numbers
with cpu.py. On a GPU all of them run the kernels of gpu.py.
"""

import numpy as np

from weakunet.gpu import backend
from weakunet.layers.conv import cpu as conv3d_fast
from weakunet.layers.conv.gpu import conv3d_backward_cuda, conv3d_forward_cuda


def _pad(x, k):
    p = (k - 1) // 2
    return np.pad(x, ((0, 0), (0, 0), (p, p), (p, p), (p, p)))


def _window(x, k, tap):
    """What tap (i, j, m) of k x k x k sees of the padded x (N, C, D+k-1, H+k-1, W+k-1): a view."""
    return x[(..., *(slice(t, t + n - k + 1) for t, n in zip(tap, x.shape[2:], strict=True)))]


def conv3d_forward(x, w, b):
    """Convolve x (N, C_in, D, H, W) with w (C_out, C_in, k, k, k), k odd, and add b (C_out,).

    Returns y (N, C_out, D, H, W).
    """
    if backend.is_cuda(x):
        return conv3d_forward_cuda(x, w, b)
    k, padded = w.shape[-1], _pad(x, w.shape[-1])
    y = np.zeros((w.shape[0], x.shape[0], *x.shape[2:]), x.dtype)  # (C_out, N, D, H, W)
    for tap in np.ndindex(k, k, k):
        y += np.tensordot(w[(..., *tap)], _window(padded, k, tap), axes=(1, 1))
    return np.ascontiguousarray(y.swapaxes(0, 1)) + b[:, None, None, None]


def conv3d_backward(dy, x, w):
    """Gradients of a loss in x, w and b, from its gradient dy (N, C_out, D, H, W) in y.

    Each tap gave y += w_tap window, so dw_tap = dy window^T, and the window of dx gets w_tap^T dy.
    Returns dx, dw, db with the shapes of x, w, b.
    """
    if backend.is_cuda(dy):
        return conv3d_backward_cuda(dy, x, w)
    k, p, padded = w.shape[-1], (w.shape[-1] - 1) // 2, _pad(x, w.shape[-1])
    dpadded, dw = np.zeros_like(padded), np.empty_like(w)
    for tap in np.ndindex(k, k, k):
        window = _window(padded, k, tap)
        dw[(..., *tap)] = np.tensordot(dy, window, axes=((0, 2, 3, 4), (0, 2, 3, 4)))
        dwindow = _window(dpadded, k, tap)
        dwindow += np.tensordot(w[(..., *tap)], dy, axes=(0, 1)).swapaxes(0, 1)
    dx = dpadded[(..., *(slice(p, p + n) for n in x.shape[2:]))]
    return np.ascontiguousarray(dx), dw, dy.sum(axis=(0, 2, 3, 4))


class Conv3D:
    """A convolution layer; weights Gaussian of variance 2 / (C_in k^3) (He et al. 2015), bias zero.

    k is 1 or 3. The first layer of a network passes `needs_dx=False`: nobody asks for the gradient
    in the image, and its backward then returns None.

    On a GPU: `kernel` is the rung that computes it; `relu`, forward computes the ReLU behind it,
    too; `mask`, backward computes that of the ReLU before it, too (its input is that one's output).
    On a CPU: `rounding` (rounding.py) is what is done to all factors, as a GPU's tensor cores do.
    """

    kernel, relu, mask, rounding = "tiled", False, False, None

    def __init__(self, c_in, c_out, k=3, *, rng, dtype=np.float32, needs_dx=True):
        std = np.sqrt(2 / (c_in * k**3))
        w = rng.normal(0, std, (c_out, c_in, k, k, k)).astype(dtype)
        self.params = {"w": w, "b": np.zeros(c_out, dtype)}
        self.grads = {name: np.zeros_like(value) for name, value in self.params.items()}
        self.needs_dx = needs_dx
        self.x = None

    def forward(self, x, keep=True):
        """x (N, C_in, D, H, W) -> y (N, C_out, D, H, W); `keep`s x for backward."""
        x = self._rounded(x)
        self.x = x if keep else None
        w, b = self.params["w"], self.params["b"]
        if backend.is_cuda(x):
            return conv3d_forward_cuda(x, w, b, self.kernel, self.relu)
        return conv3d_fast.forward(x, self._rounded(w), b)

    def backward(self, dy):
        """dy (N, C_out, D, H, W) -> dx (N, C_in, D, H, W) or None; sets grads, lets go of x."""
        x, self.x = self.x, None
        args = self._rounded(dy), x, self._rounded(self.params["w"]), self.needs_dx
        if backend.is_cuda(dy):
            dx, dw, db = conv3d_backward_cuda(*args, self.kernel, self.mask)
        else:
            dx, dw, db = conv3d_fast.backward(*args)
        if self.rounding:
            db = conv3d_fast.bias_gradient(dy)  # a sum, no product: nothing is rounded
        self.grads["w"], self.grads["b"] = dw, db
        return dx

    def _rounded(self, factor):
        return factor if self.rounding is None else self.rounding(factor)
