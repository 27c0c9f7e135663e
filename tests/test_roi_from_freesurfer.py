"""ROI masks from small label images as FreeSurfer's: the right structures, in their place."""

import nibabel
import numpy as np
import pytest
import roi_from_freesurfer
from helpers import exit_code, moved, refusal, save
from nibabel.affines import apply_affine

from weakunet.data.cohort import Scan, read_cohort, write_cohort

# as mri_convert writes aseg.mgz: 1 mm, i to the left, j down, k to the front
ASEG = np.array([[-1.0, 0, 0, 20], [0, 0, 1, -24], [0, -1, 0, 18], [0, 0, 0, 1]])
BOXES = {  # label: low and high corner of its box, (x, y, z) mm
    2: ((-16, -16, -10), (-1, 16, 16)),
    41: ((1, -16, -10), (16, 16, 16)),
    4: ((-6, -8, 2), (-2, 8, 8)),
    43: ((2, -8, 2), (6, 8, 7)),
    11: ((-9, 2, -2), (-5, 9, 4)),
    12: ((-14, -4, -4), (-9, 6, 3)),
    13: ((-8, -4, -4), (-6, 1, 1)),
    26: ((-6, 4, -7), (-3, 8, -4)),
    50: ((5, 2, -2), (9, 9, 4)),
    51: ((9, -4, -4), (14, 6, 3)),
    52: ((6, -4, -4), (8, 1, 1)),
    58: ((3, 4, -7), (6, 8, -4)),
    17: ((-13, -14, -9), (-8, -8, -6)),
    16: ((-2, -10, -16), (2, -4, -8)),
}


def label_array(without=()):
    """Labels (i, j, k) on the grid of ASEG; later boxes lie upon earlier ones."""
    world = np.moveaxis(np.indices((40, 36, 48)), 0, -1) @ ASEG[:3, :3].T + ASEG[:3, 3]
    labels = np.zeros((40, 36, 48), np.int32)
    for number, (low, high) in BOXES.items():
        if number not in without:
            labels[((world >= low) & (world < high)).all(axis=-1)] = number
    return labels


def write_labels(path, labels):
    return save(path, labels, ASEG)


def write_scan(path, affine, shape=(50, 46, 34)):
    """A scan on its own grid, with something to see in it."""
    return save(path, np.random.default_rng(0).random(shape, np.float32), affine)


def expected_mask(labels, numbers, scan_path, scan_to_labels=None):
    """Voxel by voxel with nibabel: the label at the voxel of ASEG nearest to the scan's voxel."""
    scan = nibabel.load(scan_path)
    mm = apply_affine(scan.affine, np.moveaxis(np.indices(scan.shape), 0, -1))
    if scan_to_labels is not None:
        mm = apply_affine(scan_to_labels, mm)
    at = np.floor(apply_affine(np.linalg.inv(ASEG), mm) + 0.5).astype(int)
    inside = ((at >= 0) & (at < labels.shape)).all(axis=-1)
    at[~inside] = 0
    return inside & np.isin(labels[tuple(np.moveaxis(at, -1, 0))], numbers)


def run(tmp_path, labels_path, scan_path, *options):
    words = ["--labels", labels_path, "--scan", scan_path, *options, "--out", tmp_path / "rois"]
    assert exit_code(roi_from_freesurfer.main, *words) == 0
    return nibabel.load(tmp_path / "rois" / "scan_roi.nii.gz")


SCAN = moved((6, -9, 14), (22, -20, 24), (-0.9, 0.8, -1.3))  # not RAS, oblique


