"""Rigid transforms: 4x4 matrices between worlds in millimetres, their files, and resampling.

A world has RAS+ millimetres: a scanner's, or a template's. A matrix M carries a point from one to
the other,

    (x, y, z, 1)_template = M (x, y, z, 1)_scan

and is stored as four lines of four numbers, `np.loadtxt(path)`. nibabel resamples images through
the world, whatever their grids.
"""

import io
import warnings

import numpy as np
from nibabel.processing import resample_from_to
from nibabel.spatialimages import SpatialImage
from scipy import ndimage

from weakunet.data.headers import MAX_VOXELS
from weakunet.data.volumes import Volume, index_to_world, move_points, world_to_index
from weakunet.util.cli import InputError, one_line, write_text

LAST_ROW = (0, 0, 0, 1)


def write_matrix(path, matrix, header):
    """Write a matrix (4, 4) as text with all its digits, below the comment `header`."""
    text = io.StringIO()
    np.savetxt(text, matrix, fmt="%24.17g", header=header)
    write_text(path, text.getvalue())


def read_matrix(path):
    """Read a matrix (4, 4) from text; InputError unless it is one that can be inverted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty file, which is refused below
            matrix = np.loadtxt(path, ndmin=2)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not readable as a matrix ({one_line(error)})") from None
    usable = matrix.shape == (4, 4) and np.isfinite(matrix).all()
    if not usable or tuple(matrix[3]) != LAST_ROW or abs(np.linalg.det(matrix)) < 1e-3:
        raise InputError(
            f"{path}: no 4x4 matrix from world to world, the last row 0 0 0 1; "
            "give the file that register_to_mni.py wrote"
        )
    return matrix


def resample(volume, like, order, matrix=None, fill=0):
    """Interpolate a Volume onto the grid of the Volume `like`, by world coordinates: an array.

    Parameters
    ----------
    order : of the spline; 0 the nearest voxel (labels), 1 linear, 3 cubic, which may overshoot
    matrix : (4, 4) from the world of `volume` to that of `like`; None: they are the same
    fill : the value outside `volume`, whose voxels reach half a voxel beyond their centres
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


def box_grid(volume, spacing_mm):
    """An empty grid along the world's axes that fills the box of `volume` from edge to edge.

    `spacing_mm` is (x, y, z). The last voxels may reach half a voxel beyond the box. The array is a
    constant that takes no memory. Raises InputError when a spacing does not fit.
    """
    spacing_mm = np.asarray(spacing_mm, np.float64)
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * np.array(volume.array.shape) - 0.5
    corners_mm = index_to_world(volume, corners)
    low_mm, size_mm = corners_mm.min(axis=0), np.ptp(corners_mm, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = np.round(size_mm / spacing_mm)
    if not ((spacing_mm > 0).all() and (shape >= 1).all() and shape.prod() <= MAX_VOXELS):
        raise InputError(
            f"a spacing of {spacing_mm.tolist()} mm does not suit a box of "
            f"{size_mm.round(1).tolist()} mm; give three sizes of a voxel in mm"
        )
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = low_mm + spacing_mm / 2
    return Volume(np.broadcast_to(np.float32(0), shape.astype(int)[::-1]), affine)


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


def plane(volume, axis, index):
    """An empty grid, one voxel thick: slice `index` along `axis` (0, 1, 2 for z, y, x)."""
    shape = list(volume.array.shape)
    shape[axis] = 1
    affine = volume.affine.copy()
    affine[:3, 3] += index * affine[:3, 2 - axis]
    return Volume(np.broadcast_to(np.float32(0), shape), affine)
