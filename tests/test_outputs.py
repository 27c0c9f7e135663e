"""The files of a prediction: their names, and that other programs read the same world from them."""

import json

import nibabel
import numpy as np
import pytest
from helpers import exit_code, moved, refusal, rows

from weakunet import evaluate, predict
from weakunet.data.cohort import Scan, write_cohort
from weakunet.detection.output_files import (
    bids_entities,
    output_paths,
    require_bids_names,
    write_markups,
)
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import save_checkpoint
from weakunet.util.cli import InputError


@pytest.fixture
def predicted(tmp_path):
    """Predict with a small network on an oblique scan of an odd size, stored (z, x, y)-wise."""
    model = WeakUNet(channels=(2, 3, 4), rng=np.random.default_rng(0))
    model.params["linear.b"][:] = 3
    save_checkpoint(tmp_path / "m.npz", model)
    xyz = np.random.default_rng(1).uniform(0.1, 1, (9, 12, 7)).astype(np.float32)
    affine = moved((-20, 0, 12), (31, -17, 8), (0.5, 0.6, 0.8))[:, [2, 0, 1, 3]]
    scan = tmp_path / "sub-01_ses-2_PDw.nii.gz"
    nibabel.save(nibabel.Nifti1Image(xyz, affine * (1, -1, 1, 1)), scan)

    def arguments(*options):
        out = ("--out", tmp_path / "out", "--device", "cpu")
        return (scan, "--model", tmp_path / "m.npz", *out, *options)

    return arguments


def run(arguments):
    assert exit_code(predict.main, *arguments) == 0
    return arguments[4]


def places(detections):
    return np.array([[float(row[f"{axis}_mm"]) for axis in "xyz"] for row in detections])


def test_markups_hold_the_detections_of_the_table(predicted):
    out = run(predicted())
    (markup,) = json.loads((out / "sub-01_ses-2_PDw_lesions.mrk.json").read_text())["markups"]
    detections = rows(out / "detections.csv")
    assert len(detections) > 1
    assert (markup["type"], markup["coordinateSystem"]) == ("Fiducial", "RAS")
    assert markup["coordinateUnits"] == "mm"
    points = markup["controlPoints"]
    assert [point["position"] for point in points] == places(detections).tolist()
    assert [point["label"] for point in points] == [row["detection"] for row in detections]
    scores = [float(point["description"].removeprefix("score ")) for point in points]
    np.testing.assert_allclose(scores, [float(row["score"]) for row in detections], rtol=1e-3)
    assert {point["positionStatus"] for point in points} == {"defined"}


def test_markups_without_a_detection_are_an_empty_list(tmp_path):
    write_markups(tmp_path / "s.mrk.json", "s", np.zeros((0, 3)), [])
    (markup,) = json.loads((tmp_path / "s.mrk.json").read_text())["markups"]
    assert markup["controlPoints"] == [] and markup["name"] == "s lesions"


