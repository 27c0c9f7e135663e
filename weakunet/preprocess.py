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
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

from weakunet.cli import (
    InputError,
    atomic_path,
    clear_leftovers,
    command,
    progress,
    write_json,
)
from weakunet.cohort import read_centres, read_cohort, write_cohort
from weakunet.parallel import cores, map_processes
from weakunet.slices import cut_slab, find_slice, half_thickness
from weakunet.volumes import Volume, read_volume, require_same_grid, write_volume

DILATION_VOX = 3
SIGMA_VOX = 2.0
TRIM = 0.01
STRAY_VOX = 8
SMALLEST_WEIGHT = 0.01


def without_strays(mask):
    """The mask without its parts of at most STRAY_VOX voxels, unless there is nothing else.

    A voxel that was marked by mistake would become, dilated and smoothed, a bright spot in the dark
    that looks like a lesion.
    """
    parts, n_parts = ndimage.label(mask, np.ones((3, 3, 3)))
    kept = np.bincount(parts.ravel(), minlength=n_parts + 1) > STRAY_VOX
    kept[0] = False
    return kept[parts] if kept.any() else mask


def crop_box(roi):
    """The dilated ROI's box: three slices inside the array. The ROI may not be empty."""
    box = ndimage.find_objects(without_strays(roi > 0).astype(np.uint8))[0]
    return tuple(
        slice(max(0, side.start - DILATION_VOX), min(n, side.stop + DILATION_VOX))
        for side, n in zip(box, roi.shape, strict=True)
    )


def dilate_mask(mask, radius_vox=DILATION_VOX):
    """All voxels at most `radius_vox` away from the mask, in voxels along every axis (a ball)."""
    return ndimage.distance_transform_edt(~mask) <= radius_vox


def smooth_border(mask, sigma_vox=SIGMA_VOX):
    """Weights in [0, 1], 1/2 on a flat border, 0 below 1 %; beyond the array the mask is 0."""
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma_vox, mode="constant")
    weight[weight < SMALLEST_WEIGHT] = 0
    return np.clip(weight, 0, 1)


def invert_contrast(image, inside):
    """1 - image / p, clipped to [0, p], p its 99th percentile inside: makes T1 look like T2."""
    high = np.percentile(image[inside], 99)
    return 1 - np.clip(image, 0, high) / high


def trim_highest(image, inside, share=TRIM):
    """Clip `image` from above at the (1 - share) quantile of its voxels inside the mask."""
    return np.minimum(image, np.quantile(image[inside], 1 - share).astype(image.dtype))


def preparation_steps(image, roi, invert=False):
    """All steps on cropped arrays: name -> (D, H, W), in order, the last in [0, 1].

    Negative intensities are first shifted so that the lowest inside the dilated ROI is 0.
    """
    dilated = dilate_mask(roi > 0)
    steps = {"scan": image, "ROI": roi > 0, "dilated": dilated}
    image = image - min(0, image[dilated].min())
    if invert:
        image = steps["inverted"] = invert_contrast(image, dilated)
    steps["border smoothed"] = smooth_border(dilated)
    steps["masked"] = image * steps["border smoothed"]
    steps["trimmed"] = trim_highest(steps["masked"], dilated)
    steps["rescaled"] = np.clip(steps["trimmed"] / steps["trimmed"].max(), 0, 1)
    return steps


def prepare(volume, roi, invert=False, image_path="image", roi_path="ROI"):
    """Prepare a raw scan: a Volume cropped to `crop_box(roi.array)`, in its place in the world.

    Parameters
    ----------
    volume, roi : Volumes on the same grid; the ROI is where `roi` is above 0
    invert : turn dark into bright first, for T1-weighted scans
    image_path, roi_path : named in the InputErrors: different grids, empty ROI, constant image
    """
    require_same_grid(volume, image_path, roi, roi_path)
    if not (roi.array > 0).any():
        raise InputError(f"{roi_path}: empty ROI, no voxel is above 0; check that it is the mask")
    box = crop_box(roi.array)
    image, mask = volume.array[box], without_strays(roi.array > 0)[box]
    inside = image[dilate_mask(mask)]
    if inside.min() == np.quantile(inside, 1 - TRIM):
        raise InputError(
            f"{image_path}: 99 % of the ROI has the same intensity ({inside.min():g}); "
            "check that this is the scan and that the ROI lies inside the head"
        )
    prepared = list(preparation_steps(image, mask, invert).values())[-1]
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box[::-1]]
    return Volume(np.ascontiguousarray(prepared, np.float32), affine)


