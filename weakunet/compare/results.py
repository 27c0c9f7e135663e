"""What the comparison writes: table1.csv and .md, metrics.json, per_scan.csv, figures, report.html.

The paper's own figures (Table 1: TPR %, FPav, FDR %) stand beside ours. Its scans are other scans,
so what can be compared is the order of the methods, not the numbers.
"""

import json
import math

import numpy as np

from weakunet.compare.networks import CEILING, EXTRA, METHODS
from weakunet.compare.statistics import FPAV_LIMIT, mean_curve, rates
from weakunet.detection.detect import components_above
from weakunet.detection.tta import SMOOTHING_VOX
from weakunet.evaluation.metrics import count_metrics
from weakunet.figures import counts as figures_counts
from weakunet.figures import methods as figures_compare
from weakunet.figures import report
from weakunet.figures.overlay import overlay
from weakunet.util.cli import InputError, write_csv, write_json, write_text

PAPER = {  # TPR %, FPav, FDR %
    "intensities": (40.6, 2.3, 59.8),
    "saliency": (39.8, 2.7, 54.2),
    "saliency_fcn": (18.7, 3.3, 70.2),
    "regression": (19.6, 3.2, 70.5),
    "regression_fcn": (54.8, 1.9, 37.7),
    "intensities_regression_fcn": (62.0, 1.5, 31.4),
}
NAMES = METHODS | EXTRA | CEILING
POOL_NAMES = {
    "lmax": "mean of local maxima (ours)",
    "max": "global maximum (the paper's)",
    "mean": "global mean",
}
COLUMNS = (
    "pooling,method,tpr,tpr_low,tpr_high,fp_per_scan,fp_low,fp_high,fdr,fdr_low,fdr_high,"
    "tpr_minus_e,tpr_minus_e_low,tpr_minus_e_high,tpr_true_count,fp_true_count,froc_area,"
    "tpr_at_4.4_fp,count_mse,count_mae,count_r2,count_icc,paper_tpr,paper_fp_per_scan,paper_fdr"
).split(",")
PER_SCAN = "pooling,seed,subject,method,count,count_predicted,threshold,tp,fp,fn".split(",")


