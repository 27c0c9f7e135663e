"""The mean squared error of the count (paper, section 2.2): L = 1/N sum_n (y_n - t_n)^2.

y are the predicted counts of a batch, t the true ones; dL/dy_n = 2 (y_n - t_n) / N.
"""

from weakunet.gpu import backend


def mse_forward(y, t):
    """Mean squared error of y (N,) against t (N,), as a scalar of their dtype."""
    if backend.is_cuda(y):
        return mse_forward_cuda(y, t)
    return ((y - t) ** 2).mean()


def mse_backward(y, t):
    """dy (N,): the gradient of the mean squared error with respect to y."""
    if backend.is_cuda(y):
        return mse_backward_cuda(y, t)
    return (2 / y.shape[0]) * (y - t)


def mse_forward_cuda(y, t):
    loss = backend.array_module(y).empty(1, y.dtype)
    backend.launch("layers/loss", "mse_forward", 1, (y, t, loss, y.size))
    return loss[0]


def mse_backward_cuda(y, t):
    dy = backend.array_module(y).empty_like(y)
    backend.launch("layers/loss", "mse_backward", y.size, (y, t, dy, y.size))
    return dy
