"""Evaluation on maps worked by hand, and the command from files to tables."""

import csv
import json
import math

import numpy as np
import pytest

from weakunet.data.cohort import LoadedScan, Scan, write_cohort
from weakunet.data.volumes import Volume, index_to_world, write_volume
from weakunet.evaluate import main
from weakunet.evaluation.evaluate import evaluate_maps
from weakunet.evaluation.predictions import read_predictions
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
    rows = [row for row in result.per_scan if row[1] == "regression_fcn"]
    assert rows[0] == ("a", "regression_fcn", 2, 2.4, 4.0, 2, 1, 1, 1, 0.5)
    assert rows[1] == ("b", "regression_fcn", 0, 0.6, 1.0, 1, 0, 1, 0, "")
    doubled = next(point for point in result.curves["intensities"] if point["scale"] == 2)
    # counts 5 and 1: one more blob in scan a, the same one in scan b
    assert (doubled["tpr"], doubled["fp_per_scan"]) == (1, (1 + 1) / 2)


def test_radius_in_millimetres_uses_the_scans_spacing(two):
    scans, counts, maps = two  # the hit is one voxel of 0.5 mm away
    for radius_mm, tpr in ((0.4, 0), (0.5, 0.5)):
        result = evaluate_maps(scans, counts, maps, radius_mm=radius_mm)
        assert result.metrics["regression_fcn"]["tpr"] == tpr
    assert evaluate_maps(scans, counts, maps, radius=0.9).metrics["regression_fcn"]["tpr"] == 0


def test_each_method_may_have_its_own_counts(two):
    scans, counts, maps = two
    result = evaluate_maps(scans, {"intensities": [1, 0], "regression_fcn": counts}, maps)
    assert [row[5] for row in result.per_scan] == [1, 0, 2, 1]
    assert result.per_scan[1][4] == math.inf  # count 0: nothing passes


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
    rows = [row for row in result.per_scan if row[1] == "regression_fcn"]
    assert rows[0] == ("a", "regression_fcn", 2, 2.4, 4.0, 2, 1, 1, 1, 0.5)
    assert rows[1][5:9] == (0, 0, 0, 0)  # nothing but background in slice 0
    most = max(point["fp_per_scan"] for point in result.curves["regression_fcn"])
    assert most == 0.5
    assert first.volume.array.shape == SHAPE and len(first.centres_zyx) == 3  # left as they were


def test_evaluation_without_centres_is_refused(two):
    scans, counts, maps = two
    scans[1].centres_zyx = None
    with pytest.raises(InputError, match="b: no lesion centres"):
        evaluate_maps(scans, counts, maps)


def test_evaluation_writes_tables_pictures_and_null_for_what_is_not_defined(two, tmp_path, capsys):
    scans, counts, maps = two
    scans[0].centres_zyx = np.zeros((0, 3))  # now no scan has a lesion
    evaluate_maps(scans, counts, maps, tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["regression_fcn"]["tpr"] is None
    assert written["regression_fcn"]["tpr_ci95"] == [None, None]
    assert written["regression_fcn"]["fp_per_scan"] == 1.5
    names = {path.name for path in tmp_path.iterdir()}
    tables = {"metrics.json", "per_scan.csv", "froc.csv"}
    assert names == tables | {"froc.png", "counts.png", "a_overlay.png", "b_overlay.png"}
    assert "regression_fcn" in capsys.readouterr().out


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def folders(two, tmp_path):
    """The same two scans as files, stored with x to the left, and predictions on them."""
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
    return main([*arguments, "--jobs=1", *options])


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


def test_command_without_centres_judges_the_counts(folders, capsys):
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
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_damaged_predictions_table_is_refused_by_name(text, fault, tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=fault) as refused:
        read_predictions(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("option", ["--radius", "--radius-mm"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "wide"])
def test_radius_that_is_not_positive_is_refused(option, value, folders):
    with pytest.raises(SystemExit) as stopped:
        evaluate(folders, f"{option}={value}")
    assert stopped.value.code == 2


def test_two_processes_give_the_bytes_of_one(folders):
    evaluate(folders, "--seed=3")
    (folders / "out").rename(folders / "one")
    evaluate(folders, "--seed=3", "--jobs=2")
    names = sorted(path.name for path in (folders / "one").iterdir())
    assert names == sorted(path.name for path in (folders / "out").iterdir())
    for name in names:
        assert (folders / "one" / name).read_bytes() == (folders / "out" / name).read_bytes(), name
