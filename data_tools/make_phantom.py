"""Write a simulated cohort as NIfTI files, to try the whole path from raw images.

    python data_tools/make_phantom.py --out phantom --preset tiny --seed 0
    python -m weakunet.preprocess --data phantom/cohort.csv --out prepared

Writes SUBJECT.nii.gz (raw intensities), SUBJECT_roi.nii.gz (the region of interest) and
SUBJECT_centres.csv (the lesions, for evaluation only) per scan, and cohort.csv with counts, splits
and, for the presets that count one slice (slice, paper), its height. The scans are those of
weakunet.data.phantom.simulate_cohort with the same preset and seed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

from weakunet.data.cohort import Scan, write_cohort
from weakunet.data.phantom import PRESETS, SPLITS, raw_volumes, scan_rng, simulate_scan
from weakunet.data.volumes import index_to_world, write_volume
from weakunet.util.cli import InputError, command, new_parser, progress, write_csv


def add_cohort_arguments(parser, numbers, what="scans"):
    """Options of a tool that makes a cohort: --out, --seed, how many scans per split."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    for split, number in zip(SPLITS, numbers, strict=True):
        about = f"number of {split} {what}"
        parser.add_argument(f"--{split}", type=int, default=number, help=about)
    parser.add_argument("--seed", type=int, default=0, help="random seed")


def require_new(folder):
    """Raise InputError where `folder` already holds a cohort."""
    table = folder / "cohort.csv"
    if table.exists():
        raise InputError(f"{table}: there is a cohort already; choose another folder")


def write_scans(args, make, about, what="scans", slice_z_mm=None):
    """Write the scans that the arguments ask for, and their table.

    make : (split, i) -> image, a Volume; roi, a Volume, or None if it needs no preparation; centres
        (n, 3) in world mm
    about : what the progress bar says
    """
    wanted = [(split, i) for split in SPLITS for i in range(getattr(args, split))]
    table = []
    for split, i in progress(wanted, about):
        image, roi, centres_mm = make(split, i)
        subject = f"{split}{i:04d}"
        paths = [args.out / f"{subject}{end}" for end in (".nii.gz", "_roi.nii.gz", "_centres.csv")]
        write_volume(paths[0], image.array, image)
        if roi is None:
            paths[1] = None
        else:
            write_volume(paths[1], roi.array, roi)
        rows = [[f"{mm:.3f}" for mm in centre] for centre in centres_mm]
        write_csv(paths[2], ["x_mm", "y_mm", "z_mm"], rows)
        row = paths[0], len(centres_mm), paths[1], split, paths[2], slice_z_mm
        table.append(Scan(subject, *row))
    write_cohort(args.out / "cohort.csv", table)
    print(f"wrote {len(table)} {what}: {args.out / 'cohort.csv'}")


@command
def main(argv=None):
    """Write the cohort the arguments ask for."""
    parser = new_parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="size of the scans")
    add_cohort_arguments(parser, (400, 100, 30))
    args = parser.parse_args(argv)
    require_new(args.out)

    def make(split, i):
        raw, roi, centres_zyx = simulate_scan(args.preset, scan_rng(args.seed, split, i))
        image, mask = raw_volumes(raw, roi)
        return image, mask, index_to_world(image, centres_zyx)

    write_scans(args, make, "writing scans", slice_z_mm=PRESETS[args.preset].slice_z_mm)


if __name__ == "__main__":
    main()
