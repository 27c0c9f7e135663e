"""Pictures of methods, counts and studies: what is drawn where, labelled how."""

import numpy as np
import pytest
from test_figures import SPACING

from weakunet.figures import counts, drawing, marks, methods


def curve(*points):
    return [{"fp_per_scan": x, "tpr": y} for x, y in points]


def marked(axes, hollow):
    """(x, y) of the markers drawn without a line, filled or hollow."""
    lines = [line for line in axes.lines if line.get_linestyle() == "None"]
    lines = [line for line in lines if (line.get_markerfacecolor() == "none") == hollow]
    return [tuple(point) for line in lines for point in line.get_xydata().tolist()]


def test_method_maps_show_one_slice_with_each_maps_own_scale_and_threshold(drawn):
    image = np.random.default_rng(0).uniform(size=(9, 8, 16))
    ramp = np.linspace(-5, 5, image.size).reshape(image.shape)
    spot = np.zeros(image.shape)
    spot[6, 3, 4:6] = 3.0  # one slice above the one shown
    centres = [(5, 3, 4), (5, 6, 10), (1, 2, 2)]
    maps, levels = {"(a) ramp": ramp, "(e) spot": spot}, {"(a) ramp": np.inf, "(e) spot": 2.0}
    methods.method_maps("x.png", image, maps, levels, centres, SPACING)
    panels = [axes for axes in drawn[0].axes if axes.images and axes.get_title()]
    low, high = (f"{end:.3g}" for end in np.percentile(ramp, [1, 99.9]))
    assert [axes.get_title().splitlines()[0] for axes in panels] == ["image, slice z = 5", *maps]
    assert panels[1].get_title().splitlines()[1] == f"black {low}, yellow {high}"
    np.testing.assert_array_equal(panels[0].images[0].get_array(), image[5])
    np.testing.assert_array_equal(panels[1].images[0].get_array(), ramp[6])  # highest of 4, 5, 6
    np.testing.assert_allclose(panels[1].images[0].get_clim(), np.percentile(ramp, [1, 99.9]))
    for axes in panels:
        rings = [x.get_xydata() for x in axes.lines if x.get_color() == marks.TRUTH]
        np.testing.assert_allclose([ring.mean(0) for ring in rings], [[2, 3], [5, 6]], atol=0.1)
    assert not sum(len(edges.get_segments()) for edges in panels[1].collections)
    judged = {line.get_marker(): line.get_xydata().tolist() for line in panels[2].lines[2:]}
    assert judged == {"o": [[2.25, 3]], "s": [], "^": [[5, 6]], "D": []}
    edges = np.array(panels[2].collections[0].get_segments())
    assert len(edges) == 6  # around two voxels
    np.testing.assert_allclose(edges.min((0, 1)), [3.5 * 0.5, 2.5])
    np.testing.assert_allclose(edges.max((0, 1)), [5.5 * 0.5, 3.5])
    assert panels[0].get_ylabel() == "y (mm)" and panels[0].get_xlabel() == "x (mm)"


def test_froc_draws_each_method_told_apart_without_colour(drawn):
    names = list("abcdefghijkl")
    curves = {name: [curve((1, 0.2), (2, 0.5))] for name in names}
    operating = {name: (1, 0.25) for name in names}
    methods.froc_curves("x.png", curves, operating, {"e": (1.9, 0.548)}, 4)
    (axes,) = drawn[0].axes
    lines = [line for line in axes.lines if line.get_linestyle() != "None"]
    assert [line.get_xydata().tolist() for line in lines] == [[[0, 0], [1, 0.2], [2, 0.5]]] * 12
    named = drawn[0].legends[0].legend_handles[:12]
    assert len({line.get_marker() for line in named}) == 12
    assert len({str(line._dash_pattern) for line in named}) == 12
    assert marked(axes, hollow=False) == [(1, 0.25)] * 12
    assert marked(axes, hollow=True) == [(1.9, 0.548)]
    assert axes.get_xlim() == (0, 4) and "FPav" in axes.get_xlabel() and "TPR" in axes.get_ylabel()
    texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert texts[:12] == names and "paper" in texts[-1]


def test_froc_of_seeds_is_their_mean_within_their_band_as_far_as_both_reach(drawn):
    seeds = [curve((1, 0.2), (2, 0.4)), curve((3, 0.9), (1, 0.6))]  # FPav in any order
    methods.froc_curves("x.png", {"e": seeds}, {"e": (1, 0.4)}, furthest=5)
    (axes,) = drawn[0].axes
    x, y = axes.lines[0].get_xydata().T
    assert x[-1] == 2
    for at, mean in ((0.5, 0.2), (1, 0.4), (2, (0.4 + 0.75) / 2)):
        assert np.interp(at, x, y) == pytest.approx(mean, abs=2e-3)
    band = axes.collections[0].get_paths()[0].vertices
    assert band[np.isclose(band[:, 0], 2), 1].max() == pytest.approx(0.75)
    assert band[np.isclose(band[:, 0], 2), 1].min() == pytest.approx(0.4)
    assert "seed" in axes.get_title()


