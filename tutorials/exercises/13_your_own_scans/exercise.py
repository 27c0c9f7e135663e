"""Exercise 13: between a scan, its prepared copy and other people's masks. About 45 minutes.

Arrays are as nibabel gives them, (i, j, k), and so are points, (n, 3): nothing is reversed here.
An affine A (4, 4) leads from an index to world millimetres, and move_points(A, points) does it for
n points at once. It takes any 4x4 matrix: np.linalg.inv(A) leads back to an index.
"""

import numpy as np  # noqa: F401
from scipy import ndimage  # noqa: F401

from weakunet.data.rigid import move_points  # noqa: F401


def crop(image, affine, region, margin):
    """Crop image to the box of region (bool, the same shape), `margin` voxels wider on each side
    but never wider than the image. Returns the cropped array and its affine.

    The affine must change: voxel (0, 0, 0) is another one now, and every voxel must stay where it
    was in the world. Intensities stay the same.
    Hint: np.argwhere(region) lists its voxels. Where in the world was the corner, relative to
    voxel (0, 0, 0)? The scan may be tilted, so use the whole 3x3 matrix.
    """
    raise NotImplementedError("crop is yours to write")


def to_scan(points_ijk, affine, to_template, scan_affine):
    """Detections of a prepared scan, carried back to the scan as it came from the scanner.

    points_ijk (n, 3) are indices of the prepared file, whose affine leads to the TEMPLATE's world,
    because the scan was registered first. to_template (4, 4) is what the registration wrote:
        (x, y, z, 1)_template = to_template (x, y, z, 1)_scan
    scan_affine belongs to the original file. Returns the points in mm of the scan's own world, and
    as indices of its own file, not rounded; both (n, 3).
    """
    raise NotImplementedError("to_scan is yours to write")


def carry_labels(labels, labels_affine, shape, affine):
    """A label image (FreeSurfer's, say) on the grid of a scan, whose shape and affine are given.

    Both files lie in the same world, on different grids. Each voxel of the scan gets the label of
    the voxel that its CENTRE falls into, and 0 outside the label image.
    Hint: start from the scan's voxels, np.indices(shape).reshape(3, -1).T, not from the labels:
    every voxel of the result must get a value. A voxel extends half a voxel around its centre.
    """
    raise NotImplementedError("carry_labels is yours to write")


def count_lesions(mask, region, k=None):
    """How many lesions of mask (bool) count: those whose centre of mass lies in region (bool).

    A lesion is a component, diagonal neighbours joined. k is None: in 3-D (26 neighbours). With k:
    in the slice [:, :, k], as if it were the only one (8 neighbours); the paper counts like this.
    Hint: ndimage.label(mask, np.ones((3, 3, 3))), ndimage.center_of_mass; the voxel of a centre is
    np.round of it. A slice k:k + 1 is still an array with three axes. The mask may be empty.
    """
    raise NotImplementedError("count_lesions is yours to write")
