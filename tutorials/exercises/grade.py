"""Mark a whole class: one row per student, one column per task, and the points.

    python tutorials/exercises/grade.py --answers students/ --csv marks.csv

students/ holds a folder per student, and the sets that were handed in are anywhere inside it:
students/NAME/.../03_backprop/exercise.py. A cell of the table says `passed`, `not handed in`,
`timed out`, or what is wrong. Every task runs in a process of its own, with limits of time and
memory, and gives one point.
"""

import argparse
import importlib.util
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import grading
import pytest
from grading import HERE, Answer, Stopped

from weakunet.util.cli import write_csv

SETS = sorted(path.name for path in HERE.glob("[0-9][0-9]_*") if path.is_dir())
DEPTH = 5  # folders below a student's in which a set is looked for
PASSED, MISSING, LATE = "passed", "not handed in", "timed out"


def load_tests(name):
    """The tests of a set by their tasks' names; a module of its own, so that all see equal data."""
    path = HERE / name / f"test_{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = {key: test for key, test in vars(module).items() if key.startswith("test_")}
    return {f"{name}/{key.removeprefix('test_')}": test for key, test in tests.items()}


def find_sets(student):
    """Set -> the folder of a student's answer, the one nearest to the top; sets not found miss."""
    found = {}
    for path, folders, _ in os.walk(student):  # top down
        depth = len(Path(path).relative_to(student).parts)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if depth < DEPTH else []
        name = Path(path).name
        files = [Path(path) / file for file in ("exercise.py", "kernels.cu")]
        if name in SETS and any(file.is_file() for file in files):
            known = found.get(name)
            if known is None or depth < len(known.relative_to(student).parts):
                found[name] = Path(path)
    return found


def mark(test, folder):
    """What a test says about the answer in a folder, in one line."""
    try:
        with Answer(folder, quiet=True) as answer:
            test(answer)
    except Stopped as stopped:
        if stopped.name in ("NotImplementedError", "missing"):
            return MISSING
        return LATE if stopped.name == "late" else _line(stopped)
    except pytest.skip.Exception as skipped:
        return f"not marked: {skipped}"
    except (pytest.fail.Exception, Exception) as error:  # a result that no test expects
        return _line(error)
    return PASSED


def _line(error):
    name = "" if isinstance(error, pytest.fail.Exception) else f"{type(error).__name__}: "
    return "wrong: " + " ".join(f"{name}{error}".split())[:300]


def mark_set(student, name, folder):
    """Task -> what is said, for one student's answer to a set."""
    return student, {task: mark(test, folder) for task, test in load_tests(name).items()}


def main(argv=None):
    """Mark the answers that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    about = "a folder with a folder per student"
    parser.add_argument("--answers", type=Path, required=True, help=about)
    parser.add_argument("--csv", type=Path, required=True, help="the table to write")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="default: all")
    for option, default, about in (
        ("--seconds", grading.SECONDS, "processor seconds per task"),
        ("--megabytes", grading.MEGABYTES, "memory per task in MB"),
        ("--jobs", os.cpu_count(), "tasks at the same time, one per core"),
    ):
        parser.add_argument(option, type=int, default=default, help=f"{about}, default: {default}")
    args = parser.parse_args(argv)
    if not args.answers.is_dir():
        parser.error(f"{args.answers}: no such folder; give one that holds a folder per student")
    students = sorted(p for p in args.answers.iterdir() if p.is_dir() and p.name[0] != ".")
    if not students:
        parser.error(f"{args.answers}: no folders in it; every student's answers need one")
    if args.csv.is_dir():
        parser.error(f"{args.csv}: a folder; name a file for the table")
    grading.SECONDS, grading.MEGABYTES = args.seconds, args.megabytes

    started = time.monotonic()
    tasks = [task for name in args.sets for task in load_tests(name)]
    marks = {student.name: dict.fromkeys(tasks, MISSING) for student in students}
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [
            pool.submit(mark_set, student.name, name, folder)
            for student in students
            for name, folder in find_sets(student).items()
            if name in args.sets
        ]
        for number, job in enumerate(as_completed(jobs), start=1):
            student, said = job.result()
            marks[student].update(said)
            print(f"\r{number} of {len(jobs)} sets marked", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    rows = []
    for name, said in marks.items():
        cells = list(said.values())
        rows.append([name, *cells, cells.count(PASSED)])
        more = f", {cells.count(LATE)} timed out" if LATE in cells else ""
        print(f"{name}: {cells.count(PASSED)} of {len(tasks)} points{more}")
    write_csv(args.csv, ["student", *tasks, "points"], rows)
    minutes = (time.monotonic() - started) / 60
    print(f"wrote {args.csv}: {len(rows)} students, {len(tasks)} tasks, {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
