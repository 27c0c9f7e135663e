"""Training by several processes: the weights of one, in spite of stops, kills and bad input."""

import importlib.util
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, contents, state

# Train on few phantom scans; in one rank, after so many batches, do something (Python text).
DRIVER = """
import os, signal, sys
from weakunet import train
from weakunet.data import load

rank, batches, action, *options = sys.argv[1:]
load.PHANTOM_SCANS = {"train": 10, "val": 3, "test": 1}
train.evaluate_best = train.training_curves = lambda *args: None
own = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0"))
if own != "0":
    os.replace = None  # rank 0 alone writes
asked = []

def stop(self):
    asked.append(True)
    return eval(action) if rank == own and len(asked) == int(batches) else False

train.Interrupt.__call__ = stop
train.main(["--device", "cpu", *options])
"""
NOTHING = (0, 0, "False")
SMALL = "--channels 4 6 --epochs 2 --seed 2".split()
mpi = pytest.mark.skipif(
    not (shutil.which("mpirun") and importlib.util.find_spec("mpi4py")),
    reason="no MPI: apt-get install openmpi-bin libopenmpi-dev; pip install mpi4py",
)


def run(n, event, *options, env=None):
    """Train in n processes, without MPI for n = 0; the exit code and what was written to stderr."""
    # for tests as root on few cores: what a user of Open MPI never needs
    variables = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    variables |= {"OMPI_MCA_rmaps_base_oversubscribe": "1", "PYTHONPATH": str(ROOT)}
    variables |= {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    launcher = ["mpirun", "-n", str(n)] if n else []
    done = subprocess.run(
        [*launcher, sys.executable, "-c", DRIVER, *map(str, (*event, *options))],
        env={**os.environ, **variables, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr


def assert_close(first, second, tolerance):
    assert first.keys() == second.keys()
    for name in first.keys() - {"header"}:
        np.testing.assert_allclose(first[name], second[name], 1e-4, tolerance, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Two epochs by one process, without MPI."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert run(0, NOTHING, "--out", out, *SMALL)[0] == 0
    return out


@mpi
def test_three_processes_find_the_weights_of_one_and_the_same_bits_each_time(alone, tmp_path):
    """Batches of 4, 4 and 2 scans: parts of 1 and 2 scans, and of none."""
    for name in ("first", "second"):
        code, error = run(3, NOTHING, "--out", tmp_path / name, *SMALL)
        assert code == 0, error
    first, second, expected = state(tmp_path / "first"), state(tmp_path / "second"), state(alone)
    assert_close(first, expected, 1e-5)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert contents(tmp_path / "first").keys() == contents(alone).keys()


@mpi
def test_one_rank_is_asked_to_stop_and_another_number_of_processes_resumes(alone, tmp_path):
    out = tmp_path / "run"
    code, error = run(2, (1, 2, "True"), "--out", out, *SMALL)
    assert code == 130 and state(out)["training.batch"] == 2, error
    code, error = run(3, (2, 2, "True"), "--out", out, "--resume")
    assert code == 130 and (state(out)["training.epoch"], state(out)["training.batch"]) == (1, 1)
    assert run(0, NOTHING, "--out", out, "--resume")[0] == 0
    assert_close(state(out), state(alone), 1e-5)


@mpi
@pytest.mark.parametrize(
    "action, words",
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "rank 1"),
        ("1 / 0", "error: rank 1 of 2: division by zero"),
    ],
)
def test_a_rank_that_fails_ends_all_and_what_was_saved_resumes(alone, tmp_path, action, words):
    code, error = run(2, (1, 6, action), "--out", tmp_path / "run", *SMALL)
    assert code not in (0, 130) and words in error and error.count("error:") <= 1
    assert state(tmp_path / "run")["training.epoch"] == 1
    assert run(0, NOTHING, "--out", tmp_path / "run", "--resume")[0] == 0
    assert_close(state(tmp_path / "run"), state(alone), 1e-5)


@mpi
@pytest.mark.parametrize(
    "options, words",
    [
        (("--batch", 1), "--batch 1: raise it to at least the 2 processes"),
        (("--data", "none.csv"), "none.csv: no such file"),
        (("--no-such-option",), "unrecognized arguments"),
    ],
)
def test_bad_input_is_told_once(tmp_path, options, words):
    code, error = run(2, NOTHING, "--out", tmp_path / "run", *options)
    lines = [line for line in error.splitlines() if "error:" in line]
    assert code == 2 and len(lines) == 1 and words in lines[0], error
    assert not (tmp_path / "run" / "best.npz").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_started_by_mpirun_without_mpi4py(tmp_path, rank):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('there is none')")
    env = {"PMI_SIZE": "2", "PMI_RANK": str(rank), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    code, error = run(0, NOTHING, "--out", tmp_path / "run", env=env)
    assert code == 2 and not (tmp_path / "run").exists()
    assert error.count("\n") == 1 - rank and ("pip install mpi4py" in error) == (rank == 0)


@mpi
def test_mpi4py_of_another_mpi_than_the_launcher_is_refused(tmp_path):
    code, error = run(0, NOTHING, "--out", tmp_path, env={"PMI_SIZE": "2", "PMI_RANK": "0"})
    assert code == 2 and "2 processes were started, but mpi4py sees 1" in error
