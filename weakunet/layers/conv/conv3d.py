"""3D convolution, zero padded, stride 1 (a cross-correlation, as everywhere in deep learning).

    y[n, o, z, y, x] = b[o] + sum_{c, i, j, m} w[o, c, i, j, m] x[n, c, z+i-p, y+j-p, x+m-p]

with p = (k-1)/2 and x zero outside the volume. Read it as k*k*k "taps": each is one matrix product
of w[:, :, i, j, m] (C_out, C_in) with the input shifted by that tap. `conv3d_forward` and
`conv3d_backward` say just that.
"""

import numpy as np

from weakunet.gpu import backend
from weakunet.layers.conv import cpu
from weakunet.layers.conv.gpu import KERNEL_OF, conv3d_backward_cuda, conv3d_forward_cuda
from weakunet.layers.relu import relu_backward, relu_forward


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
        # (C_out, C_in) times (N, C_in, D, H, W), summed over C_in
        y += np.tensordot(w[(..., *tap)], _window(padded, k, tap), axes=(1, 1))
    return np.ascontiguousarray(y.swapaxes(0, 1)) + b[:, None, None, None]


def conv3d_backward(dy, x, w):
    """The gradients with respect to x, w and b, from dy (N, C_out, D, H, W).

    Each tap gave y += w_tap window, so dw_tap = dy window^T, and the window of dx gets w_tap^T dy.
    Returns dx, dw, db with the shapes of x, w, b.
    """
    if backend.is_cuda(dy):
        return conv3d_backward_cuda(dy, x, w)
    k, p, padded = w.shape[-1], (w.shape[-1] - 1) // 2, _pad(x, w.shape[-1])
    dpadded, dw = np.zeros_like(padded), np.empty_like(w)
    for tap in np.ndindex(k, k, k):
        window = _window(padded, k, tap)
        # summed over scans and voxels -> (C_out, C_in)
        dw[(..., *tap)] = np.tensordot(dy, window, axes=((0, 2, 3, 4), (0, 2, 3, 4)))
        dwindow = _window(dpadded, k, tap)
        dwindow += np.tensordot(w[(..., *tap)], dy, axes=(0, 1)).swapaxes(0, 1)
    dx = dpadded[(..., *(slice(p, p + n) for n in x.shape[2:]))]
    return np.ascontiguousarray(dx), dw, dy.sum(axis=(0, 2, 3, 4))


class Conv3D:
    """A convolution layer; weights Gaussian of variance 2 / (C_in k^3) (He et al. 2015), bias zero.

    k is 1 or 3. On a CPU it runs cpu.py, the pair above made fast (test_conv3d.py holds them
    equal); on a GPU the kernels of gpu.py.
    """

    def __init__(self, c_in, c_out, k=3, *, rng, dtype=np.float32):
        std = np.sqrt(2 / (c_in * k**3))
        w = rng.normal(0, std, (c_out, c_in, k, k, k)).astype(dtype)
        self.params = {"w": w, "b": np.zeros(c_out, dtype)}
        self.grads = {name: np.zeros_like(value) for name, value in self.params.items()}
        self.kernel = "tiled"  # of a GPU
        self.x = None

    def forward(self, x, keep=True, relu=False, inside=None):
        """x (N, C_in, D, H, W) -> y (N, C_out, D, H, W); `keep` x for backward.

        Fused: relu, then y = max(y, 0); inside (N, 1, D, H, W) of 0 and 1, then y * inside.
        """
        self.x = x if keep else None
        w, b = self.params["w"], self.params["b"]
        if backend.is_cuda(x):
            return conv3d_forward_cuda(x, w, b, self.kernel, relu, inside)
        y = cpu.forward(x, w, b)
        y = relu_forward(y) if relu else y
        return y if inside is None else y * inside

    def backward(self, dy, needs_dx=True, mask=False):
        """dy (N, C_out, D, H, W) -> dx (N, C_in, D, H, W); sets grads, releases x.

        mask: x came out of a ReLU, whose backward is computed as well: dx is 0 where x is 0.
        Without `needs_dx` dx is None.
        """
        x, self.x = self.x, None
        args = dy, x, self.params["w"], needs_dx
        if backend.is_cuda(dy):
            dx, self.grads["w"], self.grads["b"] = conv3d_backward_cuda(*args, self.kernel, mask)
            return dx
        dx, self.grads["w"], self.grads["b"] = cpu.backward(*args)
        return relu_backward(dx, x) if mask else dx

    def to(self, device, precision="fp32"):
        """Move its arrays to 'cpu' or 'cuda'; `precision` is that of a GPU (see gpu.py)."""
        backend.move(self, device)
        self.kernel = KERNEL_OF[precision]
