"""How well lesions are found, and how well they are counted.

Detections and lesions are matched one to one within a radius (distance <= radius; the paper's 3
voxels). A matched lesion is a true positive TP, a detection left over a false positive FP, a lesion
left over a false negative FN. Over S scans (paper, Table 1 and Fig. 3):
    TPR = sum TP / sum (TP + FN)    FDR = sum FP / sum (TP + FP)    FPav = sum FP / S.
Ours, since the paper does not say: the matching; TPR pooled over all lesions as above and, beside
it, the mean of the scans' own TPR. Scans without lesions count for FPs (so adding some changes
FPav and FDR) and not for the TPR. What is not defined (a TPR without lesions, an FDR without
detections, an R2 of a constant truth) is NaN. Intervals are 95 % percentile bootstraps over scans.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

RADIUS_VOX = 3.0  # the paper's: the average radius of its largest lesions
ROUNDING = 1e-6  # centres come through an affine: 3 voxels can read 3.0000000001
RESAMPLES = 2000
DRAWN_AT_ONCE = 10**5  # scans of the bootstrap in memory
RATES = ("tpr", "tpr_per_scan", "fdr", "fp_per_scan")


@dataclass(frozen=True)
class Tolerance:
    """How far a hit may be from its lesion: in voxels or, where radius_mm is given, in mm."""

    radius: float = RADIUS_VOX
    radius_mm: float | None = None

    def of(self, spacing_mm):
        """(radius, spacing_mm) as `match_detections` takes them."""
        return (self.radius, None) if self.radius_mm is None else (self.radius_mm, spacing_mm)

    def __str__(self):
        return f"{self.radius:g} voxels" if self.radius_mm is None else f"{self.radius_mm:g} mm"


PAPER_TOLERANCE = Tolerance()


def match_detections(detections, lesions, radius=RADIUS_VOX, spacing_mm=None):
    """Match one to one: as many pairs within the radius as possible, then least total distance.

    Parameters: detections (n, 3) and lesions (m, 3), voxel indices (z, y, x); radius in voxels or,
    where spacing_mm (z, y, x) is given, in mm. Distance <= radius is a hit. Both may be empty.
    Returns: list of (i, j), detection i is lesion j, in ascending i.
    """
    scale = np.ones(3) if spacing_mm is None else np.asarray(spacing_mm, float)
    distance = cdist(np.reshape(detections, (-1, 3)) * scale, np.reshape(lesions, (-1, 3)) * scale)
    within = distance <= radius + ROUNDING
    if not within.any():
        return []
    # Too far costs more than all pairs within together: no sum of short ways can buy one hit.
    too_far = 1 + min(distance.shape) * distance[within].max()
    i, j = linear_sum_assignment(np.where(within, distance, too_far))
    return [(int(a), int(b)) for a, b in zip(i, j, strict=True) if within[a, b]]


def count_hits(detections, lesions, radius=RADIUS_VOX, spacing_mm=None):
    """Return (TP, FP, FN) of one scan; see `match_detections`."""
    tp = len(match_detections(detections, lesions, radius, spacing_mm))
    return tp, len(detections) - tp, len(lesions) - tp


def detection_metrics(hits, seed=0):
    """Rates over scans with 95 % bootstrap intervals.

    Parameters: hits (S, 3), one row of TP, FP, FN per scan (see `count_hits`).
    Returns: the RATES of `rates`, and for each its NAME_ci95 [low, high] from RESAMPLES draws of
    S scans with replacement.
    """
    hits, rng, parts = np.reshape(hits, (-1, 3)), np.random.default_rng(seed), []
    found = {name: float(value) for name, value in rates(hits).items()}
    n = len(hits)
    at_once = max(1, DRAWN_AT_ONCE // max(1, n))
    for first in range(0, RESAMPLES, at_once):
        draws = rng.integers(n, size=(min(at_once, RESAMPLES - first), n))
        parts.append(rates(hits[draws]))
    for name in RATES:
        found[f"{name}_ci95"] = interval(np.concatenate([part[name] for part in parts]))
    return found


def interval(values):
    """[low, high] of the 95 % percentile interval; draws that are not defined (NaN) are left out.

    [NaN, NaN] where none is defined.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return [float("nan")] * 2
    return [float(end) for end in np.percentile(values, [2.5, 97.5])]


