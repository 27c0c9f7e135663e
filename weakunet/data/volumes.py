"""Image files in and out: the only place where the file's (i, j, k) becomes the array's (z, y, x).

A file may store its axes in any of 48 ways (6 orders, 8 directions). Reading flips and permutes
them, without interpolation, to the closest RAS+ order (x grows to the right, y to the front, z
upwards) and returns `(D, H, W)` = `(z, y, x)`. With the affine A

    (x, y, z, 1)_mm = A (x, y, z, 1)_voxel

each voxel keeps its place in the world (NIfTI's RAS+ millimetres). Writing undoes the flips, so a
result has the grid, the orientation and the affine of the file it was made from.
"""

import dataclasses
import gzip
import io
from pathlib import Path

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from weakunet.data.headers import (
    check_limits,
    checked_affine,
    end_of_voxels,
    open_image,
    read_header,
)
from weakunet.util.cli import InputError, atomic_path, one_line

MEMORY_PER_VOXEL = 24  # bytes that reading takes at most (of doubles; 8 of float32)
MAX_TRAILER = 2**20  # bytes that may follow the voxels (an .mgz keeps its history there)
SPACING_TOLERANCE = 0.05
GRID_TOLERANCE = 0.05  # voxels: how far apart the corners of the same grid may lie
RAS = np.array([[0, 1], [1, 1], [2, 1]])  # nibabel's orientation of an array in RAS+ order


@dataclasses.dataclass
class FileGrid:
    """How a file stores its voxels, for writing a result on the same grid."""

    shape: tuple  # (i, j, k) as stored; a 2-D image or a trailing axis of length 1 is kept
    affine: np.ndarray  # (4, 4), (i, j, k) -> mm


@dataclasses.dataclass
class Volume:
    """A scan in RAS+ order: `array` (D, H, W), `affine` (4, 4) from its (x, y, z) indices to mm."""

    array: np.ndarray
    affine: np.ndarray
    native: FileGrid | None = None  # None: the array's own order is the file's (simulated, cropped)

    @property
    def spacing_mm(self):
        """The size of a voxel (z, y, x) in mm."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(size) for size in sizes[::-1])

    @property
    def voxel_mm3(self):
        """The volume of a voxel in cubic mm."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


def read_volume(path, nan_ok=False):
    """Read a 3-D image as a `Volume`: float32, scaled as its header says, reoriented to RAS+.

    A 2-D image becomes one slice, and a fourth axis of length 1 is dropped. Takes at most
    `MEMORY_PER_VOXEL` bytes per voxel, whatever the file. Raises InputError when the file is
    missing, empty, truncated, not an image, 4-D, not real, without a place in the world or, unless
    `nan_ok`, not finite.
    """
    volume = _read(Path(path), np.float32)
    if not nan_ok and not np.isfinite([volume.array.min(), volume.array.max()]).all():
        raise InputError(f"{path}: NaN or infinite voxels; set them to 0 or convert it again")
    return volume


def read_labels(path):
    """As `read_volume`, but integers stay integers: float32 merges numbers above 2^24."""
    volume = _read(Path(path), None)
    if volume.array.dtype.kind == "f":
        if (volume.array % 1 != 0).any():  # NaN as well
            raise InputError(f"{path}: voxels that are not whole numbers; give the label image")
        volume.array = volume.array.astype(np.int64)
    return volume


def read_mask(path):
    """Read a mask as a `Volume` of bool: the voxels above 0. NaN is outside, as SPM writes it."""
    return mask_of(read_volume(path, nan_ok=True), path)


def mask_of(volume, path):
    """The mask in the Volume of a file; InputError if splines have interpolated it."""
    negative = volume.array[volume.array < 0]
    if (negative % 1 != 0).any():
        low, high = np.nanmin(negative), np.nanmax(volume.array)
        raise InputError(
            f"{path}: not a mask: values {low:.3g} to {high:.3g}, as splines leave them; "
            "resample it with the nearest neighbour, or keep what is at least 0.5"
        )
    return Volume(volume.array > 0, volume.affine, volume.native)


def _read(path, dtype):
    """The file as a Volume of `dtype`; None: integers as stored, or doubles where scaled."""
    header = read_header(path)
    check_limits(path, header)
    affine = checked_affine(path, header)
    try:
        stored = _read_voxels(path, header, dtype)
    except MemoryError:
        raise InputError(f"{path}: not enough memory; use --jobs 1 or crop the image") from None
    except Exception as error:  # zlib, struct, EOF, OS: nibabel lets them all through
        raise InputError(
            f"{path}: truncated or damaged ({one_line(error)}); copy or download it again"
        ) from None
    orientation = io_orientation(affine)
    canonical = apply_orientation(stored, orientation)
    return Volume(
        np.ascontiguousarray(canonical.transpose(2, 1, 0)),  # (x, y, z) -> (z, y, x)
        affine @ inv_ornt_aff(orientation, stored.shape),
        FileGrid(tuple(header.get_data_shape()), affine),
    )