@pytest.mark.parametrize(
    ("structures", "numbers"),
    [
        ([], [11, 12, 13, 26, 50, 51, 52, 58]),
        (["Hippocampus", "right-putamen"], [17, 51]),
        (["16"], [16]),
    ],
)
def test_the_mask_is_the_structures_on_the_scans_grid(tmp_path, structures, numbers):
    labels = label_array()
    scan = write_scan(tmp_path / "scan.nii.gz", SCAN)
    options = ["--structures", *structures] if structures else []
    roi = run(tmp_path, write_labels(tmp_path / "aseg.mgz", labels), scan, *options)
    expected = expected_mask(labels, numbers, scan)
    assert expected.sum() > 50 and np.allclose(roi.affine, SCAN, atol=1e-5)
    assert (roi.get_fdata() == expected).mean() > 0.9999  # ties between voxels by rounding only
    assert set(np.unique(roi.get_fdata())) == {0, 1}
    assert (tmp_path / "rois" / "scan_roi.png").stat().st_size > 10_000


def test_the_mask_of_a_registered_scan_goes_through_its_matrix(tmp_path):
    labels = label_array()
    to_template = moved((12, 5, -20), (30, -40, 25))
    np.savetxt(tmp_path / "scan_to_template.txt", to_template)
    scan = write_scan(tmp_path / "scan.nii.gz", to_template @ SCAN)
    options = ["--transform", tmp_path / "{subject}_to_template.txt"]
    roi = run(tmp_path, write_labels(tmp_path / "aseg.mgz", labels), scan, *options)
    numbers = [11, 12, 13, 26, 50, 51, 52, 58]
    expected = expected_mask(labels, numbers, scan, np.linalg.inv(to_template))
    assert expected.sum() > 500 and (roi.get_fdata() == expected).mean() > 0.9999


def test_centrum_semiovale_is_the_white_matter_above_both_ventricles(tmp_path):
    labels = label_array()
    labels[30, 20, 30] = 77  # a bright spot below the ventricles' top is none of it
    scan = write_scan(tmp_path / "scan.nii.gz", ASEG, labels.shape)
    path = write_labels(tmp_path / "aseg.mgz", labels)
    roi = run(tmp_path, path, scan, "--structures", "centrum-semiovale").get_fdata() > 0
    z_mm = apply_affine(ASEG, np.argwhere(roi))[:, 2]
    assert z_mm.min() == 8  # the left ventricle ends below 8, the right one below 7
    assert roi.sum() == np.isin(labels, (2, 41))[:, :11].sum()  # j = 18 - z, up to z = 8


def test_a_cohort_gets_its_roi_column_and_a_failed_scan_does_not_stop_it(tmp_path, capsys):
    scans = []
    for subject, without in (("a", ()), ("b", range(60)), ("c", (52,))):
        path = write_scan(tmp_path / f"{subject}.nii.gz", SCAN)
        write_labels(tmp_path / subject / "aseg.mgz", label_array(without))
        scans.append(Scan(subject, path, 3))
    write_cohort(tmp_path / "cohort.csv", scans)
    words = ["--data", tmp_path / "cohort.csv", "--out", tmp_path / "rois"]
    words += ["--labels", tmp_path / "{subject}" / "aseg.mgz"]
    assert exit_code(roi_from_freesurfer.main, *words) == 2
    messages = capsys.readouterr().err
    assert "1 of 3 scans failed" in messages and "only 0" in messages
    assert "c/aseg.mgz: no voxel is 52 Right-Pallidum" in messages.replace("\\", "/")
    done = read_cohort(tmp_path / "rois" / "cohort.csv")
    assert [scan.subject for scan in done] == ["a", "c"]
    sizes = [nibabel.load(scan.roi).get_fdata().sum() for scan in done]
    assert sizes[0] > sizes[1] > 0
    # corrected and started again, in parts that are then joined: only what changed is made
    times = [scan.roi.stat().st_mtime_ns for scan in done]
    write_labels(tmp_path / "b" / "aseg.mgz", label_array())
    write_labels(tmp_path / "c" / "aseg.mgz", label_array())
    for options in (["--part", "1/2"], ["--part", "2/2"], []):
        assert exit_code(roi_from_freesurfer.main, *words, *options) == 0
    done = read_cohort(tmp_path / "rois" / "cohort.csv")
    assert [scan.subject for scan in done] == ["a", "b", "c"]
    assert [nibabel.load(scan.roi).get_fdata().sum() for scan in done] == [sizes[0]] * 3
    assert done[0].roi.stat().st_mtime_ns == times[0]
    options = ["--subjects", "a", "--structures", "putamen"]
    assert exit_code(roi_from_freesurfer.main, *words, *options) == 0
    assert nibabel.load(done[0].roi).get_fdata().sum() < sizes[0]


