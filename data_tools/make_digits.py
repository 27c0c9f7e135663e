"""Write canvases of handwritten digits, each with ONE number: how many of one class are on it.

    pip install scikit-learn
    python data_tools/make_digits.py --out digits --digit 3
    python -m weakunet.train --data digits/cohort.csv --flips= --out runs/digits

A second task for the same program, on real images: the network is told how many threes a canvas
shows, never which of its digits they are. The digits are scikit-learn's `load_digits`: 1797 images
of 8 x 8 pixels, written by 13 or 14 people. A canvas is a volume of one slice with pixels of 1 mm,
on grey paper, because a prepared scan is 0 only outside its region. The number of digits is drawn
first, and how many of them are of the class does not depend on it: the amount of ink tells nothing.

scikit-learn keeps the images writer by writer, and the splits are cut between writers, as far as
its course (scikit-learn MOOC, "Sample grouping") could identify them. No image is in two splits.
Writes SUBJECT.nii.gz and SUBJECT_centres.csv per canvas, and cohort.csv, ready for training without
preparation. A mirrored digit is a different sign, so train with `--flips=` (none).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

import numpy as np
from make_phantom import add_cohort_arguments, require_new, write_scans

from weakunet.data.cohort import SPLITS, LoadedScan
from weakunet.data.phantom import scan_rng
from weakunet.data.volumes import Volume, index_to_world
from weakunet.util.cli import InputError, command, new_parser

INSTALL = "python -m pip install scikit-learn"
SPLITS_AT = (1029, 1415)  # of 1797 images: 8 writers to train on, 3 to validate, 3 to test
SIZE, EDGE = 48, 8  # pixels of a canvas and of a digit
MARGIN, GAP = 2, 1  # free pixels: random shifts cut no digit off; no two digits touch
DIGITS, MOST = (6, 10), 5  # on a canvas; of the class, at most
PAPER, INK, NOISE = 0.15, 0.75, 0.04


def load_digits():
    """Split -> images (n, 8, 8) in [0, 1], the lowest row first as in a Volume, and classes (n,).

    Raises InputError where scikit-learn is missing.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise InputError(f"the digits come with scikit-learn, not installed; {INSTALL}") from None
    digits = datasets.load_digits()
    images = np.split(digits.images[:, ::-1].astype(np.float32) / 16, SPLITS_AT)
    classes = np.split(digits.target, SPLITS_AT)
    return dict(zip(SPLITS, zip(images, classes, strict=True), strict=True))


def draw_canvas(rng, images, classes, digit):
    """Draw a canvas (1, SIZE, SIZE) in (0, 1] and the centres (count, 3) of its `digit`s, zyx."""
    n, count = rng.integers(DIGITS[0], DIGITS[1] + 1), rng.integers(MOST + 1)
    of_class = rng.choice(np.flatnonzero(classes == digit), count, replace=False)
    others = rng.choice(np.flatnonzero(classes != digit), n - count, replace=False)
    ink = np.zeros((SIZE, SIZE), np.float32)
    corners = draw_corners(rng, n)
    for i, (y, x) in zip([*of_class, *others], corners, strict=True):
        ink[y : y + EDGE, x : x + EDGE] = images[i]
    noise = NOISE * rng.standard_normal(ink.shape, dtype=np.float32)
    canvas = np.clip(PAPER + INK * ink + noise, 0.01, 1)
    centres = np.insert(corners[:count] + (EDGE - 1) / 2, 0, 0, axis=1)
    return canvas[None], centres


def draw_corners(rng, n):
    """Draw the corners (n, 2), y and x, of n squares of EDGE pixels, GAP or more apart."""
    while True:
        drawn = rng.integers(MARGIN, SIZE - EDGE - MARGIN + 1, (20 * n, 2))
        corners = drawn[:0]
        for corner in drawn:
            if len(corners) < n and (abs(corners - corner).max(axis=1) >= EDGE + GAP).all():
                corners = np.vstack([corners, corner])
        if len(corners) == n:  # otherwise the first ones left no room: draw all again
            return corners


def make_canvas(digits, digit, seed, split, i):
    """Canvas i of a split as a LoadedScan; it does not depend on how many others are made."""
    canvas, centres_zyx = draw_canvas(scan_rng(seed, split, i), *digits[split], digit)
    return LoadedScan(f"{split}{i:04d}", Volume(canvas, np.eye(4)), len(centres_zyx), centres_zyx)


@command
def main(argv=None):
    """Write the cohort the arguments ask for."""
    parser = new_parser(__doc__)
    parser.add_argument("--digit", type=int, choices=range(10), default=3, help="what is counted")
    add_cohort_arguments(parser, (800, 100, 100), "canvases")
    args = parser.parse_args(argv)
    digits = load_digits()
    require_new(args.out)

    def make(split, i):
        canvas = make_canvas(digits, args.digit, args.seed, split, i)
        return canvas.volume, None, index_to_world(canvas.volume, canvas.centres_zyx)

    write_scans(args, make, "writing canvases", "canvases")


if __name__ == "__main__":
    main()