def _read_voxels(path, header, dtype):
    """The voxels as stored, (i, j, k); a gzip file is read to its end, for its checksum."""
    with open_image(path) as file:
        content = file.read(end_of_voxels(header) + MAX_TRAILER)
    with np.errstate(all="ignore"):  # an overflow becomes inf, which the caller refuses
        stored = np.asarray(ArrayProxy(io.BytesIO(content), header), dtype)
    return stored.reshape((*stored.shape, 1)[:3])


def write_volume(path, array, like):
    """Write `array` (D, H, W), on the grid of the Volume `like`, as NIfTI on like's own file grid.

    Whole numbers and masks are stored as int32, all else as float32. Same array, same bytes.
    """
    array = np.asarray(array)
    if array.shape != like.array.shape:
        raise ValueError(f"array {array.shape} is not on the grid {like.array.shape}")
    stored = array.astype(np.int32 if array.dtype.kind in "iub" else np.float32).transpose(2, 1, 0)
    affine = like.affine
    if like.native is not None:  # back to the file's own order of axes and directions
        affine = like.native.affine
        stored = apply_orientation(stored, ornt_transform(RAS, io_orientation(affine)))
        stored = stored.reshape(like.native.shape)
    image = nibabel.Nifti1Image(stored, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):  # a qform cannot hold a shear
        image.set_qform(affine, 1)
    content = image.to_bytes()
    if str(path).endswith(".gz"):
        content = gzip.compress(content, 6, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def crop(volume, box):
    """Cut the box (three slices) out of a Volume; each voxel keeps its place in the world."""
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box[::-1]]
    return Volume(volume.array[box], affine)


def move_points(matrix, points):
    """Move points (n, 3) by a matrix (4, 4); n may be 0."""
    return np.asarray(points, np.float64).reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]


def index_to_world(volume, points_zyx):
    """Voxel indices (n, 3) as (z, y, x), fractions allowed, to (n, 3) mm as (x, y, z)."""
    return move_points(volume.affine, np.asarray(points_zyx, np.float64).reshape(-1, 3)[:, ::-1])


def world_to_index(volume, points_mm):
    """World points (n, 3) in mm as (x, y, z) to (n, 3) voxel indices as (z, y, x), not rounded."""
    return move_points(np.linalg.inv(volume.affine), points_mm)[:, ::-1]


def index_to_file(volume, points_zyx):
    """Voxel indices (n, 3) as (z, y, x) to (n, 3) indices (i, j, k) in the file as it is stored."""
    points_xyz = np.asarray(points_zyx, np.float64).reshape(-1, 3)[:, ::-1]
    if volume.native is None:
        return points_xyz
    shape = (*volume.native.shape, 1)[:3]
    return move_points(inv_ornt_aff(io_orientation(volume.native.affine), shape), points_xyz)


def require_same_grid(a, path_a, b, path_b):
    """Raise InputError unless the Volumes `a` and `b` have the same voxels in the same places.

    Affines that differ by rounding pass: a corner may be off by 5 % of a voxel's smallest side. The
    files' axes may be stored in different orders.
    """
    same = a.array.shape == b.array.shape
    if same:
        corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(a.array.shape) - 1)
        apart_mm = np.abs(index_to_world(a, corners) - index_to_world(b, corners)).max()
        same = apart_mm <= GRID_TOLERANCE * min(a.spacing_mm)
    if not same:
        raise InputError(
            f"{path_b}: not on the grid of {path_a}: size (x, y, z) {b.array.shape[::-1]} against "
            f"{a.array.shape[::-1]}, affine {b.affine[:3].round(4).tolist()} "
            f"against {a.affine[:3].round(4).tolist()}; "
            f"resample it to the grid of {path_a}"
        )


def require_spacing(volume, spacing_mm, name):
    """InputError naming the scan unless its voxels are as large as `spacing_mm` (z, y, x).

    5 % are allowed along each axis; along an axis with one voxel any size is. None is any, too.
    """
    if spacing_mm is None:
        return
    ratio = np.where(np.array(volume.array.shape) > 1, volume.spacing_mm, spacing_mm) / spacing_mm
    if abs(np.log(ratio)).max() > np.log(1 + SPACING_TOLERANCE):
        own, wanted = (" x ".join(f"{mm:.3g}" for mm in s) for s in (volume.spacing_mm, spacing_mm))
        raise InputError(
            f"{name}: its voxels are {own} mm (z, y, x), the others' or the network's {wanted} mm; "
            f"resample it: python -m weakunet.preprocess --spacing-mm {wanted.replace(' x', '')}; "
            "predict takes the same option for a raw scan with its ROI"
        )
