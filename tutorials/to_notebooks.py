"""Write the tutorials as Jupyter notebooks (pip install jupyter), for those who want them.

    python tutorials/to_notebooks.py [--out DIR]

A tutorial is a Python script in percent cells: a line `# %%` starts a code cell, `# %% [markdown]`
a cell of text in comments. The scripts are what is tested and edited. The notebooks are written
without outputs to tutorials/notebooks (which git ignores), their pictures to runs/tutorials.
"""

import argparse
import json
import os
import sys
from pathlib import Path

TUTORIALS = Path(__file__).resolve().parent
sys.path.insert(0, str(TUTORIALS.parent))  # from a clone, uninstalled

from weakunet.util.cli import command, write_text  # noqa: E402

SETUP = """\
# made by tutorials/to_notebooks.py: go to the clone, where pictures are written
import os, sys
os.chdir({clone!r})
sys.path.insert(0, "tutorials")
%matplotlib inline"""


def cells(text):
    """The cells of a script, without empty ones: ('markdown' or 'code', text)."""
    for part in ("\n" + text).split("\n# %%")[1:]:
        mark, _, lines = part.partition("\n")
        kind = "markdown" if "[markdown]" in mark else "code"
        if kind == "markdown":
            lines = "\n".join(line[1:].removeprefix(" ") for line in lines.splitlines())
        if lines.strip():
            yield kind, lines.strip("\n")


def notebook(script, folder):
    """The notebook of a script as JSON text (nbformat 4.5), to be written into `folder`."""
    clone = Path(os.path.relpath(TUTORIALS.parent, folder)).as_posix()
    setup = SETUP.format(clone=clone)
    content = []
    for kind, source in [("code", setup), *cells(script.read_text(encoding="utf-8"))]:
        cell = {"cell_type": kind, "id": f"cell-{len(content)}", "metadata": {}}
        cell["source"] = source.splitlines(keepends=True)
        content.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": content, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


@command
def main(argv=None):
    """Convert all tutorials."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TUTORIALS / "notebooks")
    args = parser.parse_args(argv)
    for script in sorted(TUTORIALS.glob("[0-9][0-9]_*.py")):
        path = args.out / f"{script.stem}.ipynb"
        write_text(path, notebook(script, args.out))
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
