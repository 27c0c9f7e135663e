"""The comparison's statistics against answers worked out by hand."""

import numpy as np
import pytest

from weakunet.compare import statistics as compare_stats
from weakunet.compare.methods import SeedResult
from weakunet.evaluation.evaluator import Score
from weakunet.evaluation.metrics import interval


def mean_rates(hits, draws=None):
    found = compare_stats.mean_rates(hits, draws)
    return np.array([found[name] for name in ("tpr", "fp_per_scan", "fdr")])


def test_mean_rates_average_seeds_and_not_lesions():
    hits = [[[1, 0, 0]], [[0, 4, 9]]]  # one scan per seed: TPR 1 of 1 and 0 of 9
    np.testing.assert_allclose(mean_rates(hits), [0.5, 2.0, 0.5])


def test_mean_rates_when_a_seed_has_no_detection():
    hits = [[[0, 0, 5]], [[3, 1, 1]]]  # an FDR of the first is not defined
    np.testing.assert_allclose(mean_rates(hits), [3 / 8, 0.5, 0.25])


def test_bootstrap_of_constant_scans_has_no_width():
    hits = np.tile([1, 2, 3], (4, 6, 1))
    resampled = mean_rates(hits, compare_stats.draw(4, 6, resamples=50))
    assert interval(resampled[1]) == [2.0, 2.0]
    assert resampled.shape == (3, 50)


def test_bootstrap_draws_seeds_as_well_as_scans():
    # scans of a seed are equal, so only the draw of seeds can spread the resampled means
    hits = np.stack([np.tile([k, 0, 4 - k], (6, 1)) for k in range(5)])
    low, high = interval(mean_rates(hits, compare_stats.draw(5, 6, resamples=400))[0])
    assert low < 0.3 and high > 0.7


CURVE = [{"fp_per_scan": 1.0, "tpr": 0.5}, {"fp_per_scan": 3.0, "tpr": 0.9}]


@pytest.mark.parametrize(("fp", "tpr"), [(0.5, 0.25), (2.0, 0.7), (10.0, 0.9), (0.0, 0.0)])
def test_tpr_at_is_linear_from_the_origin_and_level_at_the_end(fp, tpr):
    assert compare_stats.tpr_at(CURVE, fp) == pytest.approx(tpr)


def test_froc_area_of_a_triangle():
    # from (0, 0) to (1, .5) to (3, .9): 0.25 + 1.4, over a width of 3
    assert compare_stats.froc_area(CURVE, 3.0) == pytest.approx(1.65 / 3, abs=1e-3)


def seed_result(seed, hits):
    curve = [{"scale": 1.0, "fp_per_scan": 1.0, "tpr": 0.5}]
    scores = {
        name: [Score(f"s{i}", i + 1, 2.0**i, hits=own[i], hits_true_count=own[i]) for i in range(3)]
        for name, own in hits.items()
    }
    return SeedResult(seed, "lmax", scores, dict.fromkeys(hits, curve), {}, 0.5, None)


def test_summarise_pairs_the_scans_of_both_methods():
    rng = np.random.default_rng(0)
    best = rng.integers(0, 5, (3, 3))
    worse = best + [0, 1, 1]  # always one false positive and one miss more
    best[:, 0] += 20
    worse[:, 0] += 20
    table = compare_stats.summarise(
        [seed_result(s, {"intensities": worse, "regression_fcn": best}) for s in (1, 2)]
    )
    own, other = table["regression_fcn"], table["intensities"]
    assert other["tpr_minus_best"] == pytest.approx(other["tpr"] - own["tpr"])
    low, high = other["tpr_minus_best_ci95"]
    width_unpaired = own["tpr_ci95"][1] - own["tpr_ci95"][0]
    assert low <= other["tpr_minus_best"] <= high < 0
    assert high - low < 0.5 * width_unpaired  # the same draws for both: their noise cancels
    assert own["tpr_minus_best"] == 0
    assert own["count_mse"] == pytest.approx(1 / 3) and "count_mse" not in other
