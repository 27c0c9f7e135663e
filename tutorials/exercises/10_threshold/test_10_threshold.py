"""Grades exercise 10; the oracle is scipy.ndimage.label at every level."""

import numpy as np
from grading import compare, fail, parts
from scipy import ndimage

RNG = np.random.default_rng(10)
STEPS = np.arange(20.0, 0, -1)


def test_find_root(answer):
    parent = [0, 0, 1, 2, 4, 4, 5]  # 3 -> 2 -> 1 -> 0 and 6 -> 5 -> 4
    roots = [answer.find_root(list(parent), v) for v in range(7)]
    mistakes = [
        (parent, "find_root goes up one step only: follow parent until it is its own parent"),
        ([parent[p] for p in parent], "find_root goes up two steps: follow it to the end"),
    ]
    compare("find_root", roots, [0, 0, 0, 0, 4, 4, 4], mistakes)


def _numbers(heatmap, levels, connectivity):
    structure = ndimage.generate_binary_structure(3, connectivity)
    return np.array([ndimage.label(heatmap >= level, structure)[1] for level in levels])


def test_component_numbers(answer):
    for digits in (9, 1):  # all voxels different; many that tie
        heatmap = ndimage.gaussian_filter(RNG.normal(size=(5, 8, 9)), 0.7).round(digits)
        result = answer.component_numbers(heatmap.copy())
        result = parts("component_numbers", result, "levels, numbers")
        levels = np.unique(heatmap)[::-1]
        ties = "equal voxels are counted one after the other: they are ONE level"
        mistakes = [
            (levels[::-1], "the levels ascend: sweep from the highest voxel down"),
            (np.sort(heatmap, axis=None)[::-1], ties),
        ]
        mistakes = [m for m in mistakes if m[0].shape != levels.shape or (m[0] != levels).any()]
        compare("component_numbers's levels", result[0], levels, mistakes)
        mistakes = [
            (_numbers(heatmap, levels, 1), "6 neighbours: take the 26, diagonal ones as well"),
            (_numbers(heatmap, levels, 2), "18 neighbours: take the 26, corners as well"),
            (np.arange(1, 1 + len(levels)), "voxels are counted: joints make components fewer"),
        ]
        _check_numbers(np.asarray(result[1]), _numbers(heatmap, levels, 3), mistakes)


def _check_numbers(actual, right, mistakes):
    for wrong, message in mistakes:
        if actual.shape == wrong.shape and (actual == wrong).all():
            fail(message)
    if actual.shape == right.shape and (actual <= right).all() and (actual < right).any():
        fail(
            "too few components: a joint is counted although both voxels had the same root "
            "already (a loop closes), or a tie is noted down before its last voxel"
        )
    if actual.shape == right.shape and (actual >= right).all() and (actual > right).any():
        fail("too many components: a joint is missed; join the ROOTS of the two, not the voxels")
    compare("component_numbers's numbers", actual, right)


def test_choose_level(answer):
    up_and_down = np.array([1, 2, 3, 3, 4, 3, 2, 2, 3, 5, 6, 5, 4, 3, 3, 2, 2, 1, 1, 1])
    low = "this is the LAST level with that count: the hills have grown together; take the first"
    for count, right in ((2, 19), (3, 18), (4, 16), (5, 11)):
        bisected = STEPS[min(np.searchsorted(up_and_down, count), len(STEPS) - 1)]
        wrong = [
            (STEPS[np.flatnonzero(up_and_down == count)[-1]], low),
            (bisected, "this is what a bisection finds: the number is not monotone, so sweep"),
            (np.flatnonzero(up_and_down == count)[0], "this is the level's index, not the level"),
        ]
        wrong = [w for w in wrong if w[0] != right]
        level = answer.choose_level(STEPS.copy(), up_and_down.copy(), count)
        compare(f"choose_level for count {count}", level, right, wrong)
    jump, behind = np.array([1, 2, 5, 3]), "it swept on behind the first level that reached it"
    level = answer.choose_level(STEPS[:4].copy(), jump, 3)  # 2 is nearer than 5
    wrong = [(17, behind), (18, "the first at or above the count: 2 is nearer to 3 than 5 is")]
    compare("choose_level where ties jump from 2 to 5, for count 3", level, 19, wrong)
    level = answer.choose_level(STEPS[:4].copy(), np.array([1, 2, 2, 1]), 9)
    wrong = [
        (18, "of equally near levels the higher one is taken"),
        (17, "the lowest: 2 is nearer"),
    ]
    compare("choose_level where no level reaches the count", level, 19, wrong)
