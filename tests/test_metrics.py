"""Detection and count metrics on examples worked by hand, and against a brute-force matching."""

import itertools
import math

import numpy as np
import pytest

from weakunet.evaluation.froc import froc_by_count, froc_by_threshold
from weakunet.evaluation.metrics import (
    RATES,
    count_hits,
    count_metrics,
    detection_metrics,
    icc_a1,
    match_detections,
)


def at(*positions):
    """Points on the x axis."""
    return np.array([(0, 0, x) for x in positions]).reshape(-1, 3)


# -- matching: every difference between tools ----------------------------------


@pytest.mark.parametrize(
    "detections, lesions, radius, pairs",
    [
        ((3,), (0,), 3, [(0, 0)]),  # at the radius is a hit
        ((3.001,), (0,), 3, []),
        # the radius gates before the assignment: the least total distance pairs 2.9 with 0
        ((2.9, 100), (0, 3), 2, [(0, 1)]),
        # most pairs before the least distance: nearest-first takes 2-2 and leaves 4-0 unmatched
        ((2, 4), (0, 2), 2, [(0, 0), (1, 1)]),
        # between equally many pairs the least total distance
        ((1, 2), (1.5, 2.5), 3, [(0, 0), (1, 1)]),
        ((2, 1), (1.5, 2.5), 3, [(0, 1), (1, 0)]),
        ((0.5, 1), (0,), 3, [(0, 0)]),  # two detections at one lesion: one is false
        ((1, 0.5), (0,), 3, [(1, 0)]),
        ((1,), (0, 2), 3, [(0, 0)]),  # one detection between two lesions finds one
        ((), (), 3, []),
        ((), (1,), 3, []),
    ],
)
def test_matching_by_hand(detections, lesions, radius, pairs):
    found = match_detections(at(*detections), at(*lesions), radius)
    assert found == pairs
    hits = len(pairs), len(detections) - len(pairs), len(lesions) - len(pairs)
    assert count_hits(at(*detections), at(*lesions), radius) == hits


def test_distance_equal_to_the_radius_is_a_hit_after_a_trip_through_millimetres():
    lesion, detection = np.array([[10.1, 7.3, 4.7]]), np.array([[10.1, 7.3, 7.7]])
    by_affine = detection * 0.49 / 0.49 + 4e-9
    assert np.linalg.norm(by_affine - lesion) > 3
    assert match_detections(by_affine, lesion, radius=3) == [(0, 0)]


def test_radius_in_millimetres_weighs_the_axes_by_their_spacing():
    spacing = (0.8, 0.49, 0.49)
    lesion, up, right = [(5, 5, 5)], [(7, 5, 5)], [(5, 5, 8)]  # 1.6 mm up, 1.47 mm to the right
    assert len(match_detections(up, lesion, 1.5, spacing)) == 0
    assert len(match_detections(right, lesion, 1.5, spacing)) == 1
    assert len(match_detections(up, lesion, 1.5)) == len(match_detections(right, lesion, 1.5)) == 0


@pytest.mark.parametrize("seed", range(6))
def test_matching_of_random_points_is_the_best_of_all_matchings(seed):
    rng = np.random.default_rng(seed)
    detections, lesions = rng.uniform(0, 8, (4, 3)), rng.uniform(0, 8, (5, 3))
    distance = np.linalg.norm(detections[:, None] - lesions[None], axis=-1)
    best = (0, 0.0)  # (-pairs, total distance) over every choice of a lesion or none per detection
    for choice in itertools.product([None, *range(5)], repeat=4):
        pairs = [(i, j) for i, j in enumerate(choice) if j is not None]
        taken = [j for _, j in pairs]
        if len(set(taken)) == len(taken) and all(distance[pair] <= 4 for pair in pairs):
            best = min(best, (-len(pairs), sum(distance[pair] for pair in pairs)))
    ours = match_detections(detections, lesions, radius=4)
    assert len(ours) == -best[0]
    assert sum(distance[pair] for pair in ours) == pytest.approx(best[1])


# -- rates ---------------------------------------------------------------------


