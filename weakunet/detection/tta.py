"""Maps from several mirrored copies of a scan (ours): one peak a lesion, near its middle.

Nothing in the training asks for one peak a lesion, or for the peak to be in its middle: one lesion
often leaves two peaks, which take the place of a fainter lesion. So a scan is also predicted
mirrored, along the axes that training mirrored scans along. The count is the mean over the copies,
the map their MEDIAN, which leaves out what only some copies show (the mean does not), smoothed a
little. Both were chosen on validation scans of simulated cohorts.
"""

import functools
import itertools

import numpy as np
from scipy import ndimage

from weakunet.data.volumes import Volume
from weakunet.detection.detect import fill_outside

SMOOTHING_VOX = 0.6  # sd


def mirrored(function, volume, axes, slice_index=None):
    """Mean count and smoothed median map of `function` over mirrored copies of a scan.

    Parameters
    ----------
    function : Volume -> (count, map (D, H, W)), or -> map, then the count is 0
    volume : Volume, 0 outside the ROI
    axes : the axes along which copies are mirrored, of 'zyx': 2^n copies; '': the scan alone
    slice_index : along z, a slice that was counted: `function` gets it, too, and it stays there

    Returns
    -------
    count : float;  map : (D, H, W), outside the ROI the lowest value inside, never a detection
    """
    if slice_index is not None:
        axes, function = axes.replace("z", ""), functools.partial(function, slice_index=slice_index)
    counts, maps = [], []
    for chosen in itertools.product((False, True), repeat=len(axes)):
        flipped = ["zyx".index(axis) for axis, on in zip(axes, chosen, strict=True) if on]
        copy = np.ascontiguousarray(np.flip(volume.array, flipped))
        result = function(Volume(copy, volume.affine))
        count, array = result if isinstance(result, tuple) else (0.0, result)
        counts.append(count)
        maps.append(np.flip(array, flipped))  # turned back
    return float(np.mean(counts)), smooth(np.median(maps, axis=0), volume.array > 0)


def smooth(array, inside):
    """A map (D, H, W) smoothed by SMOOTHING_VOX; its lowest value where not `inside` (bool)."""
    array = np.where(inside, array, array[inside].min())
    return fill_outside(ndimage.gaussian_filter(array, SMOOTHING_VOX), inside)
