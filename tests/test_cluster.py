"""tutorials/cluster.md: its job array, run by processes in the place of Slurm, and its commands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from weakunet import predict
from weakunet.data.phantom import simulate_cohort
from weakunet.data.volumes import write_volume
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "tutorials" / "cluster.md").read_text(encoding="utf-8")
SCRIPT, JOIN, STAND_IN, _ = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.M | re.S)
N = 5  # scans
TABLES = ("predictions.csv", "detections.csv")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the page's commands expect in the folder that they run in."""
    monkeypatch.chdir(tmp_path)
    rows = ["subject,image,count"]
    for scan in simulate_cohort("tiny", {"test": N}, 0)["test"]:
        write_volume(tmp_path / f"{scan.subject}.nii.gz", scan.volume.array, scan.volume)
        rows.append(f"{scan.subject},{scan.subject}.nii.gz,{scan.count}")
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
    model = WeakUNet((2, 3), rng=np.random.default_rng(0))
    model.shape = scan.volume.array.shape
    save_checkpoint(tmp_path / "best.npz", model)
    (tmp_path / "cohort.sbatch").write_text(SCRIPT)
    return tmp_path


def shell(command):
    """Run a command of the page: its exit code and what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True)
    return ran.returncode, ran.stdout + ran.stderr


def test_parts_in_processes_join_to_what_one_command_writes(folder):
    """Of 100 parts the first 5 have a scan each; the 6th, like the others, has none."""
    assert "seq 100" in STAND_IN and "/100\n" in SCRIPT and "--array=1-100" in SCRIPT
    code, said = shell(STAND_IN.replace("seq 100", "seq 2 6"))
    assert code == 0, said
    code, said = shell(JOIN)
    assert code == 2 and "test0000" in said and "test0001" not in said, said  # part 1 is missing
    table = folder / "predictions" / "predictions.csv"
    subjects = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
    assert subjects == [f"test{i:04}" for i in range(1, N)]
    code, said = shell(STAND_IN.replace("seq 100", "seq 1"))
    assert code == 0, said
    code, said = shell(JOIN)
    assert code == 0, said
    options = "--model best.npz --data cohort.csv --device cpu --jobs 1 --out whole".split()
    predict.main(options)
    for name in TABLES:
        assert (folder / "predictions" / name).read_text() == (folder / "whole" / name).read_text()
    names = {path.name for path in (folder / "whole").iterdir()}
    assert names == {path.name for path in (folder / "predictions").iterdir()}


def test_slurm_reads_the_script_as_one_of_ten_lines():
    first, *lines = SCRIPT.splitlines()
    assert first == "#!/bin/bash" and len(lines) <= 9
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[: len(options)] == options  # Slurm stops reading them at the first command
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in options)
