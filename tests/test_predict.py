"""The predict command: where its results lie, one slice and slabs, what it refuses.

A stand-in for the network, whose heatmap is known, shows where results go.
"""

import itertools

import nibabel
import numpy as np
import pytest
from helpers import exit_code, refusal, rows, save
from nibabel.affines import apply_affine

from weakunet import predict, preprocess
from weakunet.data.cohort import Scan, write_cohort
from weakunet.detection import tta
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import save_checkpoint

AFFINE = np.array([[0.5, 0, 0, 40], [0, 0.6, 0, -30], [0, 0, 0.8, 10], [0, 0, 0, 1]])
LESIONS = [(3, (15, 10, 9)), (2, (9, 14, 11)), (1, (15, 15, 10))]  # length along x, first voxel


class Stub:
    """A stand-in for WeakUNet: counts three lesions; the closer to .7, the higher the heatmap."""

    multiple, shape, flips, device = 8, (1, 1, 1), "x", "cpu"
    settings = {"region": False, "pooling": "max"}
    count, spacing_mm = 3.2, None

    def to(self, device, precision):
        return self

    def predict(self, scans, counted=None):
        assert all(n % self.multiple == 0 for n in scans.shape[2:])
        return np.full(len(scans), self.count, np.float32), 1 - abs(scans - 0.7)


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(predict, "load_model", lambda path: Stub())
    monkeypatch.setattr(predict.resume, "file_digest", str)
    monkeypatch.setattr(tta, "SMOOTHING_VOX", 0)  # its map is known voxel by voxel
    return Stub


def raw_head():
    """A dim noisy scan (x, y, z) with three lesions and a block of bright fluid, and its ROI."""
    xyz = np.random.default_rng(0).uniform(200, 300, (25, 23, 21)).astype(np.float32)
    roi = np.zeros(xyz.shape, np.uint8)
    roi[8:18, 7:17, 7:14] = 1
    xyz[10:14, 8:12, 8:12] = 1000
    for (length, (x, y, z)), value in zip(LESIONS, (700, 650, 600), strict=True):
        xyz[x : x + length, y, z] = value
    return xyz, roi


def save_head(folder, codes="RAS", **more):
    """Paths of the head and its ROI, and of a cohort.csv of that one scan."""
    paths = folder / "s.nii", folder / "roi.nii"
    for path, xyz in zip(paths, raw_head(), strict=True):
        save(path, xyz, AFFINE, codes)
    write_cohort(folder / "cohort.csv", [Scan("s", paths[0], 3, paths[1], **more)])
    return *paths, folder / "cohort.csv"


def run(*arguments):
    return exit_code(predict.main, "--jobs=1", "--model=m.npz", *arguments)


