"""Detection against an independent oracle (plain union-find, one level at a time) and by hand."""

import math

import numpy as np
import pytest
from scipy import ndimage

from weakunet.detection import detect
from weakunet.detection.detect import (
    components_above,
    detect_lesions,
    fill_outside,
    threshold_for_count,
    thresholds_for_counts,
    whole_count,
)
from weakunet.util.cli import InputError


def line(*values):
    """A map (1, 1, n): along a line, components are runs."""
    return np.array(values, np.float32).reshape(1, 1, -1)


def sweep_by_union_find(heatmap):
    """All (level, number of components) above the minimum, by plain union-find, voxel by voxel."""
    parent, sweep = {}, []

    def find(voxel):
        while parent[voxel] != voxel:
            voxel = parent[voxel]
        return voxel

    for level in sorted(set(heatmap.reshape(-1).tolist()), reverse=True)[:-1]:
        for voxel in map(tuple, np.argwhere(heatmap == level).tolist()):
            parent[voxel] = voxel
            for step in np.ndindex(3, 3, 3):
                other = tuple(v + s - 1 for v, s in zip(voxel, step, strict=True))
                if other in parent:
                    parent[find(other)] = find(voxel)
        sweep.append((level, sum(parent[voxel] == voxel for voxel in parent)))
    return sweep


def rule(sweep, count):
    """The stated rule, in words turned into Python: stop when reached, nearest, fewer, highest."""
    swept = []
    for level, number in sweep:
        swept.append((level, number))
        if number >= count:
            break
    nearest = min(abs(number - count) for _, number in swept)
    fewest = min(number for _, number in swept if abs(number - count) == nearest)
    return next((level, number) for level, number in swept if number == fewest)


@pytest.mark.parametrize("chunk", [1, 7, 2**14])
@pytest.mark.parametrize("seed", range(6))
def test_threshold_on_random_maps_with_ties_follows_the_stated_rule(seed, chunk, monkeypatch):
    monkeypatch.setattr(detect, "FIRST_CHUNK", chunk)
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal((6, 8, 11)), 0.7)
    for step in (0.05, 0.2, 1e-9):  # many ties, very many, none
        heatmap = np.round(noise / step).astype(np.float32)
        sweep = sweep_by_union_find(heatmap)
        most = max(number for _, number in sweep)
        counts = range(1, most + 3)
        assert thresholds_for_counts(heatmap, counts) == [rule(sweep, count) for count in counts]


@pytest.mark.parametrize("chunk", [1, 50, 2**14])
def test_sweep_at_every_level_counts_as_labelling_does(chunk, monkeypatch):
    monkeypatch.setattr(detect, "FIRST_CHUNK", chunk)
    heatmap = np.random.default_rng(3).integers(0, 40, (7, 9, 10)).astype(float)
    levels, numbers = map(np.concatenate, zip(*detect.component_numbers(heatmap), strict=True))
    np.testing.assert_array_equal(levels, np.arange(39, 0, -1))
    by_label = [ndimage.label(heatmap >= level, np.ones((3, 3, 3)))[1] for level in levels]
    np.testing.assert_array_equal(numbers, by_label)


def test_graph_has_indices_that_every_supported_scipy_takes(monkeypatch):
    """Before 1.17.1, scipy's minimum_spanning_tree refused 64-bit ones."""
    spanning_tree, kinds = detect.minimum_spanning_tree, set()

    def watch(graph):
        kinds.update([graph.indices.dtype, graph.indptr.dtype])
        return spanning_tree(graph)

    monkeypatch.setattr(detect, "minimum_spanning_tree", watch)
    noise = np.random.default_rng(0).standard_normal((8, 9, 10))
    assert threshold_for_count(noise, 20)[1] == 20
    assert kinds == {np.dtype(np.int32)}


@pytest.mark.parametrize(
    "heatmap, count, expected",
    [
        # levels 9: 1 component, 8: 2, 7: 3, 6 joins two: 2, 5: 3 again: the first that reaches it
        (line(9, 6, 8, 0, 7, 0, 5, 0), 2, (8, 2)),
        (line(9, 6, 8, 0, 7, 0, 5, 0), 3, (7, 3)),
        # a tie jumps from 1 component to 5: the nearest
        (line(9, 0, 8, 0, 8, 0, 8, 0, 8, 0), 2, (9, 1)),
        (line(9, 0, 8, 0, 8, 0, 8, 0, 8, 0), 4, (8, 5)),
        # equally near: fewer components, and the higher level
        (line(9, 0, 8, 0, 8, 0, 8, 0, 8, 0), 3, (9, 1)),
        (line(9, 7, 0, 5, 0, 5, 0), 2, (9, 1)),
        # 6 at once; level 3 would merge them into 2, but the sweep has stopped
        (line(9, 3, 9, 3, 9, 3, 9, 3, 9, 0, 9, 0), 2, (9, 6)),
        # out of reach: the most components, at the highest level that has them
        (line(9, 4, 8, 0, 7, 3, 0), 50, (7, 3)),
        # the minimum of the map is never a threshold
        (line(-3, -1, -3), 7, (-1, 1)),
        (line(0, 1e-9, 0, 0), 5, (np.float32(1e-9), 1)),
        (np.array([[[True, False, True]]]), 2, (1, 2)),
        (np.array([[[200, 0, 100, 0]]], np.uint8), 1, (200, 1)),
    ],
)
def test_threshold_by_hand(heatmap, count, expected):
    assert threshold_for_count(heatmap, count) == expected


