"""Prepare the scans of a cohort for the network (paper section 2.1; see data/prepare.py).

    python -m weakunet.preprocess --data cohort.csv --out DIR

Writes DIR/SUBJECT.nii.gz (in RAS+ order; world coordinates stay true), copies the lists of centres,
and DIR/cohort.csv names what is ready for training. Run again, it keeps what is done and makes what
is missing or changed. data_tools/detections_to_scan.py takes what is found in a prepared scan back
to the scan.
"""

import shutil
from pathlib import Path

from weakunet.data import prepare
from weakunet.data.cohort import made_scan, read_cohort, write_cohort
from weakunet.data.load import load_scan, read_raw
from weakunet.data.slices import half_thickness
from weakunet.data.volumes import write_volume
from weakunet.util.cli import InputError, atomic_path, command, new_parser, path_from, positive
from weakunet.util.parts import add_arguments, run_command
from weakunet.util.threads import cores


def files_of(scan, out, figures, **_):
    """A scan's own settings, the files it is prepared from, and those to write (for `parts`)."""
    files = {"image": out / f"{scan.subject}.nii.gz"}
    if scan.centres:
        files["centres"] = out / f"{scan.subject}_centres.csv"
    if figures:
        files["steps"] = out / f"{scan.subject}_steps.png"
    return {"slice_z_mm": scan.slice_z_mm}, (scan.image, scan.roi, scan.centres), files


def prepare_scan(scan, files, figures, **preparation):
    """Write one prepared scan; preparation: invert, slab_mm, spacing_mm, as for `load_scan`."""
    volume = load_scan(scan, **preparation).volume
    if scan.centres:
        with atomic_path(files["centres"]) as temporary:
            shutil.copyfile(scan.centres, temporary)
    if figures:
        draw_steps(scan, files["steps"], **preparation)
    write_volume(files["image"], volume.array, volume)


def draw_steps(scan, path, invert, spacing_mm, slab_mm):
    from weakunet.figures.preprocess import preprocess_figure  # matplotlib, only where wanted

    volume, roi = read_raw(scan)
    if spacing_mm is not None:
        volume, roi = prepare.change_spacing(volume, roi, spacing_mm)
    box = prepare.crop_box(roi.array)
    steps = prepare.preparation_steps(volume.array[box], roi.array[box], invert)
    preprocess_figure(path, steps, volume.spacing_mm)


def parse_arguments(argv):
    """The command line as a namespace, its scans in `scans`."""
    parser = new_parser(__doc__, "python -m weakunet.preprocess")
    parser.add_argument("--data", type=Path, required=True, help="cohort table with a roi column")
    parser.add_argument("--invert", action="store_true", help="dark to bright, for T1 scans")
    parser.add_argument("--figures", action="store_true", help="draw the steps for each scan")
    about = "keep only the slices within this distance of the one that was counted"
    parser.add_argument("--slab-mm", type=half_thickness, metavar="MM", help=about)
    about = "resample to voxels of this size in mm first"
    parser.add_argument("--spacing-mm", type=positive, nargs=3, metavar=tuple("ZYX"), help=about)
    add_arguments(parser, jobs=cores())
    args = parser.parse_args(argv)
    args.scans = read_cohort(args.data)
    for scan in args.scans:
        if scan.roi is None:
            raise InputError(f"{args.data}: subject {scan.subject!r} has no roi; name its ROI mask")
        if args.slab_mm is not None and scan.slice_z_mm is None:
            raise InputError(f"{args.data}: --slab-mm needs the column slice_z_mm; add it")
    return args


@command
def main(argv=None):
    """Prepare a cohort: see the module's first lines."""
    args = parse_arguments(argv)
    settings = {
        "data": path_from(args.out, args.data),
        "invert": args.invert,
        "dilation_vox": prepare.DILATION_VOX,
        "sigma_vox": prepare.SIGMA_VOX,
        "trim": prepare.TRIM,
        "lowest": prepare.LOWEST,
    }
    for name in ("slab_mm", "spacing_mm"):
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    how = {name: getattr(args, name) for name in ("figures", "invert", "slab_mm", "spacing_mm")}
    run_command(
        args, settings, files_of, prepare_scan, how, "preprocess", "cohort.csv", write_table
    )


def write_table(path, done):
    write_cohort(path, [made_scan(scan, files) for scan, files, _ in done])
    print(f"{len(done)} prepared scans: {path}")


if __name__ == "__main__":
    main()
