"""Canvases of digits: right labels, no digit in two splits, and the same commands run on them."""

import json
import sys

import make_digits
import nibabel
import numpy as np
import pytest
from helpers import exit_code, refusal, rows

from weakunet import evaluate, predict, train
from weakunet.data.cohort import read_cohort
from weakunet.data.load import load_scan

NUMBERS = ["--train", "6", "--val", "3", "--test", "4"]


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn", reason="no scikit-learn: see data_tools/requirements.txt")
    return make_digits.load_digits()


@pytest.fixture(scope="module")
def cohort(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    make_digits.main(["--out", str(folder), "--digit", "4", "--seed", "1", *NUMBERS])
    return folder / "cohort.csv"


def test_no_image_is_in_two_splits(digits):
    seen = [{image.tobytes() for image in images} for images, _ in digits.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 1797
    for _, classes in digits.values():
        assert np.bincount(classes).min() > 30  # of every digit


def test_label_is_the_number_of_the_class_at_its_centres_from_its_own_split(digits, cohort):
    table = read_cohort(cohort)
    assert [scan.split for scan in table] == ["train"] * 6 + ["val"] * 3 + ["test"] * 4
    assert sum(scan.count for scan in table) > 10
    for scan in table:
        loaded = load_scan(scan)
        assert loaded.volume.array.shape == (1, 48, 48) and loaded.volume.array.min() > 0
        assert len(loaded.centres_zyx) == scan.count
        for centre in loaded.centres_zyx:
            z, y, x = (centre - (0, 3.5, 3.5)).astype(int)
            patch = loaded.volume.array[z, y : y + 8, x : x + 8]
            nearest = {}
            for split, (images, classes) in digits.items():
                error = ((make_digits.PAPER + make_digits.INK * images - patch) ** 2).mean((1, 2))
                nearest[split] = error.min(), classes[error.argmin()]
            assert min(nearest, key=nearest.get) == scan.split
            assert nearest[scan.split][1] == 4


def test_ink_does_not_tell_the_count_and_digits_stay_apart(digits):
    canvases = [make_digits.make_canvas(digits, 3, 0, "train", i) for i in range(400)]
    counts = [canvas.count for canvas in canvases]
    assert sorted(set(counts)) == [0, 1, 2, 3, 4, 5]
    brightness = [canvas.volume.array.mean() for canvas in canvases]
    assert abs(np.corrcoef(counts, brightness)[0, 1]) < 0.12
    for i in range(50):
        corners = make_digits.draw_corners(np.random.default_rng(i), 10)
        apart = abs(corners[:, None] - corners).max(axis=2)[np.triu_indices(10, 1)]
        assert apart.min() >= 9 and corners.min() >= 2 and corners.max() <= 48 - 8 - 2


def test_a_canvas_is_the_same_however_many_others_are_made(digits, cohort, tmp_path):
    some = ["--train", "2", "--val", "0", "--test", "3"]
    make_digits.main(["--out", str(tmp_path), "--digit", "4", "--seed", "1", *some])
    for name in ("train0001.nii.gz", "test0002.nii.gz", "test0002_centres.csv"):
        assert (tmp_path / name).read_bytes() == (cohort.parent / name).read_bytes()


def test_the_commands_for_scans_run_on_canvases(cohort, tmp_path):
    out, predicted, evaluated = (tmp_path / name for name in ("run", "predictions", "evaluation"))
    options = ["--epochs", "1", "--channels", "2", "3", "4", "--flips=", "--device", "cpu"]
    assert exit_code(train.main, "--data", cohort, "--out", out, *options) == 0
    same = ("--data", cohort, "--jobs", "1", "--out")
    assert exit_code(predict.main, "--model", out / "best.npz", *same, predicted) == 0
    assert exit_code(evaluate.main, "--predictions", predicted, *same, evaluated) == 0
    trained, evaluated = (
        json.loads((folder / "metrics.json").read_text()) for folder in (out / "test", evaluated)
    )
    assert trained == evaluated and set(trained) == {"intensities", "regression_fcn"}
    assert nibabel.load(predicted / "test0000_heatmap.nii.gz").shape == (48, 48, 1)
    assert {row["k"] for row in rows(predicted / "detections.csv")} == {"0.0"}


def test_without_scikit_learn_one_line_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    line = refusal(capsys, make_digits.main, "--out", tmp_path / "out")
    assert "pip install scikit-learn" in line and not (tmp_path / "out").exists()
