"""Registration of a real head, turned and shifted by a known amount, and the way back."""

import importlib.metadata
from pathlib import Path

import detections_to_scan
import nibabel
import numpy as np
import pytest
import register_to_mni
import rigid_elastix
from helpers import exit_code, moved, refusal, rows, save
from nibabel.affines import apply_affine
from scan_tools import box_grid, read_matrix, write_matrix
from scipy import ndimage
from scipy.spatial.transform import Rotation

from weakunet.data.cohort import Scan, read_centres, read_cohort, write_cohort
from weakunet.data.rigid import resample
from weakunet.data.volumes import Volume, read_volume
from weakunet.detection.output_files import DETECTIONS
from weakunet.util.cli import InputError, write_csv

TEMPLATES = Path("/usr/share/mricron/templates")  # Debian's mricron-data


def seen_of(image, matrix, affine, shape, order):
    """What a scanner sees, on its own grid, of `image` moved by `matrix`; (i, j, k)."""
    step = np.linalg.inv(image.affine) @ np.linalg.inv(matrix) @ affine
    voxels = np.asarray(image.dataobj, np.float32)
    return ndimage.affine_transform(voxels, step[:3, :3], step[:3, 3], shape, order=order)


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Two scans of the real head at 2 mm, one that is none, and what the command makes of them."""
    head, labels = TEMPLATES / "ch2better.nii.gz", TEMPLATES / "aal.nii.gz"
    if not head.is_file():
        pytest.skip(f"no {head}: install Debian's package mricron-data")
    try:
        importlib.metadata.version("itk-elastix")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no itk-elastix: pip install -r data_tools/requirements.txt")
    folder = tmp_path_factory.mktemp("registration")
    head, labels = nibabel.load(head), nibabel.load(labels)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -74, -106, -69
    small = seen_of(head, np.eye(4), affine, (75, 92, 78), 1)
    save(folder / "template.nii.gz", small, affine)
    truth = {
        "only_affine": moved((9, -7, 12), (20, -25, 30)),
        "resampled": moved((-11, 6, -8), (-12, 30, 18)),
    }
    save(folder / "only_affine.nii.gz", small, truth["only_affine"] @ affine)
    grid = np.diag([1.7, 1.8, 3.0, 1])
    grid[:3, 3] = -100, -105, -85
    scan = seen_of(head, truth["resampled"], grid, (112, 124, 68), 1)
    scan = np.where(scan > 8, 300 - scan, 0)  # another contrast
    save(folder / "resampled.nii.gz", scan.astype(np.float32), grid, "PSL")
    nuclei = nibabel.Nifti1Image(np.isin(labels.dataobj, range(71, 77)).astype("u1"), labels.affine)
    roi = seen_of(nuclei, truth["resampled"], grid, (112, 124, 68), 0)
    save(folder / "roi.nii.gz", roi.astype(np.uint8), grid)
    (folder / "none.nii.gz").write_bytes(b"no image")
    points_mm = apply_affine(nuclei.affine, np.argwhere(np.asarray(nuclei.dataobj))[::900])
    lines = apply_affine(truth["resampled"], points_mm)
    write_csv(folder / "c.csv", ("x_mm", "y_mm", "z_mm"), lines)
    more = {"roi": folder / "roi.nii.gz", "centres": folder / "c.csv"}
    scans = [
        Scan("only_affine", folder / "only_affine.nii.gz", 0, slice_z_mm=35),
        Scan("none", folder / "none.nii.gz", 1, slice_z_mm=0),
        Scan("resampled", folder / "resampled.nii.gz", 9, slice_z_mm=20, **more),
    ]
    write_cohort(folder / "cohort.csv", scans)
    arguments = ["--data", folder / "cohort.csv", "--template", folder / "template.nii.gz"]
    arguments += ["--out", folder / "out", "--spacing-mm", 2, 2, 2, "--jobs", 1]
    assert exit_code(register_to_mni.main, *arguments) == 2
    brain_mm = apply_affine(labels.affine, np.argwhere(np.asarray(labels.dataobj))[::50])
    return folder, truth, brain_mm, points_mm, nuclei, arguments


def test_a_known_turn_and_shift_is_recovered_within_half_a_degree_and_half_a_millimetre(registered):
    folder, truth, brain_mm, *_ = registered
    for name, matrix in truth.items():
        both = np.loadtxt(folder / "out" / f"{name}_to_template.txt") @ matrix
        assert np.rad2deg(Rotation.from_matrix(both[:3, :3]).magnitude()) < 0.5
        assert np.linalg.norm(apply_affine(both, brain_mm) - brain_mm, axis=1).max() < 0.5


def test_one_run_of_elastix_turns_about_its_axes_in_its_order(registered):
    folder, truth, *_ = registered  # a second run would correct a slight error of the first
    images = [read_volume(folder / f"{name}.nii.gz") for name in ("template", "only_affine")]
    small = [rigid_elastix.shrink(image, 4.0) for image in images]
    both = rigid_elastix.run_elastix(*small, np.eye(4), "scan") @ truth["only_affine"]
    assert np.rad2deg(Rotation.from_matrix(both[:3, :3]).magnitude()) < 0.3


def test_image_roi_and_centres_arrive_in_the_template(registered):
    folder, truth, _, points_mm, nuclei, _ = registered
    row = read_cohort(folder / "out" / "cohort.csv")[1]
    assert (row.subject, row.count) == ("resampled", 9)
    assert np.abs(read_centres(row.centres) - points_mm).max() < 0.5
    middle_mm = -100 + 1.7 * 111 / 2, -105 + 1.8 * 123 / 2, 20
    slice_mm = apply_affine(np.linalg.inv(truth["resampled"]), middle_mm)
    assert row.slice_z_mm == pytest.approx(slice_mm[2], abs=0.5)
    template = nibabel.load(folder / "template.nii.gz")
    image = nibabel.load(row.image)
    assert image.header.get_zooms() == (2, 2, 2)
    # edge to edge the same box, so at the same spacing the same voxels
    assert image.shape == template.shape and np.allclose(image.affine, template.affine)
    wanted = template.get_fdata()
    inner = ndimage.minimum_filter(wanted, 3) > 60  # away from the skin of the brain
    assert np.corrcoef(image.get_fdata()[inner], wanted[inner])[0, 1] < -0.9  # 300 minus the head
    roi = nibabel.load(row.roi)
    wanted = seen_of(nuclei, np.eye(4), roi.affine, roi.shape, 0)
    both = np.logical_and(roi.get_fdata(), wanted).sum()
    assert 2 * both / (roi.get_fdata().sum() + wanted.sum()) > 0.85


def test_a_failed_scan_is_named_and_what_is_done_is_kept(registered, capsys):
    folder, *_, arguments = registered
    assert not list((folder / "out").glob("none*"))
    assert (folder / "out" / "resampled_check.png").stat().st_size > 10_000
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*_*")}
    exit_code(register_to_mni.main, *arguments)
    *_, failure, last = capsys.readouterr().err.splitlines()
    assert "failed: " in failure and "none.nii.gz" in failure and "1 of 3 scans failed" in last
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*_*")}


def test_the_same_scan_gives_the_same_matrix_and_files_by_name_need_no_table(registered):
    folder, *_ = registered
    options = ["--scan", folder / "only_affine.nii.gz", "--out", folder / "again"]
    options += ["--template", folder / "template.nii.gz", "--spacing-mm", 4, 4, 4]
    assert exit_code(register_to_mni.main, *options) == 0
    ours, before = (folder / name / "only_affine_to_template.txt" for name in ("again", "out"))
    assert ours.read_text() == before.read_text()
    assert nibabel.load(folder / "again" / "only_affine.nii.gz").header.get_zooms() == (4, 4, 4)


def ramps(shape, affine):
    """Three Volumes (z, y, x): the world's x, y and z in mm at each voxel."""
    mm = apply_affine(affine, np.moveaxis(np.indices(shape[::-1]), 0, -1)).transpose(2, 1, 0, 3)
    return [Volume(np.ascontiguousarray(mm[..., i]), affine) for i in range(3)]


