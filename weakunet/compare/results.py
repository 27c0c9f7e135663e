"""What the comparison writes into its folder: tables, figures 2 and 3, and report.html."""

import math

import numpy as np

from weakunet.compare.methods import EXTRA, NAMES, PAPER
from weakunet.compare.tables import HEAD, POOL_NAMES, markdown_table, printed_rows
from weakunet.detection.detect import components_above
from weakunet.detection.tta import SMOOTHING_VOX
from weakunet.evaluation.evaluator import MAIN, known_counts
from weakunet.evaluation.metrics import count_metrics, rates
from weakunet.figures.counts import counts_agreement
from weakunet.figures.methods import froc_curves, method_maps
from weakunet.figures.overlay import overlay
from weakunet.figures.report import write_report
from weakunet.util.cli import write_csv, write_json, write_text

INTRO = (
    "Every network here was trained with one number per scan, its lesion count, except the fully "
    "supervised upper bound, which shows what the weak label costs. A map is thresholded so that "
    "it falls into as many connected components as its network counts; a component is a hit when "
    "its centre lies within 3 voxels of the centre of a lesion that no other component took. "
    "Figures are means over seeds, each with a cohort and a training of its own. Intervals are "
    "95 % bootstraps over seeds and scans. The paper's figures are of other scans: compare the "
    "order of the methods, not the numbers."
)
FIGURES = {  # file: caption
    "figure2": "Fig. 2: a held-out scan, every lesion ringed; the heatmap of (e) with hits, false "
    "positives and misses; the segmentation.",
    "figure3_maps": "Fig. 3, left: the maps of all methods on that scan, each on its own colour "
    "scale.",
    "figure3": "Fig. 3, right: free-response ROC, each scan's count multiplied by a factor; "
    "marked: the predicted count; hollow: the paper.",
}
RUNS = (
    "Each run: correlation of predicted and true validation counts (a collapsed run has none), "
    "what (e) finds, and the weight of the heatmap in (f)"
)
RUNS_HEAD = ("global pooling", "random seed", "r, (b) and (d)", "r, (c), (e) and (f)")
RUNS_HEAD += ("(e): TPR % / FPav", "weight")
COLUMNS = (
    "pooling,method,tpr,tpr_low,tpr_high,fp_per_scan,fp_low,fp_high,fdr,fdr_low,fdr_high,"
    "tpr_minus_e,tpr_minus_e_low,tpr_minus_e_high,tpr_true_count,fp_true_count,froc_area,"
    "tpr_at_4.4_fp,count_mse,count_mae,count_r2,count_icc,paper_tpr,paper_fp_per_scan,paper_fdr"
).split(",")
PER_SCAN = "pooling,seed,subject,method,count,count_predicted,threshold,tp,fp,fn".split(",")


def write_all(out, cohort, settings, results, tables, cost):
    """Write every file of the comparison into the folder `out`.

    Parameters: cohort, its name or table; settings of a network; results, dict pool -> list of
    SeedResult; tables, dict pool -> figures by method (see statistics.summarise); cost, a dict.
    """
    write_csv(out / "table1.csv", COLUMNS, table_rows(tables))
    write_text(out / "table1.md", markdown_table(tables))
    write_json(out / "metrics.json", flat_metrics(tables))
    write_csv(out / "per_scan.csv", PER_SCAN, per_scan_rows(results))
    write_json(out / "cost.json", cost)
    pictures = draw(out, results, tables)
    runs = next(iter(results.values()))
    facts = [
        ("cohort", cohort),
        ("number of runs", len(runs)),
        ("their random seeds", ", ".join(str(r.seed) for r in runs)),
        ("test scans per run", len(runs[0].scores[MAIN])),
        ("heatmaps", f"median over flips and shifts, smoothed by sd {SMOOTHING_VOX} voxels"),
        ("not rotated", "scans of the networks with the maximum and with voxel labels"),
        *[(name, value) for name, value in vars(settings).items() if name not in ("seed", "pool")],
        *cost.items(),
    ]
    blocks = [
        (f"Table 1, global pooling: {POOL_NAMES[pool]}", HEAD, printed_rows(table))
        for pool, table in tables.items()
    ]
    blocks.append((RUNS, RUNS_HEAD, [run_row(p, r) for p, own in results.items() for r in own]))
    blocks.append(("Settings and cost", ("what", "value"), [(name, str(v)) for name, v in facts]))
    title = "Lesions from counts: the paper's Table 1"
    write_report(out / "report.html", title, INTRO, blocks, pictures, shown_scan(runs[0]))


