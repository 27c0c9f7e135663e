"""What is found on prepared scans lands where it would have been found on the raw ones."""

import detections_to_scan
import nibabel
import numpy as np
import pytest
from helpers import moved, save

from weakunet import predict, preprocess
from weakunet.data.cohort import Scan, write_cohort
from weakunet.data.rigid import resample_labels
from weakunet.data.tables import read_table
from weakunet.data.volumes import Volume
from weakunet.detection.output_files import DETECTIONS
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import save_checkpoint

AFFINE = moved((0, 0, 8), (40, -30, 10), (0.49, 0.49, 0.8))


@pytest.mark.parametrize(
    ("codes", "spacing"),
    [
        ("RAS", ()),
        ("LIA", ()),
        ("PSR", ()),
        ("LIA", ("0.63", "0.43", "0.55")),
        ("PSR", ("1.3",) * 3),
    ],
)
def test_predictions_on_prepared_scans_return_to_the_voxels_they_were_cropped_from(
    tmp_path, no_pictures, codes, spacing
):
    rng = np.random.default_rng(0)
    xyz = rng.uniform(200, 900, (25, 23, 21)).astype(np.float32)
    roi = np.zeros(xyz.shape, np.uint8)
    roi[8:18, 7:17, 7:14] = 1
    for name, array in (("s", xyz), ("roi", roi)):
        save(tmp_path / f"{name}.nii", array, AFFINE, codes)
    raw, model = tmp_path / "raw.csv", tmp_path / "m.npz"
    write_cohort(raw, [Scan("s", tmp_path / "s.nii", None, tmp_path / "roi.nii")])
    network = WeakUNet((2, 3), rng=rng)
    network.params["linear.b"][:] = 8
    save_checkpoint(model, network)
    prepared = tmp_path / "prepared"
    spacing = spacing and ("--spacing-mm", *spacing)
    preprocess.main([f"--data={raw}", f"--out={prepared}", "--jobs=1", *spacing])
    for name, table in (("on-raw", raw), ("on-prepared", prepared / "cohort.csv")):
        options = [f"--model={model}", f"--data={table}", f"--out={tmp_path / name}", "--jobs=1"]
        predict.main([*options, "--device=cpu", *spacing])
    out = tmp_path / "back"
    command = [f"--predictions={tmp_path / 'on-prepared'}", f"--data={raw}", f"--out={out}"]
    for part in ("2/2", "1/2") if spacing else ():  # of one scan
        detections_to_scan.main([*command, "--part", part])
        assert (out / "s_lesions.nii.gz").exists() == (part == "1/2")
    detections_to_scan.main(command)
    expected, found = (
        [row for _, row in read_table(tmp_path / name / "detections.csv", DETECTIONS)]
        for name in ("on-raw", "back")
    )
    assert len(expected) >= 3 and len(found) == len(expected)
    for own, back in zip(expected, found, strict=True):
        for name in DETECTIONS[1:]:
            assert float(back[name]) == pytest.approx(float(own[name]), abs=2e-3), name
    for kind in ("heatmap", "lesions"):
        own = nibabel.load(tmp_path / "on-raw" / f"s_{kind}.nii.gz")
        back = nibabel.load(out / f"s_{kind}.nii.gz")
        np.testing.assert_allclose(back.affine, own.affine, atol=1e-5)
        np.testing.assert_allclose(back.get_fdata(), own.get_fdata(), atol=1e-4, rtol=0)
    labels = np.asarray(back.dataobj)
    assert labels.max() == len(expected)
    for row in found:  # the table and the image agree about the place, whatever the grid
        middle = np.argwhere(labels == int(row["detection"])).mean(axis=0)
        apart = back.affine[:3, :3] @ (middle - [float(row[axis]) for axis in "ijk"])
        assert np.linalg.norm(apart) < (0.65 if spacing else 2e-3)


def test_a_label_too_small_for_larger_voxels_keeps_the_one_at_its_centre():
    labels = np.zeros((12, 12, 12), np.int32)
    labels[2:5, 2:5, 2:5], labels[6, 6, 7], labels[11, 0, 0] = 1, 2, 3
    coarse = Volume(np.zeros((4, 4, 4), np.float32), np.diag([3, 3, 3, 1.0]))
    coarse.affine[:3, 3] = 1
    carried = resample_labels(Volume(labels, np.eye(4)), coarse)
    assert carried[2, 2, 2] == 2 and carried[1, 1, 1] == 1 and (carried == 2).sum() == 1
    fine = resample_labels(Volume(carried, coarse.affine), Volume(labels, np.eye(4)))
    assert (fine == 2).sum() == 27
