"""Make ROI masks from label images: FreeSurfer's aseg.mgz and the like, or any other.

    roi_from_freesurfer.py --labels 'fs/{subject}/mri/aseg.mgz' --data cohort.csv --out rois
    roi_from_freesurfer.py --labels aal.nii.gz --structures 71 72 --scan a.nii.gz --out rois
    roi_from_freesurfer.py --list

Writes DIR/SUBJECT_roi.nii.gz, the mask of the structures on the scan's own grid (nearest neighbour,
by world coordinates), DIR/SUBJECT_roi.png to check it, and DIR/cohort.csv with the roi column
filled. Structures are names (a name without its side means both sides), numbers or groups:

    basal-ganglia      caudate, putamen, pallidum and accumbens (the paper's region; the default)
    hippocampus        the hippocampi
    midbrain           173 of brainstemSsLabels.mgz; in aseg.mgz it is part of the brain stem (16)
                       and of VentralDC
    centrum-semiovale  white matter above the highest voxel of the lateral ventricles, a common
                       approximation: all of it in aseg.mgz, in wmparc.mgz what belongs to no gyrus
                       (5001, 5002). "Above" is along z of the scan's world, which is the same for
                       all heads once they are registered to MNI

Registered scans lie in the template's world, FreeSurfer's labels in the scanner's: give
`--transform 'registered/{subject}_to_template.txt'`, and the registered cohort.csv as --data. An
atlas, one label image for all, lies in the template's world, too, and needs no --transform.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

import numpy as np
from freesurfer_labels import GROUPS, NAMES, NUMBERS, PAIRS, describe
from scan_tools import add_scan_arguments, check_picture, read_matrix, scans_asked_for

from weakunet.data import volumes
from weakunet.data.cohort import write_cohort
from weakunet.data.rigid import resample
from weakunet.util.cli import InputError, command, new_parser, note, one_line
from weakunet.util.parts import run_command


def label_numbers(structure):
    """The numbers of a structure: a number, a name in any case, or a group. Raises InputError."""
    if structure.isdecimal() and int(structure) > 0:
        return [int(structure)]
    members = GROUPS.get(structure.lower(), (structure,))
    if not all(name.lower() in NUMBERS for name in members):
        raise InputError(f"no structure is called {structure!r}; --list shows the names")
    return [number for name in members for number in NUMBERS[name.lower()]]


def select_structures(labels, structures, matrix, path):
    """The union of the structures as a Volume of bool; absent ones are named on stderr.

    Parameters: labels, a Volume of whole numbers; matrix (4, 4) from its world to the scan's, which
    says what is above the ventricles; path, for the InputError when a structure is missing.
    """
    numbers = labels.array
    present = np.unique(numbers[numbers != 0]).tolist()
    mask = np.zeros(numbers.shape, bool)
    for structure in structures:
        asked = label_numbers(structure)
        if not set(asked) & set(present):
            have = one_line(", ".join(map(describe, present)), 300)
            raise InputError(
                f"{path}: nothing of {structure!r} ({', '.join(map(describe, asked))}); "
                f"it holds {have or 'only 0'}"
            )
        part = np.isin(numbers, asked)
        if structure.lower() == "centrum-semiovale":
            part &= above_ventricles(labels, matrix, path)
        else:
            for number in sorted(set(asked) - set(present)):
                note(f"{path}: no voxel is {describe(number)}")
        mask |= part
    return volumes.Volume(mask, labels.affine)


def above_ventricles(labels, matrix, path):
    """Where (D, H, W) the world's z, after `matrix`, exceeds that of every ventricle voxel."""
    ventricles = np.isin(labels.array, PAIRS["Lateral-Ventricle"])
    if not ventricles.any():
        raise InputError(
            f"{path}: no lateral ventricle (4, 43), above which the centrum semiovale lies; "
            "give aseg.mgz or wmparc.mgz"
        )
    to_z = (matrix @ labels.affine)[2]  # z is linear in the voxel's x, y and z
    z, y, x = np.ogrid[tuple(slice(n) for n in labels.array.shape)]
    height = to_z[0] * x + to_z[1] * y + to_z[2] * z + to_z[3]
    return height > height[ventricles].max()


def labels_of(scan, labels, transform):
    """The label image and the matrix (or None) that belong to a scan."""
    return [text and Path(text.replace("{subject}", scan.subject)) for text in (labels, transform)]


