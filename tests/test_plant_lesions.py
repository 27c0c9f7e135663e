"""Planted cohorts: known centres, the region in its place, and a real head where there is one."""

from pathlib import Path

import numpy as np
import plant_lesions
import pytest
from helpers import moved, refusal
from scipy import ndimage

from weakunet import preprocess
from weakunet.data.cohort import read_centres, read_cohort
from weakunet.data.load import load_scan
from weakunet.data.volumes import Volume, read_volume, world_to_index, write_volume

TEMPLATES = Path("/usr/share/mricron/templates")  # Debian's mricron-data
NUCLEI = ["71", "72", "73", "74", "75", "76"]  # AAL: caudate, putamen, pallidum


def write_head(folder):
    """A T1-like head of 1 mm (dark fluid, grey core); labels on a coarser, flipped grid."""
    z, y, x = np.indices((40, 48, 44)) - np.array([20, 24, 22])[:, None, None, None]
    image = np.where(z**2 + y**2 + x**2 < 19**2, 100.0, 5.0).astype(np.float32)
    core = (z / 7) ** 2 + (y / 9) ** 2 + ((x - 3) / 8) ** 2 < 1
    image[core] = 80
    image[(z / 5) ** 2 + (y / 8) ** 2 + ((x + 8) / 3) ** 2 < 1] = 10
    affine = moved(mm=(-22, -24, -20))
    write_volume(folder / "head.nii.gz", image, Volume(image, affine))
    coarse = np.zeros((24, 28, 26), np.int32)
    flipped = moved(mm=(25, -27, -23), spacing=(-2, 2, 2))
    z, y, x = np.indices(coarse.shape)
    x_mm, y_mm, z_mm = 25 - 2 * x, 2 * y - 27, 2 * z - 23
    coarse[(z_mm / 7) ** 2 + (y_mm / 9) ** 2 + ((x_mm - 3) / 8) ** 2 < 1] = 7
    coarse[0] = 3
    write_volume(folder / "labels.nii.gz", coarse, Volume(coarse, flipped))
    return [
        *("--scan", str(folder / "head.nii.gz"), "--roi", str(folder / "labels.nii.gz")),
        *("--labels", "7", "--invert"),
    ]


def test_lesions_lie_where_the_table_says(tmp_path):
    numbers = ["--train", "3", "--val", "1", "--test", "1", "--mean-count", "6"]
    plant_lesions.main([*write_head(tmp_path), "--out", str(tmp_path / "out"), *numbers])
    table = read_cohort(tmp_path / "out" / "cohort.csv")
    assert [row.split for row in table] == ["train"] * 3 + ["val", "test"]
    assert sum(row.count for row in table) > 5
    brighter = []
    for row in table:
        image, roi = read_volume(row.image), read_volume(row.roi)
        centres_mm = read_centres(row.centres)
        assert len(centres_mm) == row.count
        # the core's middle is at (3, 0, 0) mm; the warp moves it by a millimetre or so
        middle = world_to_index(roi, [[3, 0, 0]])[0]
        assert np.abs(np.argwhere(roi.array > 0).mean(axis=0) - middle).max() < 2.5
        places = world_to_index(image, centres_mm)
        assert (ndimage.map_coordinates(roi.array, places.T, order=0) > 0).all()
        background = np.median(image.array[roi.array > 0])
        brighter.extend(ndimage.map_coordinates(image.array, places.T, order=1) - background)
    assert np.mean(np.array(brighter) > 50) > 0.9  # full scale is about 1000, noise 20


def test_planting_is_seeded_and_no_two_scans_are_alike(tmp_path):
    head = write_head(tmp_path)
    few = ["--train", "1", "--val", "0", "--test", "1"]
    for name, numbers in (("a", few), ("b", ["--train", "2", "--val", "0", "--test", "1"])):
        plant_lesions.main([*head, "--out", str(tmp_path / name), "--spacing-mm", "1.5", *numbers])
    a, b = (tmp_path / name / "test0000.nii.gz" for name in "ab")
    assert a.read_bytes() == b.read_bytes()
    first, second = (read_volume(tmp_path / "b" / f"train000{i}.nii.gz") for i in (0, 1))
    assert first.spacing_mm == pytest.approx((1.5, 1.5, 1.5))
    assert np.abs(first.array - second.array).max() > 100


