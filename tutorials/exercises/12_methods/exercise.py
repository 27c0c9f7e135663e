"""Exercise 12: other methods of Table 1, saliency and the weighted sum. About 45 minutes."""

import numpy as np  # noqa: F401

from weakunet.layers.conv.conv3d import conv3d_backward, conv3d_forward  # noqa: F401


def saliency(scan, w, v):
    """How much each voxel of scan (D, H, W) changes the count, |d count / d scan|, (D, H, W).

    The network: z = conv3d(scan, w), no bias; f = max(z, 0); count = v . (mean of each map f_c).
    w is (C, 1, 3, 3, 3), v is (C,). Hint: forward first, then backward by hand: d count / d f (the
    same in every voxel of a map), then through the ReLU, then conv3d_backward(dz, x, w)[0] to the
    image. Batch and channel are axes of length 1.
    """
    raise NotImplementedError("saliency is yours to write")


def weighted_sum(scan, heatmap, weight, scan_scale, heatmap_scale):
    """Method (f): weight * scan / scan_scale + (1 - weight) * heatmap / heatmap_scale.

    The scales, measured once on validation scans, bring both to about [0, 1]. Otherwise the map
    with the larger numbers would decide alone.
    """
    raise NotImplementedError("weighted_sum is yours to write")


def choose_weight(weights, tpr, splits):
    """The weight whose mean TPR over VALIDATION scans is best, and its mean TPR over TEST scans.

    weights (K,); tpr (K, S), the TPR of each weight on each scan; splits, S words 'val' or 'test'.
    Returns (weight, TPR on test). Ties go to the first weight. Hint: two boolean masks.
    """
    raise NotImplementedError("choose_weight is yours to write")
