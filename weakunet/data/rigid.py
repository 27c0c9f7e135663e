"""Resampling: a volume on the grid of another, by their places in the world, in RAS+ millimetres.

They may lie in different worlds, a scanner's and a template's. A matrix M (4, 4) carries a point
from one to the other:

    (x, y, z, 1)_template = M (x, y, z, 1)_scan
"""

import numpy as np
from nibabel.processing import resample_from_to
from nibabel.spatialimages import SpatialImage
from scipy import ndimage

from weakunet.data.headers import MAX_VOXELS
from weakunet.data.volumes import Volume, index_to_world, move_points, world_to_index
from weakunet.util.cli import InputError


def resample(volume, like, order, matrix=None, fill=0):
    """Interpolate a Volume onto the grid of the Volume `like`, by world coordinates: an array.

    order: of the spline; 0 the nearest voxel (labels), 1 linear, 3 cubic, which may overshoot.
    matrix: (4, 4) from the world of `volume` to that of `like`; None: they are the same.
    fill: the value outside `volume`, whose voxels reach half a voxel beyond their centres.
    """
    affine = volume.affine if matrix is None else matrix @ volume.affine
    grid = like.array.T.shape, like.affine  # nibabel's axes are (x, y, z)

    def on_grid(array, order, mode):
        image = resample_from_to(SpatialImage(array.T, affine), grid, order, mode, out_class=None)
        return np.ascontiguousarray(np.asarray(image.dataobj).T)

    # scipy's own filling would blend the outermost voxels with `fill`, and splines would ring
    array = on_grid(volume.array, order, "nearest")
    array[on_grid(np.ones(volume.array.shape, np.uint8), 0, "grid-constant") == 0] = fill
    return array


def resample_labels(labels, like, matrix=None):
    """As `resample`, for labels (whole numbers): nearest neighbour.

    A label too small for the voxels of `like` keeps the voxel at its centre.
    """
    array = resample(labels, like, 0, matrix)
    missing = np.setdiff1d(labels.array, array)
    if len(missing):
        centres = ndimage.center_of_mass(labels.array > 0, labels.array, missing)
        centres_mm = index_to_world(labels, centres)
        if matrix is not None:
            centres_mm = move_points(matrix, centres_mm)
        places = np.round(world_to_index(like, centres_mm)).astype(int)
        for label, place in zip(missing, places, strict=True):
            inside = ((place >= 0) & (place < array.shape)).all()
            if inside and array[tuple(place)] == 0:
                array[tuple(place)] = label
    return array


def resample_image(volume, like, order):
    """As `resample`, for intensities: larger voxels hold means, and splines do not overshoot."""
    ratio = np.array(like.spacing_mm) / volume.spacing_mm
    blur = 0.5 * np.sqrt(np.maximum(ratio**2 - 1, 0))  # a Gaussian as wide as the voxels differ
    smoothed = Volume(ndimage.gaussian_filter(volume.array, blur), volume.affine)
    array = resample(smoothed, like, order)
    return array.clip(volume.array.min(), volume.array.max()) if order > 1 else array


def spacing_grid(volume, spacing_mm, path):
    """An empty grid along the axes of `volume` that fills its box with voxels of (z, y, x) mm."""
    spacing_mm = np.asarray(spacing_mm, np.float64)
    ratio = spacing_mm / volume.spacing_mm
    shape = np.maximum(1, np.round(volume.array.shape / ratio))
    if shape.prod() > MAX_VOXELS:
        raise InputError(f"{path}: too many voxels of {spacing_mm.tolist()} mm; take larger ones")
    affine = volume.affine.copy()
    affine[:3, 3] = index_to_world(volume, ratio / 2 - 0.5)[0]  # the corner of the box stays
    affine[:3, :3] *= ratio[::-1]
    return Volume(np.broadcast_to(np.float32(0), shape.astype(int)), affine)
