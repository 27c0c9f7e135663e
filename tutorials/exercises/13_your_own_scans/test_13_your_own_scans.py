"""Grades exercise 13; the labels' oracle is the package's own resampling."""

import numpy as np
from grading import compare, parts
from scipy import ndimage

from weakunet.data.rigid import move_points, resample
from weakunet.data.volumes import Volume

# a tilted scan, a template's grid of 1 mm, and a registration that turns and shifts
AFFINE = np.array(
    [[0.48, -0.07, 0.0, -3.0], [0.09, 0.59, 0.05, -4.0], [0.0, -0.04, 0.79, 2.0], [0, 0, 0, 1]]
)
GRID = np.array([[-1.0, 0, 0, 2.373], [0, 0, 1, -3.377], [0, 1, 0, 3.134], [0, 0, 0, 1]])
TURN = np.array([[0.8, -0.6, 0, 5.0], [0.6, 0.8, 0, -2.0], [0, 0, 1, 7.0], [0, 0, 0, 1]])
inv = np.linalg.inv


def _with_shift(shift):
    affine = AFFINE.copy()
    affine[:3, 3] = shift
    return affine


def test_crop(answer):
    image = np.random.default_rng(13).normal(size=(9, 10, 8))
    region = np.zeros(image.shape, bool)
    region[1:4, 4, 5] = region[2, 3:6, 4] = True
    result = parts("crop", answer.crop(image, AFFINE, region, 2), "the cropped array, its affine")
    right = image[0:6, 1:8, 2:8]
    mistakes = [
        (image[-1:6, 1:8, 2:8], "the box begins at index -1 here, which counts from the END"),
        (image[0:5, 1:7, 2:7], "the last slice of each axis is lost: a slice ends BEFORE its end"),
        (image[1:4, 3:6, 4:6], "the margin is missing"),
        (image[0:4, 1:6, 2:6], "the margin is on one side only: both sides get it"),
        ((image * region)[0:6, 1:8, 2:8], "what is outside the region is set to 0: only crop"),
    ]
    compare("crop's array", result[0], right, mistakes)
    matrix, shift, corner = AFFINE[:3, :3], AFFINE[:3, 3], np.array([0, 1, 2])
    mistakes = [
        (AFFINE, "the affine is the old one: every voxel has moved in the world by the corner"),
        (_with_shift(shift + corner), "the corner is added in VOXELS: the matrix makes mm of it"),
        (_with_shift(shift - matrix @ corner), "the shift goes the wrong way: add the corner"),
        (_with_shift(matrix @ corner), "the old shift is lost: the corner's is added to it"),
        (_with_shift(shift + matrix.diagonal() * corner), "only the diagonal moves the corner"),
        (_with_shift(shift + matrix.T @ corner), "the matrix is transposed: matrix @ corner"),
        (_with_shift(shift + matrix @ [-1, 1, 2]), "the corner is that of a box from index -1 on"),
    ]
    compare("crop's affine", result[1], _with_shift(shift + matrix @ corner), mistakes)


def test_to_scan(answer):
    ijk = np.array([[0.0, 0, 0], [3.25, 1, 7], [10, 4.5, 2], [1, 8, 5]])
    result = parts("to_scan", answer.to_scan(ijk, GRID, TURN, AFFINE), "points in mm, indices")
    template_mm = move_points(GRID, ijk)
    scan_mm = move_points(inv(TURN), template_mm)
    mistakes = [
        (move_points(TURN, template_mm), "to_template is not inverted: you come back from there"),
        (template_mm, "these are mm of the TEMPLATE's world: the registration is not undone"),
        (move_points(GRID, move_points(inv(TURN), ijk)), "the order is wrong: first the affine"),
        (move_points(AFFINE, ijk), "the scan's affine is applied to indices of another file"),
        (move_points(inv(TURN), ijk), "the prepared file's affine is not used: points are indices"),
        (template_mm - TURN[:3, 3], "only the shift is undone: the registration also turns"),
    ]
    compare("to_scan's points in mm", result[0], scan_mm, mistakes)
    right = move_points(inv(AFFINE), scan_mm)
    mistakes = [
        (ijk, "these are the prepared file's indices: the scan's own file has others"),
        (move_points(inv(GRID), scan_mm), "the prepared file's affine is inverted, not the scan's"),
        (move_points(AFFINE, scan_mm), "the scan's affine is not inverted: from mm to an index"),
        (move_points(inv(AFFINE), template_mm), "the template's mm are taken for the scan's"),
        (np.round(right), "the indices are rounded: a centre may lie between voxels"),
    ]
    compare("to_scan's indices", result[1], right, mistakes)


