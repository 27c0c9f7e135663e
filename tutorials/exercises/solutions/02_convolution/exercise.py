import numpy as np


def conv1d(x, w):
    k = len(w)
    padded = np.pad(x, k // 2)
    return np.array([w @ padded[t : t + k] for t in range(len(x))])


def conv1d_matrix(w, n):
    matrix, p = np.zeros((n, n)), len(w) // 2
    for t in range(n):
        for i in range(len(w)):
            if 0 <= t + i - p < n:
                matrix[t, t + i - p] = w[i]
    return matrix


def conv3d(x, w, b):
    k, (depth, height, width) = w.shape[-1], x.shape[1:]
    p = k // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (p, p)))
    y = np.zeros((len(w), depth, height, width))
    for i, j, m in np.ndindex(k, k, k):
        window = padded[:, i : i + depth, j : j + height, m : m + width]
        y += np.tensordot(w[:, :, i, j, m], window, axes=(1, 0))
    return y + b[:, None, None, None]
