"""The convolution's backward when its dy is zero almost everywhere.

Behind a global max pooling one voxel of each feature map has a gradient, behind the mean of local
maxima one a block. The gradients in w and x are sums over just these voxels:

    dw[o, c, tap] = sum_v dy[o, v] x[c, v + tap]          dx[c, v + tap] += w[o, c, tap] dy[o, v]
"""

import numpy as np

from weakunet.util.threads import share_out

SPARSE = 0.08  # the largest share of voxels for which this is faster than the dense way (measured)


def nonzero_voxels(dy):
    """Where (N, D, H, W) some channel of dy is not 0; None when that is more than a few voxels."""
    sample = dy.reshape(-1)[:: max(1, dy.size // 4096)]
    if np.count_nonzero(sample) > SPARSE * sample.size:
        return None
    voxels = (dy != 0).any(axis=1)
    return voxels if np.count_nonzero(voxels) <= SPARSE * voxels.size else None


def sparse_backward(dy, x, w, voxels, needs_dx):
    """dx (or None) and dw when dy is zero but for `voxels` (N, D, H, W).

    Channels come last here and the scan has a border of zeros, so that a voxel's 27 neighbours are
    27 short rows to pick up, and a tap is one offset, the same for all voxels.
    """
    n, c, depth, height, width = x.shape
    dx = np.empty_like(x) if needs_dx else None
    taps = np.ascontiguousarray(w.reshape(len(w), c, 27).swapaxes(1, 2)).reshape(len(w), 27 * c)
    shape = depth + 2, height + 2, width + 2
    offsets = np.ravel_multi_index(np.indices((3, 3, 3)), shape).ravel()

    def work(i):
        padded = np.zeros((*shape, c), x.dtype)
        padded[1:-1, 1:-1, 1:-1] = x[i].transpose(1, 2, 3, 0)
        dpadded = np.zeros_like(padded) if needs_dx else None
        dw = np.zeros_like(taps)
        at = np.nonzero(voxels[i])
        corner = np.ravel_multi_index(at, shape)
        at = np.ravel_multi_index(at, x.shape[2:])
        for part in (slice(j, j + 1024) for j in range(0, len(at), 1024)):
            dy_part = dy[i].reshape(len(w), -1)[:, at[part]].T  # (voxels, C_out)
            near = corner[part] + offsets[:, None]  # (27, voxels)
            cols = np.take(padded.reshape(-1, c), near.T, axis=0).reshape(-1, 27 * c)
            dw += dy_part.T @ cols
            if needs_dx:
                dcols = (dy_part @ taps).reshape(-1, 27, c)
                for tap in range(27):  # no voxel twice in a tap, so += adds all
                    dpadded.reshape(-1, c)[near[tap]] += dcols[:, tap]
        if needs_dx:
            dx[i] = dpadded[1:-1, 1:-1, 1:-1].transpose(3, 0, 1, 2)
        return dw

    dw = sum(share_out(work, range(n)))
    return dx, np.ascontiguousarray(dw.reshape(len(w), 27, c).swapaxes(1, 2)).reshape(w.shape)
