"""Evaluation on maps worked by hand, and the command from files to tables."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import contents, refusal, rows

from weakunet import evaluate as command
from weakunet.data.cohort import LoadedScan, Scan, write_cohort
from weakunet.data.volumes import Volume, index_to_world, write_volume
from weakunet.evaluation.evaluator import Evaluation, Score, evaluate_counts, evaluate_maps
from weakunet.evaluation.froc import froc_by_threshold
from weakunet.evaluation.metrics import Tolerance
from weakunet.evaluation.predictions import read_predictions
from weakunet.evaluation.tables import per_scan_rows, text_table, write_tables
from weakunet.figures.evaluation import draw_evaluation
from weakunet.util.cli import InputError, write_csv

AFFINE = np.array([[-0.5, 0, 0, 9], [0, 0.5, 0, -4], [0, 0, 0.8, 2], [0, 0, 0, 1.0]])
SHAPE = (5, 6, 20)


def dots(*places):
    """A map that is 0 but for single voxels: (z, y, x, value)."""
    array = np.zeros(SHAPE, np.float32)
    for z, y, x, value in places:
        array[z, y, x] = value
    return array


def scan(subject, centres, image):
    volume = Volume(image, np.diag([0.5, 0.5, 0.8, 1]))
    return LoadedScan(subject, volume, len(centres), np.reshape(centres, (-1, 3)))


@pytest.fixture
def two():
    """Two scans, their counts 2 and 0, and a heatmap each; the heatmaps find 1 of 2 and 1 too many.

    Scan a: lesions at x = 2 and 12; the heatmap's dots at 3 and 18, the image's at 2 and 12.
    Scan b: no lesion; the heatmap's strongest dot at 5, the count predicted 0.6 rounds to 1.
    """
    image_a = dots((2, 3, 2, 0.9), (2, 3, 12, 0.8), (0, 0, 7, 0.1))
    image_b = dots((1, 1, 4, 0.5), (0, 0, 9, 0.1))
    heatmaps = [dots((2, 3, 3, 5), (2, 3, 18, 4), (4, 5, 12, -1)), dots((3, 3, 5, 1))]
    scans = [scan("a", [(2, 3, 2), (2, 3, 12)], image_a), scan("b", [], image_b)]
    return scans, [2.4, 0.6], {"intensities": [image_a, image_b], "regression_fcn": heatmaps}


def test_evaluation_of_two_scans_by_hand(two):
    result = evaluate_maps(*two)
    network, image = result.metrics["regression_fcn"], result.metrics["intensities"]
    assert (network["tpr"], network["tpr_per_scan"], network["fp_per_scan"]) == (0.5, 0.5, 1)
    assert network["fdr"] == pytest.approx(2 / 3)
    assert (image["tpr"], image["fp_per_scan"]) == (1, 0.5)
    assert network["count_mse"] == pytest.approx((0.4**2 + 0.6**2) / 2)
    assert "count_mse" not in image
    assert (network["scans"], network["lesions"], network["count_scans"]) == (2, 2, 2)
    found = [row for row in per_scan_rows(result) if row[1] == "regression_fcn"]
    assert found[0] == ("a", "regression_fcn", 2, 2.4, 4.0, 2, 1, 1, 1, 0.5)
    assert found[1] == ("b", "regression_fcn", 0, 0.6, 1.0, 1, 0, 1, 0, "")
    doubled = next(point for point in result.curves["intensities"] if point["scale"] == 2)
    # counts 5 and 1: one more blob in scan a, the same one in scan b
    assert (doubled["tpr"], doubled["fp_per_scan"]) == (1, (1 + 1) / 2)


def test_radius_in_millimetres_uses_the_scans_spacing(two):
    scans, counts, maps = two  # the hit is one voxel of 0.5 mm away
    for radius_mm, tpr in ((0.4, 0), (0.5, 0.5)):
        result = evaluate_maps(scans, counts, maps, tolerance=Tolerance(radius_mm=radius_mm))
        assert result.metrics["regression_fcn"]["tpr"] == tpr
        at_count = next(p for p in result.curves["regression_fcn"] if p["scale"] == 1)
        assert at_count["tpr"] == result.by_threshold["regression_fcn"][0]["tpr"] == tpr
    result = evaluate_maps(scans, counts, maps, tolerance=Tolerance(0.9))
    assert result.metrics["regression_fcn"]["tpr"] == 0


def test_each_method_may_have_its_own_counts(two):
    scans, counts, maps = two
    result = evaluate_maps(scans, {"intensities": [1, 0], "regression_fcn": counts}, maps)
    found = per_scan_rows(result)
    assert [row[5] for row in found] == [1, 0, 2, 1]
    assert found[1][4] == math.inf  # count 0: nothing passes


def test_scan_without_a_count_is_left_out_of_the_count_figures(two):
    scans, counts, maps = two
    scans[0].count = None
    result = evaluate_maps(scans, counts, maps)
    assert result.metrics["regression_fcn"]["count_mae"] == pytest.approx(0.6)
    assert result.metrics["regression_fcn"]["tpr"] == 0.5


def test_scan_with_a_slice_is_scored_in_that_slice(two):
    """Two lesions and, as components, two dots in slice 2; stronger dots and a lesion above it."""
    scans, counts, maps = two
    first = scans[0]
    first.slice_index, scans[1].slice_index = 2, 0
    first.centres_zyx = np.array([(2.4, 3, 2), (2, 3, 12), (3, 3, 12)])
    heatmap = maps["regression_fcn"][0]
    heatmap[3, 3:5, 3:14] = 9  # outside the slice, and joining its dots above it
    result = evaluate_maps(scans, counts, maps)
    found = [row for row in per_scan_rows(result) if row[1] == "regression_fcn"]
    assert found[0] == ("a", "regression_fcn", 2, 2.4, 4.0, 2, 1, 1, 1, 0.5)
    assert found[1][5:9] == (0, 0, 0, 0)  # nothing but background in slice 0
    most = max(point["fp_per_scan"] for point in result.curves["regression_fcn"])
    assert most == 0.5
    assert first.volume.array.shape == SHAPE and len(first.centres_zyx) == 3  # left as they were


def test_the_threshold_froc_is_that_of_all_maps_together(two):
    scans, counts, maps = two
    result = evaluate_maps(scans, counts, maps)
    lesions = [scan.centres_zyx for scan in scans]
    for method, own in maps.items():
        assert result.by_threshold[method] == froc_by_threshold(own, lesions)
    # above 5, 4 and 1 the heatmaps show 1, 2 and 3 dots, of which the first is a hit
    points = [(p["threshold"], p["tpr"]) for p in result.by_threshold["regression_fcn"]]
    assert points[:3] == [(5, 0.5), (4, 0.5), (1, 0.5)]


# -- scans without centres ------------------------------------------------------------------------


def test_scan_with_lesions_but_no_centres_is_scored_by_its_count_only(two):
    scans, counts, maps = two
    known = evaluate_maps(*two)
    scans.append(LoadedScan("c", scans[1].volume, 3, None))
    maps = {name: [*own, own[0]] for name, own in maps.items()}
    result = evaluate_maps(scans, [*counts, 5.0], maps)
    network, before = result.metrics["regression_fcn"], known.metrics["regression_fcn"]
    assert network["count_mae"] == pytest.approx((0.4 + 0.6 + 2) / 3)
    for name in ("tpr", "fp_per_scan", "fdr", "fdr_ci95", "scans"):
        assert network[name] == before[name]
    assert result.curves == known.curves and result.by_threshold == known.by_threshold
    assert per_scan_rows(result)[-1][:4] == ("c", "regression_fcn", 3, 5.0)
    assert per_scan_rows(result)[-1][6:] == ("", "", "", "")
    assert "judged by their counts only: c" in text_table(result)


def test_scans_without_lesions_do_not_stand_for_the_localisation_of_others(two):
    scans, counts, maps = two
    scans[0].centres_zyx = None  # count 2: where they are is not known
    result = evaluate_maps(scans, counts, maps)
    (network,) = result.metrics.values()
    assert "fp_per_scan" not in network and network["count_scans"] == 2 and not result.curves
    assert "only the counts can be judged" in text_table(result)
    assert evaluate_counts(scans, counts).metrics == result.metrics


# -- the tables and pictures ----------------------------------------------------------------------


def test_columns_of_the_printed_table_never_run_together():
    wide = {"tpr": 1.0, "tpr_ci95": [1.0, 1.0], "fp_per_scan": 1234.5, "fdr": 0.5}
    wide |= {"fp_per_scan_ci95": [1000.25, 2000.25], "count_r2": -1234.5, "count_icc": 0.5}
    scores = [Score("a", 1, 1.0, hits=(1, 0, 0))]
    text = text_table(Evaluation({"a_method_of_a_very_long_name_indeed": scores}, {"a" * 40: wide}))
    cells = ["a" * 40, "100.0 [100.0, 100.0]", "1234.50 [1000.25, 2000.25]", "50.0", "-1234.50"]
    assert re.split(r" {2,}", text.splitlines()[1]) == [*cells, "0.50"]


@pytest.mark.filterwarnings("error")
def test_what_is_not_defined_is_null_in_the_tables_and_words_in_print(two, tmp_path):
    scans, counts, maps = two
    text = text_table(evaluate_maps(scans, [0, 0], maps))
    assert "no detections" in text and "nan" not in text
    none = [dataclasses.replace(scan, count=0, centres_zyx=np.zeros((0, 3))) for scan in scans]
    for predicted, fp_per_scan in (([0, 0], 0), (counts, 1.5)):
        result = evaluate_maps(none, predicted, maps)
        write_tables(result, tmp_path)
        draw_evaluation(result, tmp_path)
        written = json.loads((tmp_path / "metrics.json").read_text())["regression_fcn"]
        assert written["tpr"] is None and written["tpr_ci95"] == [None, None]
        assert written["fp_per_scan"] == fp_per_scan and "no lesions" in text_table(result)
    tables = {"metrics.json", "per_scan.csv", "froc.csv"}
    pictures = {"froc.png", "counts.png", "a_overlay.png", "b_overlay.png"}
    assert {path.name for path in tmp_path.iterdir()} == tables | pictures


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def pictures():
    """Asks `folders` for pictures, which take most of the time."""


@pytest.fixture
def folders(two, tmp_path, monkeypatch, request):
    """The same two scans as files, stored with x to the left, and predictions on them."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(command, "draw_evaluation", lambda result, out: None)
    scans, counts, maps = two
    cohort = []
    for i, loaded in enumerate(scans):
        name, stored = loaded.subject, Volume(loaded.volume.array, AFFINE)
        write_volume(tmp_path / f"{name}.nii.gz", loaded.volume.array, stored)
        centres = index_to_world(stored, loaded.centres_zyx)
        write_csv(tmp_path / f"{name}.csv", ("x_mm", "y_mm", "z_mm"), centres)
        heatmap = tmp_path / "predicted" / f"{name}_heatmap.nii.gz"
        write_volume(heatmap, maps["regression_fcn"][i], stored)
        paths = {"image": tmp_path / f"{name}.nii.gz", "centres": tmp_path / f"{name}.csv"}
        cohort.append(Scan(name, count=loaded.count, split="test", **paths))
    write_cohort(tmp_path / "cohort.csv", cohort)
    header = ("subject", "count_predicted", "n_detected", "threshold")
    predictions = [("a", counts[0], 2, 4.0), ("b", counts[1], 1, 1.0)]
    write_csv(tmp_path / "predicted" / "predictions.csv", header, predictions)
    return tmp_path


