"""What an evaluation asks of one scan at a time, so that it never holds more; see evaluate.py.

A case is a function that takes nothing and returns a scan with its centres and its maps, from a
file or from memory; with a slice_index, it is judged in that slice only. The functions below are
sent to the processes that share the work, and return numbers, not maps.
"""

from dataclasses import dataclass

import numpy as np

from weakunet.data.slices import in_slice
from weakunet.detection.detect import components_above, detect_lesions, whole_count
from weakunet.evaluation.froc_thresholds import count_bins, count_values
from weakunet.evaluation.metrics import count_hits, hits_at_counts, hits_at_thresholds
from weakunet.util.cli import InputError

PER_SCAN = "subject,method,count,count_predicted,threshold,n_detected,tp,fp,fn,tpr".split(",")


@dataclass(frozen=True)
class Reach:
    """How far a hit may lie off: in voxels or, where radius_mm is given, in mm."""

    radius: float
    radius_mm: float | None = None

    def of(self, scan):
        """(radius, spacing_mm) as `metrics.count_hits` takes them."""
        if self.radius_mm is None:
            return self.radius, None
        return self.radius_mm, scan.volume.spacing_mm


def open_case(case):
    """The case's scan and maps, cut to the slice that was counted."""
    scan, maps = case()
    if scan.centres_zyx is None:
        raise InputError(f"{scan.subject}: no lesion centres; add them to the cohort table")
    scan, *cut = in_slice(scan, *maps.values())
    return scan, dict(zip(maps, cut, strict=True))


def judge(reach, task):
    """For a task (case, method -> predicted count), in three dicts by method.

    The scan's row of PER_SCAN, its hits at every multiple of the count, and its voxels' bins.
    """
    case, counts = task
    scan, maps = open_case(case)
    rows, hits, bins = {}, {}, {}
    for method, own in maps.items():
        rows[method] = _row(scan, method, own, counts[method], reach)
        at_counts = hits_at_counts(own, counts[method], scan.centres_zyx, *reach.of(scan))
        hits[method] = np.array(at_counts, np.int32)
        bins[method] = count_bins(own)
    return rows, hits, bins


def _row(scan, method, heatmap, count, reach):
    found = detect_lesions(heatmap, whole_count(count))
    tp, fp, fn = count_hits(found.centres_zyx, scan.centres_zyx, *reach.of(scan))
    tpr = tp / (tp + fn) if tp + fn else ""  # not defined without lesions
    known = "" if scan.count is None else scan.count
    numbers = (known, float(count), found.threshold, tp + fp, tp, fp, fn, tpr)
    return (scan.subject, method, *numbers)


def values_in_bins(bins, case):
    """Method -> how often each value occurs, of those in its `bins`."""
    _, maps = open_case(case)
    return {method: count_values(own, bins[method]) for method, own in maps.items()}


def hits_above(reach, thresholds, case):
    """Method -> hits at each of its `thresholds`."""
    scan, maps = open_case(case)
    lesions, how_far = scan.centres_zyx, reach.of(scan)
    hits = {}
    for method, own in maps.items():
        at_thresholds = hits_at_thresholds(own, thresholds[method], lesions, *how_far)
        hits[method] = np.array(at_thresholds, np.int32)
    return hits


def picture(case, method, threshold):
    """What figures.overlay shows of a case, and the subject."""
    scan, maps = open_case(case)
    labels = components_above(maps[method], threshold).labels
    shown = (scan.volume.array, maps[method], labels, scan.centres_zyx, scan.volume.spacing_mm)
    return scan.subject, shown
