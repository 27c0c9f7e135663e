"""What an evaluation asks of one scan, so that only one scan per process is in memory.

A case is a function without arguments that returns a scan and its maps, from files or from memory.
A scan with a slice_index is scored in that slice only. The functions here are sent to the worker
processes and return numbers, not maps.
"""

from dataclasses import dataclass

import numpy as np

from weakunet.data.slices import in_slice
from weakunet.detection.detect import components_above
from weakunet.evaluation.froc import (
    SCALES,
    candidate_thresholds,
    hits_at_counts,
    hits_at_thresholds,
)


@dataclass
class Score:
    """What one method makes of one scan. Hits are TP, FP, FN; None where no centres are known."""

    subject: str
    count: int | None  # true; None: not known
    count_predicted: float  # not rounded
    threshold: float | None = None  # of the predicted count
    n_detected: int | None = None
    hits: tuple | None = None  # at the predicted count
    hits_true_count: tuple | None = None  # at the number of lesions
    hits_by_scale: np.ndarray | None = None  # (len(SCALES), 3), at multiples of the predicted count
    candidates: np.ndarray | None = None  # see froc.candidate_thresholds


def open_case(case):
    """The case's scan and its maps (by method), cut to the slice that was counted."""
    scan, maps = case()
    scan, *cut = in_slice(scan, *maps.values())
    return scan, dict(zip(maps, cut, strict=True))


def score_scan(tolerance, task):
    """Score of each method for a task (case, method -> predicted count)."""
    case, counts = task
    scan, maps = open_case(case)
    return {name: _score(scan, own, float(counts[name]), tolerance) for name, own in maps.items()}


def _score(scan, heatmap, count, tolerance):
    known = scan.centres_zyx is not None
    lesions = scan.centres_zyx if known else np.zeros((0, 3))
    wanted = [count, len(lesions), *(scale * count for scale in SCALES)]
    truth = lesions, *tolerance.of(scan.volume.spacing_mm)
    hits, thresholds = hits_at_counts(heatmap, wanted, *truth)
    score = Score(scan.subject, scan.count, count, thresholds[0], sum(hits[0][:2]))
    if known:
        score.hits, score.hits_true_count = hits[:2]
        score.hits_by_scale = np.array(hits[2:], np.int32)
        score.candidates = candidate_thresholds(heatmap)
    return score


def hits_above(tolerance, thresholds, case):
    """Hits (levels, 3) of each method at each of its `thresholds`; None without known centres."""
    scan, maps = open_case(case)
    if scan.centres_zyx is None:
        return dict.fromkeys(maps)
    truth = scan.centres_zyx, *tolerance.of(scan.volume.spacing_mm)
    found = {name: hits_at_thresholds(own, thresholds[name], *truth) for name, own in maps.items()}
    return {name: np.array(hits, np.int32) for name, hits in found.items()}


def picture(case, method, threshold):
    """What figures.overlay draws of one method: its arguments after the path."""
    scan, maps = open_case(case)
    labels = components_above(maps[method], threshold).labels
    return scan.volume.array, maps[method], labels, scan.centres_zyx, scan.volume.spacing_mm
