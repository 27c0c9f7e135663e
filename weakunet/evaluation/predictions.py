"""Read what weakunet.predict wrote, to compare it with the truth of a cohort table."""

import math
from pathlib import Path

from weakunet.data.load import load_scan
from weakunet.data.tables import read_table
from weakunet.data.volumes import read_volume, require_same_grid
from weakunet.detection.output_files import is_bids, output_paths
from weakunet.util.cli import InputError, one_line

MAIN, NO_NETWORK = "regression_fcn", "intensities"  # methods: the heatmap's, the image's


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
    """The predicted scans of the split (of all, where the table has none) with lesion centres.

    Where no scan has centres, those with a count.
    """
    named = {scan.subject for scan in scans}
    unknown = [subject for subject in counts if subject not in named]
    if unknown:
        raise InputError(f"{data}: no row for {unknown[0]} of {predictions}; give its own table")
    chosen = [scan for scan in scans if split == "all" or scan.split in (split, None)]
    chosen = [scan for scan in chosen if scan.subject in counts]
    if not chosen:
        raise InputError(f"{predictions}: none of split {split}; predict on it, or --split all")
    usable = [scan for scan in chosen if scan.centres is not None]
    usable = usable or [scan for scan in chosen if scan.count is not None]
    if not usable:
        raise InputError(
            f"{data}: no predicted scan has lesion centres or a count; fill in one of the columns"
        )
    if all(scan.split is None for scan in scans):
        print(f"note: {data} has no split, so scans that were trained on would count as test scans")
    print(f"evaluating {len(usable)} of {len(counts)} predicted scans")
    return usable


def load_prediction(scan, folder, with_image):
    """A case (see score_scan.py): a scan of the table, its heatmap and, if asked for, its image.

    scan.roi tells a raw image from a prepared one, as for weakunet.predict.
    """
    path = output_paths(folder, scan.subject, is_bids(folder))["heatmap"]
    if not path.is_file():
        raise InputError(f"{path}: no such file; predict on {scan.subject} again")
    loaded = load_scan(scan, raw_as_is=True)
    heatmap = read_volume(path)
    require_same_grid(loaded.volume, scan.image, heatmap, path)
    maps = {NO_NETWORK: loaded.volume.array} if with_image else {}
    return loaded, maps | {MAIN: heatmap.array}
