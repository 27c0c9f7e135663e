"""One head, stored in each of the 48 axis orientations, has the same lesions in world mm.

6 orders of the axes times 8 directions. The affine's entries are binary fractions, so that nothing
is lost when a file keeps them as float32, and every comparison is exact.
"""

import itertools

import nibabel
import numpy as np
import pytest
from helpers import exit_code, rows, save
from nibabel.affines import apply_affine
from scipy import ndimage

from weakunet import predict, preprocess
from weakunet.data.cohort import Scan, write_cohort
from weakunet.data.load import read_scan
from weakunet.detection.predict_scan import predict_scan
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import save_checkpoint

AFFINE = np.array([[0.5, 0, 0, 40], [0, 0.625, 0, -30], [0, 0, 0.75, 10], [0, 0, 0, 1]])
CODES = [
    "".join(names)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for names in itertools.product(*order)
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A folder with raw/cohort.csv: the head and its ROI 48 times, subject RAS the first."""
    folder = tmp_path_factory.mktemp("orientations")
    rng = np.random.default_rng(0)
    xyz = (250 + 100 * ndimage.gaussian_filter(rng.standard_normal((25, 23, 21)), 0.8)).astype("f4")
    xyz[10:14, 8:12, 8:12] = 900  # fluid
    roi = np.zeros(xyz.shape, np.uint8)
    roi[8:18, 6:17, 7:14] = 1
    scans = []
    for codes in CODES:
        paths = folder / "raw" / f"{codes}.nii", folder / "raw" / f"{codes}_roi.nii"
        for path, array in zip(paths, (xyz, roi), strict=True):
            save(path, array, AFFINE, codes)
        scans.append(Scan(codes, paths[0], 3, paths[1]))
    write_cohort(folder / "raw" / "cohort.csv", scans)
    model = WeakUNet(channels=(2, 3, 4), rng=np.random.default_rng(0))
    head = read_scan(scans[0])[1].volume
    model.params["linear.b"][:] = 6 - predict_scan(model, head)[0]  # finds 6 lesions
    save_checkpoint(folder / "m.npz", model)
    return folder


def predict_all(table, folder, out):
    options = ("--data", table, "--model", folder / "m.npz", "--out", out, "--device", "cpu")
    assert exit_code(predict.main, *options) == 0
    found = {codes: [] for codes in CODES}
    for row in rows(out / "detections.csv"):
        own = [float(row[name]) for name in ("x_mm", "y_mm", "z_mm", "score", "volume_mm3")]
        found[row["subject"]].append(own)
    counts = {row["subject"]: row["count_predicted"] for row in rows(out / "predictions.csv")}
    return found, counts


def test_raw_scan_in_each_of_48_orientations_has_the_same_lesions(cohort, no_pictures, tmp_path):
    found, counts = predict_all(cohort / "raw" / "cohort.csv", cohort, tmp_path)
    assert len(set(CODES)) == len(counts) == 48 and len(found["RAS"]) == 6
    for codes in CODES:
        assert (counts[codes], found[codes]) == (counts["RAS"], found["RAS"]), codes
        raw = nibabel.load(cohort / "raw" / f"{codes}.nii")
        image = nibabel.load(tmp_path / f"{codes}_lesions.nii.gz")
        assert nibabel.aff2axcodes(image.affine) == tuple(codes)  # the file's own grid
        assert np.array_equal(image.affine, raw.affine) and image.shape == raw.shape
        labels = np.asarray(image.dataobj)
        for n, row in enumerate(found["RAS"], start=1):
            centre = apply_affine(image.affine, np.argwhere(labels == n)).mean(axis=0)
            np.testing.assert_allclose(centre, row[:3], atol=5.01e-4)  # the table has 3 decimals


def test_prepared_scan_of_each_of_48_orientations_has_the_same_lesions(
    cohort, no_pictures, tmp_path
):
    table, prepared = cohort / "raw" / "cohort.csv", tmp_path / "prepared"
    assert exit_code(preprocess.main, "--data", table, "--out", prepared, "--jobs", "1") == 0
    found, counts = predict_all(prepared / "cohort.csv", cohort, tmp_path / "out")
    raw, raw_counts = predict_all(table, cohort, tmp_path / "raw")
    assert (found, counts) == (raw, raw_counts)
    first = (prepared / "RAS.nii.gz").read_bytes()
    assert all((prepared / f"{codes}.nii.gz").read_bytes() == first for codes in CODES)
