"""The README's "Your own scans", command by command: moved scans to lesions in their own space.

The scans are of a small simulated head: the template's, turned and shifted, with other contrast, on
other voxels in other orientations, each with three bright lesions in the basal ganglia.
"""

import importlib
import importlib.metadata
import json
import re
import shlex
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers import ROOT, moved, rows, save
from nibabel.affines import apply_affine
from scipy.spatial.distance import cdist

from weakunet.model import WeakUNet
from weakunet.training.checkpoint import save_checkpoint
from weakunet.util.cli import write_csv

SUBJECTS = {  # rotation in degrees, shift in mm, stored orientation
    "sub-01": ((0, 0, 0), (0, 0, 0), "RAS"),
    "sub-02": ((9, -7, 6), (10, -14, 12), "PIR"),
    "sub-03": ((-6, 8, -9), (-12, 8, -20), "LAS"),
}
LESIONS_MM = ((-11, 3, 1), (11, -2, 0), (-6, 7, 4))  # in the template, give or take 0.5 mm
BRAIN_MM = np.array([20, 24, 18])
NUCLEI = {  # FreeSurfer's number of the left one and of the right one; middle and half axes in mm
    (11, 50): ((6, 6, 3), (2.5, 4, 3)),  # caudate
    (12, 51): ((11, 1, 0), (2.5, 6, 4)),  # putamen
    (13, 52): ((7.5, -2, -1), (2, 3, 2.5)),  # pallidum
    (26, 58): ((5, 8, -3), (2, 2, 2)),  # accumbens
}


def inside(points, middle, half_axes):
    return (((points - middle) / half_axes) ** 2).sum(axis=-1) < 1


def labels_at(points):
    """FreeSurfer's numbers at template points (..., 3)."""
    labels = np.where(inside(points, (0, 0, 0), BRAIN_MM), 3, 0)
    for numbers, (middle, half_axes) in NUCLEI.items():
        for number, side in zip(numbers, (-1, 1), strict=True):
            labels[inside(points, np.multiply(middle, (side, 1, 1)), half_axes)] = number
    return labels


def head_at(points):
    """T2-like intensities at template points (..., 3): folds, ventricles and nuclei; no lesion."""
    x, y, z = np.moveaxis(points, -1, 0)
    folds = np.sin(x / 3 + 1) * np.sin(y / 4) * np.sin(z / 3.5 + 2)
    image = np.where(inside(points, (0, 0, 0), BRAIN_MM), 300 + 60 * folds, 10)
    for side in (-1, 1):
        image[inside(points, (3 * side, 12, 8), (2, 6, 3))] = 600  # fluid, away from the nuclei
    image[labels_at(points) > 3] = 340
    return image


def grid(shape, voxel_mm, middle_mm):
    """Affine of (i, j, k) RAS voxels around a place, and all voxels' places in mm."""
    affine = np.diag([*voxel_mm, 1.0])
    affine[:3, 3] = middle_mm - np.multiply(voxel_mm, np.subtract(shape, 1)) / 2
    return affine, apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def write_subject(folder, name, rng):
    """Write a scan in all the places where the README looks for it; its lesions (3, 3) in mm."""
    degrees, shift_mm, codes = SUBJECTS[name]
    motion = moved(degrees, shift_mm)
    lesions_mm = LESIONS_MM + rng.uniform(-0.5, 0.5, (3, 3))
    affine, places = grid((50, 56, 40), (1.1, 1.1, 1.3), shift_mm)
    places = apply_affine(np.linalg.inv(motion), places)
    image = head_at(places) + rng.normal(0, 8, places.shape[:3])
    away_mm = np.linalg.norm(places[..., None, :] - lesions_mm, axis=-1)
    image += (300 * np.exp(-0.5 * away_mm**2)).sum(axis=-1)
    for path in (f"scans/{name}_T2.nii.gz", f"scans/{name}.nii.gz"):  # the masks' command: without
        save(folder / path, image.astype(np.float32), affine, codes)
    save(folder / f"dataset/{name}/anat/{name}_T2w.nii.gz", image.astype("f4"), affine, codes)
    mask = (away_mm < 1.3).any(axis=-1).astype(np.uint8)
    save(folder / f"masks/{name}.nii.gz", mask, affine, codes)
    fine, places = grid((60, 64, 56), (1, 1, 1), shift_mm)
    labels = labels_at(apply_affine(np.linalg.inv(motion), places))
    save(folder / f"freesurfer/{name}/mri/aseg.mgz", labels.astype(np.int32), fine, "LIA")
    return apply_affine(motion, lesions_mm)