def rates(hits):
    """RATES of the hits of S scans, as fractions.

    Parameters: hits (..., S, 3), TP, FP, FN of each scan.
    Returns: dict tpr (pooled over lesions), tpr_per_scan (mean over scans with lesions), fdr,
    fp_per_scan, each (...,); NaN where not defined.
    """
    tp, fp, fn = np.moveaxis(np.asarray(hits, float), -1, 0)
    has_lesions = (tp + fn) > 0
    own_tpr = np.where(has_lesions, _ratio(tp, tp + fn), 0)
    return {
        "tpr": _ratio(tp.sum(-1), (tp + fn).sum(-1)),
        "tpr_per_scan": _ratio(own_tpr.sum(-1), has_lesions.sum(-1)),
        "fdr": _ratio(fp.sum(-1), (tp + fp).sum(-1)),
        "fp_per_scan": _ratio(fp.sum(-1), np.full(fp.shape[:-1], fp.shape[-1])),
    }


def _ratio(part, whole):
    """Divide; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)


def count_metrics(true, predicted):
    """Agreement of predicted with true counts: mean squared and absolute error, R2, r and ICC.

    R2 = 1 - sum (true - predicted)^2 / sum (true - mean true)^2: 0 for predicting the mean, and
    negative below that. r is Pearson's correlation, blind to offset and scale; see also `icc_a1`.
    """
    true, predicted = np.asarray(true, float), np.asarray(predicted, float)
    error = predicted - true
    n, spread = len(true), np.sum((true - true.mean()) ** 2) if len(true) else 0.0
    return {
        "count_mse": float(_ratio(np.sum(error**2), n)),
        "count_mae": float(_ratio(np.sum(abs(error)), n)),
        "count_r2": float(1 - _ratio(np.sum(error**2), spread)),
        "count_r": correlation(true, predicted),
        "count_icc": icc_a1(np.stack([true, predicted], axis=1)),
    }


def correlation(true, predicted):
    """Return Pearson's r; NaN where either is constant."""
    true, predicted = np.asarray(true, float), np.asarray(predicted, float)
    if len(true) == 0 or np.ptp(true) == 0 or np.ptp(predicted) == 0:
        return float("nan")
    return float(np.corrcoef(true, predicted)[0, 1])


def icc_a1(ratings):
    """Intraclass correlation ICC(A,1): two-way, absolute agreement, single rater.

    The ICC(2,1) of Shrout and Fleiss (1979), named A,1 by McGraw and Wong (1996). With the mean
    squares of n rows (scans), k columns (raters: truth, network) and the rest,
        ICC = (MS_rows - MS_rest) / (MS_rows + (k - 1) MS_rest + k (MS_columns - MS_rest) / n).
    Parameters: ratings (n, k). NaN for fewer than two scans and where nothing varies.
    """
    n, k = np.shape(ratings)
    if n < 2:
        return float("nan")
    rows = np.mean(ratings, axis=1, keepdims=True) - np.mean(ratings)
    columns = np.mean(ratings, axis=0, keepdims=True) - np.mean(ratings)
    rest = ratings - np.mean(ratings) - rows - columns
    ms_rows, ms_columns = k * np.sum(rows**2) / (n - 1), n * np.sum(columns**2) / (k - 1)
    ms_rest = np.sum(rest**2) / ((n - 1) * (k - 1))
    between = ms_rows + (k - 1) * ms_rest + k * (ms_columns - ms_rest) / n
    return float(_ratio(ms_rows - ms_rest, between))
