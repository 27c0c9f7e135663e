"""Turn lesion masks into counts, lists of centres and the cohort table.

    python data_tools/counts_from_masks.py --masks 'masks/{subject}.nii.gz' \\
        --images 'scans/{subject}_T2.nii.gz' --rois 'rois/{subject}.nii.gz' --out counted

How patterns name subjects: cohort_files.py. A lesion is a 26-connected component of the voxels of
at least 0.5, its place the centre of mass. It counts when it is no smaller than `--min-mm3` and,
with `--rois`, when the voxel that holds its centre is in the region.

Several masks of one subject are several raters'. A voxel is lesion where at least `--agreement` of
them have marked it: with 0.5, where half have (of two raters either, of three two); with 1, all.
The count of each rater by himself stands in counts.csv beside the one that is used.

The VALDO challenge's training data (2021) is read with, for perivascular spaces and microbleeds,

    --masks  'Task1/{subject}/{subject}_space-T1_desc-Rater*_PVSSeg.nii.gz'
    --images 'Task1/{subject}/{subject}_space-T1_desc-masked_T2.nii.gz'
    --masks  'Task2/{subject}/{subject}_space-T2S_CMB.nii.gz'
    --images 'Task2/{subject}/{subject}_space-T2S_desc-masked_T2S.nii.gz'

Task 1 is annotated in a part of the brain only: give the masks of that part as `--rois`.

With `--slice-z-mm`, for scans registered to one another, lesions are those of ONE axial slice, the
one at that height in world mm, with its 8-connected components, as in the paper.
Writes OUT/counts.csv, OUT/SUBJECT_centres.csv and OUT/cohort.csv.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

import numpy as np
from cohort_files import Entry, find_files, prefix_hint, without_files
from make_cohort import join, write_and_report

from weakunet.data.slices import cut_volume, find_slice
from weakunet.data.volumes import Volume, index_to_world, read_volume, require_same_grid
from weakunet.detection.detect import components_above
from weakunet.util.cli import InputError, command, progress, write_csv
from weakunet.util.processes import cores, map_processes

MARKED = 0.5  # the least value of a lesion's voxel; masks may be soft
LARGEST_SHARE = 0.25  # of the voxels: more is no mask of lesions
ROUNDING = 1e-6
COLUMNS = ("subject", "count", "count_of_each_rater", "n_small", "n_outside_roi", "volume_mm3")


def read_mask(path, slice_z_mm=None):
    """Read a mask as a Volume of bool, cut to the slice at `slice_z_mm` unless that is None."""
    volume = read_volume(path)
    marked = volume.array >= MARKED
    if marked.mean() > LARGEST_SHARE:
        raise InputError(
            f"{path}: {marked.mean():.0%} of its voxels are marked; check that it is a lesion mask"
        )
    k = find_slice(volume, slice_z_mm, path)
    mask = Volume(marked, volume.affine)
    return mask if k is None else cut_volume(mask, k, k + 1)


def count_lesions(share, roi=None, agreement=0.5, min_mm3=0.0):
    """Find the lesions that count.

    Parameters
    ----------
    share : Volume, the share of raters who marked a voxel, 0 to 1
    roi : (D, H, W) bool, or None for everywhere
    agreement : voxels of at least this share are lesion
    min_mm3 : the smallest lesion that counts

    Returns: centres (n, 3) in world mm, volumes (n,) in mm3, and how many were too small and how
    many of the others lie outside the ROI.
    """
    found = components_above(share.array, agreement - ROUNDING)
    volumes_mm3 = found.volumes_vox * share.voxel_mm3
    large = volumes_mm3 >= min_mm3 * (1 - ROUNDING)
    inside = np.ones(len(large), bool)
    if roi is not None:
        # half way between two voxels: the higher index; a centre of mass is never off the array
        inside = roi[tuple(np.floor(found.centres_zyx + 0.5 + ROUNDING).astype(int).T)]
    kept = large & inside
    centres_mm = index_to_world(share, found.centres_zyx[kept])
    return centres_mm, volumes_mm3[kept], int((~large).sum()), int((large & ~inside).sum())


def count_subject(paths, roi_path=None, agreement=0.5, min_mm3=0.0, slice_z_mm=None):
    """Count one subject's lesions in the masks of all raters, read one at a time.

    Returns: what `count_lesions` does, and the count of each rater. Raises InputError naming the
    file that cannot be used.
    """
    share, roi, of_each = None, None, []
    for path in paths:
        mask = read_mask(path, slice_z_mm)
        if share is None:
            share = Volume(np.zeros(mask.array.shape, np.float32), mask.affine)
            if roi_path is not None:
                roi = read_volume(roi_path)
                k = find_slice(roi, slice_z_mm, roi_path)
                roi = roi if k is None else cut_volume(roi, k, k + 1)
                require_same_grid(mask, path, roi, roi_path)
                if not (roi.array > 0).any():
                    raise InputError(
                        f"{roi_path}: no voxel of the region is above 0 (in the slice)"
                    )
                roi = roi.array > 0
        require_same_grid(share, paths[0], mask, path)
        of_each.append(len(count_lesions(mask, roi, MARKED, min_mm3)[0]))
        share.array += mask.array / np.float32(len(paths))
    return *count_lesions(share, roi, agreement, min_mm3), of_each


def _count_or_fail(work):
    try:
        return count_subject(*work)
    except InputError as error:
        return error
    except MemoryError:
        return InputError(f"{work[0][0]}: not enough memory; use --jobs 1")


def write_results(out, names, results, slice_z_mm):
    """Write each subject's centres and counts.csv.

    Parameters: names {subject key: name}, results {subject key: as from `count_subject`}.
    Returns: {subject key: Entry} and {subject key: [(name, Path of the centres)]}, for `join`.
    """
    entries, centres, rows = {}, {}, []
    for key, (centres_mm, volumes_mm3, n_small, n_outside, of_each) in results.items():
        path = out / f"{names[key]}_centres.csv"
        lines = np.column_stack([centres_mm, volumes_mm3])
        header = ["x_mm", "y_mm", "z_mm", "volume_mm3"]
        write_csv(path, header, [[f"{value:.3f}" for value in line] for line in lines])
        count = len(centres_mm)
        entries[key] = Entry(names[key], count, slice_z_mm)
        centres[key] = [(names[key], path)]
        each = " ".join(map(str, of_each))
        rows.append([names[key], count, each, n_small, n_outside, f"{volumes_mm3.sum():.3f}"])
    write_csv(out / "counts.csv", COLUMNS, rows)
    return entries, centres


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", required=True, help="pattern with {subject}, in quotes")
    parser.add_argument("--images", required=True, help="pattern of the scans")
    parser.add_argument("--rois", help="pattern of the regions in which lesions count")
    parser.add_argument("--agreement", type=float, default=0.5, help="share of raters, above 0")
    parser.add_argument(
        "--min-mm3", type=float, default=0.0, help="the smallest lesion that counts"
    )
    parser.add_argument("--slice-z-mm", type=float, help="count in the axial slice at this height")
    parser.add_argument("--jobs", type=int, default=cores(), help="subjects at once")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args(argv)
    if not 0 < args.agreement <= 1:
        raise InputError(f"--agreement {args.agreement:g}: give a share above 0, at most 1")
    if not 0 <= args.min_mm3 < math.inf:
        raise InputError(f"--min-mm3 {args.min_mm3:g}: give a volume of at least 0")
    return args


@command
def main(argv=None):
    """Count the lesions of the masks that the arguments name."""
    args = parse_arguments(argv)
    masks = find_files(args.masks)
    rois = find_files(args.rois) if args.rois else None
    images = without_files(find_files(args.images), masks, rois)
    names = {key: images.get(key, masks[key])[0][0] for key in masks}
    keys = [key for key in masks if key in images and (rois is None or key in rois)]
    work = []
    for key in keys:
        paths = [path for _, path in masks[key]]
        roi = rois[key][0][1] if rois else None
        work.append((paths, roi, args.agreement, args.min_mm3, args.slice_z_mm))
    done = map_processes(_count_or_fail, work, args.jobs)
    done = [result for _, result in zip(progress(work, "count"), done, strict=True)]
    results = dict(zip(keys, done, strict=True))
    failed = {key: error for key, error in results.items() if isinstance(error, InputError)}
    results = {key: result for key, result in results.items() if key not in failed}
    entries, centres = write_results(args.out, names, results, args.slice_z_mm)
    for key in masks.keys() - results.keys():  # without a scan or a ROI, or failed
        entries[key] = Entry(names[key], problem=str(failed.get(key, "not counted")))
    patterns = (args.masks, masks, images), (args.images, images, masks), (args.rois, rois, masks)
    hints = [prefix_hint(*pattern) for pattern in patterns if pattern[0]]
    write_and_report(args.out / "cohort.csv", *join(images, entries, rois, centres), hints)
    if failed:
        raise InputError(f"{args.masks}: {len(failed)} of {len(work)} subjects failed, named above")


if __name__ == "__main__":
    main()
