"""Pictures: what is drawn where, labelled how, and the same bytes for the same data."""

import numpy as np
import pytest
from matplotlib.image import imread

from weakunet.evaluation.metrics import Tolerance
from weakunet.figures import counts, drawing, marks, methods, overlay, preprocess, training

SPACING = (2.0, 1.0, 0.5)  # z, y, x in mm


def blocks():
    """Labels 1 and 2 around (2, 3, 4) and (7, 5, 10), a heatmap and an image, all (9, 8, 16)."""
    labels = np.zeros((9, 8, 16), np.int32)
    labels[2, 3, 3:6] = 1
    labels[7, 4:7, 10] = 2
    heatmap = labels + np.random.default_rng(0).uniform(0, 0.1, labels.shape)
    return np.clip(heatmap / 2, 0, 1), heatmap, labels


def panels(figure, column):
    """The axes of one column, top to bottom."""
    return [axes for axes in figure.axes if axes.get_subplotspec().colspan.start == column]


def marks_in(axes):
    """Marker shape and colour -> list of (x, y), from everything plotted without a line."""
    found = {}
    for line in axes.lines:
        if line.get_linestyle() == "None" and len(line.get_xdata()):
            key = line.get_marker(), line.get_markeredgecolor()
            found.setdefault(key, []).extend(line.get_xydata().tolist())
    return found


def check_labels(figure):
    """Assert that every outer axis says what it shows and in which unit."""
    for axes in figure.axes:
        if axes.axison and axes.get_subplotspec().is_last_row():
            assert axes.get_xlabel()
        if axes.axison and axes.get_subplotspec().is_first_col():
            assert axes.get_ylabel()


def test_overlay_marks_hits_misses_and_false_alarms_where_they_are(drawn):
    lesions = [(2, 6, 14), (2, 3, 5)]  # the first is missed; the second is label 1's, 1 voxel off
    overlay.overlay("x.png", *blocks(), lesions, SPACING, Tolerance(2))
    (figure,) = drawn
    upper, lower = panels(figure, 1)
    assert marks_in(upper) == {
        ("o", drawing.GREEN): [[4 * 0.5, 3 * 1.0]],
        ("^", drawing.RED): [[14 * 0.5, 6 * 1.0]],
    }
    assert marks_in(lower) == {("s", drawing.BLUE): [[10 * 0.5, 5 * 1.0]]}
    rings = [line.get_xydata() for line in panels(figure, 0)[0].lines]
    np.testing.assert_allclose([ring.mean(0) for ring in rings], [[7, 6], [2.5, 3]], atol=0.05)
    np.testing.assert_allclose(np.ptp(rings[0], axis=0), [2 * 2 * 0.5, 2 * 2 * 1.0], rtol=0.01)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [name[-15:] for name in names[:4]] == [f"({n} in the scan)" for n in (1, 1, 1, 0)]
    assert names[4] == "every lesion, found or not (radius 2 voxels)"
    assert [text.split(":")[0] for text in names[:3]] == list(marks.MARKS)[:3]
    assert [axes.get_ylabel()[:11] for axes in panels(figure, 0)] == ["slice z = 2", "slice z = 7"]
    check_labels(figure)


def test_lesions_inside_a_detection_centred_elsewhere_are_marked_as_merged(drawn):
    """One long component over three lesions: its centre, x = 6, finds the middle one only."""
    labels = np.zeros((3, 5, 16), np.int32)
    labels[1, 2, 2:11] = 1
    lesions = [(1, 2, 2), (1, 2, 6), (1, 2, 10), (1, 2, 14)]  # the last lies outside
    judged, _ = marks.judge_detections(labels, lesions, None)
    places = {name: points[:, 2].tolist() for name, points in judged.items()}
    expected = {"true positives": [6], "false positives": [], "false negatives": [14]}
    assert places == expected | {"merged": [2, 10]}
    overlay.overlay("x.png", labels / 1, labels / 1, labels, lesions, (1, 1, 1))
    for column in (1, 2):
        found = marks_in(panels(drawn[0], column)[0])
        assert found["D", drawing.YELLOW] == [[2, 2], [10, 2]]
    assert len({shape for shape, _ in marks.MARKS.values()}) == 4


def test_rings_do_not_tell_found_from_missed_lesions(drawn):
    lesions = [(2, 3, 4), (2, 6, 14)]
    overlay.overlay("x.png", *blocks(), lesions, SPACING)
    rings = panels(drawn[0], 0)[0].lines
    assert {ring.get_color() for ring in rings} == {marks.TRUTH} and len(rings) == 2
    assert marks.TRUTH not in [colour for _, colour in marks.MARKS.values()]


def test_overlay_with_a_radius_in_millimetres_scores_in_millimetres(drawn):
    lesions = [(2, 3, 6)]  # 2 voxels and 1 mm away from label 1
    for radius_mm, mark in ((0.9, "s"), (1.0, "o")):
        overlay.overlay("x.png", *blocks(), lesions, SPACING, Tolerance(radius_mm=radius_mm))
        assert mark in {shape for shape, _ in marks_in(panels(drawn[-1], 1)[0])}
        ring = panels(drawn[-1], 0)[0].lines[0].get_xydata()
        np.testing.assert_allclose(np.ptp(ring, axis=0), 2 * radius_mm, rtol=0.01)


