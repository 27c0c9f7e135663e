"""An evaluation as text: the tables that are written, and the one that is printed."""

import math

from weakunet.evaluation.evaluator import located
from weakunet.util.cli import write_csv, write_json

PER_SCAN = "subject,method,count,count_predicted,threshold,n_detected,tp,fp,fn,tpr".split(",")
FROC = ("method", "sweep", "setting", "tpr", "fp_per_scan")


def write_tables(result, out):
    """Write metrics.json, per_scan.csv and, where lesions are located, froc.csv."""
    write_json(out / "metrics.json", result.metrics)
    write_csv(out / "per_scan.csv", PER_SCAN, per_scan_rows(result))
    if result.curves:
        write_csv(out / "froc.csv", FROC, froc_rows(result))


def per_scan_rows(result):
    """Rows of PER_SCAN; what is not known or not defined is empty."""
    rows = []
    for method, scores in result.scores.items():
        for score in scores:
            tp, fp, fn = score.hits or ("", "", "")
            tpr = tp / (tp + fn) if score.hits and tp + fn else ""
            row = (score.count, score.count_predicted, score.threshold, score.n_detected)
            known = ("" if value is None else value for value in row)
            rows.append((score.subject, method, *known, tp, fp, fn, tpr))
    return rows


def froc_rows(result):
    """Rows of FROC, both sweeps."""
    rows = []
    for method, curve in result.curves.items():
        rows += [(method, "count", *point.values()) for point in curve]
        swept = result.by_threshold.get(method, ())
        rows += [(method, "threshold", *point.values()) for point in swept]
    return rows


def text_table(result):
    """The figures of all methods, one line each; intervals are 95 %."""
    notes, scores = [], next(iter(result.scores.values()))
    without = [score.subject for score in scores if score.hits is None]
    if not located(scores):
        notes = ["without lesion centres, only the counts can be judged"]
    elif without:
        notes = [f"without lesion centres, judged by their counts only: {named(without)}"]
    rows = [("method", "TPR % [95 % CI]", "FPav [95 % CI]", "FDR %", "count R2", "ICC")]
    for method, own in result.metrics.items():
        counted = [cell(own.get(name)) for name in ("count_r2", "count_icc")]
        rows.append((method, *rate_cells(own), *counted))
    return "\n".join([*notes, *columns(rows)])


def named(subjects, most=5):
    """Subjects in a message: all of a few, else the first and how many more."""
    more = f" and {len(subjects) - most} more" if len(subjects) > most else ""
    return ", ".join(subjects[:most]) + more


def rate_cells(own):
    """TPR, FPav and FDR of one method as they are printed; in words where they are not defined."""
    return (
        cell(own.get("tpr"), own.get("tpr_ci95"), 100, 1, "no lesions"),
        cell(own.get("fp_per_scan"), own.get("fp_per_scan_ci95")),
        cell(own.get("fdr"), None, 100, 1, "no detections"),
    )


def cell(value, ends=None, scale=1, digits=2, undefined="undefined"):
    """A figure as text, with its interval; `undefined` for NaN, a dash for None."""
    if value is None:
        return "-"
    if math.isnan(value):
        return undefined
    low_high = "" if ends is None else f" [{', '.join(f'{scale * x:.{digits}f}' for x in ends)}]"
    return f"{scale * value:.{digits}f}{low_high}"


def columns(rows):
    """Lines of text: the cells of `rows` in columns, with two spaces or more between them."""
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    lines = ["".join(map(str.ljust, row, widths)) for row in rows]
    return [line.rstrip() for line in lines]
