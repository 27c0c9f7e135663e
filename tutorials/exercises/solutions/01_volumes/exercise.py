import numpy as np


def index_to_mm(affine, points_zyx):
    return points_zyx[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]


def mm_to_index(affine, points_mm):
    inverse = np.linalg.inv(affine)
    points_xyz = points_mm @ inverse[:3, :3].T + inverse[:3, 3]
    return points_xyz[:, ::-1]


def to_ras(stored, affine):
    array, affine = stored, affine.copy()
    for axis in range(3):
        if affine[axis, axis] < 0:
            array = np.flip(array, axis)
            affine[axis, 3] += (stored.shape[axis] - 1) * affine[axis, axis]
            affine[axis, axis] *= -1
    return array.transpose(2, 1, 0), affine
