"""Grades exercise 14, with made-up digits; the pooling's oracle is the package's layer."""

import itertools

import numpy as np
from grading import compare, fail, parts

from weakunet.layers.globalpool3d import localmax_forward

PAPER, INK = 0.15, 0.75


def test_make_sheet(answer):
    rng = np.random.default_rng(14)
    images, classes = rng.random((4, 6, 6)), np.array([3, 8, 3, 5])
    corners = np.array([[1, 12], [20, 3], [9, 21], [2, 2]])
    arguments = images, classes, corners, 3, 30
    result = parts("make_sheet", answer.make_sheet(*arguments), "the sheet, its count, the middles")
    ink, swapped = np.zeros((30, 30)), np.zeros((30, 30))
    for image, (y, x) in zip(images, corners, strict=True):
        ink[y : y + 6, x : x + 6] = image
        swapped[x : x + 6, y : y + 6] = image
    no_paper = np.where(ink > 0, INK * ink, PAPER)
    only_threes = ink.copy()
    only_threes[20:26, 3:9] = only_threes[2:8, 2:8] = 0
    mistakes = [
        (PAPER + INK * swapped, "y and x are swapped: a corner is (y, x), as an array's index is"),
        (INK * ink, "the paper is missing: it is grey, PAPER, where nothing is written"),
        (no_paper, "a digit's image has no paper under it: ink is ADDED to the paper"),
        (PAPER + ink, "the ink is not multiplied by INK: a sheet would exceed 1"),
        (PAPER + INK * only_threes, "only the threes are drawn: then the ink betrays the count"),
    ]
    compare("make_sheet's sheet", result[0], PAPER + INK * ink, mistakes)
    mistakes = [
        (4, "all digits are counted: the label is how many of them are of the class"),
        (6, "the digits are added up: count them"),
        (3, "this is the number of different digits, or the digit itself: how OFTEN is it there?"),
    ]
    compare("make_sheet's count", result[1], 2, mistakes)
    right = corners[[0, 2]] + 2.5
    mistakes = [
        (corners[[0, 2]], "these are the corners: the middle is half an image further"),
        (corners[[0, 2]] + 3, "half a pixel too far: of pixels 0 to E - 1 the middle is (E - 1)/2"),
        (right[:, ::-1], "y and x are swapped: points are (y, x)"),
        (corners + 2.5, "the middles of ALL digits: only of those that are counted"),
    ]
    compare("make_sheet's middles", result[2], right, mistakes)


def _check_split(splits, writers, n_val, n_test):
    """Fail unless every writer is in one split and as many writers as asked for in each."""
    if splits is None or np.shape(splits) != writers.shape:
        fail(f"split_by_writer returns shape {np.shape(splits)}: a word for each of {len(writers)}")
    splits = np.asarray(splits)
    strange = set(splits.tolist()) - {"train", "val", "test"}
    if strange:
        fail(f"split_by_writer says {strange.pop()!r}: the words are train, val and test")
    people = {split: set(writers[splits == split].tolist()) for split in ("train", "val", "test")}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if people[one] & people[other]:
            who = sorted(people[one] & people[other])[0]
            fail(f"writer {who} is in {one} and in {other}: draw WRITERS; images go with them")
    for split, number in (("val", n_val), ("test", n_test)):
        if len(people[split]) != number:
            given = f"{split} has the images of {len(people[split])} writers"
            fail(f"{given}, it should be {number}: n_val and n_test are numbers of WRITERS")


def test_split_by_writer(answer):
    images = np.repeat(list("fcahgbed"), [9, 3, 5, 8, 4, 7, 2, 6])
    mixed = np.random.default_rng(2).permutation(images)
    seen = set()
    for seed in range(12):
        splits = answer.split_by_writer(mixed, 2, 3, np.random.default_rng(seed))
        _check_split(splits, mixed, 2, 3)
        again = answer.split_by_writer(mixed, 2, 3, np.random.default_rng(seed))
        if not np.array_equal(splits, again):
            fail("the same seed gives another split: draw with the rng that is given, only")
        seen.add("".join(sorted(set(mixed[np.asarray(splits) == "test"].tolist()))))
    if len(seen) == 1:
        fail(f"whatever rng is, writers {', '.join(*seen)} are tested: draw them")


