"""Detect, match and measure: every scan at its predicted count, and at all settings of a FROC."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weakunet.evaluation.froc_thresholds import Tally, thresholds, wanted_bins
from weakunet.evaluation.metrics import (
    LEVELS,
    RADIUS_VOX,
    SCALES,
    count_metrics,
    detection_metrics,
    froc_curve,
)
from weakunet.evaluation.predictions import MAIN, NO_NETWORK
from weakunet.evaluation.score_scan import (
    PER_SCAN,
    Reach,
    hits_above,
    judge,
    picture,
    values_in_bins,
)
from weakunet.figures import counts as figures_counts
from weakunet.figures import methods as figures_compare
from weakunet.figures.overlay import overlay
from weakunet.util.cli import progress, write_csv, write_json
from weakunet.util.processes import processes

FROC = ("method", "sweep", "setting", "tpr", "fp_per_scan")
PICTURES = 4


@dataclass
class Evaluation:
    """What `evaluate_maps` finds: one entry or several rows a method."""

    metrics: dict  # method -> rates, intervals and, for networks, count figures
    per_scan: list  # rows of PER_SCAN
    curves: dict  # method -> its count-scaling FROC (list of dict, see metrics.froc_by_count)
    froc: list  # rows of FROC, both sweeps


def evaluate_maps(
    scans, counts_predicted, maps, out=None, radius=RADIUS_VOX, radius_mm=None, seed=0
):
    """Detect lesions in every map at its predicted count, match them with the truth, and measure.

    Parameters
    ----------
    scans : list of LoadedScan with centres_zyx; those with a slice_index are judged in that slice
    counts_predicted : a count for each scan, not rounded; or method -> such a list
    maps : method -> a map (D, H, W) for each scan
    out : folder to write tables and pictures into (the table is printed then), or None
    radius, radius_mm : of a hit, in voxels unless the second is given
    seed : of the bootstrap intervals

    Returns
    -------
    Evaluation
    """
    if not isinstance(counts_predicted, dict):
        counts_predicted = dict.fromkeys(maps, counts_predicted)
    cases = []
    for scan, *own in zip(scans, *maps.values(), strict=True):
        cases.append(functools.partial(tuple, (scan, dict(zip(maps, own, strict=True)))))
    counts = {method: counts_predicted[method] for method in maps}
    return evaluate_cases(cases, counts, out, Reach(radius, radius_mm), seed)


def evaluate_cases(cases, counts, out=None, reach=None, seed=0, n_jobs=1):
    """`evaluate_maps` of scans that are opened when they are needed, one at a time a process.

    Every scan is opened three times: to judge it at its count and count its voxels' bins, to look
    for the threshold FROC's thresholds (see froc_thresholds.py), and to judge it at those;
    a few once more, for their pictures.

    Parameters
    ----------
    cases : list of functions without arguments (see score_scan.py); pickled if n_jobs > 1
    counts : method -> a predicted count for each
    reach : Reach of a hit; None: the paper's
    """
    reach = reach or Reach(RADIUS_VOX)
    result = Evaluation({}, [], {}, [])
    own_counts = [dict(zip(counts, row, strict=True)) for row in zip(*counts.values(), strict=True)]
    tasks = list(zip(cases, own_counts, strict=True))
    rows, hits, tallies = ({method: make() for method in counts} for make in (list, list, Tally))
    with processes(min(n_jobs, len(cases))) as each:
        for judged in _watch(each(functools.partial(judge, reach), tasks), tasks, "judge"):
            for method in counts:
                for kept, one in zip((rows, hits), judged, strict=False):
                    kept[method].append(one[method])
                tallies[method].add(judged[2][method])
        levels = _find_thresholds(each, cases, {m: tally.total() for m, tally in tallies.items()})
        at_levels = each(functools.partial(hits_above, reach, levels), cases)
        at_levels = list(_watch(at_levels, cases, "threshold FROC"))
    for method in counts:
        result.per_scan += rows[method]
        result.metrics[method] = detection_metrics([row[6:9] for row in rows[method]], seed)
        if method != NO_NETWORK:
            result.metrics[method] |= count_metrics(*_known_counts(rows[method]))
        result.curves[method] = froc_curve("scale", SCALES, hits[method])
        own = [one[method] for one in at_levels]
        by_threshold = froc_curve("threshold", levels[method], own)
        result.froc += [(method, "count", *point.values()) for point in result.curves[method]]
        result.froc += [(method, "threshold", *point.values()) for point in by_threshold]
    if out is not None:
        _write(result, Path(out))
        _draw(result, cases, rows, Path(out), reach)
        print(table(result.metrics))
    return result


def evaluate_counts(counts, counts_predicted, out):
    """Where lesions are not marked, all that can be judged: writes metrics.json and counts.png."""
    print("without lesion centres, only the counts can be judged")
    figures_of_count = count_metrics(counts, counts_predicted)
    write_json(out / "metrics.json", {MAIN: figures_of_count})
    figures_counts.counts_agreement(out / "counts.png", counts, counts_predicted)
    print("  ".join(f"{name} {value:.2f}" for name, value in figures_of_count.items()))


def _find_thresholds(each, cases, bins):
    """Method -> the thresholds of its threshold FROC, from the bins of all its voxels."""
    wanted = {method: wanted_bins(own, LEVELS) for method, own in bins.items()}
    tallies = {method: Tally() for method in bins}
    found = each(functools.partial(values_in_bins, wanted), cases)
    for counted in _watch(found, cases, "thresholds"):
        for method, tally in tallies.items():
            tally.add(counted[method])
    return {m: thresholds(bins[m], tally.total(), LEVELS) for m, tally in tallies.items()}


def _watch(results, items, what):
    """The results of all items, with progress."""
    for result, _ in zip(results, progress(items, what), strict=True):
        yield result


def _known_counts(rows):
    """True and predicted counts of the scans whose count the table gives, from PER_SCAN rows."""
    pairs = np.array([row[2:4] for row in rows if row[2] != ""], float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _write(result, out):
    write_json(out / "metrics.json", result.metrics)
    write_csv(out / "per_scan.csv", PER_SCAN, result.per_scan)
    write_csv(out / "froc.csv", FROC, result.froc)


def _draw(result, cases, rows, out, reach):
    """FROC and count scatter, and overlays of a few scans from the fewest to the most lesions."""
    furthest = 3 * max(1.0, *(entry["fp_per_scan"] for entry in result.metrics.values()))
    at_count = {name: (own["fp_per_scan"], own["tpr"]) for name, own in result.metrics.items()}
    figures_compare.froc_curves(out / "froc.png", result.curves, at_count, furthest=furthest)
    method = MAIN if MAIN in rows else list(rows)[-1]
    known = _known_counts(rows[method])
    if len(known[0]):
        figures_counts.counts_agreement(out / "counts.png", *known)
    lesions = [row[6] + row[8] for row in rows[method]]
    order = np.argsort(lesions, kind="stable")
    ring = {"radius": reach.radius} if reach.radius_mm is None else {"radius_mm": reach.radius_mm}
    for i in order[np.linspace(0, len(cases) - 1, min(PICTURES, len(cases))).astype(int)]:
        subject, shown = picture(cases[i], method, rows[method][i][4])
        overlay(out / f"{subject}_overlay.png", *shown, **ring)


def table(metrics):
    """The figures of all methods as text, one line a method; intervals are 95 %."""
    head = ("method", "TPR % [95 % CI]", "FPav [95 % CI]", "FDR %", "count R2", "ICC")
    lines = ["{:<27}{:<20}{:<21}{:<7}{:<10}{}".format(*head)]
    for method, figure in metrics.items():
        low, high = figure["tpr_ci95"]
        tpr = f"{100 * figure['tpr']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        low, high = figure["fp_per_scan_ci95"]
        fp = f"{figure['fp_per_scan']:.2f} [{low:.2f}, {high:.2f}]"
        counted = [figure.get(name) for name in ("count_r2", "count_icc")]
        r2, icc = ("-" if value is None else f"{value:.2f}" for value in counted)
        lines.append(f"{method:<27}{tpr:<20}{fp:<21}{100 * figure['fdr']:<7.1f}{r2:<10}{icc}")
    return "\n".join(lines)
