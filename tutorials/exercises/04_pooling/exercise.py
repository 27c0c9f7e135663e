"""Exercise 4: pooling, upsampling and ties. About 40 minutes.

Volumes are (D, H, W) here, all sizes even. Places are counted in memory order: z first, then y,
then x; so in a 2x2x2 block the voxels are numbered 4a + 2b + c for (a, b, c) along (z, y, x).
"""

import numpy as np  # noqa: F401


def maxpool_forward(x):
    """The maximum of each 2x2x2 block of x (D, H, W): y (D/2, H/2, W/2).

    Hint: x.reshape(D//2, 2, H//2, 2, W//2, 2) gives each block three axes of its own.
    """
    raise NotImplementedError("maxpool_forward is yours to write")


def maxpool_backward(dy, x):
    """dx (D, H, W) from dy (D/2, H/2, W/2): the block's maximum gets all of dy, the others 0.

    When several voxels of a block share the maximum, the FIRST in memory order gets it.
    Hint: np.argmax breaks ties towards the first. Loops over the blocks are fine.
    """
    raise NotImplementedError("maxpool_backward is yours to write")


def upsample_backward(dy):
    """dx (D, H, W) of y[z, y, x] = x[z//2, y//2, x//2], from dy (2D, 2H, 2W).

    Hint: how often was each voxel of x copied? The gradients of all its copies add up.
    """
    raise NotImplementedError("upsample_backward is yours to write")
