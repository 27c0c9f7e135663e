"""Table 1 in four forms: table1.csv, Markdown, the terminal and the report; and per_scan.csv.

The paper's own figures stand beside ours. Its scans are other scans, so compare the order of the
methods, not the numbers.
"""

import math

from weakunet.compare.methods import NAMES, PAPER
from weakunet.compare.statistics import FPAV_LIMIT
from weakunet.evaluation.evaluator import MAIN
from weakunet.evaluation.tables import cell, columns, rate_cells

POOL_NAMES = {"lmax": "sum of local maxima (ours)", "max": "global maximum (the paper's)"}
COLUMNS = (
    "pooling,method,tpr,tpr_low,tpr_high,fp_per_scan,fp_low,fp_high,fdr,fdr_low,fdr_high,"
    "tpr_minus_e,tpr_minus_e_low,tpr_minus_e_high,tpr_true_count,fp_true_count,froc_area,"
    "tpr_at_4.4_fp,count_mse,count_mae,count_r2,count_icc,paper_tpr,paper_fp_per_scan,paper_fdr"
).split(",")
PER_SCAN = "pooling,seed,subject,method,count,count_predicted,threshold,tp,fp,fn".split(",")
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
PRINTED = (0, 1, 2, 3, 4, 8, 9)  # columns of HEAD that a terminal has room for


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


def printed_rows(table):
    """The table as people read it: rows of text under HEAD, percent and intervals."""
    rows = []
    for method, row in table.items():
        ends = [f"{100 * end:+.1f}" for end in row["tpr_minus_best_ci95"]]
        difference = f"{100 * row['tpr_minus_best']:+.1f} [{', '.join(ends)}]"
        rows.append([
            NAMES[method],
            *rate_cells(row),
            "0" if method == MAIN else difference,
            f"{100 * row['tpr_true']:.1f} / {row['fp_true']:.2f}",
            cell(row["froc_area"]),
            cell(row["tpr_at_limit"], scale=100, digits=1),
            f"{cell(row['count_r2'])} / {cell(row['count_icc'])}" if "count_r2" in row else "-",
            " / ".join(f"{figure:.1f}" for figure in PAPER.get(method, ())) or "-",
        ])  # fmt: skip
    return rows


def markdown_table(tables):
    """Table 1 as Markdown, one block per pooling."""
    lines = []
    for pool, table in tables.items():
        lines += [f"**Global pooling: {POOL_NAMES[pool]}**", ""]
        lines += ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
        lines += ["| " + " | ".join(row) + " |" for row in printed_rows(table)] + [""]
    return "\n".join(lines)


def text_table(tables):
    """Table 1 for a terminal."""
    lines = []
    for pool, table in tables.items():
        lines.append(f"\nglobal pooling: {POOL_NAMES[pool]}")
        lines += columns([[row[k] for k in PRINTED] for row in (HEAD, *printed_rows(table))])
    return "\n".join(lines)


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