def evaluate(folder, *options):
    """Run the command, into a new folder; its metrics."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    command.main([*arguments(folder), *options])
    return metrics(folder)


def metrics(folder):
    return json.loads((folder / "out" / "metrics.json").read_text())


def per_scan(folder):
    return rows(folder / "out" / "per_scan.csv")


def arguments(folder):
    named = {"predictions": "predicted", "data": "cohort.csv", "out": "out"}
    return [*(f"--{name}={folder / path}" for name, path in named.items()), "--jobs=1"]


def change(folder, *pairs, path="cohort.csv"):
    """Replace text in one of the command's tables."""
    text = (folder / path).read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (folder / path).write_text(text)


def add_columns(folder, *columns):
    lines = (folder / "cohort.csv").read_text().splitlines()
    lines = [",".join(cells) for cells in zip(lines, *columns, strict=True)]
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")


def test_command_gives_the_figures_of_the_arrays(two, folders):
    assert evaluate(folders, "--seed", "3") == evaluate_maps(*two, seed=3).metrics
    found = [(row["subject"], row["tp"], row["fp"], row["fn"]) for row in per_scan(folders)]
    assert found[2:] == [("a", "1", "1", "1"), ("b", "0", "1", "0")]
    assert {row["sweep"] for row in rows(folders / "out" / "froc.csv")} == {"count", "threshold"}


