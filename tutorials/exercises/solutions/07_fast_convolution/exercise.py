import numpy as np


def count_work(c_in, c_out, shape, k):
    voxels = int(np.prod(shape))
    flop = 2 * c_in * k**3 * c_out * voxels
    return flop, 4 * (c_in * voxels + c_out * c_in * k**3 + c_out * voxels)


def im2col(x, k):
    (c_in, depth, height, width), p = x.shape, k // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (p, p)))
    rows = [
        padded[c, i : i + depth, j : j + height, m : m + width].ravel()
        for c, i, j, m in np.ndindex(c_in, k, k, k)
    ]
    return np.stack(rows)