def read_json(path):
    """Read a JSON file that a run wrote.  Raises InputError when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); choose another --out") from None


def table_rows(tables):
    """Rows of COLUMNS, fractions as fractions; what is not defined is empty."""
    rows = []
    for pool, table in tables.items():
        for method, row in table.items():
            paper = PAPER.get(method, (None,) * 3)
            values = [
                row["tpr"], *row["tpr_ci95"],
                row["fp_per_scan"], *row["fp_per_scan_ci95"],
                row["fdr"], *row["fdr_ci95"],
                row["tpr_minus_best"], *row["tpr_minus_best_ci95"],
                row["tpr_true"], row["fp_true"], row["froc_area"], row["tpr_at_limit"],
                *(row.get(f"count_{name}") for name in ("mse", "mae", "r2", "icc")),
                *(paper[0] and (paper[0] / 100, paper[1], paper[2] / 100) or paper),
            ]  # fmt: skip
            known = ["" if v is None or math.isnan(v) else round(v, 4) for v in values]
            rows.append((pool, method, *known))
    return rows


def printed_rows(table):
    """The table as people read it: rows of text, percent and intervals."""
    rows = []
    for method, row in table.items():
        paper = PAPER.get(method)
        low, high = row["tpr_ci95"]
        fp_low, fp_high = row["fp_per_scan_ci95"]
        cells = [
            NAMES[method],
            f"{100 * row['tpr']:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
            f"{row['fp_per_scan']:.2f} [{fp_low:.2f}, {fp_high:.2f}]",
            f"{100 * row['fdr']:.1f}",
        ]
        if method == "regression_fcn":
            cells.append("0")
        else:
            low, high = row["tpr_minus_best_ci95"]
            cells.append(
                f"{100 * row['tpr_minus_best']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            )
        cells.append(f"{100 * row['tpr_true']:.1f} / {row['fp_true']:.2f}")
        cells.append(f"{row['froc_area']:.2f}")
        cells.append(f"{100 * row['tpr_at_limit']:.1f}")
        r2, icc = row.get("count_r2"), row.get("count_icc")
        cells.append("-" if r2 is None else f"{r2:.2f} / {icc:.2f}")
        cells.append("-" if paper is None else f"{paper[0]:.1f} / {paper[1]:.1f} / {paper[2]:.1f}")
        rows.append(cells)
    return rows


HEAD = (
    "method",
    "TPR % [95 % CI]",
    "FPav [95 % CI]",
    "FDR %",
    "TPR minus (e)'s [95 % CI]",
    "at the true count: TPR % / FPav",
    f"area under FROC to {FPAV_LIMIT} FPav",
    f"TPR % at {FPAV_LIMIT} FPav",
    "count R2 / ICC",
    "paper: TPR / FPav / FDR",
)


def markdown_table(tables):
    """Table 1 as Markdown, a block for each pooling."""
    lines = []
    for pool, table in tables.items():
        lines += [f"**Global pooling: {POOL_NAMES[pool]}**", ""]
        lines += ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
        lines += ["| " + " | ".join(row) + " |" for row in printed_rows(table)] + [""]
    return "\n".join(lines)


def text_table(tables):
    """Table 1 for a terminal: the first columns."""
    lines = []
    for pool, table in tables.items():
        lines.append(f"\nglobal pooling: {POOL_NAMES[pool]}")
        form = "{:<44}{:<20}{:<19}{:<7}{:<27}{:<16}{}"
        lines.append(form.format("method", *HEAD[1:4], HEAD[4], HEAD[8], HEAD[9]))
        for row in printed_rows(table):
            lines.append(form.format(*row[:5], row[8], row[9]))
    return "\n".join(lines)


def per_scan_rows(results):
    """Rows of PER_SCAN over all poolings, seeds and methods."""
    return [
        (pool, r.seed, r.subjects[i], method, r.true[i], float(r.counts[method][i]),
         r.thresholds[method][i], *map(int, r.hits[method][i]))
        for pool, own in results.items()
        for r in own
        for method in r.hits
        for i in range(len(r.subjects))
    ]  # fmt: skip


def flat_metrics(tables):
    """metrics.json: an object per method; of a second pooling as METHOD_POOL."""
    first = next(iter(tables))
    return {
        method if pool == first else f"{method}_{pool}": row
        for pool, table in tables.items()
        for method, row in table.items()
    }


def write_all(out, args, jobs, results, tables, cost):
    """Write every file of the comparison into the folder `out`."""
    write_csv(out / "table1.csv", COLUMNS, table_rows(tables))
    write_text(out / "table1.md", markdown_table(tables))
    write_json(out / "metrics.json", flat_metrics(tables))
    write_csv(out / "per_scan.csv", PER_SCAN, per_scan_rows(results))
    write_json(out / "cost.json", cost)
    pictures = draw(out, results)
    first = next(iter(results))
    settings = next(iter(jobs[first][0].values())).settings
    facts = [
        ("cohort", args.data or args.cohort),
        ("seeds", ", ".join(str(r.seed) for r in results[first])),
        ("test scans per seed", len(results[first][0].true)),
        ("heatmaps", f"median over mirrored copies, smoothed by sd {SMOOTHING_VOX} voxels"),
        *[(name, value) for name, value in vars(settings).items() if name not in ("seed", "pool")],
        *cost.items(),
    ]
    runs = [
        (POOL_NAMES[pool], str(r.seed), *(f"{r.val_r[kind]:.2f}" for kind in ("coarse", "fcn")),
         "{:.1f} / {:.2f}".format(*rates(r.hits["regression_fcn"])[:2] * (100, 1)),
         f"{r.weight:.2f}")
        for pool, own in results.items()
        for r in own
    ]  # fmt: skip
    blocks = [
        (f"Table 1, global pooling: {POOL_NAMES[pool]}", HEAD, printed_rows(table))
        for pool, table in tables.items()
    ]
    trained = (
        "Every run: correlation of predicted and true validation counts (a collapsed run has "
        "none), what (e) finds, and the weight of the heatmap in (f)",
        (
            "global pooling",
            "seed",
            "r, (b) and (d)",
            "r, (c), (e) and (f)",
            "(e): TPR % / FPav",
            "weight",
        ),
        runs,
    )
    settings_table = ("Settings and cost", ("what", "value"), [(a, str(b)) for a, b in facts])
    report.write_report(
        out / "report.html",
        "Lesions from counts: the paper's Table 1",
        INTRO,
        [*blocks, trained, settings_table],
        pictures,
        viewer(results[first][0]),
    )


INTRO = (
    "Every network here was trained with one number per scan, its lesion count, except the "
    "voxel-wise one, which shows what the weak label costs. A map is thresholded so that it falls "
    "into as many connected components as its network counts; a component is a hit when its centre "
    "lies within 3 voxels of a lesion's that no other component took. Figures are means over "
    "seeds (a cohort and a training each), intervals 95 % bootstraps over seeds and scans. The "
    "paper's figures are of other scans: compare the order of the methods."
)


FIGURE2 = (
    "Fig. 2: a held-out scan with the truth circled; the heatmap of (e) with hits, false positives "
    "and misses; the segmentation."
)
FIGURE3_LEFT = "Fig. 3, left: the maps of all methods on that scan, each on its own colour scale."
FIGURE3_RIGHT = (
    "Fig. 3, right: free-response ROC, each scan's count over- or underestimated by a factor; "
    "marked: the predicted count; hollow: the paper."
)


def draw(out, results):
    """Figures 2 and 3, FROC and counts; list of (path, caption)."""
    pool = next(iter(results))
    runs = results[pool]
    result, main = runs[0], "regression_fcn"
    pictures = []
    index, example = list(result.example.items())[-1]
    scan, maps = example["scan"], example["maps"]
    labels = components_above(maps[main], result.thresholds[main][index]).labels
    spacing = scan.volume.spacing_mm
    shown = (scan.volume.array, maps[main], labels, scan.centres_zyx, spacing)
    overlay(out / "figure2.png", *shown)
    pictures.append((out / "figure2.png", FIGURE2))
    named = {NAMES[name]: array for name, array in maps.items()}
    levels = {NAMES[name]: result.thresholds[name][index] for name in maps}
    figures_compare.method_maps(
        out / "figure3_maps.png", scan.volume.array, named, levels, scan.centres_zyx, spacing
    )
    pictures.append((out / "figure3_maps.png", FIGURE3_LEFT))
    # with the extra methods the picture could not be read: the paper's six and the ceiling
    shown = [name for name in result.curves if name not in EXTRA]
    curves = {NAMES[name]: [r.curves[name] for r in runs] for name in shown}
    means = {name: mean_curve([r.curves[name] for r in runs]) for name in shown}
    at_count = {name: next(p for p in curve if p["scale"] == 1) for name, curve in means.items()}
    operating = {NAMES[n]: (p["fp_per_scan"], p["tpr"]) for n, p in at_count.items()}
    paper = {NAMES[name]: (fp, tpr / 100) for name, (tpr, fp, _) in PAPER.items()}
    figures_compare.froc_curves(out / "figure3.png", curves, operating, paper)
    pictures.append((out / "figure3.png", FIGURE3_RIGHT))
    for own in results:
        true = np.concatenate([r.true for r in results[own]])
        predicted = np.concatenate([r.counts[main] for r in results[own]])
        path = out / ("counts.png" if own == pool else f"counts_{own}.png")
        figures_counts.counts_agreement(path, true, predicted)
        r2 = count_metrics(true, predicted)["count_r2"]
        caption = f"Counts of (e), global pooling {POOL_NAMES[own]}: R2 {r2:.2f}, all seeds' scans."
        pictures.append((path, caption))
    return pictures


def viewer(result):
    """The scan that the report lets one scroll through."""
    index, example = list(result.example.items())[-1]
    scan, heatmap = example["scan"], example["maps"]["regression_fcn"]
    labels = components_above(heatmap, result.thresholds["regression_fcn"][index]).labels
    return {
        "image": scan.volume.array,
        "heatmap": heatmap,
        "labels": labels,
        "centres_zyx": scan.centres_zyx,
        "spacing_mm": scan.volume.spacing_mm,
    }
