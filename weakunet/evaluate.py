"""Compare predictions with the truth: python -m weakunet.evaluate

    python -m weakunet.evaluate --predictions DIR --data cohort.csv --out DIR

reads the heatmaps and predicted counts that `weakunet.predict` wrote and the lesion centres that
the cohort table names, and writes metrics.json, per_scan.csv, froc.csv, froc.png, counts.png and a
few overlays. The prepared images, thresholded for the same counts, are method (a) of the paper's
Table 1, the heatmaps method (e). Where lesions were counted in one slice (the table's slice_z_mm),
they are detected and sought in that slice only. Training ends with the same `evaluate_maps`.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weakunet import figures
from weakunet.cli import InputError, command, one_line, progress, write_csv, write_json
from weakunet.cohort import (
    SPLITS,
    LoadedScan,
    load_scan,
    read_centres,
    read_cohort,
    read_table,
)
from weakunet.detect import components_above, detect_lesions, whole_count
from weakunet.metrics import (
    RADIUS_VOX,
    count_hits,
    count_metrics,
    detection_metrics,
    froc_by_count,
    froc_by_threshold,
)
from weakunet.outputs import is_bids, output_paths
from weakunet.slices import find_slice, in_slice
from weakunet.volumes import read_volume, require_same_grid, world_to_index

PER_SCAN = "subject,method,count,count_predicted,threshold,n_detected,tp,fp,fn,tpr".split(",")
FROC = ("method", "sweep", "setting", "tpr", "fp_per_scan")
PICTURES = 4
MAIN, NO_NETWORK = "regression_fcn", "intensities"


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
    unlabelled = [scan.subject for scan in scans if scan.centres_zyx is None]
    if unlabelled:
        raise InputError(f"{unlabelled[0]}: no lesion centres; add them to the cohort table")
    if not isinstance(counts_predicted, dict):
        counts_predicted = dict.fromkeys(maps, counts_predicted)
    scans, maps = _cut_to_slices(scans, maps)
    lesions = [scan.centres_zyx for scan in scans]
    spacings_mm = None if radius_mm is None else [scan.volume.spacing_mm for scan in scans]
    reach = (radius if radius_mm is None else radius_mm, spacings_mm)
    result = Evaluation({}, [], {}, [])
    for method in progress(list(maps), "evaluate"):
        counts = counts_predicted[method]
        rows = _rows(scans, method, counts, maps[method], *reach)
        hits = [row[6:9] for row in rows]
        result.per_scan += rows
        result.metrics[method] = detection_metrics(hits, seed)
        if method != NO_NETWORK:
            result.metrics[method] |= count_metrics(*_known_counts(scans, counts))
        result.curves[method] = froc_by_count(maps[method], counts, lesions, *reach)
        by_threshold = froc_by_threshold(maps[method], lesions, *reach)
        result.froc += [(method, "count", *point.values()) for point in result.curves[method]]
        result.froc += [(method, "threshold", *point.values()) for point in by_threshold]
    if out is not None:
        _write(result, Path(out))
        ring = {"radius": radius} if radius_mm is None else {"radius_mm": radius_mm}
        _draw(result, scans, counts_predicted, maps, Path(out), ring)
        print(table(result.metrics))
    return result


def _cut_to_slices(scans, maps):
    """The scans and, method by method, their maps, each cut to the slice that was counted."""
    cut = [in_slice(scan, *own) for scan, *own in zip(scans, *maps.values(), strict=True)]
    columns = enumerate(maps, start=1)
    return [row[0] for row in cut], {method: [row[i] for row in cut] for i, method in columns}


def _known_counts(scans, counts):
    """True and predicted counts of the scans whose count the table gives."""
    pairs = [(scan.count, own) for scan, own in zip(scans, counts, strict=True)]
    pairs = np.array([pair for pair in pairs if pair[0] is not None], float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _rows(scans, method, counts, heatmaps, radius, spacings_mm):
    """Rows of PER_SCAN for one method."""
    rows = []
    for i, (scan, count, heatmap) in enumerate(zip(scans, counts, heatmaps, strict=True)):
        found = detect_lesions(heatmap, whole_count(count))
        spacing_mm = spacings_mm and spacings_mm[i]
        tp, fp, fn = count_hits(found.centres_zyx, scan.centres_zyx, radius, spacing_mm)
        tpr = tp / (tp + fn) if tp + fn else ""  # not defined without lesions
        known = "" if scan.count is None else scan.count
        numbers = (known, float(count), found.threshold, tp + fp, tp, fp, fn, tpr)
        rows.append((scan.subject, method, *numbers))
    return rows


def _write(result, out):
    write_json(out / "metrics.json", result.metrics)
    write_csv(out / "per_scan.csv", PER_SCAN, result.per_scan)
    write_csv(out / "froc.csv", FROC, result.froc)


def _draw(result, scans, counts_predicted, maps, out, ring):
    """FROC and count scatter, and overlays of a few scans from the fewest to the most lesions."""
    furthest = 3 * max(1.0, *(entry["fp_per_scan"] for entry in result.metrics.values()))
    figures.froc(out / "froc.png", result.curves, result.metrics, furthest)
    method = MAIN if MAIN in maps else list(maps)[-1]
    known = _known_counts(scans, counts_predicted[method])
    if len(known[0]):
        figures.count_scatter(out / "counts.png", *known)
    thresholds = [row[4] for row in result.per_scan if row[1] == method]
    order = np.argsort([len(scan.centres_zyx) for scan in scans], kind="stable")
    for i in order[np.linspace(0, len(scans) - 1, min(PICTURES, len(scans))).astype(int)]:
        scan, heatmap = scans[i], maps[method][i]
        labels = components_above(heatmap, thresholds[i]).labels
        shown = (scan.volume.array, heatmap, labels, scan.centres_zyx, scan.volume.spacing_mm)
        figures.overlay(out / f"{scan.subject}_overlay.png", *shown, **ring)


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


def read_predictions(path):
    """Read predictions.csv: subject -> predicted count. Raises InputError naming the line."""
    path, counts = Path(path), {}
    mend = "write it with python -m weakunet.predict"
    if not path.is_file():
        raise InputError(f"{path}: no such file; {mend}")
    for line, row in read_table(path, ("subject", "count_predicted")):
        subject = row["subject"]
        try:
            count = float(row["count_predicted"])
        except ValueError:
            count = math.nan
        if not math.isfinite(count):
            raise InputError(f"{path}: line {line}: count_predicted is no number; {mend}")
        if not subject:
            raise InputError(f"{path}: line {line}: no subject; {mend}")
        if subject in counts:
            raise InputError(f"{path}: line {line}: {one_line(subject)} is there twice; remove one")
        counts[subject] = count
    if not counts:
        raise InputError(f"{path}: no predictions, only a header; {mend}")
    return counts


def choose_scans(scans, counts, split, data, predictions):
    """The predicted scans of the split (of all, where the table has none) with lesion centres."""
    named = {scan.subject for scan in scans}
    unknown = [subject for subject in counts if subject not in named]
    if unknown:
        raise InputError(f"{data}: no row for {unknown[0]} of {predictions}; give its own table")
    chosen = [scan for scan in scans if split == "all" or scan.split in (split, None)]
    chosen = [scan for scan in chosen if scan.subject in counts]
    if not chosen:
        raise InputError(f"{predictions}: none of split {split}; predict on it, or --split all")
    usable = [scan for scan in chosen if scan.centres is not None]
    if not usable:
        raise InputError(f"{data}: no predicted scan has lesion centres; add a column centres")
    if all(scan.split is None for scan in scans):
        print(f"note: {data} has no split, so scans that were trained on would count as test scans")
    print(f"evaluating {len(usable)} of {len(counts)} predicted scans")
    return usable


def load_prediction(scan, folder):
    """The scan with its centres, its heatmap, and whether its image is a prepared one."""
    path = output_paths(folder, scan.subject, is_bids(folder))["heatmap"]
    if not path.is_file():
        raise InputError(f"{path}: no such file; predict on {scan.subject} again")
    prepared = scan.roi is None  # as for weakunet.predict
    if prepared:
        loaded = load_scan(scan)
    else:
        volume = read_volume(scan.image)
        centres_zyx = world_to_index(volume, read_centres(scan.centres))
        k = find_slice(volume, scan.slice_z_mm, scan.image)
        loaded = LoadedScan(scan.subject, volume, scan.count, centres_zyx, k)
    heatmap = read_volume(path)
    require_same_grid(loaded.volume, scan.image, heatmap, path)
    return loaded, heatmap.array, prepared


def positive(text):
    """Parse an option that must be a number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


