"""Evaluation on maps worked by hand, and the command from files to tables."""

import csv
import dataclasses
import json
import math
import re

import numpy as np
import pytest

from weakunet import evaluate as command
from weakunet.data.cohort import LoadedScan, Scan, write_cohort
from weakunet.data.volumes import Volume, index_to_world, write_volume
from weakunet.evaluation.evaluator import Evaluation, evaluate_counts, evaluate_maps
from weakunet.evaluation.froc import froc_by_threshold
from weakunet.evaluation.metrics import Tolerance
from weakunet.evaluation.predictions import read_predictions
from weakunet.evaluation.score_scan import Score
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


def scan(subject, centres, image, count=None):
    count = len(centres) if count is None else count
    affine = np.diag([0.5, 0.5, 0.8, 1])
    return LoadedScan(subject, Volume(image, affine), count, np.reshape(centres, (-1, 3)))


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
    rows = [row for row in per_scan_rows(result) if row[1] == "regression_fcn"]
    assert rows[0] == ("a", "regression_fcn", 2, 2.4, 4.0, 2, 1, 1, 1, 0.5)
    assert rows[1] == ("b", "regression_fcn", 0, 0.6, 1.0, 1, 0, 1, 0, "")
    doubled = next(point for point in result.curves["intensities"] if point["scale"] == 2)
    # counts 5 and 1: one more blob in scan a, the same one in scan b
    assert (doubled["tpr"], doubled["fp_per_scan"]) == (1, (1 + 1) / 2)


def test_radius_in_millimetres_uses_the_scans_spacing(two):
    scans, counts, maps = two  # the hit is one voxel of 0.5 mm away
    for radius_mm, tpr in ((0.4, 0), (0.5, 0.5)):
        result = evaluate_maps(scans, counts, maps, Tolerance(radius_mm=radius_mm))
        assert result.metrics["regression_fcn"]["tpr"] == tpr
        at_count = next(p for p in result.curves["regression_fcn"] if p["scale"] == 1)
        assert at_count["tpr"] == result.by_threshold["regression_fcn"][0]["tpr"] == tpr
    result = evaluate_maps(scans, counts, maps, Tolerance(0.9))
    assert result.metrics["regression_fcn"]["tpr"] == 0


def test_each_method_may_have_its_own_counts(two):
    scans, counts, maps = two
    result = evaluate_maps(scans, {"intensities": [1, 0], "regression_fcn": counts}, maps)
    rows = per_scan_rows(result)
    assert [row[5] for row in rows] == [1, 0, 2, 1]
    assert rows[1][4] == math.inf  # count 0: nothing passes


def test_scan_without_a_count_is_left_out_of_the_count_figures(two):
    scans, counts, maps = two
    scans[0].count = None
    result = evaluate_maps(scans, counts, maps)
    assert result.metrics["regression_fcn"]["count_mae"] == pytest.approx(0.6)
    assert result.metrics["regression_fcn"]["tpr"] == 0.5


def test_scan_with_a_slice_is_judged_in_that_slice(two):
    """Two lesions and, as components, two dots in slice 2; stronger dots and a lesion above it."""
    scans, counts, maps = two
    first = scans[0]
    first.slice_index, scans[1].slice_index = 2, 0
    first.centres_zyx = np.array([(2.4, 3, 2), (2, 3, 12), (3, 3, 12)])
    heatmap = maps["regression_fcn"][0]
    heatmap[3, 3:5, 3:14] = 9  # outside the slice, and joining its dots above it
    result = evaluate_maps(scans, counts, maps)
    rows = [row for row in per_scan_rows(result) if row[1] == "regression_fcn"]
    assert rows[0] == ("a", "regression_fcn", 2, 2.4, 4.0, 2, 1, 1, 1, 0.5)
    assert rows[1][5:9] == (0, 0, 0, 0)  # nothing but background in slice 0
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


def test_scan_of_count_zero_needs_no_centres(two):
    """The figures are those of the same scan with an empty list of centres."""
    scans, counts, maps = two
    expected = evaluate_maps(*two).metrics
    blank = LoadedScan("b", scans[1].volume, 0, None)
    found = evaluate_maps([scans[0], blank], counts, maps).metrics
    assert found == expected and found["regression_fcn"]["fp_per_scan"] == 1