def test_an_atlas_is_for_scans_on_one_grid(tmp_path, capsys):
    atlas, scans = write_labels(tmp_path / "atlas.mgz", label_array()), []
    for subject, corner in (("a", (22, -20, 24)), ("b", (22, -20, 24)), ("c", (22, -20, 25))):
        affine = moved((6, -9, 14), corner, (-0.9, 0.8, -1.3))
        path = write_scan(tmp_path / f"{subject}.nii.gz", affine)
        scans.append(Scan(subject, path, 3))
    words = ["--labels", atlas, "--out", tmp_path / "rois", "--data", tmp_path / "cohort.csv"]
    write_cohort(tmp_path / "cohort.csv", scans[:2])
    assert exit_code(roi_from_freesurfer.main, *words) == 0
    masks = [nibabel.load(tmp_path / "rois" / f"{name}_roi.nii.gz").get_fdata() for name in "ab"]
    assert masks[0].sum() > 500 and (masks[0] == masks[1]).all()
    write_cohort(tmp_path / "cohort.csv", scans)
    message = refusal(capsys, roi_from_freesurfer.main, *words)
    assert all(part in message for part in ("atlas.mgz", "{subject}", "c.nii.gz", "one file"))


def test_what_cannot_be_made_is_refused_by_name(tmp_path, capsys):
    labels, far = label_array(), moved(mm=(300, 300, 300)) @ SCAN
    scan, far = write_scan(tmp_path / "scan.nii.gz", SCAN), write_scan(tmp_path / "far.nii.gz", far)
    aseg = write_labels(tmp_path / "aseg.mgz", labels)
    grey = write_labels(tmp_path / "grey.mgz", (labels + 0.5).astype(np.float32))
    flat = write_labels(tmp_path / "flat.mgz", label_array(without=(4, 43)))
    for labels, own, options, *said in (
        (aseg, scan, "--structures=midbrain", "173 Midbrain", "16 Brain-Stem", "12 Left-Put"),
        (aseg, scan, "--structures=putamens", "'putamens'", "--list"),
        (aseg, far, "--jobs=1", "far.nii.gz", "--transform"),
        (grey, scan, "--jobs=1", "grey.mgz", "whole numbers"),
        (flat, scan, "--structures=centrum-semiovale", "flat.mgz", "lateral ventricle"),
        (tmp_path / "no.mgz", scan, "--jobs=1", "no.mgz", "no such file"),
        (aseg, scan, f"--transform={tmp_path / 'no.txt'}", "no.txt", "no such file"),
    ):
        words = ("--labels", labels, "--scan", own, options, "--out", tmp_path / "rois")
        assert exit_code(roi_from_freesurfer.main, *words) == 2
        message = capsys.readouterr().err
        assert all(part in message for part in said) and "Traceback" not in message, message
        assert not list(tmp_path.glob("rois/*_roi*"))


def test_list_prints_names_numbers_and_groups(capsys):
    assert exit_code(roi_from_freesurfer.main, "--list") == 0
    text = capsys.readouterr().out
    # from FreeSurferColorLUT.txt
    names = ["basal-ganglia", "53 Right-Hippocampus", "173 Midbrain", "251 CC_Posterior"]
    names += ["1001 ctx-lh-bankssts", "2035 ctx-rh-insula", "3028 wm-lh-superiorfrontal"]
    assert all(name in text for name in [*names, "5002 Right-UnsegmentedWhiteMatter"])
