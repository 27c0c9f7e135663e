"""Table 1 as people read it: in Markdown, in the terminal and in the report.

The paper's own figures stand beside ours. Its scans are other scans, so compare the order of the
methods, not the numbers.
"""

from weakunet.compare.methods import NAMES, PAPER
from weakunet.compare.statistics import FPAV_LIMIT
from weakunet.evaluation.evaluator import MAIN
from weakunet.evaluation.tables import cell, columns, rate_cells

POOL_NAMES = {"lmax": "sum of local maxima (ours)", "max": "global maximum (the paper's)"}
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