def test_scan_with_lesions_but_no_centres_is_judged_by_its_count_only(two):
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


# -- the printed table ----------------------------------------------------------------------------


def test_columns_of_the_printed_table_never_run_together():
    wide = {"tpr": 1.0, "tpr_ci95": [1.0, 1.0], "fp_per_scan": 1234.5, "fdr": 0.5}
    wide |= {"fp_per_scan_ci95": [1000.25, 2000.25], "count_r2": -1234.5, "count_icc": 0.5}
    scores = [Score("a", 1, 1.0, hits=(1, 0, 0))]
    text = text_table(Evaluation({"a_method_of_a_very_long_name_indeed": scores}, {"a" * 40: wide}))
    _, row = text.splitlines()
    cells = ["a" * 40, "100.0 [100.0, 100.0]", "1234.50 [1000.25, 2000.25]", "50.0", "-1234.50"]
    assert re.split(r" {2,}", row) == [*cells, "0.50"]


def test_a_rate_that_is_not_defined_is_said_in_words(two):
    scans, _, maps = two
    text = text_table(evaluate_maps(scans, [0, 0], maps))
    assert "no detections" in text and "nan" not in text


@pytest.mark.filterwarnings("error")
def test_scans_without_any_lesion_are_evaluated_without_a_warning(two, tmp_path):
    scans, _, maps = two
    none = [dataclasses.replace(scan, count=0, centres_zyx=np.zeros((0, 3))) for scan in scans]
    result = evaluate_maps(none, [0, 0], maps)
    draw_evaluation(result, tmp_path)
    assert result.metrics["regression_fcn"]["fp_per_scan"] == 0


