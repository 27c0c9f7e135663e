"""Tutorials as notebooks: the same cells in the same order, and they run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
SCRIPTS = sorted(TUTORIALS.glob("[0-9][0-9]_*.py"))
SCRIPT = '''\
"""What comes before the first mark is code."""

# %% [markdown]
# # A title
#
# Text with *stars*,
#     indented, and "quotes" \u2260 ASCII.

# %%
import sys
from pathlib import Path

root = Path(__file__).resolve().parent
x = [1,

     2]

# %% with a title
# a comment stays
print(sum(x), root.name)

# %%

# %% [markdown] The end
'''


@pytest.fixture
def to_notebooks(monkeypatch):
    monkeypatch.syspath_prepend(TUTORIALS)
    import to_notebooks

    yield to_notebooks
    sys.modules.pop("to_notebooks")


def convert(to_notebooks, script, out):
    to_notebooks.main([str(script), "--out", str(out)])
    path = out / f"{script.stem}.ipynb"
    return path, json.loads(path.read_text(encoding="utf-8"))


def run_cells(path):
    """Run a notebook's code cells in order, in its folder, as Jupyter would; what they print."""
    content = json.loads(path.read_text(encoding="utf-8"))
    sources = ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]
    sources = [source.replace("%matplotlib inline", "") for source in sources]
    run = f"space = {{'__name__': '__main__'}}\nfor source in {sources!r}:\n    exec(source, space)"
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", run]
    ran = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_cells_are_those_of_the_script(to_notebooks, tmp_path):
    script = tmp_path / "scripts" / "00_sample.py"
    script.parent.mkdir()
    script.write_text(SCRIPT, encoding="utf-8")
    path, content = convert(to_notebooks, script, tmp_path / "out")
    setup, *cells = [(c["cell_type"], "".join(c["source"])) for c in content["cells"]]
    assert "'../scripts/00_sample.py'" in setup[1]
    assert cells == [
        ("code", '"""What comes before the first mark is code."""'),
        ("markdown", '# A title\n\nText with *stars*,\n    indented, and "quotes" \u2260 ASCII.'),
        (
            "code",
            "import sys\nfrom pathlib import Path\n\n"
            "root = Path(__file__).resolve().parent\nx = [1,\n\n     2]",
        ),
        ("code", "# with a title\n# a comment stays\nprint(sum(x), root.name)"),
        ("markdown", "The end"),
    ]
    assert run_cells(path) == "3 scripts\n"
    ids = [c["id"] for c in content["cells"]]
    assert len(set(ids)) == len(ids)


def test_code_in_a_text_cell_is_refused_with_its_line(to_notebooks, tmp_path, capsys):
    script = tmp_path / "01_wrong.py"
    script.write_text("# %% [markdown]\n# text\nx = 1\n")
    with pytest.raises(SystemExit, match="2"):
        to_notebooks.main([str(script), "--out", str(tmp_path)])
    assert f"{script}: line 3: code in a text cell" in capsys.readouterr().err
    assert not (tmp_path / "01_wrong.ipynb").exists()


def test_missing_script_is_refused(to_notebooks, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        to_notebooks.main([str(tmp_path / "99_none.py"), "--out", str(tmp_path)])
    assert "99_none.py: no such file" in capsys.readouterr().err


def test_notebooks_of_all_tutorials_hold_every_line_of_their_scripts(to_notebooks, tmp_path):
    to_notebooks.main(["--out", str(tmp_path)])
    assert sorted(path.stem for path in tmp_path.iterdir()) == [path.stem for path in SCRIPTS]
    for script in SCRIPTS:
        content = json.loads((tmp_path / f"{script.stem}.ipynb").read_text(encoding="utf-8"))
        lines = [
            line for cell in content["cells"][1:] for line in "".join(cell["source"]).split("\n")
        ]
        wanted = [line for line in script.read_text(encoding="utf-8").splitlines() if line.strip()]
        wanted = [line for line in wanted if not to_notebooks.MARK.fullmatch(line)]
        kept = {line.strip() for line in lines}
        missing = [x for x in wanted if x.strip() not in kept and x[1:].strip() not in kept]
        assert missing == [], script.name


@pytest.mark.skipif(len(SCRIPTS) < 2, reason="fewer than two tutorials are there yet")
@pytest.mark.parametrize("script", SCRIPTS[:2], ids=lambda script: script.stem)
def test_notebook_of_a_tutorial_runs(script, to_notebooks, tmp_path):
    path, _ = convert(to_notebooks, script, tmp_path)
    assert run_cells(path).strip()


def test_jupyter_itself_takes_a_notebook(to_notebooks, tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="nbformat (Jupyter) is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient (Jupyter) is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel (Jupyter) is not installed")
    script = tmp_path / "00_sample.py"
    script.write_text(SCRIPT, encoding="utf-8")
    path, _ = convert(to_notebooks, script, tmp_path)
    content = nbformat.read(path, as_version=4)
    nbformat.validate(content)
    nbclient.NotebookClient(content, resources={"metadata": {"path": tmp_path}}).execute()
    printed = [o.text for cell in content.cells for o in cell.get("outputs", []) if "text" in o]
    assert printed == [f"3 {tmp_path.name}\n"]