@pytest.mark.parametrize("raw", [False, True])
def test_command_reads_the_slice_from_the_table(folders, raw):
    add_columns(folders, ("slice_z_mm", "3.6", "2.8"))  # slices 2 and 1
    if raw:  # a scan with an roi is a raw one: its intensities are left out
        add_columns(folders, ("roi", "roi.nii", "roi.nii"))
    assert ("intensities" in evaluate(folders)) != raw
    found = [row for row in per_scan(folders) if row["method"] == "regression_fcn"]
    # the dot of scan b lies in slice 3, so in slice 1 there is no false positive
    assert [(row["tp"], row["fp"], row["fn"]) for row in found] == [("1", "1", "1"), ("0",) * 3]


def test_command_with_radius_in_millimetres(folders):
    assert evaluate(folders, "--radius-mm", "0.4")["regression_fcn"]["tpr"] == 0


def test_command_evaluates_the_test_split_only_unless_told(folders, capsys):
    evaluate(folders, "--split", "all")
    assert "train" not in capsys.readouterr().out
    change(folders, ("b.nii.gz,0,test", "b.nii.gz,0,train"))
    evaluate(folders)
    assert [row["subject"] for row in per_scan(folders)] == ["a"] * 2
    evaluate(folders, "--split", "all")
    assert len(per_scan(folders)) == 4
    assert "1 of the scans are of the splits train and val" in capsys.readouterr().out


