"""Exercise 11: scoring detections. About 45 minutes."""

import numpy as np  # noqa: F401
from scipy.optimize import linear_sum_assignment  # noqa: F401


def count_hits(detections, lesions, radius):
    """(TP, FP, FN) of one scan: detections (n, 3) and lesions (m, 3), in voxels.

    They are matched ONE TO ONE: a lesion is found by at most one detection, and a detection finds
    at most one lesion, at a distance <= radius. As many pairs as possible are made. Either may be
    empty, shape (0, 3).
    Hint: linear_sum_assignment finds the cheapest one-to-one matching of a cost matrix. With a cost
    of 0 within the radius and 1 beyond, the cheapest matching has the most pairs within it.
    """
    raise NotImplementedError("count_hits is yours to write")


def rates(hits):
    """(TPR, FPav, FDR) over scans: hits (S, 3) holds each scan's TP, FP, FN.

    TPR pools all lesions, sum TP / sum (TP + FN); FPav = sum FP / S, the false positives per scan;
    FDR = sum FP / sum (TP + FP). There is at least one lesion and one detection.
    """
    raise NotImplementedError("rates is yours to write")


def bootstrap_interval(hits, rng, resamples):
    """The 95 % bootstrap interval (low, high) of the TPR.

    Lesions of one scan come and go together, so SCANS are drawn: S of them with replacement,
    rng.integers(S, size=(resamples, S)), one row per resample; then the TPR of each, and its 2.5th
    and 97.5th percentile (np.percentile). Every resample here holds a lesion.
    """
    raise NotImplementedError("bootstrap_interval is yours to write")