def test_overlay_without_the_truth_scores_nothing(drawn):
    overlay.overlay("x.png", *blocks(), None, SPACING)
    (figure,) = drawn
    assert marks_in(panels(figure, 1)[0]) == {("s", drawing.BLUE): [[4 * 0.5, 3 * 1.0]]}
    assert not panels(figure, 0)[0].lines
    assert len(figure.legends[0].get_texts()) == 1


def test_overlay_without_lesions_or_detections_shows_the_middle_slice(drawn):
    image, heatmap, labels = blocks()
    overlay.overlay("x.png", image, heatmap, labels * 0, np.zeros((0, 3)), SPACING)
    assert [axes.get_ylabel()[:11] for axes in panels(drawn[0], 0)] == ["slice z = 4"]


def test_overlay_keeps_the_voxels_proportions_and_the_front_up(drawn):
    image, heatmap, labels = blocks()
    overlay.overlay("x.png", image, heatmap, labels, None, SPACING)
    for axes in drawn[0].axes:
        left, right, bottom, top = axes.images[0].get_extent()
        assert (right - left, top - bottom) == (16 * 0.5, 8 * 1.0)
        assert axes.get_aspect() == 1 and axes.images[0].origin == "lower"
    shown = panels(drawn[0], 0)[0].images[0].get_array()
    np.testing.assert_array_equal(shown, image[2])


def test_busiest_slices_are_those_with_most_points_and_none_twice():
    points = [(4, 0, 0), (4.2, 0, 0), (5, 0, 0), (9, 0, 0), (1, 0, 0), (1, 1, 1), (12, 0, 0)]
    assert drawing.busiest_slices(points, 14) == [1, 4, 9]
    assert drawing.busiest_slices([(20, 0, 0)], 14) == [7]  # outside the scan


def test_training_curves_show_both_errors_the_mean_and_r(drawn):
    history = [(1, 1.0, 9, 8, 0.1, 3), (2, 1.0, 5, 4, 0.6, 3), (3, 0.3, 3, 4.5, np.nan, 3)]
    training.training_curves("x.png", history, mean_error=8.5)
    error, correlation = drawn[0].axes
    lines = {line.get_label(): line for line in error.lines}
    np.testing.assert_array_equal(lines["training (augmented)"].get_ydata(), [9, 5, 3])
    np.testing.assert_array_equal(lines["validation"].get_ydata(), [8, 4, 4.5])
    assert list(lines["predicting the mean"].get_ydata()) == [8.5, 8.5]
    assert "lowest: 4.00 at epoch 2" in lines
    np.testing.assert_array_equal(correlation.lines[0].get_ydata(), [0.1, 0.6, np.nan])
    check_labels(drawn[0])


@pytest.mark.filterwarnings("error")
def test_training_curves_of_nothing_nan_and_zero_are_drawn(drawn):
    training.training_curves("x.png", [(1, 1, 0, 0, np.nan, 0)], 0.0)
    training.training_curves("x.png", [])
    training.training_curves("x.png", [(1, 1, np.nan, np.nan, np.nan, 0)])
    assert len(drawn) == 3


def test_preprocess_figure_shows_the_middle_slice_of_every_step(drawn):
    steps = {f"step {k}": np.full((3, 4, 5), k, np.float32) for k in range(5)}
    steps["step 4"][1] = 7
    preprocess.preprocess_figure("x.png", steps | {"mask": np.ones((3, 4, 5), bool)}, SPACING)
    shown = [axes for axes in drawn[0].axes if axes.axison]
    assert len(shown) == 6 and shown[4].get_title() == "step 4: 4 to 7"
    assert (shown[4].images[0].get_array() == 7).all()


SCAN = np.random.default_rng(0).uniform(size=(3, 4, 5))
LINE = [{"fp_per_scan": 1, "tpr": 1}]
PICTURES = {
    "overlay": lambda path: overlay.overlay(path, *blocks(), [(2, 3, 5)], SPACING),
    "curves": lambda path: training.training_curves(path, [(1, 1, 2, 3, 0.5, 6)], 4),
    "steps": lambda path: preprocess.preprocess_figure(path, {"scan": SCAN}, SPACING),
    "maps": lambda path: methods.method_maps(
        path, SCAN, {"(a)": SCAN}, {"(a)": 0.5}, [(1, 2, 2)], SPACING
    ),
    "froc": lambda path: methods.froc_curves(
        path, {"a": [LINE, LINE]}, {"a": (1, 0.5)}, {"a": (2, 0.5)}
    ),
    "counts": lambda path: counts.counts_agreement(path, [1, 2], [1, 3]),
    "study": lambda path: counts.study_lines(
        path, "noise", "noise (%)", [("e", 1, 0.1, 0.2), ("e", 2, 0.3, 0.1)]
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_a_png_and_the_same_bytes_twice(name, tmp_path):
    first, second = tmp_path / "new folder" / "first.png", tmp_path / "second.png"
    PICTURES[name](first)
    PICTURES[name](second)
    assert first.read_bytes() == second.read_bytes()
    assert imread(first).std() > 0.01 and b"Software" not in first.read_bytes()
    assert [path.name for path in first.parent.iterdir()] == ["first.png"]  # nothing half-written
