"""A class is marked by one command, whatever its answers do; the handout holds no solutions."""

import subprocess
import sys

import pytest
from helpers import refusal, rows
from test_exercises import EXERCISES, SETS, SOLUTIONS, grade, grading, planted

STOPPED = {  # what an answer to set 9 does instead of its task -> what its cell says
    "while True: pass": grade.LATE,
    "import time; time.sleep(1000)": grade.LATE,
    "import os; os._exit(0)": "ends the program (exit code 0)",
    "import sys; sys.exit(0)": "ends the program (sys.exit)",
    "print('passed'); return 'passed'": "not numbers",
    "return heatmap(f, w)": "RecursionError",
    "x = [np.ones(10**7) for _ in range(1000)]; return x": "MemoryError",
    "import os\n    while True: os.fork()": "os.fork is not allowed",
    "import os; os.system('true')": "os.system is not allowed",
    "np.allclose = np.array_equal = lambda *a, **k: True; return 0 * f[0]": "wrong in",
    "import os\n    for i in range(3, 99):\n        try: os.write(i, b'{\"result\": 1}')\n"
    "        except OSError: pass": "the grader's own channel",
    "return getattr(np, 'ten' + 'sordot')": "not numbers",
    "return np.array([print], object)": "not numbers",
    "open(np.__file__, 'a')": "reads and writes no other files",
    f"exec(open({str(SOLUTIONS / SETS[8] / 'exercise.py')!r}).read())": "no other files",
    "import weakunet.layers.linear": "it imports weakunet.layers.linear",
    "from scipy import ndimage": "it imports scipy.ndimage",
    "import solutions": "it imports solutions",
    "import grading; grading.compare = print": "it imports grading",
    "__import__('weakunet.model')": "no other files",
    "__import__('scipy.ndimage').label(f[0])": "no other files",
    "retur n": "is no Python",
}


def hand_in(folder, name, old="", new="", file="exercise.py"):
    """Write a solution, with one text replaced, as a student's answer."""
    for path in (SOLUTIONS / name).glob("*.*"):
        text = path.read_text(encoding="utf-8")
        if path.name == file:
            assert old in text, old
            text = text.replace(old, new)
        target = folder / name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def mark(students, *options, out="marks.csv"):
    """Student -> the row that the command writes."""
    table = students.parent / out
    command = [sys.executable, EXERCISES / "grade.py", "--answers", students, "--csv", table]
    ran = subprocess.run([*command, *options], capture_output=True, text=True, cwd=students.parent)
    assert ran.returncode == 0, ran.stderr
    return {row["student"]: row for row in rows(table)}


@pytest.mark.parametrize("does", STOPPED)
def test_nothing_but_a_right_answer_passes(does, tmp_path, monkeypatch):
    monkeypatch.setattr(grading, "SECONDS", 2)
    monkeypatch.setattr(grading, "WAIT", 15)
    monkeypatch.setattr(grading, "MEGABYTES", 700)
    name = SETS[8]
    hand_in(tmp_path, name, "return np.tensordot(w, f, axes=1)", does)
    test = grade.load_tests(name)[f"{name}/heatmap"]
    before = set(grading.HERE.rglob("*")), grading.compare
    assert STOPPED[does] in grade.mark(test, tmp_path / name)
    assert before == (set(grading.HERE.rglob("*")), grading.compare)


def test_a_kernel_gets_no_system_calls(tmp_path):
    hand_in(tmp_path, SETS[5], "    real sum = 0;", "    system(0);", "kernels.cu")
    test = grade.load_tests(SETS[5])[f"{SETS[5]}/conv3d"]
    assert "kernels.cu uses 'system'" in grade.mark(test, tmp_path / SETS[5])


def test_numpys_own_convolution_is_the_task(tmp_path):
    line = "return np.array([w @ padded[t : t + k] for t in range(len(x))])"
    hand_in(tmp_path, SETS[1], line, 'return np.convolve(x, w[::-1], "same")')
    test = grade.load_tests(SETS[1])[f"{SETS[1]}/conv1d"]
    assert "convolve: that is the task itself" in grade.mark(test, tmp_path / SETS[1])


