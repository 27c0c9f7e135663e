"""The mean squared error of the count (paper, section 2.2): L = 1/N sum_n (y_n - t_n)^2.

y are the predicted counts of a batch, t the true ones; dL/dy_n = 2 (y_n - t_n) / N.
"""


def mse_forward(y, t):
    """Mean squared error of y (N,) against t (N,), as a scalar of their dtype."""
    return ((y - t) ** 2).mean()


def mse_backward(y, t):
    """dy (N,): the gradient of the mean squared error in y."""
    return (2 / y.shape[0]) * (y - t)
