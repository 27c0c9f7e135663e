"""Counts in ONE axial slice: where the slice lies, and what of a scan is in it.

The paper counts and evaluates lesions in the slice that shows the anterior commissure. The network
still sees the volume. Its heatmap is cut to the slice before it is thresholded, so components are
those of the slice (8-connected), and only lesions marked in the slice are looked for. The slice is
given by its world z in mm, which does not depend on how the scan is stored.

[ours] A network may be trained and used on a thin slab around the slice.
"""

import dataclasses
import math

import numpy as np
from scipy import ndimage

from weakunet.data.volumes import crop, index_to_world, world_to_index
from weakunet.util.cli import InputError

HALF_VOXEL = 0.5 + 1e-6  # centres come through an affine


def find_slice(volume, z_mm, path="image"):
    """The index along z of the slice of `volume` nearest to world height `z_mm`; None for None.

    In an oblique scan, the height in the middle of the image counts. Halfway between two slices,
    the upper one is taken. Raises InputError naming `path` when the height lies outside.
    """
    if z_mm is None:
        return None
    depth = len(volume.array)
    ends_zyx = np.array([(z, *volume.array.shape[1:]) for z in (0, depth - 1)], float)
    ends_zyx[:, 1:] = (ends_zyx[:, 1:] - 1) / 2
    ends_mm = index_to_world(volume, ends_zyx)
    at_mm = (*ends_mm.mean(axis=0)[:2], z_mm)
    above_first = world_to_index(volume, at_mm)[0, 0] + HALF_VOXEL
    if not 0 <= above_first < depth:  # NaN fails, too
        low, high = ends_mm[:, 2]
        raise InputError(
            f"{path}: slice_z_mm {z_mm:g} lies outside, its slices reach from {low:.1f} to "
            f"{high:.1f} mm; give the slice's height in world (RAS+) mm"
        )
    return math.floor(above_first)


def half_thickness(text):
    """Parse the option --slab-mm: a number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError
    return value


def cut_scan(scan, first, stop):
    """Cut the slices `first`..`stop` - 1 out of a LoadedScan of which one slice was counted."""
    centres_zyx = scan.centres_zyx
    return dataclasses.replace(
        scan,
        volume=crop(scan.volume, np.s_[first:stop, 0:, 0:]),
        centres_zyx=None if centres_zyx is None else centres_zyx - (first, 0, 0),
        slice_index=scan.slice_index - first,
    )


def cut_slab(scan, slab_mm):
    """Cut the slices at most `slab_mm` from the one that was counted out of a LoadedScan.

    Global pooling sums over the whole volume; a slab holds little more than what was counted.
    """
    reach = math.floor(slab_mm / scan.volume.spacing_mm[0] + 1e-6)
    return cut_scan(scan, max(0, scan.slice_index - reach), scan.slice_index + reach + 1)


def front_padding(array, period, slice_index=None):
    """Voxels of zeros to put before a scan (D, H, W) along each axis: where it lies on the grids.

    The network pools voxels in cells, so what it finds depends a little on where the cells begin.
    Every `period` voxels it is the same again: the scan's centre of mass, and along z the slice
    that was counted or is all there is, is put in the middle of such a period. So a lesion lies in
    its cell as before, however the scan was cropped and however much is around it.
    """
    anchor = np.floor(ndimage.center_of_mass(array)).astype(int)
    if slice_index is not None or len(array) == 1:
        anchor[0] = slice_index or 0
    return (period // 2 - anchor) % period


def in_slice(scan, *maps):
    """Cut [scan, *maps] to the slice that was counted; unchanged where there is none.

    Parameters: scan, a LoadedScan; maps (D, H, W) of its size. They become (1, H, W), with the
    lesions within half a voxel of the slice.
    """
    k = scan.slice_index
    if k is None:
        return [scan, *maps]
    cut = cut_scan(scan, k, k + 1)
    cut.slice_index = None
    if cut.centres_zyx is not None:
        cut.centres_zyx = cut.centres_zyx[abs(cut.centres_zyx[:, 0]) <= HALF_VOXEL]
    return [cut, *(array[k : k + 1] for array in maps)]