def test_simpleitk_reads_back_the_same_world_coordinates(predicted):
    reason = "SimpleITK is not installed (pip install SimpleITK)"
    sitk = pytest.importorskip("SimpleITK", reason=reason)
    out = run(predicted())
    image = sitk.ReadImage(str(out / "sub-01_ses-2_PDw_lesions.nii.gz"))
    labels = sitk.GetArrayFromImage(image).transpose(2, 1, 0)  # (i, j, k)

    def world_of(ijk):  # SimpleITK's world is LPS
        lps = [image.TransformIndexToPhysicalPoint(index) for index in ijk.tolist()]
        return np.array(lps) * (-1, -1, 1)

    detections = rows(out / "detections.csv")
    found = [world_of(np.argwhere(labels == n + 1)).mean(axis=0) for n in range(len(detections))]
    np.testing.assert_allclose(found, places(detections), atol=2e-3)
    heatmap = sitk.ReadImage(str(out / "sub-01_ses-2_PDw_heatmap.nii.gz"))
    np.testing.assert_allclose(heatmap.GetOrigin(), image.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(heatmap.GetDirection(), image.GetDirection(), atol=1e-6)
    values = sitk.GetArrayFromImage(heatmap).transpose(2, 1, 0)
    peaks = [values[labels == int(row["detection"])].max() for row in detections]
    np.testing.assert_allclose(peaks, [float(row["score"]) for row in detections], rtol=1e-5)


def test_bids_names_hold_the_same_files(predicted, tmp_path):
    plain = run(predicted()).rename(tmp_path / "plain")
    out = run(predicted("--bids"))
    stem = "sub-01_ses-2_desc-lesions"
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    images = {
        f"sub-01/ses-2/anat/{stem}_heatmap.nii.gz": "heatmap.nii.gz",
        f"sub-01/ses-2/anat/{stem}_dseg.nii.gz": "lesions.nii.gz",
        f"sub-01/ses-2/anat/{stem}_markups.mrk.json": "lesions.mrk.json",
        f"sub-01/ses-2/figures/{stem}_overlay.png": "overlay.png",
    }
    about = {"dataset_description.json", ".bidsignore"}
    about |= {"desc-lesions_heatmap.json", "desc-lesions_dseg.json"}
    about |= {"settings.json", ".done/sub-01_ses-2_PDw.json"}
    assert written == set(images) | about | {"predictions.csv", "detections.csv"}
    for bids, name in images.items():
        assert (out / bids).read_bytes() == (plain / f"sub-01_ses-2_PDw_{name}").read_bytes()
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["BIDSVersion"]
    assert description["GeneratedBy"][0]["Name"] == "weakunet"


@pytest.mark.parametrize(
    "subject, entities",
    [
        ("sub-01", ["sub-01"]),
        ("sub-01_ses-b", ["sub-01", "ses-b"]),
        ("sub-01_ses-b_space-MNI_desc-brain_T2w", ["sub-01", "ses-b", "space-MNI"]),
        ("s001", ["sub-s001"]),
        ("OAS1_0042 b", ["sub-OAS10042b"]),
        ("sub-a b_ses-1", ["sub-abses1"]),
        ("sub-1_extra_PDw", ["sub-1extraPDw"]),
    ],
)
def test_subject_becomes_bids_entities(subject, entities):
    assert bids_entities(subject) == entities


def test_bids_folders_follow_subject_and_session(tmp_path):
    paths = output_paths(tmp_path, "sub-1_run-2_T1w", bids=True)
    expected = tmp_path / "sub-1" / "anat" / "sub-1_run-2_desc-lesions_dseg.nii.gz"
    assert paths["lesions"] == expected


def test_subjects_that_bids_cannot_tell_apart_are_refused():
    with pytest.raises(InputError, match="'a-1' and 'A_1' are both sub-A1 in BIDS"):
        require_bids_names(["b", "a-1", "A_1"])
    with pytest.raises(InputError, match="no letter or digit"):
        require_bids_names(["+"])


def test_bids_folder_is_evaluated_and_not_mixed_with_plain_names(predicted, tmp_path, capsys):
    out = run(predicted("--bids"))
    (out / "predictions.csv").rename(tmp_path / "kept.csv")
    assert "holds BIDS names" in refusal(capsys, predict.main, *predicted())
    (tmp_path / "kept.csv").rename(out / "predictions.csv")
    image = tmp_path / "sub-01_ses-2_PDw.nii.gz"
    (out / "detections.csv").rename(tmp_path / "centres.csv")  # every detection is a lesion
    scan = Scan("sub-01_ses-2_PDw", image, 3, split="test", centres=tmp_path / "centres.csv")
    write_cohort(tmp_path / "cohort.csv", [scan])
    results = tmp_path / "evaluation"
    options = ("--predictions", out, "--data", tmp_path / "cohort.csv", "--out", results)
    assert exit_code(evaluate.main, *options) == 0
    assert json.loads((results / "metrics.json").read_text())["regression_fcn"]["tpr"] == 1
