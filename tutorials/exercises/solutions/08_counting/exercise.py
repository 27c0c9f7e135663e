import numpy as np


def mse(y, t):
    return np.mean((y - t) ** 2), 2 * (y - t) / len(y)


def globalmax_backward(dy, x):
    dx = np.zeros((len(x), x[0].size))
    for c, voxel in enumerate(x.reshape(len(x), -1).argmax(axis=1)):
        dx[c, voxel] = dy[c]
    return dx.reshape(x.shape)


def adadelta_step(w, g, avg_g2, avg_s2, rho=0.95, eps=1e-6):
    avg_g2 = rho * avg_g2 + (1 - rho) * g**2
    step = -np.sqrt(avg_s2 + eps) / np.sqrt(avg_g2 + eps) * g
    avg_s2 = rho * avg_s2 + (1 - rho) * step**2
    return w + step, avg_g2, avg_s2
