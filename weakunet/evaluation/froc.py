"""Free-response ROC: the fraction of lesions found against the false positives per scan.

Detections are taken at many settings. By count, as in the paper: each scan's predicted count is
multiplied by a factor. By threshold, as elsewhere in the field: one threshold for all scans.
"""

import numpy as np

from weakunet.detection.detect import components_above, thresholds_for_counts, whole_count
from weakunet.evaluation.metrics import RADIUS_VOX, count_hits, rates

LEVELS = 40  # thresholds of a FROC by threshold
SCALES = (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 8)  # of the predicted count


def froc_by_threshold(heatmaps, lesions, radius=RADIUS_VOX, levels=LEVELS):
    """Free-response ROC: ONE threshold over all scans, from the highest value to the lowest.

    Thresholds as in `froc_thresholds`. A map's minimum never passes.
    Returns: list of dict threshold, tpr (pooled), fp_per_scan.
    """
    thresholds = froc_thresholds([candidate_thresholds(each, levels) for each in heatmaps], levels)
    pairs = zip(heatmaps, lesions, strict=True)
    hits = [hits_at_thresholds(heatmap, thresholds, own, radius) for heatmap, own in pairs]
    return froc_curve("threshold", thresholds, hits)


def candidate_thresholds(heatmap, levels=LEVELS):
    """Values of one map, ascending: all distinct ones above its minimum, or `levels` of them.

    Where there are more, those that let 1, ..., all of its voxels pass, in geometric steps.
    """
    values = np.sort(heatmap[heatmap > heatmap.min()])
    distinct = np.unique(values)
    if len(distinct) <= levels:
        return distinct
    return np.unique(values[-np.geomspace(1, len(values), levels).round().astype(int)])


def froc_thresholds(candidates, levels=LEVELS):
    """Thresholds for all maps, descending, from the `candidate_thresholds` of each.

    They include the highest and the lowest value: the lowest score ends the curve.
    """
    values = np.unique(np.concatenate(candidates) if len(candidates) else [])[::-1]
    if len(values) <= levels:
        return values
    return values[np.linspace(0, len(values) - 1, levels).round().astype(int)]


def hits_at_thresholds(heatmap, thresholds, lesions, radius=RADIUS_VOX, spacing_mm=None):
    """[(TP, FP, FN)] of one scan at each threshold; its minimum, the background, never passes."""
    floor = np.nextafter(heatmap.min(), heatmap.dtype.type(np.inf))
    levels = [max(float(threshold), float(floor)) for threshold in thresholds]
    return _hits_at(heatmap, levels, lesions, radius, spacing_mm)


def froc_by_count(heatmaps, counts, lesions, radius=RADIUS_VOX, scales=SCALES):
    """Free-response ROC as in the paper: each scan's count is multiplied by a factor.

    Returns: list of dict scale, tpr (pooled), fp_per_scan, one for each of `scales`. The product
    is rounded half up.
    """
    hits = [
        hits_at_counts(heatmap, [scale * count for scale in scales], own, radius)[0]
        for heatmap, count, own in zip(heatmaps, counts, lesions, strict=True)
    ]
    return froc_curve("scale", scales, hits)


def hits_at_counts(heatmap, counts, lesions, radius=RADIUS_VOX, spacing_mm=None):
    """[(TP, FP, FN)] of one scan at each of `counts`, rounded half up, and the thresholds."""
    found = thresholds_for_counts(heatmap, [whole_count(count) for count in counts])
    thresholds = [threshold for threshold, _ in found]
    return _hits_at(heatmap, thresholds, lesions, radius, spacing_mm), thresholds


def _hits_at(heatmap, levels, *truth):
    found = {level: components_above(heatmap, level).centres_zyx for level in set(levels)}
    hits = {level: count_hits(centres, *truth) for level, centres in found.items()}
    return [hits[level] for level in levels]


def froc_curve(name, settings, hits):
    """The curve's points from every scan's hits at every setting (see `hits_at_counts`)."""
    points = []
    for k, setting in enumerate(settings):
        found = rates(np.reshape([scan[k] for scan in hits], (-1, 3)))
        at = {"tpr": float(found["tpr"]), "fp_per_scan": float(found["fp_per_scan"])}
        points.append({name: float(setting), **at})
    return points
