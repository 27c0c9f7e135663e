"""Test-time augmentation by flips and shifts (ours): one peak per lesion, near its middle.

Nothing in the training asks for one peak per lesion, or for a peak in its middle: a lesion often
leaves two, and the second takes the place of a fainter lesion. So a scan is also predicted flipped
along the axes along which training flips, and the flips lie at different places on the network's
grids: what its poolings leave of a voxel depends on where in its cell it lies. The count is the
mean over them. The map is their MEDIAN, which leaves out what only some of them show (the mean does
not), smoothed a little. All this was chosen on validation scans of simulated cohorts.
"""

import functools
import itertools

import numpy as np
from scipy import ndimage

from weakunet.data.volumes import Volume
from weakunet.detection.detect import fill_outside

SMOOTHING_VOX = 0.6  # standard deviation


def average_over_flips(function, volume, axes, slice_index=None):
    """Mean count and smoothed median map of `function` over the flips of a scan.

    function: (Volume, shift) -> (count, map (D, H, W)), or -> map, then the count is 0; shift (3,)
    as `placement` takes it. volume: 0 outside the ROI. axes: those to flip and shift along, of
    'zyx'; n axes give 2^n flips, '' the scan alone. slice_index: the slice that was counted, which
    `function` gets too; it stays in place. Outside the ROI the map has its lowest value inside.
    """
    if slice_index is not None:
        axes, function = axes.replace("z", ""), functools.partial(function, slice_index=slice_index)
    counts, maps, moved = [], [], np.array([axis in axes for axis in "zyx"], int)
    for i, chosen in enumerate(itertools.product((False, True), repeat=len(axes))):
        flipped = ["zyx".index(axis) for axis, on in zip(axes, chosen, strict=True) if on]
        scan = np.ascontiguousarray(np.flip(volume.array, flipped))
        result = function(Volume(scan, volume.affine), shift=i * moved)
        count, array = result if isinstance(result, tuple) else (0.0, result)
        counts.append(count)
        maps.append(np.flip(array, flipped))  # flipped back
    # 2^n maps (D, H, W) -> one
    return float(np.mean(counts)), smooth(np.median(maps, axis=0), volume.array > 0)


def smooth(array, inside):
    """A map (D, H, W) smoothed by SMOOTHING_VOX; its lowest value where not `inside` (bool)."""
    array = np.where(inside, array, array[inside].min())
    return fill_outside(ndimage.gaussian_filter(array, SMOOTHING_VOX), inside)
