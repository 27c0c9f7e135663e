"""Grades exercise 10; the oracle is scipy.ndimage.label at every level."""

import numpy as np
from grading import compare, fail, parts
from scipy import ndimage

RNG = np.random.default_rng(10)
STEPS = np.arange(20.0, 0, -1)


def test_find_root(answer):
    parent = [1, 2, 5, 3, 3, 5, 4]  # 0 -> 1 -> 2 -> 5 and 6 -> 4 -> 3
    roots = [answer.find_root(list(parent), v) for v in range(7)]
    mistakes = [
        (parent, "find_root goes up one step only: follow parent until it is its own parent"),
        ([parent[p] for p in parent], "find_root goes up two steps: follow it to the end"),
        (range(7), "find_root returns the voxel itself: go up, and leave parent as it is"),
        ([0] * 7, "one root for all: voxel 3 is the root of some, 5 of others"),
    ]
    compare("find_root", roots, [5, 5, 5, 3, 3, 5, 3], mistakes)


def _numbers(heatmap, levels, connectivity):
    structure = ndimage.generate_binary_structure(3, connectivity)
    return np.array([ndimage.label(heatmap >= level, structure)[1] for level in levels])


def test_component_numbers(answer):
    for digits in (9, 1):  # all voxels different; many that tie
        heatmap = ndimage.gaussian_filter(RNG.normal(size=(5, 8, 9)), 0.7).round(digits)
        result = parts("component_numbers", answer.component_numbers(heatmap), "levels, numbers")
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
            (np.arange(1, 1 + len(levels)), "voxels are counted: each join makes one fewer"),
        ]
        for step, message in BORDERS.items():
            mistakes.append((_sweep(heatmap, step), message))
        _check_numbers(np.asarray(result[1]), _numbers(heatmap, levels, 3), mistakes)


BORDERS = {  # what a voxel's neighbour at index i of n is taken for: an index, or None
    lambda i, n: i % n: "neighbours wrap around: beyond the last voxel there is none",
    lambda i, n: i % n if i < n else None: "neighbours wrap around: index -1 is the last voxel, so "
    "ask 0 <= as well",
    lambda i, n: "none at all" if i < 0 else i if i < n else None: "border voxels have no "
    "neighbours: a slice that begins at -1 is empty, for a negative index counts from the END",
}  # fmt: skip


def _sweep(heatmap, border):
    """The numbers where voxels at the border look for their neighbours wrongly."""
    parent, number, numbers = {}, 0, {}

    def root(v):
        return v if parent[v] == v else root(parent[v])

    for v in zip(*np.unravel_index(np.argsort(-heatmap, axis=None), heatmap.shape), strict=True):
        parent[v] = v
        number += 1
        near = [
            tuple(
                border(i + step - 1, n) for i, step, n in zip(v, steps, heatmap.shape, strict=True)
            )
            for steps in np.ndindex(3, 3, 3)
        ]
        for other in near if "none at all" not in sum(near, ()) else []:
            if other in parent and root(other) != root(v):
                parent[root(other)] = root(v)
                number -= 1
        numbers[heatmap[v]] = number
    return np.array(list(numbers.values()))


def _check_numbers(actual, right, mistakes):
    for wrong, message in mistakes:
        if actual.shape == wrong.shape and (actual == wrong).all():
            fail(message)
    if actual.shape == right.shape and (actual <= right).all() and (actual < right).any():
        fail(
            "too few components: a join is counted although both voxels have one root already "
            "(compare and join ROOTS, not voxels), or a tie is recorded before its last voxel"
        )
    if actual.shape == right.shape and (actual >= right).all() and (actual > right).any():
        fail("too many components: a join is missed (compare and join ROOTS, not voxels)")
    compare("component_numbers's numbers", actual, right)


def test_choose_level(answer):
    up_and_down = np.array([1, 2, 3, 3, 4, 3, 2, 2, 3, 5, 6, 5, 4, 3, 3, 2, 2, 1, 1, 1])
    low = "this is the LAST level with that count: the hills have merged; take the first"
    for count, right in ((2, 19), (3, 18), (4, 16), (5, 11)):
        bisected = STEPS[min(np.searchsorted(up_and_down, count), len(STEPS) - 1)]
        wrong = [
            (STEPS[np.flatnonzero(up_and_down == count)[-1]], low),
            (STEPS[count - 1], "this is the count's place in the list of levels"),
            (bisected, "this is what a bisection finds: the number is not monotone, so sweep"),
            (np.flatnonzero(up_and_down == count)[0], "this is the level's index, not the level"),
            (STEPS[np.flatnonzero(up_and_down >= count)[0] - 1], "one short: go one level further"),
            (10, "this is the level with the most components"),
            (count, "this is the number of components, not the level"),
        ]
        wrong = [w for w in wrong if w[0] != right]
        level = answer.choose_level(STEPS, up_and_down, count)
        compare(f"choose_level for count {count}", level, right, wrong)
    jump, behind = np.array([1, 2, 5, 3]), "it swept on past the first level that reached it"
    level = answer.choose_level(STEPS[:4], jump, 3)  # 2 is nearer than 5
    wrong = [(17, behind), (18, "the first at or above the count: 2 is nearer to 3 than 5 is")]
    compare("choose_level where ties jump from 2 to 5, for count 3", level, 19, wrong)
    level = answer.choose_level(STEPS[:4], np.array([1, 2, 2, 1]), 9)
    wrong = [(18, "of equally near levels the higher one is taken"), (17, "2 is nearer than 1")]
    compare("choose_level where no level reaches the count", level, 19, wrong)
