"""Randomly transformed samples (paper, section 3; which transforms is ours).

A transform is a 3 x 4 matrix that says, for every voxel of the result, where in the scan it comes
from:

    source (z, y, x) = matrix[:, :3] @ target (z, y, x) + matrix[:, 3]

Flips and whole-voxel shifts move voxels without interpolating. Rotations interpolate trilinearly,
in 114 instead of 1.3 ms for a scan of 84x128x168 on one CPU core (AMD Zen 5; a step takes seconds
there); on a GPU the scan is warped there (augment.cu). They are on by default: without them one
network in a few answers a lesion with a broad hill, and two hills become one component (seed 61,
validation: 77 % of the lesions at the true count without, 97 % with). Scaling is off by default.
Lesions are counted, not located, so the label stays as it is.
"""

import itertools

import numpy as np
from scipy import ndimage

from weakunet.gpu import backend


def draw_transform(
    rng, shape, flips="zyx", shift_vox=2, rotate_deg=0, scale=0, in_plane=False, spacing_mm=None
):
    """Draw the matrix (3, 4) of a random transform about the middle of a volume of `shape`.

    flips: the axes that may be mirrored. shift_vox: whole voxels, at most, along each axis.
    rotate_deg: at most, about each axis. scale: at most, as a fraction (0.1: 90 to 110 %).
    in_plane: nothing moves along z, so that a slice of which the lesions were counted stays there.
    spacing_mm: (z, y, x), so that a rotation of long voxels shears nothing; None: cubes.
    Always draws the same number of random numbers, so that one setting does not change the others.
    """
    uniform = rng.random(10)
    mirror = uniform[:3] < 0.5
    shift = np.floor(uniform[3:6] * (2 * shift_vox + 1)) - shift_vox
    angles = np.radians(rotate_deg) * (2 * uniform[6:9] - 1)
    zoom = 1 + scale * (2 * uniform[9] - 1)
    if in_plane:
        mirror[0], shift[0], angles[:2], zoom = False, 0, 0, np.array([1, zoom, zoom])
    linear = np.diag(
        [-1.0 if m and a in flips else 1.0 for m, a in zip(mirror, "zyx", strict=True)]
    )
    if rotate_deg:
        for angle, (a, b) in zip(angles, itertools.combinations(range(3), 2), strict=True):
            rotation = np.eye(3)
            cos, sin = np.cos(angle), np.sin(angle)
            rotation[[a, a, b, b], [a, b, a, b]] = cos, -sin, sin, cos
            linear = linear @ rotation
        mm = np.ones(3) if spacing_mm is None else np.array(spacing_mm)
        linear *= mm / mm[:, None]  # millimetres -> voxels
    middle = (np.array(shape) - 1) / 2
    linear = linear * zoom
    return np.concatenate((linear, (middle - linear @ middle + shift)[:, None]), axis=1)


def warp(volume, matrix):
    """Transform a volume (D, H, W) by `matrix` (3, 4): trilinear, zero outside, same shape; or a
    batch (N, D, H, W), each by its own matrix of (N, 3, 4).

    For volumes on a GPU the matrices should be there too, in float64; otherwise they are copied.
    """
    if backend.is_cuda(volume):
        return warp_cuda(volume, matrix)
    if volume.ndim == 4:
        return np.stack([warp(one, its) for one, its in zip(volume, matrix, strict=True)])
    linear, offset = matrix[:, :3], matrix[:, 3]
    if np.array_equal(np.abs(linear), np.eye(3)) and np.array_equal(offset, np.round(offset)):
        return _flip_and_shift(volume, np.diag(linear), offset.astype(int))
    return ndimage.affine_transform(volume, linear, offset, order=1, mode="grid-constant")


def warp_cuda(volume, matrix):
    xp = backend.array_module(volume)
    result = xp.empty_like(volume)
    args = volume, xp.asarray(matrix, np.float64), result, *volume.shape[-3:], volume.size
    backend.launch("training/augment", "warp", volume.size, args)
    return result


def _flip_and_shift(volume, signs, offset):
    """result[t] = volume[sign * t + offset] where that exists, else 0."""
    result, source, target = np.zeros_like(volume), [], []
    for n, sign, shift in zip(volume.shape, signs, offset, strict=True):
        if sign < 0:  # voxel i of the flipped volume is n - 1 - i
            shift = n - 1 - shift
        source.append(slice(max(0, shift), max(0, n + shift)))
        target.append(slice(max(0, -shift), max(0, n - shift)))
    flipped = np.flip(volume, tuple(np.flatnonzero(signs < 0)))
    result[tuple(target)] = flipped[tuple(source)]
    return result
