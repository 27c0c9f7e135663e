"""The pictures of an evaluation: FROC, agreement of the counts, and a few scans."""

import numpy as np

from weakunet.evaluation.evaluator import MAIN, known_counts, picture
from weakunet.figures.counts import counts_agreement
from weakunet.figures.methods import froc_curves
from weakunet.figures.overlay import overlay

PICTURES = 4


def draw_evaluation(result, out):
    """Draw an Evaluation into the folder `out`: froc.png, counts.png and SUBJECT_overlay.png."""
    if result.curves:
        rates = {name: own for name, own in result.metrics.items() if name in result.curves}
        furthest = 3 * max(1.0, *(own["fp_per_scan"] for own in rates.values()))
        at_count = {name: (own["fp_per_scan"], own["tpr"]) for name, own in rates.items()}
        curves = {name: [curve] for name, curve in result.curves.items()}  # of one seed
        froc_curves(out / "froc.png", curves, at_count, furthest=furthest)
    method = MAIN if MAIN in result.scores else list(result.scores)[-1]
    scores = result.scores[method]
    true, predicted = known_counts(scores)
    if len(true):
        counts_agreement(out / "counts.png", true, predicted)
    if not result.cases:
        return
    # from the fewest to the most lesions
    lesions = [s.hits[0] + s.hits[2] if s.hits else s.count or 0 for s in scores]
    order = np.argsort(lesions, kind="stable")
    for i in order[np.linspace(0, len(scores) - 1, min(PICTURES, len(scores))).astype(int)]:
        shown = picture(result.cases[i], method, scores[i].threshold)
        overlay(out / f"{scores[i].subject}_overlay.png", *shown, result.tolerance)