@pytest.mark.parametrize("voxel_mm", [0.5, 2.0, 3.0, 4.1])
def test_shrinking_leaves_every_place_where_it_was(voxel_mm):
    affine = moved((5, -8, 3), (-7, 12, 30), (0.8, 1.0, 1.6))
    for i, volume in enumerate(ramps((12, 18, 25), affine)):
        small = rigid_elastix.shrink(volume, voxel_mm)
        whole = tuple(slice(0, n - 1) for n in small.array.shape)  # the last may be cut off
        wanted = ramps(small.array.shape, small.affine)[i].array
        np.testing.assert_allclose(small.array[whole], wanted[whole], atol=1e-9)
        assert small.array.shape == tuple(
            np.ceil(np.array(n) / max(1, round(voxel_mm / step)) - 0.5).astype(int)
            for n, step in zip((12, 18, 25), (1.6, 1.0, 0.8), strict=True)
        )


@pytest.mark.parametrize("order", [1, 3])
def test_resampling_goes_by_the_world_and_through_the_matrix(order):
    affine = moved((5, -8, 3), (-7, 12, 30), (0.8, 1.0, 1.6))
    matrix = moved((-4, 9, 15), (3, -2, 6))
    grid = moved((2, 3, -4), (0, 0, 0), (0.7, 0.6, 0.9))
    grid[:3, 3] = apply_affine(matrix @ affine, (8, 6, 5)) - (2, 2, 2)
    like = Volume(np.zeros((5, 6, 7)), grid)
    wanted = [volume.array for volume in ramps((5, 6, 7), np.linalg.inv(matrix) @ grid)]
    for volume, mm in zip(ramps((16, 18, 25), affine), wanted, strict=True):
        got = resample(volume, like, order, matrix, fill=np.nan)
        np.testing.assert_allclose(got, mm, atol=1e-9 if order == 1 else 0.01)