def test_components_touch_at_corners_and_not_across_opposite_faces():
    heatmap = np.zeros((4, 4, 4))
    heatmap[0, 0, 0] = heatmap[1, 1, 1] = 1  # diagonal: one component
    assert threshold_for_count(heatmap, 1) == (1, 1)
    heatmap[1, 1, 1], heatmap[2, 2, 2] = 0, 1
    assert threshold_for_count(heatmap, 2) == (1, 2)
    heatmap[...] = 0
    heatmap[1, 1, 3] = heatmap[1, 2, 0] = 1  # next in memory
    assert threshold_for_count(heatmap, 2) == (1, 2)


@pytest.mark.parametrize(
    "heatmap, count", [(line(0, 0), 3), (line(1, 1), 3), (line(-2.5, -2.5), 3), (line(3, 1, 2), 0)]
)
def test_constant_map_or_count_zero_gives_no_detection(heatmap, count):
    found = detect_lesions(heatmap, count)
    assert found.threshold == math.inf and not found.labels.any()
    assert found.centres_zyx.shape == (0, 3)
    assert found.scores.shape == found.volumes_vox.shape == (0,)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_map_with_nan_or_infinity_is_refused(bad, count):
    with pytest.raises(InputError, match="NaN or infinity"):
        threshold_for_count(line(1, bad, 2), count)


@pytest.mark.parametrize("shape", [(1, 4, 4, 4), (0, 4, 4)])
def test_map_without_three_axes_is_refused(shape):
    with pytest.raises(InputError, match="shape"):
        threshold_for_count(np.ones(shape), 1)


def test_detections_have_centre_of_mass_peak_score_and_volume_strongest_first():
    heatmap = np.zeros((4, 5, 8))
    heatmap[1, 1, 1:4] = 0.5, 0.7, 0.6  # centre (1, 1, 2) whatever the weights
    heatmap[3, 3, 6] = 0.9
    found = components_above(heatmap, 0.5)
    np.testing.assert_allclose(found.centres_zyx, [[3, 3, 6], [1, 1, 2]])
    assert found.threshold == 0.5
    np.testing.assert_array_equal(found.scores, [0.9, 0.7])
    np.testing.assert_array_equal(found.volumes_vox, [1, 3])
    assert found.labels.dtype == np.int32
    assert found.labels[3, 3, 6] == 1 and (found.labels[1, 1, 1:4] == 2).all()


def test_equal_scores_stay_in_memory_order():
    found = components_above(line(5, 0, 5, 0, 5), 5)
    np.testing.assert_array_equal(found.centres_zyx[:, 2], [0, 2, 4])


def test_input_is_not_changed_and_repeats_bit_for_bit():
    heatmap = np.random.default_rng(0).standard_normal((9, 10, 11)).astype(np.float32)
    kept = heatmap.copy()
    first, second = detect_lesions(heatmap, 9), detect_lesions(heatmap[:, ::-1][:, ::-1], 9)
    np.testing.assert_array_equal(heatmap, kept)
    np.testing.assert_array_equal(first.labels, second.labels)


def test_voxels_filled_outside_never_pass_a_threshold():
    heatmap = line(7, 9, 2, 5, 3, 9)  # 2 is the lowest inside
    inside = np.array([0, 0, 1, 1, 1, 0], bool).reshape(1, 1, -1)
    filled = fill_outside(heatmap, inside)
    np.testing.assert_array_equal(filled, line(2, 2, 2, 5, 3, 2))
    for count in range(1, 5):
        assert not (detect_lesions(filled, count).labels > 0)[~inside].any()
    with pytest.raises(InputError, match="mask is empty"):
        fill_outside(heatmap, inside & False)


@pytest.mark.parametrize(
    "count, whole",
    [(0.5, 1), (1.5, 2), (2.5, 3), (2.499, 2), (-0.5, 0), (-7, 0), (0.5 - 2**-54, 0), (3, 3)]
    + [(np.float32(6.5), 7)],
)
def test_count_is_rounded_half_up_and_never_negative(count, whole):
    assert whole_count(count) == whole and isinstance(whole_count(count), int)


@pytest.mark.parametrize("count", [np.nan, np.inf])
def test_count_that_is_no_number_is_refused(count):
    with pytest.raises(InputError, match="diverged"):
        whole_count(count)
