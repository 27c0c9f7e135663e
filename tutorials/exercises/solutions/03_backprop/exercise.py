import numpy as np


def relu_backward(dy, y):
    return dy * (y > 0)


def numerical_gradient(loss, x, h=1e-6):
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        value = x[index]
        x[index] = value + h
        above = loss()
        x[index] = value - h
        below = loss()
        x[index] = value
        gradient[index] = (above - below) / (2 * h)
    return gradient


def conv3d_backward(dy, x, w):
    k, (depth, height, width) = w.shape[-1], x.shape[2:]
    p = k // 2
    padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p), (p, p)))
    dpadded, dw = np.zeros(padded.shape), np.zeros(w.shape)
    for i, j, m in np.ndindex(k, k, k):
        seen = np.s_[:, :, i : i + depth, j : j + height, m : m + width]
        dw[:, :, i, j, m] = np.tensordot(dy, padded[seen], axes=((0, 2, 3, 4), (0, 2, 3, 4)))
        dpadded[seen] += np.tensordot(w[:, :, i, j, m], dy, axes=(0, 1)).swapaxes(0, 1)
    dx = dpadded[:, :, p : p + depth, p : p + height, p : p + width]
    return dx, dw, dy.sum(axis=(0, 2, 3, 4))