def test_the_nearest_voxel_counts_up_to_the_images_outer_edges():
    volume = Volume(np.arange(1, 4.0).reshape(1, 1, 3), np.eye(4))
    fine = np.diag([0.25, 1, 1, 1])
    fine[0, 3] = -0.875
    got = resample(volume, Volume(np.zeros((1, 1, 16)), fine), 0, fill=-1)[0, 0]
    assert got.tolist() == [-1] * 2 + [1] * 4 + [2] * 4 + [3] * 4 + [-1] * 2


def test_a_grid_fills_the_box_edge_to_edge_and_refuses_a_spacing_that_does_not_fit():
    affine = np.diag([2.0, 3, 4, 1])
    affine[:3, 3] = 5, 6, 7
    volume = Volume(np.zeros((5, 4, 3)), affine)  # x from 4 to 10, y 4.5 to 16.5, z 5 to 25
    grid = box_grid(volume, (0.5, 0.7, 8))
    assert grid.array.shape == (2, 17, 12)  # 2.5 voxels of 8 mm, 17.1 of 0.7
    np.testing.assert_allclose(grid.affine[:3, 3], (4.25, 4.85, 9))
    for bad in ((0, 1, 1), (1, -1, 1), (1, 1, np.nan), (50, 1, 1), (0.001, 0.001, 0.001)):
        with pytest.raises(InputError, match="spacing"):
            box_grid(volume, bad)


def test_without_elastix_one_line_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    path = save(tmp_path / "scan.nii.gz", np.ones((8, 8, 8), np.float32), np.eye(4))
    options = ("--scan", path, "--template", path, "--out", tmp_path / "out")
    line = refusal(capsys, register_to_mni.main, *options)
    assert "pip install -r" in line and "itk-elastix" in line and not (tmp_path / "out").exists()