def table_rows(tables):
    """Rows of COLUMNS, fractions as fractions; what is not defined is empty."""
    rows = []
    for pool, table in tables.items():
        for method, row in table.items():
            tpr, fp, fdr = PAPER.get(method, (None,) * 3)
            values = [
                row["tpr"], *row["tpr_ci95"],
                row["fp_per_scan"], *row["fp_per_scan_ci95"],
                row["fdr"], *row["fdr_ci95"],
                row["tpr_minus_best"], *row["tpr_minus_best_ci95"],
                row["tpr_true"], row["fp_true"], row["froc_area"], row["tpr_at_limit"],
                *(row.get(f"count_{name}") for name in ("mse", "mae", "r2", "icc")),
                tpr and tpr / 100, fp, fdr and fdr / 100,
            ]  # fmt: skip
            known = ["" if v is None or math.isnan(v) else round(v, 4) for v in values]
            rows.append((pool, method, *known))
    return rows


def per_scan_rows(results):
    """Rows of PER_SCAN over all poolings, seeds and methods."""
    return [
        (pool, r.seed, s.subject, method, s.count, s.count_predicted, s.threshold, *s.hits)
        for pool, own in results.items()
        for r in own
        for method, scores in r.scores.items()
        for s in scores
    ]


def flat_metrics(tables):
    """metrics.json: one object per method; of a second pooling as METHOD_POOL."""
    first = next(iter(tables))
    return {
        method if pool == first else f"{method}_{pool}": row
        for pool, table in tables.items()
        for method, row in table.items()
    }


def run_row(pool, result):
    """The row of one run under RUNS_HEAD."""
    found = rates([score.hits for score in result.scores[MAIN]])
    correlations = (f"{result.val_r[kind]:.2f}" for kind in ("coarse", "fcn"))
    hits = f"{100 * found['tpr']:.1f} / {found['fp_per_scan']:.2f}"
    return POOL_NAMES[pool], str(result.seed), *correlations, hits, f"{result.weight:.2f}"


def shown_scan(result):
    """The example scan with (e)'s map, as the report's viewer and Fig. 2 take it."""
    i, scan, maps = result.example
    labels = components_above(maps[MAIN], result.scores[MAIN][i].threshold).labels
    shown = {"image": scan.volume.array, "heatmap": maps[MAIN], "labels": labels}
    return shown | {"centres_zyx": scan.centres_zyx, "spacing_mm": scan.volume.spacing_mm}


def draw(out, results, tables):
    """Figures 2 and 3, FROC and counts; list of (path, caption)."""
    first, runs = next(iter(results.items()))
    i, scan, maps = runs[0].example
    overlay(out / "figure2.png", *shown_scan(runs[0]).values())
    named = {NAMES[name]: array for name, array in maps.items()}
    levels = {NAMES[name]: runs[0].scores[name][i].threshold for name in maps}
    truth = scan.centres_zyx, scan.volume.spacing_mm
    method_maps(out / "figure3_maps.png", scan.volume.array, named, levels, *truth)
    names = [name for name in maps if name not in EXTRA]  # twelve curves could not be read
    curves = {NAMES[name]: [r.curves[name] for r in runs] for name in names}
    at_count = {name: tables[first][name] for name in names}
    operating = {NAMES[name]: (own["fp_per_scan"], own["tpr"]) for name, own in at_count.items()}
    paper = {NAMES[name]: (fp, tpr / 100) for name, (tpr, fp, _) in PAPER.items()}
    froc_curves(out / "figure3.png", curves, operating, paper)
    pictures = [(out / f"{name}.png", caption) for name, caption in FIGURES.items()]
    for pool, own in results.items():
        true, predicted = np.hstack([known_counts(r.scores[MAIN]) for r in own])
        path = out / ("counts.png" if pool == first else f"counts_{pool}.png")
        counts_agreement(path, true, predicted)
        r2 = count_metrics(true, predicted)["count_r2"]
        caption = f"Counts of (e), all runs; global pooling: {POOL_NAMES[pool]}; R2 {r2:.2f}."
        pictures.append((path, caption))
    return pictures
