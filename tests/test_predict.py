"""Prediction on files: a stand-in for the network with a known heatmap shows where results go."""

import csv
import gzip
import itertools

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.orientations import axcodes2ornt

from weakunet import predict, preprocess
from weakunet.data.cohort import Scan, write_cohort
from weakunet.data.slices import front_padding
from weakunet.data.volumes import Volume, write_volume
from weakunet.detection import tta
from weakunet.detection.predict_scan import predict_scan
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


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out what takes longest."""
    monkeypatch.setattr("weakunet.predict.overlay", lambda *arguments: None)


def raw_head():
    """A dim noisy scan (x, y, z) with three lesions and a block of bright fluid, and its ROI."""
    xyz = np.random.default_rng(0).uniform(200, 300, (25, 23, 21)).astype(np.float32)
    roi = np.zeros(xyz.shape, np.uint8)
    roi[8:18, 7:17, 7:14] = 1
    xyz[10:14, 8:12, 8:12] = 1000
    for (length, (x, y, z)), value in zip(LESIONS, (700, 650, 600), strict=True):
        xyz[x : x + length, y, z] = value
    return xyz, roi


def save(path, array, affine=AFFINE):
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def run(*arguments):
    """Run the command in this process; returns its exit code."""
    try:
        predict.main(["--jobs=1", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code
    return 0


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_raw_scan_is_predicted_on_its_own_whole_grid(stub, tmp_path):
    xyz, roi = raw_head()
    scan = save(tmp_path / "Head 1.nii.gz", xyz)
    mask = save(tmp_path / "roi.nii", roi)
    out = tmp_path / "out"
    assert run(scan, "--roi", mask, "--model", "m.npz", "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {
        "Head 1_heatmap.nii.gz",
        "Head 1_lesions.nii.gz",
        "Head 1_lesions.mrk.json",
        "Head 1_overlay.png",
        "predictions.csv",
        "detections.csv",
        "settings.json",
        ".done",
    }
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


def stored_as(folder, codes, kind):
    """The raw head and its ROI stored in another way; paths of both."""
    paths = []
    for name, xyz in zip(("s", "roi"), raw_head(), strict=True):
        image = nibabel.Nifti1Image(xyz, AFFINE).as_reoriented(axcodes2ornt(codes))
        path = folder / f"{name}{kind}"
        if kind == ".mgz":
            nibabel.save(nibabel.MGHImage(np.asarray(image.dataobj), image.affine), path)
        elif kind == ".nii":
            header = nibabel.Nifti1Header(endianness=">")
            header.set_data_dtype(xyz.dtype)
            stored = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, header)
            path.write_bytes(stored.to_bytes())
            assert path.read_bytes()[:4] == (348).to_bytes(4, "big")
        else:
            path.write_bytes(gzip.compress(image.to_bytes()))
        paths.append(path)
    return paths


@pytest.mark.parametrize(
    "codes, kind", [("LAS", ".nii"), ("LIA", ".mgz"), ("PSR", ".nii.gz"), ("SAL", ".nii")]
)
def test_other_orientation_and_format_give_the_same_lesions(
    stub, no_pictures, tmp_path, codes, kind
):
    scan, mask = stored_as(tmp_path, "RAS", ".nii.gz")
    assert run(scan, "--roi", mask, "--model", "m.npz", "--out", tmp_path / "one") == 0
    (tmp_path / "other").mkdir()
    other, mask = stored_as(tmp_path / "other", codes, kind)
    assert run(other, "--roi", mask, "--model", "m.npz", "--out", tmp_path / "two") == 0
    one, two = (rows(tmp_path / name / "detections.csv") for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        for name in ("x_mm", "y_mm", "z_mm", "score", "volume_mm3"):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=2e-3), name
    stored = nibabel.load(other)
    for kind in ("heatmap", "lesions"):
        written = nibabel.load(tmp_path / "two" / f"s_{kind}.nii.gz")
        assert written.shape == stored.shape
        np.testing.assert_allclose(written.affine, stored.affine, atol=1e-4)
    labels = np.asarray(written.dataobj)
    for d in two:
        i, j, k = (int(float(d[name]) + 0.25) for name in "ijk")
        assert labels[i, j, k] == int(d["detection"])


def test_raw_scan_gives_the_same_lesions_as_the_prepared_one(stub, no_pictures, tmp_path):
    xyz, roi = raw_head()
    scan = Scan("s", save(tmp_path / "s.nii", xyz), 3, save(tmp_path / "roi.nii", roi))
    write_cohort(tmp_path / "raw.csv", [scan])
    preprocess.main(["--data", str(tmp_path / "raw.csv"), "--out", str(tmp_path / "prepared")])
    for name, table in (("one", "raw.csv"), ("two", "prepared/cohort.csv")):
        assert run("--data", tmp_path / table, "--model", "m.npz", "--out", tmp_path / name) == 0
    one, two = (rows(tmp_path / name / "detections.csv") for name in ("one", "two"))
    assert [int(float(row["i"])) for row in one] != [int(float(row["i"])) for row in two]
    for row in one + two:
        del row["i"], row["j"], row["k"]
    assert len(one) == 3 and one == two


@pytest.mark.parametrize("codes", ["RAS", "PIL"])
def test_slice_is_detected_in_alone(stub, no_pictures, tmp_path, codes):
    """The longest lesion is the only one in its slice, at z = 10 + 0.8 * 9 mm."""
    scan, mask = stored_as(tmp_path, codes, ".nii")
    arguments = ("--roi", mask, "--model", "m.npz")
    for name, options in (("all", ()), ("slice", ("--slice-z-mm", 17.5))):
        assert run(scan, *arguments, *options, "--out", tmp_path / name) == 0
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
    xyz, roi = raw_head()
    paths = save(tmp_path / "s.nii", xyz), 3, save(tmp_path / "roi.nii", roi)
    for z_mm, code in ((17.2, 0), (10.0, 2)):
        write_cohort(tmp_path / "cohort.csv", [Scan("s", *paths, slice_z_mm=z_mm)])
        out = tmp_path / f"out{code}"
        arguments = ("--data", tmp_path / "cohort.csv", "--model", "m.npz", "--out", out)
        assert run(*arguments) == code
    assert {row["z_mm"] for row in rows(tmp_path / "out0" / "detections.csv")} == {"17.2"}
    assert "roi.nii: slice_z_mm 10 lies outside" in capsys.readouterr().err


@pytest.mark.parametrize("slab_mm", [0, 0.8])
def test_slab_of_a_raw_scan_is_predicted_as_the_prepared_slab(stub, no_pictures, tmp_path, slab_mm):
    xyz, roi = raw_head()
    image, mask = save(tmp_path / "s.nii", xyz), save(tmp_path / "roi.nii", roi)
    write_cohort(tmp_path / "raw.csv", [Scan("s", image, 3, mask, slice_z_mm=17.2)])
    table, out = str(tmp_path / "raw.csv"), tmp_path / "prepared"
    preprocess.main(["--data", table, "--out", str(out), "--slab-mm", str(slab_mm)])
    prepared = nibabel.load(out / "s.nii.gz")
    assert prepared.shape[2] == (1 if slab_mm == 0 else 3)
    model = ("--model", "m.npz")
    assert run("--data", out / "cohort.csv", *model, "--out", tmp_path / "one") == 0
    options = ("--data", table, *model, "--slab-mm", slab_mm, "--out", tmp_path / "two")
    assert run(*options) == 0
    one, two = (rows(tmp_path / name / "detections.csv") for name in ("one", "two"))
    for row in one + two:
        del row["i"], row["j"], row["k"]
    assert len(one) == 3 and one == two
    assert {row["z_mm"] for row in one} == {"17.2"}
    heatmap = nibabel.load(tmp_path / "two" / "s_heatmap.nii.gz").get_fdata()
    seen = np.flatnonzero(heatmap.max(axis=(0, 1)) > heatmap.min())
    assert list(seen) == ([9] if slab_mm == 0 else [8, 9, 10])


@pytest.mark.parametrize("command", [preprocess, predict])
def test_slab_without_a_slice_is_refused(tmp_path, capsys, command):
    scan = Scan("s", tmp_path / "s.nii", 3, tmp_path / "roi.nii")
    write_cohort(tmp_path / "c.csv", [scan])
    options = ["--data", str(tmp_path / "c.csv"), "--out", str(tmp_path / "out")]
    options += ["--model", "m.npz"] if command is predict else []
    for slab_mm, problem in (("1", "slice_z_mm"), ("-1", "invalid half_thickness value: '-1'")):
        with pytest.raises(SystemExit) as stop:
            command.main([*options, f"--slab-mm={slab_mm}"])
        assert stop.value.code == 2 and problem in capsys.readouterr().err


def prepared_volume(seed=0, shape=(9, 10, 13)):
    array = np.random.default_rng(seed).uniform(0.1, 1, shape).astype(np.float32)
    array[0], array[-1, -1, -1] = 0, 1
    return Volume(array, AFFINE)


def test_odd_size_is_padded_and_cropped_back():
    volume = prepared_volume()
    model = WeakUNet(channels=(2, 3, 4), rng=np.random.default_rng(0))
    model.global_pool.blocks = 5.0
    count, heatmap = predict_scan(model, volume)
    front = front_padding(volume.array[1:], 4)  # the first slice is outside the ROI
    z, y, x = front - (1, 0, 0)
    assert (0 <= front).all() and (front < 4).all()
    padded = np.zeros((1, 1, 16, 16, 20), np.float32)
    padded[0, 0, z + 1 : z + 9, y : y + 10, x : x + 13] = volume.array[1:]
    expected_count, expected = model.predict(padded)
    assert isinstance(count, float) and count == pytest.approx(float(expected_count[0]), rel=1e-5)
    expected = expected[0, 0, z : z + 9, y : y + 10, x : x + 13]
    np.testing.assert_allclose(heatmap[1:], expected[1:], rtol=0, atol=1e-6)
    assert np.all(heatmap[0] == expected[1:].min())


def test_cohort_of_prepared_scans_goes_straight_in_and_keeps_its_order(no_pictures, tmp_path):
    model = WeakUNet(channels=(2, 3, 4), rng=np.random.default_rng(0))
    save_checkpoint(tmp_path / "m.npz", model)
    scans = []
    for i, subject in enumerate(("z", "a", "m")):
        volume = prepared_volume(i, (9 + i, 8, 7))
        write_volume(tmp_path / f"{subject}.nii.gz", volume.array, volume)
        scans.append(Scan(subject, tmp_path / f"{subject}.nii.gz"))
    write_cohort(tmp_path / "cohort.csv", scans)
    arguments = ("--model", tmp_path / "m.npz", "--data", tmp_path / "cohort.csv")
    for name in ("one", "two"):
        assert run(*arguments, "--device", "cpu", "--out", tmp_path / name) == 0
    predictions = rows(tmp_path / "one" / "predictions.csv")
    assert [row["subject"] for row in predictions] == ["z", "a", "m"]
    heatmap = nibabel.load(tmp_path / "one" / "m_heatmap.nii.gz")
    assert heatmap.shape == (7, 8, 11)
    for path in (tmp_path / "one").glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_count_of_zero_writes_empty_labels(stub, monkeypatch, tmp_path):
    monkeypatch.setattr(stub, "count", -0.4)
    volume = prepared_volume()
    write_volume(tmp_path / "s.nii", volume.array, volume)
    assert run(tmp_path / "s.nii", "--model", "m.npz", "--out", tmp_path / "out") == 0
    assert rows(tmp_path / "out" / "detections.csv") == []
    (prediction,) = rows(tmp_path / "out" / "predictions.csv")
    assert prediction["n_detected"] == "0" and prediction["threshold"] == "inf"
    assert not np.asarray(nibabel.load(tmp_path / "out" / "s_lesions.nii.gz").dataobj).any()


def test_bad_input_is_refused_in_one_line(stub, tmp_path, capsys):
    xyz, roi = raw_head()
    scan = save(tmp_path / "s.nii.gz", xyz)
    mask = save(tmp_path / "roi.nii.gz", roi)
    moved = save(tmp_path / "moved.nii", roi, AFFINE + np.eye(4)[0][:, None] * np.eye(4)[3])
    same = save(tmp_path / "again" / "S.nii", xyz)
    latin_1 = save(tmp_path / "M\udcfcller.nii", xyz)
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
        "cohort.csv: no such file": ["--data", tmp_path / "cohort.csv"],
        "give either --data cohort.csv or": [],
    }
    for number, (problem, arguments) in enumerate(cases.items()):
        arguments = ["--model", "m.npz", "--out", tmp_path / f"out{number}", *arguments]
        assert run(*arguments) == 2, problem
        captured = capsys.readouterr()
        assert problem in captured.err and captured.out == ""
        assert "Traceback" not in captured.err
        assert not (tmp_path / f"out{number}" / "predictions.csv").exists()


def test_missing_checkpoint_is_refused_before_any_scan_is_read(tmp_path, capsys):
    scan = save(tmp_path / "s.nii.gz", raw_head()[0])
    assert run(scan, "--model", tmp_path / "none.npz", "--out", tmp_path / "out") == 2
    assert "none.npz" in capsys.readouterr().err


def test_failed_scan_is_named_and_the_others_are_predicted(stub, no_pictures, tmp_path, capsys):
    xyz, roi = raw_head()
    mask = save(tmp_path / "roi.nii.gz", roi)
    scans = [save(tmp_path / f"{name}.nii", xyz) for name in "abc"]
    xyz[tuple(np.argwhere(roi)[0])] = np.nan
    save(scans[1], xyz)
    assert run(*scans, "--roi", mask, "--model", "m.npz", "--out", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert f"failed: {scans[1]}: NaN" in errors and "1 of 3 scans failed" in errors
    assert [row["subject"] for row in rows(tmp_path / "out" / "predictions.csv")] == ["a", "c"]
    found = [row["subject"] for row in rows(tmp_path / "out" / "detections.csv")]
    assert [name for name, _ in itertools.groupby(found)] == ["a", "c"]


def test_older_network_sees_a_small_scan_padded_to_the_size_that_it_was_trained_on():
    rng = np.random.default_rng(0)
    model = WeakUNet((2, 3), block=2, region=False, rng=rng)  # a mean over blocks: size matters
    small = np.zeros((5, 6, 7), np.float32)
    small[1:-1, 1:-1, 1:-1] = rng.uniform(0.1, 1, (3, 4, 5))
    padded = np.zeros((8, 12, 10), np.float32)
    padded[:5, :6, :7] = small
    unpadded_count, _ = predict_scan(model, Volume(small, np.eye(4)))
    model.shape = (8, 12, 10)
    count, heatmap = predict_scan(model, Volume(small, np.eye(4)))
    expected, _ = predict_scan(model, Volume(padded, np.eye(4)))
    assert heatmap.shape == small.shape
    assert count == pytest.approx(expected, rel=1e-6)
    assert count != pytest.approx(unpadded_count, rel=1e-3)


def region_network(channels=(2, 3, 4)):
    model = WeakUNet(channels, convs_per_level=2, block=4, rng=np.random.default_rng(1))
    model.global_pool.blocks = 6.0
    for name, value in model.params.items():
        if name.endswith(".b"):
            value[:] = 0.3  # a network that answers to nothing at all would hide what zeros do
    return model


@pytest.mark.parametrize("zeros", [1, 2, 4, 7, 16])
def test_zeros_around_a_scan_change_neither_count_nor_heatmap(zeros):
    model, volume = region_network(), prepared_volume()
    count, heatmap = predict_scan(model, volume)
    around = Volume(np.pad(volume.array, zeros), AFFINE)
    again, larger = predict_scan(model, around)
    assert again == count != 0
    np.testing.assert_array_equal(larger[(slice(zeros, -zeros),) * 3], heatmap)


def test_network_cannot_tell_outside_the_roi_from_outside_the_array():
    model, array = region_network(), prepared_volume(shape=(8, 12, 8)).array[None, None]
    padded = np.pad(array, [(0, 0), (0, 0), (4, 4), (4, 8), (0, 4)])
    np.testing.assert_allclose(model.predict(padded)[0], model.predict(array)[0], rtol=1e-6)


def test_counts_of_two_regions_add_up():
    model, rng = region_network(), np.random.default_rng(2)
    one, two = (rng.uniform(0.1, 1, (8, 8, 8)).astype(np.float32) for _ in "12")
    both = np.concatenate([one, np.zeros((8, 8, 8), np.float32), two], axis=2)
    counts = [float(model.predict(a[None, None])[0][0]) for a in (one, two, both)]
    assert counts[2] == pytest.approx(counts[0] + counts[1], rel=1e-6)


def test_only_the_counted_slice_is_pooled_wherever_the_scan_was_cropped():
    model, volume = region_network(), prepared_volume(shape=(60, 8, 8))
    count, _ = predict_scan(model, volume, 30)
    whole, _ = predict_scan(model, volume)
    assert count != pytest.approx(whole, rel=0.1)
    around = Volume(np.pad(volume.array, [(5, 0), (0, 0), (0, 0)]), AFFINE)
    assert predict_scan(model, around, 35)[0] == count
    far = volume.array.copy()
    far[1:3] = far[2:0:-1]  # too far from the slice to be seen from it
    assert predict_scan(model, Volume(far, AFFINE), 30)[0] == pytest.approx(count, rel=1e-6)


def test_scan_of_another_voxel_size_is_refused_with_the_remedy(no_pictures, tmp_path, capsys):
    model = WeakUNet(channels=(2, 3), rng=np.random.default_rng(0))
    model.spacing_mm = (0.8, 0.6, 0.5)
    save_checkpoint(tmp_path / "m.npz", model)
    volume = prepared_volume()  # 0.5, 0.6, 0.8 mm along x, y, z
    other = Volume(volume.array, AFFINE @ np.diag([0.5, 0.5, 0.5, 1]))
    for name, scan in (("s", volume), ("half", other)):
        write_volume(tmp_path / f"{name}.nii", scan.array, scan)
    options = ("--model", tmp_path / "m.npz", "--device", "cpu", "--out")
    assert run(tmp_path / "s.nii", *options, tmp_path / "one") == 0
    assert run(tmp_path / "half.nii", *options, tmp_path / "two") == 2
    assert "preprocess --spacing-mm 0.8 0.6 0.5" in capsys.readouterr().err


def test_box_larger_than_in_training_is_called_out_where_the_count_depends_on_it():
    volume, rng = prepared_volume(shape=(8, 8, 12)), np.random.default_rng(0)
    for pooling, region, trained, said in (
        ("lmax", False, (8, 8, 8), True),
        ("mean", True, (8, 8, 8), True),  # the mean has no region
        ("lmax", False, (8, 8, 12), False),
        ("lmax", True, (8, 8, 8), False),
        ("max", True, (8, 8, 8), False),
    ):
        model = WeakUNet((2, 3), pooling=pooling, region=region, rng=rng)
        model.shape = trained
        note = predict.warn_of_larger_box(model, volume)
        assert (note is not None and "(8, 8, 12)" in note) == said, (pooling, region, trained)
