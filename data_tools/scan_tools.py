"""Shared by the tools that resample scans: which scans, the files of transforms, grids, pictures.

A rigid transform, a 4x4 matrix from world to world, is stored as four lines of four numbers,
`np.loadtxt(path)`.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from skimage.feature import canny

from weakunet.data.cohort import read_cohort
from weakunet.data.headers import MAX_VOXELS
from weakunet.data.load import scans_from_files
from weakunet.data.rigid import resample
from weakunet.data.volumes import Volume, index_to_world
from weakunet.figures.drawing import new_figure, save_figure
from weakunet.util.cli import InputError, one_line, write_text
from weakunet.util.parts import add_arguments

ORANGE = "#FF8C00"  # visible on black, grey and white, and to the colour-blind
RIGHT, FRONT, UP = "x, towards the patient's right", "y, towards the front", "z, upwards"
PLANES = ((2, "sagittal", FRONT, UP), (1, "coronal", RIGHT, UP), (0, "axial", RIGHT, FRONT))


def add_scan_arguments(parser, what, jobs=1):
    """Let a command go over scans, named or from a cohort table; `what` describes them."""
    parser.add_argument("--scan", type=Path, nargs="+", help=f"{what}, named after their files")
    parser.add_argument("--data", type=Path, help=f"or a cohort table of {what}")
    add_arguments(parser, jobs)


def scans_asked_for(parser, args):
    """The Scans that --scan or --data names; a usage error unless exactly one is given."""
    if (args.data is None) == (not args.scan):
        parser.error("give either --data cohort.csv or --scan with one or more scans")
    if args.data:
        return read_cohort(args.data)
    return scans_from_files(args.scan, roi=None, slice_z_mm=None)


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
    if not usable or tuple(matrix[3]) != (0, 0, 0, 1) or abs(np.linalg.det(matrix)) < 1e-3:
        raise InputError(
            f"{path}: not a 4x4 matrix from world to world (last row 0 0 0 1); "
            "give the file that register_to_mni.py wrote"
        )
    return matrix


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


def plane(volume, axis, index):
    """An empty grid, one voxel thick: slice `index` along `axis` (0, 1, 2 for z, y, x)."""
    shape = list(volume.array.shape)
    shape[axis] = 1
    affine = volume.affine.copy()
    affine[:3, 3] += index * affine[:3, 2 - axis]
    return Volume(np.broadcast_to(np.float32(0), shape), affine)


def check_picture(path, grid, middle_zyx, rows):
    """Draw three orthogonal slices through one place, one row per image, with lines over it.

    Parameters
    ----------
    grid : Volume whose slices are shown; everything else is resampled to them
    middle_zyx : (3,) voxel indices in `grid`: the place
    rows : list of (title, image, over), Volumes on any grid; the lines are the borders of `over`
        if it is a mask (bool), otherwise its edges (Canny)
    """
    middle = [int(round(float(i))) for i in middle_zyx]
    sizes = np.array(grid.array.shape) * grid.spacing_mm
    widths = [sizes[1], sizes[2], sizes[2]]
    tall = 11.3 / sum(widths) * max(sizes[0], sizes[1])
    figure = new_figure(13, (tall + 0.9) * len(rows) + 0.3)
    panels = figure.subplots(len(rows), 3, squeeze=False, width_ratios=widths)
    for line, (title, image, over) in zip(panels, rows, strict=True):
        for panel, (axis, name, across, up) in zip(line, PLANES, strict=True):
            _draw(panel, plane(grid, axis, middle[axis]), axis, image, over)
            panel.set(xlabel=f"{across} (mm)", ylabel=f"{up} (mm)")
            panel.set_title(name if axis != 1 else f"{title}\n{name}", fontsize=10)
    at = ", ".join(f"{mm:.1f}" for mm in index_to_world(grid, middle)[0].round(1) + 0.0)
    figure.suptitle(f"{Path(path).stem}: slices through (x, y, z) = ({at}) mm", size=11)
    save_figure(figure, path)


def _draw(panel, flat, axis, image, over):
    """One slice: the image in grey, the lines over it; axes in mm, the world's if they are its."""
    along = np.count_nonzero(flat.affine[:3, :3].round(6)) == 3
    first = flat.affine[2::-1, 3] if along else np.zeros(3)  # z, y, x
    dy, dx = np.delete(flat.spacing_mm, axis)
    y, x = np.delete(first, axis)
    picture = resample(image, flat, 1).squeeze(axis)
    h, w = picture.shape
    extent = (x - dx / 2, x + (w - 0.5) * dx, y - dy / 2, y + (h - 0.5) * dy)
    low, high = picture.min(), np.percentile(picture, 99.5)
    style = {"origin": "lower", "extent": extent, "interpolation": "nearest"}
    panel.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-9), **style)
    if over.array.dtype == bool:
        mask = resample(over, flat, 0).squeeze(axis)
        if mask.any() and not mask.all():
            panel.contour(mask, [0.5], colors=ORANGE, linewidths=1.3, extent=extent)
        return
    lines = resample(over, flat, 1).squeeze(axis).astype(np.float64)
    lines /= max(np.percentile(lines, 99.5), 1e-9)
    edges = canny(lines, sigma=2 / max(dy, dx), low_threshold=0.05, high_threshold=0.12)
    colour = np.zeros((h, w, 4))
    colour[edges] = (1, 0.55, 0, 1)
    panel.imshow(colour, **style)