def put_back(array, box, shape, fill):
    """Undo the crop: `array` in its `box` of an array of `shape`, `fill` around it."""
    full = np.full(shape, fill, array.dtype)
    full[box] = array
    return full


def prepare_scan(scan, out, invert=False, figures=False, slab_mm=None):
    """Write one prepared scan into the folder `out`, unless it is there and newer than its sources.

    slab_mm: only the slices that lie so close to scan.slice_z_mm, which must be known then.

    Returns the Scan to be listed in `out`'s table, without its ROI. The image is written last.
    """
    image, figure = out / f"{scan.subject}.nii.gz", out / f"{scan.subject}_steps.png"
    centres = None if scan.centres is None else out / f"{scan.subject}_centres.csv"
    prepared_scan = dataclasses.replace(scan, image=image, roi=None, centres=centres)
    sources = [path for path in (scan.image, scan.roi, scan.centres) if path is not None]
    results = [path for path in (centres, figure if figures else None, image) if path is not None]
    if all(path.is_file() for path in sources + results):
        if min(map(os.path.getmtime, results)) >= max(map(os.path.getmtime, sources)):
            return prepared_scan
    volume, roi = read_volume(scan.image), read_volume(scan.roi)
    prepared = prepare(volume, roi, invert, scan.image, scan.roi)
    k = find_slice(prepared, scan.slice_z_mm, scan.roi)
    if slab_mm is not None:
        prepared, _ = cut_slab(prepared, k, slab_mm)
    if centres is not None:
        read_centres(scan.centres)
        with atomic_path(centres) as temporary:
            shutil.copyfile(scan.centres, temporary)
    if figures:
        from weakunet.figures import preprocess_figure  # matplotlib, only where it is wanted

        box = crop_box(roi.array)
        steps = preparation_steps(volume.array[box], roi.array[box], invert)
        preprocess_figure(figure, steps, volume.spacing_mm)
    write_volume(image, prepared.array, prepared)
    return prepared_scan


def _prepare_or_fail(arguments):
    try:
        return prepare_scan(*arguments)
    except InputError as error:
        return error
    except MemoryError:
        return InputError(f"{arguments[0].image}: not enough memory; use --jobs 1 or crop the scan")


def claim_folder(out, settings):
    """Make the folder `out`, or check that it was begun with the same settings."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: not a folder; choose another --out")
    path = out / "settings.json"
    if path.is_file():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            earlier = None
        if earlier != settings:
            raise InputError(
                f"{path}: begun with other settings, {earlier}; choose another --out or remove it"
            )
        clear_leftovers(out)
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: the folder holds other files; choose another --out")
    else:
        write_json(path, settings)


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
    parser.add_argument("--jobs", type=int, default=cores(), help="scans in memory at once")
    args = parser.parse_args(argv)
    scans = read_cohort(args.data)
    for scan in scans:
        if scan.roi is None:
            raise InputError(f"{args.data}: subject {scan.subject!r} has no roi; name its ROI mask")
        if args.slab_mm is not None and scan.slice_z_mm is None:
            raise InputError(f"{args.data}: --slab-mm needs the column slice_z_mm; add it")
    settings = {
        "data": Path(os.path.relpath(args.data, args.out)).as_posix(),
        "invert": args.invert,
        "dilation_vox": DILATION_VOX,
        "sigma_vox": SIGMA_VOX,
        "trim": TRIM,
    }
    if args.slab_mm is not None:
        settings["slab_mm"] = args.slab_mm
    claim_folder(args.out, settings)
    work = [(scan, args.out, args.invert, args.figures, args.slab_mm) for scan in scans]
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