def files_of(scan, out, labels, transform, structures):
    """A scan's own settings, the files its ROI is made from, and those to write (for `parts`)."""
    sources = *labels_of(scan, labels, transform), scan.image
    files = {"mask": out / f"{scan.subject}_roi.nii.gz", "picture": out / f"{scan.subject}_roi.png"}
    return {"structures": structures}, sources, files


def write_roi(scan, files, labels, transform, structures):
    """Write one scan's mask and its picture."""
    labels_path, matrix_path = labels_of(scan, labels, transform)
    matrix = np.eye(4) if matrix_path is None else read_matrix(matrix_path)
    labels, image = volumes.read_labels(labels_path), volumes.read_volume(scan.image, nan_ok=True)
    np.nan_to_num(image.array, copy=False, posinf=0, neginf=0)  # only the picture shows it
    region = select_structures(labels, structures, matrix, labels_path)
    mask = resample(region, image, 0, matrix)
    if not mask.any():
        middle_mm = volumes.index_to_world(region, np.argwhere(region.array).mean(axis=0))
        at = volumes.move_points(matrix, middle_mm)[0].round(1).tolist()
        raise InputError(
            f"{labels_path}: the region, around {at} mm, is not in {scan.image}; "
            "check both images' affines, and --transform where the scan was registered"
        )
    expected_vox = region.array.sum() * region.voxel_mm3 / image.voxel_mm3
    if mask.sum() < 0.95 * expected_vox:
        note(f"{scan.image}: {1 - mask.sum() / expected_vox:.0%} of the region lies outside")
    sizes = (mask.sum(axis=other) for other in ((1, 2), (0, 2), (0, 1)))
    busiest = [int(size.argmax()) for size in sizes]
    outlined = f"{', '.join(structures)}, outlined", image, volumes.Volume(mask, image.affine)
    check_picture(files["picture"], image, busiest, [outlined])
    volumes.write_volume(files["mask"], mask, image)


def require_atlas(labels, transform, scans):
    """Raise InputError unless one label image can serve all scans: they share one grid."""
    first, *others = scans
    try:
        if others and transform:
            raise InputError("they were registered with a transform each")
        grid = volumes.read_volume(first.image) if others else None
        for scan in others:
            own = volumes.read_volume(scan.image)
            volumes.require_same_grid(grid, first.image, own, scan.image)
    except InputError as error:
        raise InputError(
            f"{labels}: one file for several scans; put {{subject}} in its name, or give "
            f"registered scans and an atlas in their template's world ({error})"
        ) from None


class _ListNames(argparse.Action):
    def __call__(self, parser, *_):
        print("groups:", *(f"  {name}: {', '.join(GROUPS[name])}" for name in GROUPS), sep="\n")
        print("numbers:", *(f"  {describe(number)}" for number in NAMES), sep="\n")
        parser.exit()


def parse_arguments(argv):
    """The command line as a namespace, its scans in `scans`."""
    parser = new_parser(__doc__)
    add_scan_arguments(parser, "scans whose grid the masks take")
    parser.add_argument("--labels", required=True, help="label image; {subject}: the scan's name")
    about = "structures, groups or numbers that make the region"
    names = {"nargs": "+", "metavar": "NAME", "default": ["basal-ganglia"]}
    parser.add_argument("--structures", **names, help=about)
    parser.add_argument("--transform", help="SUBJECT_to_template.txt, with {subject} for the name")
    parser.add_argument("--list", action=_ListNames, nargs=0, help="print names and numbers")
    args = parser.parse_args(argv)
    args.scans = scans_asked_for(parser, args)
    return args


@command
def main(argv=None):
    """Write the masks the arguments ask for."""
    args = parse_arguments(argv)
    for structure in args.structures:
        label_numbers(structure)
    if args.transform and "{subject}" not in args.transform and len(args.scans) > 1:
        raise InputError(f"{args.transform}: one for several scans; put {{subject}} in its name")
    if "{subject}" not in args.labels:
        require_atlas(args.labels, args.transform, args.scans)
    if args.data and (args.out / "cohort.csv").resolve() == args.data.resolve():
        raise InputError(f"{args.data}: would be overwritten; choose another --out")
    how = {name: getattr(args, name) for name in ("labels", "transform", "structures")}
    run_command(args, {}, files_of, write_roi, how, "roi", "cohort.csv", write_table, mixed=True)


def write_table(path, done):
    write_cohort(path, [dataclasses.replace(scan, roi=files["mask"]) for scan, files, _ in done])
    print(f"{len(done)} ROI masks: {path}")


if __name__ == "__main__":
    main()
