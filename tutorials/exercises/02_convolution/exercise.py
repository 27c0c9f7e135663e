"""Exercise 2: the convolution by hand. About 45 minutes.

    y[o, z, y, x] = b[o] + sum over c, i, j, m of w[o, c, i, j, m] x[c, z+i-p, y+j-p, x+m-p]

with p = (k-1)/2, and x zero outside the volume. As everywhere in deep learning the kernel is NOT
flipped (it is a cross-correlation). Loops are fine here: the data are tiny.
"""

import numpy as np  # noqa: F401


def conv1d(x, w):
    """y[t] = sum_i w[i] x[t+i-p] of x (n,) with w (k,), k odd; y (n,), x zero outside.

    Hint: pad x with p zeros on both sides (np.pad); then y[t] = w . padded[t : t+k].
    """
    raise NotImplementedError("conv1d is yours to write")


def conv1d_matrix(w, n):
    """The matrix T (n, n) with T @ x = conv1d(x, w) for every x (n,).

    A convolution is linear, so it is a matrix. Its TRANSPOSE is the backward pass (lesson 3). Hint:
    row t says which x go into y[t]: T[t, s] = w[s - t + p] where that exists, else 0.
    """
    raise NotImplementedError("conv1d_matrix is yours to write")


def conv3d(x, w, b):
    """Convolve x (C_in, D, H, W) with w (C_out, C_in, k, k, k), add b (C_out,): (C_out, D, H, W).

    Hint: `for i, j, m in np.ndindex(k, k, k)`: this tap sees padded[:, i:i+D, j:j+H, m:m+W], and
    its weights w[:, :, i, j, m] (C_out, C_in) mix the channels: np.tensordot(..., axes=(1, 0)).
    """
    raise NotImplementedError("conv3d is yours to write")