def test_rates_by_hand_with_a_lesion_free_scan():
    # scan 1: 1 of 1 lesion, no FP; scan 2: 1 of 4, 1 FP; scan 3: no lesion, 2 FPs
    rates = detection_metrics([(1, 0, 0), (1, 1, 3), (0, 2, 0)])
    assert rates["tpr"] == pytest.approx(2 / 5)  # pooled over the five lesions
    assert rates["tpr_per_scan"] == pytest.approx((1 + 1 / 4) / 2)  # over the two scans with any
    assert rates["fdr"] == pytest.approx(3 / 5)
    assert rates["fp_per_scan"] == pytest.approx(3 / 3)  # over all three


@pytest.mark.parametrize(
    "hits, undefined",
    [
        ([(0, 2, 0)], {"tpr", "tpr_per_scan"}),  # no lesions
        ([(0, 0, 3)], {"fdr"}),  # no detections
        ([(0, 0, 0)], {"tpr", "tpr_per_scan", "fdr"}),
        ([], set(RATES)),  # no scans
    ],
)
def test_rates_that_are_not_defined_are_nan(hits, undefined):
    rates = detection_metrics(hits)
    for name in RATES:
        assert math.isnan(rates[name]) == (name in undefined)
        assert all(math.isnan(end) == (name in undefined) for end in rates[f"{name}_ci95"])


def test_bootstrap_interval_is_the_binomial_one():
    # 100 scans of one lesion each, 60 found: the TPR of a draw is Binomial(100, 0.6) / 100
    hits = [(1, 0, 0)] * 60 + [(0, 1, 1)] * 40
    rates = detection_metrics(hits, seed=1)
    exact = [0.50, 0.69]  # 2.5 % and 97.5 % quantiles of that binomial
    np.testing.assert_allclose(rates["tpr_ci95"], exact, atol=0.011)
    np.testing.assert_allclose(rates["fp_per_scan_ci95"], [1 - exact[1], 1 - exact[0]], atol=0.011)


def test_bootstrap_repeats_with_its_seed_and_draws_whole_scans():
    hits = np.random.default_rng(0).integers(0, 4, (12, 3))
    assert detection_metrics(hits, seed=5) == detection_metrics(hits, seed=5)
    assert detection_metrics(hits, seed=5) != detection_metrics(hits, seed=6)
    equal = detection_metrics([(1, 2, 3)] * 9)  # nothing varies between scans
    assert equal["tpr_ci95"] == [0.25, 0.25] and equal["fp_per_scan_ci95"] == [2, 2]


def test_bootstrap_leaves_out_draws_without_lesions():
    rates = detection_metrics([(1, 0, 1)] + [(0, 1, 0)] * 5)  # a third of the draws: no lesion
    assert rates["tpr_ci95"] == [0.5, 0.5]


# -- FROC ----------------------------------------------------------------------


def blobs(values, length=12):
    """A map that is 0 but for single voxels {x: value} on its x axis."""
    heatmap = np.zeros((1, 1, length), np.float32)
    for x, value in values.items():
        heatmap[0, 0, x] = value
    return heatmap


def test_froc_reaches_full_sensitivity_at_the_lowest_score():
    # false positive 0.9, true positive 0.3, one lesion
    curve = froc_by_threshold([blobs({1: 0.9, 9: 0.3})], [at(9)])
    assert [(p["fp_per_scan"], p["tpr"]) for p in curve] == [(1, 0), (1, 1)]
    assert [p["threshold"] for p in curve] == pytest.approx([0.9, 0.3])


def test_froc_has_one_threshold_over_all_scans():
    heatmaps = [blobs({1: 0.9, 9: 0.5}), blobs({2: 0.7})]
    curve = froc_by_threshold(heatmaps, [at(1), at()], radius=1)  # second scan: no lesion
    points = [(p["threshold"], p["fp_per_scan"], p["tpr"]) for p in curve]
    expected = [(0.9, 0, 1), (0.7, 0.5, 1), (0.5, 1, 1)]
    np.testing.assert_allclose(points, expected, atol=1e-6)


def test_froc_matches_again_at_each_threshold():
    """A weak detection on the lesion takes no hit from a strong one beside it (picai_eval's does).

    The strong one, 0.9, is 2 voxels off; the weak one, 0.5, is nearer and matched once it counts.
    """
    curve = froc_by_threshold([blobs({3: 0.9, 5: 0.5})], [at(5)])
    assert [(p["fp_per_scan"], p["tpr"]) for p in curve] == [(0, 1), (1, 1)]