def test_froc_that_falls_says_why(drawn):
    rising, falling = curve((1, 0.2), (2, 0.4)), curve((1, 0.4), (2, 0.2))
    for seeds, said in (
        ([rising], ""),
        ([falling], "grow into one another"),
        ([falling] * 2, "grow"),
    ):
        methods.froc_curves("x.png", {"e": seeds}, {"e": (1, 0.4)}, furthest=3)
        assert (said in drawn[-1].get_supxlabel()) and bool(said) == bool(drawn[-1].get_supxlabel())
    methods.froc_curves("x.png", {"e": [falling]}, {"e": (1, 0.4)}, furthest=1)
    assert not drawn[-1].get_supxlabel()  # nothing falls within the picture


def test_pictures_of_next_to_nothing_are_drawn(drawn):
    methods.froc_curves("x.png", {}, {})
    methods.froc_curves("x.png", {"a": [curve((1, np.nan))]}, {"a": (np.nan, np.nan)})
    assert drawn[1].axes[0].get_xlim() == (0, 1.5)
    flat, none = np.zeros((5, 4, 4)), np.zeros((0, 3))
    methods.method_maps("x.png", flat, {"(a)": flat}, {"(a)": np.inf}, none, SPACING)
    assert "slice z = 2" in drawn[2].axes[0].get_title()
    counts.counts_agreement("x.png", [2], [3])
    counts.counts_agreement("x.png", [], [])
    assert len(drawn) == 5


def test_counts_agreement_states_agreement_bias_and_limits(drawn):
    counts.counts_agreement("x.png", [0, 2, 6, 8], [1, 1, 6, 10])
    scatter, differences = drawn[0].axes
    assert scatter.get_title() == "R² 0.85   ICC(A,1) 0.95   MAE 1.00   MSE 1.50"
    x, y = scatter.lines[0].get_data()
    np.testing.assert_allclose(x, [0, 2, 6, 8], atol=0.18)
    np.testing.assert_array_equal(y, [1, 1, 6, 10])
    x, y = differences.lines[0].get_data()
    np.testing.assert_array_equal(x, [0.5, 1.5, 6, 9])
    np.testing.assert_array_equal(y, [1, -1, 0, 2])
    # differences 1, -1, 0, 2: mean 0.5, sd sqrt(5 / 3) = 1.2910, limits 0.5 -+ 1.96 x 1.2910
    assert [text.get_text() for text in differences.texts] == ["+0.50", "−2.03", "+3.03"]
    assert scatter.get_xlabel() == "true count (lesions), jittered by up to ±0.18"
    assert "predicted − true" in differences.get_ylabel()


def test_study_has_a_line_per_series_and_bars_over_the_seeds(drawn):
    rows = [("max", 50, 0.0, 0.1), ("max", 50, 0.3, 0.2), ("max", 100, 0.5, 0.6)]
    rows += [("ours", 50, 0.7, 0.8)]
    counts.study_lines("x.png", "scans", "training scans", rows, log_x=True)
    left, right = drawn[0].axes
    first, second = (container.lines for container in left.containers)
    assert first[0].get_marker() != second[0].get_marker()
    assert first[0].get_marker() == right.containers[0].lines[0].get_marker()
    np.testing.assert_allclose(first[0].get_xydata(), [[50, 0.15], [100, 0.5]])
    ends = first[2][0].get_segments()
    np.testing.assert_allclose(ends, [[[50, 0], [50, 0.3]], [[100, 0.5], [100, 0.5]]])
    np.testing.assert_allclose(second[0].get_xydata(), [[50, 0.7]])
    assert [text.get_text() for text in left.get_xticklabels()] == ["50", "100"]
    assert left.get_xlim()[0] < 50 and left.get_xlim()[1] > 100 and left.get_ylim()[1] >= 0.5
    assert [axes.get_ylabel()[:3] for axes in (left, right)] == ["R2 ", "TPR"]
    assert left.get_xlabel() == "training scans" and drawn[0].get_suptitle() == "scans"


def test_every_line_style_differs_in_line_and_marker():
    styles = [drawing.line_style(k) for k in range(len(drawing.LINES))]
    for key in ("color", "linestyle", "marker"):
        assert len({str(style[key]) for style in styles}) == len(styles)