def test_command_names_and_counts_scans_without_a_prediction(folders, capsys):
    table = (folders / "predicted" / "predictions.csv").read_text().splitlines()
    (folders / "predicted" / "predictions.csv").write_text("\n".join(table[:2]) + "\n")
    line = refusal(capsys, command.main, *arguments(folders))
    assert "--allow-missing" in line and "(b)" in line
    written = metrics(folders)["regression_fcn"]
    assert (written["scans"], written["lesions"], written["missing"]) == (1, 2, 1)
    evaluate(folders, "--allow-missing")
    said = capsys.readouterr().out
    assert "evaluating 1 of the 2 scans of split test" in said
    assert "no prediction for 1 of them: b" in said


def test_command_takes_a_blank_list_of_centres_for_count_zero_only(folders, capsys):
    expected = evaluate(folders)
    change(folders, ("b.nii.gz,0,test,b.csv", "b.nii.gz,0,test,"))
    assert evaluate(folders) == expected
    change(folders, ("b.nii.gz,0,test", "b.nii.gz,,test"))
    evaluate(folders)
    assert "neither a count nor lesion centres: b" in capsys.readouterr().out


def test_command_without_centres_scores_the_counts(folders, pictures, capsys):
    change(folders, ("a.csv", ""), ("b.csv", ""))
    (network,) = evaluate(folders).values()
    assert network["count_mse"] == pytest.approx((0.4**2 + 0.6**2) / 2) and "tpr" not in network
    assert (folders / "out" / "counts.png").is_file()
    assert "only the counts" in capsys.readouterr().out


def move_grid(folder):
    affine = AFFINE.copy()
    affine[0, 3] += 3
    grid = Volume(np.ones(SHAPE, np.float32), affine)
    write_volume(folder / "predicted" / "a_heatmap.nii.gz", grid.array, grid)


def remove(path):
    return lambda folder: (folder / path).unlink()


PREDICTIONS = "predicted/predictions.csv"
HARM = {  # what is wrong -> how it comes about, and what the error line names
    "no predictions": (remove(PREDICTIONS), ("predictions.csv", "weakunet.predict")),
    "no heatmap": (remove("predicted/b_heatmap.nii.gz"), ("b_heatmap", "predict on b again")),
    "no truth": (
        lambda folder: change(folder, ("2,test,a.csv", ",test,"), ("0,test,b.csv", ",test,")),
        ("cohort.csv", "centres"),
    ),
    "other grid": (move_grid, ("a_heatmap.nii.gz", "grid")),
    "unknown subject": (
        lambda folder: change(folder, ("b,", "zoe,3,3,0.5\nb,"), path=PREDICTIONS),
        ("cohort.csv", "zoe"),
    ),
    "no test split": (
        lambda folder: change(folder, ("test", "train")),
        ("predictions.csv", "--split all"),
    ),
    "second run": (evaluate, ("out", "another --out")),
}


@pytest.mark.parametrize("harm", HARM)
def test_command_on_bad_input_says_so_in_one_line(harm, folders, capsys):
    cause, named = HARM[harm]
    cause(folders)
    capsys.readouterr()
    line = refusal(capsys, command.main, *arguments(folders))
    assert all(word in line for word in named)


@pytest.mark.parametrize(
    "text, fault",
    [
        ("", "no column subject, count_predicted"),
        ("subject,threshold\na,3\n", "no column count_predicted"),
        ("subject,count_predicted\n", "only a header"),
        ("subject,count_predicted\na,many\n", "line 2: count_predicted"),
        ("subject,count_predicted\na,nan\n", "line 2: count_predicted"),
        ("subject,count_predicted\na\n", "line 2: count_predicted"),
        ("subject,count_predicted\na,1\na,2\n", "line 3: a is there twice"),
        (b"\xff\xfe\x00", "unknown encoding"),
    ],
)
def test_damaged_predictions_table_is_refused_by_name(text, fault, tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=fault) as refused:
        read_predictions(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("option", ["--radius", "--radius-mm", "--seed"])
@pytest.mark.parametrize("value", ["-1", "nan", "wide"])
def test_radius_or_seed_that_is_none_is_refused(option, value, capsys):
    line = refusal(capsys, command.main, *arguments(Path("none")), f"{option}={value}")
    assert f"argument {option}: invalid" in line


def test_two_processes_give_the_bytes_of_one(folders, pictures):
    evaluate(folders, "--seed=3")
    one = contents(folders / "out")
    evaluate(folders, "--seed=3", "--jobs=2")
    assert contents(folders / "out") == one
