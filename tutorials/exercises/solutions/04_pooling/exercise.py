import numpy as np


def maxpool_forward(x):
    d, h, w = (size // 2 for size in x.shape)
    return x.reshape(d, 2, h, 2, w, 2).max(axis=(1, 3, 5))


def maxpool_backward(dy, x):
    dx = np.zeros(x.shape)
    for z, y, x_ in np.ndindex(dy.shape):
        seen = np.s_[2 * z : 2 * z + 2, 2 * y : 2 * y + 2, 2 * x_ : 2 * x_ + 2]
        winner = np.unravel_index(np.argmax(x[seen]), (2, 2, 2))
        dx[seen][winner] = dy[z, y, x_]
    return dx


def upsample_backward(dy):
    d, h, w = (size // 2 for size in dy.shape)
    return dy.reshape(d, 2, h, 2, w, 2).sum(axis=(1, 3, 5))
