"""Notebooks hold every line of their scripts and run; the kernels' page shows the sources."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from weakunet.gpu import cuda_source

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
SCRIPTS = sorted(TUTORIALS.glob("[0-9][0-9]_*.py"))
sys.path.insert(0, str(TUTORIALS))

import kernel_page  # noqa: E402
import to_notebooks  # noqa: E402


def cells_of(path):
    """(kind, text) of a notebook's cells; the first is the set-up."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    to_notebooks.main(["--out", str(folder)])
    return folder


def test_cells_are_those_of_the_script():
    text = (
        "# %% [markdown]\n# # A title\n#\n# a *star*,\n#     indented\n\n# %%\nx = [1,\n\n 2]\n\n"
    )
    text += "# %%\n\n# %% [markdown]\n# The end \u2260 ASCII\n"
    assert list(to_notebooks.cells(text)) == [
        ("markdown", "# A title\n\na *star*,\n    indented"),
        ("code", "x = [1,\n\n 2]"),
        ("markdown", "The end \u2260 ASCII"),
    ]


def test_notebooks_of_all_tutorials_hold_every_line_of_their_scripts(notebooks):
    assert sorted(path.stem for path in notebooks.iterdir()) == [path.stem for path in SCRIPTS]
    for script in SCRIPTS:
        kept = "\n".join(text for _, text in cells_of(notebooks / f"{script.stem}.ipynb")[1:])
        kept = {line.strip() for line in kept.split("\n")}
        lines = [line for line in script.read_text(encoding="utf-8").split("\n") if line.strip()]
        wanted = [line for line in lines if not line.startswith("# %%")]
        missing = [x for x in wanted if x.strip() not in kept and x[1:].strip() not in kept]
        assert missing == [], script.name


def test_a_notebook_runs_and_writes_where_the_page_says(tmp_path):
    clone = tmp_path / "clone"  # without a package: the installed one is found
    (clone / "tutorials").mkdir(parents=True)
    (clone / "weakunet").symlink_to(TUTORIALS.parent / "weakunet")
    script = clone / "tutorials" / SCRIPTS[0].name
    for path in (SCRIPTS[0], TUTORIALS / "lesson.py"):
        shutil.copy(path, clone / "tutorials")
    notebook = to_notebooks.notebook(script, clone / "tutorials" / "notebooks")
    sources = ["".join(c["source"]) for c in json.loads(notebook)["cells"] if "outputs" in c]
    relative = os.path.relpath(TUTORIALS.parent, clone / "tutorials" / "notebooks")
    sources[0] = sources[0].replace("%matplotlib inline", "").replace(relative, str(clone))
    run = f"space = {{'__name__': '__main__'}}\nfor source in {sources!r}:\n    exec(source, space)"
    ran = subprocess.run(
        [sys.executable, "-c", run], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "MPLBACKEND": "agg"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert (clone / "runs" / "tutorials" / f"{script.stem}.png").is_file()


def test_the_page_shows_every_layers_equation_functions_and_kernels(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kernel_page.main([])
    page = (tmp_path / "kernels.html").read_text(encoding="utf-8")
    assert "kernels.html" in capsys.readouterr().out
    assert "src=" not in page and "url(" not in page  # no network
    assert "white-space: pre-wrap" in page  # lines wrap: nothing is cut off at any width
    text = html.unescape(re.sub(r"<[^>]*>", "", page))
    for file in cuda_source.cu_files():
        module = kernel_page.PACKAGE / f"{file}.py"
        for kernel in cuda_source.kernels(file) if module.exists() else []:
            assert f"{kernel}(" in text, f"{kernel} of {file}.cu"
        if module.exists() and file in kernel_page.SECTIONS:
            functions = re.findall(r"^def ([a-z]\w+)_cuda\(", module.read_text(), re.M)
            assert all(f"def {name}(" in text for name in functions), file
    assert "_cuda(" not in text
