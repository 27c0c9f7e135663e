"""Turn lesion masks into counts, lists of centres and the cohort table.

    python data_tools/counts_from_masks.py --masks 'masks/{subject}.nii.gz' \\
        --images 'scans/{subject}_T2.nii.gz' --rois 'rois/{subject}.nii.gz' --out counted

How patterns name subjects: cohort_files.py. A lesion is a 26-connected component of voxels of at
least 0.5; its place is their centre of mass. It counts if it is not smaller than `--min-mm3` and,
with `--rois`, if the voxel at its centre lies in the region.

Several masks of a subject come from several raters. A voxel belongs to a lesion where at least the
fraction `--agreement` of them marked it: 0.5 asks for one of two raters or two of three, 1 for all.
counts.csv lists the count of each rater beside the one that is used.

For the training data of the VALDO challenge (2021), perivascular spaces and microbleeds, give

    --masks  'Task1/{subject}/{subject}_space-T1_desc-Rater*_PVSSeg.nii.gz'
    --images 'Task1/{subject}/{subject}_space-T1_desc-masked_T2.nii.gz'
    --masks  'Task2/{subject}/{subject}_space-T2S_CMB.nii.gz'
    --images 'Task2/{subject}/{subject}_space-T2S_desc-masked_T2S.nii.gz'

Task 1 is annotated in part of the brain only: give the masks of that part as `--rois`.

With `--slice-z-mm`, for registered scans, lesions are the 8-connected components of ONE axial
slice, the one at that height in world mm, as in the paper.
Writes OUT/counts.csv, OUT/SUBJECT_centres.csv and OUT/cohort.csv.
"""

import dataclasses
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

import numpy as np
from cohort_files import Entry, find_files, prefix_hint, without_files
from make_cohort import join, write_and_report

from weakunet.data.slices import find_slice
from weakunet.data.volumes import (
    Volume,
    crop,
    index_to_world,
    read_mask,
    read_volume,
    require_same_grid,
)
from weakunet.detection.detect import components_above
from weakunet.util.cli import InputError, command, new_parser, write_csv
from weakunet.util.parts import add_arguments, choose_part, part_table, run_command
from weakunet.util.threads import cores

MARKED = 0.5  # the lowest value of a lesion's voxel; masks may be soft
LARGEST_FRACTION = 0.25  # of the voxels: more is not a mask of lesions
ROUNDING = 1e-6
COLUMNS = ("subject", "count", "count_of_each_rater", "n_small", "n_outside_roi", "volume_mm3")


def read_marked(path, slice_z_mm=None):
    """Read a lesion mask as a Volume of bool; only the slice at `slice_z_mm` if one is given."""
    volume = read_volume(path, nan_ok=True)  # NaN is not marked
    marked = volume.array >= MARKED
    if marked.mean() > LARGEST_FRACTION:
        raise InputError(
            f"{path}: {marked.mean():.0%} of its voxels are marked; check that it is a lesion mask"
        )
    return slice_of(Volume(marked, volume.affine), slice_z_mm, path)


def slice_of(volume, z_mm, path):
    """The slice of a Volume at world height `z_mm`; all of it for None."""
    k = find_slice(volume, z_mm, path)
    return volume if k is None else crop(volume, np.s_[k : k + 1, 0:, 0:])


def count_lesions(fraction, roi=None, agreement=0.5, min_mm3=0.0):
    """Find the lesions that count.

    Parameters
    ----------
    fraction : Volume, the fraction of raters who marked a voxel, 0 to 1
    roi : (D, H, W) bool, or None for everywhere
    agreement : voxels of at least this fraction are lesion
    min_mm3 : the smallest lesion that counts

    Returns: centres (n, 3) in world mm, volumes (n,) in mm3, and how many were too small and how
    many of the others lie outside the ROI.
    """
    found = components_above(fraction.array, agreement - ROUNDING)
    volumes_mm3 = found.volumes_vox * fraction.voxel_mm3
    large = volumes_mm3 >= min_mm3 * (1 - ROUNDING)
    inside = np.ones(len(large), bool)
    if roi is not None:
        # halfway between two voxels: the higher index; a centre of mass never leaves the array
        inside = roi[tuple(np.floor(found.centres_zyx + 0.5 + ROUNDING).astype(int).T)]
    kept = large & inside
    centres_mm = index_to_world(fraction, found.centres_zyx[kept])
    return centres_mm, volumes_mm3[kept], int((~large).sum()), int((large & ~inside).sum())


