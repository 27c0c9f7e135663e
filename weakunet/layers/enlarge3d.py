"""Upsample a map m-fold to the input's size, trilinearly, with aligned CENTRES.

Voxel j of a map that was pooled m-fold covers the fine voxels jm ... jm + m - 1, so fine voxel i
lies at the coarse position (i + 1/2) / m - 1/2. Each axis in turn is interpolated linearly between
the two nearest coarse centres; beyond the outermost ones the map is constant. The network does not
learn through this, so there is no backward. Plain array expressions run on either device.
"""

import numpy as np

from weakunet.gpu import backend


def enlarge3d(x, m):
    """(N, C, D, H, W) -> (N, C, mD, mH, mW)."""
    for axis in (2, 3, 4) if m > 1 else ():
        x = _enlarge_axis(x, m, axis)
    return x


def _enlarge_axis(x, m, axis):
    xp, n = backend.array_module(x), x.shape[axis]
    position = np.clip((np.arange(n * m) + 0.5) / m - 0.5, 0, n - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, n - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    fraction = xp.asarray((position - low).astype(x.dtype).reshape(shape))
    low, high = (xp.take(x, xp.asarray(at), axis=axis) for at in (low, high))
    return low + (high - low) * fraction