def test_carry_labels(answer):
    labels = np.random.default_rng(1).choice([0, 11, 12, 50, 51], size=(7, 5, 6))
    shape = (15, 13, 9)
    right = resample(Volume(labels.T, GRID), Volume(np.zeros(shape).T, AFFINE), 0).T
    back = inv(GRID) @ AFFINE
    there = move_points(back, np.indices(shape).reshape(3, -1).T)

    def look(at, **how):
        return ndimage.map_coordinates(labels.astype(float), at.T, **how).reshape(shape)

    nearest = np.round(there).astype(int)
    reached = (nearest < labels.shape).all(axis=1) & (nearest >= np.negative(labels.shape)).all(1)
    wrapped = np.zeros(len(there))
    wrapped[reached] = labels[tuple(nearest[reached].T)]
    cut = there.astype(int)  # towards 0, as Python's int() does
    index_for_index = np.zeros(shape)
    index_for_index[:7, :5, :6] = labels
    other_way = move_points(inv(AFFINE) @ GRID, np.indices(shape).reshape(3, -1).T)
    down = "cut to whole numbers, not rounded: everything moves by half a voxel"
    linear = "interpolated: half way between 12 and 50 lies 31, a structure that nobody marked"
    mistakes = [
        (look(there, order=1, mode="grid-constant"), linear),
        (look(there, order=1), linear),
        (np.round(look(there, order=1)), linear),
        (look(np.floor(there), order=0), down),
        (look(cut, order=0), down),
        (wrapped.reshape(shape), "a negative index counts from the END: outside, a label is 0"),
        (look(there, order=0), "the outermost voxels are cut in half (scipy: 'grid-constant')"),
        (look(there, order=0, mode="nearest"), "the outermost labels continue outside, not 0"),
        (index_for_index, "copied index for index: the grids differ, go through millimetres"),
        (look(np.round(other_way), order=0), "the direction is wrong: start at the scan"),
    ]
    compare("carry_labels", answer.carry_labels(labels, GRID, shape, AFFINE), right, mistakes)


def _lesions():
    """A mask (20, 12, 8) and a region, i < 14: 9 lesions count in 3-D, 5 in slice 3."""
    mask, region = np.zeros((20, 12, 8), bool), np.zeros((20, 12, 8), bool)
    region[:14] = True
    mask[[1, 2, 3, 4], [1, 2, 3, 4], [2, 3, 4, 5]] = True  # four voxels, joined by their corners
    mask[7, 1, 3] = mask[7, 5, 3] = mask[7, 1:6, 4] = True  # a bridge: two feet in slice 3
    mask[10, 2, 1:5] = True  # through slices 1 to 4
    mask[[9, 10, 11, 12], [6, 7, 8, 9], 3] = True  # a diagonal in slice 3: joined by edges
    mask[2, 8:10, 6] = mask[5, 9, :2] = mask[8, 10, 6:] = True  # three that are not in slice 3
    mask[0, 11, :2] = mask[13, 0, 7] = True  # two more
    mask[12:18, 11, 3] = True  # touches the region, its centre is outside
    mask[18, 2, 2:4] = True  # outside
    return mask, region


def test_count_lesions_in_3d(answer):
    mask, region = _lesions()
    flat = np.ones((3, 3))
    by_slice = sum(ndimage.label(mask[:, :, k] & region[:, :, k], flat)[1] for k in range(8))
    mistakes = [
        (11, "the region is ignored: two lesions have their centre outside"),
        (2, "the lesions OUTSIDE the region are counted"),
        (10, "a lesion that only touches the region is counted: its CENTRE must be inside"),
        (12, "18 neighbours: voxels that meet at a corner are joined as well"),
        (15, "6 neighbours: voxels that meet at an edge or a corner are joined as well"),
        (20, "the slices' counts are added up: a lesion in four slices counts four times"),
        (by_slice, "the slices' counts are added up: a lesion in four slices counts four times"),
        (int((mask & region).sum()), "voxels are counted, not lesions"),
    ]
    compare("count_lesions", answer.count_lesions(mask, region), 9, mistakes)
    empty = answer.count_lesions(np.zeros_like(mask), region)
    compare("count_lesions of an empty mask", empty, 0)


def test_count_lesions_in_a_slice(answer):
    mask, region = _lesions()
    mistakes = [
        (9, "k is ignored: this is the count of the volume"),
        (2, "the lesions OUTSIDE the region are counted"),
        (4, "lesions of the VOLUME that the slice cuts are counted: label the slice alone"),
        (1, "only lesions whose centre in 3-D lies in the slice are counted: label the slice"),
        (8, "4 neighbours: voxels that meet at a corner are joined as well"),
        (7, "the region is ignored: two lesions have their centre outside"),
        (6, "a lesion that only touches the region is counted: its CENTRE must be inside"),
    ]
    compare("count_lesions in slice 3", answer.count_lesions(mask, region, 3), 5, mistakes)
