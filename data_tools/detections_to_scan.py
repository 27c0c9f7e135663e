"""Take what was predicted on prepared scans back to the scans as they came from the scanner.

    python data_tools/detections_to_scan.py --predictions predictions --transforms registered \\
        --data cohort.csv --out in-scans

--predictions is the folder of `weakunet.predict`; --data (or --scan) names the original scans. If
they were registered, --transforms is the folder of register_to_mni.py. If not, the prepared scans
are crops of the originals, and everything returns to the voxels it came from.

Writes DIR/detections.csv, the same table with x_mm, y_mm, z_mm in the original scan's world and
i, j, k in its file. Per scan, on its own grid: the label image (nearest neighbour), the heatmap
(linear; its lowest value outside) and the points for 3D Slicer, all under their old names. A
detection too small for the original's voxels keeps the voxel at its centre. volume_mm3 stays as
measured, because a rigid transform changes no volume.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

import numpy as np
from scan_tools import add_scan_arguments, read_matrix, scans_asked_for

from weakunet.data import volumes
from weakunet.data.rigid import resample, resample_labels
from weakunet.data.tables import parse_number, read_table
from weakunet.detection import output_files
from weakunet.util.cli import InputError, command, new_parser, path_from, write_csv
from weakunet.util.parts import run_command


class Job:
    """A scan with its detections and the files of its prediction."""

    def __init__(self, scan, rows, bids, args):
        self.subject, self.image, self.rows = scan.subject, scan.image, rows
        files = output_files.output_paths(args.predictions, scan.subject, bids)
        matrix = args.transforms and args.transforms / f"{scan.subject}_to_template.txt"
        self.sources = files["lesions"], files["heatmap"], scan.image, matrix


def read_detections(path):
    """Read the table of `weakunet.predict`: {subject: rows}, each row a dict of numbers."""
    by_subject = {}
    for line, row in read_table(path, output_files.DETECTIONS):
        row |= {name: parse_number(row[name]) for name in output_files.DETECTIONS[1:]}
        if any(math.isnan(row[name]) for name in output_files.DETECTIONS[1:]):
            raise InputError(f"{path}: line {line}: a cell is not a number; predict again")
        row["detection"] = int(row["detection"])
        by_subject.setdefault(row["subject"], []).append(row)
    return by_subject


def files_of(job, out, bids):
    """A scan's own settings, the files that are carried, and those to write (for `parts`)."""
    files = output_files.output_paths(out, job.subject, bids)
    del files["overlay"]
    return {"rows": job.rows}, job.sources, files


def carry_scan(job, files, bids):
    """Write a scan's images and points; return its rows of detections.csv."""
    labels_path, heatmap_path, image_path, matrix_path = job.sources
    matrix = np.eye(4)  # cropped only: both are in the scan's world
    if matrix_path is not None:
        matrix = np.linalg.inv(read_matrix(matrix_path))  # template to scan
    image = volumes.read_volume(image_path, nan_ok=True)  # only its grid matters
    centres_mm = [[row["x_mm"], row["y_mm"], row["z_mm"]] for row in job.rows]
    centres_mm = volumes.move_points(matrix, centres_mm).round(3) + 0.0  # + 0.0: no -0.0
    labels, heatmap = volumes.read_labels(labels_path), volumes.read_volume(heatmap_path)
    volumes.write_volume(files["lesions"], resample_labels(labels, image, matrix), image)
    lowest = float(heatmap.array.min())
    volumes.write_volume(files["heatmap"], resample(heatmap, image, 1, matrix, lowest), image)
    scores = [row["score"] for row in job.rows]
    output_files.write_markups(files["markups"], job.subject, centres_mm.tolist(), scores)
    places = volumes.index_to_file(image, volumes.world_to_index(image, centres_mm)).round(3) + 0.0
    places = np.hstack([places, centres_mm]).tolist()
    return [
        [job.subject, row["detection"], *place, row["score"], row["volume_mm3"]]
        for row, place in zip(job.rows, places, strict=True)
    ]


def parse_arguments(argv):
    """The command line as a namespace, its original scans in `scans`."""
    parser = new_parser(__doc__)
    add_scan_arguments(parser, "original scans, as given to register_to_mni.py")
    parser.add_argument("--predictions", type=Path, required=True, help="folder of predictions")
    parser.add_argument("--transforms", type=Path, help="folder of registered scans' matrices")
    args = parser.parse_args(argv)
    args.scans = scans_asked_for(parser, args)
    return args


@command
def main(argv=None):
    """Take the predictions that the arguments name back to the scans."""
    args = parse_arguments(argv)
    by_subject = read_detections(args.predictions / "detections.csv")
    bids = output_files.is_bids(args.predictions)
    jobs = [Job(scan, by_subject.get(scan.subject, []), bids, args) for scan in args.scans]
    args.scans = [job for job in jobs if job.sources[0].is_file()]
    strangers = sorted(set(by_subject) - {job.subject for job in args.scans})
    if strangers or not args.scans:
        who = f"subject {strangers[0]!r} of its table" if strangers else "no scan"
        raise InputError(
            f"{args.predictions}: {who} is among the original scans with a label image here; "
            "name the originals as the registered scans were named"
        )
    if bids:
        output_files.require_bids_names(job.subject for job in args.scans)
        output_files.describe_bids(args.out)
    settings = {
        "predictions": path_from(args.out, args.predictions),
        "transforms": args.transforms and path_from(args.out, args.transforms),
    }
    what, how = ("to scan", "detections.csv"), {"bids": bids}
    run_command(args, settings, files_of, carry_scan, how, *what, write_table, mixed=bids)


def write_table(path, done):
    rows = [row for *_, rows in done for row in rows]
    write_csv(path, output_files.DETECTIONS, rows)
    print(f"{len(rows)} detections in {len(done)} scans: {path}")


if __name__ == "__main__":
    main()
