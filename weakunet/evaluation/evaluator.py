"""The evaluator of all commands: detect lesions, match them with the truth, measure.

A case is a function without arguments that returns a scan, its maps and its predicted counts (dicts
by method), from files or from memory: only one scan per process is in memory. A scan with a
slice_index is scored in that slice only.

Each scan is scored at its predicted count, at its true count and at the multiples of the predicted
count that make the FROC. A second pass scores it at the thresholds of the FROC by threshold, which
depend on all scans. What is sent between processes are numbers, not maps.
"""

import functools
from dataclasses import dataclass, field

import numpy as np

from weakunet.data.slices import in_slice
from weakunet.detection.detect import components_above
from weakunet.evaluation.froc import (
    SCALES,
    candidate_thresholds,
    froc_curve,
    froc_thresholds,
    hits_at_counts,
    hits_at_thresholds,
)
from weakunet.evaluation.metrics import (
    PAPER_TOLERANCE,
    Tolerance,
    count_metrics,
    detection_metrics,
)
from weakunet.util.cli import progress
from weakunet.util.processes import processes

MAIN, NO_NETWORK = "regression_fcn", "intensities"  # methods: the heatmap's, the image's


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


@dataclass
class Evaluation:
    """What an evaluation finds; dicts are by method."""

    scores: dict  # lists of Score, one per scan
    metrics: dict = field(default_factory=dict)  # rates, intervals and, for networks, counts
    curves: dict = field(default_factory=dict)  # FROC by count (see froc.froc_by_count)
    by_threshold: dict = field(default_factory=dict)  # FROC by threshold
    cases: list = field(default_factory=list)  # to draw a few scans from
    tolerance: Tolerance = PAPER_TOLERANCE


def evaluate_maps(scans, counts, maps, **how):
    """Evaluate maps of scans in memory; how: options of `evaluate_cases`.

    counts: a predicted count for each scan, not rounded; or method -> such a list.
    maps: method -> a map (D, H, W) for each scan.
    """
    counts = counts if isinstance(counts, dict) else dict.fromkeys(maps, counts)
    cases = []
    for i, scan in enumerate(scans):
        own = ({method: column[method][i] for method in maps} for column in (maps, counts))
        cases.append(functools.partial(tuple, (scan, *own)))
    return evaluate_cases(cases, quiet=True, **how)


def evaluate_cases(
    cases, tolerance=PAPER_TOLERANCE, seed=0, n_jobs=1, threshold_froc=True, quiet=False
):
    """Detect lesions in every map at its predicted count, match them with the truth, and measure.

    Scans without known centres are judged by their counts only.

    Parameters
    ----------
    cases : list of functions (see above), all of the same methods; pickled if n_jobs > 1
    tolerance : of a hit; the paper's by default
    seed : of the bootstrap intervals
    n_jobs : processes; each has one scan in memory
    threshold_froc : also sweep one threshold over all scans, which opens each scan again
    """
    with processes(min(n_jobs, len(cases))) as each:

        def over_cases(function, what):
            return list(progress(each(function, cases), what, quiet, len(cases)))

        found = over_cases(functools.partial(score_case, tolerance), "score")
        scores = {method: [own[method] for own in found] for method in found[0]}
        result = Evaluation(scores, cases=cases, tolerance=tolerance)
        for method in scores:
            _measure(result, method, seed)
        if threshold_froc and result.curves:
            levels = {
                method: froc_thresholds([score.candidates for score in located(own)])
                for method, own in scores.items()
            }
            found = over_cases(functools.partial(hits_above, tolerance, levels), "threshold FROC")
            for method in result.curves:
                hits = [own[method] for own in found if own]
                result.by_threshold[method] = froc_curve("threshold", levels[method], hits)
    return result


def open_case(case):
    """The case's scan, maps and counts, cut to the slice that was counted."""
    scan, maps, counts = case()
    scan, *cut = in_slice(scan, *maps.values())
    return scan, dict(zip(maps, cut, strict=True)), counts


def score_case(tolerance, case):
    """The Score of each method."""
    scan, maps, counts = open_case(case)
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
    scan, maps, _ = open_case(case)
    if scan.centres_zyx is None:
        return None
    truth = scan.centres_zyx, *tolerance.of(scan.volume.spacing_mm)
    found = {name: hits_at_thresholds(own, thresholds[name], *truth) for name, own in maps.items()}
    return {name: np.array(hits, np.int32) for name, hits in found.items()}


def picture(case, method, threshold):
    """What figures.overlay draws of one method: its arguments after the path."""
    scan, maps, _ = open_case(case)
    labels = components_above(maps[method], threshold).labels
    return scan.volume.array, maps[method], labels, scan.centres_zyx, scan.volume.spacing_mm


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