def test_froc_threshold_below_one_scans_minimum_lets_no_background_pass():
    low, high = blobs({3: 0.5}), blobs({3: 0.9}) + 2  # minimum 2 > all of the first map
    curve = froc_by_threshold([low, high], [at(3), at(3)], radius=0.5)
    assert curve[-1]["tpr"] == 1 and curve[-1]["fp_per_scan"] == 0


def test_froc_of_many_levels_keeps_the_first_and_the_last():
    heatmap = np.random.default_rng(0).permutation(1000).reshape(10, 10, 10).astype(np.float32)
    curve = froc_by_threshold([heatmap], [at(4)], levels=15)
    thresholds = [p["threshold"] for p in curve]
    assert thresholds[0] == 999 and thresholds[-1] == 1 and len(thresholds) <= 15
    assert thresholds == sorted(thresholds, reverse=True)


def test_froc_by_count_scales_and_rounds_each_scans_count():
    # 4 blobs; lesions at the two strongest; predicted count 1.3
    heatmap = blobs({1: 0.9, 4: 0.8, 7: 0.7, 10: 0.6}, 14)
    curve = froc_by_count([heatmap], [1.3], [at(1, 4)], radius=1, scales=(0.3, 1, 2, 3))
    # 0.39, 1.3, 2.6, 3.9 round to 0, 1, 3, 4 components
    points = [(p["scale"], p["fp_per_scan"], p["tpr"]) for p in curve]
    assert points == [(0.3, 0, 0), (1, 0, 0.5), (2, 1, 1), (3, 2, 1)]


def test_froc_of_constant_maps_is_an_empty_curve():
    assert froc_by_threshold([np.ones((2, 2, 2), np.float32)], [at(1)]) == []
    assert froc_by_count([np.ones((2, 2, 2))], [3], [at(1)], scales=(1,))[0]["tpr"] == 0


# -- counts --------------------------------------------------------------------


def test_count_metrics_by_hand():
    # errors 1, -1, 0, 2; mean of truth 4, spread 16 + 4 + 4 + 16
    figures = count_metrics([0, 2, 6, 8], [1, 1, 6, 10])
    assert figures["count_mse"] == pytest.approx(6 / 4)
    assert figures["count_mae"] == pytest.approx(4 / 4)
    assert figures["count_r2"] == pytest.approx(1 - 6 / 40)
    # scans' means .5, 1.5, 6, 9 (about 4.25); raters' means 4, 4.5; half the errors' sum of squares
    # about their mean .5 is .5 * (.25 + 2.25 + .25 + 2.25)
    ms_rows, ms_columns, ms_rest = 2 * 47.25 / 3, 4 * 0.125 / 1, 2.5 / 3
    between = ms_rows + ms_rest + 2 * (ms_columns - ms_rest) / 4
    assert figures["count_icc"] == pytest.approx((ms_rows - ms_rest) / between)


def test_icc_of_shrout_and_fleiss_example_is_theirs():
    # Shrout and Fleiss (1979), Table 2: six targets, four judges; ICC(2,1) = .29
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    assert icc_a1(np.array(ratings)) == pytest.approx(0.2898, abs=5e-5)


def test_icc_sees_the_offset_that_r_is_blind_to():
    true = np.array([1.0, 2, 3, 4, 5])
    assert count_metrics(true, true + 3)["count_r"] == pytest.approx(1)
    assert count_metrics(true, true)["count_icc"] == pytest.approx(1)
    # MS_rows 5, MS_columns 22.5, MS_rest 0: 5 / (5 + 2 * 22.5 / 5)
    assert count_metrics(true, true + 3)["count_icc"] == pytest.approx(5 / 14)


def test_count_metrics_that_are_not_defined_are_nan():
    mean = count_metrics([1, 2, 6], [3, 3, 3])
    assert mean["count_r2"] == pytest.approx(0) and math.isnan(mean["count_r"])
    constant = count_metrics([4, 4, 4], [3, 4, 5])
    assert math.isnan(constant["count_r2"]) and math.isnan(constant["count_r"])
    assert constant["count_mse"] == pytest.approx(2 / 3)
    assert math.isnan(count_metrics([4, 4], [4, 4])["count_icc"])  # nothing varies
    assert all(math.isnan(value) for value in count_metrics([], []).values())
    one = count_metrics([2], [3])
    assert one["count_mae"] == 1 and math.isnan(one["count_icc"]) and math.isnan(one["count_r2"])
