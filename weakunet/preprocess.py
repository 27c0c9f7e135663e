"""Prepare scans for the network (paper section 2.1): mask, smooth, crop, trim, rescale.

The region of interest (ROI) is dilated and its border smoothed with a Gaussian of sigma 2 voxels;
the scan is multiplied by it and cropped around it, its highest 1 % trimmed, and rescaled:

    m = G_sigma * dilate(roi)        s = image . m        S = min(s, q) / q,    S in [0, 1]

[paper] these steps, sigma and the 1 %. [ours] the dilation of 3 voxels (1.5 sigma: the ROI's own
border keeps 93 % of its intensity), the crop (the dilated ROI's box), m below 1 % set to 0, and q
as the 99th percentile of s over the dilated ROI. Where fluid or other bright tissue fills more than
2 % of the dilated ROI, q does not depend on how many lesions there are; with less, the image's gain
would betray the count.

    python -m weakunet.preprocess --data cohort.csv --out DIR

writes DIR/SUBJECT.nii.gz (in RAS+ order; world coordinates stay true), copies the lists of centres,
and DIR/cohort.csv names what is ready for training. Run again, it keeps what is done. A file's
affine says where its box was: data_tools/detections_to_scan.py puts what is found in it back.
"""

import argparse
import dataclasses
import os
import shutil
import sys
from pathlib import Path

from weakunet.data.cohort import read_centres, read_cohort, write_cohort
from weakunet.data.load import load_scan, read_raw
from weakunet.data.prepare import (
    DILATION_VOX,
    SIGMA_VOX,
    TRIM,
    change_spacing,
    crop_box,
    preparation_steps,
    voxel_size,
)
from weakunet.data.slices import half_thickness
from weakunet.data.volumes import write_volume
from weakunet.util import resume
from weakunet.util.cli import (
    InputError,
    atomic_path,
    command,
    progress,
)
from weakunet.util.processes import cores, map_processes


def prepare_scan(scan, out, invert=False, figures=False, slab_mm=None, spacing_mm=None):
    """Write one prepared scan into the folder `out`, unless it is there and still that of its row.

    slab_mm: only the slices that lie so close to scan.slice_z_mm, which must be known then.

    Returns the Scan to be listed in `out`'s table, without its ROI. The image is written last.
    """
    image, figure = out / f"{scan.subject}.nii.gz", out / f"{scan.subject}_steps.png"
    centres = None if scan.centres is None else out / f"{scan.subject}_centres.csv"
    prepared_scan = dataclasses.replace(scan, image=image, roi=None, centres=centres)
    own, sources = {"slice_z_mm": scan.slice_z_mm}, (scan.image, scan.roi, scan.centres)
    results = [path for path in (centres, figure if figures else None, image) if path is not None]
    if resume.noted(out, scan.subject, own, sources, results):
        return prepared_scan
    made_from = resume.inputs(own, sources)
    prepared = load_scan(scan, invert=invert, slab_mm=slab_mm, spacing_mm=spacing_mm).volume
    if centres is not None:
        read_centres(scan.centres)
        with atomic_path(centres) as temporary:
            shutil.copyfile(scan.centres, temporary)
    if figures:
        from weakunet.figures.preprocess import preprocess_figure  # matplotlib, only where wanted

        volume, roi = read_raw(scan)
        if spacing_mm is not None:
            volume, roi = change_spacing(volume, roi, spacing_mm)
        box = crop_box(roi.array)
        steps = preparation_steps(volume.array[box], roi.array[box], invert)
        preprocess_figure(figure, steps, volume.spacing_mm)
    write_volume(image, prepared.array, prepared)
    resume.note(out, scan.subject, made_from)
    return prepared_scan


def _prepare_or_fail(arguments):
    try:
        return prepare_scan(*arguments)
    except InputError as error:
        return error
    except MemoryError:
        return InputError(f"{arguments[0].image}: not enough memory; use --jobs 1 or crop the scan")


@command
def main(argv=None):
    """Prepare a cohort: `python -m weakunet.preprocess --data cohort.csv --out DIR`."""
    about = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser("python -m weakunet.preprocess", description=about)
    parser.add_argument("--data", type=Path, required=True, help="cohort table with a roi column")
    parser.add_argument("--out", type=Path, required=True, help="folder for the prepared scans")
    parser.add_argument("--invert", action="store_true", help="dark to bright, for T1 scans")
    parser.add_argument("--figures", action="store_true", help="a picture per scan of the steps")
    about = "keep only what is so close to the slice that was counted"
    parser.add_argument("--slab-mm", type=half_thickness, help=about)
    about = "resample to voxels of this size first (z, y, x)"
    parser.add_argument("--spacing-mm", type=voxel_size, nargs=3, metavar=tuple("ZYX"), help=about)
    parser.add_argument("--jobs", type=int, default=cores(), help="scans in memory at once")
    args = parser.parse_args(argv)
    scans = read_cohort(args.data)
    for scan in scans:
        if scan.roi is None:
            raise InputError(f"{args.data}: subject {scan.subject!r} has no roi; name its ROI mask")
        if args.slab_mm is not None and scan.slice_z_mm is None:
            raise InputError(f"{args.data}: --slab-mm needs the column slice_z_mm; add it")
    spacing_mm = args.spacing_mm and tuple(args.spacing_mm)
    settings = {
        "data": Path(os.path.relpath(args.data, args.out)).as_posix(),
        "invert": args.invert,
        "dilation_vox": DILATION_VOX,
        "sigma_vox": SIGMA_VOX,
        "trim": TRIM,
    }
    if args.slab_mm is not None:
        settings["slab_mm"] = args.slab_mm
    if spacing_mm is not None:
        settings["spacing_mm"] = args.spacing_mm
    resume.begin(args.out, settings)
    work = [(scan, args.out, args.invert, args.figures, args.slab_mm, spacing_mm) for scan in scans]
    done = map_processes(_prepare_or_fail, work, args.jobs)
    results = [result for _, result in zip(progress(work, "preprocess"), done, strict=True)]
    failed = [result for result in results if isinstance(result, InputError)]
    prepared = [result for result in results if not isinstance(result, InputError)]
    for error in failed:
        print(f"failed: {error}", file=sys.stderr)
    if prepared:
        write_cohort(args.out / "cohort.csv", prepared)
        print(f"{len(prepared)} prepared scans: {args.out / 'cohort.csv'}")
    if failed:
        raise InputError(
            f"{args.data}: {len(failed)} of {len(scans)} scans failed, named above and left out; "
            "mend them and run the same command again"
        )


if __name__ == "__main__":
    main()