def count_subject(paths, roi_path=None, agreement=0.5, min_mm3=0.0, slice_z_mm=None):
    """Count one subject's lesions in the masks of all raters, read one at a time.

    Returns: what `count_lesions` does, and the count of each rater. Raises InputError naming the
    file that cannot be used.
    """
    roi, fraction, of_each = None, None, []
    for path in paths:
        mask = read_marked(path, slice_z_mm)
        if fraction is None:
            fraction = Volume(np.zeros(mask.array.shape, np.float32), mask.affine)
        require_same_grid(fraction, paths[0], mask, path)
        if roi_path is not None and roi is None:
            region = slice_of(read_mask(roi_path), slice_z_mm, roi_path)
            require_same_grid(mask, path, region, roi_path)
            roi = region.array
            if not roi.any():
                raise InputError(f"{roi_path}: no voxel of the region is above 0 (in the slice)")
        of_each.append(len(count_lesions(mask, roi, MARKED, min_mm3)[0]))
        fraction.array += mask.array / np.float32(len(paths))
    return *count_lesions(fraction, roi, agreement, min_mm3), of_each


@dataclasses.dataclass
class Masks:
    """What belongs to a subject, `key` as in cohort_files.py; `image` is the first rater's mask."""

    key: str
    subject: str
    paths: list
    roi: Path | None

    @property
    def image(self):
        return self.paths[0]


def files_of(masks, out, **how):
    """Settings, the files that a subject is counted in, and the list to write (for `parts`)."""
    return how, [*masks.paths, masks.roi], {"centres": out / f"{masks.subject}_centres.csv"}


def write_centres(masks, files, **how):
    """Count, and write the list of centres; return the subject's key and its row of COLUMNS."""
    centres_mm, volumes_mm3, *left_out, of_each = count_subject(masks.paths, masks.roi, **how)
    lines = np.column_stack([centres_mm, volumes_mm3])
    header = ["x_mm", "y_mm", "z_mm", "volume_mm3"]
    write_csv(files["centres"], header, [[f"{value:.3f}" for value in line] for line in lines])
    row = [masks.subject, len(lines), " ".join(map(str, of_each)), *left_out]
    return [masks.key, [*row, f"{volumes_mm3.sum():.3f}"]]


def parse_arguments(argv):
    parser = new_parser(__doc__)
    parser.add_argument("--masks", required=True, help="pattern with {subject}, in quotes")
    parser.add_argument("--images", required=True, help="pattern of the scans")
    parser.add_argument("--rois", help="pattern of the regions in which lesions count")
    parser.add_argument("--agreement", type=float, default=0.5, help="fraction of raters, above 0")
    about = "volume of the smallest lesion that counts"
    parser.add_argument("--min-mm3", type=float, default=0.0, help=about)
    parser.add_argument("--slice-z-mm", type=float, help="count in the axial slice at this height")
    add_arguments(parser, jobs=cores())
    args = parser.parse_args(argv)
    if not 0 < args.agreement <= 1:
        raise InputError(f"--agreement {args.agreement:g}: give a fraction above 0, at most 1")
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
    args.scans = [
        Masks(key, names[key], [path for _, path in masks[key]], rois[key][0][1] if rois else None)
        for key in masks
        if key in images and (rois is None or key in rois)
    ]
    how = {name: getattr(args, name) for name in ("agreement", "min_mm3", "slice_z_mm")}
    whole = part_table(args, args.out) == args.out

    def write(path, done):
        rows = [row for *_, (_, row) in done]
        write_csv(part_table(args, args.out / "counts.csv"), COLUMNS, rows)
        entries, centres = {}, {}
        for _, files, (key, row) in done:
            entries[key] = Entry(row[0], row[1], args.slice_z_mm)
            centres[key] = [(row[0], files["centres"])]
        for key in (masks.keys() if whole else []) - entries.keys():  # no scan, no ROI, or failed
            entries[key] = Entry(names[key], problem="not counted, see above")
        own_images = images if whole else {key: images[key] for key in entries}
        hints = [prefix_hint(args.masks, masks, images), prefix_hint(args.images, images, masks)]
        if args.rois:
            hints.append(prefix_hint(args.rois, rois, masks))
        write_and_report(path, *join(own_images, entries, rois, centres), hints)

    run_command(args, {}, files_of, write_centres, how, "count", "cohort.csv", write, mixed=True)
    if not choose_part(args, args.scans):
        write(args.out / "cohort.csv", [])


if __name__ == "__main__":
    main()
