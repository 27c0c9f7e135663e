"""Exercise 9: from a count network to a heatmap (the paper's equations 1 to 3). About 30 minutes.

f (C, D, H, W) are the last feature maps of ONE scan, w (C,) and b the last layer.
"""

import numpy as np  # noqa: F401


def predict_count(f, w, b, pooling):
    """The count y = w . G(f) + b (eqs. 1, 2), a number; G is 'max' or 'mean' over a map's voxels.

    Hint: G gives one number per map, x (C,); no activation follows.
    """
    raise NotImplementedError("predict_count is yours to write")


def heatmap(f, w):
    """M = sum_i w_i f_i (eq. 3), (D, H, W): the same weights, without the pooling and the bias.

    Nothing is cut off: a map with a negative weight speaks AGAINST a lesion where it is active.
    """
    raise NotImplementedError("heatmap is yours to write")


def count_from_heatmap(m, b):
    """The count (a number) that belongs to heatmap m (D, H, W), if the pooling was the mean.

    Hint: in w . mean(f) + b the mean and the weighted sum can be exchanged. With max pooling they
    cannot: the maximum of a sum is not the sum of the maxima. Try it with the functions above.
    """
    raise NotImplementedError("count_from_heatmap is yours to write")
