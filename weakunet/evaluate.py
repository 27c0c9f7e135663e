"""Compare predictions with the truth: python -m weakunet.evaluate

    python -m weakunet.evaluate --predictions DIR --data cohort.csv --out DIR

reads the heatmaps and predicted counts that `weakunet.predict` wrote and the lesion centres that
the cohort table names, and writes metrics.json, per_scan.csv, froc.csv, froc.png, counts.png and a
few overlays; without centres, only how well the counts agree. The prepared images, thresholded for
the same counts, are method (a) of the paper's Table 1, the heatmaps method (e). Where lesions were
counted in one slice (the table's slice_z_mm), they are detected and sought in that slice only. Each
process has one scan in memory at a time (--jobs). Training ends with the same figures, by
`evaluate_maps`.
"""

import argparse
import functools
import math
from pathlib import Path

from weakunet.data.cohort import SPLITS, read_cohort
from weakunet.evaluation.evaluate import evaluate_cases, evaluate_counts
from weakunet.evaluation.metrics import (
    RADIUS_VOX,
)
from weakunet.evaluation.predictions import (
    MAIN,
    NO_NETWORK,
    choose_scans,
    load_prediction,
    read_predictions,
)
from weakunet.evaluation.score_scan import (
    Reach,
)
from weakunet.util.cli import InputError, command
from weakunet.util.processes import cores


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
    parser.add_argument("--data", type=Path, required=True, help="cohort table with the truth")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the results")
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="test", help="if it has any")
    radius = parser.add_mutually_exclusive_group()
    radius.add_argument("--radius", type=positive, default=RADIUS_VOX, help="of a hit, in voxels")
    radius.add_argument("--radius-mm", type=positive, help="of a hit, in mm")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap intervals")
    parser.add_argument("--jobs", type=int, default=cores(), help="scans in memory at once")
    args = parser.parse_args(argv)
    if (args.out / "metrics.json").exists():
        raise InputError(f"{args.out}: holds an evaluation already; choose another --out")
    table_path = args.predictions / "predictions.csv"
    counts = read_predictions(table_path)
    chosen = choose_scans(read_cohort(args.data), counts, args.split, args.data, table_path)
    own = [counts[scan.subject] for scan in chosen]
    if chosen[0].centres is None:  # nor do the others have any
        evaluate_counts([scan.count for scan in chosen], own, args.out)
        return
    with_image = all(scan.roi is None for scan in chosen)  # a raw one is no map
    load = functools.partial(load_prediction, folder=args.predictions, with_image=with_image)
    cases = [functools.partial(load, scan) for scan in chosen]
    methods = [NO_NETWORK, MAIN] if with_image else [MAIN]
    reach = Reach(args.radius, args.radius_mm)
    evaluate_cases(cases, dict.fromkeys(methods, own), args.out, reach, args.seed, args.jobs)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
