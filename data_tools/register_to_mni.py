"""Register scans to a template, as the paper does: rigidly, by mutual information, with Elastix.

    pip install -r data_tools/requirements.txt
    python data_tools/register_to_mni.py --data cohort.csv --template mni.nii.gz --out registered
    python data_tools/register_to_mni.py --scan a.nii.gz b.nii.gz --template mni.nii.gz --out DIR

Section 2.1: rigid registration to MNI by mutual information, default settings, then voxels of
0.49 x 0.49 x 0.8 mm. The registration itself is in rigid_elastix.py.

Per scan: SUBJECT.nii.gz fills the template's box (cubic splines keep small lesions sharp);
SUBJECT_to_template.txt is the matrix from the scan's world to the template's, both RAS+ mm; its
header states their mutual information (`grep "mutual information" DIR/*.txt`; look at the lowest
first); SUBJECT_check.png shows both. From a cohort table, ROIs (nearest neighbour), centres and
slice_z_mm are moved, too: the slice's height in the middle of the scan, for a slice of a tilted
head is not a slice of the template. DIR/cohort.csv names all of it. Run again, it keeps what is
done.
"""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

import numpy as np
import scan_tools
from rigid_elastix import register
from scipy.spatial.transform import Rotation

from weakunet.data import volumes
from weakunet.data.cohort import made_scan, read_centres, write_cohort
from weakunet.data.load import read_raw
from weakunet.data.rigid import resample
from weakunet.util.cli import InputError, command, new_parser, path_from, write_csv
from weakunet.util.parts import run_command
from weakunet.util.threads import cores

PAPER_SPACING_MM = (0.49, 0.49, 0.8)  # x, y, z
INSTALL = f"python -m pip install -r {Path(__file__).with_name('requirements.txt')}"


def _header(path, template_path, matrix, information):
    turn = np.rad2deg(Rotation.from_matrix(matrix[:3, :3]).magnitude())
    return (
        f"scan {path.name} -> template {template_path.name}, rigid\n"
        "(x, y, z, 1) in the template = this matrix times (x, y, z, 1) in the scan, both RAS+ mm\n"
        f"turned by {turn:.2f} degrees; mutual information {information:.4f} nats"
    )


def files_of(scan, out, template_path, **_):
    """A scan's own settings, the files it is registered from, and those to write (for `parts`)."""
    endings = {"matrix": "_to_template.txt", "check": "_check.png", "image": ".nii.gz"}
    if scan.roi:
        endings["roi"] = "_roi.nii.gz"
    if scan.centres:
        endings["centres"] = "_centres.csv"
    files = {kind: out / f"{scan.subject}{ending}" for kind, ending in endings.items()}
    sources = scan.image, template_path, scan.roi, scan.centres
    return {"slice_z_mm": scan.slice_z_mm}, sources, files


def write_registered(scan, files, template_path, spacing_mm):
    """Register one scan; return the height of its slice, {"slice_z_mm": mm or None}."""
    if scan.roi:
        volume, region = read_raw(scan)
    else:
        volume = volumes.read_volume(scan.image)
    template = volumes.read_volume(template_path)
    grid = scan_tools.box_grid(template, spacing_mm)
    matrix, information = register(template, volume, scan.image)
    header = _header(scan.image, template_path, matrix, information)
    scan_tools.write_matrix(files["matrix"], matrix, header)
    if scan.roi:
        moved = resample(region, grid, 0, matrix)
        if not moved.any():
            raise InputError(f"{scan.roi}: empty in the template's box; check {files['check']}")
        volumes.write_volume(files["roi"], moved, grid)
    if scan.centres:
        points = volumes.move_points(matrix, read_centres(scan.centres)).round(3) + 0.0
        write_csv(files["centres"], ("x_mm", "y_mm", "z_mm"), points.tolist())
    low, high = volume.array.min(), volume.array.max()
    moved = resample(volume, grid, 3, matrix, low).clip(low, high)  # splines overshoot
    moved = volumes.Volume(moved, grid.affine)
    over = f"edges of {template_path.name} over the scan"
    under = f"edges of the scan over {template_path.name}"
    rows = (over, moved, template), (under, template, moved)
    scan_tools.check_picture(files["check"], grid, np.array(grid.array.shape) // 2, rows)
    z_mm = {"slice_z_mm": None}
    if scan.slice_z_mm is not None:
        middle_mm = volumes.index_to_world(volume, (np.array(volume.array.shape) - 1) / 2)
        middle_mm[0, 2] = scan.slice_z_mm
        z_mm = {"slice_z_mm": float(volumes.move_points(matrix, middle_mm)[0, 2].round(3))}
    volumes.write_volume(files["image"], moved.array, moved)
    return z_mm


def parse_arguments(argv):
    """The command line as a namespace, its scans in `scans`."""
    parser = new_parser(__doc__)
    scan_tools.add_scan_arguments(parser, "scans to register", jobs=cores())
    parser.add_argument("--template", type=Path, required=True, help="the template's image")
    about = "size of the registered scans' voxels in mm"
    spacing = {"type": float, "nargs": 3, "metavar": tuple("XYZ"), "default": PAPER_SPACING_MM}
    parser.add_argument("--spacing-mm", **spacing, help=about)
    args = parser.parse_args(argv)
    args.scans = scan_tools.scans_asked_for(parser, args)
    return args


@command
def main(argv=None):
    """Register the scans the arguments ask for."""
    args = parse_arguments(argv)
    try:
        importlib.metadata.version("itk-elastix")
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"Elastix is not installed (Python package itk-elastix); {INSTALL}"
        ) from None
    template = volumes.read_volume(args.template)
    scan_tools.box_grid(template, args.spacing_mm)  # a mistake here concerns all scans
    settings = {
        "data": args.data and path_from(args.out, args.data),
        "template": path_from(args.out, args.template),
        "spacing_mm": list(args.spacing_mm),
    }
    how = {"template_path": args.template, "spacing_mm": args.spacing_mm}
    run_command(
        args, settings, files_of, write_registered, how, "register", "cohort.csv", write_table
    )


def write_table(path, done):
    write_cohort(path, [made_scan(scan, files, **z_mm) for scan, files, z_mm in done])
    print(f"{len(done)} scans registered: {path}; look at the *_check.png")


if __name__ == "__main__":
    main()
