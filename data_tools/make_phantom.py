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


def write_scan(folder, subject, image, roi, centres_mm, split, slice_z_mm=None):
    """Write a scan and return its row.

    Parameters: image, a Volume; roi, a Volume, or None if the scan needs no preparation;
    centres_mm (n, 3).
    """
    paths = [folder / f"{subject}{end}" for end in (".nii.gz", "_roi.nii.gz", "_centres.csv")]
    write_volume(paths[0], image.array, image)
    if roi is None:
        paths[1] = None
    else:
        write_volume(paths[1], roi.array, roi)
    rows = [[f"{mm:.3f}" for mm in centre] for centre in centres_mm]
    write_csv(paths[2], ["x_mm", "y_mm", "z_mm"], rows)
    return Scan(subject, paths[0], len(centres_mm), paths[1], split, paths[2], slice_z_mm)


def require_new(folder):
    """Raise InputError where `folder` already holds a cohort."""
    table = folder / "cohort.csv"
    if table.exists():
        raise InputError(f"{table}: there is a cohort already; choose another folder")


@command
def main(argv=None):
    """Write the cohort the arguments ask for."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="size of the scans")
    for split, number in zip(SPLITS, (400, 100, 30), strict=True):
        parser.add_argument(f"--{split}", type=int, default=number, help=f"number of {split} scans")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    arguments = parser.parse_args(argv)
    require_new(arguments.out)
    wanted = [(split, i) for split in SPLITS for i in range(getattr(arguments, split))]
    table = []
    for split, i in progress(wanted, "writing scans"):
        raw, roi, centres_zyx = simulate_scan(arguments.preset, scan_rng(arguments.seed, split, i))
        image, mask = raw_volumes(raw, roi)
        centres_mm = index_to_world(image, centres_zyx)
        scan = (
            f"{split}{i:04d}",
            image,
            mask,
            centres_mm,
            split,
            PRESETS[arguments.preset].slice_z_mm,
        )
        table.append(write_scan(arguments.out, *scan))
    write_cohort(arguments.out / "cohort.csv", table)
    print(f"wrote {len(table)} scans: {arguments.out / 'cohort.csv'}")


if __name__ == "__main__":
    main()