def write_prediction(folder, matrix, points_mm):
    """A prediction on a registered scan: two detections, the second of one small voxel."""
    labels = np.zeros((60, 60, 40), np.int32)
    affine = np.diag([0.5, 0.5, 0.8, 1])
    affine[:3, 3] = -15, -15, -16
    for n, point in enumerate(points_mm, start=1):
        at = np.round(apply_affine(np.linalg.inv(affine), point)).astype(int)
        reach = 3 if n == 1 else 0
        labels[tuple(slice(i - reach, i + reach + 1) for i in at)] = n
    save(folder / "predictions" / "s1_lesions.nii.gz", labels, affine)
    heatmap = labels.astype(np.float32) - 3
    save(folder / "predictions" / "s1_heatmap.nii.gz", heatmap, affine)
    table = [["s1", n, 0, 0, 0, *point, 1.5, 2.5] for n, point in enumerate(points_mm, start=1)]
    write_csv(folder / "predictions" / "detections.csv", DETECTIONS, table)
    write_matrix(folder / "registered" / "s1_to_template.txt", matrix, "a test")


def test_detections_come_back_to_the_scans_own_world_and_voxels(tmp_path):
    to_template = moved((20, -15, 30), (8, -5, 12))
    points_mm = np.array([[2.0, -4.0, 1.6], [-6.5, 5.0, -4.0]])
    write_prediction(tmp_path, to_template, points_mm)
    affine = moved((4, -3, 8), (-44, -32, -38), (2.0, 1.5, 2.5))
    scan = save(tmp_path / "s1.nii.gz", np.ones((44, 44, 32), np.float32), affine, "LIP")
    folders = {"predictions": "predictions", "out": "out", "transforms": "registered"}
    options = [f"--{name}={tmp_path / folder}" for name, folder in folders.items()]
    assert exit_code(detections_to_scan.main, "--scan", scan, *options) == 0
    found = rows(tmp_path / "out" / "detections.csv")
    assert list(found[0]) == list(DETECTIONS)
    assert [row["volume_mm3"] for row in found] == ["2.5", "2.5"]
    found_mm = np.array([[float(row[name]) for name in DETECTIONS[5:8]] for row in found])
    expected_mm = apply_affine(np.linalg.inv(to_template), points_mm)
    np.testing.assert_allclose(found_mm, expected_mm, atol=6e-4)
    stored = nibabel.load(scan)
    places = np.array([[float(row[name]) for name in "ijk"] for row in found])
    np.testing.assert_allclose(apply_affine(stored.affine, places), expected_mm, atol=3e-3)
    labels = nibabel.load(tmp_path / "out" / "s1_lesions.nii.gz")
    assert labels.shape == stored.shape and np.allclose(labels.affine, stored.affine)
    at = tuple(np.round(places).astype(int).T)
    assert labels.get_fdata()[at].tolist() == [1, 2]
    assert np.sum(labels.get_fdata() == 2) == 1  # half a voxel's volume, kept
    assert abs(np.sum(labels.get_fdata() == 1) * 7.5 - 343 * 0.2) < 25  # mm3
    # where the scan's voxel lies far from the lesion: the heatmap's lowest
    assert nibabel.load(tmp_path / "out" / "s1_heatmap.nii.gz").get_fdata()[0, 0, 0] == -3


def test_a_detection_of_a_scan_that_is_not_named_is_refused(tmp_path, capsys):
    write_prediction(tmp_path, np.eye(4), np.zeros((2, 3)))
    scan = save(tmp_path / "other.nii.gz", np.ones((8, 8, 8), np.float32), np.eye(4))
    options = ["--scan", scan, "--predictions", tmp_path / "predictions"]
    options += ["--transforms", tmp_path, "--out", tmp_path / "out"]
    assert "'s1'" in refusal(capsys, detections_to_scan.main, *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["1 2 3\n4 5 6", "a b", "", "1 0 0 0\n0 1 0 0\n0 0 0 0\n0 0 0 1", "nan " * 16]
)
@pytest.mark.filterwarnings("error")
def test_a_file_that_is_no_matrix_is_refused_by_name(tmp_path, text):
    path = tmp_path / "m.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=r"m\.txt.*matrix"):
        read_matrix(path)
