"""From the hits of several seeds to the table: means, intervals, paired differences, areas.

A seed is a cohort and a training of its own. Rates are pooled over the lesions of a seed's test
scans, then averaged over seeds. Intervals are 95 % percentile bootstraps in two stages: seeds are
drawn with replacement, then test scans within each; a difference of two methods takes the same
draws for both, since both saw the same scans.
"""

import numpy as np

from weakunet.evaluation.froc import SCALES
from weakunet.evaluation.metrics import count_metrics, detection_metrics

RESAMPLES = 2000
FPAV_LIMIT = 4.4  # the paper's second operating point; the area under the FROC ends there
RATES = ("tpr", "fp_per_scan", "fdr")


def rates(hits):
    """TPR, FPav and FDR (3, ...) of hits (..., S, 3); NaN where not defined."""
    tp, fp, fn = np.moveaxis(np.asarray(hits, float).sum(-2), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([tp / (tp + fn), fp / np.shape(hits)[-2], fp / (tp + fp)])


def draw(n_seeds, n_scans, seed=0, resamples=RESAMPLES):
    """Indices (seed (B, R), scan (B, R, S)) of the two-stage bootstrap."""
    rng = np.random.default_rng(seed)
    seeds = rng.integers(n_seeds, size=(resamples, n_seeds))
    return seeds, rng.integers(n_scans, size=(resamples, n_seeds, n_scans))


def mean_rates(hits, draws=None):
    """Rates of hits (R, S, 3) as means over seeds (3,), or with `draws` the resampled (3, B)."""
    hits = np.asarray(hits, float)
    if draws is not None:
        seeds, scans = draws
        hits = hits[seeds[..., None], scans]
    values = rates(hits)
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0).sum(-1)
    n = defined.sum(-1)
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)


def interval(values):
    """[low, high] of the 95 % percentile interval; NaN values are left out."""
    values = values[~np.isnan(values)]
    if not len(values):
        return [float("nan")] * 2
    return [float(end) for end in np.percentile(values, [2.5, 97.5])]


def tpr_at(curve, fp_per_scan):
    """TPR of an FROC (list of dict fp_per_scan, tpr) at an FPav: linear between its points.

    The curve starts at (0, 0); past its last point it stays where it was.
    """
    points = sorted((point["fp_per_scan"], point["tpr"]) for point in curve)
    x, y = np.array([(0.0, 0.0), *points]).T
    return float(np.interp(fp_per_scan, x, np.maximum.accumulate(y)))


def froc_area(curve, limit=FPAV_LIMIT):
    """Mean TPR over FPav from 0 to `limit`: the area under the FROC divided by its width."""
    grid = np.linspace(0, limit, 441)
    return float(np.mean([tpr_at(curve, x) for x in grid]))


def summarise(results, best="regression_fcn"):
    """dict method -> figures over all SeedResults of one global pooling.

    Figures: tpr, fp_per_scan, fdr, tpr_per_scan and *_ci95; tpr_by_seed; tpr_true, fp_true (at the
    true count); froc_area, tpr_at_limit; count_*; and tpr_minus_best, with its interval.
    """
    table = {}
    n_scans = len(results[0].true)
    draws = draw(len(results), n_scans)
    if best in results[0].hits:
        best_draws = mean_rates([r.hits[best] for r in results], draws)[0]
        best_tpr = mean_rates([r.hits[best] for r in results])[0]
    for method in results[0].hits:
        hits = np.stack([r.hits[method] for r in results])
        values, resampled = mean_rates(hits), mean_rates(hits, draws)
        row = {}
        for k, name in enumerate(RATES):
            row[name], row[f"{name}_ci95"] = float(values[k]), interval(resampled[k])
        own = [detection_metrics(h, resamples=1)["tpr_per_scan"] for h in hits]
        row["tpr_per_scan"] = float(np.nanmean(own))
        row["tpr_by_seed"] = [float(v) for v in rates(hits)[0]]
        row["fp_by_seed"] = [float(v) for v in rates(hits)[1]]
        at_true = mean_rates([r.hits_true[method] for r in results])
        row["tpr_true"], row["fp_true"] = float(at_true[0]), float(at_true[1])
        row["froc_area"] = float(np.mean([froc_area(r.curves[method]) for r in results]))
        row["tpr_at_limit"] = float(
            np.mean([tpr_at(r.curves[method], FPAV_LIMIT) for r in results])
        )
        if method != "intensities":
            own = [count_metrics(r.true, r.counts[method]) for r in results]
            row |= {name: float(np.mean([m[name] for m in own])) for name in own[0]}
        if best in results[0].hits:
            row["tpr_minus_best"] = float(values[0] - best_tpr)
            row["tpr_minus_best_ci95"] = interval(resampled[0] - best_draws)
        table[method] = row
    return table


def mean_curve(curves):
    """One FROC from several seeds': the mean TPR and FPav at each factor of the count."""
    return [
        {
            "scale": scale,
            "tpr": float(np.mean([curve[k]["tpr"] for curve in curves])),
            "fp_per_scan": float(np.mean([curve[k]["fp_per_scan"] for curve in curves])),
        }
        for k, scale in enumerate(SCALES)
    ]
