"""From the hits of several seeds to the table: means, intervals, paired differences, areas.

A seed is a cohort and a training of its own. Rates are pooled over the lesions of a seed's test
scans, then averaged over seeds. Intervals are 95 % percentile bootstraps in two stages: seeds are
drawn with replacement, then test scans within each; a difference of two methods takes the same
draws for both, since both saw the same scans.
"""

import numpy as np

from weakunet.evaluation.evaluator import MAIN, NO_NETWORK, known_counts
from weakunet.evaluation.metrics import RESAMPLES, count_metrics, interval, rates

FPAV_LIMIT = 4.4  # the paper's second operating point; the area under the FROC ends there


def draw(n_seeds, n_scans, seed=0, resamples=RESAMPLES):
    """Indices (seed (B, R), scan (B, R, S)) of the two-stage bootstrap."""
    rng = np.random.default_rng(seed)
    seeds = rng.integers(n_seeds, size=(resamples, n_seeds))
    return seeds, rng.integers(n_scans, size=(resamples, n_seeds, n_scans))


def mean_rates(hits, draws=None):
    """Each of metrics.RATES as its mean over seeds, or with `draws` as the resampled means (B,).

    Parameters: hits (R, S, 3). A seed in which a rate is not defined is left out of its mean.
    """
    hits = np.asarray(hits, float)
    if draws is not None:
        seeds, scans = draws
        hits = hits[seeds[..., None], scans]
    return {name: _mean(values) for name, values in rates(hits).items()}


def _mean(values):
    """Mean over the last axis of what is not NaN."""
    defined = ~np.isnan(values)
    total, n = np.where(defined, values, 0).sum(-1), defined.sum(-1)
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)


def tpr_at(curve, fp_per_scan):
    """TPR of an FROC (list of dict fp_per_scan, tpr) at one or more FPav: linear between points.

    The curve starts at (0, 0); past its last point it stays where it was.
    """
    points = sorted((point["fp_per_scan"], point["tpr"]) for point in curve)
    x, y = np.array([(0.0, 0.0), *points]).T
    return np.interp(fp_per_scan, x, np.maximum.accumulate(y))


def froc_area(curve, limit=FPAV_LIMIT):
    """Mean TPR over FPav from 0 to `limit`: the area under the FROC divided by its width."""
    return float(tpr_at(curve, np.linspace(0, limit, 441)).mean())


def summarise(results):
    """dict method -> figures over all SeedResults of one global pooling.

    Figures: metrics.RATES and their *_ci95; tpr_by_seed, fp_by_seed; tpr_true, fp_true (at the true
    count); froc_area, tpr_at_limit; count_*; and tpr_minus_best, with its interval.
    """
    draws = draw(len(results), len(results[0].scores[MAIN]))
    best_hits = _hits(results, MAIN, "hits")
    best_tpr, best_draws = mean_rates(best_hits)["tpr"], mean_rates(best_hits, draws)["tpr"]
    table = {}
    for method in results[0].scores:
        hits = _hits(results, method, "hits")
        resampled, row = mean_rates(hits, draws), {}
        for name, value in mean_rates(hits).items():
            row[name], row[f"{name}_ci95"] = float(value), interval(resampled[name])
        row["tpr_by_seed"] = [float(value) for value in rates(hits)["tpr"]]
        row["fp_by_seed"] = [float(value) for value in rates(hits)["fp_per_scan"]]
        at_true = mean_rates(_hits(results, method, "hits_true_count"))
        row["tpr_true"], row["fp_true"] = float(at_true["tpr"]), float(at_true["fp_per_scan"])
        curves = [r.curves[method] for r in results]
        row["froc_area"] = float(np.mean([froc_area(curve) for curve in curves]))
        row["tpr_at_limit"] = float(np.mean([tpr_at(curve, FPAV_LIMIT) for curve in curves]))
        if method != NO_NETWORK:
            own = [count_metrics(*known_counts(r.scores[method])) for r in results]
            row |= {name: float(np.mean([m[name] for m in own])) for name in own[0]}
        row["tpr_minus_best"] = float(row["tpr"] - best_tpr)
        row["tpr_minus_best_ci95"] = interval(resampled["tpr"] - best_draws)
        table[method] = row
    return table


def _hits(results, method, name):
    """(R, S, 3): TP, FP, FN of every seed's test scans."""
    return np.array([[getattr(score, name) for score in r.scores[method]] for r in results])
