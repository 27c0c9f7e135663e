"""The mean squared error of the count (paper, section 2.2): L = 1/N sum_n (y_n - t_n)^2.

y are the predicted counts of a batch, t the true ones, e_n = y_n - t_n; dL/dy_n = 2 e_n / N.

L is the square of the batch's mean error m plus the mean square of what is left, e_n - m. The first
is about the level of the count, which any weight changes, the second about telling one scan from
another. `common` (ours) weighs the first down, and `bound` (ours) limits each error:

    dL/dy_n = 2 (e_n - m + common m) / N,    e_n within -bound ... bound
"""

import numpy as np

from weakunet.gpu import backend


def mse_forward(y, t):
    """Mean squared error of y (N,) against t (N,), as a scalar of their dtype."""
    if backend.is_cuda(y):
        return mse_forward_cuda(y, t)
    return ((y - t) ** 2).mean()


def mse_backward(y, t, common=1.0, bound=np.inf):
    """dy (N,): the gradient of the mean squared error with respect to y (see above)."""
    if backend.is_cuda(y):
        return mse_backward_cuda(y, t, common, bound)
    error = np.clip(y - t, -bound, bound).astype(y.dtype, copy=False)
    return (2 / y.shape[0]) * (error - y.dtype.type(1 - common) * error.mean())


def mse_forward_cuda(y, t):
    loss = backend.array_module(y).empty(1, y.dtype)
    backend.launch("layers/loss", "mse_forward", 1, (y, t, loss, y.size))
    return loss[0]


def mse_backward_cuda(y, t, common=1.0, bound=np.inf):
    dy = backend.array_module(y).empty_like(y)
    args = y, t, dy, float(common), float(bound), y.size
    backend.launch("layers/loss", "mse_backward", y.size, args)
    return dy
