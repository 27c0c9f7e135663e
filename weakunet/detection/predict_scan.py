"""One prepared scan through the network: its count and its heatmap."""

import functools

import numpy as np

from weakunet.detection.detect import fill_outside
from weakunet.detection.tta import average_over_flips
from weakunet.gpu import backend


def predict_scan(model, volume):
    """Count and heatmap of a prepared scan, from one pass.

    Parameters
    ----------
    model : WeakUNet, or anything with its `predict`, `multiple`, `shape` and `device`
    volume : Volume in [0, 1], 0 outside the ROI

    Returns
    -------
    count : float, not rounded
    heatmap : (D, H, W) like the scan; outside the ROI the lowest value inside, never a detection
    """
    count, heatmap = model.predict(to_network(model, volume))
    return float(backend.to_host(count)[0]), from_network(heatmap, volume)


def predict_with_flips(model, volume):
    """As `predict_scan`, averaged over the flips that training made (see tta.py)."""
    return average_over_flips(functools.partial(predict_scan, model), volume, model.flips)


def to_network(model, volume):
    """The scan as the network takes it, on its device, padded with zeros as in training."""
    sizes = np.maximum(volume.array.shape, model.shape)
    sizes += -sizes % model.multiple
    padding = [(0, n - own) for n, own in zip(sizes, volume.array.shape, strict=True)]
    # (D, H, W) -> (1, 1, D', H', W')
    return backend.to_device(np.pad(volume.array, padding)[None, None], model.device)


def from_network(heatmap, volume):
    """A map of `to_network`'s size, cropped to the scan and filled outside its ROI."""
    # (1, 1, D', H', W') -> (D, H, W)
    kept = tuple(slice(0, n) for n in volume.array.shape)
    return fill_outside(backend.to_host(heatmap)[0, 0][kept], volume.array > 0)
