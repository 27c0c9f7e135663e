"""Register scans to a template, as the paper does: rigidly, by mutual information, with Elastix.

    pip install -r data_tools/requirements.txt
    python data_tools/register_to_mni.py --data cohort.csv --template mni.nii.gz --out registered
    python data_tools/register_to_mni.py --scan a.nii.gz b.nii.gz --template mni.nii.gz --out DIR

Section 2.1: rigid registration to MNI, mutual information, default settings, then 0.49 x 0.49 x 0.8
mm voxels. The registration itself is rigid_elastix.py.

Per scan: SUBJECT.nii.gz fills the template's box (cubic splines, which keep small lesions sharp);
SUBJECT_to_template.txt is the matrix from the scan's world to the template's, both RAS+ mm, its
header saying how much information the two share (`grep "mutual information" DIR/*.txt`: look at the
lowest first); SUBJECT_check.png. From a cohort table, ROIs (nearest neighbour), centres and
slice_z_mm (at the scan's middle: a slice of a tilted head is no slice of the template) go along,
and DIR/cohort.csv names all of it. Run again, it keeps what is done.
"""

import argparse
import dataclasses
import importlib.metadata
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

import numpy as np
from rigid_elastix import register
from scan_tools import add_scan_arguments, check_picture, scans_asked_for
from scipy.spatial.transform import Rotation

from weakunet.data.cohort import read_centres, write_cohort
from weakunet.data.rigid import box_grid, move_points, read_matrix, resample, write_matrix
from weakunet.data.volumes import Volume, index_to_world, read_volume, write_volume
from weakunet.util import resume
from weakunet.util.cli import InputError, command, progress, write_csv
from weakunet.util.processes import cores, map_processes

PAPER_SPACING_MM = (0.49, 0.49, 0.8)  # x, y, z
INSTALL = f"python -m pip install -r {Path(__file__).with_name('requirements.txt')}"


def _header(path, template_path, matrix, information):
    turn = np.rad2deg(Rotation.from_matrix(matrix[:3, :3]).magnitude())
    return (
        f"scan {path.name} -> template {template_path.name}, rigid\n"
        "(x, y, z, 1) in the template = this matrix times (x, y, z, 1) in the scan, both RAS+ mm\n"
        f"turned by {turn:.2f} degrees; mutual information {information:.4f} nats"
    )


def write_registered(scan, template_path, spacing_mm, out):
    """Register one scan into the folder `out`, unless that is done; return its new Scan."""
    image, check, text = (
        out / f"{scan.subject}{end}" for end in (".nii.gz", "_check.png", "_to_template.txt")
    )
    roi = scan.roi and out / f"{scan.subject}_roi.nii.gz"
    centres = scan.centres and out / f"{scan.subject}_centres.csv"
    registered = dataclasses.replace(scan, image=image, roi=roi, centres=centres)
    sources = scan.image, template_path, scan.roi, scan.centres
    results = [path for path in (text, check, roi, centres, image) if path]
    done = resume.noted(out, scan.subject, {}, sources, results)
    if done and scan.slice_z_mm is None:
        return registered
    made_from = resume.inputs({}, sources)
    volume = read_volume(scan.image)
    if not done:
        template = read_volume(template_path)
        grid = box_grid(template, spacing_mm)
        matrix, information = register(template, volume, scan.image)
        write_matrix(text, matrix, _header(scan.image, template_path, matrix, information))
        if roi:
            moved = resample(read_volume(scan.roi), grid, 0, matrix) > 0
            if not moved.any():
                raise InputError(f"{scan.roi}: empty in the template's box; check {check}")
            write_volume(roi, moved, grid)
        if centres:
            points = move_points(matrix, read_centres(scan.centres)).round(3) + 0.0
            write_csv(centres, ("x_mm", "y_mm", "z_mm"), points.tolist())
        low, high = volume.array.min(), volume.array.max()
        moved = resample(volume, grid, 3, matrix, low).clip(low, high)  # splines overshoot
        moved = Volume(moved, grid.affine)
        over = f"edges of {template_path.name} over the scan"
        under = f"edges of the scan over {template_path.name}"
        rows = (over, moved, template), (under, template, moved)
        check_picture(check, grid, np.array(grid.array.shape) // 2, rows)
        write_volume(image, moved.array, moved)
        resume.note(out, scan.subject, made_from)
    if scan.slice_z_mm is not None:
        middle_mm = index_to_world(volume, (np.array(volume.array.shape) - 1) / 2)
        middle_mm[0, 2] = scan.slice_z_mm
        z_mm = float(move_points(read_matrix(text), middle_mm)[0, 2].round(3))
        registered = dataclasses.replace(registered, slice_z_mm=z_mm)
    return registered


def _register_or_fail(arguments):
    try:
        return write_registered(*arguments)
    except InputError as error:
        return error
    except MemoryError:
        return InputError(f"{arguments[0].image}: not enough memory; use --jobs 1 or crop the scan")


def parse_arguments(argv):
    """The command line as a namespace, its scans in `scans`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_scan_arguments(parser, "scans to register")
    parser.add_argument("--template", type=Path, required=True, help="the template's image")
    parser.add_argument(
        "--spacing-mm", type=float, nargs=3, metavar=("X", "Y", "Z"), default=PAPER_SPACING_MM
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--jobs", type=int, default=cores(), help="scans in memory at once")
    args = parser.parse_args(argv)
    args.scans = scans_asked_for(parser, args)
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
    box_grid(read_volume(args.template), args.spacing_mm)  # a mistake here is no scan's fault
    settings = {
        "data": args.data and Path(os.path.relpath(args.data, args.out)).as_posix(),
        "template": Path(os.path.relpath(args.template, args.out)).as_posix(),
        "spacing_mm": list(args.spacing_mm),
    }
    resume.begin(args.out, settings)
    work = [(scan, args.template, args.spacing_mm, args.out) for scan in args.scans]
    done = map_processes(_register_or_fail, work, args.jobs)
    results = [result for _, result in zip(progress(work, "register"), done, strict=True)]
    failed = [result for result in results if isinstance(result, InputError)]
    registered = [result for result in results if not isinstance(result, InputError)]
    for error in failed:
        print(f"failed: {error}", file=sys.stderr)
    if registered and args.data:
        write_cohort(args.out / "cohort.csv", registered)
    print(f"{len(registered)} scans registered: {args.out}; look at the *_check.png")
    if failed:
        raise InputError(
            f"{args.out}: {len(failed)} of {len(results)} scans failed, named above and left out; "
            "mend them and run the same command again"
        )


if __name__ == "__main__":
    main()
