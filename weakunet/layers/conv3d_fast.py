"""The convolution of conv3d.py at the speed of the processor's matrix products (being built up)."""

import numpy as np


def forward(x, w, b):
    """x (N, C_in, D, H, W), w (C_out, C_in, k, k, k), b (C_out,) -> y (N, C_out, D, H, W)."""
    n, c_in, depth, height, width = x.shape
    k, p = w.shape[-1], (w.shape[-1] - 1) // 2
    padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p), (p, p)))
    y = np.empty((n, w.shape[0], depth, height, width), x.dtype)
    columns = np.empty((c_in, k, k, k, height, width), x.dtype)
    for i in range(n):
        for z in range(depth):
            for a, h, v in np.ndindex(k, k, k):
                columns[:, a, h, v] = padded[i, :, z + a, h : h + height, v : v + width]
            product = w.reshape(len(w), -1) @ columns.reshape(-1, height * width)
            y[i, :, z] = (product + b[:, None]).reshape(-1, height, width)
    return y


def backward(dy, x, w, needs_dx=True):
    """Gradients dx (None unless needs_dx), dw, db of `forward`, from dy (N, C_out, D, H, W)."""
    n, c_in, depth, height, width = x.shape
    k, p = w.shape[-1], (w.shape[-1] - 1) // 2
    padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p), (p, p)))
    columns = np.empty((c_in, k, k, k, height, width), x.dtype)
    dw = np.zeros((w[0].size, len(w)), x.dtype)
    for i in range(n):
        for z in range(depth):
            for a, h, v in np.ndindex(k, k, k):
                columns[:, a, h, v] = padded[i, :, z + a, h : h + height, v : v + width]
            dw += columns.reshape(-1, height * width) @ dy[i, :, z].reshape(len(w), -1).T
    flipped = w[:, :, ::-1, ::-1, ::-1].swapaxes(0, 1)
    dx = forward(dy, flipped, np.zeros(c_in, x.dtype)) if needs_dx else None
    return dx, dw.T.reshape(w.shape), dy.sum(axis=(0, 2, 3, 4))
