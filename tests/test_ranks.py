"""Thresholds found map by map are those of all voxels sorted together."""

import numpy as np
import pytest

from weakunet.evaluation import froc_thresholds as ranks


def sorted_together(heatmaps, levels):
    """The same thresholds from all voxels in memory."""
    above = [heatmap[heatmap > heatmap.min()] for heatmap in heatmaps]
    values = np.sort(np.concatenate(above))[::-1]
    distinct = np.unique(values)
    if len(distinct) > levels:
        places = np.geomspace(1, len(values), levels).round().astype(int) - 1
        distinct = np.unique(values[places])
    return distinct[::-1]


def map_by_map(heatmaps, levels):
    bins = ranks.add_up(map(ranks.count_bins, heatmaps))
    wanted = ranks.wanted_bins(bins, levels)
    values = ranks.add_up(ranks.count_values(heatmap, wanted) for heatmap in heatmaps)
    return ranks.thresholds(bins, values, levels)


DRAWS = {
    "both signs": lambda rng, shape: rng.normal(size=shape),
    "ties": lambda rng, shape: rng.integers(-3, 4, shape),
    "some 60 values": lambda rng, shape: rng.integers(0, 60, shape) / 7,
    "many magnitudes": lambda rng, shape: rng.exponential(size=shape) ** 9 * 1e-20,
    "one bin": lambda rng, shape: 1 + rng.integers(0, 500, shape) * 2.0**-22,
    "zeros of both signs": lambda rng, shape: rng.choice([-0.0, 0.0, -1.0, 1.0], shape),
}


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thresholds_are_those_of_all_voxels_sorted(kind, dtype, monkeypatch):
    monkeypatch.setattr(ranks, "PENDING", 300)  # so that some are added up on the way
    rng = np.random.default_rng(0)
    for _ in range(20):
        shapes = rng.integers(1, 9, (rng.integers(1, 5), 3))
        heatmaps = [DRAWS[kind](rng, tuple(shape)).astype(dtype) for shape in shapes]
        found = map_by_map(heatmaps, 15)
        assert np.array_equal(found, sorted_together(heatmaps, 15))


def test_constant_maps_have_no_threshold():
    assert len(map_by_map([np.ones((2, 3, 4), np.float32)], 15)) == 0
