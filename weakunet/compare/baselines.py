"""What the paper compares its heatmap with (section 3, Table 1), and two methods beyond the paper.

    (a) intensities      the scan itself: no code
    (b) (c) saliency     |d count / d S|, of the network without (b) and with (c) upsampling path
    (d) predict_scan     of the network without upsampling path (see model.py)
    (f) combine          weighted sum of the FCN's heatmap and the intensities
    guided_backprop, grad_cam: beyond the paper

Each takes a trained WeakUNet and a prepared Volume (in [0, 1], 0 outside the ROI) and returns a map
(D, H, W) of its size, to be thresholded at a count like any heatmap. Outside the ROI the map has
the lowest value inside, so nothing is detected there. They overwrite the network's gradients.
"""

import functools

import numpy as np

from weakunet.data.slices import in_slice
from weakunet.detection.detect import detect_lesions, whole_count
from weakunet.detection.predict_scan import from_network, to_network
from weakunet.evaluation.metrics import count_hits
from weakunet.gpu.backend import to_host
from weakunet.layers.conv.packed import unpack
from weakunet.layers.enlarge3d import enlarge3d

WEIGHTS = np.arange(21) / 20  # of the heatmap in (f), to choose from


def saliency(model, volume, slice_index=None, shift=0, guided=False):
    """|d count / d S|: which voxels the count depends on (Simonyan, Vedaldi, Zisserman 2014)."""
    count = model.forward(*to_network(model, volume, slice_index, shift))
    gradient = model.backward(count * 0 + 1, to_image=True, guided=guided)
    return from_network(model, abs(gradient), volume, slice_index, shift)


# as saliency, with what is negative dropped at every ReLU (Springenberg et al. 2015)
guided_backprop = functools.partial(saliency, guided=True)


def grad_cam(model, volume, slice_index=None, shift=0):
    """ReLU(sum_i alpha_i A_i), alpha_i = mean of d count / d A_i (Selvaraju et al. 2017).

    A are the maps at the bottom of the encoder; the sum is upsampled trilinearly. Without the
    upsampling path alpha_i is proportional to w_i, so the result is proportional to
    the ReLU of eq. 3's map.
    """
    count = model.forward(*to_network(model, volume, slice_index, shift))
    channels = model.settings["channels"][-1]
    bottom = to_host(unpack(model.encoder[-1].y, channels))
    y = model.last.y if model.decoder else None  # of the ReLU that the decoder ends with
    dh = model.global_pool.backward(model.linear.backward(count * 0 + 1), y)
    dbottom = unpack(model.backward_decoder(dh)[0], channels)
    alpha = to_host(dbottom).mean(axis=(2, 3, 4), keepdims=True)
    cam = np.maximum((alpha * bottom).sum(axis=1, keepdims=True), 0)
    return from_network(model, enlarge3d(cam, model.multiple), volume, slice_index, shift)


def combine(heatmap, image, weight, scale):
    """Method (f): weight M / scale + (1 - weight) S of a heatmap M and its scan's intensities S."""
    return weight * (heatmap / scale) + (1 - weight) * image


def choose_weight(heatmaps, images, scans, counts):
    """Choose `combine`'s weight and scale on VALIDATION scans.

    Parameters, one per scan: heatmaps and images (D, H, W); scans, LoadedScan with centres_zyx (one
    with a slice_index is scored in that slice only); predicted counts.
    Returns: the weight of WEIGHTS with the most hits when each scan is thresholded at its count,
    ties go to the largest (nearest to the pure heatmap); the scale, the mean over the scans of
    max M (1 if it is not positive).
    """
    cut = [in_slice(*row) for row in zip(scans, heatmaps, images, strict=True)]
    scale = float(np.mean([heatmap.max() for heatmap in heatmaps]))
    scale = scale if scale > 0 else 1.0
    counts = [whole_count(count) for count in counts]

    def hits(weight):
        found = 0
        for (scan, heatmap, image), count in zip(cut, counts, strict=True):
            detections = detect_lesions(combine(heatmap, image, weight, scale), count)
            found += count_hits(detections.centres_zyx, scan.centres_zyx)[0]
        return found

    return float(max(WEIGHTS[::-1], key=hits)), scale
