"""The evaluator of all commands: detect lesions, match them with the truth, measure.

Each scan is scored at its predicted count, at its true count and at the multiples of the predicted
count that make the FROC. A second pass scores it at the thresholds of the FROC by threshold, which
depend on all scans.
"""

import functools
from dataclasses import dataclass, field

import numpy as np

from weakunet.evaluation.froc import SCALES, froc_curve, froc_thresholds
from weakunet.evaluation.metrics import (
    PAPER_TOLERANCE,
    Tolerance,
    count_metrics,
    detection_metrics,
)
from weakunet.evaluation.score_scan import Score, hits_above, score_scan
from weakunet.util.cli import progress
from weakunet.util.processes import processes

MAIN, NO_NETWORK = "regression_fcn", "intensities"  # methods: the heatmap's, the image's


@dataclass
class Evaluation:
    """What an evaluation finds; dicts are by method."""

    scores: dict  # lists of Score, one per scan
    metrics: dict = field(default_factory=dict)  # rates, intervals and, for networks, counts
    curves: dict = field(default_factory=dict)  # FROC by count (see froc.froc_by_count)
    by_threshold: dict = field(default_factory=dict)  # FROC by threshold
    cases: list = field(default_factory=list)  # to draw a few scans from
    tolerance: Tolerance = PAPER_TOLERANCE


def evaluate_maps(scans, counts, maps, tolerance=PAPER_TOLERANCE, seed=0, threshold_froc=True):
    """Evaluate maps of scans in memory, as `evaluate_cases` does.

    counts: a predicted count for each scan, not rounded; or method -> such a list.
    maps: method -> a map (D, H, W) for each scan.
    """
    if not isinstance(counts, dict):
        counts = dict.fromkeys(maps, counts)
    counts = {method: counts[method] for method in maps}
    cases = [
        functools.partial(tuple, (scan, dict(zip(maps, own, strict=True))))
        for scan, *own in zip(scans, *maps.values(), strict=True)
    ]
    return evaluate_cases(cases, counts, tolerance, seed, 1, threshold_froc, quiet=True)


def evaluate_cases(
    cases, counts, tolerance=PAPER_TOLERANCE, seed=0, n_jobs=1, threshold_froc=True, quiet=False
):
    """Detect lesions in every map at its predicted count, match them with the truth, and measure.

    Scans without known centres are judged by their counts only.

    Parameters
    ----------
    cases : list of functions without arguments (see score_scan.py); pickled if n_jobs > 1
    counts : method -> a predicted count for each case
    tolerance : of a hit; the paper's by default
    seed : of the bootstrap intervals
    n_jobs : processes; each has one scan in memory
    threshold_froc : also sweep one threshold over all scans, which opens each scan again
    """
    own_counts = [dict(zip(counts, row, strict=True)) for row in zip(*counts.values(), strict=True)]
    tasks = list(zip(cases, own_counts, strict=True))
    with processes(min(n_jobs, len(cases))) as each:

        def over(function, items, what):
            return list(progress(each(function, items), what, quiet, len(items)))

        found = over(functools.partial(score_scan, tolerance), tasks, "score")
        scores = {method: [one[method] for one in found] for method in counts}
        result = Evaluation(scores, cases=cases, tolerance=tolerance)
        for method in counts:
            _measure(result, method, seed)
        if threshold_froc and result.curves:
            levels = {
                method: froc_thresholds([score.candidates for score in located(own)])
                for method, own in scores.items()
            }
            found = over(functools.partial(hits_above, tolerance, levels), cases, "threshold FROC")
            for method in result.curves:
                hits = [one[method] for one in found if one[method] is not None]
                result.by_threshold[method] = froc_curve("threshold", levels[method], hits)
    return result


def evaluate_counts(scans, counts_predicted):
    """Evaluate predicted counts alone, of scans whose lesions were counted but not located."""
    pairs = zip(scans, counts_predicted, strict=True)
    result = Evaluation({MAIN: [Score(scan.subject, scan.count, float(n)) for scan, n in pairs]})
    _measure(result, MAIN, seed=0)
    return result


def located(scores):
    """The scores of scans whose lesions are known by place.

    Empty where all of them are scans without lesions: they say nothing about the others.
    """
    known = [score for score in scores if score.hits is not None]
    if len(known) < len(scores) and all(score.count == 0 for score in known):
        return []
    return known


def known_counts(scores):
    """True and predicted counts of the scans whose true count is known."""
    known = [(score.count, score.count_predicted) for score in scores if score.count is not None]
    return np.array(known, float).reshape(-1, 2).T


def _measure(result, method, seed):
    """Add a method's metrics and FROC by count to `result`."""
    scores, figures = result.scores[method], {}
    if known := located(scores):
        figures = detection_metrics([score.hits for score in known], seed)
        figures |= {"scans": len(known), "lesions": sum(s.hits[0] + s.hits[2] for s in known)}
        result.curves[method] = froc_curve("scale", SCALES, [s.hits_by_scale for s in known])
    if method != NO_NETWORK:
        true, predicted = known_counts(scores)
        figures |= count_metrics(true, predicted) | {"count_scans": len(true)}
    if figures:
        result.metrics[method] = figures | {"missing": 0}  # scans without a prediction
