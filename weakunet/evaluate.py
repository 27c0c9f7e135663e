"""Compare predictions with the truth: python -m weakunet.evaluate

    python -m weakunet.evaluate --predictions DIR --data cohort.csv --out DIR

reads the heatmaps and predicted counts that weakunet.predict wrote and the lesion centres that the
cohort table names. It writes metrics.json, per_scan.csv, froc.csv, froc.png, counts.png and a few
overlays. Without centres it says only how well the counts agree. The heatmaps are method (e) of the
paper's Table 1; the prepared images, thresholded for the same counts, are method (a). Where lesions
were counted in one slice (the table's slice_z_mm), only that slice is evaluated.
"""

import functools
from pathlib import Path

from weakunet.data.cohort import SPLITS, read_cohort
from weakunet.evaluation.evaluator import evaluate_cases, evaluate_counts
from weakunet.evaluation.metrics import RADIUS_VOX, Tolerance
from weakunet.evaluation.predictions import choose_scans, load_prediction, read_predictions
from weakunet.evaluation.tables import named, text_table, write_tables
from weakunet.figures.evaluation import draw_evaluation
from weakunet.util.cli import InputError, command, new_parser, positive
from weakunet.util.threads import cores


def seed(text):
    """Parse an option that must be a whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def parse_arguments(argv):
    parser = new_parser(__doc__, "python -m weakunet.evaluate")
    add = parser.add_argument
    add("--predictions", type=Path, required=True, help="folder that weakunet.predict wrote")
    add("--data", type=Path, required=True, help="cohort table with counts and centres")
    add("--out", type=Path, required=True, help="new folder for the results")
    add("--split", choices=(*SPLITS, "all"), default="test", help="scans to evaluate")
    radius = parser.add_mutually_exclusive_group()
    text = "distance up to which a detection is a hit, in voxels"
    radius.add_argument("--radius", type=positive, default=RADIUS_VOX, help=text)
    text = "the same in mm, instead of --radius"
    radius.add_argument("--radius-mm", type=positive, help=text)
    add("--seed", type=seed, default=0, help="random seed of the bootstrap intervals")
    add("--jobs", type=int, default=cores(), help="processes, each with one scan in memory")
    text = "succeed even if scans of the split have no prediction"
    add("--allow-missing", action="store_true", help=text)
    return parser.parse_args(argv)


@command
def main(argv=None):
    """Evaluate: see the module's first lines."""
    args = parse_arguments(argv)
    if (args.out / "metrics.json").exists():
        raise InputError(f"{args.out}: holds an evaluation already; choose another --out")
    table = args.predictions / "predictions.csv"
    counts = read_predictions(table)
    chosen, missing = choose_scans(read_cohort(args.data), counts, args.split, args.data, table)
    if not any(scan.centres for scan in chosen) and any(scan.count != 0 for scan in chosen):
        result = evaluate_counts(chosen, [counts[scan.subject] for scan in chosen])
    else:
        with_image = all(scan.roi is None for scan in chosen)  # a raw one is no map
        load = functools.partial(load_prediction, folder=args.predictions, with_image=with_image)
        cases = [functools.partial(load, scan, counts[scan.subject]) for scan in chosen]
        tolerance = Tolerance(args.radius, args.radius_mm)
        result = evaluate_cases(cases, tolerance, args.seed, args.jobs)
    for figures in result.metrics.values():
        figures["missing"] = len(missing)
    write_tables(result, args.out)
    draw_evaluation(result, args.out)
    print(text_table(result))
    print(f"written: {args.out}")
    if missing and not args.allow_missing:
        raise InputError(
            f"{table}: no prediction for {len(missing)} scans of split {args.split} "
            f"({named(missing)}); predict on them, or accept this with --allow-missing"
        )


if __name__ == "__main__":
    main()
