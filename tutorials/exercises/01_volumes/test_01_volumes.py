import numpy as np
from grading import compare, parts

# a tilted scan of 0.49 x 0.6 x 0.8 mm
AFFINE = np.array(
    [[0.48, -0.07, 0.0, -31.0], [0.09, 0.59, 0.05, -40.0], [0.0, -0.04, 0.79, 12.0], [0, 0, 0, 1]]
)
MATRIX, SHIFT = AFFINE[:3, :3], AFFINE[:3, 3]
ZYX = np.array([[0.0, 0.0, 0.0], [3.0, 5.0, 7.0], [1.5, 0.0, 20.0], [11.0, 2.0, 4.0]])
XYZ = ZYX[:, ::-1]
MM = XYZ @ MATRIX.T + SHIFT
INVERSE, BACK = np.linalg.inv(AFFINE)[:3, :3], np.linalg.inv(AFFINE)[:3, 3]


def test_index_to_mm(answer):
    mistakes = [
        (ZYX @ MATRIX.T + SHIFT, "the index is not reversed: it is (z, y, x), A wants (x, y, z)"),
        (XYZ @ MATRIX.T, "the shift, the affine's last column, is missing"),
        (XYZ @ MATRIX + SHIFT, "the matrix is not transposed: points are rows, points @ matrix.T"),
        (MM[:, ::-1], "the result is (z, y, x): world points are (x, y, z)"),
        (XYZ @ MATRIX.T - SHIFT, "the shift is subtracted: it is added"),
        ((XYZ + SHIFT) @ MATRIX.T, "the shift is added before the matrix: it is in mm, so after"),
        (XYZ * MATRIX.diagonal() + SHIFT, "only the diagonal is used, but this scan is tilted"),
        (XYZ @ INVERSE.T + BACK, "the affine is inverted: that leads from mm to an index"),
    ]
    compare("index_to_mm", answer.index_to_mm(AFFINE, ZYX), MM, mistakes)


def test_mm_to_index(answer):
    mistakes = [
        (XYZ, "the index is (x, y, z): reverse the columns, an array's index is (z, y, x)"),
        ((MM @ INVERSE.T)[:, ::-1], "the shift is not undone: invert the whole 4x4 affine"),
        ((MM @ INVERSE.T - SHIFT)[:, ::-1], "the shift is subtracted after the matrix, not before"),
        ((MM @ MATRIX.T + SHIFT)[:, ::-1], "the affine is not inverted: it leads to mm"),
        ((MM @ INVERSE + BACK)[:, ::-1], "the matrix is not transposed: points are rows"),
        ((MM[:, ::-1] @ INVERSE.T + BACK)[:, ::-1], "the columns are reversed at the beginning"),
        (np.round(ZYX), "the index is rounded: a lesion's centre may lie between voxels"),
        (np.floor(ZYX), "the index is cut to whole numbers: a centre may lie between voxels"),
        (np.trunc(MM @ INVERSE.T + BACK)[:, ::-1], "the index is cut to whole numbers"),
    ]
    compare("mm_to_index", answer.mm_to_index(AFFINE, MM), ZYX, mistakes)


def test_to_ras(answer):
    stored = np.random.default_rng(1).normal(size=(4, 3, 5))
    affine = np.diag([-0.5, 0.6, -0.8, 1.0])
    affine[:3, 3] = 31, -40, 12
    array, its_affine = parts("to_ras", answer.to_ras(stored, affine), "array, affine")
    flipped = stored[::-1, :, ::-1]
    mistakes = [
        (flipped, "the array is still (x, y, z): transpose(2, 1, 0) makes (z, y, x) of it"),
        (stored.transpose(2, 1, 0), "nothing is flipped: x and z run the wrong way here"),
        (np.flip(stored.T), "all axes are flipped: only those with a negative diagonal are"),
    ]
    for order in ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1)):
        mistakes.append((flipped.transpose(order), "its axes are in the wrong order: z, y, x"))
    compare("to_ras's array", array, flipped.transpose(2, 1, 0), mistakes)
    right, sign_only, too_far, opposite = (np.diag([0.5, 0.6, 0.8, 1.0]) for _ in range(4))
    right[:3, 3] = 31 - 3 * 0.5, -40, 12 - 4 * 0.8
    sign_only[:3, 3] = affine[:3, 3]
    too_far[:3, 3] = 31 - 4 * 0.5, -40, 12 - 5 * 0.8
    opposite[:3, 3] = 31 + 3 * 0.5, -40, 12 + 4 * 0.8
    no_sign = right.copy()
    no_sign[[0, 2], [0, 2]] *= -1
    mistakes = [
        (affine, "the voxels moved in the world: the array is flipped, the affine is not"),
        (sign_only, "the voxels moved in the world: the affine's shift must go to the other end"),
        (too_far, "the shift is one voxel too far: the last index is n - 1, not n"),
        (opposite, "the shift goes the wrong way: to the voxel that had index n - 1"),
        (no_sign, "the affine's sign is still negative: the axis runs the other way now"),
    ]
    compare("to_ras's affine", its_affine, right, mistakes)