def test_evaluation_writes_tables_pictures_and_null_for_what_is_not_defined(two, tmp_path):
    scans, counts, maps = two
    scans[0].centres_zyx = np.zeros((0, 3))  # now no scan has a lesion
    result = evaluate_maps(scans, counts, maps)
    write_tables(result, tmp_path)
    draw_evaluation(result, tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["regression_fcn"]["tpr"] is None
    assert written["regression_fcn"]["tpr_ci95"] == [None, None]
    assert written["regression_fcn"]["fp_per_scan"] == 1.5
    names = {path.name for path in tmp_path.iterdir()}
    tables = {"metrics.json", "per_scan.csv", "froc.csv"}
    assert names == tables | {"froc.png", "counts.png", "a_overlay.png", "b_overlay.png"}
    assert "no lesions" in text_table(result)


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
        name = loaded.subject
        affine = AFFINE.copy()
        stored = Volume(loaded.volume.array, affine)
        write_volume(tmp_path / f"{name}.nii.gz", loaded.volume.array, stored)
        centres = index_to_world(stored, loaded.centres_zyx)
        write_csv(tmp_path / f"{name}.csv", ("x_mm", "y_mm", "z_mm"), centres)
        heatmap = maps["regression_fcn"][i]
        write_volume(tmp_path / "predicted" / f"{name}_heatmap.nii.gz", heatmap, stored)
        paths = {"image": tmp_path / f"{name}.nii.gz", "centres": tmp_path / f"{name}.csv"}
        cohort.append(Scan(name, count=loaded.count, split="test", **paths))
    write_cohort(tmp_path / "cohort.csv", cohort)
    rows = [("a", counts[0], 2, 4.0), ("b", counts[1], 1, 1.0)]
    header = ("subject", "count_predicted", "n_detected", "threshold")
    write_csv(tmp_path / "predicted" / "predictions.csv", header, rows)
    return tmp_path


def evaluate(folder, *options):
    named = {"predictions": "predicted", "data": "cohort.csv", "out": "out"}
    arguments = [f"--{name}={folder / path}" for name, path in named.items()]
    return command.main([*arguments, "--jobs=1", *options])


def test_command_gives_the_figures_of_the_arrays(two, folders):
    evaluate(folders, "--seed", "3")
    written = json.loads((folders / "out" / "metrics.json").read_text())
    assert written == evaluate_maps(*two, seed=3).metrics
    with open(folders / "out" / "per_scan.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["subject"], row["tp"], row["fp"], row["fn"]) for row in rows[2:]] == [
        ("a", "1", "1", "1"),
        ("b", "0", "1", "0"),
    ]
    with open(folders / "out" / "froc.csv") as file:
        assert {row["sweep"] for row in csv.DictReader(file)} == {"count", "threshold"}


@pytest.mark.parametrize("raw", [False, True])
def test_command_reads_the_slice_from_the_table(folders, raw):
    table = (folders / "cohort.csv").read_text().splitlines()
    header, rows = "slice_z_mm", ("3.6", "2.8")  # slices 2 and 1
    if raw:  # a scan with an roi is a raw one
        header, rows = "slice_z_mm,roi", ("3.6,roi.nii", "2.8,roi.nii")
    lines = [f"{a},{b}" for a, b in zip(table, (header, *rows), strict=True)]
    (folders / "cohort.csv").write_text("\n".join(lines))
    evaluate(folders)
    with open(folders / "out" / "per_scan.csv") as file:
        found = [row for row in csv.DictReader(file) if row["method"] == "regression_fcn"]
    # the dot of scan b lies in slice 3, so in slice 1 there is no false positive
    assert [(row["tp"], row["fp"], row["fn"]) for row in found] == [
        ("1", "1", "1"),
        ("0", "0", "0"),
    ]


def test_command_with_radius_in_millimetres(folders):
    evaluate(folders, "--radius-mm", "0.4")
    assert json.loads((folders / "out" / "metrics.json").read_text())["regression_fcn"]["tpr"] == 0


def test_command_on_raw_scans_leaves_out_the_intensities(folders):
    table = (folders / "cohort.csv").read_text().splitlines()
    rows = [table[0] + ",roi", *(f"{line},roi.nii.gz" for line in table[1:])]
    (folders / "cohort.csv").write_text("\n".join(rows))
    evaluate(folders)
    assert set(json.loads((folders / "out" / "metrics.json").read_text())) == {"regression_fcn"}


def test_command_evaluates_the_test_split_only_unless_told(folders):
    table = (folders / "cohort.csv").read_text().replace("b.nii.gz,0,test", "b.nii.gz,0,train")
    (folders / "cohort.csv").write_text(table)
    evaluate(folders)
    assert len((folders / "out" / "per_scan.csv").read_text().splitlines()) == 1 + 2
    (folders / "out" / "metrics.json").unlink()
    evaluate(folders, "--split", "all")
    assert len((folders / "out" / "per_scan.csv").read_text().splitlines()) == 1 + 4


def drop_prediction(folder, line):
    path = folder / "predicted" / "predictions.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:line] + lines[line + 1 :]) + "\n")


def test_command_names_and_counts_scans_without_a_prediction(folders, capsys):
    drop_prediction(folders, 2)
    with pytest.raises(SystemExit) as stopped:
        evaluate(folders)
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert "evaluating 1 of the 2 scans of split test" in said.out
    assert "no prediction for 1 of them: b" in said.out
    assert "--allow-missing" in said.err and "(b)" in said.err
    written = json.loads((folders / "out" / "metrics.json").read_text())["regression_fcn"]
    assert (written["scans"], written["lesions"], written["missing"]) == (1, 2, 1)
    (folders / "out" / "metrics.json").unlink()
    evaluate(folders, "--allow-missing")
    assert "no prediction for 1 of them: b" in capsys.readouterr().out


def test_command_with_split_all_says_that_it_includes_training_scans(folders, capsys):
    table = (folders / "cohort.csv").read_text()
    evaluate(folders, "--split", "all")
    assert "train" not in capsys.readouterr().out
    (folders / "out" / "metrics.json").unlink()
    (folders / "cohort.csv").write_text(table.replace("b.nii.gz,0,test", "b.nii.gz,0,train"))
    evaluate(folders, "--split", "all")
    assert "1 of the scans are of the splits train and val" in capsys.readouterr().out


def test_command_names_scans_with_neither_count_nor_centres(folders, capsys):
    table = (folders / "cohort.csv").read_text()
    (folders / "cohort.csv").write_text(table.replace("b.nii.gz,0,test,b.csv", "b.nii.gz,,test,"))
    evaluate(folders)
    assert "neither a count nor lesion centres: b" in capsys.readouterr().out


def test_command_takes_a_blank_list_of_centres_for_count_zero(folders):
    evaluate(folders)
    expected = json.loads((folders / "out" / "metrics.json").read_text())
    (folders / "out" / "metrics.json").unlink()
    table = (folders / "cohort.csv").read_text()
    (folders / "cohort.csv").write_text(table.replace("b.nii.gz,0,test,b.csv", "b.nii.gz,0,test,"))
    evaluate(folders)
    assert json.loads((folders / "out" / "metrics.json").read_text()) == expected


def break_missing_predictions(folder):
    (folder / "predicted" / "predictions.csv").unlink()


def break_missing_heatmap(folder):
    (folder / "predicted" / "b_heatmap.nii.gz").unlink()


def blank_columns(folder, *names):
    with open(folder / "cohort.csv", newline="") as file:
        header, *rows = csv.reader(file)
    blank = [header.index(name) for name in names]
    rows = [["" if i in blank else cell for i, cell in enumerate(row)] for row in rows]
    write_csv(folder / "cohort.csv", header, rows)


def test_command_without_centres_judges_the_counts(folders, pictures, capsys):
    blank_columns(folders, "centres")
    evaluate(folders)
    written = json.loads((folders / "out" / "metrics.json").read_text())
    (network,) = written.values()
    assert network["count_mse"] == pytest.approx((0.4**2 + 0.6**2) / 2) and "tpr" not in network
    assert (folders / "out" / "counts.png").is_file()
    assert "only the counts" in capsys.readouterr().out


def break_no_centres(folder):
    blank_columns(folder, "centres", "count")


def break_other_grid(folder):
    affine = AFFINE.copy()
    affine[0, 3] += 3
    grid = Volume(np.ones(SHAPE, np.float32), affine)
    write_volume(folder / "predicted" / "a_heatmap.nii.gz", grid.array, grid)


def break_unknown_subject(folder):
    path = folder / "predicted" / "predictions.csv"
    path.write_text(path.read_text() + "zoe,3,3,0.5\n")


def break_split(folder):
    path = folder / "cohort.csv"
    path.write_text(path.read_text().replace("test", "train"))


def break_second_run(folder):
    (folder / "out").mkdir()
    (folder / "out" / "metrics.json").write_text("{}")


@pytest.mark.parametrize(
    "harm, named",
    [
        (break_missing_predictions, ("predictions.csv", "weakunet.predict")),
        (break_missing_heatmap, ("b_heatmap.nii.gz", "predict on b again")),
        (break_no_centres, ("cohort.csv", "centres")),
        (break_other_grid, ("a_heatmap.nii.gz", "grid")),
        (break_unknown_subject, ("cohort.csv", "zoe")),
        (break_split, ("predictions.csv", "--split all")),
        (break_second_run, ("out", "another --out")),
    ],
)
def test_command_on_bad_input_says_so_in_one_line(harm, named, folders, capsys):
    harm(folders)
    with pytest.raises(SystemExit) as stopped:
        evaluate(folders)
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert stopped.value.code == 2 and len(error) == 1
    assert all(word in error[0] for word in named)


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
def test_radius_or_seed_that_is_none_is_refused(option, value, folders, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate(folders, f"{option}={value}")
    assert stopped.value.code == 2 and f"argument {option}: invalid" in capsys.readouterr().err


def test_two_processes_give_the_bytes_of_one(folders, pictures):
    evaluate(folders, "--seed=3")
    (folders / "out").rename(folders / "one")
    evaluate(folders, "--seed=3", "--jobs=2")
    names = sorted(path.name for path in (folders / "one").iterdir())
    assert names == sorted(path.name for path in (folders / "out").iterdir())
    for name in names:
        assert (folders / "one" / name).read_bytes() == (folders / "out" / name).read_bytes(), name
