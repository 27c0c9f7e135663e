"""Exercise 14: sheets of digits, who wrote them, and what a right count can hide. About 45 minutes.

Everything is 2-D here: images and sheets are (H, W), points (n, 2) are (y, x). No scikit-learn is
needed: the tests make their own digits.
"""

import numpy as np  # noqa: F401

PAPER, INK = 0.15, 0.75  # a sheet's grey where nothing is written; what full ink (1) adds to it


def make_sheet(images, classes, corners, digit, size):
    """A sheet, its label, and where the digits are that the label counts.

    images (n, E, E), ink from 0 to 1; classes (n,), which digit each is; corners (n, 2), whole
    numbers: the pixel where each image's first row and column go. No two touch.
    Returns the sheet (size, size), the count of `digit` on it (a number), and those digits' middles
    (count, 2): the mean index of an image's first and last pixel.
    """
    raise NotImplementedError("make_sheet is yours to write")


def split_by_writer(writers, n_val, n_test, rng):
    """For each image 'train', 'val' or 'test': an array of n words. writers (n,) says who wrote
    each image; n_val and n_test are numbers of WRITERS, drawn by rng. The others train.

    Nobody may be in two splits: the test must be on people whom the network does not know.
    Hint: np.unique, rng.permutation and np.isin. np.full(n, "train") holds five letters, enough.
    """
    raise NotImplementedError("split_by_writer is yours to write")


def local_maxima(maps, k):
    """The mean of local maxima, y (C,), of feature maps (C, H, W): each map is cut into blocks of
    k x k pixels, from its first pixel on; y_c is the mean over all blocks of the block's maximum.

    Where k does not divide H or W, the last blocks are smaller, and count like the others. (The
    package's blocks overlap, and those that touch the region are summed.) For this pooling two
    digits in one block are one, so k should not be much larger than a digit.
    Hint: two loops, range(0, H, k); a slice may end after the array. Maps may be negative.
    """
    raise NotImplementedError("local_maxima is yours to write")


def judge_sheet(found, middles, classes, digit, radius):
    """What was marked on a sheet, and how many mistakes the number of marks does not show.

    found (n, 2) are the marks; middles (m, 2) and classes (m,) of ALL digits on the sheet.
    Returns marked (n,): the class of the digit nearest to each mark, or -1 if its middle is farther
    away than radius (the mark is on paper, or on a digit's rim). And hidden, a number: a digit of
    class `digit` with a mark on it is ONE hit; all other marks are wrong, and digits of the class
    without a mark are missed. The count is off by wrong - missed only: min(wrong, missed) of each
    cancel.
    Hint: distances (n, m) from found[:, None] - middles[None]; n is 1 or more.
    """
    raise NotImplementedError("judge_sheet is yours to write")
