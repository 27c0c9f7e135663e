"""Carry what was predicted on prepared scans back to the scans as they came from the scanner.

    python data_tools/detections_to_scan.py --predictions predictions --transforms registered \\
        --data cohort.csv --out in-scans

--predictions is the folder of `weakunet.predict`, --data (or --scan) the original scans. Where they
were registered, --transforms is the folder of register_to_mni.py; without it they were prepared as
they are, and everything lands on the very voxels that they were cropped from.

Writes DIR/detections.csv: the same table, x_mm, y_mm, z_mm in the original scan's world and i, j, k
in its file; and per scan, on its own grid, the label image (nearest neighbour) and the heatmap
(linear; outside, its lowest value), and the points for 3D Slicer, all under the names that they
had. A detection too small for the original's voxels keeps the one at its centre. volume_mm3 stays
what was measured: a rigid transform changes no volume.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

import numpy as np
from scan_tools import add_scan_arguments, scans_asked_for

from weakunet.data.rigid import move_points, read_matrix, resample, resample_labels
from weakunet.data.tables import parse_number, read_table
from weakunet.data.volumes import (
    index_to_file,
    read_labels,
    read_volume,
    world_to_index,
    write_volume,
)
from weakunet.detection.output_files import (
    DETECTIONS,
    is_bids,
    output_paths,
    start_bids,
    write_markups,
)
from weakunet.util.cli import InputError, command, progress, write_csv


def read_detections(path):
    """The table of `weakunet.predict` by subject: {subject: rows}, a row a dict, numbers read."""
    by_subject = {}
    for line, row in read_table(path, DETECTIONS):
        row |= {name: parse_number(row[name]) for name in DETECTIONS[1:]}
        if any(math.isnan(row[name]) for name in DETECTIONS[1:]):
            raise InputError(f"{path}: line {line}: a cell is no number; predict again")
        row["detection"] = int(row["detection"])
        by_subject.setdefault(row["subject"], []).append(row)
    return by_subject


def carry_scan(scan, rows, files, new_files, matrix_path):
    """Write a scan's carried images and points; return its rows of detections.csv.

    files, new_files: as of output_paths, where the prediction is and where to write; matrix_path:
    of the scan's registration, None if it was not registered.
    """
    matrix = np.eye(4)  # cropped only: both are in the scan's world
    if matrix_path is not None:
        matrix = np.linalg.inv(read_matrix(matrix_path))  # template to scan
    image = read_volume(scan.image)
    centres_mm = [[row["x_mm"], row["y_mm"], row["z_mm"]] for row in rows]
    centres_mm = move_points(matrix, centres_mm).round(3) + 0.0  # + 0.0: no -0.0
    places_zyx = world_to_index(image, centres_mm)
    labels, heatmap = read_labels(files["lesions"]), read_volume(files["heatmap"])
    write_volume(new_files["lesions"], resample_labels(labels, image, matrix), image)
    lowest = float(heatmap.array.min())
    write_volume(new_files["heatmap"], resample(heatmap, image, 1, matrix, lowest), image)
    scores = [row["score"] for row in rows]
    write_markups(new_files["markups"], scan.subject, centres_mm.tolist(), scores)
    places = index_to_file(image, places_zyx).round(3) + 0.0
    names = ("i", "j", "k", "x_mm", "y_mm", "z_mm")
    for row, place in zip(rows, np.hstack([places, centres_mm]).tolist(), strict=True):
        row |= dict(zip(names, place, strict=True))
    return [[row[name] for name in DETECTIONS] for row in rows]


@command
def main(argv=None):
    """Carry the predictions that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_scan_arguments(parser, "original scans, as given to register_to_mni.py")
    parser.add_argument("--predictions", type=Path, required=True, help="folder to carry back")
    parser.add_argument("--transforms", type=Path, help="matrices of registered scans")
    parser.add_argument("--out", type=Path, required=True, help="a new folder to write to")
    args = parser.parse_args(argv)
    scans, out = scans_asked_for(parser, args), args.out
    by_subject = read_detections(args.predictions / "detections.csv")
    if (out / "detections.csv").exists():
        raise InputError(f"{out}: holds detections already; choose another --out")
    bids = is_bids(args.predictions)
    files = {scan.subject: output_paths(args.predictions, scan.subject, bids) for scan in scans}
    scans = [scan for scan in scans if files[scan.subject]["lesions"].is_file()]
    strangers = sorted(set(by_subject) - {scan.subject for scan in scans})
    if strangers or not scans:
        who = f"subject {strangers[0]!r} of its table" if strangers else "no scan"
        raise InputError(
            f"{args.predictions}: {who} is among the original scans with a label image here; "
            "name the originals as the registered scans were named"
        )
    if bids:
        start_bids(out, [scan.subject for scan in scans])
    table = []
    for scan in progress(scans, "to scan"):
        new_files = output_paths(out, scan.subject, bids)
        matrix_path = args.transforms and args.transforms / f"{scan.subject}_to_template.txt"
        rows = by_subject.get(scan.subject, [])
        table += carry_scan(scan, rows, files[scan.subject], new_files, matrix_path)
    write_csv(out / "detections.csv", DETECTIONS, table)
    print(f"{len(table)} detections in {len(scans)} scans: {out / 'detections.csv'}")


if __name__ == "__main__":
    main()