def test_table_has_a_row_per_student_and_a_column_per_task(tmp_path):
    students = tmp_path / "students"
    hand_in(students / "anna" / "clone" / "tutorials" / "exercises", SETS[8])
    hand_in(students / "ben", SETS[8], "w @ pooled + b", "w @ pooled")
    (students / "clara").mkdir()
    table = mark(students, "--sets", SETS[7], SETS[8], "--seconds", "3")
    tasks = [*grade.load_tests(SETS[7]), *grade.load_tests(SETS[8])]
    assert all(list(row) == ["student", *tasks, "points"] for row in table.values())
    assert [row["points"] for row in table.values()] == ["4", "2", "0"]
    assert table["anna"][f"{SETS[7]}/mse"] == table["clara"][tasks[-1]] == "not handed in"
    assert "the bias is missing" in table["ben"][f"{SETS[8]}/predict_count_with_max_pooling"]


def test_bad_arguments_end_in_a_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name, words in (("none", "no such folder"), ("empty", "no folders in it")):
        options = ("--answers", tmp_path / name, "--csv", tmp_path / "m.csv")
        assert words in refusal(capsys, grade.main, *options)
    assert not (tmp_path / "m.csv").exists()


def test_handout_grades_and_knows_no_solution(tmp_path):
    out = tmp_path / "course"
    command = [sys.executable, EXERCISES / "handout.py", out]
    subprocess.run(command, check=True, capture_output=True)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert not [
        p for p in files if "solutions" in p.parts or p.name in ("grade.py", "lecturers.md")
    ]
    secret = "winner = np.unravel_index"  # a line of a solution
    texts = [p.read_text(encoding="utf-8") for p in files if p.suffix in (".py", ".md", ".txt")]
    assert not [text for text in texts if secret in text] and secret in planted_text()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    stub = [*command, "tutorials/exercises/09_heatmap"]
    ran = subprocess.run(stub, cwd=out, capture_output=True, text=True)
    assert "heatmap is yours to write" in ran.stdout, ran.stdout + ran.stderr
    hand_in(tmp_path / "mine", SETS[8])
    stub += ["--answers", tmp_path / "mine"]
    ran = subprocess.run(stub, cwd=out, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert subprocess.run([sys.executable, EXERCISES / "handout.py", out]).returncode == 2


def planted_text():
    return "".join(p.read_text(encoding="utf-8") for p in SOLUTIONS.rglob("*.py"))


def class_of_forty(students):
    """40 made-up students in a folder; the points that each must get."""
    total = {name: len(grade.load_tests(name)) for name in SETS}
    points, wrong = {}, [(task, m) for task, own in planted().items() for m in own]
    for n in range(40):
        student, kind = students / f"student{n:02}", n % 8
        points[student.name] = 0
        student.mkdir(parents=True)
        for i, name in enumerate(SETS):
            if kind == 0 and i % 5 == n // 8:  # did not hand in some sets
                continue
            if kind == 1:  # hangs or stops in one way or another
                if i in (0, 8):
                    path = student / name / "exercise.py"
                    path.parent.mkdir()
                    path.write_text(["while True: pass", "import os; os._exit(0)"][n // 8 % 2])
                continue
            if kind == 2:  # has the package do it
                hand_in(student, name)
                path = student / name / "exercise.py"
                path.write_text("from weakunet.layers import relu\n" + path.read_text())
                points[student.name] += (i == 5) * 2 + (i == 6)  # kernels are right
                continue
            hand_in(student, name)
            points[student.name] += total[name]
            mine = [m for (set_name, _), m in wrong if set_name == name and kind >= 5]
            if mine:  # one mistake per set
                right, mistake, _ = mine[(n + kind) % len(mine)]
                for path in (student / name).iterdir():
                    text = path.read_text(encoding="utf-8")
                    path.write_text(text.replace(right, mistake), encoding="utf-8")
                points[student.name] -= 1  # at least: some functions have two tests
    return points


@pytest.mark.slow  # five minutes
def test_a_class_of_forty_is_marked(tmp_path):
    points = class_of_forty(tmp_path / "students")
    table = mark(tmp_path / "students")
    assert list(table) == list(points)
    for n, (student, row) in enumerate(table.items()):
        got = int(row["points"])
        if n % 8 >= 5:
            assert 20 <= got <= points[student], student
        else:
            assert got == points[student], (student, row)
        if n % 8 == 2:
            assert "it imports weakunet.layers.relu" in row["09_heatmap/heatmap"]
    assert [*table["student00"].values()].count(grade.MISSING) > 0
    assert table["student01"]["09_heatmap/heatmap"] == grade.LATE