def test_moved_heads_are_whole_dark_lesioned_and_each_elsewhere(tmp_path):
    numbers = ["--train", "0", "--val", "0", "--test", "3", "--mean-count", "6", "--moved"]
    plant_lesions.main([*write_head(tmp_path), "--out", str(tmp_path / "out"), *numbers])
    head, darker, affines = read_volume(tmp_path / "head.nii.gz"), [], []
    for row in read_cohort(tmp_path / "out" / "cohort.csv"):
        image, roi = read_volume(row.image), read_volume(row.roi)
        assert image.array.shape == head.array.shape
        middle, corner = image.array[18:23, 22:27, 20:25], image.array[:4, :4, :4]
        assert np.median(middle) > 300 and np.median(corner) < 100  # T1-like: air is dark
        places = world_to_index(image, read_centres(row.centres))
        assert (ndimage.map_coordinates(roi.array, places.T, order=0) > 0).all()
        background = np.median(image.array[roi.array > 0])
        darker.extend(background - ndimage.map_coordinates(image.array, places.T, order=1))
        affines.append(image.affine)
    assert np.mean(np.array(darker) > 50) > 0.9 and len(darker) > 5
    turns = [affine[:3, :3] for affine in affines]
    np.testing.assert_allclose([turn @ turn.T for turn in turns], [np.eye(3)] * 3, atol=1e-5)
    assert min(np.abs(a - b).max() for a, b in zip(affines, affines[1:], strict=False)) > 1


def test_a_region_off_the_scan_is_refused(tmp_path, capsys):
    head = write_head(tmp_path)
    far = read_volume(tmp_path / "labels.nii.gz")
    far.affine[:3, 3] += 500
    write_volume(tmp_path / "far.nii.gz", far.array, Volume(far.array, far.affine))
    for bad, named in (
        (("--roi", tmp_path / "far.nii.gz"), "far.nii.gz"),
        (("--labels", "99"), "labels.nii.gz"),
    ):
        options = (*head, *bad, "--out", tmp_path / "out")
        assert named in refusal(capsys, plant_lesions.main, *options)


def test_the_real_head_goes_all_the_way_to_prepared_scans(tmp_path):
    scan, labels = TEMPLATES / "ch2better.nii.gz", TEMPLATES / "aal.nii.gz"
    if not scan.is_file():
        pytest.skip(f"no {scan}: install Debian's package mricron-data")
    plant_lesions.main(
        ["--scan", str(scan), "--roi", str(labels), "--labels", *NUCLEI, "--invert"]
        + ["--spacing-mm", "0.9", "--out", str(tmp_path / "raw")]
        + ["--train", "1", "--val", "1", "--test", "1", "--mean-count", "8"]
    )
    raw_table = str(tmp_path / "raw" / "cohort.csv")
    preprocess.main(["--data", raw_table, "--out", str(tmp_path / "prepared"), "--jobs", "1"])
    for row in read_cohort(tmp_path / "prepared" / "cohort.csv"):
        prepared = load_scan(row)
        size_mm = np.multiply(prepared.volume.array.shape, 0.9)
        assert np.all(np.abs(size_mm - (44, 59, 77)) < 6)  # z, y, x: the nuclei and 3 voxels around
        inside = prepared.volume.array > 0.05
        # the ventricles' fluid is bright
        assert np.mean(prepared.volume.array[inside] > 0.8) > 0.01
        assert len(prepared.centres_zyx) == prepared.count
        # tissue around each lesion is darker than its middle
        for place in np.round(prepared.centres_zyx).astype(int):
            box = tuple(slice(max(0, i - 4), i + 5) for i in place)
            core = tuple(slice(max(0, i - 1), i + 2) for i in place)
            assert prepared.volume.array[core].max() > np.median(prepared.volume.array[box])
