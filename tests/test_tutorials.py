"""Every tutorial runs by itself, draws its picture and prints a number; also those added later."""

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
SCRIPTS = sorted(TUTORIALS.glob("[0-9][0-9]_*.py"))
SECONDS = 300  # at most 120 on 2 free cores
# Open MPI runs as root (in a container) only when told so; no user needs this
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
NEEDS = {"14_beyond_lesions": ("sklearn", "no scikit-learn: pip install scikit-learn")}


def run(stem, folder, **settings):
    """Run a lesson in `folder`; what it printed. It must end well and write nothing to stderr."""
    ran = subprocess.run(
        [sys.executable, TUTORIALS / f"{stem}.py"], cwd=folder, capture_output=True, text=True,
        timeout=SECONDS, env={**os.environ, **AS_ROOT, "MPLBACKEND": "agg", **settings},
    )  # fmt: skip
    assert ran.returncode == 0 and not ran.stderr, ran.stderr[-2000:]
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_tutorial_draws_and_prints_a_number_when_run_from_anywhere(script, tmp_path):
    if script.stem in NEEDS:
        module, reason = NEEDS[script.stem]
        pytest.importorskip(module, reason=reason)
    printed = run(script.stem, tmp_path, OPENBLAS_NUM_THREADS="1", PYTHONWARNINGS="error")
    *_, number, picture = printed.strip().splitlines()
    assert picture == f"picture: runs/tutorials/{script.stem}.png"
    assert re.search(r"\d", number), printed[-500:]
    picture = matplotlib.image.imread(tmp_path / "runs" / "tutorials" / f"{script.stem}.png")
    assert picture[..., :3].std(axis=(0, 1)).max() > 0.02  # of red, green, blue in 0..1
    assert list(tmp_path.rglob("*.*")) == [tmp_path / f"runs/tutorials/{script.stem}.png"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_tutorial_is_in_cells_that_begin_with_its_question(script):
    lines = script.read_text(encoding="utf-8").splitlines()
    cells = [i for i, line in enumerate(lines) if line.startswith("# %%")]
    assert cells[0] == 0 and lines[0] == "# %% [markdown]"
    assert {lines[i] for i in cells} == {"# %%", "# %% [markdown]"}
    assert lines[1].startswith(f"# # {int(script.stem[:2])}. ")
    first = "\n".join(lines[: cells[1]])
    assert all(f"**{word}" in first for word in ("Question.", "You will see", "Takes"))
    for start, end in zip(cells, [*cells[1:], len(lines)], strict=True):
        if lines[start] == "# %% [markdown]":
            assert all(line.startswith("#") or not line for line in lines[start:end]), start + 1
            assert any(line.strip("# ") for line in lines[start + 1 : end]), start + 1


def test_cuda_tutorial_ends_well_when_there_is_no_compiler(tmp_path):
    printed = run("06_cuda_kernel", tmp_path, CXX="no-such-compiler", CUDA_VISIBLE_DEVICES="")
    assert "no C++ compiler" in printed
    assert (tmp_path / "runs/tutorials/06_cuda_kernel.png").is_file()


def test_digits_tutorial_ends_well_without_scikit_learn(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "sklearn.py").write_text("raise ImportError\n")
    printed = run("14_beyond_lesions", tmp_path, PYTHONPATH=str(tmp_path / "none"))
    assert printed.count("\n") == 1 and "pip install scikit-learn" in printed
    assert not (tmp_path / "runs").exists()


def test_processes_tutorial_ends_well_without_mpi(tmp_path):
    printed = run("15_several_processes", tmp_path, PATH=str(tmp_path))
    assert "MPI is not installed" in printed and "times as fast" in printed
    assert (tmp_path / "runs/tutorials/15_several_processes.png").is_file()
