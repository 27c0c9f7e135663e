"""What is found on prepared scans lands where it would have been found on the raw ones."""

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform

from weakunet import predict, preprocess
from weakunet.data.cohort import Scan, read_table, write_cohort
from weakunet.detection.output_files import DETECTIONS
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import save_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "data_tools"))
import detections_to_scan  # noqa: E402

TILT = np.deg2rad(8)
AFFINE = np.array(
    [
        [0.49 * np.cos(TILT), -0.49 * np.sin(TILT), 0, 40],
        [0.49 * np.sin(TILT), 0.49 * np.cos(TILT), 0, -30],
        [0, 0, 0.8, 10],
        [0, 0, 0, 1],
    ]
)


@pytest.mark.parametrize("codes", ["RAS", "LIA", "PSR"])
def test_predictions_on_prepared_scans_return_to_the_voxels_they_were_cropped_from(
    tmp_path, monkeypatch, codes
):
    monkeypatch.setattr(predict, "overlay", lambda *arguments: None)
    rng = np.random.default_rng(0)
    xyz = rng.uniform(200, 900, (25, 23, 21)).astype(np.float32)
    roi = np.zeros(xyz.shape, np.uint8)
    roi[8:18, 7:17, 7:14] = 1
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    for name, array in (("s", xyz), ("roi", roi)):
        image = nibabel.Nifti1Image(array, AFFINE)
        image.set_sform(AFFINE, 1)
        nibabel.save(image.as_reoriented(turn), tmp_path / f"{name}.nii")
    raw, model = tmp_path / "raw.csv", tmp_path / "m.npz"
    write_cohort(raw, [Scan("s", tmp_path / "s.nii", None, tmp_path / "roi.nii")])
    network = WeakUNet((2, 3), rng=rng)
    network.params["linear.b"][:] = 8
    save_checkpoint(model, network)
    prepared = tmp_path / "prepared"
    preprocess.main([f"--data={raw}", f"--out={prepared}", "--jobs=1"])
    for name, table in (("on-raw", raw), ("on-prepared", prepared / "cohort.csv")):
        options = [f"--model={model}", f"--data={table}", f"--out={tmp_path / name}", "--jobs=1"]
        predict.main([*options, "--device=cpu"])
    out = tmp_path / "back"
    command = [f"--predictions={tmp_path / 'on-prepared'}", f"--data={raw}", f"--out={out}"]
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
    assert np.asarray(back.dataobj).max() == len(expected)
