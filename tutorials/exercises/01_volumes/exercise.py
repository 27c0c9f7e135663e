"""Exercise 1: voxels, axes and millimetres. About 40 minutes.

A volume is an array (D, H, W) = (z, y, x). Its affine A (4, 4) places it in the world:
    (x, y, z, 1)_mm = A (x, y, z, 1)_voxel
Mind the order: an array's index is (z, y, x), but the affine takes and gives (x, y, z).
"""

import numpy as np  # noqa: F401


def index_to_mm(affine, points_zyx):
    """World points (n, 3) in mm, as (x, y, z), of voxel indices (n, 3) as (z, y, x).

    Hint: reverse the columns with [:, ::-1]; A is a 3x3 matrix and, in its last column, a shift.
    Points are ROWS here, so the matrix comes from the right, transposed: points @ matrix.T.
    """
    raise NotImplementedError("index_to_mm is yours to write")


def mm_to_index(affine, points_mm):
    """Voxel indices (n, 3) as (z, y, x), not rounded, of world points (n, 3) in mm as (x, y, z).

    Hint: np.linalg.inv(affine), the same formula, and the columns reversed at the END.
    """
    raise NotImplementedError("mm_to_index is yours to write")


def to_ras(stored, affine):
    """A file's array (i, j, k), as an array (z, y, x) that runs to the right, front and top.

    The file's axes are x, y, z in this order and parallel to the world's, but some may run in the
    opposite direction (a negative number on the affine's diagonal). Returns the array (D, H, W) and
    the affine (4, 4) of its (x, y, z) indices. Every voxel must stay where it was in the world.

    Hint: flipping an axis, i becomes n - 1 - i. So the voxel with index 0 is now the one that had
    index n - 1: where was that in the world? That is the new shift.
    """
    raise NotImplementedError("to_ras is yours to write")