def test_raw_scan_is_predicted_on_its_own_whole_grid(stub, tmp_path):
    xyz, roi = raw_head()
    scan, out = save(tmp_path / "Head 1.nii.gz", xyz, AFFINE), tmp_path / "out"
    mask = save(tmp_path / "roi.nii", roi, AFFINE)
    assert run(scan, "--roi", mask, "--out", out) == 0
    ends = ("heatmap.nii.gz", "lesions.nii.gz", "lesions.mrk.json", "overlay.png")
    tables = {"predictions.csv", "detections.csv", "settings.json", ".done"}
    assert {path.name for path in out.iterdir()} == {f"Head 1_{end}" for end in ends} | tables
    heatmap = nibabel.load(out / "Head 1_heatmap.nii.gz")
    labels = nibabel.load(out / "Head 1_lesions.nii.gz")
    for image in (heatmap, labels):
        assert image.shape == xyz.shape
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    assert heatmap.get_data_dtype() == np.float32 and labels.get_data_dtype().kind == "i"
    heatmap, labels = heatmap.get_fdata(), np.asarray(labels.dataobj)
    (prediction,) = rows(out / "predictions.csv")
    assert (prediction["subject"], prediction["n_detected"]) == ("Head 1", "3")
    assert float(prediction["count_predicted"]) == np.float32(3.2)
    assert np.array_equal(labels > 0, heatmap >= float(prediction["threshold"]))
    # outside the dilated ROI (and beyond the crop) nothing is above the lowest value inside
    assert heatmap.min() > 0.29  # the stub's lowest, where the scan is 0
    assert np.all(heatmap[0] == heatmap.min()) and np.all(heatmap[:, :, -1] == heatmap.min())
    detections = rows(out / "detections.csv")
    assert [d["detection"] for d in detections] == ["1", "2", "3"]
    scores = [float(d["score"]) for d in detections]
    assert scores == sorted(scores, reverse=True)
    expected = {(x + (length - 1) / 2, y, z): length for length, (x, y, z) in LESIONS}
    for d in detections:
        ijk = tuple(float(d[name]) for name in "ijk")
        mm = [float(d[name]) for name in ("x_mm", "y_mm", "z_mm")]
        np.testing.assert_allclose(mm, apply_affine(AFFINE, ijk), atol=1e-3)
        assert float(d["volume_mm3"]) == pytest.approx(expected.pop(ijk) * 0.24, abs=1e-3)
        peak = heatmap[labels == int(d["detection"])].max()
        assert float(d["score"]) == pytest.approx(peak, rel=1e-5)
    assert not expected
    assert (out / "Head 1_overlay.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize("codes", ["RAS", "PIL"])
def test_slice_is_detected_in_alone(stub, no_pictures, tmp_path, codes):
    """The longest lesion is the only one in its slice, at z = 10 + 0.8 * 9 mm."""
    scan, mask, _ = save_head(tmp_path, codes)
    for name, options in (("all", ()), ("slice", ("--slice-z-mm", 17.5))):
        assert run(scan, "--roi", mask, *options, "--out", tmp_path / name) == 0
    found = rows(tmp_path / "slice" / "detections.csv")
    assert len(found) == 3  # the count is met in the slice, by the brightest noise
    place = [float(found[0][f"{axis}_mm"]) for axis in "xyz"]
    np.testing.assert_allclose(place, (48, -24, 17.2), atol=1e-3)
    image = nibabel.load(tmp_path / "slice" / "s_lesions.nii.gz")
    ijk = np.argwhere(np.asarray(image.dataobj) > 0)
    np.testing.assert_allclose(apply_affine(image.affine, ijk)[:, 2], 17.2, atol=1e-4)
    heatmaps = [tmp_path / name / "s_heatmap.nii.gz" for name in ("all", "slice")]
    assert heatmaps[0].read_bytes() == heatmaps[1].read_bytes()  # the heatmap is whole


def test_slice_of_the_table_is_used_and_outside_the_roi_refused(
    stub, no_pictures, tmp_path, capsys
):
    for z_mm, code in ((17.2, 0), (10.0, 2)):
        *_, table = save_head(tmp_path, slice_z_mm=z_mm)
        assert run("--data", table, "--out", tmp_path / f"out{code}") == code
    assert {row["z_mm"] for row in rows(tmp_path / "out0" / "detections.csv")} == {"17.2"}
    assert "roi.nii: slice_z_mm 10 lies outside" in capsys.readouterr().err


@pytest.mark.parametrize("slab_mm, slices", [(0, [9]), (0.8, [8, 9, 10])])
def test_slab_of_a_raw_scan_is_predicted_as_the_prepared_slab(
    stub, no_pictures, tmp_path, slab_mm, slices
):
    *_, raw = save_head(tmp_path, slice_z_mm=17.2)
    slab, prepared = ("--slab-mm", slab_mm), tmp_path / "prepared"
    assert exit_code(preprocess.main, "--data", raw, "--out", prepared, *slab) == 0
    assert nibabel.load(prepared / "s.nii.gz").shape[2] == len(slices)
    assert run("--data", prepared / "cohort.csv", "--out", tmp_path / "one") == 0
    assert run("--data", raw, *slab, "--out", tmp_path / "two") == 0
    one, two = (rows(tmp_path / name / "detections.csv") for name in ("one", "two"))
    for row in one + two:
        del row["i"], row["j"], row["k"]
    assert len(one) == 3 and one == two
    assert {row["z_mm"] for row in one} == {"17.2"}
    heatmap = nibabel.load(tmp_path / "two" / "s_heatmap.nii.gz").get_fdata()
    assert list(np.flatnonzero(heatmap.max(axis=(0, 1)) > heatmap.min())) == slices


@pytest.mark.parametrize("command", [preprocess, predict])
def test_slab_without_a_slice_is_refused(tmp_path, capsys, command):
    *_, table = save_head(tmp_path)
    options = ["--data", table, "--out", tmp_path / "out"]
    options += ["--model", "m.npz"] if command is predict else []
    for slab_mm, problem in (("1", "slice_z_mm"), ("-1", "invalid half_thickness value: '-1'")):
        assert problem in refusal(capsys, command.main, *options, f"--slab-mm={slab_mm}")


def test_count_of_zero_writes_empty_labels(stub, monkeypatch, tmp_path):
    monkeypatch.setattr(stub, "count", -0.4)
    scan = save(tmp_path / "s.nii", raw_head()[0] / 1000, AFFINE)  # as if prepared
    assert run(scan, "--out", tmp_path / "out") == 0
    assert rows(tmp_path / "out" / "detections.csv") == []
    (prediction,) = rows(tmp_path / "out" / "predictions.csv")
    assert prediction["n_detected"] == "0" and prediction["threshold"] == "inf"
    assert not np.asarray(nibabel.load(tmp_path / "out" / "s_lesions.nii.gz").dataobj).any()


def test_bad_input_is_refused_in_one_line(stub, tmp_path, capsys):
    scan, mask, _ = save_head(tmp_path)
    xyz, roi = raw_head()
    moved = save(tmp_path / "moved.nii", roi, AFFINE + np.eye(4)[0][:, None] * np.eye(4)[3])
    same = save(tmp_path / "again" / "S.nii", xyz, AFFINE)
    latin_1 = save(tmp_path / "M\udcfcller.nii", xyz, AFFINE)
    used = tmp_path / "used"
    used.mkdir()
    (used / "predictions.csv").write_text("")
    cases = {
        "prepare it with python -m weakunet.preprocess": [scan],
        "moved.nii: not on the grid of": [scan, "--roi", moved],
        "missing.nii: no such file": [scan, "--roi", tmp_path / "missing.nii"],
        "a second scan called S": [scan, same, "--roi", mask],
        r"M\udcfcller.nii: its name has odd characters": [latin_1, "--roi", mask],
        "holds predictions already": [scan, "--roi", mask, "--out", used],
        "not a folder": [scan, "--roi", mask, "--out", scan],
        "the table has a column roi for it": ["--data", "cohort.csv", "--roi", mask],
        "none.csv: no such file": ["--data", tmp_path / "none.csv"],
        "give either --data cohort.csv or": [],
    }
    for number, (problem, arguments) in enumerate(cases.items()):
        arguments = ["--model=m.npz", "--out", tmp_path / f"out{number}", *arguments]
        assert problem in refusal(capsys, predict.main, *arguments)
        assert not (tmp_path / f"out{number}" / "predictions.csv").exists()


def test_missing_checkpoint_is_refused_before_any_scan_is_read(tmp_path, capsys):
    options = (tmp_path / "s.nii.gz", "--model", tmp_path / "none.npz", "--out", tmp_path / "out")
    assert "none.npz: no such checkpoint" in refusal(capsys, predict.main, *options)


def test_failed_scan_is_named_and_the_others_are_predicted(stub, no_pictures, tmp_path, capsys):
    xyz, roi = raw_head()
    mask = save(tmp_path / "roi.nii.gz", roi, AFFINE)
    scans = [save(tmp_path / f"{name}.nii", xyz, AFFINE) for name in "abc"]
    xyz[tuple(np.argwhere(roi)[0])] = np.nan
    save(scans[1], xyz, AFFINE)
    assert run(*scans, "--roi", mask, "--out", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert f"failed: {scans[1]}: NaN" in errors and "1 of 3 scans failed" in errors
    assert [row["subject"] for row in rows(tmp_path / "out" / "predictions.csv")] == ["a", "c"]
    found = [row["subject"] for row in rows(tmp_path / "out" / "detections.csv")]
    assert [name for name, _ in itertools.groupby(found)] == ["a", "c"]


def test_scan_of_another_voxel_size_is_refused_with_the_remedy(no_pictures, tmp_path, capsys):
    model = WeakUNet(channels=(2, 3), rng=np.random.default_rng(0))
    model.spacing_mm = (0.8, 0.6, 0.5)
    save_checkpoint(tmp_path / "m.npz", model)
    xyz = raw_head()[0] / 1000
    save(tmp_path / "same.nii", xyz, AFFINE)  # 0.5, 0.6, 0.8 mm along x, y, z
    save(tmp_path / "half.nii", xyz, AFFINE @ np.diag([0.5, 0.5, 0.5, 1]))
    options = ("--model", tmp_path / "m.npz", "--device", "cpu", "--jobs=1", "--out")
    assert run(tmp_path / "same.nii", *options, tmp_path / "one") == 0
    line = refusal(capsys, predict.main, tmp_path / "half.nii", *options, tmp_path / "two")
    assert "preprocess --spacing-mm 0.8 0.6 0.5" in line