def write_study(folder):
    """Write everything that the README's commands read; subject -> lesions (3, 3) in its own mm."""
    rng = np.random.default_rng(0)
    affine, places = grid((50, 58, 46), (1, 1, 1), (0, 0, 0))
    t1 = np.where(head_at(places) > 100, 700 - head_at(places), 0)
    save(folder / "mni.nii.gz", t1.astype(np.float32), affine)
    truth = {name: write_subject(folder, name, rng) for name in SUBJECTS}
    counts = [(name, len(lesions)) for name, lesions in truth.items()]
    write_csv(folder / "counts.csv", ("subject", "epvs"), counts)
    lines = ["participant_id\tepvs", *(f"{name}\t{count}" for name, count in counts)]
    (folder / "dataset" / "participants.tsv").write_text("\n".join(lines) + "\n")
    return truth


def commands():
    """The section's commands: its code blocks' lines, then those within its text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Your own scans\n")[1]
    text = re.split(r"^#+ ", text, flags=re.M)[0]
    blocks = re.findall(r"^```\n(.*?)^```", text, flags=re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`(python [^`]+)`", re.sub(r"^```\n.*?^```", "", text, flags=re.M | re.S))
    return [line for line in lines if line.startswith("python ")]


def run(command):
    name, *words = shlex.split(command.replace(" -m ", " "))[1:]
    importlib.import_module(Path(name).stem if name.endswith(".py") else name).main(words)


def bright_spots(count):
    """A network that shows what is bright and always counts `count`: one scan teaches nothing."""
    model = WeakUNet((1, 1), rng=np.random.default_rng(0))
    for value in model.params.values():
        value[...] = 0
    for name in ("encoder0.conv0.w", "decoder0.conv0.w"):  # the latter: of the skip connection
        model.params[name][0, 0, 1, 1, 1] = 1
    model.params["linear.w"][...], model.params["linear.b"][...] = 1e-6, count
    return model


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Where all commands have run, and subject -> its lesions (3, 3) in its own mm."""
    try:
        importlib.metadata.version("itk-elastix")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no itk-elastix: pip install -r data_tools/requirements.txt")
    folder = tmp_path_factory.mktemp("study")
    truth = write_study(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in commands():
            try:
                run(command)
            except SystemExit as end:
                assert not end.code, command
            if "weakunet.train" in command and "--resume" not in command:
                save_checkpoint(folder / "runs" / "mine" / "best.npz", bright_spots(3))
    return folder, truth


def test_planted_lesions_come_back_in_each_scans_own_space(study):
    folder, truth = study
    found = rows(folder / "in-scan-space" / "detections.csv")
    for name, lesions_mm in truth.items():
        own = [row for row in found if row["subject"] == name]
        found_mm = np.array([[float(row[f"{axis}_mm"]) for axis in "xyz"] for row in own])
        assert found_mm.shape == (3, 3)
        apart_mm = cdist(lesions_mm, found_mm)
        assert sorted(apart_mm.argmin(axis=1)) == [0, 1, 2] and apart_mm.min(axis=1).max() < 1.0
        scan = nibabel.load(folder / "scans" / f"{name}_T2.nii.gz")
        labels = nibabel.load(folder / "in-scan-space" / f"{name}_lesions.nii.gz")
        assert labels.shape == scan.shape and np.allclose(labels.affine, scan.affine, atol=1e-5)
        places = np.array([[float(row[axis]) for axis in "ijk"] for row in own])
        np.testing.assert_allclose(apply_affine(scan.affine, places), found_mm, atol=2e-3)
        at = tuple(np.round(places).astype(int).T)
        assert np.asarray(labels.dataobj)[at].tolist() == [1, 2, 3]
        markups = json.loads((folder / "in-scan-space" / f"{name}_lesions.mrk.json").read_text())
        points = [point["position"] for point in markups["markups"][0]["controlPoints"]]
        np.testing.assert_allclose(points, found_mm, atol=1e-6)


def test_every_step_leaves_its_picture_and_its_table(study):
    folder, truth = study
    for name in truth:
        for path in ("registered/{}_check.png", "rois/{}_roi.png", "predictions/{}_overlay.png"):
            assert (folder / path.format(name)).stat().st_size > 10_000, path
    assert [row["count"] for row in rows(folder / "counted" / "counts.csv")] == ["3"] * 3
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert metrics["regression_fcn"]["count_mse"] < 1e-3
