"""The exercises grade: solutions pass, stubs fail, and wrong answers are told what is wrong."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXERCISES = ROOT / "tutorials" / "exercises"
SOLUTIONS = EXERCISES / "solutions"
MISTAKES = Path(__file__).with_name("exercise_mistakes.txt").read_text(encoding="utf-8")
sys.path.insert(0, str(EXERCISES))

import grade  # noqa: E402
import grading  # noqa: E402

SETS = grade.SETS
# What a grader says where it does not know the mistake.
UNNAMED = (
    r"wrong in \d+ of|has shape|, expected [-\d.]+$|stops with|is None|must return|is NaN|not num"
)


def planted():
    """(set, task) -> the wrong answers of exercise_mistakes.txt: right text, wrong text, words."""
    found = {}
    for block in re.split(r"^\[(?=\d\d_)", MISTAKES, flags=re.M)[1:]:
        title, *lines = block.strip().splitlines()
        pairs = [line.split(" => ") for line in lines if line and line[0] != "#"]
        found[tuple(title.rstrip("]").split())] = [
            (right.replace("\\n", "\n"), *_split(right, rest)) for right, rest in pairs
        ]
    return found


def _split(right, rest):
    wrong, _, words = rest.rpartition(" || ") if " || " in rest else (rest, "", "")
    indent = right[: len(right) - len(right.lstrip())] if wrong[0] not in ' "' else ""
    return indent + wrong.replace('""', "").replace("\\n", "\n"), words.strip()


def find_tests(name):
    """The functions that an exercise's stub names -> the set's tests of it."""
    tests = grade.load_tests(name)
    text = "".join(p.read_text() for p in (EXERCISES / name).glob("*.*") if p.name[0] != "t")
    functions = re.findall(r"^def (\w+)|__global__ void (\w+)", text, re.M)
    names = [a or b for a, b in functions]
    return {
        function: [test for task, test in tests.items() if task.split("/")[1].startswith(function)]
        for function in names
    }


TASKS = [(name, function) for name in SETS for function in find_tests(name)]


def test_every_set_has_a_stub_a_test_and_a_solution():
    assert len(SETS) == 15
    assert sorted(folder.name for folder in SOLUTIONS.iterdir()) == SETS
    for name in SETS:
        stubs = {path.name for path in (EXERCISES / name).iterdir()} - {"__pycache__"}
        solved = {path.name for path in (SOLUTIONS / name).iterdir()} - {"__pycache__"}
        assert stubs == solved | {f"test_{name}.py"}, name


@pytest.mark.parametrize("name", SETS)
def test_solution_passes_and_stub_fails(name):
    for task, test in grade.load_tests(name).items():
        assert grade.mark(test, SOLUTIONS / name) == grade.PASSED, task
        assert grade.mark(test, EXERCISES / name) != grade.PASSED, task


def test_every_task_has_eight_wrong_answers_and_names_six():
    assert sorted(planted()) == sorted(TASKS)
    for task, mistakes in planted().items():
        assert len({wrong for _, wrong, _ in mistakes}) >= 8, task
        named = [words for *_, words in mistakes if words]
        assert len(named) >= 6, task
        assert not [words for words in named if re.search(UNNAMED, words)], task


@pytest.mark.slow  # seven minutes
@pytest.mark.parametrize(("name", "function"), TASKS, ids=lambda value: value)
def test_wrong_answers_fail_and_are_told_what_is_wrong(name, function, tmp_path, monkeypatch):
    monkeypatch.setattr(grading, "SECONDS", 2)
    problems = []
    for number, (right, wrong, words) in enumerate(planted()[name, function]):
        folder = tmp_path / str(number) / name
        shutil.copytree(SOLUTIONS / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        _replace_once(folder, right, wrong)
        said = [grade.mark(test, folder) for test in find_tests(name)[function]]
        if "does a loop never stop" in words:
            words = grade.LATE
        if set(said) == {grade.PASSED} or not any(words in message for message in said):
            problems.append(f"{right!r} => {wrong!r}: {said}, not {words!r}")
    assert not problems, "\n".join(problems)


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
    others = [*command, "tutorials/exercises/09_heatmap", "--answers", SOLUTIONS]
    passed = subprocess.run(others, cwd=ROOT, capture_output=True, text=True)
    assert passed.returncode == 0, passed.stdout
