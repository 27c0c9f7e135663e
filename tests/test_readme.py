"""Every command in the README and tutorials/results.md runs as it stands there, on few scans."""

import dataclasses
import importlib
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from weakunet import study
from weakunet.bench import compile as bench_compile
from weakunet.compare import jobs
from weakunet.compare.cohorts import COHORTS
from weakunet.data import load

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tutorials" / "results.md"
HEAD = Path("/usr/share/mricron/templates/ch2better.nii.gz")
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", RESULTS)}
README = "\n".join(PAGES.values())
FEW = {"train": 8, "val": 4, "test": 3}
BLOCK = re.compile(r"^```\n(.*?)^```", flags=re.M | re.S)
# Commands that another test runs, and which.
ELSEWHERE = {
    r"python3 -m venv \.venv && \.venv/bin/pip install -r requirements\.txt && .*": ".ci/run",
    r"python -m pytest -m slow": ".ci/run",
    r"pip install (-r data_tools/requirements\.txt|torch|-e \.)": ".ci/run",
    r"python tutorials/\d\d_\w+\.py": "tests/test_tutorials.py",
    r"python tutorials/(to_notebooks|kernel_page)\.py": "tests/test_notebooks.py",
    r"python tutorials/exercises/(grade|handout)\.py.*": "tests/test_grade.py",
    r"python -m pytest tutorials/exercises.*": "tests/test_exercises.py",
}
COMPARISON = r"python -m weakunet\.(compare|study).*"
BENCH = r"python -m weakunet\.bench.*"


def section(title):
    """The README's text from the heading `title` to the next one of any level."""
    return re.split(r"^#+ ", README.split(f"# {title}\n", 1)[1], flags=re.M)[0]


def commands(text):
    """The commands of a text's code blocks, then those within its lines, each once."""
    lines = "".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`([^`]+)`", BLOCK.sub("", text))
    return list(dict.fromkeys(c for c in lines if re.match(r"(python3?|pip) ", c)))


def command_of(name):
    """The module that `python -m NAME` runs."""
    found = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(found, "__path__") else found


def run(command, *more):
    """Run a command with options on top: a module of the package in this process, else outside."""
    words = [*shlex.split(command), *more]
    assert words[0] == "python"
    if words[1] == "-m":
        command_of(words[2]).main(words[3:])
    else:
        subprocess.run([sys.executable, ROOT / words[1], *words[2:]], check=True)


@pytest.fixture(autouse=True)
def few(tmp_path, monkeypatch):
    """An empty folder, and phantom cohorts of few scans."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "PHANTOM_SCANS", FEW)
    monkeypatch.setattr(jobs, "QUICK", FEW)
    for name in ("quick", "standard"):
        small = dataclasses.replace(COHORTS[name], phantom="tiny", n=FEW, seeds=1)
        monkeypatch.setitem(COHORTS, name, small)
    for name, values in (("SCANS", (8,)), ("NOISE", (0.5,)), ("BLOCKS", (4,))):
        monkeypatch.setattr(study, name, values)
    monkeypatch.setattr(bench_compile, "ARCHITECTURES", ("sm_90",))
    monkeypatch.setattr(study, "VAL", 3)


@pytest.mark.slow
def test_the_first_command_leaves_the_pictures_that_are_named(tmp_path):
    first = BLOCK.findall(README)[0].strip()
    assert re.fullmatch(next(iter(ELSEWHERE)), first)
    run(first.split(" && ")[-1].replace(".venv/bin/", ""), "--epochs", "1")
    folder = tmp_path / re.search(r"`(runs/phantom[^`]*)/`", README)[1]
    for name in ("curves.png", "test/counts.png", "test/froc.png"):
        assert (folder / name).is_file()
    assert list((folder / "test").glob("*overlay*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands(README) if re.fullmatch(COMPARISON, c)])
def test_comparison(command, tmp_path):
    more = ["--epochs", "1"] if "compare" in command else []
    run(command, "--jobs", "1", "--seeds", "1", *more)
    assert list(tmp_path.glob("runs/*/*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands(README) if re.fullmatch(BENCH, c)])
def test_bench(command, capsys):
    more = ["--only", "16->32", "--threads", "1", "--rounds", "1"] if "--cpu" in command else []
    try:
        run(command, *more)
    except SystemExit as stop:  # without a GPU there is nothing to check
        assert "--check" in command and stop.code == 2
        assert "GPU" in capsys.readouterr().err
    else:
        assert "|" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not HEAD.is_file(), reason="Debian's mricron-data is not installed")
def test_real_head(tmp_path):
    shorter = {
        "--moved": "--test 1 --spacing-mm 2",
        "plant_lesions": "--train 3 --val 2 --test 2 --spacing-mm 2",
        "register_to_mni": "--spacing-mm 2 2 2",
        "weakunet.train": "--epochs 1",
        "weakunet.preprocess": "--jobs 1",
    }
    for command in commands(section("A real head")):
        if "register_to_mni" in command:
            pytest.importorskip("itk", reason="no itk-elastix: see data_tools/requirements.txt")
        run(command, *next((s for name, s in shorter.items() if name in command), "").split())
    assert (tmp_path / "heads-lesions" / "detections.csv").is_file()
    assert (tmp_path / "heads-evaluation" / "metrics.json").is_file()
    assert (tmp_path / "runs" / "head" / "test" / "metrics.json").is_file()


@pytest.mark.slow
def test_digits(tmp_path):
    pytest.importorskip("sklearn", reason="no scikit-learn: see data_tools/requirements.txt")
    make, learn = commands(section("Something else than lesions"))
    run(make, *"--train 4 --val 2 --test 2".split())
    run(learn, "--epochs", "1")
    assert (tmp_path / "runs" / "digits" / "test" / "metrics.json").is_file()


def test_no_command_is_left_out():
    sections = ("A real head", "Your own scans", "Something else than lesions")
    in_sections = [command for title in sections for command in commands(section(title))]
    left = [
        command
        for command in commands(README)
        if command not in in_sections
        and not any(re.fullmatch(rule, command) for rule in (*ELSEWHERE, COMPARISON, BENCH))
    ]
    assert not left
    for place in ELSEWHERE.values():
        assert (ROOT / place).is_file()


def test_read_it_is_the_packages_map_and_leaves_no_folder_out():
    rows = re.findall(r"^\| `weakunet/(\S+)` \| (.+) \|$", section("Read it"), re.M)
    package_map = runpy.run_path(str(ROOT / ".ci" / "lines.py"))["package_map"]()
    assert rows == [(place, what) for place, _, what in package_map]
    folders = {path.parent for path in (ROOT / "weakunet").glob("*/**/*.py")}
    places = {f"{path.relative_to(ROOT / 'weakunet').as_posix()}/" for path in folders}
    assert places == {place for place, _ in rows if place.endswith("/")}


def test_requirements_are_what_the_package_depends_on_and_what_its_tests_need():
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in listed if line and not line.startswith("#")]
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert sorted(listed) == sorted(re.findall(r"^    '(.+)',$", declared, re.M))
    assert {"pytest", "ruff"} == set(
        re.findall(r"\w+(?=>)", declared.split("dev = [")[1].split("]")[0])
    )