def test_local_maxima(answer):
    maps = np.random.default_rng(3).normal(size=(3, 10, 13)) - 3.5  # most maxima are negative
    for k in (2, 4):
        h, w = 10 - 10 % k, 13 - 13 % k
        inside = localmax_forward(maps[None, :, None, :h, :w], k)[0][0]
        padded = np.pad(maps, [(0, 0), (0, -10 % k), (0, -13 % k)])
        filled = localmax_forward(padded[None, :, None], k)[0][0]
        corners = list(itertools.product(range(0, 10, k), range(0, 13, k)))
        blocks = [maps[:, y : y + k, x : x + k] for y, x in corners]
        maxima, means, minima = (
            np.transpose([of(block, axis=(1, 2)) for block in blocks])
            for of in (np.max, np.mean, np.min)
        )
        slid = np.lib.stride_tricks.sliding_window_view(maps, (k, k), (1, 2)).max(axis=(3, 4))
        mistakes = [
            (inside, "the last blocks are left out where k does not divide: they are smaller"),
            (filled, "the last blocks are filled up with 0: cut them, or fill with -inf"),
            (np.sum(maxima, axis=1), "the maxima are added up: take their mean"),
            (np.mean(maxima), "one number for all maps: y_c is the mean over ITS blocks"),
            (np.max(maxima, axis=1), "this is the global maximum: take the MEAN over the blocks"),
            (np.mean(means, axis=1), "the mean in each block: take its maximum"),
            (np.mean(minima, axis=1), "the smallest of each block: take its maximum"),
            (maps.mean(axis=(1, 2)), "this is the global mean: take each block's maximum first"),
            (slid.mean(axis=(1, 2)), "the blocks overlap: the next one begins k pixels further"),
            (np.maximum(maxima, 0).mean(axis=1), "the maximum starts at 0: maps may be negative"),
        ]
        right = localmax_forward(maps[None, :, None], k)[0][0]
        compare(f"local_maxima with k = {k}", answer.local_maxima(maps, k), right, mistakes)


MIDDLES = np.array([[5.0, 5.0], [5.0, 20.0], [20.0, 5.0], [20.0, 20.0], [35.0, 8.0], [35.0, 30.0]])
CLASSES = np.array([3, 5, 3, 8, 3, 3])
MARKS = np.array([[6.0, 6.0], [4.0, 4.5], [5.0, 23.0], [12.0, 12.0], [35.0, 8.5], [21.0, 19.0]])


def test_judge_sheet(answer):
    result = answer.judge_sheet(MARKS, MIDDLES, CLASSES, 3, 3.0)
    marked, hidden = parts("judge_sheet", result, "marked, hidden")
    mistakes = [
        ([3, 3, -1, -1, 3, 8], "a distance of exactly the radius is near enough: <=, not <"),
        ([3, 3, 5, 3, 3, 8], "the fourth mark is on paper, far from any digit: -1"),
        ([0, 0, 1, -1, 4, 3], "these are the digits' numbers in the list: return their classes"),
        ([3, 3, -1, -1, 3, -1], "only the counted digits are looked for: WHAT else was marked?"),
        ([1, 1, 0, 0, 1, 0], "hit or no hit: return the class of what is there, or -1"),
    ]
    compare("judge_sheet's marked", marked, [3, 3, 5, -1, 3, 8], mistakes)
    # six marks, four threes of which two are hit (one of them twice): 4 wrong, 2 missed
    mistakes = [
        (4, "this is the number of wrong marks: only as many as are missed cancel"),
        (1, "a three that was marked twice is two hits: it is one, and the second mark is wrong"),
        (0, "no mistakes cancel? Two threes have no mark, and other marks fill up the count"),
        (6, "wrong and missed are added up: those that CANCEL are the smaller number"),
    ]
    compare("judge_sheet's hidden", hidden, 2, mistakes)
    twice = np.array([[6.0, 6.0], [4.0, 4.5], [35.0, 8.0], [20.0, 5.0]])
    cases = [  # as many marks as threes
        (
            "two marks on other digits",
            MIDDLES[[0, 1, 3, 2]],
            2,
            "two marks are wrong and two threes have none: both pairs of mistakes cancel",
        ),
        (
            "one three marked twice",
            twice,
            1,
            "one three has two marks and another has none: the "
            "second mark is wrong, and hides the missed one",
        ),
    ]
    for what, marks, right, message in cases:
        _, hidden = answer.judge_sheet(marks, MIDDLES, CLASSES, 3, 3.0)
        compare(f"judge_sheet's hidden, {what}", hidden, right, [(0, message)])
    _, hidden = answer.judge_sheet(MARKS[:1], MIDDLES, CLASSES, 3, 3.0)
    compare("judge_sheet's hidden, one mark and it is right", hidden, 0)
