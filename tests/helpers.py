"""What many tests do: run a command, read what it wrote, turn and write a small scan."""

import csv
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform
from scipy.spatial.transform import Rotation

ROOT = Path(__file__).resolve().parents[1]


def exit_code(main, *arguments):
    """Run a command in this process; its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def refusal(capsys, main, *arguments):
    """Run a command that must refuse its input: exit code 2, and the one line that says why."""
    assert exit_code(main, *arguments) == 2
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if "error: " in line]
    assert len(lines) == 1 and text.endswith(f"{lines[0]}\n") and "Traceback" not in text
    return lines[0]


def rows(path):
    """The rows of a CSV file, each as {column: text}."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder):
    """File name -> its bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def state(run):
    """Every array of a run's last.npz, the seconds that its epochs took left out."""
    with np.load(Path(run) / "last.npz") as file:
        arrays = {name: file[name] for name in file.files}
    arrays["training.history"] = arrays["training.history"][:, :-1]
    return arrays


def moved(degrees=(0, 0, 0), mm=(0, 0, 0), spacing=(1, 1, 1)):
    """An affine (4, 4): scaled by `spacing`, then turned about x, y and z, then shifted."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    affine[:3, :3], affine[:3, 3] = turn * spacing, mm
    return affine


def save(path, xyz, affine, codes="RAS"):
    """Write the voxels (x, y, z) of a RAS grid as NIfTI or MGH, stored in another orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(xyz, affine)
    image.set_sform(affine, 1)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    image = image.as_reoriented(turn)
    if path.suffix in (".mgz", ".mgh"):
        image = nibabel.MGHImage(np.asarray(image.dataobj), image.affine)
    nibabel.save(image, path)
    return path