@command
def main(argv=None):
    """Evaluate: see the module's first lines."""
    about = __doc__.splitlines()[0].split(":")[0]
    parser = argparse.ArgumentParser("python -m weakunet.evaluate", description=about)
    parser.add_argument("--predictions", type=Path, required=True, help="by weakunet.predict")
    parser.add_argument("--data", type=Path, required=True, help="cohort table with centres")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the results")
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="test", help="if it has any")
    radius = parser.add_mutually_exclusive_group()
    radius.add_argument("--radius", type=positive, default=RADIUS_VOX, help="of a hit, in voxels")
    radius.add_argument("--radius-mm", type=positive, help="of a hit, in mm")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap intervals")
    args = parser.parse_args(argv)
    if (args.out / "metrics.json").exists():
        raise InputError(f"{args.out}: holds an evaluation already; choose another --out")
    table_path = args.predictions / "predictions.csv"
    counts = read_predictions(table_path)
    chosen = choose_scans(read_cohort(args.data), counts, args.split, args.data, table_path)
    loaded = [load_prediction(scan, args.predictions) for scan in progress(chosen, "read")]
    scans, heatmaps, prepared = map(list, zip(*loaded, strict=True))
    maps = {NO_NETWORK: [scan.volume.array for scan in scans]} if all(prepared) else {}
    maps[MAIN] = heatmaps
    own = [counts[scan.subject] for scan in scans]
    evaluate_maps(scans, own, maps, args.out, args.radius, args.radius_mm, args.seed)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
