"""One prepared scan through the network: its count and its heatmap."""

import functools

import numpy as np
from scipy import ndimage

from weakunet.data.slices import front_padding
from weakunet.detection.detect import fill_outside
from weakunet.detection.tta import average_over_flips
from weakunet.gpu import backend


def predict_scan(model, volume, slice_index=None, shift=0):
    """Count and heatmap of a prepared scan, from one pass.

    Parameters: model, a WeakUNet; volume in [0, 1], 0 outside the ROI; slice_index along z, the
    slice that is counted, None: the whole scan; shift, see `placement`.
    Returns: count, float, not rounded; heatmap (D, H, W) like the scan, with the lowest value
    inside the ROI everywhere outside it, so nothing is detected there.
    """
    scan, counted = to_network(model, volume, slice_index, shift)
    count, heatmap = model.predict(scan, counted=counted)
    heatmap = from_network(model, heatmap, volume, slice_index, shift)
    return float(backend.to_host(count)[0]), heatmap


def predict_with_flips(model, volume, slice_index=None):
    """As `predict_scan`, averaged over the flips that training made (see tta.py)."""
    bound = functools.partial(predict_scan, model)
    return average_over_flips(bound, volume, model.flips, slice_index)


def to_network(model, volume, slice_index=None, shift=0):
    """(scan (1, 1, D, H, W), counted) on the network's device, as it takes them (model.region)."""
    box, padding = placement(model, volume, slice_index, shift)
    array, counted = np.pad(volume.array[box], padding), None
    if slice_index is not None:
        counted = np.arange(len(array)) == slice_index - box[0].start + padding[0][0]
        counted = backend.to_device(counted[:, None, None], model.device)
    return backend.to_device(array[None, None], model.device), counted


def from_network(model, heatmap, volume, slice_index=None, shift=0):
    """A map (1, 1, D, H, W) of `to_network`'s size, put on the scan and filled outside its ROI."""
    box, padding = placement(model, volume, slice_index, shift)
    heatmap = backend.to_host(heatmap)[0, 0]
    own = [slice(a, n - b) for (a, b), n in zip(padding, heatmap.shape, strict=True)]
    whole = np.zeros(volume.array.shape, heatmap.dtype)
    whole[box] = heatmap[tuple(own)]
    return fill_outside(whole, volume.array > 0)


def placement(model, volume, slice_index=None, shift=0):
    """The part of a scan that the network sees, and how many zeros come before and after it.

    It is the ROI's box, placed by `front_padding`, and `shift` (int, or one per axis) voxels
    further. Networks without a region, whose count is that of the box (the maximum, the mean, and
    older ones), see the whole scan, padded to the size that they were trained on, and not shifted.
    """
    if model.settings["region"]:
        box = ndimage.find_objects((volume.array > 0).view(np.uint8))[0]
        k = None if slice_index is None else slice_index - box[0].start
        front = (front_padding(volume.array[box], model.period, k) + shift) % model.period
        sizes = front + [side.stop - side.start for side in box]
    else:
        box, front = tuple(slice(0, n) for n in volume.array.shape), np.zeros(3, int)
        sizes = np.maximum(volume.array.shape, model.shape)
    sizes += -sizes % model.multiple
    used = [f + side.stop - side.start for f, side in zip(front, box, strict=True)]
    return box, [(f, n - end) for f, n, end in zip(front, sizes, used, strict=True)]
