"""The exercises grade: solutions pass, stubs fail, and wrong answers are told what is wrong."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from exercise_mistakes import MISTAKES

ROOT = Path(__file__).resolve().parents[1]
EXERCISES = ROOT / "tutorials" / "exercises"
SOLUTIONS = EXERCISES / "solutions"
SETS = sorted(folder.name for folder in EXERCISES.glob("[0-9][0-9]_*"))


@pytest.fixture(autouse=True)
def _find_grading(monkeypatch):
    monkeypatch.syspath_prepend(EXERCISES)


def grade(name, folder):
    """What the set's tests say about the answer in a folder: test -> None or the message."""
    from grading import load_answer

    path = EXERCISES / name / f"test_{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    answer, messages = load_answer(folder), {}
    for test, function in vars(tests).items():
        if test.startswith("test_"):
            try:
                messages[test] = function(answer)
            except (NotImplementedError, pytest.fail.Exception) as error:
                messages[test] = str(error)
    return messages


def test_every_set_has_a_stub_a_test_and_a_solution():
    assert len(SETS) == 15
    assert sorted(folder.name for folder in SOLUTIONS.iterdir()) == SETS
    for name in SETS:
        stubs = {path.name for path in (EXERCISES / name).iterdir()} - {"__pycache__"}
        solved = {path.name for path in (SOLUTIONS / name).iterdir()} - {"__pycache__"}
        assert stubs == solved | {f"test_{name}.py"}, name


@pytest.mark.parametrize("name", SETS)
def test_solution_passes_every_test(name):
    messages = grade(name, SOLUTIONS / name)
    assert messages and set(messages.values()) == {None}


@pytest.mark.parametrize("name", SETS)
def test_stub_fails_every_test(name):
    messages = grade(name, EXERCISES / name)
    assert messages and None not in messages.values()


@pytest.mark.parametrize("name", SETS)
def test_wrong_answers_are_told_what_is_wrong(name, tmp_path, monkeypatch):
    monkeypatch.setattr("grading.SECONDS", 1)
    mistakes = [mistake[1:] for mistake in MISTAKES if mistake[0] == name]
    assert len(mistakes) >= 3
    for number, (right, wrong, words) in enumerate(mistakes):
        folder = tmp_path / str(number)
        shutil.copytree(SOLUTIONS / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        _replace_once(folder, right, wrong)
        said = [message for message in grade(name, folder).values() if message]
        assert any(words in message for message in said), (wrong, said)


def _replace_once(folder, right, wrong):
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8")
        if right in text:
            assert text.count(right) == 1, f"{path}: {right!r} occurs more than once"
            path.write_text(text.replace(right, wrong), encoding="utf-8")
            return
    raise AssertionError(f"{folder}: no {right!r}")


def test_command_grades_the_stub_and_other_folders():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    stub = [*command, "tutorials/exercises/03_backprop"]
    failed = subprocess.run(stub, cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1 and "conv3d_backward is yours to write" in failed.stdout
    passed = subprocess.run(
        [*command, "tutorials/exercises", "--answers", SOLUTIONS],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert passed.returncode == 0, passed.stdout
