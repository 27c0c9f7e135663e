"""The fuzzer finds nothing in the readers, and finds what is wrong when a check is taken away."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="limits memory by what Linux tells of a process"
)


def fuzz(*options):
    """Run tests/fuzz.py in a process of its own; reader -> what it found."""
    command = [sys.executable, Path(__file__).parent / "fuzz.py", *map(str, options)]
    one_thread = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=one_thread)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_damaged_files_are_read_or_refused_in_one_line():
    found = fuzz("--seed", 1, "--cases", 60)
    assert {name: each["problems"] for name, each in found.items()} == {name: [] for name in found}
    assert len(found) == 6
    for name, each in found.items():
        assert each["read"] + each["refused"] == 60
        assert each["read"] >= 2 and each["refused"] >= 10, name  # neither whole nor mere noise


@pytest.mark.parametrize(
    "reader, check, cases, sign",
    [
        ("volume", "affine", 160, "OrientationError"),
        ("volume", "limits", 180, "MiB"),
        ("cohort", "count", 60, "Error"),
        ("predictions", "number", 60, "AssertionError"),
        ("checkpoint", "settings", 60, "MiB"),
    ],
)
def test_missing_check_is_found(reader, check, cases, sign):
    found = fuzz("--only", reader, "--without", check, "--cases", cases)
    assert any(sign in problem for problem in found[reader]["problems"])
