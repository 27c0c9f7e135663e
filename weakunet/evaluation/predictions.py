"""Read what weakunet.predict wrote, to compare it with the truth of a cohort table."""

import math
from pathlib import Path

from weakunet.data.load import load_scan
from weakunet.data.tables import parse_number, read_table
from weakunet.data.volumes import read_volume, require_same_grid
from weakunet.detection.output_files import is_bids, output_paths
from weakunet.evaluation.evaluator import MAIN, NO_NETWORK
from weakunet.evaluation.tables import named
from weakunet.util.cli import InputError, one_line


def read_predictions(path):
    """Read predictions.csv: subject -> predicted count. Raises InputError naming the line."""
    counts, fix = {}, "write it with python -m weakunet.predict"
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; {fix}")
    for line, row in read_table(path, ("subject", "count_predicted")):
        subject, count = row["subject"], parse_number(row["count_predicted"])
        if math.isnan(count):
            raise InputError(f"{path}: line {line}: count_predicted is no number; {fix}")
        if not subject or subject in counts:
            what = f"{one_line(subject)} is there twice" if subject else "no subject"
            raise InputError(f"{path}: line {line}: {what}; {fix}")
        counts[subject] = count
    if not counts:
        raise InputError(f"{path}: no predictions, only a header; {fix}")
    return counts


def choose_scans(scans, counts, split, data, predictions):
    """The scans of the split to evaluate, and the subjects of the split without a prediction.

    A scan needs a count or lesion centres. What is left out, and why, is printed. Without a split
    column all scans are of the split.
    """
    unknown = counts.keys() - {scan.subject for scan in scans}
    if unknown:
        raise InputError(f"{data}: no row for {min(unknown)} of {predictions}; give its own table")
    own = [scan for scan in scans if split == "all" or scan.split in (split, None)]
    known = [scan for scan in own if scan.count is not None or scan.centres is not None]
    missing = [scan.subject for scan in known if scan.subject not in counts]
    chosen = [scan for scan in known if scan.subject in counts]
    if not any(scan.subject in counts for scan in own):
        raise InputError(f"{predictions}: none of split {split}; predict on it, or --split all")
    if not chosen:
        raise InputError(
            f"{data}: no predicted scan has lesion centres or a count; fill in one of the columns"
        )
    print(f"evaluating {len(chosen)} of the {len(known)} scans of split {split}")
    if missing:
        print(f"note: no prediction for {len(missing)} of them: {named(missing)}")
    if len(known) < len(own):
        blank = [scan.subject for scan in own if scan not in known]
        print(f"note: left out, with neither a count nor lesion centres: {named(blank)}")
    if all(scan.split is None for scan in scans):
        print(f"note: {data} has no split, so scans that were trained on would count as test scans")
    trained = sum(scan.split in ("train", "val") for scan in chosen)
    if split == "all" and trained:
        print(f"note: {trained} of the scans are of the splits train and val; on scans that a "
              "network was trained or chosen on, its figures are too good")  # fmt: skip
    return chosen, missing


def load_prediction(scan, count, folder, with_image):
    """One case (see evaluator.py): a scan of the table, its heatmap and, on request, its image.

    scan.roi tells a raw image from a prepared one, as for weakunet.predict.
    """
    path = output_paths(folder, scan.subject, is_bids(folder))["heatmap"]
    if not path.is_file():
        raise InputError(f"{path}: no such file; predict on {scan.subject} again")
    loaded = load_scan(scan, raw_as_is=True)
    heatmap = read_volume(path)
    require_same_grid(loaded.volume, scan.image, heatmap, path)
    maps = {NO_NETWORK: loaded.volume.array} if with_image else {}
    maps[MAIN] = heatmap.array
    return loaded, maps, dict.fromkeys(maps, count)
